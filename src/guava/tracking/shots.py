"""Hard cuts in a clip: tracking never looks across one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")

_END = object()
_WIDTH, _HEIGHT = 48, 32
_BINS = 8
_FLOOR = 0.22  # no difference below this is a cut, however still the clip is
_CLEAR = 3.0  # a cut stands out from the differences around it by this factor
_WINDOW = 6  # frames on each side that count as "around"
_FLASH = 3  # longest flash or passing obstacle, frames; shorter shots are taken for one


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3) uint8 reduced to the (32, 48, 3) uint8 that cuts are found on."""
    picture = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(picture.resize((_WIDTH, _HEIGHT), Image.Resampling.BOX))


def find_cuts(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Number the shots of a clip.

    Two frames differ by the mean of their colour-histogram distance, which ignores motion, and of their
    structure's correlation, which ignores brightness. A cut must stand out from the differences around it,
    which fast motion does not, and what comes after it must stay different from what was before, which
    flashes do not. Dissolves are not found.

    Args:
        frames: (H, W, 3) uint8 RGB each, in order; thumbnails (:func:`thumbnail`) are fine.

    Returns:
        (T,) int64, 0 for the first shot, one more after each cut.
    """
    return np.array([shot for _, shot in number_shots(frames, lambda frame: frame)], dtype=np.int64)


def number_shots(items: Iterable[T], picture: Callable[[T], np.ndarray]) -> Iterator[tuple[T, int]]:
    """Items with the number of their shot, as :func:`find_cuts` counts; a few are read ahead to tell.

    Args:
        items: One a frame.
        picture: An item's frame, (H, W, 3) uint8.
    """
    waiting: deque[T] = deque()
    features: deque[tuple[np.ndarray, np.ndarray]] = deque()  # of frames first, first + 1, ...
    steps: deque[float] = deque()  # how much each differs from the one before it
    first, number, shot, last_cut = 0, 0, 0, 0
    source = iter(items)
    ended = False
    while True:
        while not ended and first + len(features) <= number + _WINDOW:
            item = next(source, _END)
            if item is _END:
                ended = True
                break
            features.append(_features(thumbnail(picture(item))))
            steps.append(_difference(features[-2], features[-1]) if len(features) > 1 else 0.0)
            waiting.append(item)
        if not waiting:
            return
        at = number - first
        if number and _is_cut(list(steps), list(features), at, max(0, last_cut - first), first == 0):
            shot, last_cut = shot + 1, number
        yield waiting.popleft(), shot
        number += 1
        if at >= _WINDOW:
            features.popleft()
            steps.popleft()
            first += 1


def _is_cut(steps: list[float], features: list, t: int, shot_start: int, from_start: bool) -> bool:
    """Whether a cut lies before frame ``t``; all numbers count from the oldest frame that is known.
    ``from_start``: that one is the clip's first, which differs from nothing."""
    if steps[t] < _FLOOR:
        return False
    oldest = 1 if from_start else 0
    around = np.array(steps[max(oldest, t - _WINDOW) : t] + steps[t + 1 : t + 1 + _WINDOW])
    # The third quartile: the clip may have been still on one side of the cut and busy on the other.
    usual = float(np.percentile(around, 75)) if len(around) else 0.0
    if steps[t] < _CLEAR * usual:
        return False
    before = features[max(shot_start, t - _FLASH - 1) : t]
    after = features[t : t + _FLASH + 1]
    lasting = min(_difference(a, b) for a in before for b in after)
    return lasting >= max(_FLOOR, 0.5 * steps[t])


def _features(small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Soft histograms of the three channels (3 * bins,) and blurred grey structure, zero mean, unit norm."""
    histograms = []
    for channel in range(3):
        values = small[..., channel].ravel().astype(np.float64) * ((_BINS - 1) / 255.0)
        low = np.minimum(values.astype(int), _BINS - 2)
        part = values - low
        # Soft bins, so that a change of light moves the histogram a little and not by whole bins.
        histograms.append(
            np.bincount(low, 1 - part, minlength=_BINS) + np.bincount(low + 1, part, minlength=_BINS)
        )
    histogram = np.concatenate(histograms) / small[..., 0].size
    grey = small.astype(np.float64).mean(-1)
    grey = (grey + np.roll(grey, 1, 0) + np.roll(grey, 1, 1) + np.roll(grey, (1, 1), (0, 1)))[1:, 1:]
    grey = grey - grey.mean()
    # A flat frame has no structure: the constant keeps its noise from counting as one.
    return histogram, grey / np.sqrt((grey**2).sum() + (8.0**2) * grey.size)


def _difference(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """0 for equal frames, about 1 for unrelated ones."""
    colour = np.abs(a[0] - b[0]).sum() / 6.0
    structure = 0.5 * ((a[1] - b[1]) ** 2).sum()
    return 0.5 * colour + 0.5 * min(1.0, structure)
