"""The release's parameters as Guava's own records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from guava.body import Identity, Pose, Template
from guava.camera import Camera, from_release_extrinsics
from guava.data.release import CROP_SIZE, PART_SIZE, PARTS, ReleaseClip
from guava.errors import TemplateMismatchError

JOINTS, LEFT_HAND, RIGHT_HAND = 55, 25, 40


@dataclass(frozen=True)
class ModelSizes:
    """How many coefficients of each kind a template takes; all that reading needs of it.

    Attributes:
        body_shape, head_shape, expression, body_expression, eyelids: Numbers of coefficients.
    """

    body_shape: int
    head_shape: int
    expression: int
    body_expression: int
    eyelids: int

    @staticmethod
    def of(template: Template) -> ModelSizes:
        """The sizes of a template made of SMPL-X and FLAME.

        Raises:
            TemplateMismatchError: The release's coefficients mean nothing to it.
        """
        sizes = ModelSizes(
            template.body.num_shape,
            template.head.num_shape,
            template.head.num_expression,
            template.body.num_expression,
            template.eyelid_dirs.shape[-1],
        )
        fits = (
            template.body.num_joints == JOINTS
            and sizes.body_shape >= 200
            and sizes.body_expression >= 50
            and (
                not template.expressive_head
                or (sizes.head_shape >= 300 and sizes.expression >= 50 and sizes.eyelids == 2)
            )
        )
        if not fits:
            raise TemplateMismatchError(
                "The authors' data are coefficients of SMPL-X and FLAME; the template "
                f"'{template.name}' is made of other models.",
                "Use the template 'smplx-flame'; to add the models: guava assets add --help",
            )
        return sizes


def _padded(values: np.ndarray, size: int) -> Tensor:
    """(*B, k) -> (*B, size) float32: zeros appended, or (plain heads only) the rest cut off."""
    out = torch.zeros(*values.shape[:-1], size)
    count = min(size, values.shape[-1])
    out[..., :count] = torch.from_numpy(np.ascontiguousarray(values[..., :count])).float()
    return out


def clip_identity(clip: ReleaseClip, sizes: ModelSizes) -> Identity:
    """The clip's person, B = 1; the 200 body shape coefficients are padded with zeros."""
    identity = clip.identity
    return Identity(
        _padded(identity.smplx_shape[None], sizes.body_shape),
        _padded(identity.flame_shape[None], sizes.head_shape),
        _padded(identity.joints_offset[None], 3),
        _padded(identity.head_scale[None], 3),
        _padded(identity.hand_scale[None], 3),
    )


def clip_pose(clip: ReleaseClip, rows: Sequence[int] | np.ndarray, sizes: ModelSizes) -> Pose:
    """Poses of some frames, B = len(rows).

    Jaw and eyes are FLAME's (the body's own stay at rest in EHM); ``pose_params`` and the neck of FLAME
    belong to the head crop and are not used. The translation is 0: the release's camera carries it.
    """
    v = {name: value[rows] for name, value in clip.values.items()}
    joints = np.concatenate(
        [
            v["global_pose"],
            v["body_pose"],
            v["jaw_params"],
            v["eye_pose_params"],
            v["left_hand_pose"],
            v["right_hand_pose"],
        ],
        1,
    ).reshape(-1, JOINTS, 3)
    return Pose(
        _padded(joints, 3),
        _padded(v["expression_params"], sizes.expression),
        _padded(v["exp"], sizes.body_expression),
        _padded(v["eyelid_params"], sizes.eyelids),
        torch.zeros(len(joints), 3),
    )


def clip_camera(clip: ReleaseClip, rows: Sequence[int] | np.ndarray) -> Camera:
    """Cameras (T, ...) of the 1024 crops, from ``camera_RT_params``."""
    extrinsics = torch.from_numpy(clip.values["camera_RT_params"][rows].reshape(-1, 3, 4)).float()
    return from_release_extrinsics(extrinsics, CROP_SIZE)


def part_corners(clip: ReleaseClip, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """(T, 3, 4, 2) corners of the 512 part crops in pixels of the 1024 crop: head, left and right hand.

    NaN where the part's crop was not recorded.
    """
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64) * PART_SIZE
    maps = clip.body_crop[rows][:, None] @ clip.part_crops[rows]
    return corners @ np.swapaxes(maps[..., :2, :2], -1, -2) + maps[..., None, :2, 2]


def part_boxes(clip: ReleaseClip, rows: Sequence[int] | np.ndarray, size: int = 512) -> Tensor:
    """The release's crop boxes for the losses (Sec. 3.4).

    Args:
        clip, rows: Which frames.
        size: Side of the picture that the boxes are for.

    Returns:
        (T, 3, 4) int64 left, right, top, bottom of head, left and right hand: the extent of the corners,
        clamped to 0 .. size - 1 and truncated. An empty head box becomes the whole picture; an empty hand box
        (out of view, or not recorded) stays empty, right <= left or bottom <= top.
    """
    corners = part_corners(clip, rows) * (size / CROP_SIZE)
    known = np.isfinite(corners).all((-1, -2))
    corners = np.clip(np.where(known[..., None, None], corners, 0), 0, size - 1)
    low, high = corners.min(-2), corners.max(-2)
    boxes = np.stack([low[..., 0], high[..., 0], low[..., 1], high[..., 1]], -1).astype(np.int64)
    head = boxes[:, PARTS.index("head")]
    empty = (head[:, 1] <= head[:, 0]) | (head[:, 3] <= head[:, 2])
    head[empty] = (0, size - 1, 0, size - 1)
    return torch.from_numpy(boxes)
