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
    table = np.full((size, size), -1, np.int32)
    for face, (p, q, r) in enumerate(corners.tolist()):
        fill_triangle(table, p, q, r, face)
    rows, columns = np.nonzero(table >= 0)
    at = np.stack([columns, rows], 1).astype(np.float64)
    a, b, c = corners[table[rows, columns]].astype(np.float64).transpose(1, 0, 2)

    def area(s: np.ndarray, t: np.ndarray) -> np.ndarray:
        return 0.5 * np.abs((at - s)[:, 0] * (at - t)[:, 1] - (at - s)[:, 1] * (at - t)[:, 0])

    areas = np.stack([area(b, c), area(a, c), area(a, b)], 1)
    barycentrics = np.zeros((size, size, 3), np.float32)
    barycentrics[rows, columns] = areas / (areas.sum(1, keepdims=True) + 1e-6)
    return table, barycentrics


def fill_triangle(table: np.ndarray, p: list[int], q: list[int], r: list[int], value: int) -> None:
    """Fill a triangle with integer corners (column, row), outline included, as OpenCV's filled contours do.

    The pixels are those inside, and those of the three edges drawn as lines. (For triangles that reach out
    of the picture OpenCV's insides differ by single pixels; the atlas has none but teeth that end at row 512,
    where they do not.)
    """
    height, width = table.shape
    left, right = max(min(p[0], q[0], r[0]), 0), min(max(p[0], q[0], r[0]), width - 1)
    top, bottom = max(min(p[1], q[1], r[1]), 0), min(max(p[1], q[1], r[1]), height - 1)
    if left > right or top > bottom:
        return
    if right - left > 1 and bottom - top > 1:
        x, y = np.arange(left, right + 1), np.arange(top, bottom + 1)[:, None]
        sides = [
            (t[0] - s[0]) * (y - s[1]) - (t[1] - s[1]) * (x - s[0]) for s, t in ((p, q), (q, r), (r, p))
        ]
        inside = ((sides[0] > 0) & (sides[1] > 0) & (sides[2] > 0)) | (
            (sides[0] < 0) & (sides[1] < 0) & (sides[2] < 0)
        )
        table[top : bottom + 1, left : right + 1][inside] = value
    for s, t in ((r, p), (p, q), (q, r)):
        for column, row in line(s, t, width, height):
            table[row, column] = value


def line(start: list[int], end: list[int], width: int, height: int) -> list[tuple[int, int]]:
    """Pixels (column, row) of a line within a picture: one for every step along its longer axis.

    From the left to the right, whatever the order of its ends; halves stay with the step before.
    """
    clipped = _clip(*start, *end, width - 1, height - 1)
    if clipped is None:
        return []
    x, y, x1, y1 = clipped
    if x1 < x:
        x, y, x1, y1 = x1, y1, x, y
    dx, dy, down = x1 - x, abs(y1 - y), 1 if y1 >= y else -1
    steep = dy > dx
    long, short = (dy, dx) if steep else (dx, dy)
    out = []
    for step in range(long + 1):
        aside = (2 * step * short + long - 1) // (2 * long) if long else 0
        out.append((x + aside, y + down * step) if steep else (x + step, y + down * aside))
    return out


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
