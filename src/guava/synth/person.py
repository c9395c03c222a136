"""Made-up people."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from guava.body import EHM, Identity, Pose, Template
from guava.rendering.mesh import vertex_normals
from guava.synth.appearance import Appearance, sample_appearance, sample_cloth
from guava.synth.hair import HAIR_LENGTHS, Hair, grow_hair
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
    hair: Hair | None = None


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
    feminine = float(rng.random())
    appearance = sample_appearance(rng, surface, feminine=feminine)
    garment = build_garment(surface, sample_garment_style(rng))
    hair = None
    if appearance.cover and rng.random() < 0.8:
        odds = np.array([1.15 - feminine, 0.7 * feminine, feminine, 0.2, 0.4 * feminine])
        hair = _grow(
            rng, template, identity, appearance, str(rng.choice(HAIR_LENGTHS, p=odds / odds.sum())), 0.012
        )
    return SyntheticPerson(seed, template.hash, identity, appearance, garment, hair)


def _grow(rng, template, identity, appearance, style, clearance) -> Hair:
    surface = surface_of(template)
    with torch.no_grad():
        rest = EHM(template).rest(identity, Pose.rest(template))[0][0]
    normals = vertex_normals(rest, template.faces).numpy()
    return grow_hair(rng, surface, rest.numpy(), normals, appearance.hairline, style, clearance)


def dress(
    person: SyntheticPerson, template: Template, *, seed: int | None = None, hair: str | None = None
) -> SyntheticPerson:
    """The same person with a full head of hair and in loose clothes that leave the body by centimetres.

    Args:
        person: Whom to dress.
        template: Theirs.
        seed: Of the outfit; the person's own if None.
        hair: One of ``HAIR_LENGTHS``; drawn if None.
    """
    rng = np.random.default_rng([person.seed if seed is None else seed, 202])
    surface = surface_of(template)
    garment = build_garment(surface, sample_garment_style(rng, loose=True))
    shirt = sample_cloth(rng, person.appearance.skin)
    appearance = replace(person.appearance, shirt=shirt, cover=1.0)
    style = hair or str(rng.choice(HAIR_LENGTHS))
    locks = _grow(rng, template, person.identity, appearance, style, 0.03)
    return replace(person, garment=garment, appearance=appearance, hair=locks)
