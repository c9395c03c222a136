"""Triangle meshes: z-buffer, UV-space raster and simple shading.

A face is intersected with a pixel's ray in homogeneous form. With the corners K X_cam as the columns of M and
the ray d = (x, y, 1), the point at depth z = 1 / sum(M^-1 d) has barycentrics z * M^-1 d. They are
perspective-correct, and a face that reaches behind the camera needs no clipping.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from guava.body.template import Template
from guava.camera import Camera
from guava.rendering.threads import KERNEL_LOCK

NEAR = 0.01
"""Nothing nearer to the camera than this is drawn, metres."""

_BAND_ROWS = 8
_PAIRS_PER_CHUNK = 4_000_000


@dataclass(frozen=True)
class MeshFragments:
    """What every pixel of a picture, or every texel of an atlas, sees of a mesh.

    Attributes:
        face_ids: (H, W) int32; -1 where there is no face. Of equally near faces the lower index wins.
        barycentrics: (H, W, 3) float32, perspective-correct; 0 where there is no face.
        depth: (H, W) float32 metres along the camera's z axis; infinite where there is no face.
    """

    face_ids: Tensor
    barycentrics: Tensor
    depth: Tensor

    @property
    def mask(self) -> Tensor:
        """(H, W) bool: pixels that see a face."""
        return self.face_ids >= 0

    def interpolate(self, attributes: Tensor, faces: Tensor) -> Tensor:
        """Per-vertex attributes (V, C) with their faces (F, 3) -> (H, W, C); 0 where there is no face."""
        corners = attributes[faces.long()[self.face_ids.long().clamp(min=0)]]
        return (corners * self.barycentrics[..., None].to(attributes.dtype)).sum(-2) * self.mask[..., None]


def rasterize_mesh(
    vertices: Tensor, faces: Tensor, camera: Camera, *, backend: str = "auto"
) -> MeshFragments:
    """The nearest face at every pixel centre. Both sides of a face are drawn; not differentiable.

    Args:
        vertices: (V, 3) world metres.
        faces: (F, 3) vertex indices.
        camera: One camera (no batch).
        backend: "cpu" (numba, multithreaded), "torch" (the readable reference, any device), or "auto":
            "cpu" for tensors on the CPU and "torch" elsewhere.

    Raises:
        ValueError: Wrong shapes, values that are not finite, or a backend that cannot serve the device.
    """
    world_to_camera, intrinsics = single_camera(camera)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(
            f"rasterize_mesh needs vertices (V, 3) and faces (F, 3), got {tuple(vertices.shape)} "
            f"and {tuple(faces.shape)}."
        )
    if len(faces) and not 0 <= int(faces.min()) <= int(faces.max()) < len(vertices):
        raise ValueError(f"rasterize_mesh got faces with vertex indices outside 0..{len(vertices) - 1}.")
    device = vertices.device
    points = vertices.detach().double()
    if not bool(torch.isfinite(points).all()):
        raise ValueError("rasterize_mesh got vertices that are NaN or infinite.")
    world_to_camera, intrinsics = world_to_camera.double().to(device), intrinsics.double().to(device)
    points = points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    return _rasterize(points @ intrinsics.T, faces.to(device), camera.width, camera.height, backend)


def rasterize_uv(template: Template, size: int) -> MeshFragments:
    """The template's UV atlas as a grid of texels.

    Args:
        template: Its ``uv`` (v down) and ``uv_faces`` are drawn.
        size: Side of the square atlas, in texels.

    Returns:
        Face and barycentrics at every texel's centre; row = v, column = u. Where charts overlap, the lower
        face index wins. ``depth`` is 1 inside the charts.
    """
    flat = torch.cat([template.uv.double() * size, torch.ones(len(template.uv), 1, dtype=torch.float64)], 1)
    return _rasterize(flat.to(template.uv.device), template.uv_faces, size, size, "auto")


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Area-weighted unit normals (*B, V, 3) of vertices (*B, V, 3); out of counter-clockwise faces (F, 3)."""
    corners = vertices[..., faces.long(), :]
    area = torch.linalg.cross(
        corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :], dim=-1
    )
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total = total.index_add(-2, faces[:, corner].long(), area)
    # Areas are far below normalize()'s own epsilon for millimetre triangles, hence the scale-free floor.
    return total / total.norm(dim=-1, keepdim=True).clamp(min=1e-20)


