"""Cuts are found; motion, flashes, fades of light and stillness are none."""

import numpy as np
import pytest

from guava.tracking.shots import find_cuts


def _scene(seed, size=(90, 160)):
    """A smooth random picture larger than the frame, to pan over."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(20, 235, 3)
    coarse = rng.normal(0, 45, (12, 40, 3)) + base
    big = coarse.repeat(20, 0).repeat(20, 1)[: 2 * size[0], : 5 * size[1]]
    for _ in range(3):
        big = (big + np.roll(big, 5, 0) + np.roll(big, 5, 1) + np.roll(big, -5, 1)) / 4
    return np.clip(big, 0, 255)


def _pan(seed, count, speed, noise=3.0):
    rng = np.random.default_rng(seed + 1000)
    big = _scene(seed)
    for t in range(count):
        x = int(speed * t) % (big.shape[1] - 160)
        frame = big[20:110, x : x + 160] + rng.normal(0, noise, (90, 160, 3))
        yield np.clip(frame, 0, 255).astype(np.uint8)


def test_static_and_fast_pan_have_no_cuts():
    for speed in (0, 2, 15):
        assert find_cuts(_pan(3, 30, speed)).tolist() == [0] * 30


@pytest.mark.parametrize("speed", [0, 3, 10])
def test_hard_cuts(speed):
    frames = [*_pan(1, 20, speed), *_pan(2, 7, speed), *_pan(5, 25, speed)]
    shots = find_cuts(frames)
    assert (np.nonzero(np.diff(shots))[0] + 1).tolist() == [20, 27]
    assert shots.dtype == np.int64 and shots[-1] == 2


def test_flashes_are_no_cuts():
    frames = list(_pan(4, 40, 1))
    for t in (10, 25, 26):
        frames[t] = np.clip(frames[t].astype(int) + 150, 0, 255).astype(np.uint8)
    assert find_cuts(frames).max() == 0


def test_slow_change_of_light_is_no_cut():
    frames = [np.clip(f * (1.2 - 0.025 * t), 0, 255).astype(np.uint8) for t, f in enumerate(_pan(6, 40, 1))]
    assert find_cuts(frames).max() == 0


def test_moving_subject_is_no_cut():
    frames = list(_pan(7, 40, 0))
    for t, frame in enumerate(frames):
        x = int(60 + 50 * np.sin(t * 0.9))
        frame[20:80, x : x + 40] = (230, 190, 170)
    assert find_cuts(frames).max() == 0


def test_short_clips():
    assert find_cuts([]).shape == (0,)
    assert find_cuts(_pan(1, 1, 0)).tolist() == [0]
    black, white = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)
    assert find_cuts([black] * 5 + [white] * 5).tolist() == [0] * 5 + [1] * 5
