"""What a detector gives, and the interface behind which detectors are exchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class PointSet:
    """Points of one kind on one person, in image pixels (x right, y down).

    Attributes:
        layout: Which points these are: "mediapipe478", "ibug68", "mediapipe33", "coco17", "openpose18" or
            "hand21".
        points: (K, 2) float64.
        confidence: (K,) float64 in [0, 1]; 0 means absent.
        depth: (K,) float64 relative depth in image pixels, larger is farther; None if the detector gives
            none.
        world: (K, 3) float64 metres from the set's root, camera axes (x right, y down, z away); or None.
    """

    layout: str
    points: np.ndarray
    confidence: np.ndarray
    depth: np.ndarray | None = None
    world: np.ndarray | None = None


@dataclass(frozen=True)
class PersonDetection:
    """One person in one frame. Left and right are the person's own.

    Attributes:
        box: (4,) x0, y0, x1, y1 of the whole visible person, image pixels.
        score: [0, 1].
        face, body, left_hand, right_hand: Point sets; None where not found.
    """

    box: np.ndarray
    score: float
    face: PointSet | None
    body: PointSet | None
    left_hand: PointSet | None
    right_hand: PointSet | None


@dataclass(frozen=True)
class FrameDetections:
    """Everything found in one frame.

    Attributes:
        person: The person that is followed, or None.
        people: How many people the detector believes to be in the frame.
        mask: (H, W) float32 in [0, 1], person probability at image resolution; None if the detector has none.
    """

    person: PersonDetection | None
    people: int
    mask: np.ndarray | None


class Detector(Protocol):
    """Finds a person's points in a picture.

    Implementations are chosen by name (:func:`guava.tracking.detectors.create_detector`) and may keep state
    between the frames of a clip; ``reset`` forgets it.
    """

    name: str

    def detect(
        self, image: np.ndarray, near: np.ndarray | None = None, *, mask: bool = True
    ) -> FrameDetections:
        """Find people in one frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            near: (4,) box of the person in the previous frame; the person that overlaps it most is followed.
                None: the largest person is taken.
            mask: Whether the mask is wanted; without it none is returned in the frames of a clip.
        """
        ...

    def reset(self) -> None:
        """Forget the previous frames (called at every cut)."""
        ...
