"""Closed-form matting and foreground colours of mixed pixels, on numpy and scipy alone.

Nothing here is compiled when it is first used, which is when most people wait for their first avatar.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from scipy.sparse.linalg import splu

DIRECT_LIMIT = 120_000
"""Systems of more pixels than this are solved by iterations: factors of larger ones need over a gigabyte."""

STRONG_PRIOR = 1e-3
"""With such a weight of the prior, a few dozen iterations are faster than factors."""

_WINDOW = 3
_REACH = _WINDOW - 1
"""Pixels are coupled to those at most so many rows and columns away."""
_STENCIL = 2 * _REACH + 1


def closed_form_matte(
    image: np.ndarray,
    known: np.ndarray,
    values: np.ndarray,
    prior: np.ndarray,
    prior_weight: float,
    epsilon: float,
) -> np.ndarray:
    """The matte that is, in every 3 x 3 window, most nearly an affine function of the colours (Levin,
    Lischinski and Weiss 2008, "A Closed-Form Solution to Natural Image Matting").

    Minimises a' L a + prior_weight |a - prior|^2 over the unknown pixels, where L is the matting Laplacian
    (Eq. 12 there) and the known pixels are fixed.

    Args:
        image: (H, W, 3) in [0, 1].
        known: (H, W) bool.
        values: (H, W): the matte where it is known; not read elsewhere.
        prior: (H, W): what unknown pixels are pulled to.
        prior_weight: > 0.
        epsilon: Variance of noise that windows are granted; more of it gives smoother mattes.

    Returns:
        (H, W) float64: ``values`` with the unknown pixels solved for, not clipped.
    """
    out = np.array(values, dtype=np.float64)
    if known.all():
        return out
    rows, columns = np.nonzero(~known)
    window = tuple(
        slice(max(0, i.min() - _REACH), min(side, i.max() + _REACH + 1))
        for i, side in zip((rows, columns), known.shape, strict=True)
    )
    free = ~known[window]
    stencils = _laplacian_rows(np.asarray(image[window], dtype=np.float64), free, epsilon)
    start = prior[window][free].astype(np.float64)
    stencils[:, _STENCIL**2 // 2] += prior_weight

    # Neighbours outside the window have the number -1, the value 0 and the weight 0.
    number = np.full(free.shape, -1, np.int32)
    number[free] = np.arange(len(start), dtype=np.int32)
    column = _neighbours(number, free, -1)
    fixed = _neighbours(np.where(free, 0.0, out[window]), free, 0.0)
    right = prior_weight * start - np.einsum("ns,ns->n", stencils, fixed)
    coupled = column >= 0
    ends = np.concatenate([[0], np.cumsum(coupled.sum(1), dtype=np.int32)]).astype(np.int32)
    # By rows or by columns is the same: the matrix is symmetric.
    system = sp.csc_matrix((stencils[coupled], column[coupled], ends), shape=(len(start), len(start)))
    solved = out[window]
    solved[free] = _solve(system, right, start, prior_weight)
    return out


def _solve(system: sp.csc_matrix, right: np.ndarray, start: np.ndarray, prior_weight: float) -> np.ndarray:
    """Solve the symmetric positive definite system: exactly, unless iterations are faster or have to do."""
    if prior_weight >= STRONG_PRIOR or len(right) > DIRECT_LIMIT:
        return _conjugate_gradients(system, right, start)
    # The pattern is symmetric and the diagonal needs no pivots, which keeps the factors small.
    factors = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True})
    return factors.solve(right)


def _conjugate_gradients(system: sp.csc_matrix, right: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Until the residual is 1e-4 of the right side or 2,000 steps are done; scaled by the diagonal."""
    x, scale = start.copy(), 1 / system.diagonal()
    residual = right - system @ x
    direction, product = np.zeros_like(x), 1.0
    for _ in range(2000):
        if np.linalg.norm(residual) <= 1e-4 * np.linalg.norm(right):
            break
        scaled = scale * residual
        last, product = product, residual @ scaled
        direction = scaled + product / last * direction
        image = system @ direction
        step = product / (direction @ image)
        x += step * direction
        residual -= step * image
    return x


