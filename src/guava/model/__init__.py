"""From a tracked photo to an avatar (paper Sec. 3.2), by generators that are chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from guava.avatar import Avatar
from guava.avatar.posing import face_frames
from guava.body import Template
from guava.body.installed import template_for
from guava.errors import InputError
from guava.model.assemble import assemble
from guava.model.camera_code import camera_code
from guava.model.config import PRESETS, GuavaConfig, preset
from guava.model.decoders import TemplateDecoder, UVDecoder
from guava.model.encoder import EncoderNeck
from guava.model.network import build_network, build_refiner
from guava.model.outputs import NetworkOutput
from guava.model.sampling import inverse_texture_map, sample_projected, visible_faces, visible_points
from guava.model.source import SourceBatch
from guava.model.stages import Progress, Stages
from guava.model.styleunet import StyleUNet
from guava.model.texels import uv_texels
from guava.photo import Photo
from guava.tracking.sequence import TrackedSequence
from guava.training.losses import (
    GuavaLoss,
    LossConfig,
    crop_parts,
    image_l1,
    loss_config,
    position_loss,
    scale_loss,
)
from guava.training.lpips import Lpips


def _baseline(photo: Photo, tracked: TrackedSequence, **options: Any) -> Avatar:
    from guava.model.baseline import reconstruct_baseline

    return reconstruct_baseline(photo, tracked, **options)


def _network(preset: str) -> Callable[..., Avatar]:
    def generate(photo: Photo, tracked: TrackedSequence, **options: Any) -> Avatar:
        from guava.model.generate import reconstruct_network

        return reconstruct_network(photo, tracked, model=preset, **options)

    return generate


GENERATORS: dict[str, Callable[..., Avatar]] = {"baseline": _baseline, **{n: _network(n) for n in PRESETS}}
"""Generators by name, each called like :func:`reconstruct` without ``model``. "baseline" needs no weights;
"official", "paper" and "lite" are the presets of the learned system."""


def generator_stages(model: str) -> tuple[str, ...]:
    """Names of a generator's stages, in order, for :class:`Stages`."""
    if model == "baseline":
        from guava.model.baseline import STAGES
    else:
        from guava.model.generate import STAGES
    return STAGES


def reconstruct(
    photo: Photo,
    tracked: TrackedSequence,
    *,
    model: str = "baseline",
    template: Template | None = None,
    config: Any = None,
    frame: int = 0,
    progress: Progress | None = None,
    stages: Stages | None = None,
    **settings: Any,
) -> Avatar:
    """One photo -> an avatar.

    Args:
        photo: The picture that was tracked.
        tracked: Its tracked parameters.
        model: Name of a generator, see :data:`GENERATORS`.
        template: The template of ``tracked``; found by its hash without it.
        config: The generator's own settings (:class:`guava.model.baseline.BaselineConfig`,
            :class:`guava.model.generate.NetworkSettings`); its defaults without it.
        frame: Which frame of ``tracked`` the photo is.
        progress: Called with (stage, done, total).
        stages: Filled with stage times, for profiling.
        settings: Fields of the generator's settings, instead of ``config``: ``weights="official"``,
            ``device="cuda"``.

    Raises:
        InputError: There is no such generator or setting.
        GuavaError: What the generator raises.
    """
    if model not in GENERATORS:
        raise InputError(f"There is no model '{model}'.", f"Choose one of: {', '.join(sorted(GENERATORS))}")
    if settings:
        if config is not None:
            raise InputError(f"Settings come twice, in 'config' and as {', '.join(settings)}.")
        config = _settings(model, settings)
    return GENERATORS[model](
        photo,
        tracked,
        template=template or template_for(tracked.template_hash, what="The tracked photo"),
        config=config,
        frame=frame,
        progress=progress,
        stages=stages,
    )


def _settings(model: str, values: dict[str, Any]) -> Any:
    if model == "baseline":
        from guava.model.baseline import BaselineConfig as Settings
    else:
        from guava.model.generate import NetworkSettings as Settings
    known = [f.name for f in fields(Settings)]
    for name in values:
        if name not in known:
            raise InputError(f"The model '{model}' has no setting '{name}'.", f"It has: {', '.join(known)}.")
    return Settings(**values)


__all__ = [
    "GENERATORS",
    "EncoderNeck",
    "GuavaConfig",
    "GuavaLoss",
    "LossConfig",
    "Lpips",
    "NetworkOutput",
    "SourceBatch",
    "Stages",
    "StyleUNet",
    "TemplateDecoder",
    "UVDecoder",
    "assemble",
    "build_network",
    "build_refiner",
    "camera_code",
    "crop_parts",
    "face_frames",
    "generator_stages",
    "image_l1",
    "inverse_texture_map",
    "loss_config",
    "position_loss",
    "preset",
    "reconstruct",
    "sample_projected",
    "scale_loss",
    "uv_texels",
    "visible_faces",
    "visible_points",
]
