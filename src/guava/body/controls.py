"""How a face is moved: by ARKit's units, or by expression coefficients, the jaw and eye joints, and the lids.

The open template's units open the jaw, shut the lids and turn the eyes; a FLAME head has joints and lid
directions for that, and its expression directions have no names. What both can do is the face's *controls*:
they carry a performance from one kind of template to the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guava.body.ehm import JAW, LEFT_EYE, RIGHT_EYE, Pose
from guava.body.template import Template

FULL_JAW = 0.283
"""Radians that jawOpen = 1 turns the jaw by (the open template's lower teeth about its jaw joint)."""
FULL_JAW_ASIDE = 0.085
"""Radians that jawLeft = 1 turns it sideways."""
FULL_LOOK = 0.5
"""Radians that an eyeLook unit of 1 turns the eye by."""

_LOOK = ("eyeLookOut", "eyeLookIn", "eyeLookUp", "eyeLookDown")
CONTROL_UNITS = (
    "jawOpen",
    "jawLeft",
    "jawRight",
    "mouthClose",
    *(f"{stem}{side}" for stem in ("eyeBlink", *_LOOK) for side in ("Left", "Right")),
)
"""ARKit units that the controls stand for."""


@dataclass(frozen=True)
class FaceControls:
    """What every face can do, whatever it is driven by.

    Attributes:
        jaw: (T, 3) axis-angle: x opens, y turns to the person's left.
        lids: (T, 2) left and right: 0 open, 1 shut.
        gaze: (T, 2, 2) left and right eye: radians to the person's left, and up.
    """

    jaw: Tensor
    lids: Tensor
    gaze: Tensor


def expression_units(template: Template) -> tuple[str, ...]:
    """Names of the ARKit units that move this template's face; none for a FLAME or a plain head."""
    moved = template.expressive_head and has_units(template.expression_names)
    return template.expression_names if moved else ()


def has_units(expression_names: tuple[str, ...]) -> bool:
    """Whether these are ARKit's units rather than coefficients."""
    return "jawOpen" in expression_names


def jaw_by_joint(template: Template) -> bool:
    """Whether the jaw joint is what opens the mouth."""
    return not has_units(expression_units(template))


def num_expression(template: Template) -> int:
    """How many expression coefficients move this template's face: the head's, or a plain head's own."""
    return (template.head if template.expressive_head else template.body).num_expression


def read_controls(pose: Pose, expression_names: tuple[str, ...]) -> FaceControls:
    """The controls in a pose whose expression has these names: joints and lids, and units on top of them."""
    frames = pose.joints.shape[0]
    jaw = pose.joints[:, JAW].clone()
    eyes = pose.joints[:, [LEFT_EYE, RIGHT_EYE]]
    gaze = torch.stack([eyes[..., 1], -eyes[..., 0]], -1)
    lids = pose.joints.new_zeros(frames, 2)
    if pose.eyelids.shape[-1] == 2:
        lids = lids + pose.eyelids

    def unit(name: str) -> Tensor:
        if name in expression_names:
            return pose.expression[:, expression_names.index(name)]
        return pose.expression.new_zeros(frames)

    # mouthClose shuts the lips over an open jaw; without it the jaw itself must close.
    jaw[:, 0] += FULL_JAW * (unit("jawOpen") - unit("mouthClose")).clamp(min=0)
    jaw[:, 1] += FULL_JAW_ASIDE * (unit("jawLeft") - unit("jawRight"))
    for side, (name, outward) in enumerate((("Left", 1.0), ("Right", -1.0))):
        lids[:, side] += unit(f"eyeBlink{name}")
        gaze[:, side, 0] += outward * FULL_LOOK * (unit(f"eyeLookOut{name}") - unit(f"eyeLookIn{name}"))
        gaze[:, side, 1] += FULL_LOOK * (unit(f"eyeLookUp{name}") - unit(f"eyeLookDown{name}"))
    return FaceControls(jaw, lids.clamp(0, 1), gaze)


def write_controls(pose: Pose, template: Template, controls: FaceControls) -> tuple[Pose, tuple[str, ...]]:
    """``pose`` (of ``template``) with these controls, by whatever the template moves them with.

    Returns:
        The pose, and what the template cannot do ("blinks"), if the controls ask for it.
    """
    lost: list[str] = []
    joints, expression, eyelids = pose.joints.clone(), pose.expression.clone(), pose.eyelids
    units = expression_units(template)
    looks_by_units = "eyeLookOutLeft" in units
    if looks_by_units:
        joints[:, [LEFT_EYE, RIGHT_EYE]] = 0
        for side, (name, outward) in enumerate((("Left", 1.0), ("Right", -1.0))):
            aside, up = outward * controls.gaze[:, side, 0] / FULL_LOOK, controls.gaze[:, side, 1] / FULL_LOOK
            for stem, value in zip(_LOOK, (aside, -aside, up, -up), strict=True):
                expression[:, template.unit(f"{stem}{name}")] = value.clamp(0, 1)
    else:
        joints[:, [LEFT_EYE, RIGHT_EYE], 1] = controls.gaze[..., 0]
        joints[:, [LEFT_EYE, RIGHT_EYE], 0] = -controls.gaze[..., 1]
    if jaw_by_joint(template):
        joints[:, JAW] = controls.jaw
    else:
        joints[:, JAW] = 0
        expression[:, template.unit("jawOpen")] = (controls.jaw[:, 0] / FULL_JAW).clamp(0, 1)
        for name, sign in (("jawLeft", 1), ("jawRight", -1)):
            if name in units:
                aside = sign * controls.jaw[:, 1] / FULL_JAW_ASIDE
                expression[:, template.unit(name)] = aside.clamp(0, 1)
    if "eyeBlinkLeft" in units:
        expression[:, [template.unit("eyeBlinkLeft"), template.unit("eyeBlinkRight")]] = controls.lids
    elif eyelids.shape[-1] == 2 and template.expressive_head:
        eyelids = controls.lids.clone()
    elif bool((controls.lids > 0.1).any()):
        lost.append("blinks")
    return replace(pose, joints=joints, expression=expression, eyelids=eyelids), tuple(lost)


def with_units(pose: Pose, template: Template, units: dict[str, float]) -> Pose:
    """``pose`` (of ``template``) with a face of these ARKit units and no others; a template without units
    shows of them what jaw, lids, gaze and its own coefficients can."""
    from guava.body.transfer import put_units

    if expression_units(template):
        expression = torch.zeros_like(pose.expression)
        for name, value in units.items():
            if name in template.expression_names:
                expression[:, template.unit(name)] = value
        return replace(pose, expression=expression)
    joints = pose.joints.clone()
    joints[:, JAW] = 0
    names = tuple(units)
    values = torch.tensor([units[name] for name in names]).expand(joints.shape[0], -1)
    asked = replace(pose, joints=joints, expression=values, eyelids=torch.zeros_like(pose.eyelids))
    bare = replace(pose, expression=torch.zeros_like(pose.expression))
    face = write_controls(bare, template, read_controls(asked, names))[0]
    return put_units(face, template, values, names)[0]
