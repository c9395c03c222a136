"""``guava track``: a video, a photo or keypoints become a motion file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from guava.commands.console import bar, check_output, say, stage_bar, warn, write_sidecar

PHOTO_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".jp2",
    ".avif",
    ".heic",
    ".heif",
)


@dataclass(frozen=True)
class Config:
    """Track a person: write their pose, expression, gaze and hands, frame by frame, as a motion.

    Nothing is dropped: frames in which nobody is seen stay in and are flagged, and a cut is never smoothed
    over. Of several people the largest is followed. A job that is interrupted goes on where it was when the
    same command is given again. Examples:

        guava track me.mp4 -o me.motion --overlay check.mp4

        guava animate someone.guava --motion me.motion -o someone.mp4
    """

    input: tyro.conf.Positional[Path]
    """A video, a photo, or keypoints (.npz with body, hands and face in COCO-WholeBody order, see
    docs/file-formats.md)."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The motion file to write, for instance me.motion."""
    overlay: Path | None = None
    """Also draw the fitted body over the input: a .png for a photo, an .mp4 for a video. Look at it: a
    small number in the report does not prove a good fit."""
    template: str = "open"
    """Body template to fit: "open", one of yours (see guava assets), or either with "-plain-head" (the body
    keeps its own head, as in the paper's ablation)."""
    detector: Literal["mediapipe", "simcc"] = "mediapipe"
    """What finds face, body and hands. "simcc" needs --detector-model."""
    detector_model: Path | None = None
    """A COCO-WholeBody SimCC ONNX file of yours (DWPose, RTMW), for --detector simcc."""
    profile: bool = False
    """Print how long each stage took (the file beside the result says so in any case)."""


def run(config: Config) -> None:
    """Track and save."""
    from guava.errors import InputError

    check_output(config.output)
    suffix = config.input.suffix.lower()
    if suffix == ".npz":
        if config.overlay:
            raise InputError("Keypoints have no pictures to draw an overlay on.", "Leave out --overlay.")
        _keypoints(config)
    elif suffix in PHOTO_SUFFIXES:
        if config.overlay:
            check_output(config.overlay, ".png")
        _photo(config)
    else:
        if config.overlay:
            check_output(config.overlay, ".mp4", ".mov", ".mkv")
        _video(config)


def _keypoints(config: Config) -> None:
    from guava.body import load_template
    from guava.motion.keypoints import track_keypoints
    from guava.tracking.file import save_tracked

    with stage_bar("track") as progress:
        template = load_template(config.template)
        tracked = track_keypoints(config.input, template, progress)
    save_tracked(tracked, config.output, template=template)
    _report(config, tracked, ())


def _photo(config: Config) -> None:
    from guava.body import load_template
    from guava.commands.overlay import fit_overlay
    from guava.commands.reconstruct import open_detector
    from guava.photo import load_photo, save_png
    from guava.tracking import TrackingConfig, track_image
    from guava.tracking.file import save_tracked

    photo, template = load_photo(config.input), load_template(config.template)
    with stage_bar("track") as progress:
        progress("load", 0, 2)
        detector = open_detector(config.detector, config.detector_model)
        progress("fit", 1, 2)
        settings = TrackingConfig(detector=config.detector)
        tracked = track_image(photo, config=settings, template=template, detector=detector)
    save_tracked(tracked, config.output, template=template)
    _report(config, tracked, photo.notes)
    if config.overlay:
        save_png(config.overlay, fit_overlay(photo.pixels, tracked, 0))
        say(f"{config.overlay}")


def _video(config: Config) -> None:
    from guava.body import load_template
    from guava.commands.overlay import fit_overlay
    from guava.commands.reconstruct import open_detector
    from guava.errors import NoPersonError
    from guava.photo import VideoReader, VideoWriter
    from guava.tracking import TrackingConfig, track_video
    from guava.tracking.detection_cache import remove_detections
    from guava.tracking.file import save_tracked
    from guava.tracking.stages import StageClock

    clock = StageClock()
    with clock("load"):
        reader, template = VideoReader(config.input), load_template(config.template)
        detector = open_detector(config.detector, config.detector_model)
    settings = TrackingConfig(detector=config.detector)
    cache = config.output.with_name(f".{config.output.name}.detections")
    try:
        with stage_bar("track") as progress:
            tracked = track_video(
                config.input,
                config=settings,
                template=template,
                detector=detector,
                progress=progress,
                cache=cache,
            )
    except KeyboardInterrupt:
        if cache.is_dir():
            warn([f"What was found so far is in '{cache}': the same command goes on from there."])
        raise
    except NoPersonError:
        remove_detections(cache)
        raise
    with clock("write"):
        save_tracked(tracked, config.output, template=template)
    remove_detections(cache)
    tracked = replace(tracked, stages={**tracked.stages, **clock.record()})
    _report(config, tracked, reader.notes)
    if not config.overlay:
        return
    size = (tracked.media.width, tracked.media.height)
    with VideoWriter(config.overlay, tracked.fps or 25.0, size) as writer:
        frames = bar(VideoReader(config.input), total=len(tracked), desc="overlay", unit="frame")
        for number, frame in enumerate(frames):
            writer.write(fit_overlay(frame.pixels, tracked, number))
    warn(writer.notes)
    say(f"{config.overlay}")


def _report(config: Config, tracked, notes: tuple[str, ...]) -> None:
    import torch

    from guava.tracking.stages import stage_table

    warn(dict.fromkeys((*notes, *tracked.quality.notes)))
    valid = int(tracked.valid.sum())
    face = float(torch.nanmean(tracked.quality.face_error))
    hands = float(torch.nanmean(tracked.quality.hand_error))
    figures = [f"face {face:.1f} % of the outer-eye distance"] if face == face else []
    figures += [f"hands {hands:.1f} px at 512"] if hands == hands else []
    write_sidecar(
        config.output,
        "track",
        config,
        frames=len(tracked),
        valid=valid,
        notes=list(dict.fromkeys((*notes, *tracked.quality.notes))),
        stages=tracked.stages,
    )
    if config.profile and tracked.stages:
        print(stage_table(tracked.stages, len(tracked)), file=sys.stderr)
    shots = len(torch.unique(tracked.shots))
    say(
        f"{config.output}: {len(tracked)} frame{'s' * (len(tracked) > 1)}, {valid} with the person, "
        f"{shots} shot{'s' * (shots > 1)}; mean reprojection: {', '.join(figures) or 'nothing to compare'}"
    )
