"""Driving an avatar with a motion (paper Sec. 3.3): self- and cross-reenactment.

The avatar keeps its shape (identity, Gaussians); the motion gives pose, expression and gaze.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from guava.avatar.avatar import Avatar
from guava.avatar.framing import skeleton
from guava.body import Pose, Template
from guava.body.ehm import JAW
from guava.errors import TemplateMismatchError
from guava.motion.file import for_template
from guava.motion.motion import Motion
from guava.motion.sampling import held
from guava.motion.viewpoint import before_avatar
from guava.rotation import axis_angle_to_matrix, matrix_to_axis_angle

Anchor = Literal["photo", "motion"]
Arms = Literal["auto", "motion", "photo", "left", "right"]

_ARM = ("collar", "shoulder", "elbow", "wrist")
_LEG = ("hip", "knee", "ankle")
_HAND = ("index", "middle", "pinky", "ring", "thumb")


@dataclass(frozen=True)
class Performance:
    """An avatar's poses for every frame of a motion.

    Attributes:
        pose: B = T, in the world of the avatar's source camera.
        fps: Frames a second.
        loop: Whether the last frame continues into the first.
        arms: Left and right: whether that arm follows the motion (else it keeps the photo's pose).
        notes: What was changed or left out, in sentences.
    """

    pose: Pose
    fps: float
    loop: bool
    arms: tuple[bool, bool]
    notes: tuple[str, ...]


def apply_motion(
    motion: Motion, avatar: Avatar, template: Template, *, anchor: Anchor = "motion", arms: Arms = "auto"
) -> Performance:
    """Poses of an avatar that performs a motion.

    The neck of the first frame stands where the photo has it, so that the person appears where the photo
    shows them, whoever drives.

    Args:
        motion: Any motion; another template's is matched by name or refused.
        avatar: Gives shape, place and, with ``anchor="photo"``, the pose to start from.
        template: The avatar's template.
        anchor: "motion": root, spine, head and gaze are the motion's (reenactment of a tracked video).
            "photo": they are the photo's own, moved by the motion's difference from rest (our clips, which
            are authored about the rest pose); this stays near the view that the photo showed.
        arms: Which arms follow the motion: both ("motion"), one ("left", "right"), none ("photo"), or, with
            "auto", those whose hand the photo shows. The others keep about the photo's pose.

    Raises:
        TemplateMismatchError: The avatar or the motion does not fit ``template``.
    """
    if avatar.template_hash != template.hash:
        raise TemplateMismatchError(
            f"The avatar belongs to another body template than '{template.name}'.",
            "Use its own: guava.body.template_for(avatar.template_hash)",
        )
    motion, notes = for_template(motion, template)
    pose = held(motion)
    told = pose.joints
    pose = before_avatar(pose, avatar, template)
    source = avatar.source.pose
    names = template.body.joint_names
    joints, expression = pose.joints.clone(), pose.expression
    if anchor == "photo":
        arm_joints = {i for side in ("left", "right") for i in _arm_joints(template, side)}
        # The jaw's opening is the motion's own, as units would have it.
        body = [i for i in range(len(names)) if i not in arm_joints and i != JAW]
        joints[:, body] = _compose(source.joints[:, body], told[:, body])
        expression = _add_gaze(template, expression, source.expression)
    else:
        # Trackers leave legs that they do not see exactly at rest.
        legs = [template.joint(f"{side}_{part}") for side in ("left", "right") for part in _LEG]
        if not told[:, legs].any() and source.joints[:, legs].any():
            joints[:, legs] = source.joints[:, legs]
            notes = (*notes, "The motion shows no legs; they keep the photo's pose.")

    seen = avatar.source.hands_seen
    follows = tuple(
        seen[i] if arms == "auto" else arms in ("motion", side) for i, side in enumerate(("left", "right"))
    )
    for side, follow in zip(("left", "right"), follows, strict=True):
        if follow:
            continue
        ids = _arm_joints(template, side)
        joints[:, ids] = _echo(source.joints[:, ids], pose.joints[:, ids])
        if arms == "auto":
            notes = (*notes, f"The photo does not show the {side} hand; that arm keeps near its pose.")

    pose = replace(pose, joints=joints, expression=expression)
    neck = template.joint("neck")
    ehm = skeleton(template)
    with torch.no_grad():
        here = ehm(avatar.identity, source).joints[0, neck]
        there = ehm(avatar.identity, pose[:1]).joints[0, neck]
    pose = replace(pose, translation=pose.translation + (here - there))
    return Performance(pose, motion.fps, motion.loop, (follows[0], follows[1]), notes)


def follow_arms(*arms: tuple[bool, bool]) -> tuple[bool, bool]:
    """Left and right: whether that arm follows the motion in any of several performances."""
    return any(a[0] for a in arms), any(a[1] for a in arms)


def eased(pose: Pose, start: Pose, seconds: float, fps: float) -> Pose:
    """A performance that begins and ends in ``start`` (B = 1): joints are blended over ``seconds`` at both
    ends.
    """
    count = pose.joints.shape[0]
    frames = torch.arange(count, dtype=torch.float32)
    x = (torch.minimum(frames, count - 1 - frames) / max(seconds * fps, 1.0)).clamp(0, 1)
    weight = (x**3 * (x * (6 * x - 15) + 10))[:, None, None]
    delta = _compose(-start.joints, pose.joints)
    return replace(pose, joints=_compose(start.joints, weight * delta))


def _echo(photo: Tensor, motion: Tensor, share: float = 0.25, limit: float = 0.10) -> Tensor:
    """The photo's pose (1, J, 3) stirred by a share of the motion's (T, J, 3) way from its first frame.

    No joint turns by more than ``limit`` radians: a guessed or holding hand must not wander.
    """
    delta = _compose(-motion[:1], motion)
    angle = delta.norm(dim=-1, keepdim=True).clamp(min=1e-8)
    return _compose(photo, delta * (limit * torch.tanh(share * angle / limit) / angle))


def _arm_joints(template: Template, side: str) -> list[int]:
    fingers = [f"{side}_{finger}{k}" for finger in _HAND for k in (1, 2, 3)]
    return [template.joint(name) for name in [f"{side}_{part}" for part in _ARM] + fingers]


def _compose(first: Tensor, second: Tensor) -> Tensor:
    """Axis-angle of R(first) R(second); (1 or T, J, 3) and (T, J, 3)."""
    return matrix_to_axis_angle(axis_angle_to_matrix(first) @ axis_angle_to_matrix(second))


def _add_gaze(template: Template, expression: Tensor, source: Tensor) -> Tensor:
    """Add the photo's gaze to the motion's; opposite units cancel."""
    out = expression.clone()
    for side in ("Left", "Right"):
        for plus, minus in (("eyeLookUp", "eyeLookDown"), ("eyeLookOut", "eyeLookIn")):
            a, b = plus + side, minus + side
            if a in template.expression_names and b in template.expression_names:
                i, j = template.unit(a), template.unit(b)
                total = expression[:, i] - expression[:, j] + source[:, i] - source[:, j]
                out[:, i], out[:, j] = total.clamp(0, 1), (-total).clamp(0, 1)
    return out
