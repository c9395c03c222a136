"""The readable reference of Gaussian splatting: any device, any dtype, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from guava.camera import Camera
from guava.rendering.splatting import SplatConventions, SplatOutput, normalized_frustum
from guava.rotation import quaternion_to_matrix

_TILE = 16
_CHUNK = 4096  # Gaussians of one tile that are held at once: 4096 x 256 pixels


def project_gaussians(
    means: Tensor, quaternions: Tensor, scales: Tensor, camera: Camera, conventions: SplatConventions
) -> tuple[Tensor, Tensor, Tensor]:
    """EWA projection.

    Returns:
        Pixel positions (N, 2), camera depths (N,) and dilated 2D covariances (N, 2, 2), square pixels.
    """
    rotation = camera.world_to_camera[:3, :3].to(means)
    points = means @ rotation.T + camera.world_to_camera[:3, 3].to(means)
    depth = points[:, 2]
    z = depth.clamp(min=conventions.near)
    intrinsics = camera.intrinsics.to(means)
    normalized = points[:, :2] / z[:, None]
    pixels = normalized @ intrinsics[:2, :2].T + intrinsics[:2, 2]

    x_low, x_high, y_low, y_high = normalized_frustum(camera, conventions.frustum_margin)
    x = normalized[:, 0].clamp(x_low, x_high)
    y = normalized[:, 1].clamp(y_low, y_high)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([1 / z, zero, -x / z, zero, 1 / z, -y / z], -1).reshape(-1, 2, 3)
    if conventions.normalize_quaternions:
        axes = quaternion_to_matrix(quaternions)
    else:
        axes = unnormalized_matrix(quaternions)
    spread = intrinsics[:2, :2] @ jacobian @ rotation @ axes * scales[:, None]
    covariance = spread @ spread.transpose(-1, -2)
    return pixels, depth, covariance + conventions.eps2d * torch.eye(2).to(means)


def splat_torch(
    means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, camera: Camera,
    background: Tensor | None, conventions: SplatConventions,
) -> SplatOutput:
    """See :func:`guava.rendering.splat`. Memory is bounded by recomputing each tile in the backward pass."""
    pixels, depth, covariance = project_gaussians(means, quaternions, scales, camera, conventions)
    determinant = covariance[:, 0, 0] * covariance[:, 1, 1] - covariance[:, 0, 1] ** 2
    in_front = depth > conventions.near if conventions.exclusive_limits else depth >= conventions.near
    visible = in_front & (opacities >= conventions.alpha_min) & (determinant > 0)
    order = torch.argsort(depth.detach(), stable=True)
    order = order[visible[order]]
    pixels, depth, opacities = pixels[order], depth[order], opacities[order]
    covariance, determinant = covariance[order], determinant[order, None]
    # The inverse covariance as (a, b, c): exponent = (a dx^2 + c dy^2) / 2 + b dx dy.
    conic = torch.stack([covariance[:, 1, 1], -covariance[:, 0, 1], covariance[:, 0, 0]], -1) / determinant
    drawn_depth = 1 / depth if conventions.inverse_depth else depth
    values = torch.cat([features[order], drawn_depth[:, None]], 1)

    with torch.no_grad():
        reach = (2 * (opacities / conventions.alpha_min).log()).clamp(min=0).sqrt()
        extent = reach[:, None] * covariance.diagonal(dim1=-2, dim2=-1).sqrt() + 1e-3
        low, high = pixels - extent, pixels + extent
        if conventions.extent == "radius":
            box_low, box_high = tile_boxes(pixels, covariance)
            low, high = torch.maximum(low, box_low), torch.minimum(high, box_high)
    rows = []
    for top in range(0, camera.height, _TILE):
        row = []
        for left in range(0, camera.width, _TILE):
            bottom, right = min(top + _TILE, camera.height), min(left + _TILE, camera.width)
            touched = (low[:, 0] < right) & (high[:, 0] > left) & (low[:, 1] < bottom) & (high[:, 1] > top)
            ids = touched.nonzero()[:, 0]
            y, x = torch.meshgrid(torch.arange(top, bottom), torch.arange(left, right), indexing="ij")
            centres = torch.stack([x, y], -1).reshape(-1, 2).to(means) + 0.5
            parts = (centres, pixels[ids], conic[ids], opacities[ids], values[ids], conventions)
            if torch.is_grad_enabled() and len(ids):
                tile = checkpoint(_composite, *parts, use_reentrant=False)
            else:
                tile = _composite(*parts)
            row.append(tile.reshape(bottom - top, right - left, -1))
        rows.append(torch.cat(row, 1))
    picture = torch.cat(rows, 0)
    drawn, depth, left = picture[..., :-2], picture[..., -2], picture[..., -1]
    depths = (None, depth) if conventions.inverse_depth else (depth, None)
    if background is not None:
        drawn = drawn + left[..., None] * background.to(means)
    return SplatOutput(drawn, 1 - left, *depths)


def unnormalized_matrix(quaternion: Tensor) -> Tensor:
    """(*B, 4) quaternions as they are -> (*B, 3, 3): a rotation only where they are unit."""
    w, x, y, z = quaternion.unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def tile_boxes(pixels: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Where 3DGS draws Gaussians, see ``SplatConventions.extent``.

    Args:
        pixels: (N, 2) centres, pixel centres at half-integers.
        covariance: (N, 2, 2) dilated.

    Returns:
        Corners (N, 2) of the boxes in pixels: multiples of 16, not clamped to the picture.
    """
    determinant = torch.linalg.det(covariance)
    mid = (covariance[:, 0, 0] + covariance[:, 1, 1]) / 2
    largest = mid + (mid * mid - determinant).clamp(min=0.1).sqrt()
    radius = torch.ceil(3 * largest.sqrt())[:, None]
    centre = pixels - 0.5
    low = torch.floor((centre - radius) / _TILE)
    high = torch.floor((centre + radius + (_TILE - 1)) / _TILE)
    return low * _TILE, high * _TILE


