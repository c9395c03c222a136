"""Detectors: what finds a person's points in a picture. Chosen by name, loaded only when used."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from guava.errors import GuavaError, InputError
from guava.tracking.detectors.base import Detector, FrameDetections, PersonDetection, PointSet

__all__ = [
    "Detector",
    "DetectorInfo",
    "FrameDetections",
    "PersonDetection",
    "PointSet",
    "available_detectors",
    "create_detector",
]

DETECTORS = ("mediapipe", "simcc")
"""Names that :func:`create_detector` knows."""


@dataclass(frozen=True)
class DetectorInfo:
    """Whether a detector can be used here.

    Attributes:
        name: For :func:`create_detector`.
        usable: Whether its packages can be imported.
        reason: One line: what it is, or what is missing and what to do about it.
    """

    name: str
    usable: bool
    reason: str


def create_detector(name: str = "mediapipe", **options: Any) -> Detector:
    """Build a detector.

    Args:
        name: "mediapipe", or "simcc" for a COCO-WholeBody ONNX model of yours.
        **options: Of that detector's constructor ("simcc" needs ``model``, a path).

    Raises:
        InputError: There is no such detector, or an option is wrong.
        MissingDependencyError: Its package is not installed.
    """
    if name == "mediapipe":
        from guava.tracking.detectors.mediapipe import MediaPipeDetector as kind
    elif name == "simcc":
        from guava.tracking.detectors.simcc import SimCCDetector as kind
    else:
        raise InputError(f"There is no detector '{name}'.", f"Use one of: {', '.join(DETECTORS)}.")
    try:
        return kind(**options)
    except TypeError as error:
        raise InputError(f"Wrong options for the detector '{name}' ({error}).") from error


def available_detectors() -> list[DetectorInfo]:
    """What can be used here and what not, with reasons; imports the heavy packages."""
    found = []
    try:
        from guava.tracking.detectors.mediapipe_graphs import import_mediapipe

        import_mediapipe()
        found.append(DetectorInfo("mediapipe", True, "face, body, hands and mask; models are in its package"))
    except GuavaError as error:
        found.append(DetectorInfo("mediapipe", False, str(error)))
    if importlib.util.find_spec("onnxruntime") is None:
        reason = (
            "The package 'onnxruntime' is not installed. Install it with: pip install \"guava-avatar[onnx]\""
        )
        found.append(DetectorInfo("simcc", False, reason))
    else:
        reason = "point it to a COCO-WholeBody SimCC ONNX model (DWPose, RTMW)"
        found.append(DetectorInfo("simcc", True, reason))
    return found
