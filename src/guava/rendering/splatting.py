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

import functools
import math
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

    def __post_init__(self):
        limits = (self.eps2d, self.transmittance_min, self.frustum_margin)
        if not (
            0 < self.alpha_min <= self.alpha_max < 1 and 0 < self.near < math.inf
            and all(0 <= value < math.inf for value in limits) and self.extent in ("alpha", "radius")
        ):
            raise ValueError(
                "Splat conventions need 0 < alpha_min <= alpha_max < 1, near > 0, no other number below 0 or "
                f"infinite, and the extent 'alpha' or 'radius'; got {self}."
            )


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

    @staticmethod
    def empty(
        width: int, height: int, channels: int, conventions: SplatConventions = GSPLAT, *, depth: bool = True
    ) -> SplatOutput:
        """A picture on the CPU, not filled, to be drawn into again and again (``splat(..., out=)``).

        Args:
            width, height: Pixels.
            channels: C.
            conventions: They say whether it holds depth or inverse depth.
            depth: False leaves both out: they will not be drawn.
        """
        def plane(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device="cpu")

        depths = (plane(height, width), None) if depth else (None, None)
        if conventions.inverse_depth:
            depths = depths[::-1]
        return SplatOutput(plane(height, width, channels), plane(height, width), *depths)

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
    out: SplatOutput | None = None,
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

            * "native": the compiled library, CPU, multithreaded, differentiable. It computes in float32
              whatever it is given; gradients have their inputs' dtype;
            * "numba": CPU, multithreaded, float32, no gradients, several times slower; for machines where
              the library cannot load;
            * "torch": the readable reference, any device and dtype, differentiable, very slow;
            * "gsplat": CUDA, differentiable;
            * "auto": "gsplat" for CUDA tensors, "native" for CPU tensors. Where these are not to be had, with
              a warning, "numba" on the CPU without gradients and "torch" otherwise.
        conventions: The backend "gsplat" draws ``THREE_DGS`` as gsplat does, with a warning that says by how
            much it deviates, and refuses other constants than the two named sets'.
        out: A picture to overwrite and return, as :meth:`SplatOutput.empty` makes it: frame after frame
            into new memory costs the native backend a sixth of its time. Without depths in it, none are
            drawn. Only where no gradient is asked for. Other backends draw their own picture and copy it.

    Raises:
        ValueError: Wrong shapes, NaN or infinite values, zero quaternions, opacities outside [0, 1] (the
            array and the first such row are named), an ``out`` that does not fit, or a backend that cannot do
            what is asked.
        MissingDependencyError: "gsplat" is not installed.
        NativeUnavailable: "native" is asked for and cannot load.
    """
    single_camera(camera)
    _check_shapes(means, quaternions, scales, opacities, features, background)
    needs_grad = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad
        for t in (
            means, quaternions, scales, opacities, features, background, camera.world_to_camera,
            camera.intrinsics,
        )
    )
    if out is not None:
        _check_out(out, (camera.height, camera.width), features.shape[1], conventions, needs_grad)
    name = _resolve(backend, means.device, needs_grad)
    if name == "native":
        from guava.rendering.splat_native import splat_native

        return splat_native(
            means, quaternions, scales, opacities, features, camera, background, conventions, out
        )
    _check_values(means, quaternions, scales, opacities, features, background, camera)
    if name == "numba":
        from guava.rendering.splat_numba import splat_numba as run
    elif name == "gsplat":
        from guava.rendering.splat_gsplat import splat_gsplat as run
    else:
        from guava.rendering.splat_torch import splat_torch as run
    drawn = run(means, quaternions, scales, opacities, features, camera, background, conventions)
    return drawn if out is None else _copy(drawn, out)


def _resolve(backend: str, device: torch.device, needs_grad: bool) -> str:
    """The backend that will run; raises where the wish cannot be met."""
    if backend == "auto":
        if device.type == "cpu":
            reason = native_problem()
            if reason is None:
                return "native"
            warn_slow(reason)
            return "torch" if needs_grad else "numba"
        if device.type == "cuda":
            from guava.rendering.splat_gsplat import gsplat_available

            if gsplat_available():
                return "gsplat"
        warnings.warn(
            f"Splatting on '{device}' without gsplat uses the slow torch reference; "
            'install it with: pip install "guava-avatar[gpu]", or move the tensors to the CPU.',
            RuntimeWarning, stacklevel=3,
        )
        return "torch"
    if backend in ("native", "numba"):
        if device.type != "cpu":
            raise ValueError(f"The splat backend '{backend}' cannot draw tensors that lie on '{device}'.")
        if backend == "numba" and needs_grad:
            raise ValueError(
                "The splat backend 'numba' has no gradients; use backend='native', or torch.no_grad()."
            )
        return backend
    if backend == "gsplat":
        if device.type != "cuda":
            raise ValueError(f"The splat backend 'gsplat' needs CUDA tensors, these lie on '{device}'.")
        return backend
    if backend == "torch":
        return backend
    raise ValueError(
        f"There is no splat backend '{backend}'; choose 'auto', 'native', 'numba', 'torch' or 'gsplat'."
    )


def native_problem() -> str | None:
    """Why the native library cannot be used here; None if it can."""
    from guava import native

    try:
        native.library()
    except native.NativeUnavailable as error:
        return error.message
    return None


@functools.cache
def warn_slow(reason: str) -> None:
    """Once per process: that the CPU's slow path is in use, and why."""
    warnings.warn(
        "Splatting on the CPU is several times slower than it could be, and with gradients hundreds of "
        f"times: {reason} 'guava doctor' says more.",
        RuntimeWarning, stacklevel=4,
    )