def _composite(
    centres: Tensor, pixels: Tensor, conic: Tensor, opacities: Tensor, values: Tensor,
    conventions: SplatConventions,
) -> Tensor:
    """Front-to-back compositing of depth-sorted Gaussians at P pixel centres (P, 2).

    Returns:
        (P, C + 2): the weighted sums of ``values`` (N, C + 1), and the transmittance that is left.
    """
    total = torch.zeros(len(centres), values.shape[1]).to(values)
    left = torch.ones(len(centres)).to(values)
    running = torch.ones(len(centres), dtype=torch.bool, device=values.device)
    for start in range(0, len(pixels), _CHUNK):
        part = slice(start, start + _CHUNK)
        dx, dy = (centres[:, None] - pixels[None, part]).unbind(-1)
        a, b, c = conic[part].unbind(-1)
        exponent = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
        alpha = opacities[part] * torch.exp(-exponent)
        if conventions.straight_through:
            alpha = alpha - (alpha - conventions.alpha_max).clamp(min=0).detach()
        else:
            alpha = alpha.clamp(max=conventions.alpha_max)
        alpha = torch.where((alpha >= conventions.alpha_min) & (exponent >= 0), alpha, 0.0)
        after = left[:, None] * torch.cumprod(1 - alpha, 1)
        before = torch.cat([left[:, None], after[:, :-1]], 1)
        # Transmittance only falls, so "stops at the first" is the same as "takes none below the limit".
        if conventions.exclusive_limits:
            enough = after >= conventions.transmittance_min
        else:
            enough = after > conventions.transmittance_min
        blended = enough & running[:, None]
        total = total + torch.where(blended, before * alpha, 0.0) @ values[part]
        steps = blended.sum(1, keepdim=True)
        reached = torch.gather(torch.cat([left[:, None], after], 1), 1, steps)[:, 0]
        left = reached
        running = running & (steps[:, 0] == alpha.shape[1])
    return torch.cat([total, left[:, None]], 1)
