"""Tracked sequences as files: a motion file that also holds all else that tracking found.

The arrays and header entries that a motion needs are those of the motion format, so a tracked file drives
an avatar as it is; what is tracking's own carries the prefix ``tracking.``.
"""

from __future__ import annotations

import os
from dataclasses import fields

from torch import Tensor

from guava.body import Identity, Pose, Template, template_for
from guava.camera import Camera
from guava.container import read_container, write_container
from guava.errors import FileFormatError
from guava.tracking.sequence import FitQuality, Keypoints, SourceMedia, TrackedSequence

MOTION_KIND, MOTION_VERSION = "motion", 1
_ARRAYS = ("frame_indices", "shots", "crop_from_image", "face_boxes", "hand_boxes")
_QUALITY = ("face_error", "hand_error", "body_error", "mask_overlap")


def save_tracked(
    tracked: TrackedSequence,
    path: str | os.PathLike,
    *,
    template: Template | None = None,
    keep_masks: bool = True,
) -> None:
    """Write a tracked sequence, atomically and without loss.

    Args:
        tracked: What to write.
        path: Where to.
        template: Its template, for the joints' names; found among the installed ones if left out.
        keep_masks: Also write the person masks.
    """
    template = template or template_for(tracked.template_hash, tracked.template_name)
    tensors: dict[str, Tensor] = {f"pose.{f.name}": getattr(tracked.pose, f.name) for f in fields(Pose)}
    tensors |= {"timestamps": tracked.timestamps, "valid": tracked.valid}
    own: dict[str, Tensor] = {
        f"identity.{f.name}": getattr(tracked.identity, f.name) for f in fields(Identity)
    }
    own |= {name: getattr(tracked, name) for name in _ARRAYS}
    own |= {f"quality.{name}": getattr(tracked.quality, name) for name in _QUALITY}
    own |= {
        "camera.world_to_camera": tracked.camera.world_to_camera,
        "camera.intrinsics": tracked.camera.intrinsics,
    }
    for name, keypoints in tracked.keypoints.items():
        own |= {f"keypoints.{name}.{f.name}": getattr(keypoints, f.name) for f in fields(Keypoints)}
    if keep_masks and tracked.masks is not None:
        own["masks"] = tracked.masks
    tensors |= {f"tracking.{name}": value for name, value in own.items()}
    media = tracked.media
    header = {
        "fps": tracked.fps,
        "template_hash": tracked.template_hash,
        "template_name": tracked.template_name,
        "joint_names": list(template.body.joint_names),
        "expression_names": list(tracked.expression_names),
        "loop": False,
        "name": media.name,
        "absolute_translation": True,
        "tracking": {
            "detector": tracked.detector,
            "media": {
                "name": media.name,
                "sha256": media.sha256,
                "width": media.width,
                "height": media.height,
            },
            "notes": list(tracked.quality.notes),
            "crop": [tracked.camera.width, tracked.camera.height],
            "keypoints": sorted(tracked.keypoints),
            "stages": tracked.stages,
        },
    }
    write_container(path, MOTION_KIND, MOTION_VERSION, tensors, header)


def load_tracked(path: str | os.PathLike) -> TrackedSequence:
    """Read what :func:`save_tracked` wrote.

    Raises:
        InputError: There is no such file.
        FileFormatError: The file is damaged, newer, or a motion that did not come from tracking.
    """
    tensors, header = read_container(path, MOTION_KIND, MOTION_VERSION)
    extra = header.get("tracking")
    if not isinstance(extra, dict):
        raise FileFormatError(
            f"'{path}' is a motion that did not come from tracking.",
            "Make one with: guava track PHOTO_OR_VIDEO",
        )
    try:
        own = {k.removeprefix("tracking."): v for k, v in tensors.items() if k.startswith("tracking.")}
        return TrackedSequence(
            identity=Identity(**{f.name: own[f"identity.{f.name}"] for f in fields(Identity)}),
            pose=Pose(**{f.name: tensors[f"pose.{f.name}"] for f in fields(Pose)}),
            camera=Camera(own["camera.world_to_camera"], own["camera.intrinsics"], *extra["crop"]),
            fps=header["fps"],
            timestamps=tensors["timestamps"],
            valid=tensors["valid"].bool(),
            keypoints={
                name: Keypoints(**{f.name: own[f"keypoints.{name}.{f.name}"] for f in fields(Keypoints)})
                for name in extra["keypoints"]
            },
            quality=FitQuality(*(own[f"quality.{name}"] for name in _QUALITY), notes=tuple(extra["notes"])),
            media=SourceMedia(**extra["media"]),
            template_hash=header["template_hash"],
            expression_names=tuple(header["expression_names"]),
            detector=extra["detector"],
            masks=own.get("masks"),
            template_name=str(header.get("template_name", "")),
            stages=dict(extra.get("stages", {})),
            **{name: own[name] for name in _ARRAYS},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"'{path}' lacks a part of a tracked sequence ({error}).") from error


__all__ = ["load_tracked", "save_tracked"]
