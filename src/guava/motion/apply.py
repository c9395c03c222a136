"""Driving an avatar with a motion (paper Sec. 3.3): self- and cross-reenactment.

The avatar keeps its shape (identity, Gaussians); the motion gives pose, expression and gaze.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from guava.avatar.avatar import Avatar
from guava.body import EHM, Pose, Template
from guava.errors import TemplateMismatchError
from guava.motion.file import for_template
from guava.motion.motion import Motion
from guava.motion.sampling import held
from guava.rotation import axis_angle_to_matrix, matrix_to_axis_angle

Anchor = Literal["photo", "motion"]
Arms = Literal["auto", "motion", "photo"]

_ARM = ("collar", "shoulder", "elbow", "wrist")
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
        arms: "motion" or "photo": which arms to take. "auto" takes the motion's for an arm whose wrist the
            photo shows, and the photo's for one that it does not.

    Raises:
        TemplateMismatchError: The avatar or the motion does not fit ``template``.
    """
    if avatar.template_hash != template.hash:
        raise TemplateMismatchError(
            f"The avatar belongs to another body template than '{template.name}'.",
            "Make it again from its photo with: guava reconstruct",
        )
    motion, notes = for_template(motion, template)
    pose = held(motion)
    source = avatar.source.pose
    names = template.body.joint_names
    joints, expression = pose.joints.clone(), pose.expression
    if anchor == "photo":
        arm_joints = {i for side in ("left", "right") for i in _arm_joints(template, side)}
        body = [i for i in range(len(names)) if i not in arm_joints]
        joints[:, body] = _compose(source.joints[:, body], joints[:, body])
        expression = _add_gaze(template, expression, source.expression)

    shown = shown_joints(avatar, template)
    follows = []
    for side in ("left", "right"):
        wrist_seen = bool(shown[template.joint(f"{side}_wrist")])
        follow = wrist_seen if arms == "auto" else arms == "motion"
        follows.append(follow)
        if not follow:
            ids = _arm_joints(template, side)
            joints[:, ids] = source.joints[:, ids]
            if arms == "auto":
                notes = (*notes, f"The photo does not show the {side} hand; that arm keeps the photo's pose.")

    pose = replace(pose, joints=joints, expression=expression)
    neck = template.joint("neck")
    skeleton = EHM(template, None if template.regress_joints else torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        here = skeleton(avatar.identity, source).joints[0, neck]
        there = skeleton(avatar.identity, pose[:1]).joints[0, neck]
    pose = replace(pose, translation=pose.translation + (here - there))
    return Performance(pose, motion.fps, motion.loop, (follows[0], follows[1]), notes)


def shown_joints(avatar: Avatar, template: Template, margin: float = 0.0) -> Tensor:
    """(J,) bool: body joints that fall inside the source photo (whether or not something covers them).

    Args:
        avatar: Its source view is used.
        template: The avatar's.
        margin: Share of the photo's size by which a joint must be inside.
    """
    skeleton = EHM(template, None if template.regress_joints else torch.zeros(1, dtype=torch.long))
    source = avatar.source
    with torch.no_grad():
        joints = skeleton(avatar.identity, source.pose).joints[0]
        image_from_crop = torch.linalg.inv(source.crop_from_image.float())
        camera = source.camera.through(image_from_crop, source.width, source.height)
        pixels, _ = camera.project(joints)
    low = torch.tensor([source.width, source.height]) * margin
    high = torch.tensor([source.width, source.height]) * (1 - margin)
    return ((pixels >= low) & (pixels < high)).all(-1)


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
