"""Gaussian splatting behind one function, for any number of channels.

A Gaussian's covariance is projected with the Jacobian of the perspective map (EWA), dilated by ``eps2d``, and
composited front to back, per pixel and in order of camera depth (equal depths in order of index)::

    alpha_i = min(alpha_max, o_i exp(-d^T Sigma'^-1 d / 2)),  skipped below alpha_min
    T_i     = prod_{j < i} (1 - alpha_j),  the pixel ends before T_(i+1) <= transmittance_min
    F       = sum_i T_i alpha_i f_i + T_end * background

Two sets of conventions are named. ``GSPLAT`` gives the picture of gsplat's defaults: gsplat's extents (3.33
sigma at most, less for low opacities) hold every pixel where alpha >= 1/255, so they bound the work and never
change the picture; the backends are free to choose tighter ones. ``THREE_DGS`` gives that of the paper's
release, whose rasteriser is the original 3D Gaussian Splatting one and *cuts* Gaussians: it draws one only in
the 16 x 16 tiles that a box of three standard deviations touches, where an opaque Gaussian still has an alpha
of 0.011. docs/rendering.md lists the differences and how far apart the two pictures are.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from guava.camera import Camera
from guava.errors import InputError
from guava.rendering.mesh import single_camera


@dataclass(frozen=True)
class SplatConventions:
    """In what splatting programs differ. The defaults are gsplat's.

    Attributes:
        eps2d: Added to both variances of the projected Gaussian, square pixels.
        alpha_max: Alphas are clamped to it (3DGS and the paper's release: 0.99).
        alpha_min: Smaller alphas are skipped.
        transmittance_min: A pixel stops before the Gaussian that would take its transmittance to this or
            below.
        near: Gaussians whose centre is nearer than this are dropped, metres of camera depth (3DGS: 0.2).
        frustum_margin: In the Jacobian only, x/z and y/z are held within the picture's edges plus this many
            of its half extents, because the linearised perspective explodes far outside the picture. With the
            tracker's camera the edges are at +-1/24, so the limit is 1.3/24 = 0.054; centres are projected
            unclamped.
        exclusive_limits: What happens exactly at a limit. False (gsplat): a centre at ``near`` is drawn, and
            a pixel stops before its transmittance would be ``transmittance_min``. True (3DGS): the opposite.
        extent: Where a Gaussian is drawn. "alpha": wherever its alpha reaches ``alpha_min``. "radius" (3DGS):
            only in the 16 x 16 tiles (from the picture's top left corner) that its square box touches, with
            r = ceil(3 sqrt(lambda)) and p = its centre - 0.5: tiles floor((p - r) / 16) up to, not including,
            floor((p + r + 15) / 16). lambda = m + sqrt(max(0.1, m^2 - det)), m = half the trace, is the
            larger eigenvalue of the dilated covariance, up to the 0.1.
        normalize_quaternions: False (3DGS): rotation matrices are made of the quaternions as they are.
        straight_through: True (3DGS): gradients pass the clamp to ``alpha_max`` as if it were not there.
        inverse_depth: True (3DGS): ``SplatOutput.inverse_depth`` is filled instead of ``depth``.
    """

    eps2d: float = 0.3
    alpha_max: float = 0.999
    alpha_min: float = 1 / 255
    transmittance_min: float = 1e-4
    near: float = 0.01
    frustum_margin: float = 0.3
    exclusive_limits: bool = False
    extent: Literal["alpha", "radius"] = "alpha"
    normalize_quaternions: bool = True
    straight_through: bool = False
    inverse_depth: bool = False


GSPLAT = SplatConventions()
"""gsplat's defaults."""

THREE_DGS = SplatConventions(
    alpha_max=0.99, near=0.2, exclusive_limits=True, extent="radius", normalize_quaternions=False,
    straight_through=True, inverse_depth=True,
)
"""The rasteriser of the paper's release (3D Gaussian Splatting, without its optional antialiasing)."""

CONVENTIONS = {"gsplat": GSPLAT, "3dgs": THREE_DGS}
"""Conventions by the name that ``GuavaConfig.splat_conventions`` uses."""


def conventions_by_name(name: str) -> SplatConventions:
    """``GSPLAT`` for "gsplat", ``THREE_DGS`` for "3dgs".

    Raises:
        InputError: There are no such conventions.
    """
    if name not in CONVENTIONS:
        known = ", ".join(CONVENTIONS)
        raise InputError(f"There are no splat conventions '{name}'.", f"Choose one of: {known}.")
    return CONVENTIONS[name]


@dataclass(frozen=True)
class SplatOutput:
    """A splatted picture.

    Attributes:
        features: (H, W, C); the background is already behind it if one was given, otherwise it is
            premultiplied.
        alpha: (H, W) in [0, 1], 1 - the transmittance that is left.
        depth: (H, W) sum of weight times camera depth, in metres; **not** divided by alpha, so that it stays
            linear in the weights and 0 where nothing is. See :attr:`mean_depth`. None if the conventions ask
            for the inverse.
        inverse_depth: (H, W) sum of weight / camera depth, 1/m, not divided by alpha; None unless the
            conventions ask for it.
    """

    features: Tensor
    alpha: Tensor
    depth: Tensor | None
    inverse_depth: Tensor | None = None

    @property
    def mean_depth(self) -> Tensor:
        """(H, W) expected depth of what is seen, ``depth / alpha`` (or ``alpha / inverse_depth``); infinite
        where alpha is 0."""
        weight = self.alpha.clamp(min=1e-12)
        depth = weight / self.inverse_depth if self.depth is None else self.depth / weight
        return torch.where(self.alpha > 0, depth, torch.inf)


def splat(
    means: Tensor,
    quaternions: Tensor,
    scales: Tensor,
    opacities: Tensor,
    features: Tensor,
    camera: Camera,
    *,
    background: Tensor | None = None,
    backend: str = "auto",
    conventions: SplatConventions = GSPLAT,
) -> SplatOutput:
    """Splat N Gaussians with C channels each.

    Args:
        means: (N, 3) world metres.
        quaternions: (N, 4) rotations (w, x, y, z); normalised here if the conventions say so.
        scales: (N, 3) standard deviations, metres.
        opacities: (N,) in [0, 1].
        features: (N, C).
        camera: One camera (no batch).
        background: (C,) placed behind the Gaussians; black (zero) without it.
        backend: One of

            * "cpu": numba, multithreaded, float32, no gradients;
            * "torch": the readable reference, any device and dtype, differentiable, slow;
            * "gsplat": CUDA, differentiable;
            * "auto": "gsplat" for CUDA tensors; for CPU tensors "torch" when a gradient is asked for and
              "cpu" otherwise. Elsewhere, and on CUDA without gsplat, "torch" with a warning.
        conventions: The backend "gsplat" draws ``THREE_DGS`` as gsplat does, with a warning that says by how
            much it deviates, and refuses other constants than the two named sets'.

    Raises:
        ValueError: Wrong shapes, NaN or infinite values, zero quaternions, opacities outside [0, 1], or a
            backend that cannot do what is asked.
        MissingDependencyError: "gsplat" is not installed.
    """
    single_camera(camera)
    _check(means, quaternions, scales, opacities, features, background)
    needs_grad = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad
        for t in (
            means, quaternions, scales, opacities, features, background, camera.world_to_camera,
            camera.intrinsics,
        )
    )
    name = _resolve(backend, means.device, needs_grad)
    if name == "cpu":
        from guava.rendering.splat_cpu import splat_cpu as run
    elif name == "gsplat":
        from guava.rendering.splat_gsplat import splat_gsplat as run
    else:
        from guava.rendering.splat_torch import splat_torch as run
    return run(means, quaternions, scales, opacities, features, camera, background, conventions)


def _resolve(backend: str, device: torch.device, needs_grad: bool) -> str:
    """The backend that will run; raises where the wish cannot be met."""
    if backend == "auto":
        if device.type == "cuda":
            from guava.rendering.splat_gsplat import gsplat_available

            if gsplat_available():
                return "gsplat"
        if device.type != "cpu":
            warnings.warn(
                f"Splatting on '{device}' without gsplat uses the slow torch reference; "
                'install it with: pip install "guava-avatar[gpu]", or move the tensors to the CPU.',
                RuntimeWarning, stacklevel=3,
            )
            return "torch"
        return "torch" if needs_grad else "cpu"
    if backend == "cpu":
        if device.type != "cpu":
            raise ValueError(f"The splat backend 'cpu' cannot draw tensors that lie on '{device}'.")
        if needs_grad:
            raise ValueError(
                "The splat backend 'cpu' has no gradients; use backend='torch', or torch.no_grad()."
            )
        return backend
    if backend == "gsplat":
        if device.type != "cuda":
            raise ValueError(f"The splat backend 'gsplat' needs CUDA tensors, these lie on '{device}'.")
        return backend
    if backend == "torch":
        return backend
    raise ValueError(f"There is no splat backend '{backend}'; choose 'auto', 'cpu', 'torch' or 'gsplat'.")


def _check(means, quaternions, scales, opacities, features, background) -> None:
    count = means.shape[0] if means.ndim else -1
    wanted = {
        "means": (means, (count, 3)), "quaternions": (quaternions, (count, 4)),
        "scales": (scales, (count, 3)), "opacities": (opacities, (count,)),
        "features": (features, (count, features.shape[-1] if features.ndim else -1)),
    }
    if background is not None:
        wanted["background"] = (background, (features.shape[-1],))
    for name, (value, shape) in wanted.items():
        if tuple(value.shape) != shape:
            raise ValueError(f"splat got {name} of shape {tuple(value.shape)}, expected {shape}.")
        if value.device != means.device:
            raise ValueError(f"splat got {name} on '{value.device}' but means on '{means.device}'.")
        # A sum is NaN or infinite if any entry is, and costs a tenth of isfinite().all(); a finite overflow
        # of the sum is told apart by the full test.
        if not bool(torch.isfinite(value.detach().sum())) and not bool(torch.isfinite(value).all()):
            raise ValueError(f"splat got {name} with NaN or infinite values.")
    if count and not bool((quaternions.detach().abs().amax(1) > 0).all()):
        raise ValueError("splat got quaternions that are zero.")
    if count:
        low, high = (float(t) for t in opacities.detach().aminmax())
        # Rounding is forgiven.
        if low < -1e-4 or high > 1 + 1e-4:
            raise ValueError(f"splat got opacities from {low:.4g} to {high:.4g}, expected [0, 1].")


def normalized_frustum(camera: Camera, margin: float) -> tuple[float, float, float, float]:
    """Limits of x/z and y/z (x_low, x_high, y_low, y_high) for the Jacobian, see ``SplatConventions``."""
    inverse = torch.linalg.inv(camera.intrinsics.detach().double().cpu())
    w, h = float(camera.width), float(camera.height)
    corners = torch.tensor([[0, 0, 1], [w, 0, 1], [0, h, 1], [w, h, 1]], dtype=torch.float64) @ inverse.T
    low, high = corners[:, :2].amin(0), corners[:, :2].amax(0)
    extra = margin * (high - low) / 2
    low, high = low - extra, high + extra
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])
