"""Gaussian splatting on CUDA by gsplat."""

from __future__ import annotations

import warnings
from dataclasses import fields
from importlib.util import find_spec

import torch
from torch import Tensor

from guava.camera import Camera
from guava.errors import MissingDependencyError
from guava.rendering.splatting import GSPLAT, THREE_DGS, SplatConventions, SplatOutput

DEVIATION = "67 dB or more in RGB and 0.06 at the worst pixel, 0.2 to 0.6 % of the latent channels' spread"
"""How far gsplat's pictures are from those of ``THREE_DGS``; docs/rendering.md has the table."""


def gsplat_available() -> bool:
    """Whether the package is installed (whether its kernels build is only known once it runs)."""
    return find_spec("gsplat") is not None


def splat_gsplat(
    means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, camera: Camera,
    background: Tensor | None, conventions: SplatConventions,
) -> SplatOutput:
    """See :func:`guava.rendering.splat`.

    Of ``THREE_DGS``, gsplat takes the near limit and the inverse depth, and opacities are clamped to 0.99
    instead of alphas (gsplat's own clamp at 0.999 never acts then; gradients pass as the release's do). The
    extents are not cut and quaternions are normalised; a warning says so.

    Raises:
        MissingDependencyError: gsplat is not installed.
        ValueError: Constants that gsplat has compiled in are to be changed, the camera has skew, or its
            intrinsics ask for a gradient, which gsplat has not.
    """
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise MissingDependencyError("gsplat", "gpu", "Splatting on CUDA") from error
    if conventions == THREE_DGS:
        warnings.warn(
            "gsplat draws the conventions '3dgs' without cutting Gaussians at three standard deviations, and "
            f"clamps opacities instead of alphas: {DEVIATION}. The backend 'torch' draws them exactly.",
            RuntimeWarning, stacklevel=3,
        )
        opacities = opacities - (opacities - conventions.alpha_max).clamp(min=0).detach()
    else:
        free = ("eps2d", "near")
        fixed = [f.name for f in fields(conventions) if f.name not in free]
        if any(getattr(conventions, name) != getattr(GSPLAT, name) for name in fixed):
            raise ValueError(
                f"The splat backend 'gsplat' can only change {' and '.join(free)} of its conventions; "
                "use 'torch'."
            )
    if float(camera.intrinsics[0, 1]) or float(camera.intrinsics[1, 0]):
        raise ValueError("The splat backend 'gsplat' takes no intrinsics with skew or rotation.")
    if torch.is_grad_enabled() and camera.intrinsics.requires_grad:
        raise ValueError("The splat backend 'gsplat' has no gradients of intrinsics; use 'torch'.")
    if not len(means):
        from guava.rendering.splat_torch import splat_torch

        return splat_torch(means, quaternions, scales, opacities, features, camera, background, conventions)
    values = features.float()
    if conventions.inverse_depth:
        # Nearer ones are not drawn.
        z = camera.to(means.device).transform(means)[:, 2].clamp(min=conventions.near)
        values = torch.cat([values, (1 / z[:, None]).float()], 1)
    picture, alpha, _ = rasterization(
        means.float(), quaternions.float(), scales.float(), opacities.float(), values,
        camera.world_to_camera.to(means).float()[None], camera.intrinsics.to(means).float()[None],
        camera.width, camera.height, near_plane=conventions.near, eps2d=conventions.eps2d, packed=False,
        render_mode="RGB" if conventions.inverse_depth else "RGB+D",
    )
    drawn, depth, alpha = picture[0, ..., :-1], picture[0, ..., -1], alpha[0, ..., 0]
    depths = (None, depth) if conventions.inverse_depth else (depth, None)
    if background is not None:
        drawn = drawn + (1 - alpha)[..., None] * background.to(drawn)
    return SplatOutput(drawn.to(torch.float32), alpha, *depths)
