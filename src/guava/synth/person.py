"""Made-up people."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from guava.body import Identity, Template
from guava.synth.appearance import Appearance, sample_appearance, sample_cloth
from guava.synth.outfit import Garment, build_garment, sample_garment_style
from guava.synth.surface import surface_of


@dataclass(frozen=True)
class SyntheticPerson:
    """Somebody who does not exist.

    Attributes:
        seed: What they were drawn from.
        template_hash: Of the template that ``identity`` belongs to.
        identity: B = 1.
        appearance: Colours and the face's paint.
        garment: The top they wear, as a layer over the body; None leaves only painted trousers.
        hair: Locks off the scalp; None where the hair is only painted on it.
    """

    seed: int
    template_hash: str
    identity: Identity
    appearance: Appearance
    garment: Garment | None
    hair: None = None


def sample_identity(rng: np.random.Generator, template: Template) -> Identity:
    """A body and a head from the template's shape spaces (unit variance, clipped at two deviations)."""
    neutral = Identity.neutral(template)

    def draw(count: int, spread: float) -> torch.Tensor:
        return torch.from_numpy(np.clip(rng.normal(0, spread, (1, count)), -2 * spread, 2 * spread)).float()

    return replace(
        neutral, body_shape=draw(template.body.num_shape, 0.6), head_shape=draw(template.head.num_shape, 0.6)
    )


def sample_person(seed: int, template: Template) -> SyntheticPerson:
    """Draw a person: body, face, colours and a close-fitting top. The same seed gives the same person.

    Args:
        seed: Any non-negative integer.
        template: The open template.
    """
    rng = np.random.default_rng([seed, 101])
    surface = surface_of(template)
    identity = sample_identity(rng, template)
    appearance = sample_appearance(rng, surface, feminine=float(rng.random()))
    garment = build_garment(surface, sample_garment_style(rng))
    return SyntheticPerson(seed, template.hash, identity, appearance, garment)


def dress(person: SyntheticPerson, template: Template, *, seed: int | None = None) -> SyntheticPerson:
    """The same person in loose clothes that leave the body by centimetres.

    Args:
        person: Whom to dress.
        template: Theirs.
        seed: Of the outfit; the person's own if None.
    """
    rng = np.random.default_rng([person.seed if seed is None else seed, 202])
    surface = surface_of(template)
    garment = build_garment(surface, sample_garment_style(rng, loose=True))
    shirt = sample_cloth(rng, person.appearance.skin)
    return replace(person, garment=garment, appearance=replace(person.appearance, shirt=shirt))
