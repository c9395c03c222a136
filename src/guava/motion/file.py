"""The motion file: one documented, versioned container (docs/file-formats.md).

A tracked file is a motion file with further ``tracking.*`` tensors; both are read here.
"""

from __future__ import annotations

import os
from dataclasses import fields, replace

import torch
from torch import Tensor

from guava.body import Pose, Template
from guava.body.controls import (
    CONTROL_UNITS,
    expression_units,
    has_units,
    read_controls,
    write_controls,
)
from guava.body.template import PLAIN_HEAD
from guava.body.transfer import put_units
from guava.container import read_container, write_container
from guava.errors import FileFormatError, TemplateMismatchError
from guava.motion.motion import Motion
from guava.motion.viewpoint import is_frontal

MOTION_KIND, MOTION_VERSION = "motion", 1


def save_motion(motion: Motion, path: str | os.PathLike) -> None:
    """Write a motion, atomically and without loss.

    Raises:
        InputError: The file cannot be written.
    """
    tensors = {f"pose.{f.name}": getattr(motion.pose, f.name) for f in fields(Pose)}
    tensors |= {"timestamps": motion.timestamps, "valid": motion.valid}
    header = {
        "fps": float(motion.fps),
        "template_hash": motion.template_hash,
        "template_name": motion.template_name,
        "joint_names": list(motion.joint_names),
        "expression_names": list(motion.expression_names),
        "loop": bool(motion.loop),
        "name": motion.name,
        "absolute_translation": False,
    }
    write_container(path, MOTION_KIND, MOTION_VERSION, tensors, header)


def load_motion(path: str | os.PathLike) -> Motion:
    """Read a motion file, or the motion in a tracked file.

    Where the file's translation is absolute (``absolute_translation``: tracked files), the place of the
    first valid frame is subtracted. Of a tracked file whose camera is not the frontal one, the motion is told
    as the frontal one would have seen it.

    Raises:
        InputError: There is no such file.
        FileFormatError: The file is damaged, of another kind, or newer than this software.
        MissingAssetError: The template of a tracked file with other cameras is not installed.
    """
    tensors, header = read_container(path, MOTION_KIND, MOTION_VERSION)
    try:
        pose = Pose(**{f.name: tensors[f"pose.{f.name}"] for f in fields(Pose)})
        motion = Motion(
            pose=pose, fps=float(header["fps"]), timestamps=tensors["timestamps"], valid=tensors["valid"],
            template_hash=str(header["template_hash"]), joint_names=tuple(header["joint_names"]),
            expression_names=tuple(header["expression_names"]), loop=bool(header["loop"]),
            name=str(header["name"]), template_name=str(header.get("template_name", "")),
        )
        problem = _problem(motion)
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"'{path}' is not a complete motion file ({error}).") from error
    if problem:
        raise FileFormatError(f"'{path}' is not a usable motion: {problem}")
    cameras = tensors.get("tracking.camera.world_to_camera")
    if cameras is not None and not is_frontal(cameras):
        from guava.motion.keypoints import motion_of
        from guava.tracking.file import load_tracked

        return motion_of(load_tracked(path))
    if header.get("absolute_translation", False):
        place = pose.translation[int(motion.valid.nonzero()[0])]
        motion = replace(motion, pose=replace(pose, translation=pose.translation - place))
    return motion


def _problem(motion: Motion) -> str:
    """What is wrong with the record, as a sentence; "" if nothing is."""
    count = len(motion)
    if count == 0:
        return "it has no frames."
    for f in fields(Pose):
        value = getattr(motion.pose, f.name)
        if value.shape[0] != count:
            return f"pose.{f.name} has {value.shape[0]} frames, not {count}."
        if not torch.isfinite(value).all():
            return f"pose.{f.name} is not finite everywhere."
    if motion.pose.joints.shape[1:] != (len(motion.joint_names), 3):
        return f"pose.joints {tuple(motion.pose.joints.shape)} does not fit {len(motion.joint_names)} names."
    if motion.pose.expression.shape[1:] != (len(motion.expression_names),):
        shape = tuple(motion.pose.expression.shape)
        return f"pose.expression {shape} does not fit {len(motion.expression_names)} units."
    one_each = motion.timestamps.shape == (count,) and motion.valid.shape == (count,)
    if not one_each or motion.valid.dtype != torch.bool:
        return "timestamps and valid need one entry a frame."
    if not motion.valid.any():
        return "nobody was seen in any of its frames."
    return ""


