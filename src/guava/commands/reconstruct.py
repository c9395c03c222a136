"""``guava reconstruct``: a photo becomes an avatar file."""

from __future__ import annotations

import shlex
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from guava.commands.console import check_output, say, settings_of, stage_bar, warn
from guava.errors import GuavaError, InputError

if TYPE_CHECKING:
    from guava.avatar import Avatar
    from guava.body import Template
    from guava.model.generate import NetworkSettings


@dataclass(frozen=True)
class Config:
    """Make an avatar from one photo of a person.

    The face must be in view; the more of the upper body, the better. What the photo does not show (the
    back, hidden hands) is inferred, and marked as such in the file. Example:

        guava reconstruct me.jpg -o me.guava
    """

    photo: tyro.conf.Positional[Path]
    """JPEG, PNG, WebP, TIFF or GIF."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The avatar file to write, for instance me.guava."""
    model: str = "baseline"
    """How the avatar is made. "baseline" needs no weights: it projects the photo onto the fitted body,
    bends the surface to the silhouette and adds a shell of pixels for hair and cloth. "official", "paper"
    and "lite" are learned networks and need weights (see guava weights)."""
    weights: str | None = None
    """Name or file of the network's weights; without it, those named like the model. "random:SEED" is for
    developers: it shows that the program runs, and nothing else."""
    template: str | None = None
    """Body template to fit: that of the weights, or "open"."""
    device: str = "cpu"
    """Where the network runs: cpu or cuda."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the network."""
    ablate: tuple[Literal["refiner", "inverse-mapping", "uv-gaussians", "ehm"], ...] = ()
    """Parts of the network to leave out, as in Table 4 of the paper. Weights that were trained with a part
    do worse without it than such that never had it."""
    noise: int | None = None
    """Seed of the random noise that the authors' networks draw at every call. Without it, and unlike there,
    there is none, so that equal photos give equal avatars."""
    matting: Literal["closed_form", "tracker"] = "closed_form"
    """What cuts the person out for a network: the photo's own edges ("closed_form"), or the detector's
    mask as it is."""
    detector: Literal["mediapipe", "simcc"] = "mediapipe"
    """What finds face, body and hands. "simcc" needs --detector-model."""
    detector_model: Path | None = None
    """A COCO-WholeBody SimCC ONNX file of yours (DWPose, RTMW), for --detector simcc."""
    bake: bool = False
    """Make the avatar plain RGB Gaussians that need no network to be shown, and measure what that loses (as
    guava bake does). Interrupted, it leaves the avatar of the network."""
    consent: str = "not stated"
    """What the pictured person has agreed to, in your words; stored in the file."""
    profile: bool = False
    """Print how long each stage took."""


def run(config: Config) -> None:
    """Make and save the avatar."""
    from guava.avatar import save_avatar
    from guava.model.stages import seconds_table

    check_output(config.output)
    if config.bake:
        check_bake(config)
    avatar, seconds = make_avatar(config)
    start = perf_counter()
    save_avatar(avatar, config.output)
    saved = perf_counter()
    seconds = {**seconds, "save": saved - start}
    if config.bake:
        avatar = bake_saved(avatar, config)
        seconds["bake"] = perf_counter() - saved
    warn(avatar.provenance.notes)
    if config.profile:
        print(seconds_table(seconds), file=sys.stderr)
    seen = 100 * avatar.provenance.observed_fraction
    say(f"{config.output}: {len(avatar.gaussians):,} Gaussians, {seen:.0f} % of them seen in the photo")


def check_bake(config: Config) -> None:
    """Refuse ``--bake`` where there will be nothing to bake, before the work begins.

    Raises:
        InputError: The model has no refiner, or it is left out.
    """
    if config.model == "baseline" or "refiner" in config.ablate:
        why = "has none" if config.model == "baseline" else "is left out (--ablate refiner)"
        raise InputError(
            f"--bake turns a refiner's pictures into plain Gaussians; that of '{config.model}' {why}.",
            "Leave out --bake: the avatar is plain RGB already.",
        )


