"""Gaussian splatting on CUDA by gsplat."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from guava.camera import Camera
from guava.errors import MissingDependencyError
from guava.rendering.splatting import GSPLAT, SplatConventions, SplatOutput


def gsplat_available() -> bool:
    """Whether the package is installed (whether its kernels build is only known once it runs)."""
    return find_spec("gsplat") is not None


def splat_gsplat(
    means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, camera: Camera,
    background: Tensor | None, conventions: SplatConventions,
) -> SplatOutput:
    """See :func:`guava.rendering.splat`.

    Raises:
        MissingDependencyError: gsplat is not installed.
        ValueError: Constants that gsplat has compiled in are to be changed, the camera has skew, or its
            intrinsics ask for a gradient, which gsplat has not.
    """
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise MissingDependencyError("gsplat", "gpu", "Splatting on CUDA") from error
    fixed = ("alpha_max", "alpha_min", "transmittance_min", "frustum_margin")
    if any(getattr(conventions, name) != getattr(GSPLAT, name) for name in fixed):
        raise ValueError(f"The splat backend 'gsplat' cannot change {', '.join(fixed)}; use 'torch'.")
    if float(camera.intrinsics[0, 1]) or float(camera.intrinsics[1, 0]):
        raise ValueError("The splat backend 'gsplat' takes no intrinsics with skew or rotation.")
    if torch.is_grad_enabled() and camera.intrinsics.requires_grad:
        raise ValueError("The splat backend 'gsplat' has no gradients of intrinsics; use 'torch'.")
    if not len(means):
        from guava.rendering.splat_torch import splat_torch

        return splat_torch(means, quaternions, scales, opacities, features, camera, background, conventions)
    picture, alpha, _ = rasterization(
        means.float(), quaternions.float(), scales.float(), opacities.float(), features.float(),
        camera.world_to_camera.to(means).float()[None], camera.intrinsics.to(means).float()[None],
        camera.width, camera.height, near_plane=conventions.near, eps2d=conventions.eps2d, packed=False,
        render_mode="RGB+D",
    )
    drawn, depth, alpha = picture[0, ..., :-1], picture[0, ..., -1], alpha[0, ..., 0]
    if background is not None:
        drawn = drawn + (1 - alpha)[..., None] * background.to(drawn)
    return SplatOutput(drawn.to(torch.float32), alpha, depth)
