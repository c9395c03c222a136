"""Where a detector's body and hand points lie relative to the template's joints.

People who annotate pictures put a wrist or a knuckle elsewhere than a skinned skeleton does: the annotated
palm is 30 mm shorter than the template's. Without these offsets the fit shrinks palms and shoulders, or
turns them away from the camera, at an excellent reprojection error. Measured on 50 renders of
``guava.synth.dataset.TUNING_SEEDS`` with MediaPipe by least squares (``scripts/measure_point_offsets.py``).
They hold for the open template's skeleton; of others none are known, and their joints are compared with the
detector's points as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from guava.body import Template
from guava.body.installed import PLAIN_HEAD

# Millimetres of the left side in the T pose's axes (x along the left arm, y up, z to the front), carried by
# the
# joint's parent; the wrist's and the fingertips' by the joint itself.
_BODY = {
    "shoulder": (-21.3, 18.4, -2.8),
    "elbow": (-7.9, -11.5, -15.7),
    "wrist": (5.4, -0.6, 5.1),
    "hip": (-11.6, 26.1, 19.4),
    # Of legs: on 20 renders of whole bodies.
    "knee": (-2.3, 2.0, -10.6),
    "ankle": (-1.7, 50.1, 3.2),
    "foot": (1.5, -10.5, 10.6),
}
_HAND = (
    (17.7, -3.0, 3.7),
    (-7.4, -15.2, 2.0), (5.9, -5.1, 2.8), (-0.2, 2.7, -5.7), (-6.5, 6.6, -6.9),
    (-13.3, -4.6, -4.8), (-5.0, -5.1, -3.6), (-5.8, -0.4, -3.3), (-15.1, 8.0, -5.3),
    (-13.6, -3.7, 2.1), (-8.9, -0.3, 2.5), (-12.8, 0.1, 1.7), (-22.6, 2.7, 1.8),
    (-13.2, -3.1, 3.0), (-7.9, -0.3, 3.4), (-9.9, -0.3, 2.4), (-21.4, 4.4, 5.2),
    (-11.8, -0.6, 4.3), (-4.9, 0.9, 2.4), (-4.5, 2.5, 2.4), (-12.2, 7.5, 6.4),
)  # fmt: skip
_MIRROR = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)


def offsets_known(template: Template) -> bool:
    """Whether the offsets were measured for this template's skeleton (with either head)."""
    return template.name.removesuffix(PLAIN_HEAD) == "open"


def body_offset(joint: str) -> Tensor:
    """(3,) metres from a template joint to the detector's point of that name."""
    side, _, part = joint.partition("_")
    offset = torch.tensor(_BODY.get(part, (0.0, 0.0, 0.0)), dtype=torch.float64) / 1000
    return offset * _MIRROR if side == "right" else offset


def hand_offsets(side: str) -> Tensor:
    """(21, 3) metres from the template's wrist, finger joints and fingertips to the detector's points."""
    offsets = torch.tensor(_HAND, dtype=torch.float64) / 1000
    return offsets * _MIRROR if side == "right" else offsets
