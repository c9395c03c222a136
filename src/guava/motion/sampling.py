"""Motions at other frame rates, lengths, and without gaps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from guava.body import Pose
from guava.motion.motion import Motion
from guava.rotation import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_quaternion,
    quaternion_to_matrix,
)


def held(motion: Motion) -> Pose:
    """(T) poses in which frames without a person hold the last frame with one (the first one, at the
    start).
    """
    frames = torch.arange(len(motion))
    last = torch.where(motion.valid, frames, -1).cummax(0).values
    first = int(motion.valid.nonzero()[0])
    return motion.pose[torch.where(last < 0, first, last)]


def resample(motion: Motion, fps: float) -> Motion:
    """The motion at another frame rate: rotations on the shortest arc, all else linearly.

    A looping motion keeps its length, rounded to whole frames; frames between a valid and an invalid one
    are invalid.

    Args:
        motion: Any frame rate, also a variable one (its timestamps count).
        fps: Frames a second, > 0.
    """
    if len(motion) == 1 or (fps == motion.fps and _is_regular(motion)):
        return replace(motion, fps=float(fps))
    times = motion.timestamps.numpy() - float(motion.timestamps[0])
    pose, valid = held(motion), motion.valid
    if motion.loop:
        closing = times[-1] + 1 / motion.fps
        times = np.append(times, closing)
        pose = Pose(**{name: torch.cat([value, value[:1]]) for name, value in vars(pose).items()})
        valid = torch.cat([valid, valid[:1]])
        count = max(1, round(closing * fps))
        wanted = np.arange(count) * closing / count
    else:
        wanted = np.arange(int(np.floor(times[-1] * fps + 1e-6)) + 1) / fps
    after = np.clip(np.searchsorted(times, wanted, side="right"), 1, len(times) - 1)
    span = np.maximum(times[after] - times[after - 1], 1e-9)
    share = torch.from_numpy(np.clip((wanted - times[after - 1]) / span, 0, 1)).float()
    a, b = torch.from_numpy(after - 1), torch.from_numpy(after)

    def between(value: Tensor) -> Tensor:
        w = share.reshape(-1, *[1] * (value.ndim - 1))
        return value[a] + w * (value[b] - value[a])

    mixed = Pose(
        joints=_shortest_arc(pose.joints[a], pose.joints[b], share),
        expression=between(pose.expression),
        body_expression=between(pose.body_expression),
        eyelids=between(pose.eyelids),
        translation=between(pose.translation),
    )
    inside = (valid[a] | (share >= 1)) & (valid[b] | (share <= 0))
    return replace(
        motion, pose=mixed, fps=float(fps), timestamps=torch.from_numpy(np.arange(len(wanted)) / fps),
        valid=inside,
    )


def _is_regular(motion: Motion) -> bool:
    steps = motion.timestamps.diff()
    return bool((steps - 1 / motion.fps).abs().max() < 0.2 / motion.fps)


def _shortest_arc(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Normalised linear interpolation of axis-angle rotations (T, J, 3); shares (T,)."""
    first = matrix_to_quaternion(axis_angle_to_matrix(a))
    second = matrix_to_quaternion(axis_angle_to_matrix(b))
    second = torch.where((first * second).sum(-1, keepdim=True) < 0, -second, second)
    w = share[:, None, None]
    return matrix_to_axis_angle(quaternion_to_matrix(first + w * (second - first)))
