"""From a tracked photo to an avatar (paper Sec. 3.2), by generators that are chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guava.avatar import Avatar
from guava.body import Template, load_template
from guava.errors import InputError
from guava.model.sampling import inverse_texture_map, sample_projected, visible_faces, visible_points
from guava.model.stages import Progress, Stages
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


GENERATORS: dict[str, Callable[..., Avatar]] = {"baseline": _baseline}
"""Generators by name, each called like :func:`reconstruct` without ``model``."""


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
) -> Avatar:
    """One photo -> an avatar.

    Args:
        photo: The picture that was tracked.
        tracked: Its tracked parameters.
        model: Name of a generator, see :data:`GENERATORS`.
        template: The template of ``tracked``; the open one without it.
        config: The generator's own settings; its defaults without it.
        frame: Which frame of ``tracked`` the photo is.
        progress: Called with (stage, done, total).
        stages: Filled with stage times, for profiling.

    Raises:
        InputError: There is no such generator.
        GuavaError: What the generator raises.
    """
    if model not in GENERATORS:
        raise InputError(f"There is no model '{model}'.", f"Choose one of: {', '.join(sorted(GENERATORS))}")
    return GENERATORS[model](
        photo,
        tracked,
        template=template or load_template(),
        config=config,
        frame=frame,
        progress=progress,
        stages=stages,
    )


__all__ = [
    "GENERATORS",
    "GuavaLoss",
    "LossConfig",
    "Lpips",
    "Stages",
    "crop_parts",
    "image_l1",
    "inverse_texture_map",
    "loss_config",
    "position_loss",
    "reconstruct",
    "sample_projected",
    "scale_loss",
    "visible_faces",
    "visible_points",
]
