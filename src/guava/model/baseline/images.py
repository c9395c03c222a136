"""Small picture operations on numpy arrays: masked blur, nearest masked pixel, hole filling."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def blur(image: np.ndarray, sigma: float, mask: np.ndarray | None = None) -> np.ndarray:
    """Gaussian blur of (H, W) or (H, W, C); with a mask, the average over its pixels only (0 far from
    them)."""
    sigmas = (sigma, sigma) if image.ndim == 2 else (sigma, sigma, 0)
    if mask is None:
        return ndimage.gaussian_filter(image.astype(np.float32), sigmas, truncate=3)
    weight = mask.astype(np.float32)
    spread = ndimage.gaussian_filter(weight, sigma, truncate=3)
    if image.ndim == 3:
        weight, spread = weight[..., None], spread[..., None]
    total = ndimage.gaussian_filter(image.astype(np.float32) * weight, sigmas, truncate=3)
    return total / np.maximum(spread, 1e-6)


def grow(mask: np.ndarray, radius: float) -> np.ndarray:
    """Dilation by a disc."""
    return ndimage.distance_transform_edt(~mask) <= radius if mask.any() else mask.copy()


def shrink(mask: np.ndarray, radius: float) -> np.ndarray:
    """Erosion by a disc; the picture's border does not erode."""
    return ndimage.distance_transform_edt(mask) > radius if not mask.all() else mask.copy()


def nearest(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance to, row of and column of the nearest pixel of a non-empty mask, each (H, W)."""
    distance, (row, column) = ndimage.distance_transform_edt(~mask, return_indices=True)
    return distance.astype(np.float32), row, column


def pull_push(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Fill a picture (H, W, C) where ``weight`` (H, W) in [0, 1] is 0, from ever coarser averages of the
    rest.

    H and W must be equal powers of two times a small number; sides are halved while they are even.
    """
    levels = [(image * weight[..., None], weight.astype(np.float32))]
    while min(levels[-1][1].shape) > 1 and all(side % 2 == 0 for side in levels[-1][1].shape):
        total, count = levels[-1]
        levels.append((_halve(total), _halve(count[..., None])[..., 0]))
    total, count = levels[-1]
    out = total / np.maximum(count, 1e-6)[..., None]
    for total, count in levels[-2::-1]:
        coarse = _double(out)
        trust = np.clip(count, 0, 1)[..., None]
        out = total / np.maximum(count, 1e-6)[..., None] * trust + coarse * (1 - trust)
    return out.astype(np.float32)


def _halve(image: np.ndarray) -> np.ndarray:
    height, width, channels = image.shape
    return image.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))


def _double(image: np.ndarray) -> np.ndarray:
    """Twice the size, bilinear with half-pixel centres."""
    for axis in (0, 1):
        padded = np.concatenate([image.take([0], axis), image, image.take([-1], axis)], axis)
        count = image.shape[axis]
        before = padded.take(range(0, count), axis)
        here = padded.take(range(1, count + 1), axis)
        after = padded.take(range(2, count + 2), axis)
        pair = np.stack([0.25 * before + 0.75 * here, 0.75 * here + 0.25 * after], axis + 1)
        shape = list(image.shape)
        shape[axis] *= 2
        image = pair.reshape(shape)
    return image
