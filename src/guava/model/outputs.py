"""What the learned branches predict, before it becomes an avatar (Sec. 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TemplateGaussians:
    """One Gaussian a vertex; its position is the vertex (Sec. 3.2).

    Attributes:
        rotations: (B, V, 4) w, x, y, z, as the decoder gives them (the release's are not unit).
        scales: (B, V, 3) metres.
        opacities: (B, V, 1) in [0, 1].
        features: (B, V, C) raw: the first three channels are RGB *before* the sigmoid.
    """

    rotations: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor


@dataclass(frozen=True)
class UVGaussians:
    """One Gaussian a texel, rigged to the texel's triangle (Eq. 3).

    Attributes:
        face_ids: (M,) int64 triangle of every texel, the same for the whole batch.
        barycentrics: (M, 3) anchor on it.
        local_offsets: (B, M, 3) delta mu of Eq. 3, in units of sigma and in the triangle's frame.
        rotations: (B, M, 4) unit quaternions in the triangle's frame.
        scales: (B, M, 3) in units of sigma.
        opacities: (B, M, 1) in [0, 1].
        features: (B, M, C) raw: the first three channels are RGB *before* the sigmoid.
    """

    face_ids: Tensor
    barycentrics: Tensor
    local_offsets: Tensor
    rotations: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor


@dataclass(frozen=True)
class NetworkOutput:
    """All Gaussians that a network predicts from one source view.

    Attributes:
        template: None where the preset has no template branch.
        uv: The UV layers, largest first; empty in the ablation without UV Gaussians.
        texture: (B, 3, H, W) in [0, 1], for looking at: what the UV branch painted.
    """

    template: TemplateGaussians | None
    uv: tuple[UVGaussians, ...]
    texture: Tensor | None = None
