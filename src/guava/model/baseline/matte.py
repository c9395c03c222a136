"""The person cut out of the photo: closed-form matte guided by the fitted mesh, and foreground colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from guava.model.baseline.images import blur, grow, shrink
from guava.model.baseline.matting import closed_form_matte, foreground_colors
from guava.photo import resize_area, warp_affine

PRIOR_WEIGHT = 1e-4
"""Pull of the matte towards the segmentation, beside the matting Laplacian."""


@dataclass(frozen=True)
class SourcePicture:
    """The photo in the tracker's square crop.

    Attributes:
        image: (S, S, 3) float32 in [0, 1] at the working size.
        inside: (S, S) bool: the pixels that lie inside the photo.
        alpha: (S, S) float32 person matte; 0 outside the photo.
        foreground: (S, S, 3) float32, the person's own colours with the background taken out of mixed pixels.
        fine_image, fine_foreground: (K, K, 3) the same at the photo's own resolution, K = S or 2 S.
        fine_alpha: (K, K).
        notes: What was decided about the picture, in sentences.
    """

    image: np.ndarray
    inside: np.ndarray
    alpha: np.ndarray
    foreground: np.ndarray
    fine_image: np.ndarray
    fine_foreground: np.ndarray
    fine_alpha: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """S."""
        return self.image.shape[0]

    @property
    def person(self) -> np.ndarray:
        """(S, S) bool: more person than background."""
        return (self.alpha > 0.5) & self.inside


def cut_out(
    photo: np.ndarray,
    crop_from_image: np.ndarray,
    size: int,
    fine_size: int,
    person_probability: np.ndarray,
    covered: np.ndarray,
    hairy: np.ndarray,
    given_alpha: np.ndarray | None = None,
) -> SourcePicture:
    """Crop the photo and matte the person.

    The matte is solved at the working size and carried to the photo's resolution, where the colours of mixed
    pixels are estimated.

    Args:
        photo: (H, W, 3) uint8 RGB.
        crop_from_image: (3, 3) affine, photo pixels -> pixels of a ``size`` x ``size`` crop.
        size: Working size S.
        fine_size: Largest size for the colours; used only where the photo has the pixels.
        person_probability: (S, S) float in [0, 1] of the detector.
        covered: (S, S) bool: pixels that the fitted mesh covers.
        hairy: (S, S) bool: pixels near the head, where the matte may stay soft.
        given_alpha: (H, W) uint8 transparency that came with the photo; taken as the matte if it clears most
            of the background.
    """
    notes: tuple[str, ...] = ()
    height, width = photo.shape[:2]
    image = _crop(photo, crop_from_image, size)
    inside = warp_affine(np.ones((height, width), np.float32), crop_from_image, (size, size)) > 0.5
    crop_pixels_per_photo_pixel = float(np.sqrt(abs(np.linalg.det(crop_from_image[:2, :2]))))
    fine = fine_size if size > 1.2 * size * crop_pixels_per_photo_pixel else size
    if given_alpha is not None and given_alpha.min() < 255:
        given = warp_affine(given_alpha.astype(np.float32) / 255, crop_from_image, (size, size)) * inside
        # Rounded corners or a frame are transparent, too, without cutting anybody out.
        background = inside & (person_probability < 0.1) & ~grow(covered, 14 * size / 512)
        cut_out_already = not background.any() or given[background].mean() < 0.5
    else:
        given, cut_out_already = np.ones((size, size), np.float32), False
    if cut_out_already:
        alpha = given
    else:
        alpha = given * person_matte(image, inside, person_probability, covered, hairy)
        if given[inside].min() < 0.5:
            notes = ("The picture's transparency does not cut the person out; it was matted like a photo.",)
    if fine == size:
        fine_image, fine_alpha = image, alpha
    else:
        scale = np.diag([fine / size, fine / size, 1.0])
        fine_image = _crop(photo, scale @ crop_from_image, fine)
        fine_alpha = resize_area(alpha, (fine, fine))
    estimate = foreground_colors(fine_image, fine_alpha)
    fine_foreground = np.where(fine_alpha[..., None] > 0.98, fine_image, estimate)
    return SourcePicture(
        image,
        inside,
        alpha,
        resize_area(fine_foreground, (size, size)),
        fine_image,
        fine_foreground,
        fine_alpha,
        notes,
    )


def _crop(photo: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    return warp_affine(photo, matrix, (size, size), border="edge").astype(np.float32) / 255


def person_matte(
    image: np.ndarray,
    inside: np.ndarray,
    person_probability: np.ndarray,
    covered: np.ndarray,
    hairy: np.ndarray,
) -> np.ndarray:
    """Closed-form matte (Levin et al. 2008) between what is surely person and what is surely background.

    Sure person is where the eroded mesh and the eroded segmentation agree; sure background is far from both.
    The segmentation alone misses sleeves and held hair, the mesh alone misses everything loose.

    Args:
        image: (S, S, 3) in [0, 1].
        inside: (S, S) bool, inside the photo.
        person_probability: (S, S) in [0, 1].
        covered: (S, S) bool, under the fitted mesh.
        hairy: (S, S) bool, where hair may be: there the matte stays soft.

    Returns:
        (S, S) float32 in [0, 1].
    """
    unit = image.shape[0] / 512
    segmented = person_probability > 0.5
    confident = person_probability > 0.85
    sure = (shrink(covered, 4 * unit) & shrink(segmented, 2 * unit)) | (
        shrink(confident, 12 * unit) & segmented
    )
    # Deep inside the mesh is person whatever the segmentation says (it may drop a whole top).
    sure |= shrink(covered & segmented, 9 * unit) | shrink(covered, 16 * unit)
    possible = grow(segmented, 14 * unit) | grow(covered, 8 * unit)
    possible &= grow(person_probability > 0.1, 10 * unit) | grow(covered, 4 * unit)
    sure &= inside
    outside = ~possible | ~inside
    unknown = ~sure & ~outside
    alpha = sure.astype(np.float64)
    if unknown.any() and sure.any():
        # A weak pull to the segmentation settles pixels that colour alone leaves open.
        prior = np.maximum(person_probability, blur(shrink(covered, 3 * unit).astype(np.float32), 3 * unit))
        alpha = closed_form_matte(image, ~unknown, alpha, prior, PRIOR_WEIGHT, epsilon=1e-6)
    # Closed form rarely says exactly 0 or 1, which leaves a haze round the person; only hair is really soft.
    soft = np.clip(blur(hairy.astype(np.float32), 6 * unit), 0, 1)
    low = 0.28 - 0.16 * soft
    alpha = np.clip((alpha - low) / (1 - 2 * low), 0, 1)
    return _one_person(alpha * inside, sure).astype(np.float32)


def _one_person(alpha: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Drop specks that no sure pixel belongs to."""
    labels, count = ndimage.label(alpha > 0.1, structure=np.ones((3, 3)))
    if count <= 1:
        return alpha
    keep = np.zeros(count + 1, bool)
    keep[np.unique(labels[sure])] = True
    keep[0] = True
    return alpha * keep[labels]
