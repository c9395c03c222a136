"""Which neighbouring frames are smoothed, and how strongly (L_smo of Eq. 7 and Eq. 8)."""

from __future__ import annotations

from torch import Tensor

NOMINAL_STEP = 1 / 30
"""The spreads of change in the settings belong to frames this many seconds apart."""


def frame_links(valid: Tensor, shots: Tensor, timestamps: Tensor) -> Tensor:
    """Weights (T-1,) float64 of the smoothness between neighbouring frames.

    Zero across cuts and wherever one of the two frames shows nobody; smaller over longer steps in time,
    because a person moves farther in them.

    Args:
        valid: (T,) bool.
        shots: (T,) counts up at cuts.
        timestamps: (T,) seconds.
    """
    together = valid[1:] & valid[:-1] & (shots[1:] == shots[:-1])
    step = (timestamps[1:] - timestamps[:-1]).double().clamp(min=1e-3)
    return together.double() * (NOMINAL_STEP / step).square().clamp(0.05, 4.0)
