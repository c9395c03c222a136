"""Picture metrics against their formulas in numpy and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from guava.errors import InputError
from guava.evaluation import (
    average_clips,
    compare_images,
    gradient_energy,
    l1,
    psnr,
    ssim,
    ssim_map,
    through_8_bits,
)


def _pair(batch=2, height=40, width=52):
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:height, :width]
    smooth = 0.5 + 0.3 * np.sin(x / 7 + np.arange(3)[:, None, None]) * np.cos(y / 5)
    truth = np.stack([np.roll(smooth, 3 * b, -1) for b in range(batch)])
    noisy = np.clip(truth + rng.normal(0, 0.05, truth.shape), 0, 1)
    return torch.from_numpy(noisy), torch.from_numpy(truth)


def _window():
    steps = np.arange(-5, 6)
    line = np.exp(-(steps**2) / (2 * 1.5**2))
    window = np.outer(line, line)
    return window / window.sum()


def _ssim_by_definition(p: np.ndarray, t: np.ndarray) -> np.ndarray:
    """(H, W) of one channel, zeros beyond the edge."""

    def mean(values):
        return convolve2d(values, _window(), mode="same", boundary="fill", fillvalue=0)

    mp, mt = mean(p), mean(t)
    vp, vt, cov = mean(p * p) - mp**2, mean(t * t) - mt**2, mean(p * t) - mp * mt
    c1, c2 = 1e-4, 9e-4
    return (2 * mp * mt + c1) * (2 * cov + c2) / ((mp**2 + mt**2 + c1) * (vp + vt + c2))


def test_ssim_by_its_definition():
    prediction, truth = _pair()
    found = ssim(prediction, truth)
    for b in range(2):
        maps = [_ssim_by_definition(prediction[b, c].numpy(), truth[b, c].numpy()) for c in range(3)]
        assert float(found[b]) == pytest.approx(np.mean(maps), abs=1e-12)
        assert np.allclose(ssim_map(prediction, truth)[b], maps, atol=1e-12)
    assert 0.2 < found.min() and found.max() < 0.95
    assert torch.allclose(ssim(truth, truth), torch.ones(2, dtype=torch.float64))


def test_ssim_agrees_with_scikit_image_away_from_the_edges():
    """It mirrors the edge and leaves 5 pixels of it out of its mean; inside, the two must be equal."""
    metrics = pytest.importorskip("skimage.metrics")
    prediction, truth = _pair(1)
    theirs, whole = metrics.structural_similarity(
        prediction[0].numpy(), truth[0].numpy(), gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, data_range=1.0, channel_axis=0, full=True,
    )  # fmt: skip
    ours = ssim_map(prediction, truth)[0].numpy()
    inside = (slice(None), slice(5, -5), slice(5, -5))
    assert np.allclose(ours[inside], whole[inside], atol=1e-9)
    assert ours[inside].mean() == pytest.approx(theirs, abs=1e-9)
    assert not np.allclose(ours, whole, atol=1e-3)  # zeros beyond the edge do make a difference there


def test_psnr_l1_and_gradient_energy_by_loops():
    prediction, truth = _pair(2, 9, 7)
    for b in range(2):
        p, t = prediction[b].numpy(), truth[b].numpy()
        squared = absolute = 0.0
        for value, wanted in zip(p.ravel(), t.ravel(), strict=True):
            squared += (value - wanted) ** 2
            absolute += abs(value - wanted)
        assert float(psnr(prediction, truth)[b]) == pytest.approx(10 * math.log10(p.size / squared))
        assert float(l1(prediction, truth)[b]) == pytest.approx(absolute / p.size)
        across = [(p[c, i, j + 1] - p[c, i, j]) ** 2 for c, i, j in np.ndindex(3, 9, 6)]
        down = [(p[c, i + 1, j] - p[c, i, j]) ** 2 for c, i, j in np.ndindex(3, 8, 7)]
        assert float(gradient_energy(prediction)[b]) == pytest.approx(np.mean(across) + np.mean(down))
    assert psnr(truth, truth).isinf().all()


def test_pictures_go_through_8_bits_like_saved_files():
    values = torch.tensor([-0.2, 0.0, 0.4999 / 255, 0.5001 / 255, 0.7, 1.0, 1.3], dtype=torch.float64)
    assert (through_8_bits(values) * 255).round().tolist() == [0, 0, 0, 1, 178, 255, 255]
    prediction, truth = _pair()
    coarse = compare_images(prediction, truth)
    exact = compare_images(prediction, truth, quantise=False)
    assert torch.allclose(coarse.psnr, psnr(through_8_bits(prediction), through_8_bits(truth)))
    assert torch.allclose(exact.psnr, psnr(prediction, truth)) and not torch.equal(coarse.psnr, exact.psnr)
    assert exact.lpips is None and (exact.sharpness > 1.5).all()  # the noise is fine detail


def test_lpips_is_called_with_the_same_pictures():
    prediction, truth = _pair()
    seen = []

    def distance(a, b):
        seen.append((a, b))
        return (a - b).abs().amax((1, 2, 3))

    result = compare_images(prediction, truth, distance)
    assert torch.equal(seen[0][0], through_8_bits(prediction)) and result.lpips.shape == (2,)


def test_clips_are_weighted_by_their_frames():
    means, overall = average_clips({"a": [1.0, 2.0, 3.0], "b": torch.tensor([10.0])})
    assert means == {"a": 2.0, "b": 10.0} and overall == pytest.approx((3 * 2.0 + 1 * 10.0) / 4)
    for empty in ({}, {"a": []}):
        with pytest.raises(InputError, match="nothing to average"):
            average_clips(empty)


def test_pictures_of_different_size_are_refused():
    prediction, truth = _pair()
    for call in (ssim, compare_images):
        with pytest.raises(InputError, match="differ in shape"):
            call(prediction, truth[..., :-1])
