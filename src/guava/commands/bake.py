"""``guava bake``: a network's avatar becomes plain RGB Gaussians."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from guava.commands.console import check_output, say, settings_of, stage_bar

if TYPE_CHECKING:
    from guava.avatar import Avatar, BakeReport
    from guava.body import Template
    from guava.model.bake import Baked


@dataclass(frozen=True)
class Config:
    """Make an avatar that needs no network: plain RGB Gaussians, as viewers and browsers take them.

    What a network's avatar shows goes through its refiner. Baking fits Gaussians without latents to the
    refined pictures, in 20 poses and views, and measures in 15 others what that loses. The loss is printed,
    and kept in the file. Example:

        guava bake me.guava -o me-baked.guava
    """

    avatar: tyro.conf.Positional[Path]
    """An avatar file of a network, from guava reconstruct."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The avatar file to write; it may be the same one, which then is replaced when all is done."""
    weights: str | None = None
    """Name or file of the weights that the avatar was made with, if they are not installed by that name."""
    template: str | None = None
    """The body template that the avatar must belong to. Files find theirs by themselves; this only checks
    it."""
    steps: int = 0
    """Steps of fitting opacities, sizes and places too, for instance 200. 0 fits colours alone, which takes a
    fraction of the time."""
    device: str = "cpu"
    """Where everything runs: cpu or cuda."""


def run(config: Config) -> None:
    """Bake and save."""
    from guava.avatar import open_avatar, save_avatar
    from guava.errors import InputError

    check_output(config.output)
    if not 0 <= config.steps <= 100_000:
        raise InputError(f"--steps {config.steps} is outside 0 to 100,000.", "Leave it out, or try 200.")
    avatar, template = open_avatar(config.avatar, config.template)
    baked, report = bake_with_bar(avatar, template, config.weights, config.device, steps=config.steps)
    stated = baked.provenance
    settings = {**stated.settings, "bake_command": settings_of(config)}
    baked = replace(baked, provenance=replace(stated, settings=settings))
    save_avatar(baked, config.output)
    print_report(report)
    say(f"{config.output}: {len(baked.gaussians):,} plain Gaussians; no weights are needed to show them")


def bake_with_bar(
    avatar: Avatar, template: Template, weights: str | None, device: str, *, steps: int | None = None
) -> Baked:
    """Bake an avatar, with a progress bar.

    Args:
        avatar: With a refiner.
        template: The avatar's.
        weights: Name or file of the refiner's weights; those that the avatar names without it.
        device: "cpu" or "cuda".
        steps: See :class:`Config`.

    Raises:
        GuavaError: The avatar has nothing to bake, the weights are not there or others, or there is no such
            device.
    """
    from guava.avatar.animate import find_device
    from guava.model.bake import BakeConfig, bake, check_bakeable
    from guava.model.generate import load_refiner

    check_bakeable(avatar)
    where = find_device(device)
    refiner = load_refiner(avatar, weights).to(where)
    settings = BakeConfig() if steps is None else BakeConfig(steps=steps)
    with stage_bar("bake", eta=True) as progress:
        return bake(avatar, template, refiner, settings, device=where, progress=progress)


def print_report(report: BakeReport) -> None:
    """The table of what was lost."""
    width = max(len(pose) for pose in report.poses)
    views = "".join(f"{f'{yaw:+g}, {pitch:+g}':>16}" for yaw, pitch in report.views)
    say("dB from the refined picture, baked (coarse RGB before), in poses and views that were not fitted:")
    say(f"  {'':<{width}}{views}")
    for pose, baked, coarse in zip(report.poses, report.psnr, report.coarse_psnr, strict=True):
        values = "".join(f"{f'{b:.2f} ({c:.2f})':>16}" for b, c in zip(baked, coarse, strict=True))
        say(f"  {pose:<{width}}{values}")
    say(f"mean {report.mean:.2f} dB ({report.gain:+.2f} dB to the coarse RGB), least {report.worst:.2f} dB")
