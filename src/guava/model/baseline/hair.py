"""Hair (and what is worn on it) in the photo, without a learned segmenter."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from guava.model.baseline.images import blur, grow, shrink
from guava.model.baseline.matte import SourcePicture
from guava.model.baseline.matting import closed_form_matte
from guava.model.baseline.surface import HEAD, PosedSurface, SurfaceTables

_BINS = 24


def face_region(surface: PosedSurface, tables: SurfaceTables) -> np.ndarray:
    """(S, S) bool: pixels of the face's front (forehead to chin, eyes and mouth filled in)."""
    inner = tables.faces_of(
        "face",
        "left_eyeball",
        "right_eyeball",
        "lower_teeth",
        "upper_teeth",
        "tongue",
        "mouth_cavity",
        "eye_sockets",
    )
    mask = surface.covered & inner[surface.face_ids]
    return ndimage.binary_fill_holes(ndimage.binary_closing(mask, iterations=2))


def head_window(surface: PosedSurface, tables: SurfaceTables) -> np.ndarray:
    """(S, S) bool: where hair may be."""
    face = face_region(surface, tables)
    if not face.any():
        return np.zeros_like(face)
    rows, columns = np.nonzero(face)
    height = rows.max() - rows.min()
    centre_y, centre_x = rows.min() + 0.3 * height, columns.mean()
    yy, xx = np.indices(face.shape)
    return np.hypot(xx - centre_x, (yy - centre_y) / 1.25) < 1.9 * height


def hair_mask(picture: SourcePicture, surface: PosedSurface, tables: SurfaceTables) -> np.ndarray:
    """Hair pixels by closed-form propagation from seeds, with a colour prior.

    Seeds: hair is above the top of the face (a band over the forehead is left open, since the face's tracked
    top lies below the hairline); not hair is the inside of the face's outline and what is far from the head.
    The prior compares colour histograms of the hair seeds with those of face and clothes. A head whose top
    has the colour of its face (bald, shaven) has no hair.

    Returns:
        (S, S) bool; all False if no face is seen.
    """
    none = np.zeros((picture.size, picture.size), bool)
    face = face_region(surface, tables)
    rows, columns = np.nonzero(face)
    if len(rows) < 100:
        return none
    top, bottom, middle = rows.min(), rows.max(), columns.mean()
    height = bottom - top
    person = picture.person
    yy, xx = np.indices(face.shape)
    near = head_window(surface, tables) & person
    above = person & (yy < top - 0.16 * height) & (np.abs(xx - middle) < 0.7 * height)
    forehead = near & (yy >= top - 0.16 * height) & (yy < top) & (np.abs(xx - middle) < 0.3 * height)
    if above.sum() < 0.01 * height**2:
        return none

    inner_face = shrink(face, 3)
    class_map = surface.class_map(tables)
    far_below = person & (yy > bottom + 0.9 * height) & (class_map >= 0) & (class_map != HEAD)
    neck = surface.covered & tables.faces_of("neck")[surface.face_ids] & (np.abs(xx - middle) < 0.3 * height)
    beside = near & ~face & (yy < bottom - 0.3 * height) & ~forehead
    skin = _Histogram(picture.image[inner_face & (yy > top + 0.15 * height)])
    other = _Histogram(picture.image[far_below]) if far_below.sum() > 500 else None
    seeds = above & ~grow(face, 2)
    hair = _Histogram(np.concatenate([picture.image[seeds], picture.image[seeds], picture.image[beside]]))
    if _same_color(picture.image[seeds], picture.image[inner_face & (yy < top + 0.4 * height)]):
        return none

    colors = picture.image[near]
    p_hair, p_skin = hair(colors), skin(colors)
    p_other = other(colors) if other is not None else np.zeros_like(p_skin)
    # How likely hair is at a place, before its colour is known.
    place = np.where(beside | above, 0.75, 0.35)
    place = np.where(yy > bottom, 0.4 * np.exp(-np.maximum(yy - bottom, 0) / (0.9 * height)), place)
    place = np.where(forehead, 0.4, place)[near]
    likely = place * p_hair
    prior = np.zeros(face.shape, np.float32)
    prior[near] = likely / np.maximum(likely + (1 - place) * np.maximum(p_skin, p_other), 1e-9)
    prior = blur(prior, 1.0)

    yes = seeds & (prior > 0.3)
    known = yes | inner_face | ~near | (neck & (prior < 0.5))
    soft = closed_form_matte(picture.image, known, yes, prior, prior_weight=2e-2, epsilon=1e-5)
    out = ndimage.binary_opening((soft > 0.5) & person, np.ones((3, 3)))
    labels, _ = ndimage.label(out, structure=np.ones((3, 3)))
    kept = np.unique(labels[seeds & out])
    return np.isin(labels, kept[kept > 0])


class _Histogram:
    """A smoothed colour histogram, evaluated as a density."""

    def __init__(self, colors: np.ndarray):
        index = np.clip((colors * _BINS).astype(int), 0, _BINS - 1)
        flat = np.ravel_multi_index(index.T, (_BINS,) * 3)
        counts = np.bincount(flat, minlength=_BINS**3).reshape((_BINS,) * 3).astype(np.float32)
        smooth = ndimage.gaussian_filter(counts, 0.9) + 0.3 * ndimage.gaussian_filter(counts, 2.0)
        self.density = smooth / max(smooth.sum(), 1e-9) + 1e-6

    def __call__(self, colors: np.ndarray) -> np.ndarray:
        index = np.clip((colors * _BINS).astype(int), 0, _BINS - 1)
        return self.density[index[:, 0], index[:, 1], index[:, 2]]


def _same_color(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two sets of pixels have about the same colour, brightness apart."""
    if len(first) < 20 or len(second) < 20:
        return False
    a, b = np.median(first, 0), np.median(second, 0)
    brightness = np.clip(a.sum() / max(b.sum(), 1e-6), 0, 10)
    hue = np.abs(a / max(a.sum(), 1e-6) - b / max(b.sum(), 1e-6)).sum()
    return 0.75 < brightness < 1.35 and hue < 0.045
