"""Teeth for SMPL-X and FLAME: 120 vertices and 168 faces behind the lips, as GUAVA's release builds them.

Eight groups of 15 vertices run across the mouth from the subject's left to the right: root and edge, upper
and lower, front and back.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

COUNT, GROUP = 120, 15
UPPER_LIP = (1713, 1715, 1716, 1735, 1696, 1694, 1657, 3543, 2774, 2811, 2813, 2850, 2833, 2832, 2830)
LOWER_LIP = (1576, 1577, 1773, 1774, 1795, 1802, 1865, 3503, 2948, 2905, 2898, 2881, 2880, 2713, 2712)
"""FLAME vertices of the two lips that the teeth stand behind, in pairs."""

UPPER_ROOT, LOWER_ROOT, UPPER_EDGE, LOWER_EDGE = 0, 15, 30, 45
UPPER_ROOT_BACK, UPPER_EDGE_BACK, LOWER_ROOT_BACK, LOWER_EDGE_BACK = 60, 75, 90, 105
UPPER_GROUPS = (UPPER_ROOT, UPPER_EDGE, UPPER_ROOT_BACK, UPPER_EDGE_BACK)
LOWER_GROUPS = (LOWER_ROOT, LOWER_EDGE, LOWER_ROOT_BACK, LOWER_EDGE_BACK)
UPPER_FACES = 84
"""The first 84 of the 168 faces are the upper teeth's."""

TeethOrder = Literal["scrambled", "natural"]


def slots(order: TeethOrder) -> np.ndarray:
    """(120,) SMPL-X slot of each FLAME tooth vertex.

    [Q] The release lists the body's slots in another order of groups than the head's, so that FLAME's groups
    land in slots whose skinning weights, faces and texture belong to other groups ("scrambled"). Its
    checkpoint was trained with that. "natural" puts each group into its own slot.
    """
    if order == "natural":
        return np.arange(COUNT)
    if order != "scrambled":
        raise ValueError(f"The teeth's order is 'scrambled' or 'natural', not '{order}'.")
    groups = (0, 30, 60, 75, 15, 45, 90, 105)
    return np.concatenate([np.arange(first, first + GROUP) for first in groups])


def head_vertices(v_template: np.ndarray) -> np.ndarray:
    """(120, 3) of FLAME's template (V, 3)."""
    middle, gap = _between_lips(v_template, UPPER_LIP, LOWER_LIP)
    return _groups(
        middle + gap * np.array([0, 0.1, 0]), middle + gap * np.array([0, -0.1, -0.4]), 2 * gap, 1.0 * gap
    )


def body_vertices(v_template: np.ndarray, flame_ids: np.ndarray) -> np.ndarray:
    """(120, 3) of SMPL-X's template (V, 3). The expressive head overwrites them; a plain head keeps them."""
    middle, gap = _between_lips(v_template, flame_ids[list(UPPER_LIP)], flame_ids[list(LOWER_LIP)])
    return _groups(
        middle + gap * np.array([0, 0.25, 0.4]), middle + gap * np.array([0, -0.2, 0.2]), 2 * gap, 0.75 * gap
    )


def _between_lips(v_template: np.ndarray, upper, lower) -> tuple[np.ndarray, float]:
    above, below = (v_template[list(ids)].astype(np.float64) for ids in (upper, lower))
    gap = float(np.linalg.norm(above - below, axis=1).mean())
    middle = (above + below) / 2
    middle[:, 1] = middle[:, 1].mean()
    middle[:, 2] -= 1.5 * gap
    return middle, gap


def _groups(upper_edge: np.ndarray, lower_edge: np.ndarray, height: float, depth: float) -> np.ndarray:
    out = np.empty((COUNT, 3))
    front = {
        UPPER_EDGE: upper_edge,
        UPPER_ROOT: upper_edge + [0, height, 0],
        LOWER_EDGE: lower_edge,
        LOWER_ROOT: lower_edge - [0, height, 0],
    }
    backs = {
        UPPER_EDGE: UPPER_EDGE_BACK,
        UPPER_ROOT: UPPER_ROOT_BACK,
        LOWER_EDGE: LOWER_EDGE_BACK,
        LOWER_ROOT: LOWER_ROOT_BACK,
    }
    for first, points in front.items():
        out[first : first + GROUP] = points
        out[backs[first] : backs[first] + GROUP] = points - [0, 0, depth]
    return out


def shape_dirs(dirs: np.ndarray, upper=UPPER_LIP, lower=LOWER_LIP) -> np.ndarray:
    """(120, 3, S) from a model's shape directions (V, 3, S): every group moves as the lips' middle does."""
    return np.tile((dirs[list(upper)] + dirs[list(lower)]) / 2, (COUNT // GROUP, 1, 1))


def weights(joints: int, upper_joint: int, lower_joint: int) -> np.ndarray:
    """(120, J) skinning weights: upper teeth on the neck (SMPL-X: 12, FLAME: 1), lower ones on the jaw."""
    out = np.zeros((COUNT, joints), np.float32)
    for groups, joint in ((UPPER_GROUPS, upper_joint), (LOWER_GROUPS, lower_joint)):
        for first in groups:
            out[first : first + GROUP, joint] = 1
    return out


# Two triangles for every step along a strip between groups a and b; corners are (group, step 0 or 1). The
# diagonal flips in the middle of the mouth: left half, right half.
_A0, _A1, _B0, _B1 = (0, 0), (0, 1), (1, 0), (1, 1)
_STRIPS = (
    (UPPER_ROOT, UPPER_EDGE, ((_A0, _B1, _B0), (_A0, _A1, _B1)), ((_A0, _A1, _B0), (_A1, _B1, _B0))),
    (
        UPPER_ROOT_BACK, UPPER_EDGE_BACK,
        ((_A0, _B0, _B1), (_A0, _B1, _A1)), ((_A0, _B0, _A1), (_A1, _B0, _B1)),
    ),
    (UPPER_EDGE_BACK, UPPER_EDGE, ((_A0, _B0, _A1), (_A1, _B0, _B1)), ((_A0, _B0, _B1), (_A0, _B1, _A1))),
    (LOWER_EDGE, LOWER_ROOT, ((_A0, _A1, _B0), (_A1, _B1, _B0)), ((_A0, _B1, _B0), (_A0, _A1, _B1))),
    (
        LOWER_ROOT_BACK, LOWER_EDGE_BACK,
        ((_A0, _B1, _B0), (_A0, _A1, _B1)), ((_A0, _A1, _B0), (_A1, _B1, _B0)),
    ),
    (LOWER_EDGE_BACK, LOWER_EDGE, ((_A0, _A1, _B0), (_A1, _B1, _B0)), ((_A0, _B1, _B0), (_A0, _A1, _B1))),
)  # fmt: skip


def faces() -> np.ndarray:
    """(168, 3) relative to the first tooth vertex: upper front, back, underside; lower front, back, top."""
    out = []
    for a, b, left, right in _STRIPS:
        for i in range(GROUP - 1):
            for triangle in left if i <= 6 else right:
                out.append([(a, b)[group] + i + step for group, step in triangle])
    return np.array(out, np.int64)


def uv() -> np.ndarray:
    """(120, 2) in image orientation (v down)."""
    u = np.linspace(0.1328, 0.2695, GROUP)
    v = np.linspace(0.94726, 0.9999, 7)
    rows = (3, 2, 0, 1, 3, 4, 6, 5)
    return np.stack([np.tile(u, len(rows)), np.repeat(v[list(rows)], GROUP)], 1)
