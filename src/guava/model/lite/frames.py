"""A smooth frame on the surface of a mesh, and how far apart texels lie on it.

Triangle frames jump from one triangle to the next, and by their sizes, which differ tenfold between face and
trunk. The network predicts in this frame instead, so that a smooth UV map means a smooth surface, and its
predictions are converted to the units of Eq. 3 afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guava.avatar.posing import SigmaRule, triangle_frames
from guava.model.lite.tables import UVTables
from guava.rendering.mesh import vertex_normals
from guava.rotation import matrix_to_quaternion, quaternion_multiply

MIN_DISC, MAX_DISC = 1e-4, 0.012
"""Limits of what a texel's disc starts from, metres."""


@dataclass(frozen=True)
class SmoothFrames:
    """B meshes seen at the M places of :class:`UVTables`.

    Attributes:
        rotation: (B, M, 3, 3) columns tangent (along the atlas' u), bitangent (normal x tangent) and normal;
            continuous within a chart of the atlas.
        spacing: (B, M, 2) metres from one Gaussian to the next along tangent and bitangent.
        in_triangle: (B, M, 3, 3) the same frame seen from the triangle's: R_t^T rotation, R_t of Eq. 3.
        turn_in_triangle: (B, M, 4) the same as unit quaternions.
        sigma: (B, M, 1) metres, sigma of Eq. 3.
    """

    rotation: Tensor
    spacing: Tensor
    in_triangle: Tensor
    turn_in_triangle: Tensor
    sigma: Tensor


@torch.no_grad()
def smooth_frames(vertices: Tensor, tables: UVTables, sigma_rule: SigmaRule = "mean_edge") -> SmoothFrames:
    """Frames of meshes (B, V, 3). Not differentiable: people's shapes are given."""
    corners = tables.faces[tables.face_ids]
    weights = tables.barycentrics[..., None]
    normal = _unit((vertex_normals(vertices, tables.faces)[:, corners] * weights).sum(2))

    # Steps along the atlas, per triangle; tangents are averaged at the atlas' own vertices, so that they are
    # continuous except across seams.
    steps = torch.einsum("fsk,bfkc->bfsc", tables.jacobian, vertices[:, tables.faces])
    right, down = steps[:, :, 0], steps[:, :, 1]
    edges = vertices[:, tables.faces]
    area = torch.linalg.cross(edges[:, :, 1] - edges[:, :, 0], edges[:, :, 2] - edges[:, :, 0], dim=-1)
    weighted = _unit(right) * area.norm(dim=-1, keepdim=True)
    tangents = vertices.new_zeros(vertices.shape[0], tables.uv_count, 3)
    for corner in range(3):
        tangents = tangents.index_add(1, tables.uv_faces[:, corner], weighted)
    tangent = (_unit(tangents)[:, tables.uv_faces[tables.face_ids]] * weights).sum(2)
    tangent = tangent - normal * (normal * tangent).sum(-1, keepdim=True)
    # Where opposite tangents meet there is none; any direction along the surface will do.
    axis = torch.nn.functional.one_hot(normal.abs().argmin(-1), 3).to(normal)
    spare = torch.linalg.cross(normal, axis, dim=-1)
    tangent = _unit(torch.where(tangent.norm(dim=-1, keepdim=True) > 1e-3, tangent, spare))
    bitangent = torch.linalg.cross(normal, tangent, dim=-1)

    # Two numbers tile a sheared grid: the step to the right, and the height of the next row over it.
    along = right.norm(dim=-1).clamp(min=1e-9)
    height = torch.linalg.cross(right, down, dim=-1).norm(dim=-1) / along
    height = torch.maximum(height, 0.3 * down.norm(dim=-1))
    spacing = torch.stack([along, height], -1)[:, tables.face_ids] * tables.disc[:, None]
    triangles = triangle_frames(vertices, tables.faces, sigma_rule)
    rotation = torch.stack([tangent, bitangent, normal], -1)
    in_triangle = triangles.rotation[:, tables.face_ids].transpose(-1, -2) @ rotation
    return SmoothFrames(
        rotation,
        spacing.clamp(MIN_DISC, MAX_DISC),
        in_triangle,
        matrix_to_quaternion(in_triangle),
        triangles.sigma[:, tables.face_ids, None].clamp(min=1e-12),
    )


def to_triangle_units(
    frames: SmoothFrames, chosen: Tensor | slice, offsets: Tensor, turns: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions in the smooth frame -> the parameters of Eq. 3.

    Args:
        frames: Of the rest mesh.
        chosen: Which n of its M places.
        offsets: (B, n, 3) metres in the smooth frame.
        turns: (B, n, 4) unit quaternions relative to the smooth frame.
        scales: (B, n, 3) metres.

    Returns:
        Local offsets (B, n, 3) and scales (B, n, 3) in units of sigma, rotations (B, n, 4) relative to the
        triangle's frame.
    """
    sigma = frames.sigma[:, chosen]
    local = (frames.in_triangle[:, chosen] * offsets[..., None, :]).sum(-1) / sigma
    return local, quaternion_multiply(frames.turn_in_triangle[:, chosen], turns), scales / sigma


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True).clamp(min=1e-20)