def sample_texture(texture: Tensor, uv: Tensor) -> Tensor:
    """Bilinear samples (..., C) of a texture (H, W, C) at uv (..., 2) in [0, 1], v down, border clamped."""
    height, width = texture.shape[:2]
    x = (uv[..., 0] * width - 0.5).clamp(0, width - 1)
    y = (uv[..., 1] * height - 0.5).clamp(0, height - 1)
    x0, y0 = x.long().clamp(max=max(width - 2, 0)), y.long().clamp(max=max(height - 2, 0))
    x1, y1 = (x0 + 1).clamp(max=width - 1), (y0 + 1).clamp(max=height - 1)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    top = texture[y0, x0] * (1 - fx) + texture[y0, x1] * fx
    bottom = texture[y1, x0] * (1 - fx) + texture[y1, x1] * fx
    return top * (1 - fy) + bottom * fy


def shade_mesh(
    vertices: Tensor,
    faces: Tensor,
    camera: Camera,
    *,
    vertex_colors: Tensor | None = None,
    face_colors: Tensor | None = None,
    texture: Tensor | None = None,
    uv: Tensor | None = None,
    uv_faces: Tensor | None = None,
    ambient: float = 0.4,
    light: tuple[float, float, float] = (-0.4, -0.5, -1.0),
    supersample: int = 2,
    backend: str = "auto",
) -> Tensor:
    """A picture of a mesh under one Lambert light, for looking at meshes and for synthetic renders.

    Args:
        vertices: (V, 3) world metres.
        faces: (F, 3).
        camera: One camera.
        vertex_colors: (V, 3), or
        face_colors: (F, 3), or
        texture: (Ht, Wt, 3) with ``uv`` (T, 2), v down, and ``uv_faces`` (F, 3). Grey without any of them.
        ambient: Brightness, of 1, that does not depend on the light; 1 shows the bare colours.
        light: Direction towards the light in camera axes (x right, y down, z forward).
        supersample: Samples per pixel side.
        backend: As in :func:`rasterize_mesh`.

    Returns:
        (H, W, 4) float32: RGB, not premultiplied, and coverage.
    """
    fine = camera.resized(camera.width * supersample, camera.height * supersample)
    vertices = vertices.detach().float()
    hit = rasterize_mesh(vertices, faces, fine, backend=backend)
    if texture is not None:
        if uv is None or uv_faces is None:
            raise ValueError("shade_mesh needs uv and uv_faces beside a texture.")
        color = sample_texture(texture.float(), hit.interpolate(uv.float(), uv_faces))
    elif face_colors is not None:
        color = face_colors.float()[hit.face_ids.long().clamp(min=0)]
    elif vertex_colors is not None:
        color = hit.interpolate(vertex_colors.float(), faces)
    else:
        color = torch.full((*hit.face_ids.shape, 3), 0.75, device=vertices.device)
    normals = vertex_normals(vertices, faces) @ camera.world_to_camera[:3, :3].to(vertices).T
    normal = torch.nn.functional.normalize(hit.interpolate(normals, faces), dim=-1)
    towards = torch.nn.functional.normalize(torch.tensor(light).to(vertices), dim=0)
    lit = ambient + (1 - ambient) * (normal @ towards).clamp(min=0)
    mask = hit.mask[..., None].float()
    premultiplied = torch.cat([color * lit[..., None] * mask, mask], -1)
    shape = (camera.height, supersample, camera.width, supersample, 4)
    pixels = premultiplied.reshape(shape).mean((1, 3))
    return torch.cat([pixels[..., :3] / pixels[..., 3:].clamp(min=1e-6), pixels[..., 3:]], -1)


def single_camera(camera: Camera) -> tuple[Tensor, Tensor]:
    """The (4, 4) and (3, 3) matrices of a camera that must not be a batch.

    Raises:
        ValueError: It is a batch, or it has no pixels.
    """
    if camera.world_to_camera.shape != (4, 4) or camera.intrinsics.shape != (3, 3):
        raise ValueError(
            f"Rendering takes one camera, got a batch of shape {tuple(camera.world_to_camera.shape[:-2])}; "
            "select one with camera[i]."
        )
    if camera.width < 1 or camera.height < 1:
        raise ValueError(f"A camera needs at least one pixel, got {camera.width} x {camera.height}.")
    return camera.world_to_camera, camera.intrinsics


