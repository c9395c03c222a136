"""A UV atlas for upper bodies: the source's charts, cut by region, scaled by how much each region matters,
packed.

Charts are evened out without folding, then scaled, turned and moved as a whole, so what did not overlap in
the source does not overlap here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation
from scipy.signal import fftconvolve
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from scripts.build_open_template.raster import rasterise
from scripts.build_open_template.relax import relax_chart

SIZE = 512
"""Texels; the paper's UV map. Densities and paddings refer to it."""

# Texels per centimetre of the rest pose, by region. What can shrink to make everything fit is in `ELASTIC`.
DENSITY = {
    "face": 10.0,
    "left_hand": 5.5,
    "right_hand": 5.5,
    "torso": 3.4,
    "left_arm": 3.4,
    "right_arm": 3.4,
    "head": 4.6,
    "legs": 0.7,
    "left_eyeball": 6.0,
    "right_eyeball": 6.0,
    "upper_teeth": 5.0,
    "lower_teeth": 5.0,
    "tongue": 3.0,
    "mouth_cavity": 1.6,
    "eye_sockets": 1.6,
}
ELASTIC = ("torso", "left_arm", "right_arm", "head")
UPRIGHT = ("face", "torso")
EVENED = (*ELASTIC, "face", "left_hand", "right_hand")
SLANTS = (0.35, 0.6, 0.9, 0.15)


def chart_group(part: str) -> str:
    """Neck and scalp stay one chart, so that no seam runs around the nape."""
    return "head" if part in ("scalp", "neck") else part


def pack_atlas(vertices, faces, uv, uv_faces, face_parts, part_names) -> tuple[np.ndarray, np.ndarray, dict]:
    """Cut and pack.

    Args:
        vertices: (V, 3) rest pose, metres; faces: (F, 3).
        uv: (T, 2) the source's coordinates, v up; uv_faces: (F, 3).
        face_parts: (F,) index into ``part_names``.

    Returns:
        uv (T', 2) with v down, uv_faces (F, 3), and the densities reached {group: texels per cm}.
    """
    groups = np.array([chart_group(part_names[p]) for p in face_parts])
    charts = []
    for group in DENSITY:
        members = np.where(groups == group)[0]
        labels = _components(uv_faces[members])
        for label in range(labels.max() + 1):
            charts.append((group, members[labels == label]))
    charts = [_Chart.cut(group, ids, vertices, faces, uv, uv_faces) for group, ids in charts]
    for shrink in np.arange(1.0, 0.4, -0.02):
        density = {g: d * (shrink if g in ELASTIC else 1.0) for g, d in DENSITY.items()}
        shapes = [chart.shape(density[chart.group]) for chart in charts]
        spots = next((s for s in (_pack(shapes, slant) for slant in SLANTS) if s is not None), None)
        if spots is not None:
            break
    else:
        raise ValueError("The charts do not fit the atlas.")
    out_uv, out_faces, offset = [], np.zeros_like(uv_faces), 0
    for chart, shape, (quarter, x, y) in zip(charts, shapes, spots, strict=True):
        out_uv.append((shape[quarter][0] + [x, y]) / SIZE)
        out_faces[chart.ids] = chart.local + offset
        offset += len(chart.points)
    density = {g: round(float(d), 2) for g, d in density.items()}
    return np.concatenate(out_uv).astype(np.float32), out_faces, density


