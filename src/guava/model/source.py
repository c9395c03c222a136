"""What every network takes in: the source picture and the tracked body in it (Sec. 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from guava.camera import Camera


@dataclass(frozen=True)
class SourceBatch:
    """B source views.

    Attributes:
        image: (B, 3, S, S) RGB in [0, 1], the person on black (colour times mask), S the encoder's
            ``image_size``.
        mask: (B, 1, S, S) person alpha in [0, 1].
        vertices: (B, V, 3) the posed EHM mesh, world metres.
        rest_vertices: (B, V, 3) the same people's rest mesh (T pose, neutral face).
        camera: The source camera, batched (B, ...) or one for all; its width and height are those of the
            square crop that ``image`` shows.
        guessed_faces: (B, F) bool or None: faces whose place is a guess (hands that were not found). They
            hide nothing and take no colours from the picture (``lite`` only).
    """

    image: Tensor
    mask: Tensor
    vertices: Tensor
    rest_vertices: Tensor
    camera: Camera
    guessed_faces: Tensor | None = None
