"""Fitting keypoints that were detected elsewhere, without any picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from guava.body import Template
from guava.errors import InputError
from guava.tracking.config import TrackingConfig
from guava.tracking.detectors.base import FrameDetections, PersonDetection, PointSet
from guava.tracking.sequence import SourceMedia, TrackedSequence
from guava.tracking.track import Progress, track_detections

ABSENT = 0.1
"""Scores below this count as not seen."""


def fit_keypoints(
    body: np.ndarray,
    body_score: np.ndarray,
    hands: np.ndarray,
    hands_score: np.ndarray,
    face: np.ndarray,
    face_score: np.ndarray,
    *,
    fps: float,
    size: int = 512,
    name: str = "keypoints",
    template: Template | None = None,
    config: TrackingConfig | None = None,
    progress: Progress | None = None,
) -> TrackedSequence:
    """Fit the template to whole-body keypoints of a clip (DWPose, COCO-WholeBody).

    Args:
        body: (T, 18, 2) OpenPose-18 joints; coordinates in [0, 1] of a square frame, x right, y down.
        body_score: (T, 18) in [0, 1].
        hands: (T, 2, 21, 2), the person's left hand first; joints as in MediaPipe.
        hands_score: (T, 2, 21).
        face: (T, 68, 2) iBUG-68 landmarks.
        face_score: (T, 68).
        fps: Frames a second.
        size: Side of the frame in pixels that the coordinates are scaled to.
        name: What the sequence is called.
        template: The open template if left out.
        config: Settings.
        progress: Called as the fit goes on.

    Returns:
        A tracked sequence without gaze (the 68 landmarks have no irises) and without masks. Frames without
        a face are flagged invalid.

    Raises:
        InputError: The arrays' shapes do not fit each other.
        NoPersonError: No frame has a face.
    """
    frames = len(body)
    shapes = {
        "body": (body, (frames, 18, 2)),
        "body_score": (body_score, (frames, 18)),
        "hands": (hands, (frames, 2, 21, 2)),
        "hands_score": (hands_score, (frames, 2, 21)),
        "face": (face, (frames, 68, 2)),
        "face_score": (face_score, (frames, 68)),
    }
    for label, (array, shape) in shapes.items():
        if np.shape(array) != shape:
            raise InputError(f"'{label}' has the shape {np.shape(array)}; {shape} is needed.")

    def points(layout: str, xy: np.ndarray, score: np.ndarray) -> PointSet | None:
        score = np.where(np.isfinite(xy).all(-1), score, 0.0)
        score = np.where(score < ABSENT, 0.0, np.clip(score, 0, 1)).astype(np.float64)
        if not score.any():
            return None
        return PointSet(layout, np.nan_to_num(np.asarray(xy, np.float64)) * size, score)

    detections = []
    for t in range(frames):
        parts = (
            points("ibug68", face[t], face_score[t]),
            points("openpose18", body[t], body_score[t]),
            points("hand21", hands[t, 0], hands_score[t, 0]),
            points("hand21", hands[t, 1], hands_score[t, 1]),
        )
        if parts[0] is None:
            detections.append(FrameDetections(None, 0, None))
            continue
        sure = np.concatenate(
            [p.points[p.confidence > 0.3] for p in parts if p is not None] + [parts[0].points]
        )
        box = np.concatenate([sure.min(0), sure.max(0)])
        detections.append(FrameDetections(PersonDetection(box, 1.0, *parts), 1, None))
    config = config or TrackingConfig()
    tracked = track_detections(
        detections,
        [(size, size)] * frames,
        media=SourceMedia(name, "", size, size),
        detector="keypoints",
        fps=fps,
        timestamps=torch.arange(frames, dtype=torch.float64) / fps,
        template=template,
        config=config,
        notes=["Gaze was not fitted: these keypoints have no irises."],
        keep_masks=False,
        progress=progress,
    )
    return replace(tracked, masks=None)