@dataclass(frozen=True)
class _Chart:
    """One connected piece: its faces, its points (v down, one unit is a metre on average), their heights."""

    group: str
    ids: np.ndarray
    local: np.ndarray
    points: np.ndarray
    height: np.ndarray

    @staticmethod
    def cut(group, ids, vertices, faces, uv, uv_faces) -> _Chart:
        corners, inverse = np.unique(uv_faces[ids], return_inverse=True)
        local = inverse.reshape(-1, 3)
        points = uv[corners] * [1, -1]
        triangles = vertices[faces[ids]]
        surface = 0.5 * np.linalg.norm(
            np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1
        )

        def to_scale(p):
            a, b = p[local[:, 1]] - p[local[:, 0]], p[local[:, 2]] - p[local[:, 0]]
            area = 0.5 * np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()
            return p * np.sqrt(surface.sum() / max(area, 1e-12))

        points = to_scale(points)
        if group in EVENED and len(ids) > 100:
            for _ in range(2):
                points = relax_chart(points, local, triangles)
            points = to_scale(points)
        height = np.zeros(len(corners))
        height[local.ravel()] = vertices[faces[ids].ravel(), 1]
        return _Chart(group, ids, local, points, height)

    def shape(self, density: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """At its final size: per quarter turn its points (texels, from its own corner) and its mask."""
        points = self.points * (density * 100)
        if self.group in UPRIGHT:
            slope = np.linalg.lstsq(np.c_[points, np.ones(len(points))], self.height, rcond=None)[0][:2]
            angles = [np.arctan2(-slope[0], -slope[1])]  # the direction of rising height becomes "up", -v
        else:
            angles = np.radians(np.arange(0, 90, 3.0))
            boxes = [np.ptp(points @ _turn(a), axis=0).prod() for a in angles]
            angles = [angles[int(np.argmin(boxes))] + k * np.pi / 2 for k in range(4)]
        options = []
        for angle in angles:
            turned = points @ _turn(angle)
            turned = turned - turned.min(0) + 2.0
            side = int(np.ceil(turned.max())) + 3
            face, _, _ = rasterise(turned.astype(float), np.zeros(len(turned)), self.local, side)
            mask = face >= 0
            index = turned.astype(int)
            mask[index[:, 1], index[:, 0]] = True  # slivers own no texel centre, but their corners need room
            mask = binary_dilation(mask, np.ones((3, 3), bool))
            width, height = (np.ceil(turned.max(0)) + 2).astype(int)
            options.append((turned, mask[:height, :width]))
        return options


def _components(uv_faces: np.ndarray) -> np.ndarray:
    corners, inverse = np.unique(uv_faces, return_inverse=True)
    inverse = inverse.reshape(-1, 3)
    rows, cols = (
        np.concatenate([inverse[:, 0], inverse[:, 1]]),
        np.concatenate([inverse[:, 1], inverse[:, 2]]),
    )
    _, labels = connected_components(
        coo_matrix((np.ones(len(rows)), (rows, cols)), shape=(len(corners),) * 2), False
    )
    return labels[inverse[:, 0]]


def _turn(angle: float) -> np.ndarray:
    """Row vectors times this: turned by ``angle``."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])


def _pack(shapes, slant):
    """(quarter, x, y) of each shape, large ones first, each as near to the top (and, by ``slant``, left) as
    it fits; None if one does not."""
    occupied = np.zeros((SIZE, SIZE), bool)
    spots = [None] * len(shapes)
    for i in sorted(range(len(shapes)), key=lambda k: -max(shapes[k][0][1].shape) * shapes[k][0][1].sum()):
        best = None
        blocked = binary_dilation(occupied, np.ones((3, 3), bool)).astype(np.float32)
        for quarter, (_, mask) in enumerate(shapes[i]):
            if max(mask.shape) > SIZE:
                continue
            overlap = fftconvolve(blocked, mask[::-1, ::-1].astype(np.float32), mode="valid")
            ys, xs = np.where(overlap < 0.5)
            if not len(ys):
                continue
            cost = (ys + mask.shape[0]) * 1.0 + (xs + mask.shape[1]) * slant
            k = int(cost.argmin())
            if best is None or cost[k] < best[0]:
                best = (cost[k], quarter, int(xs[k]), int(ys[k]))
        if best is None:
            return None
        _, quarter, x, y = best
        mask = shapes[i][quarter][1]
        occupied[y : y + mask.shape[0], x : x + mask.shape[1]] |= mask
        spots[i] = (quarter, x, y)
    return spots
