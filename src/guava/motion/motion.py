"""A motion: what drives an avatar. Identity is never part of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from guava.body import Pose


@dataclass(frozen=True)
class Motion:
    """T frames of pose, expression and gaze.

    Attributes:
        pose: B = T. Translation is relative to the person's place in the first frame.
        fps: Frames a second.
        timestamps: (T,) float64 seconds.
        valid: (T,) bool; False where the driving video showed nobody (players hold the last valid frame).
        template_hash: The template whose joints and units these are.
        joint_names: J names of ``pose.joints``.
        expression_names: E names of ``pose.expression``.
        loop: Whether the last frame continues into the first.
        name: For people.
        template_name: The template's name; "" in older files.
    """

    pose: Pose
    fps: float
    timestamps: Tensor
    valid: Tensor
    template_hash: str
    joint_names: tuple[str, ...]
    expression_names: tuple[str, ...]
    loop: bool
    name: str
    template_name: str = ""

    def __len__(self) -> int:
        return self.pose.joints.shape[0]
