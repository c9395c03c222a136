"""Closed-form matting and foreground colours on pictures whose answer is known."""

import numpy as np
import pytest

from guava.model.baseline import matting
from guava.model.baseline.matting import closed_form_matte, foreground_colors


@pytest.fixture
def disc():
    """A striped disc before another colour: picture, true alpha, true foreground."""
    yy, xx = np.mgrid[:90, :120]
    alpha = np.clip((35 - np.hypot(xx - 60, yy - 45)) / 6 + 0.5, 0, 1)
    stripes = np.where(yy[..., None] < 45, [0.8, 0.3, 0.2], [0.7, 0.6, 0.1])
    return alpha[..., None] * stripes + (1 - alpha[..., None]) * [0.1, 0.3, 0.6], alpha, stripes


def _laplacian(image, epsilon):
    """The matting Laplacian as its definition says (Levin et al. 2008, Eq. 12), dense."""
    height, width = image.shape[:2]
    number = np.arange(height * width).reshape(height, width)
    out = np.zeros((height * width,) * 2)
    for y in range(height - 2):
        for x in range(width - 2):
            colors = image[y : y + 3, x : x + 3].reshape(9, 3)
            centred = colors - colors.mean(0)
            inverse = np.linalg.inv(centred.T @ centred / 9 + epsilon / 9 * np.eye(3))
            pixels = number[y : y + 3, x : x + 3].ravel()
            out[np.ix_(pixels, pixels)] += np.eye(9) - (1 + centred @ inverse @ centred.T) / 9
    return out


@pytest.mark.parametrize("weight", [1e-4, 1e-2])  # solved by factors, and by iterations
def test_is_the_minimum_that_the_definition_says(weight):
    random = np.random.default_rng(3)
    image, prior, values = random.random((11, 14, 3)), random.random((11, 14)), random.random((11, 14))
    known = random.random((11, 14)) < 0.4
    known[:3, :4] = False  # a corner of the picture
    free, fixed = np.flatnonzero(~known), np.flatnonzero(known)
    laplacian = _laplacian(image, 1e-3)
    wanted = values.copy()
    wanted.ravel()[free] = np.linalg.solve(
        laplacian[np.ix_(free, free)] + weight * np.eye(len(free)),
        weight * prior.ravel()[free] - laplacian[np.ix_(free, fixed)] @ values.ravel()[fixed],
    )
    got = closed_form_matte(image, known, values, prior, weight, 1e-3)
    assert np.array_equal(got[known], values[known])
    assert np.abs(got - wanted).max() < (1e-9 if weight < matting.STRONG_PRIOR else 2e-3)


def test_finds_a_soft_edge_between_two_colours(disc, monkeypatch):
    image, alpha, stripes = disc
    image = alpha[..., None] * stripes[0, 0] + (1 - alpha[..., None]) * [0.1, 0.3, 0.6]
    known = (alpha == 0) | (alpha == 1)
    half = np.full(alpha.shape, 0.5)
    values = np.where(known, alpha, 7.0)  # what is unknown is not read
    got = closed_form_matte(image, known, values, half, 1e-6, 1e-7)
    assert np.abs(got - alpha).max() < 0.01
    monkeypatch.setattr(matting, "DIRECT_LIMIT", 10)
    assert np.abs(closed_form_matte(image, known, values, half, 1e-6, 1e-7) - got).max() < 0.01


def test_nothing_unknown_and_pictures_smaller_than_a_window():
    image = np.full((2, 5, 3), 0.5)
    values = np.array([[0, 1, 0, 1, 0], [1, 0, 1, 0, 1.0]])
    assert np.array_equal(closed_form_matte(image, values >= 0, values, values, 1e-4, 1e-6), values)
    prior = np.full((2, 5), 0.25)
    got = closed_form_matte(image, values > 0, values, prior, 1e-4, 1e-6)
    assert np.allclose(got, np.where(values > 0, 1, 0.25))  # no window says anything: the prior alone


def test_mixed_pixels_get_their_foregrounds_colours(disc):
    image, alpha, stripes = disc
    got = foreground_colors(image, alpha)
    assert got.dtype == np.float32 and (got >= 0).all() and (got <= 1).all()
    assert np.abs(got - image)[alpha == 1].max() < 0.01
    # Away from the stripes' border, which is guessed, the background is taken out of every mixed pixel.
    mixed = (alpha > 0.1) & (alpha < 1) & (np.abs(np.arange(90) - 44.5) > 8)[:, None]
    assert mixed.sum() > 500
    assert np.abs(got - stripes)[mixed].mean() < 0.02
    assert np.abs(image - stripes)[mixed].mean() > 0.15


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (40, 3)])
def test_pictures_of_one_kind_of_pixel(shape, alpha):
    image = np.full((*shape, 3), 0.4)
    got = foreground_colors(image, np.full(shape, alpha))
    assert got.shape == image.shape and np.isfinite(got).all()
    if alpha == 1:
        assert np.allclose(got, 0.4, atol=1e-3)
