"""Linear silhouette displacement: the surface pushed along its normals until its outline meets the
matte's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy import ndimage
from scipy.sparse.linalg import factorized

from guava.camera import Camera
from guava.model.baseline.surface import LOCKED, PosedSurface, SurfaceTables, see


@dataclass(frozen=True)
class DisplacementConfig:
    """Settings of the silhouette solve.

    Attributes:
        rounds: Solves; each starts from the outline of the last.
        decay_length: Metres over which an offset fades where nothing is seen.
        rim_weight: Weight of an outline pixel against the surface's smoothness.
        rim_allowance: Pixels of 512 that the discs' own width adds to the outline.
        inward_limit: Metres by which the surface may shrink.
    """

    rounds: int = 4
    decay_length: float = 0.15
    rim_weight: float = 6.0
    rim_allowance: float = 1.3
    inward_limit: float = 0.025


def displace(
    vertices: np.ndarray,
    directions: np.ndarray,
    alpha: np.ndarray,
    inside: np.ndarray,
    camera: Camera,
    tables: SurfaceTables,
    config: DisplacementConfig,
    left_out: np.ndarray | None = None,
) -> np.ndarray:
    """Offsets d (V,) in metres that minimise ``sum_rim w (d - t)^2 + |grad d|^2 + d^2 / decay^2``.

    Rays from every outline pixel along the projected direction to the matte's edge give the targets t.

    Args:
        vertices: (V, 3) in camera coordinates.
        directions: (V, 3) unit vectors, :func:`guava.model.baseline.surface.displacement_directions`.
        alpha: (S, S) matte.
        inside: (S, S) bool, inside the photo.
        camera: Of the (S, S) picture.
        tables: The template's limits and Laplacian.
        config: Settings.
        left_out: (F,) bool, faces that have no part in the outline.
    """
    limit = tables.vertex_limit
    decay = tables.vertex_area / config.decay_length**2
    # Parts with millimetre limits barely move; the neck moves little, or it would swallow the jaw.
    stiff = np.where(limit <= 0.005, 50.0, 0.0) + np.where(
        (limit > 0.005) & (limit < 0.03), tables.vertex_area * 4e3, 0
    )
    offsets = np.zeros(len(vertices))
    for _ in range(config.rounds):
        surface = see(vertices + offsets[:, None] * directions, tables, camera, left_out)
        vertex, step, per_pixel = rim_targets(
            surface, directions, alpha, inside, tables, config.rim_allowance
        )
        floor = -np.minimum(config.inward_limit, limit[vertex])
        target = np.clip(offsets[vertex] + step * per_pixel, floor, limit[vertex])
        count = len(vertices)
        weight = np.bincount(vertex, np.full(len(vertex), config.rim_weight), count)
        right = np.bincount(vertex, config.rim_weight * target, count)
        solve = factorized((tables.laplacian + sp.diags(decay + stiff + weight)).tocsc())
        offsets = np.clip(solve(right), -0.03, limit)
    return offsets


def rim_targets(
    surface: PosedSurface,
    directions: np.ndarray,
    alpha: np.ndarray,
    inside: np.ndarray,
    tables: SurfaceTables,
    allowance: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the outline of the surface lacks to the outline of the person.

    Returns:
        Nearest vertex of every outline pixel (n,), pixels to go outwards (n,), and metres of normal offset
        per pixel (n,).
    """
    size = alpha.shape[0]
    unit = size / 512
    person = alpha > 0.5
    covered = surface.covered
    depth = np.where(covered, surface.depth, 1e3).astype(np.float32)
    jump = covered & (ndimage.maximum_filter(depth, 3) - depth > 0.05)
    rows, columns = np.nonzero(jump)
    face = surface.face_ids[rows, columns]
    vertex = tables.faces[face, surface.barycentrics[rows, columns].argmax(1)]
    direction = directions[vertex, :2]
    length = np.linalg.norm(direction, axis=1)
    usable = (length > 0.6) & (tables.vertex_limit[vertex] > 10 * LOCKED)
    rows, columns, vertex, direction, length = (x[usable] for x in (rows, columns, vertex, direction, length))
    direction = direction / np.maximum(length, 1e-9)[:, None]
    metres = surface.depth[rows, columns] / surface.focal / np.maximum(length, 1e-9)

    steps = np.arange(1, max(2, int(np.ceil(0.11 * surface.focal / np.median(surface.depth[covered])))) + 1)

    def march(sign: float, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = columns[:, None] + 0.5 + sign * direction[:, :1] * reach
        y = rows[:, None] + 0.5 + sign * direction[:, 1:] * reach
        off = (x < 0) | (y < 0) | (x >= size) | (y >= size)
        xi, yi = np.clip(x, 0, size - 1).astype(int), np.clip(y, 0, size - 1).astype(int)
        return off | ~inside[yi, xi], person[yi, xi], covered[yi, xi]

    def first(hits: np.ndarray) -> np.ndarray:
        """Index of the first hit of every row; the number of columns if there is none."""
        return np.where(hits.any(1), hits.argmax(1), hits.shape[1])

    off, on_person, on_mesh = march(1.0, steps)
    leave, end, again = first(off), first(~on_person), first(on_mesh & (steps > 2 * unit))
    out = steps[np.minimum(end, len(steps) - 1)] - 1.0 - allowance * unit
    target = np.where(end == len(steps), float(steps[-1]), out)
    # Met another limb before the background: the gap between them is shared, unless it is no gap at all.
    meets = (again < end) & (again < leave)
    shared = 0.5 * steps[np.minimum(again, len(steps) - 1)]
    target = np.where(meets, np.where(shared >= 3 * unit, shared, np.nan), target)
    target = np.where((leave < end) & (leave < again), np.nan, target)

    inward = np.arange(0, int(18 * unit))
    off, on_person, _ = march(-1.0, inward)
    back = first(on_person & ~off)
    shrink = np.where(back < len(inward), -inward[np.minimum(back, len(inward) - 1)].astype(float), np.nan)
    target = np.where(np.nan_to_num(target, nan=1.0) <= 0, shrink - (allowance * unit), target)
    good = np.isfinite(target)
    return vertex[good], target[good], metres[good]
