"""The code of the source view that both decoders see: a harmonic embedding of one direction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

OCTAVES = 4
CODE_CHANNELS = 3 * 2 * OCTAVES + 3  # 27

ViewDirection = Literal["third_column", "camera_axis"]


def camera_code(world_to_camera: Tensor, view_direction: ViewDirection = "third_column") -> Tensor:
    """The view's code (*B, 27).

    With d = (x, y, z) and the frequencies 1, 2, 4, 8 the order is ``sin(x f), sin(y f), sin(z f), cos(x f),
    cos(y f), cos(z f), x, y, z``, the four frequencies together.

    Args:
        world_to_camera: (*B, 4, 4) or (*B, 3, 4), OpenCV axes, rotation R.
        view_direction: d. "third_column": R (0, 0, 1)^T, the world's z as the camera sees it, which the
            release takes; "camera_axis": R^T (0, 0, 1)^T, the camera's axis in the world.

    Raises:
        ValueError: There is no such direction.
    """
    if view_direction == "third_column":
        direction = world_to_camera[..., :3, 2]
    elif view_direction == "camera_axis":
        direction = world_to_camera[..., 2, :3]
    else:
        raise ValueError(
            f"There is no view direction '{view_direction}'; choose 'third_column' or 'camera_axis'."
        )
    frequencies = 2.0 ** torch.arange(OCTAVES, dtype=direction.dtype, device=direction.device)
    angles = (direction[..., None] * frequencies).flatten(-2)
    return torch.cat([angles.sin(), angles.cos(), direction], -1)
