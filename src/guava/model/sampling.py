"""From the photo to the surface: projection sampling (Eq. 2) and inverse texture mapping (Eq. 6, B.4).

Plain functions on torch tensors, differentiable in the features (and, for projection sampling, in the
points). Feature maps are (B, C, H, W) with pixel centres at half-integers, and the camera's ``width`` x
``height`` is the picture that the map covers: a map of another resolution of the same view is sampled at
the same place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from guava.avatar.posing import face_frames
from guava.camera import Camera
from guava.rendering import MeshFragments, rasterize_mesh

_OUTSIDE = 3.0  # in grid_sample's units: no neighbour of it lies in the picture


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
    ndc = 2 * pixels / pixels.new_tensor([width, height]) - 1
    return _sample(features, ndc[:, None], padding)[:, :, 0].transpose(1, 2)


def project_ndc(points: Tensor, camera: Camera) -> Tensor:
    """World points (*B, N, 3) -> (*B, N, 2) in [-1, 1] from edge to edge of the picture, x right, y down.

    The same place as ``camera.project`` gives, without the detour over pixels, which costs half of float32's
    digits there: with the tracker's camera this is 24 (x, y) / z, to the last bit as the release computes
    it for points in front of the camera.
    """
    seen = camera.transform(points)
    size = camera.intrinsics.new_tensor([camera.width, camera.height])
    focal = 2 * camera.intrinsics[..., :2, :2] / size[:, None]
    centre = 2 * camera.intrinsics[..., :2, 2] / size - 1
    depth = seen[..., 2:].clamp(min=1e-8)
    return (seen[..., :2] @ focal.transpose(-1, -2)) / depth + centre[..., None, :]


def _sample(features: Tensor, grid: Tensor, padding: str) -> Tensor:
    """(B, C, Hf, Wf) at a grid (B, H, W, 2) -> (B, C, H, W)."""
    # Half precision cannot tell neighbouring pixels of a 512 px picture apart.
    dtype = torch.promote_types(features.dtype, torch.float32)
    sampled = torch.nn.functional.grid_sample(
        features.to(dtype), grid.to(dtype), mode="bilinear", padding_mode=padding, align_corners=False
    )
    return sampled.to(features.dtype)


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
    ndc = project_ndc(points, camera)
    return _sample(features, ndc[:, None], padding)[:, :, 0].transpose(1, 2)


def visible_faces(fragments: MeshFragments, face_count: int) -> Tensor:
    """(F,) bool: the faces that own at least one pixel of a z-buffered picture (B.4).

    All texels of a half-hidden face count as visible, and those of a face without a pixel as hidden.
    """
    seen = torch.zeros(face_count, dtype=torch.bool, device=fragments.face_ids.device)
    seen[fragments.face_ids[fragments.mask].long()] = True
    return seen


@torch.no_grad()
def source_fragments(vertices: Tensor, faces: Tensor, camera: Camera, size: int) -> list[MeshFragments]:
    """The z-buffers, ``size`` x ``size``, of B posed meshes as their cameras see them. Back faces are drawn
    like front faces.

    They are drawn and stay on the CPU, where it takes milliseconds and comes out the same for every device.

    Args:
        vertices: (B, V, 3) world metres.
        faces: (F, 3).
        camera: One camera or a batch of B; the picture that it sees is square.
        size: Side of the z-buffers in pixels.
    """
    vertices, faces, camera = vertices.cpu(), faces.cpu(), camera.to("cpu").resized(size, size)
    single = camera.world_to_camera.ndim == 2
    return [
        rasterize_mesh(mesh, faces, camera if single else camera[b]) for b, mesh in enumerate(vertices)
    ]


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
        texels: The UV atlas, :func:`guava.model.texels.uv_texels`. A texel whose barycentrics are all 0 lies
            at the world's origin.
        camera: RT_s; one camera or a batch of B.
        visible: (B, F) bool, or (F,) for the whole batch: faces to keep (:func:`visible_faces`); None keeps
            all.

    Returns:
        F_uv (B, C, Ht, Wt) with 0 at empty and invisible texels, and the mask (B, Ht, Wt) of the texels that
        were filled.

    Visibility of the release: the face is the nearest one at some pixel of a 512 x 512 z-buffer
    (:func:`source_fragments`, :func:`visible_faces`).
    """
    height, width = texels.face_ids.shape
    face_ids = texels.face_ids.flatten().long().clamp(min=0)
    points = surface_points(vertices, faces, face_ids, texels.barycentrics.flatten(0, 1))
    kept = texels.mask.flatten().expand(features.shape[0], -1)
    if visible is not None:
        kept = kept & visible[..., face_ids]
    # A texel that is not kept is sampled outside the picture, where everything is 0.
    grid = torch.where(kept[..., None], project_ndc(points, camera), _OUTSIDE)
    out = _sample(features, grid.unflatten(1, (height, width)), "zeros")
    return out, kept.unflatten(1, (height, width))


__all__ = [
    "face_frames",
    "inverse_texture_map",
    "project_ndc",
    "sample_features",
    "sample_projected",
    "source_fragments",
    "surface_points",
    "visible_faces",
    "visible_points",
]
