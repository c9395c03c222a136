"""Evens out a chart's texel density: one as-rigid-as-possible step (local rotations, global Laplacian solve),
taken per vertex only as far as nothing folds over."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, identity
from scipy.sparse.linalg import splu

from scripts.build_open_template.raster import rasterise

_RESOLUTION = 1400
"""Side of the square in which overlaps are looked for, texels; finer than any atlas that is used."""


def relax_chart(points: np.ndarray, faces: np.ndarray, corners: np.ndarray, most: float = 0.9) -> np.ndarray:
    """(N, 2) chart coordinates with less varied density.

    Args:
        points: (N, 2), consistently oriented, without overlaps.
        faces: (F, 3) into ``points``; corners: (F, 3, 3) the surface's triangles.
        most: The largest share of the step.
    """
    target = _rigid_step(points, faces, corners)
    turn_u, _, turn_v = np.linalg.svd((target - target.mean(0)).T @ (points - points.mean(0)))
    target = (target - target.mean(0)) @ (turn_u @ turn_v)
    spread = _area(points, faces).sum()
    area = np.abs(_area(target, faces)).sum()
    target = points.mean(0) + target * np.sqrt(abs(spread) / area)
    orientation = np.sign(spread)
    share = np.full(len(points), most)
    for _ in range(60):
        moved = points + share[:, None] * (target - points)
        bad = _area(moved, faces) * orientation <= 0
        bad |= _overlapping(moved, faces)
        if not bad.any():
            return moved
        touched = np.unique(faces[bad])
        share[touched] *= 0.6
        # Neighbours follow, so that the step fades out instead of shearing.
        limit = share.copy()
        for k in range(3):
            for j in range(3):
                np.minimum.at(limit, faces[:, k], share[faces[:, j]] + 0.15)
        share = limit
    return points


def _area(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b = points[faces[:, 1]] - points[faces[:, 0]], points[faces[:, 2]] - points[faces[:, 0]]
    return 0.5 * (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])


def _overlapping(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(F,) bool: owns a texel that another face owns too."""
    low = points.min(0)
    grid = (points - low) / np.ptp(points, axis=0).max() * (_RESOLUTION - 4) + 2
    bad = np.zeros(len(faces), bool)
    order = np.zeros(len(points))
    face, _, count = rasterise(grid, order, faces, _RESOLUTION)
    twice = count > 1
    if twice.any():
        bad[face[twice]] = True
        reverse, _, _ = rasterise(grid, order, faces[::-1].copy(), _RESOLUTION)
        bad[len(faces) - 1 - reverse[twice]] = True
    return bad


def _rigid_step(points: np.ndarray, faces: np.ndarray, corners: np.ndarray) -> np.ndarray:
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    length = np.linalg.norm(first, axis=1)
    x = first / length[:, None]
    normal = np.cross(first, second)
    y = np.cross(normal / np.linalg.norm(normal, axis=1, keepdims=True), x)
    flat = np.zeros((len(faces), 3, 2))
    flat[:, 1, 0], flat[:, 2, 0], flat[:, 2, 1] = length, (second * x).sum(1), (second * y).sum(1)
    if _area(points, faces).sum() < 0:
        flat[..., 1] *= -1
    pairs = [(1, 2), (2, 0), (0, 1)]
    cotangent = np.empty((len(faces), 3))
    for k, (i, j) in enumerate(pairs):
        p, q = flat[:, i] - flat[:, k], flat[:, j] - flat[:, k]
        cross = np.abs(p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0])
        cotangent[:, k] = ((p * q).sum(1) / cross.clip(1e-12)).clip(0.05, 20)
    count = len(points)
    rows = np.concatenate([faces[:, i] for i, j in pairs] + [faces[:, j] for i, j in pairs])
    cols = np.concatenate([faces[:, j] for i, j in pairs] + [faces[:, i] for i, j in pairs])
    weights = coo_matrix((np.tile(cotangent.T.ravel(), 2), (rows, cols)), shape=(count, count)).tocsr()
    degree = np.asarray(weights.sum(1)).ravel()
    solve = splu((identity(count).multiply(degree[:, None] + 1e-9) - weights).tocsc()).solve
    covariance = np.zeros((len(faces), 2, 2))
    for k, (i, j) in enumerate(pairs):
        now, rest = points[faces[:, i]] - points[faces[:, j]], flat[:, i] - flat[:, j]
        covariance += cotangent[:, k, None, None] * now[:, :, None] * rest[:, None, :]
    u, _, v = np.linalg.svd(covariance)
    u[:, :, 1] *= np.sign(np.linalg.det(u @ v))[:, None]
    rotation = u @ v
    right = np.zeros((count, 2))
    for k, (i, j) in enumerate(pairs):
        pull = cotangent[:, k, None] * np.einsum("fij,fj->fi", rotation, flat[:, i] - flat[:, j])
        np.add.at(right, faces[:, i], pull)
        np.add.at(right, faces[:, j], -pull)
    return solve(right)
