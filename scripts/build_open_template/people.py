"""Seeded samples of people: phenotype sliders and detail sliders to offsets of the base mesh.

A phenotype target's coefficient is the product of the coefficients of its factors ("female" x "young" x
"maxmuscle" x ...), each piecewise linear between its anchors; a detail slider in [-1, 1] uses its "incr" or
its "decr" target.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass

import numpy as np

from scripts.build_open_template.source import Wheel

RACES = ("african", "asian", "caucasian")
FACTORS = {
    "gender": (("male", 0.0), ("female", 1.0)),
    # The youngest person sampled is half way between "child" (1/3) and "young" (2/3).
    "age": (("child", 1 / 3), ("young", 2 / 3), ("old", 1.0)),
    "muscle": (("minmuscle", 0.0), ("averagemuscle", 0.5), ("maxmuscle", 1.0)),
    "weight": (("minweight", 0.0), ("averageweight", 0.5), ("maxweight", 1.0)),
    "height": (("minheight", 0.0), ("maxheight", 1.0)),
    "proportions": (("idealproportions", 0.0), ("uncommonproportions", 1.0)),
    "cupsize": (("mincup", 0.0), ("averagecup", 0.5), ("maxcup", 1.0)),
    "firmness": (("minfirmness", 0.0), ("averagefirmness", 0.5), ("maxfirmness", 1.0)),
}
FACE_CATEGORIES = {"head", "forehead", "eyebrows", "eyes", "ears", "nose", "mouth", "cheek", "chin"}
LEFT_OUT = {"genitals", "feet"}
SIDEWAYS = {
    "head-trans-in-out",
    "neck-trans-in-out",
    "torso-trans-in-out",
    "hip-trans-in-out",
    "nose-trans-in-out",
    "mouth-trans-in-out",
    "head-angle-in-out",
}
"""Sliders that push a part to one side; real people need little of them."""
BODY_DETAIL, FACE_DETAIL, ASYMMETRY = 0.25, 0.30, 0.05
"""Standard deviations of the detail sliders, and of the difference between left and right."""


@dataclass(frozen=True)
class Targets:
    """Offsets (K, V_all, 3) and how their coefficients follow from sliders.

    ``phenotype`` holds the factor names of the first targets; ``details`` is (category, slider, incr row,
    decr row).
    """

    offsets: np.ndarray
    phenotype: tuple[tuple[str, ...], ...]
    details: tuple[tuple[str, str, int, int], ...]


def read_targets(wheel: Wheel, count: int) -> Targets:
    """All phenotype targets from child to old, and all detail targets."""
    values = {key: [name for name, _ in anchors] for key, anchors in FACTORS.items()}
    base = [values[k] for k in ("gender", "age", "muscle", "weight")]
    folder = "mpfb2/targets/macrodetails"
    files: list[tuple[tuple[str, ...], str]] = []
    for names in itertools.product(*base):
        files.append((names, f"{folder}/universal-{'-'.join(names)}.target.gz"))
        for kind in ("height", "proportions"):
            for last in values[kind]:
                files.append(((*names, last), f"{folder}/{kind}/{'-'.join(names)}-{last}.target.gz"))
    for names in itertools.product(RACES, values["gender"], values["age"]):
        files.append((names, f"{folder}/{'-'.join(names)}.target.gz"))
    for names in itertools.product(*base[1:], values["cupsize"], values["firmness"]):
        name = f"mpfb2/targets/breast/female-{'-'.join(names)}.target.gz"
        if wheel.has(name):
            files.append((("female", *names), name))
    offsets = [wheel.target(name, count) for _, name in files]

    details = []
    for category, entry in json.loads(wheel.read("mpfb2/targets/target.json")).items():
        if category in LEFT_OUT:
            continue
        for slider in entry["categories"]:
            for side in ("left", "right", "unsided"):
                pair = slider.get("opposites", {})
                incr, decr = pair.get(f"positive-{side}"), pair.get(f"negative-{side}")
                if incr and decr and "nipple" not in slider["name"]:
                    details.append((category, slider["name"], len(offsets), len(offsets) + 1))
                    offsets += [
                        wheel.target(f"mpfb2/targets/{category}/{n}.target.gz", count) for n in (incr, decr)
                    ]
    return Targets(np.stack(offsets), tuple(names for names, _ in files), tuple(details))


def sample_phenotypes(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Sliders of ``count`` people, teenagers to old; genders mostly clear, three ancestries in any
    mixture."""
    mixture = rng.dirichlet([0.6] * 3, count)
    return {
        "gender": rng.beta(0.35, 0.35, count),
        "age": rng.uniform(0.5, 1, count),
        "muscle": rng.normal(0.5, 0.2, count).clip(0, 1),
        "weight": rng.normal(0.5, 0.2, count).clip(0, 1),
        "height": rng.normal(0.5, 0.18, count).clip(0, 1),
        "proportions": rng.normal(0.6, 0.2, count).clip(0, 1),
        "cupsize": rng.normal(0.5, 0.2, count).clip(0, 1),
        "firmness": rng.normal(0.5, 0.2, count).clip(0, 1),
        **{race: mixture[:, i] for i, race in enumerate(RACES)},
    }


def adult() -> dict[str, np.ndarray]:
    """The middle of every slider, at the age "young"."""
    return {
        **{k: np.array([0.5]) for k in FACTORS},
        "age": np.array([2 / 3]),
        **{r: np.array([1 / 3]) for r in RACES},
    }


def coefficients(
    targets: Targets, sliders: dict[str, np.ndarray], face: bool | None, rng: np.random.Generator | None
) -> np.ndarray:
    """(N, K) coefficients of all targets.

    Args:
        sliders: Phenotypes, N of each.
        face: Draw the detail sliders of the face (True), of the rest of the body (False), or none (None).
        rng: Where the details are drawn from.
    """
    count = len(sliders["gender"])
    factor = {race: sliders[race] for race in RACES}
    for key, anchors in FACTORS.items():
        x = np.array([a for _, a in anchors])
        for i, (name, _) in enumerate(anchors):
            factor[name] = np.interp(sliders[key], x, np.eye(len(x))[i])
    out = np.zeros((count, len(targets.offsets)), np.float32)
    for row, names in enumerate(targets.phenotype):
        out[:, row] = np.prod([factor[name] for name in names], axis=0)
    if face is None:
        return out
    deviation = FACE_DETAIL if face else BODY_DETAIL
    shared: dict[tuple[str, str], np.ndarray] = {}
    sided = {
        key for key, group in itertools.groupby(targets.details, key=lambda d: d[:2]) if len(list(group)) > 1
    }
    for category, slider, incr, decr in targets.details:
        if (category in FACE_CATEGORIES) != face:
            continue
        key = (category, slider)
        if key not in shared:
            shared[key] = rng.normal(0, deviation, count)
        value = shared[key] + (rng.normal(0, ASYMMETRY, count) if key in sided else 0)
        value = (value * (0.2 if slider in SIDEWAYS else 1)).clip(-1, 1)
        out[:, incr], out[:, decr] = value.clip(min=0), (-value).clip(min=0)
    return out