COEFFICIENTS = "flame_expression_"
"""Start of the names of expression directions that are no units, and that jaw, eyes and lids go beside."""


def for_template(motion: Motion, template: Template) -> tuple[Motion, tuple[str, ...]]:
    """The motion in another template's joints and expression.

    Joints and expression units are matched by name, and rotations and coefficients are copied as they are.
    That is right between templates that share SMPL-X's joints and T pose; units that one side lacks rest at
    zero and are named in the notes. Where no expression has the same name on both sides (ARKit's units
    against FLAME's coefficients, or a plain head), jaw, lids and gaze are carried over, by whatever moves
    them (:mod:`guava.body.controls`); other units are translated into coefficients
    (:mod:`guava.body.transfer`), and coefficients into nothing.

    Returns:
        The motion (the same object if it already belongs to ``template``), and notes, in sentences.

    Raises:
        TemplateMismatchError: The joints differ, or the expression is of a kind that nothing is known of.
    """
    if motion.template_hash == template.hash:
        return motion, ()
    joints, units = template.body.joint_names, template.expression_names
    strangers = sorted(set(joints) ^ set(motion.joint_names))
    if strangers:
        raise TemplateMismatchError(
            f"Motion '{motion.name}' was made for a template with other joints ({_some(strangers)}).",
            f"Track the video again with the template '{template.name}'.",
        )
    have = () if motion.template_name.endswith(PLAIN_HEAD) else motion.expression_names
    shared = set(units if template.expressive_head else ()) & set(have)
    if not shared and have and not has_units(have) and not have[0].startswith(COEFFICIENTS):
        raise TemplateMismatchError(
            f"Motion '{motion.name}' has expression units that the template '{template.name}' does not know "
            f"({_some(motion.expression_names)}).",
            f"Track the video again with the template '{template.name}'.",
        )
    source = motion.pose
    pose = replace(
        Pose.rest(template, len(motion)),
        joints=_by_name(source.joints, motion.joint_names, joints),
        translation=source.translation,
    )
    other = f"the template '{motion.template_name}'" if motion.template_name else "another template"
    opening = f"Motion '{motion.name}' was made for {other} ({motion.template_hash[:12]}); joints"
    if shared:
        pose = replace(pose, expression=_by_name(source.expression, motion.expression_names, units))
        for name in ("body_expression", "eyelids"):
            if getattr(pose, name).shape == getattr(source, name).shape:
                pose = replace(pose, **{name: getattr(source, name)})
        notes = [f"{opening} and {len(shared)} expression units were matched by name."]
        lost = [n for n in motion.expression_names if n not in shared]
        if lost:
            notes.append(f"Units without a counterpart were dropped: {_some(lost)}.")
    else:
        notes = [f"{opening} were matched by name; jaw, lids and gaze were carried over."]
        controls = read_controls(replace(source, joints=pose.joints), have)
        pose, missing = write_controls(pose, template, controls)
        used = [n for i, n in enumerate(have) if bool((source.expression[:, i].abs() > 0.05).any())]
        shown: tuple[str, ...] = ()
        if has_units(have) and not expression_units(template):
            pose, shown = put_units(pose, template, source.expression, have)
        dropped = [n for n in used if n not in CONTROL_UNITS and n not in shown]
        if set(used) & set(shown):
            notes.append(
                f"The rest of the expression was translated into the coefficients of '{template.name}', as "
                "near as the landmarks of the face allow."
            )
        if missing:
            notes.append(f"The template '{template.name}' cannot show {' and '.join(missing)}.")
        if dropped:
            notes.append(f"What has no counterpart was dropped: {_some(dropped)}.")
    moved = replace(
        motion, pose=pose, template_hash=template.hash, template_name=template.name,
        joint_names=tuple(joints), expression_names=tuple(units),
    )
    return moved, tuple(notes)


def _by_name(values: Tensor, have: tuple[str, ...], want: tuple[str, ...]) -> Tensor:
    """Columns (dimension 1) of ``values`` in the order of ``want``; zeros where there is none."""
    out = values.new_zeros(values.shape[0], len(want), *values.shape[2:])
    for column, name in enumerate(want):
        if name in have:
            out[:, column] = values[:, have.index(name)]
    return out


def _some(names) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