def _laplacian_rows(image: np.ndarray, free: np.ndarray, epsilon: float) -> np.ndarray:
    """Rows of the matting Laplacian that belong to the ``free`` pixels, (N, 25): row-major offsets -2..2.

    A window k of n = 9 pixels with colours I, mean m and covariance S adds
    ``delta_ij - (1 + (I_i - m)' (S + epsilon / n)^-1 (I_j - m)) / n`` to L_ij (Eq. 12). With the
    Cholesky factor C of S + epsilon / n, the product is that of z_i and z_j, C z = I - m.
    """
    count = _WINDOW**2
    height, width = free.shape
    pixels = int(free.sum())
    # Pixels that are not free share one more place, which is thrown away.
    stencils = np.zeros((_STENCIL**2, pixels + 1))
    if min(height, width) < _WINDOW:
        return stencils[:, :-1].T.copy()
    touched = ndimage.binary_dilation(free, np.ones((_WINDOW, _WINDOW)))[1:-1, 1:-1]
    windows = sliding_window_view(image, (_WINDOW, _WINDOW), axis=(0, 1))[touched]
    centred = windows.reshape(len(windows), 3, count).transpose(1, 2, 0).copy()
    centred -= centred.mean(1, keepdims=True)
    z = _whiten(centred, epsilon)

    number = np.full(free.shape, pixels)
    number[free] = np.arange(pixels)
    pixel = sliding_window_view(number, (_WINDOW, _WINDOW))[touched].reshape(-1, count).T.copy()
    middle = _STENCIL**2 // 2
    for i in range(count):
        for j in range(i, count):
            value = (z[0, i] * z[0, j] + z[1, i] * z[1, j] + z[2, i] * z[2, j] + 1) / -count
            if i == j:
                value += 1
            step = (j // _WINDOW - i // _WINDOW) * _STENCIL + j % _WINDOW - i % _WINDOW
            stencils[middle + step, pixel[i]] += value
            if i != j:
                stencils[middle - step, pixel[j]] += value
    return stencils[:, :-1].T.copy()


def _whiten(centred: np.ndarray, epsilon: float) -> np.ndarray:
    """C^-1 c of windows' centred colours c, (3, n, N), where C C' is their covariance + epsilon / n."""
    count = centred.shape[1]

    def covariance(a: int, b: int) -> np.ndarray:
        return (np.einsum("nk,nk->k", centred[a], centred[b]) + (epsilon if a == b else 0)) / count

    red = np.sqrt(covariance(0, 0))
    green_red = covariance(1, 0) / red
    blue_red = covariance(2, 0) / red
    green = np.sqrt(covariance(1, 1) - green_red**2)
    blue_green = (covariance(2, 1) - blue_red * green_red) / green
    blue = np.sqrt(covariance(2, 2) - blue_red**2 - blue_green**2)
    z = np.empty_like(centred)
    z[0] = centred[0] / red
    z[1] = (centred[1] - green_red * z[0]) / green
    z[2] = (centred[2] - blue_red * z[0] - blue_green * z[1]) / blue
    return z


def _neighbours(picture: np.ndarray, mask: np.ndarray, outside: float) -> np.ndarray:
    """(N, 25): a picture's values at row-major offsets -2..2 from the pixels of a mask."""
    padded = np.pad(picture, _REACH, constant_values=outside)
    rows, columns = np.nonzero(mask)
    y, x = np.divmod(np.arange(_STENCIL**2), _STENCIL)
    step = y * padded.shape[1] + x
    return padded.ravel()[(rows * padded.shape[1] + columns)[:, None] + step]


def foreground_colors(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours F of ``image = alpha F + (1 - alpha) B``, from coarse to fine (Germer, Uelwer, Conrad and
    Harmeling 2020, "Fast Multi-Level Foreground Estimation").

    Every level minimises, over F and B in [0, 1], the sum of ``|alpha F + (1 - alpha) B - image|^2`` and of
    ``(regularisation + |difference of alpha|) (|difference of F|^2 + |difference of B|^2)`` of neighbours, by
    a few sweeps that start from the coarser level. Levels are nearest pixels, as there. Unlike there, a sweep
    updates a chessboard's black, then its white pixels, and larger levels only near mixed pixels: elsewhere
    one of the two colours is the picture's and the other one counts for nothing.

    Args:
        image: (H, W, 3) in [0, 1].
        alpha: (H, W) in [0, 1].

    Returns:
        (H, W, 3) float32 in [0, 1].
    """
    image, alpha = np.asarray(image, np.float32), np.asarray(alpha, np.float32)
    height, width = alpha.shape
    colors = np.concatenate([_mean(image, alpha > 0.9), _mean(image, alpha < 0.1)])[None, None]
    levels = int(np.ceil(np.log2(max(height, width, 2))))
    for level in range(levels + 1):
        size = round(height ** (level / levels)), round(width ** (level / levels))
        colors = _nearest(colors, size)
        _sweep(colors, _nearest(image, size), _nearest(alpha, size))
    return colors[..., :3].copy()


_REGULARISATION = np.float32(1e-5)
_SMALL = 32
"""Levels up to this side get ten sweeps, larger ones two."""
_BAND = 4
"""Pixels round the mixed ones that larger levels update."""


def _mean(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return image[mask].mean(0) if mask.any() else np.zeros(3, np.float32)


def _nearest(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture at another size (rows, columns), by its nearest pixels."""
    for axis, side in enumerate(size):
        if side != picture.shape[axis]:
            picture = picture.take(np.arange(side) * picture.shape[axis] // side, axis)
    return picture


def _near_mixed(alpha: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels up to ``_BAND`` rows and columns from one that is mixed or beside another alpha."""
    mixed = (alpha > 0) & (alpha < 1)
    mixed[1:] |= alpha[1:] != alpha[:-1]
    mixed[:, 1:] |= alpha[:, 1:] != alpha[:, :-1]
    return ndimage.maximum_filter(mixed.view(np.uint8), 2 * _BAND + 1).view(bool)


def _sweep(colors: np.ndarray, image: np.ndarray, alpha: np.ndarray) -> None:
    """Improve F and B, (H, W, 6) and contiguous, in place."""
    height, width = alpha.shape
    sweeps, active = 10, np.ones(alpha.shape, bool)
    if max(height, width) > _SMALL:
        np.copyto(colors[..., :3], image, where=alpha[..., None] >= 1)
        np.copyto(colors[..., 3:], image, where=alpha[..., None] <= 0)
        sweeps, active = 2, _near_mixed(alpha)
    flat, opacity, pixels = colors.reshape(-1, 6), alpha.ravel(), image.reshape(-1, 3)
    at = np.flatnonzero(active)
    black = (at // width + at % width) % 2 == 0
    halves = []
    for half in (at[black], at[~black]):
        y, x = half // width, half % width
        around = np.stack([
            half - (x > 0), half + (x < width - 1), half - width * (y > 0), half + width * (y < height - 1)
        ])  # fmt: skip
        a = opacity[half]
        b = 1 - a
        weights = _REGULARISATION + np.abs(opacity[around] - a)
        # The 2 x 2 normal equations of a pixel's F and B, inverted.
        total = weights.sum(0)
        ff, fb, bb = a * a + total, a * b, b * b + total
        scale = 1 / (ff * bb - fb * fb)
        own = np.concatenate([a[:, None] * pixels[half], b[:, None] * pixels[half]], 1)
        inverse = [(scale * entry)[:, None] for entry in (bb, -fb, ff)]
        halves.append((half, around, weights[..., None], own, *inverse))
    for _ in range(sweeps):
        for half, around, weights, own, ff, fb, bb in halves:
            right = own.copy()
            for neighbour, weight in zip(around, weights, strict=True):
                right += weight * flat[neighbour]
            f, b = right[:, :3], right[:, 3:]
            flat[half] = np.concatenate([ff * f + fb * b, fb * f + bb * b], 1).clip(0, 1)
