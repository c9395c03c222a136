"""Pose priors of our own, standing in for the release's learned ones (VPoser) in Eq. 8.

Each joint's axis-angle has a mean and a spread per axis, and soft limits. Axes are those of the template's
T pose: for the arms, x runs along the bone (twist), y swings forwards and backwards, z raises and lowers;
for the spine and head x nods, y turns, z tilts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guava.body import Template

_FREE = 10.0
# name: (mean, spread, lower limit, upper limit) of x, y, z in radians; the left side, mirrored for the right.
_BODY = {
    "pelvis": ((0, 0, 0), (0.12, 0.7, 0.12), (-_FREE,) * 3, (_FREE,) * 3),
    "spine1": ((0, 0, 0), (0.05, 0.05, 0.05), (-0.5,) * 3, (0.5,) * 3),
    "spine2": ((0, 0, 0), (0.05, 0.05, 0.05), (-0.5,) * 3, (0.5,) * 3),
    "spine3": ((0, 0, 0), (0.05, 0.05, 0.05), (-0.5,) * 3, (0.5,) * 3),
    "neck": ((0.1, 0, 0), (0.2, 0.25, 0.15), (-0.7, -0.9, -0.6), (0.8, 0.9, 0.6)),
    "head": ((0, 0, 0), (0.2, 0.25, 0.15), (-0.7, -0.9, -0.6), (0.7, 0.9, 0.6)),
    "left_collar": ((0, 0, -0.18), (0.06, 0.1, 0.08), (-0.3, -0.4, -0.25), (0.3, 0.4, 0.6)),
    "left_shoulder": ((0, 0, -1.0), (0.5, 0.7, 0.7), (-1.2, -1.9, -1.6), (1.2, 1.0, 1.3)),
    "left_elbow": ((0, -0.8, 0), (0.4, 0.9, 0.15), (-1.2, -2.5, -0.3), (1.2, 0.05, 0.3)),
    "left_wrist": ((0, 0, 0), (0.5, 0.3, 0.4), (-1.2, -0.6, -1.3), (1.2, 0.6, 1.3)),
    # Knees are hinges that bend backwards only.
    "left_hip": ((-0.05, 0, 0), (0.5, 0.25, 0.15), (-2.2, -0.8, -0.5), (0.3, 0.8, 1.0)),
    "left_knee": ((0.1, 0, 0), (0.5, 0.06, 0.06), (0.0, -0.2, -0.15), (2.5, 0.2, 0.15)),
    "left_ankle": ((0, 0, 0), (0.25, 0.15, 0.1), (-0.8, -0.4, -0.4), (0.7, 0.4, 0.4)),
}
_RESTING = 0.01
"""Spread of leg joints that the picture does not show, radians about the rest pose."""
# An arm that the picture does not show hangs: measured on standing and sitting people made by guava.synth.
_HANGING = {
    "left_collar": ((0, 0, -0.22), (0.06, 0.06, 0.06)),
    "left_shoulder": ((0.5, -0.1, -1.0), (0.15, 0.2, 0.15)),
    "left_elbow": ((-0.15, -0.7, -0.05), (0.2, 0.3, 0.1)),
    "left_wrist": ((-0.15, 0.2, -0.1), (0.2, 0.2, 0.2)),
}
# Fingers of the left hand: flexion turns about +-z in the template's palm-down T pose.
_FINGER_SPREAD = (0.12, 0.15, 0.6)
_THUMB_SPREAD = (0.3, 0.35, 0.35)

BODY_JOINTS = (
    "pelvis",
    "spine1",
    "spine2",
    "spine3",
    "neck",
    "head",
    "left_collar",
    "right_collar",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
)
LEG_JOINTS = ("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle")
FINGERS = ("thumb", "index", "middle", "ring", "pinky")


@dataclass(frozen=True)
class PosePrior:
    """Independent priors of n joints' axis-angle, flattened to (3 n,).

    Attributes:
        mean, precision: Of the Gaussian; (T, 3 n) where they differ from frame to frame.
        low, high: Soft limits.
        limit_precision: Inverse squared spread beyond a limit.
    """

    mean: Tensor
    precision: Tensor
    low: Tensor
    high: Tensor
    limit_precision: float = 0.05**-2


def body_joint_ids(template: Template, legs: bool = False) -> list[int]:
    """Joints of the body that are fitted; without ``legs`` those rest."""
    return [template.joint(name) for name in BODY_JOINTS + (LEG_JOINTS if legs else ())]


def finger_joint_ids(template: Template, side: str) -> list[int]:
    """The 15 finger joints of a side."""
    return [template.joint(f"{side}_{finger}{i}") for finger in FINGERS for i in (1, 2, 3)]


def pose_prior(template: Template, joints: list[int]) -> PosePrior:
    """The prior of the given joints.

    Args:
        template: For the joints' names.
        joints: Indices, in the order of the result.
    """
    rows = []
    for joint in joints:
        name = template.body.joint_names[joint]
        side, _, part = name.partition("_")
        right = side == "right"
        if part and part[:-1] in FINGERS:
            rows.append(_finger(part, right))
            continue
        mean, spread, low, high = _BODY[f"left_{part}" if right else name]
        if right:  # mirroring in x keeps turns about x and flips those about y and z
            mean = (mean[0], -mean[1], -mean[2])
            low, high = (low[0], -high[1], -high[2]), (high[0], -low[1], -low[2])
        rows.append((mean, spread, low, high))
    mean, spread, low, high = (
        torch.tensor([row[i] for row in rows], dtype=torch.float64).reshape(-1) for i in range(4)
    )
    return PosePrior(mean, spread**-2, low, high)


def hanging_arms(prior: PosePrior, template: Template, joints: list[int], unseen: Tensor) -> PosePrior:
    """The prior where parts of arms are out of sight: those hang, as arms do unless they gesture.

    Args:
        prior: Of ``joints``.
        template: For the joints' names.
        joints: As for :func:`pose_prior`.
        unseen: (T, 2, 2) bool: left and right; elbow and wrist. An unseen elbow leaves collar and shoulder
            free to hang, an unseen wrist the elbow's bend and the wrist.
    """
    mean = prior.mean.expand(len(unseen), -1).clone()
    precision = prior.precision.expand(len(unseen), -1).clone()
    for n, joint in enumerate(joints):
        side, _, part = template.body.joint_names[joint].partition("_")
        if f"left_{part}" not in _HANGING:
            continue
        centre, spread = torch.tensor(_HANGING[f"left_{part}"], dtype=torch.float64)
        if side == "right":
            centre = centre * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
        which = unseen[:, int(side == "right"), int(part in ("elbow", "wrist"))]
        columns = slice(3 * n, 3 * n + 3)
        mean[which, columns] = centre
        precision[which, columns] = spread**-2
    return replace(prior, mean=mean, precision=precision)


def resting_legs(prior: PosePrior, template: Template, joints: list[int], unseen: Tensor) -> PosePrior:
    """The prior where parts of legs are out of sight: those rest.

    Args:
        prior: Of ``joints``.
        template: For the joints' names.
        joints: As for :func:`pose_prior`.
        unseen: (T, 2, 3) bool: left and right; knee, ankle, foot. An unseen knee leaves the hip at rest, an
            unseen ankle the knee, an unseen foot the ankle (which stands as it does).
    """
    mean = prior.mean.expand(len(unseen), -1).clone()
    precision = prior.precision.expand(len(unseen), -1).clone()
    for n, joint in enumerate(joints):
        name = template.body.joint_names[joint]
        side, _, part = name.partition("_")
        if name not in LEG_JOINTS:
            continue
        which = unseen[:, int(side == "right"), ("hip", "knee", "ankle").index(part)]
        columns = slice(3 * n, 3 * n + 3)
        mean[which, columns] = 0
        precision[which, columns] = _RESTING**-2
    return replace(prior, mean=mean, precision=precision)


def _finger(part: str, right: bool) -> tuple:
    """Flexion is free between straight and a fist; twist and sideways spread are stiff."""
    finger, level = part[:-1], int(part[-1])
    if finger == "thumb":
        spread, low, high = _THUMB_SPREAD, (-0.8,) * 3, (0.8,) * 3
        mean = (0.0, 0.0, 0.0)
    else:
        sideways = 0.15 if level == 1 else 0.04
        spread = (_FINGER_SPREAD[0] if level == 1 else 0.05, sideways, _FINGER_SPREAD[2])
        mean, low, high = (0.0, 0.0, -0.35), (-0.4, -0.45, -1.8), (0.4, 0.45, 0.25 if level == 1 else 0.08)
    if right:
        mean = (mean[0], -mean[1], -mean[2])
        low, high = (low[0], -high[1], -high[2]), (high[0], -low[1], -low[2])
    return mean, spread, low, high
