"""The release's table of texels: which face every texel of the 512 x 512 atlas belongs to, and where on it.

The release draws the atlas with OpenCV as filled integer polygons, one face after the other, so that later
faces overwrite earlier ones and shared edges belong to the last. Its weights were trained with exactly those
texels; this module draws the same ones.
"""

from __future__ import annotations

import numpy as np


def uv_table(uv: np.ndarray, uv_faces: np.ndarray, size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Faces and barycentrics of every texel.

    Args:
        uv: (T, 2) in [0, 1], v down.
        uv_faces: (F, 3), drawn in this order.
        size: Side of the square atlas.

    Returns:
        Face of each texel (size, size) int32, -1 where there is none; row = v, column = u. Barycentrics
        (size, size, 3) float32 of the texel's *integer* position against the rounded corners, from absolute
        areas divided by their sum plus 1e-6. [Q] Texels of faces that rounding collapsed have all zeros.
    """
    corners = np.rint(np.asarray(uv, np.float64) * size).astype(np.int64)[uv_faces]  # ties to even
    table = filled_triangles(corners, size)
    rows, columns = np.nonzero(table >= 0)
    at = np.stack([columns, rows], 1).astype(np.float64)
    a, b, c = corners[table[rows, columns]].astype(np.float64).transpose(1, 0, 2)

    def area(s: np.ndarray, t: np.ndarray) -> np.ndarray:
        return 0.5 * np.abs((at - s)[:, 0] * (at - t)[:, 1] - (at - s)[:, 1] * (at - t)[:, 0])

    areas = np.stack([area(b, c), area(a, c), area(a, b)], 1)
    barycentrics = np.zeros((size, size, 3), np.float32)
    barycentrics[rows, columns] = areas / (areas.sum(1, keepdims=True) + 1e-6)
    return table, barycentrics


def filled_triangles(corners: np.ndarray, size: int) -> np.ndarray:
    """Triangles with integer corners, outlines included, one over the other as OpenCV's filled contours.

    The pixels of a triangle are those inside, and those of its three edges drawn as lines. (For triangles
    that reach out of the picture OpenCV's insides differ by single pixels; the atlas has none but teeth that
    end at row 512, where they do not.)

    Args:
        corners: (F, 3, 2) column and row.
        size: Side of the square picture.

    Returns:
        (size, size) int32 index of the last triangle that covers a pixel, -1 where none does.
    """
    table = np.full(size * size, -1, np.int32)
    for faces, columns, rows in (_insides(corners, size), _outlines(corners, size)):
        np.maximum.at(table, rows * size + columns, faces.astype(np.int32))
    return table.reshape(size, size)


def _insides(corners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Face, column and row of every pixel strictly inside a triangle."""
    low, high = corners.min(1).clip(0), corners.max(1).clip(None, size - 1)
    extent = (high - low + 1).clip(0)
    count = extent.prod(1)
    faces, place = _counted(count)
    columns = low[faces, 0] + place % extent[faces, 0]
    rows = low[faces, 1] + place // extent[faces, 0]
    sides = []
    for k in range(3):
        s, t = corners[faces, k], corners[faces, (k + 1) % 3]
        sides.append((t - s)[:, 0] * (rows - s[:, 1]) - (t - s)[:, 1] * (columns - s[:, 0]))
    inside = ((sides[0] > 0) & (sides[1] > 0) & (sides[2] > 0)) | (
        (sides[0] < 0) & (sides[1] < 0) & (sides[2] < 0)
    )
    return faces[inside], columns[inside], rows[inside]


def _outlines(corners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Face, column and row of every pixel of the triangles' edges.

    A line has one pixel for every step along its longer axis, from the left to the right whatever the order
    of its ends; halves stay with the step before.
    """
    ends = np.concatenate([corners[:, [2, 0]], corners[:, [0, 1]], corners[:, [1, 2]]])
    of_face = np.tile(np.arange(len(corners)), 3)
    outside = ((ends < 0) | (ends >= size)).any((1, 2))
    keep = np.ones(len(ends), bool)
    for i in np.nonzero(outside)[0]:
        clipped = _clip(*ends[i].ravel().tolist(), size - 1, size - 1)
        keep[i] = clipped is not None
        if clipped is not None:
            ends[i] = np.reshape(clipped, (2, 2))
    ends, of_face = ends[keep], of_face[keep]
    leftwards = ends[:, 1, 0] < ends[:, 0, 0]
    ends[leftwards] = ends[leftwards][:, ::-1]
    step = ends[:, 1] - ends[:, 0]
    steep = np.abs(step[:, 1]) > step[:, 0]
    long, short = np.abs(step).max(1), np.abs(step).min(1)
    lines, along = _counted(long + 1)
    # Rounding short / long * along, halves down.
    aside = (2 * along * short[lines] + (long[lines] - 1).clip(0)) // (2 * long[lines]).clip(1)
    down = np.where(step[lines, 1] >= 0, 1, -1)
    start = ends[lines, 0]
    columns = start[:, 0] + np.where(steep[lines], aside, along)
    rows = start[:, 1] + down * np.where(steep[lines], along, aside)
    return of_face[lines], columns, rows


def _counted(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index i count[i] times, and 0, 1, ... within each."""
    index = np.repeat(np.arange(len(count)), count)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)


def _clip(x0: int, y0: int, x1: int, y1: int, right: int, bottom: int) -> tuple[int, int, int, int] | None:
    """Cut a line off at the picture's border, at whole pixels (towards zero)."""

    def aside(x: int) -> int:
        return (x < 0) + 2 * (x > right)

    def outside(x: int, y: int) -> int:
        return aside(x) + 4 * (y < 0) + 8 * (y > bottom)

    a, b = outside(x0, y0), outside(x1, y1)
    if a & b:
        return None
    if a & 12:
        edge = 0 if a < 8 else bottom
        x0, y0 = x0 + int((edge - y0) * (x1 - x0) / (y1 - y0)), edge
        a = aside(x0)
    if b & 12:
        edge = 0 if b < 8 else bottom
        x1, y1 = x1 + int((edge - y1) * (x1 - x0) / (y1 - y0)), edge
        b = aside(x1)
    if a & b:
        return None
    if a:
        edge = 0 if a == 1 else right
        x0, y0 = edge, y0 + int((edge - x0) * (y1 - y0) / (x1 - x0))
    if b:
        edge = 0 if b == 1 else right
        x1, y1 = edge, y1 + int((edge - x1) * (y1 - y0) / (x1 - x0))
    return x0, y0, x1, y1
