"""What is saved: Gaussians, whose they are, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from guava.avatar.gaussians import Gaussians
from guava.body import Identity, Pose
from guava.camera import Camera


@dataclass(frozen=True)
class SourceView:
    """How the source photo saw the person.

    Attributes:
        pose: B = 1, the photo's own pose.
        camera: Camera of the square crop that the avatar was made from.
        crop_from_image: (3, 3) tensor, photo pixels -> crop pixels (EXIF orientation applied).
        width, height: The photo's size in pixels, EXIF orientation applied.
        sha256: Hash of the photo file's bytes; "" if it was not a file.
        name: The photo's file name, without its folder.
        hands_seen: Left and right: whether the detector found that hand; the pose of one that it did not
            is a guess.
    """

    pose: Pose
    camera: Camera
    crop_from_image: Tensor
    width: int
    height: int
    sha256: str
    name: str
    hands_seen: tuple[bool, bool] = (True, True)


@dataclass(frozen=True)
class BakeReport:
    """What baking lost (``guava.model.bake``): the plain RGB Gaussians against the refined pictures, in poses
    and views that were not fitted.

    PSNR is in dB over whole pictures, whose free area counts too, peak 1; rows are poses, columns views.

    Attributes:
        weights, hash: The refiner that was baked, see :class:`RefinerReference`.
        size: Side of the pictures in pixels, the refiner's own.
        poses: What the poses were.
        views: Degrees (yaw, pitch) of the views.
        psnr, psnr_on_white: Of the baked avatar, over black and over white.
        coarse_psnr, coarse_psnr_on_white: Of the avatar's coarse RGB before baking, for comparison.
        settings: How it was fitted.
    """

    weights: str
    hash: str
    size: int
    poses: tuple[str, ...]
    views: tuple[tuple[float, float], ...]
    psnr: tuple[tuple[float, ...], ...]
    psnr_on_white: tuple[tuple[float, ...], ...]
    coarse_psnr: tuple[tuple[float, ...], ...]
    coarse_psnr_on_white: tuple[tuple[float, ...], ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean of ``psnr``."""
        return _mean(self.psnr)

    @property
    def worst(self) -> float:
        """Least of ``psnr``."""
        return min(min(row) for row in self.psnr)

    @property
    def gain(self) -> float:
        """Mean dB that the baked pictures are nearer to the refined ones than the coarse ones were."""
        return self.mean - _mean(self.coarse_psnr)

    def sentence(self) -> str:
        """For people."""
        return (
            f"Baked from the refiner of '{self.weights}' ({self.hash[:12]}): {self.mean:.1f} dB from its "
            f"pictures in {sum(map(len, self.psnr))} unfitted views, {self.worst:.1f} dB at worst; the "
            f"coarse RGB was at {self.mean - self.gain:.1f} dB."
        )


def _mean(table: tuple[tuple[float, ...], ...]) -> float:
    values = [value for row in table for value in row]
    return sum(values) / len(values)


@dataclass(frozen=True)
class Provenance:
    """What an avatar file says of its own making.

    Attributes:
        generator: "baseline", later "lite", "official", ...
        settings: The generator's configuration.
        software: Name and version of the program.
        created: UTC time, ISO 8601.
        observed_fraction: Share of the (opacity-weighted) Gaussians whose colour was seen in the photo.
        subject_consent: What the maker declared about the pictured person's consent; "not stated" by
            default.
        synthetic_media: Always True: renders of this file are synthetic.
        notes: Warnings from tracking and reconstruction, in sentences.
        baked: What was lost when the avatar was baked to plain RGB; None if it was not.
    """

    generator: str
    settings: dict
    software: str
    created: str
    observed_fraction: float
    subject_consent: str = "not stated"
    synthetic_media: bool = True
    notes: tuple[str, ...] = field(default=())
    baked: BakeReport | None = None


@dataclass(frozen=True)
class RefinerReference:
    """The refiner that an avatar's latent channels were made for (Sec. 3.3). It is not in the avatar's file.

    Attributes:
        weights: Name of the weights that it belongs to, see :mod:`guava.model.weights`.
        hash: SHA-256 of those weights; others of the same name would show somebody else.
    """

    weights: str
    hash: str

    def __str__(self) -> str:
        return f"{self.weights} ({self.hash[:12]})"


@dataclass(frozen=True)
class Avatar:
    """A canonical avatar (Sec. 3.2).

    Attributes:
        gaussians: The record.
        identity: B = 1, shape and offsets of the person on the template.
        template_hash: The template that all indices refer to.
        source: The photo's own view.
        provenance: Where it came from.
        refiner: The refiner that makes the picture of all channels, or None when the first three channels
            are the picture.
        sigma_rule: How triangle sizes (sigma of Eq. 3) were measured, see
            ``guava.avatar.posing.SigmaRule``.
        splat_conventions: Which splatter's constants the Gaussians were made for, a name in
            ``guava.rendering.CONVENTIONS``: "gsplat", or "3dgs" (the authors' rasteriser).
        template_name: The template's name, for people and to find it sooner; "" in older files.
    """

    gaussians: Gaussians
    identity: Identity
    template_hash: str
    source: SourceView
    provenance: Provenance
    refiner: RefinerReference | None = None
    sigma_rule: str = "mean_edge"
    splat_conventions: str = "gsplat"
    template_name: str = ""
