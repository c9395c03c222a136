"""What every network takes in: the source picture and the tracked body in it (Sec. 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from guava.camera import Camera


@dataclass(frozen=True)
class SurfacePrior:
    """UV maps of B avatars that a network may start from, of any size H. Where ``known`` is 0 the rest is
    meaningless.

    Attributes:
        texture: (B, 3, H, H) RGB in [0, 1].
        observed: (B, 1, H, H) in [0, 1]: its colour was seen in the picture.
        offsets: (B, 3, H, H) metres from the rest mesh along tangent, bitangent and normal of the smooth
            frame (:mod:`guava.model.lite.frames`).
        turns: (B, 4, H, H) unit quaternions of the discs in that frame.
        scales: (B, 2, H, H) metres, standard deviations of a disc that stands for a whole texel of these
            maps.
        known: (B, 1, H, H) 0 or 1.
    """

    texture: Tensor
    observed: Tensor
    offsets: Tensor
    turns: Tensor
    scales: Tensor
    known: Tensor


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
        prior: What another generator made of the same pictures, or None (``lite`` with
            ``uv_branch.prior``).
    """

    image: Tensor
    mask: Tensor
    vertices: Tensor
    rest_vertices: Tensor
    camera: Camera
    guessed_faces: Tensor | None = None
    prior: SurfacePrior | None = None