# --- kernels ------------------------------------------------------------------------------------------------


def _rasterize(points: Tensor, faces: Tensor, width: int, height: int, backend: str) -> MeshFragments:
    """Homogeneous pixel coordinates (V, 3) float64, K X_cam, and faces -> fragments."""
    device = points.device
    if backend == "auto":
        backend = "cpu" if device.type == "cpu" else "torch"
    if backend == "cpu":
        if device.type != "cpu":
            raise ValueError(f"The mesh backend 'cpu' cannot draw tensors that lie on '{device}'.")
        with KERNEL_LOCK:
            ids, barycentrics, depth = _zbuffer(
                points.contiguous().numpy(), faces.long().contiguous().numpy(), width, height, NEAR
            )
        return MeshFragments(torch.from_numpy(ids), torch.from_numpy(barycentrics), torch.from_numpy(depth))
    if backend == "torch":
        return _zbuffer_reference(points, faces.long(), width, height, NEAR)
    raise ValueError(f"There is no mesh backend '{backend}'; choose 'auto', 'cpu' or 'torch'.")


def _zbuffer_reference(points: Tensor, faces: Tensor, width: int, height: int, near: float) -> MeshFragments:
    """All (face, pixel) pairs within the faces' bounding boxes, tested by M^-1 d; nearest pair per pixel."""
    device = points.device
    corners = points[faces]
    solid = torch.linalg.det(corners).abs() > 1e-18
    solid &= (corners[..., 2] > near).any(1)
    ahead = (corners[..., 2] > near).all(1)
    xy = corners[..., :2] / corners[..., 2:].clamp(min=near)
    low, high = xy.amin(1), xy.amax(1)
    size = torch.tensor([width, height], device=device)
    first = torch.where(ahead[:, None], (low - 0.5).ceil(), torch.zeros_like(low))
    first = torch.minimum(first.clamp(min=0), size.to(first)).long()
    last = torch.where(ahead[:, None], (high - 0.5).floor(), (size - 1).to(high).expand_as(high))
    last = torch.minimum(last.clamp(min=-1), (size - 1).to(last)).long()
    extent = (last - first + 1).clamp(min=0) * solid[:, None]
    count = extent.prod(1)

    depth = torch.full((height * width,), torch.inf, dtype=torch.float64, device=device)
    ids = torch.full((height * width,), -1, dtype=torch.long, device=device)
    barycentrics = torch.zeros(height * width, 3, dtype=torch.float64, device=device)
    drawn = count.nonzero()[:, 0]
    chunk = (count[drawn].cumsum(0) - 1) // _PAIRS_PER_CHUNK
    for part in chunk.unique().tolist():
        mine = drawn[chunk == part]
        face = mine.repeat_interleave(count[mine])
        start = count[mine].cumsum(0) - count[mine]
        step = torch.arange(len(face), device=device) - start.repeat_interleave(count[mine])
        x = first[face, 0] + step % extent[face, 0]
        y = first[face, 1] + step // extent[face, 0]
        ray = torch.stack([x + 0.5, y + 0.5, torch.ones_like(x)], -1).double()
        # Rows of inverse(corners) are for row vectors: ray = b @ corners.
        inverse = torch.linalg.inv(corners[mine])
        b = torch.einsum("pi,pij->pj", ray, inverse[torch.arange(len(mine), device=device).repeat_interleave(
            count[mine])])
        z = 1 / b.sum(1)
        hit = (z > near) & (b >= 0).all(1)
        face, pixel, z, b = face[hit], (y * width + x)[hit], z[hit], b[hit]
        nearest = depth.scatter_reduce(0, pixel, z, "amin")
        wins = (z == nearest[pixel]) & (z < depth[pixel])
        face, pixel, b = face[wins], pixel[wins], b[wins] * z[wins, None]
        best = torch.full_like(ids, len(faces)).scatter_reduce(0, pixel, face, "amin")
        wins = face == best[pixel]
        ids[pixel[wins]], barycentrics[pixel[wins]] = face[wins], b[wins]
        depth = nearest
    return MeshFragments(
        ids.to(torch.int32).reshape(height, width),
        barycentrics.float().reshape(height, width, 3),
        depth.float().reshape(height, width),
    )


