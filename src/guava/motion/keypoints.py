"""Whole-body keypoints of a clip (DWPose, COCO-WholeBody) as a motion."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from guava.body import Template, template_for
from guava.errors import FileFormatError, InputError
from guava.motion.motion import Motion

if TYPE_CHECKING:
    from guava.tracking import TrackedSequence

KEYPOINTS_FPS = 24.0
"""Of files that do not say (an ``fps`` array)."""

_LAYOUT = {
    "body": (18, 2),
    "body_score": (18,),
    "hands": (2, 21, 2),
    "hands_score": (2, 21),
    "face": (68, 2),
    "face_score": (68,),
}


def read_keypoints(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], float]:
    """Read keypoints (docs/file-formats.md); nothing in the file is executed.

    Returns:
        Arrays by name, (T, 18, 2) body and so on, and frames a second.

    Raises:
        InputError: There is no such file.
        FileFormatError: It is no .npz, or an array is missing or has another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file '{path}'.")
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: np.asarray(content[name], np.float64) for name in _LAYOUT if name in content}
            fps = float(content["fps"]) if "fps" in content else KEYPOINTS_FPS
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"'{path}' is damaged or not an .npz of numbers ({error}).") from error
    missing = [name for name in _LAYOUT if name not in arrays]
    if missing:
        raise FileFormatError(f"'{path}' has no array '{missing[0]}'.", "See docs/file-formats.md.")
    frames = len(arrays["body"]) if arrays["body"].ndim else 0
    for name, trailing in _LAYOUT.items():
        if arrays[name].shape != (frames, *trailing):
            wanted = ", ".join(map(str, ("T", *trailing)))
            raise FileFormatError(f"'{path}': '{name}' has the shape {arrays[name].shape}, not ({wanted}).")
    if frames == 0:
        raise FileFormatError(f"'{path}' has no frames.")
    if not 1 <= fps <= 1000:
        raise FileFormatError(f"'{path}' says {fps:g} frames a second.")
    return arrays, fps


def track_keypoints(
    path: str | os.PathLike,
    template: Template | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> TrackedSequence:
    """Fit the template to a keypoints file.

    Raises:
        InputError: There is no such file.
        FileFormatError: It cannot be used.
        NoPersonError: No frame has a face.
    """
    from guava.tracking.keypoints import fit_keypoints

    arrays, fps = read_keypoints(path)
    return fit_keypoints(**arrays, fps=fps, name=Path(path).name, template=template, progress=progress)


def motion_of(tracked: TrackedSequence, template: Template | None = None) -> Motion:
    """The motion in a tracked sequence, as the frontal camera would have seen it; translation counts from the
    first valid frame."""
    from dataclasses import replace

    from guava.motion.viewpoint import FRONTAL, is_frontal, root_joint, seen_from

    template = template or template_for(tracked.template_hash, tracked.template_name)
    pose, cameras = tracked.pose, tracked.camera.world_to_camera
    if not is_frontal(cameras):
        pose = seen_from(pose, cameras, FRONTAL, root_joint(tracked.identity, template))
    place = pose.translation[int(tracked.valid.nonzero()[0])]
    return Motion(
        pose=replace(pose, translation=pose.translation - place),
        fps=tracked.fps,
        timestamps=tracked.timestamps,
        valid=tracked.valid,
        template_hash=tracked.template_hash,
        joint_names=template.body.joint_names,
        expression_names=tracked.expression_names,
        loop=False,
        name=tracked.media.name,
        template_name=tracked.template_name,
    )
