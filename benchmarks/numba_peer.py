"""What the native splatter is measured against: blending pixel by pixel in numba, the obvious port."""

from __future__ import annotations

import math

import numba
import numpy as np

_TILE = 8
_f = np.float32


def blend(
    records: np.ndarray, starts: np.ndarray, entries: np.ndarray, features: np.ndarray, alpha_max: float,
    alpha_min: float, transmittance_min: float, picture: np.ndarray, alpha: np.ndarray, depth: np.ndarray,
) -> None:
    """Composite the tile lists of ``peers.Peer.lists`` with gsplat's conventions, on numba's threads.

    Args:
        records: (N, 10) of ``peers.cpp``.
        starts: (tiles + 1,) int64.
        entries: (pairs,) int32.
        features: (N, C).
        picture: (H, W, C), overwritten; likewise ``alpha`` and ``depth`` (H, W).
    """
    _blend(
        records, starts, entries, features, _f(alpha_max), _f(alpha_min), _f(transmittance_min), picture,
        alpha, depth,
    )


@numba.njit(parallel=True, fastmath={"contract", "nsz", "nnan", "reassoc"}, error_model="numpy")
def _blend(
    records, starts, entries, features, alpha_max, alpha_min, transmittance_min, picture, alpha, depth
):
    height, width, channels = picture.shape
    across = (width + _TILE - 1) // _TILE
    one, half = _f(1), _f(0.5)
    for tile in numba.prange(len(starts) - 1):
        top, left = tile // across * _TILE, tile % across * _TILE
        sums = np.empty(channels, np.float32)
        for y in range(top, min(top + _TILE, height)):
            for x in range(left, min(left + _TILE, width)):
                rest, z = one, _f(0)
                sums[:] = 0
                for j in range(starts[tile], starts[tile + 1]):
                    n = entries[j]
                    dx, dy = _f(x) + half - records[n, 0], _f(y) + half - records[n, 1]
                    power = dx * (records[n, 2] * dx + records[n, 3] * dy) + records[n, 4] * dy * dy
                    if power < records[n, 7] or power > 0:
                        continue
                    a = min(alpha_max, records[n, 5] * _f(math.exp2(power)))
                    if a < alpha_min:
                        continue
                    after = rest * (one - a)
                    if after <= transmittance_min:
                        break
                    weight = a * rest
                    rest = after
                    z += weight * records[n, 6]
                    for c in range(channels):
                        sums[c] += weight * features[n, c]
                picture[y, x] = sums
                alpha[y, x] = one - rest
                depth[y, x] = z