@numba.njit(cache=True, parallel=True)
def _zbuffer(points, faces, width, height, near):
    """Bands of rows in parallel; each walks all faces in index order, so that ties go to the lower index."""
    count = faces.shape[0]
    inverse = np.empty((count, 3, 3), np.float64)
    box = np.empty((count, 4), np.int32)
    for f in numba.prange(count):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = points[i, 0], points[i, 1], points[i, 2]
        bx, by, bz = points[j, 0], points[j, 1], points[j, 2]
        cx, cy, cz = points[k, 0], points[k, 1], points[k, 2]
        box[f, 0], box[f, 1], box[f, 2], box[f, 3] = 1, 0, 1, 0
        nx, ny, nz = by * cz - bz * cy, bz * cx - bx * cz, bx * cy - by * cx
        det = ax * nx + ay * ny + az * nz
        if abs(det) <= 1e-18 or (az <= near and bz <= near and cz <= near):
            continue
        inverse[f, 0, 0], inverse[f, 0, 1], inverse[f, 0, 2] = nx / det, ny / det, nz / det
        inverse[f, 1, 0] = (cy * az - cz * ay) / det
        inverse[f, 1, 1] = (cz * ax - cx * az) / det
        inverse[f, 1, 2] = (cx * ay - cy * ax) / det
        inverse[f, 2, 0] = (ay * bz - az * by) / det
        inverse[f, 2, 1] = (az * bx - ax * bz) / det
        inverse[f, 2, 2] = (ax * by - ay * bx) / det
        if az > near and bz > near and cz > near:
            x0, x1 = min(ax / az, bx / bz, cx / cz), max(ax / az, bx / bz, cx / cz)
            y0, y1 = min(ay / az, by / bz, cy / cz), max(ay / az, by / bz, cy / cz)
            box[f, 0] = np.int32(min(max(np.ceil(x0 - 0.5), 0.0), width))
            box[f, 1] = np.int32(max(min(np.floor(x1 - 0.5), width - 1.0), -1.0))
            box[f, 2] = np.int32(min(max(np.ceil(y0 - 0.5), 0.0), height))
            box[f, 3] = np.int32(max(min(np.floor(y1 - 0.5), height - 1.0), -1.0))
        else:
            box[f, 0], box[f, 1], box[f, 2], box[f, 3] = 0, width - 1, 0, height - 1

    ids = np.full((height, width), -1, np.int32)
    barycentrics = np.zeros((height, width, 3), np.float32)
    depth = np.full((height, width), np.inf, np.float32)
    bands = (height + _BAND_ROWS - 1) // _BAND_ROWS
    for band in numba.prange(bands):
        top, bottom = band * _BAND_ROWS, min((band + 1) * _BAND_ROWS, height) - 1
        nearest = np.full((_BAND_ROWS, width), np.inf, np.float64)
        for f in range(count):
            if box[f, 2] > bottom or box[f, 3] < top or box[f, 0] > box[f, 1]:
                continue
            for y in range(max(box[f, 2], top), min(box[f, 3], bottom) + 1):
                for x in range(box[f, 0], box[f, 1] + 1):
                    px, py = x + 0.5, y + 0.5
                    u = inverse[f, 0, 0] * px + inverse[f, 0, 1] * py + inverse[f, 0, 2]
                    v = inverse[f, 1, 0] * px + inverse[f, 1, 1] * py + inverse[f, 1, 2]
                    w = inverse[f, 2, 0] * px + inverse[f, 2, 1] * py + inverse[f, 2, 2]
                    if u < 0.0 or v < 0.0 or w < 0.0 or u + v + w <= 0.0:
                        continue
                    z = 1.0 / (u + v + w)
                    if z > near and z < nearest[y - top, x]:
                        nearest[y - top, x] = z
                        ids[y, x] = f
                        depth[y, x] = z
                        barycentrics[y, x, 0] = u * z
                        barycentrics[y, x, 1] = v * z
                        barycentrics[y, x, 2] = w * z
    return ids, barycentrics, depth
