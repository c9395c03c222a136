"""Truth for measuring (and tuning) the tracker: renders with every parameter known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from guava.body import EHM, Identity, Pose, Template
from guava.body.controls import with_units
from guava.camera import Camera
from guava.synth.person import SyntheticPerson, sample_person
from guava.synth.pose import POSE_KINDS, sample_pose
from guava.synth.render import SyntheticView, frame_person, render_person, sample_background, sample_light

TUNING_SEEDS = range(0, 1_000_000)
"""First seeds of sets that anything may be tuned or trained on."""
TEST_SEEDS = range(5_000_000, 5_100_000)
"""First seeds of sets that reported figures come from. Never tune on them."""

HARD_UNITS = {
    "tongueOut": "the tongue stays behind the lips unless the jaw is open",
    "jawForward": "moves the chin along the line of sight",
    "cheekPuff": "moves smooth skin towards the camera; no edge or landmark shows it from the front",
}
"""Units that one frontal picture shows poorly or not at all, and why. ``unit_visibility`` measures it."""

_PROBES = ("", "blink", "", "smile", "", "", "neutral", "", "", "")


@dataclass(frozen=True)
class AccuracySample:
    """One render of an accuracy set.

    Attributes:
        seed: The person's and the picture's seed.
        person: Who was drawn.
        view: Picture and truth.
        kind: Of ``POSE_KINDS``.
        framing: "upper_body" or "head".
        probe: "blink" (both lids exactly 1), "smile" (both corners exactly 0.8), "neutral" (all 0), each with
            nothing else; or "" (a drawn expression).
    """

    seed: int
    person: SyntheticPerson
    view: SyntheticView
    kind: str
    framing: str
    probe: str


def accuracy_set(
    seed: int, count: int, template: Template, *, size: int = 512, people: int | None = None
) -> Iterator[AccuracySample]:
    """``count`` renders of different people; the same arguments give the same pictures.

    Each drawn expression has a few units above 0.3 and most at 0. One picture in ten is the probe "blink",
    one "smile", one "neutral".

    Args:
        seed: First person's seed, from ``TUNING_SEEDS`` or ``TEST_SEEDS``; sample i uses ``seed + i``.
        count: Number of pictures.
        template: The open template.
        size: Side of the square pictures.
        people: Number of distinct people, taken in turn; ``count`` if None.
    """
    known: dict[int, SyntheticPerson] = {}
    for i in range(count):
        whom = seed + i % (people or count)
        person = known.get(whom) or sample_person(whom, template)
        if people:
            known[whom] = person
        yield accuracy_sample(seed + i, template, size=size, index=i, person=person)


def accuracy_sample(
    seed: int,
    template: Template,
    *,
    size: int = 512,
    index: int = 0,
    person: SyntheticPerson | None = None,
) -> AccuracySample:
    """One render; ``index`` decides kind, framing and probe; ``person`` is drawn from ``seed`` if None."""
    person = person or sample_person(seed, template)
    rng = np.random.default_rng([seed, 303])
    kind = POSE_KINDS[index % 4]
    framing = "head" if kind == "head" else "upper_body"
    probe = _PROBES[index % len(_PROBES)]
    pose = sample_pose(rng, template, kind)
    if probe:
        level, stem = {"blink": (1.0, "eyeBlink"), "smile": (0.8, "mouthSmile"), "neutral": (0.0, "")}[probe]
        pose = with_units(pose, template, {stem + side: level for side in ("Left", "Right") if stem})
    camera = Camera.frontal(size)
    pose = frame_person(rng, person, pose, template, kind=framing, camera=camera)
    background = sample_background(rng, size, size)
    view = render_person(person, pose, camera, template, background=background, light=sample_light(rng))
    return AccuracySample(seed, person, view, kind, framing, probe)


def unit_visibility(template: Template) -> dict[str, tuple[float, float]]:
    """What a frontal picture can show of every expression unit at full strength.

    Returns:
        By unit name: the motion across the line of sight and along it, in millimetres on the mean face; mean
        of the ten MediaPipe landmarks that move most. "mouthClose" and "tongueOut" start from an open jaw.
    """
    embedding = template.landmarks["mediapipe478"]
    trusted = embedding.weights > 0
    ids, corners = template.faces[embedding.faces[trusted]].unique(return_inverse=True)
    model = EHM(template, ids).requires_grad_(False)
    weights = embedding.barycentrics[trusted][..., None]

    def marks(expression: torch.Tensor) -> torch.Tensor:
        pose = replace(Pose.rest(template, len(expression)), expression=expression)
        return (model(Identity.neutral(template), pose).vertices[:, corners] * weights).sum(2)

    count = len(template.expression_names)
    base = torch.zeros(count, count)
    for name in {"mouthClose", "tongueOut"} & set(template.expression_names):
        base[template.unit(name), template.unit("jawOpen")] = 1.0
    delta = (marks(base + torch.eye(count)) - marks(base)).abs() * 1000
    out = {}
    for name, moved in zip(template.expression_names, delta, strict=True):
        most = moved.norm(dim=-1).topk(10).indices
        out[name] = (float(moved[most, :2].norm(dim=-1).mean()), float(moved[most, 2].mean()))
    return out
