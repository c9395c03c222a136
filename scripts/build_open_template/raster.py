"""A small rasteriser for building: which triangle owns each pixel centre, and soft shading for FaceMesh and
for eyes."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True)
def rasterise(points, depth, faces, size):
    """Nearest triangle at every pixel centre of a square image.

    Args:
        points: (N, 2) float64 pixel coordinates; depth: (N,) smaller is nearer; faces: (F, 3); size: S.

    Returns:
        face (S, S) int32, -1 where empty; barycentrics (S, S, 3); count (S, S): triangles that own the
        centre.
    """
    face = np.full((size, size), -1, np.int32)
    bary = np.zeros((size, size, 3))
    count = np.zeros((size, size), np.int32)
    nearest = np.full((size, size), 1e30)
    for i in range(faces.shape[0]):
        a, b, c = faces[i, 0], faces[i, 1], faces[i, 2]
        x0, y0 = points[a, 0], points[a, 1]
        ux, uy = points[b, 0] - x0, points[b, 1] - y0
        vx, vy = points[c, 0] - x0, points[c, 1] - y0
        area = ux * vy - uy * vx
        if abs(area) < 1e-12:
            continue
        low_x = max(0, int(np.floor(x0 + min(0.0, ux, vx) - 0.5)))
        high_x = min(size - 1, int(np.ceil(x0 + max(0.0, ux, vx) - 0.5)))
        low_y = max(0, int(np.floor(y0 + min(0.0, uy, vy) - 0.5)))
        high_y = min(size - 1, int(np.ceil(y0 + max(0.0, uy, vy) - 0.5)))
        for y in range(low_y, high_y + 1):
            for x in range(low_x, high_x + 1):
                px, py = x + 0.5 - x0, y + 0.5 - y0
                w1 = (px * vy - py * vx) / area
                w2 = (ux * py - uy * px) / area
                w0 = 1 - w1 - w2
                if w0 < 0 or w1 < 0 or w2 < 0:
                    continue
                # Centres on a shared edge belong to both triangles; they are not counted twice.
                if min(w0, w1, w2) > 1e-9:
                    count[y, x] += 1
                d = w0 * depth[a] + w1 * depth[b] + w2 * depth[c]
                if d < nearest[y, x]:
                    nearest[y, x] = d
                    face[y, x] = i
                    bary[y, x, 0], bary[y, x, 1], bary[y, x, 2] = w0, w1, w2
    return face, bary, count


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) unit normals."""
    cross = np.cross(
        vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]
    )
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, faces[:, k], cross)
    return normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12)


def view(vertices: np.ndarray, size: int, centre, scale: float, yaw: float = 0.0, pitch: float = 0.0):
    """Orthographic view from the front: turned vertices (V, 3), pixel coordinates (V, 2) and depths (V,)."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    turn = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]]) @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    turned = (vertices - np.asarray(centre)) @ turn.T
    return turned, size / 2 + scale * turned[:, :2] * [1, -1], -turned[:, 2]


def shade(turned, pixels, depth, faces, size, colours, light=(0.2, 0.35, 0.9), background=120):
    """(S, S, 3) uint8 picture, and the face index and barycentrics of its pixels.

    ``colours`` is (F, 3), or a function of (face, barycentrics) of the covered pixels.
    """
    face, bary, _ = rasterise(pixels.astype(float), depth.astype(float), faces, size)
    normals = vertex_normals(turned, faces)
    light = np.asarray(light) / np.linalg.norm(light)
    hit = face >= 0
    normal = (normals[faces[face[hit]]] * bary[hit][..., None]).sum(1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    colour = colours(face[hit], bary[hit]) if callable(colours) else colours[face[hit]]
    image = np.full((size, size, 3), background, np.uint8)
    image[hit] = ((0.25 + 0.75 * (normal @ light).clip(0, 1))[:, None] * colour).clip(0, 255)
    return image, face, bary
