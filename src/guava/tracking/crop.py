"""Square crops around the person and the maps between image and crop pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from guava.tracking.detectors.base import PersonDetection

VISIBLE = 0.5
"""Body points less sure than this do not widen a crop."""


def person_extent(person: PersonDetection, width: int, height: int) -> np.ndarray:
    """(4,) x0, y0, x1, y1 of the detector's box and all sure points, inside the image."""
    points = [np.asarray(person.box, dtype=np.float64).reshape(2, 2)]
    for part in (person.face, person.body, person.left_hand, person.right_hand):
        if part is None:
            continue
        sure = part.points[part.confidence > VISIBLE]
        inside = (sure >= 0).all(1) & (sure[:, 0] <= width) & (sure[:, 1] <= height)
        points.append(sure[inside])
    stacked = np.concatenate(points)
    low, high = stacked.min(0), stacked.max(0)
    return np.concatenate([np.maximum(low, 0), np.minimum(high, [width, height])])


def square_crop(box: np.ndarray, margin: float, size: int) -> np.ndarray:
    """(3, 3) map from image pixels to a square crop of ``size`` pixels.

    The crop is centred on ``box`` (4,), its side is the box's longer side times ``margin``; it may leave
    the image.
    """
    side = max(box[2] - box[0], box[3] - box[1], 1.0) * margin
    scale = size / side
    centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    shift = size / 2 - scale * centre
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1.0]])


def map_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a (3, 3) affine map to points (K, 2)."""
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def crop_image(image: Tensor, crop_from_image: Tensor, size: int) -> Tensor:
    """Sample an image (H, W) or (H, W, C) in the crop, (size, size[, C]) float32; 0 outside the image.

    Reductions are averaged over the pixels that fall together, so that nothing aliases.
    """
    flat = image.float()[..., None] if image.ndim == 2 else image.float()
    height, width = flat.shape[:2]
    scale = float(crop_from_image[0, 0])
    over = max(1, min(4, round(1 / scale)))
    steps = (torch.arange(size * over, dtype=torch.float64) + 0.5) / over
    x = (steps - float(crop_from_image[0, 2])) / scale
    y = (steps - float(crop_from_image[1, 2])) / float(crop_from_image[1, 1])
    grid = torch.stack(
        torch.broadcast_tensors((x / width * 2 - 1)[None, :], (y / height * 2 - 1)[:, None]), -1
    ).float()
    picture = torch.nn.functional.grid_sample(
        flat.permute(2, 0, 1)[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False
    )
    picture = torch.nn.functional.avg_pool2d(picture, over)[0].permute(1, 2, 0)
    return picture[..., 0] if image.ndim == 2 else picture


def points_box(points: Tensor, confidence: Tensor, margin: float) -> Tensor:
    """(T, K, 2) with confidence (T, K) -> (T, 4) boxes grown by ``margin`` about their centre; NaN where
    absent."""
    sure = confidence > 0
    low = torch.where(sure[..., None], points, torch.inf).amin(1)
    high = torch.where(sure[..., None], points, -torch.inf).amax(1)
    centre, half = (low + high) / 2, (high - low) / 2 * margin
    box = torch.cat([centre - half, centre + half], 1)
    return torch.where(sure.any(1, keepdim=True), box, torch.nan)
