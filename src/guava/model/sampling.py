"""From the photo to the surface: projection sampling (Eq. 2) and inverse texture mapping (Eq. 6, B.4).

Plain functions on torch tensors, differentiable in the features (and, for projection sampling, in the
points). Feature maps are (B, C, H, W) with pixel centres at half-integers, and the camera's ``width`` x
``height`` is the picture that the map covers: a map of another resolution of the same view is sampled at
the same place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from guava.camera import Camera
from guava.rendering import MeshFragments


def sample_features(
    features: Tensor, pixels: Tensor, width: int, height: int, *, padding: str = "border"
) -> Tensor:
    """Bilinear samples of a feature map at pixel positions.

    Args:
        features: (B, C, Hf, Wf).
        pixels: (B, N, 2) x right, y down, in a picture of ``width`` x ``height``; (0, 0) is the picture's
            corner.
        width, height: The picture's size.
        padding: Outside the picture: "border" repeats its edge, "zeros" fades to 0.

    Returns:
        (B, N, C).
    """
    size = pixels.new_tensor([width, height])
    grid = (2 * pixels / size - 1)[:, None]
    sampled = torch.nn.functional.grid_sample(
        features, grid.to(features.dtype), mode="bilinear", padding_mode=padding, align_corners=False
    )
    return sampled[:, :, 0].transpose(1, 2)


def sample_projected(features: Tensor, points: Tensor, camera: Camera, *, padding: str = "border") -> Tensor:
    """Projection features, Eq. 2: ``f_p^i = S(F_a, P(v^i, RT_s))``.

    Hidden points are sampled like visible ones.

    Args:
        features: F_a, (B, C, Hf, Wf).
        points: v, (B, N, 3) posed, world metres.
        camera: RT_s; one camera or a batch of B.
        padding: See :func:`sample_features`.

    Returns:
        f_p, (B, N, C).
    """
    pixels, _ = camera.project(points)
    return sample_features(features, pixels, camera.width, camera.height, padding=padding)


def visible_faces(fragments: MeshFragments, face_count: int) -> Tensor:
    """(F,) bool: the faces that own at least one pixel of a z-buffered picture (B.4)."""
    seen = torch.zeros(face_count, dtype=torch.bool, device=fragments.face_ids.device)
    seen[fragments.face_ids[fragments.mask].long()] = True
    return seen


def visible_points(points: Tensor, camera: Camera, fragments: MeshFragments, *, tolerance: float) -> Tensor:
    """(N,) bool: the surface points that no nearer surface hides, by comparing with the z-buffer's depth.

    A finer test than :func:`visible_faces`: a large triangle may be hidden in part.

    Args:
        points: (N, 3) world metres, on the mesh that ``fragments`` shows.
        camera: The fragments' camera (no batch).
        fragments: :func:`guava.rendering.rasterize_mesh` of the mesh.
        tolerance: Metres by which a point may lie behind the surface of its pixel's centre.
    """
    pixels, depth = camera.project(points)
    column, row = pixels[:, 0].floor().long(), pixels[:, 1].floor().long()
    inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height) & (depth > 0)
    nearest = fragments.depth[row.clamp(0, camera.height - 1), column.clamp(0, camera.width - 1)]
    return inside & (depth <= nearest.to(depth) + tolerance)


def surface_points(vertices: Tensor, faces: Tensor, face_ids: Tensor, barycentrics: Tensor) -> Tensor:
    """Points (*B, ..., 3) on triangles: per-vertex values (*B, V, 3), faces (F, 3), face indices (...) >= 0
    and barycentrics (..., 3)."""
    corners = vertices[..., faces.long()[face_ids.long()], :]
    return (corners * barycentrics[..., None].to(vertices.dtype)).sum(-2)


def inverse_texture_map(
    features: Tensor,
    vertices: Tensor,
    faces: Tensor,
    texels: MeshFragments,
    camera: Camera,
    *,
    visible: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Inverse texture mapping (Sec. 3.2, B.4): every texel takes the picture's feature at its own projection,
    Eq. 6.

    Args:
        features: (B, C, Hf, Wf), zero outside the picture.
        vertices: (B, V, 3) posed mesh, world metres.
        faces: (F, 3).
        texels: The UV atlas, :func:`guava.rendering.rasterize_uv`.
        camera: RT_s; one camera or a batch of B.
        visible: (B, F) bool, faces to keep (:func:`visible_faces`); None keeps all.

    Returns:
        F_uv (B, C, Ht, Wt) with 0 at empty and invisible texels, and the mask (B, Ht, Wt) of the texels that
        were filled.
    """
    height, width = texels.face_ids.shape
    valid = texels.mask
    face_ids = texels.face_ids[valid].long()
    points = surface_points(vertices, faces, face_ids, texels.barycentrics[valid])
    sampled = sample_projected(features, points, camera, padding="zeros")
    kept = torch.ones(sampled.shape[:2], dtype=torch.bool, device=sampled.device)
    if visible is not None:
        kept = visible[:, face_ids]
    out = features.new_zeros(features.shape[0], height, width, features.shape[1])
    out[:, valid] = sampled * kept[..., None]
    mask = torch.zeros(features.shape[0], height, width, dtype=torch.bool, device=features.device)
    mask[:, valid] = kept
    return out.permute(0, 3, 1, 2), mask