# --- what is refused ----------------------------------------------------------------------------------------


def _check_shapes(means, quaternions, scales, opacities, features, background) -> None:
    count = means.shape[0] if means.ndim else -1
    channels = features.shape[-1] if features.ndim else -1
    for name, value, shape in (
        ("means", means, (count, 3)), ("quaternions", quaternions, (count, 4)),
        ("scales", scales, (count, 3)), ("opacities", opacities, (count,)),
        ("features", features, (count, channels)), ("background", background, (channels,)),
    ):
        if value is None:
            continue
        if value.shape != shape:
            raise ValueError(f"splat got {name} of shape {tuple(value.shape)}, expected {shape}.")
        if value.device != means.device:
            raise ValueError(f"splat got {name} on '{value.device}' but means on '{means.device}'.")


def _check_values(means, quaternions, scales, opacities, features, background, camera) -> None:
    """What the native kernels check by themselves."""
    arrays = {
        "means": means, "quaternions": quaternions, "scales": scales, "opacities": opacities,
        "features": features, "background": background, "camera": camera.world_to_camera[:3],
    }
    for name, value in arrays.items():
        # A sum is NaN or infinite if any entry is, and costs a tenth of isfinite().all(); a finite overflow
        # of the sum is told apart by the full test.
        if value is None or bool(torch.isfinite(value.detach().sum())):
            continue
        rows = ~torch.isfinite(value.detach())
        rows = rows.any(1) if rows.ndim > 1 else rows
        if bool(rows.any()):
            raise not_finite(name, int(rows.nonzero()[0]))
    zero = (quaternions.detach() == 0).all(1)
    if bool(zero.any()):
        raise zero_quaternion(int(zero.nonzero()[0]))
    bad = (opacities.detach() < -OPACITY_SLACK) | (opacities.detach() > 1 + OPACITY_SLACK)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise opacity_outside(row, float(opacities[row]))


OPACITY_SLACK = 1e-4
"""Opacities may leave [0, 1] by this much: rounding is forgiven."""


def not_finite(name: str, row: int) -> ValueError:
    """The error for an array that has a NaN or an infinity in ``row``."""
    if name == "camera":
        return ValueError("splat got a camera with NaN or infinite values.")
    return ValueError(f"splat got {name} with NaN or infinite values (row {row}).")


def zero_quaternion(row: int) -> ValueError:
    """The error for a quaternion without direction."""
    return ValueError(f"splat got quaternions that are zero (row {row}).")


def opacity_outside(row: int, value: float) -> ValueError:
    """The error for an opacity that is none."""
    return ValueError(f"splat got opacities outside [0, 1]: {value:.4g} in row {row}.")


def _check_out(
    out: SplatOutput, size: tuple[int, int], channels: int, conventions: SplatConventions, needs_grad: bool
) -> None:
    if needs_grad:
        raise ValueError("splat draws into out= only without gradients; use torch.no_grad().")
    if (out.depth if conventions.inverse_depth else out.inverse_depth) is not None:
        wanted, given = ("inverse_depth", "depth")[:: 1 if conventions.inverse_depth else -1]
        raise ValueError(f"splat got an out= with {given}, but its conventions draw {wanted}.")
    depth = out.inverse_depth if conventions.inverse_depth else out.depth
    for name, value, shape in (
        ("features", out.features, (*size, channels)), ("alpha", out.alpha, size), ("depth", depth, size),
    ):
        if name == "depth" and value is None:
            continue
        if (
            value.shape != shape or value.dtype != torch.float32 or value.device.type != "cpu"
            or not value.is_contiguous()
        ):
            raise ValueError(
                f"splat got an out= whose {name} is {tuple(value.shape)} {value.dtype} on '{value.device}'; "
                f"it needs {shape}, float32, contiguous, on the CPU."
            )


def _copy(drawn: SplatOutput, out: SplatOutput) -> SplatOutput:
    out.features.copy_(drawn.features)
    out.alpha.copy_(drawn.alpha)
    if out.depth is not None:
        out.depth.copy_(drawn.depth)
    if out.inverse_depth is not None:
        out.inverse_depth.copy_(drawn.inverse_depth)
    return out


def normalized_frustum(camera: Camera, margin: float) -> tuple[float, float, float, float]:
    """Limits of x/z and y/z (x_low, x_high, y_low, y_high) for the Jacobian, see ``SplatConventions``.

    Raises:
        ValueError: Intrinsics that are not finite, not invertible, or whose last row is not (0, 0, 1).
    """
    (a, b, cx), (c, d, cy), last = camera.intrinsics.detach().double().tolist()
    determinant = a * d - b * c
    if last != [0, 0, 1] or not (0 < abs(determinant) < math.inf and math.isfinite(cx) and math.isfinite(cy)):
        raise ValueError(
            "splat got a camera whose intrinsics are not finite, cannot be inverted, or do not end with "
            f"(0, 0, 1): {camera.intrinsics.tolist()}."
        )
    corners = [(u - cx, v - cy) for u in (0, camera.width) for v in (0, camera.height)]
    xs = [(d * u - b * v) / determinant for u, v in corners]
    ys = [(a * v - c * u) / determinant for u, v in corners]
    x_extra, y_extra = margin * (max(xs) - min(xs)) / 2, margin * (max(ys) - min(ys)) / 2
    return min(xs) - x_extra, max(xs) + x_extra, min(ys) - y_extra, max(ys) + y_extra