def bake_saved(avatar: Avatar, config: Config) -> Avatar:
    """Bake an avatar that has been saved, and put the result in its place."""
    from guava.avatar import save_avatar
    from guava.body import template_for
    from guava.commands.bake import bake_with_bar, print_report
    from guava.model.generate import RANDOM

    # Random weights have no file: the avatar's reference says all of them.
    weights = None if config.weights is None or config.weights.startswith(RANDOM) else config.weights
    try:
        template = template_for(avatar.template_hash, avatar.template_name)
        baked, report = bake_with_bar(avatar, template, weights, config.device)
    except (KeyboardInterrupt, GuavaError, MemoryError):
        path = shlex.quote(str(config.output))
        named = "" if weights is None else f" --weights {shlex.quote(weights)}"
        warn([f"'{config.output}' holds the avatar as the network made it; baking it is what is left to do: "
              f"guava bake {path} -o {path}{named}"])  # fmt: skip
        raise
    save_avatar(baked, config.output)
    print_report(report)
    return baked


def make_avatar(config: Config) -> tuple[Avatar, dict[str, float]]:
    """Photo -> avatar, with a progress bar; also the seconds of every stage.

    Raises:
        GuavaError: The photo cannot be used, nobody is in it, or weights, a template or a package is missing.
    """
    from guava.model import generator_stages, reconstruct
    from guava.model.stages import Stages
    from guava.photo import load_photo
    from guava.tracking import TrackingConfig, track_image

    start = perf_counter()
    template, settings = choose_model(config)
    chosen = perf_counter()
    photo = load_photo(config.photo)
    names = generator_stages(config.model)
    steps = 2 + len(names)
    with stage_bar("reconstruct") as progress:
        progress("load", 0, steps)
        opened = perf_counter()
        detector = open_detector(config.detector, config.detector_model)
        loaded = perf_counter()
        progress("track", 1, steps)
        tracked = track_image(
            photo, config=TrackingConfig(detector=config.detector), template=template, detector=detector
        )
        done = perf_counter()
        stages = Stages(names, lambda stage, number, _total: progress(stage, 2 + number, steps))
        avatar = reconstruct(
            photo, tracked, model=config.model, template=template, config=settings, stages=stages
        )
    provenance = avatar.provenance
    avatar = replace(
        avatar,
        provenance=replace(
            provenance,
            settings={**provenance.settings, "command": settings_of(config)},
            subject_consent=config.consent,
            notes=tuple(dict.fromkeys((*photo.notes, *tracked.quality.notes, *provenance.notes))),
        ),
    )
    before = {
        "model": chosen - start,
        "photo": opened - chosen,
        "detector": loaded - opened,
        "track": done - loaded,
    }
    return avatar, {**before, **stages.seconds}


def choose_model(config: Config) -> tuple[Template, NetworkSettings | None]:
    """The template to track with, and a network's settings with its weights loaded; None for the baseline.

    Raises:
        InputError: There is no such model, or the baseline was given a network's settings.
        GuavaError: Weights or template are missing, or do not belong together.
    """
    from guava.body import load_template
    from guava.model import GENERATORS

    if config.model not in GENERATORS:
        names = ", ".join(sorted(GENERATORS))
        raise InputError(f"There is no model '{config.model}'.", f"Choose one of: {names}.")
    if config.model == "baseline":
        defaults = Config(config.photo, config.output)
        names = ("weights", "ablate", "noise", "device", "precision", "matting")
        given = [f"--{name}" for name in names if getattr(config, name) != getattr(defaults, name)]
        if given:
            raise InputError(
                f"The model 'baseline' learns nothing and runs on the CPU: {', '.join(given)} "
                f"{'is' if len(given) == 1 else 'are'} for networks.",
                "Leave them out, or name a network: --model official.",
            )
        return load_template(config.template or "open"), None
    from guava.model.generate import RANDOM, NetworkSettings, prepare

    settings = NetworkSettings(
        weights=config.weights,
        device=config.device,
        precision=config.precision,
        noise=config.noise,
        matting=config.matting,
        ablate=config.ablate,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Random weights")
        settings, template = prepare(config.model, settings, config.template)
    if settings.weights.name.startswith(RANDOM):
        warn(["RANDOM WEIGHTS, as asked: the avatar will show that the program runs, and nothing else."])
    return template, settings


def open_detector(name: str, model: Path | None):
    """The detector that the user asked for.

    Raises:
        InputError: "simcc" without a model, or a model for a detector that brings its own.
        MissingDependencyError: Its package is not installed.
    """
    from guava.tracking.detectors import create_detector

    if name == "simcc":
        if model is None:
            raise InputError(
                "The detector 'simcc' runs a model file of yours.",
                "Name it: --detector-model dw-ll_ucoco_384.onnx",
            )
        return create_detector(name, model=model)
    if model is not None:
        raise InputError(f"The detector '{name}' brings its own models.", "Leave out --detector-model.")
    return create_detector(name)
