"""The one record that every Gaussian of an avatar lives in (paper Sec. 3.2), whoever made it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
from torch import Tensor

MAX_INFLUENCES = 6
"""Columns of ``skin_indices`` and ``skin_weights``."""


class Layer(IntEnum):
    """Which generator a Gaussian came from."""

    TEMPLATE = 0
    UV = 1
    SHELL = 2


class BindingKind(IntEnum):
    """How a Gaussian follows the body.

    * ``TRIANGLE``: rigged to a triangle by Eq. 3.
    * ``VERTEX``: a template Gaussian: sits on vertex ``anchor``, turns with the vertex's blended rotation
      (Sec. 3.3).
    * ``SKIN``: linear blend skinning of its rest position with weights of its own (``anchor`` is unused).
    """

    TRIANGLE = 0
    VERTEX = 1
    SKIN = 2


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians in the identity's rest pose (T pose, neutral face, root at the template's origin).

    Attributes:
        positions: (N, 3) float32 metres, rest pose.
        rotations: (N, 4) float32 unit quaternions (w, x, y, z), rest pose.
        scales: (N, 3) float32 standard deviations in metres, rest pose.
        opacities: (N,) float32 in [0, 1].
        features: (N, C) float32; channels 0-2 are RGB in [0, 1] (already activated), the rest are latents.
        binding: (N,) uint8, a :class:`BindingKind`.
        anchor: (N,) int32: face index (TRIANGLE), vertex index (VERTEX), -1 (SKIN).
        barycentrics: (N, 3) float32 on the anchor triangle (TRIANGLE), else 0.
        local_offset: (N, 3) float32: delta mu of Eq. 3, in units of sigma and in the triangle's frame.
        sigma: (N,) float32: the triangle's size in the rest pose; posed scale = scale * sigma_posed / sigma.
        triangle_rotation: (N, 4) float32: the triangle's R_t in the rest pose as a quaternion.
        skin_indices: (N, MAX_INFLUENCES) uint8 joints, used by SKIN.
        skin_weights: (N, MAX_INFLUENCES) float32, rows sum to 1 for SKIN, else 0.
        layer: (N,) uint8, a :class:`Layer`.
        observed: (N,) bool: its colour was seen in the photo; False means that it was inferred.
    """

    positions: Tensor
    rotations: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor
    binding: Tensor
    anchor: Tensor
    barycentrics: Tensor
    local_offset: Tensor
    sigma: Tensor
    triangle_rotation: Tensor
    skin_indices: Tensor
    skin_weights: Tensor
    layer: Tensor
    observed: Tensor

    def __len__(self) -> int:
        return self.positions.shape[0]

    def __getitem__(self, index) -> Gaussians:
        """Select Gaussians by mask, slice or indices."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device) -> Gaussians:
        """The same Gaussians on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @staticmethod
    def concatenate(*parts: Gaussians) -> Gaussians:
        """All Gaussians of several records with the same number of channels."""
        return Gaussians(
            **{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Gaussians)}
        )
