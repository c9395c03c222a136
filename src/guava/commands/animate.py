"""``guava animate``: an avatar and a motion become a video."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from guava.commands.console import check_output, parse_color, say, warn, write_sidecar
from guava.commands.showing import FrameTimes, Showing, facts_of, open_animator, write_video

if TYPE_CHECKING:
    from guava.avatar import Animator, Avatar
    from guava.body import Template
    from guava.camera import Camera
    from guava.motion import Motion, Performance


@dataclass(frozen=True)
class Config(Showing):
    """Make an avatar move, and write the video.

    The avatar keeps its shape; the motion gives pose, expression and gaze. Examples:

        guava animate me.guava --motion talk -o talk.mp4

        guava animate me.guava --motion someone.motion --yaw 20 -o other.mp4
    """

    avatar: tyro.conf.Positional[Path]
    """An avatar file, from guava reconstruct."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The video to write (.mp4, .mov or .mkv). Beside it goes OUT.mp4.json, which says how it was made."""
    motion: str = "talk"
    """A clip of ours (talk, idle, wave) or a motion file, from guava track."""
    size: int = 512
    """Side of the video in pixels."""
    fps: float | None = None
    """Frames a second; the motion's own if left out."""
    seconds: float | None = None
    """Length; the motion's own if left out. A looping motion repeats, another stops earlier."""
    yaw: float = 0.0
    """Degrees that the camera moves to its right, round the head."""
    pitch: float = 0.0
    """Degrees that the camera moves up."""
    camera: Literal["photo", "target", "video", "source"] = "photo"
    """Whose camera sees it. "photo": that of the avatar's photo, framed. The others are reenactments by a
    tracked motion file as in the paper: "target" the driver's own square crop, "video" the driver's whole
    picture, "source" the avatar's square crop."""
    orbit: Literal["none", "round", "official"] = "none"
    """Also move the camera: "round" once round the person; "official" swings in front of them as in the
    videos of the paper's authors, once in 120 frames."""
    frame: Literal["photo", "round", "body"] = "photo"
    """What the video holds; as in guava render."""
    background: str = "white"
    """white, black, grey, green, or #rrggbb."""
    arms: Literal["auto", "motion", "photo", "left", "right"] = "auto"
    """Which arms follow the motion: both ("motion"), one ("left" or "right", the person's own), none
    ("photo"), or those whose hand the photo shows ("auto"). The others keep about the photo's pose."""
    anchor: Literal["auto", "photo", "motion"] = "auto"
    """What the body's stance starts from: "photo" moves the person from the photo's own pose, "motion"
    takes the motion's stance as it is. "auto": the photo for our clips, the motion for motion files."""
    seed: int = 0
    """Another take of a clip of ours."""


def run(config: Config) -> None:
    """Render the video."""
    from guava.avatar import open_avatar
    from guava.errors import InputError

    check_output(config.output, ".mp4", ".mov", ".mkv")
    background = parse_color(config.background)
    if config.orbit == "official":
        refuse_framing(config, "yaw", "pitch", "frame")
    if not 16 <= config.size <= 4096:
        raise InputError(f"--size {config.size} is outside 16 to 4096.")
    if config.fps is not None and not 1 <= config.fps <= 240:
        raise InputError(f"--fps {config.fps:g} is outside 1 to 240.")
    avatar, template = open_avatar(config.avatar, config.template)
    animator = open_animator(avatar, template, config)
    views = None
    if config.camera == "photo":
        motion, anchor = find_motion(config.motion, template, config.seed)
        if config.anchor != "auto":
            anchor = config.anchor
        performance = perform(motion, avatar, template, anchor, config.arms, config.fps, config.seconds)
    else:
        performance, views = follow_driver(config, avatar, template)
    warn(performance.notes)
    times = render_video(
        avatar,
        template,
        performance,
        config.output,
        size=config.size,
        yaw=config.yaw,
        pitch=config.pitch,
        background=background,
        animator=animator,
        orbit=config.orbit,
        frame=config.frame,
        views=views,
    )
    count = performance.pose.joints.shape[0]
    write_sidecar(
        config.output,
        "animate",
        config,
        frames=count,
        fps=performance.fps,
        notes=list(performance.notes),
        speed=times.facts(),
        **facts_of(animator),
    )
    print(times, file=sys.stderr, flush=True)
    say(
        f"{config.output}: {count} frame{'s' * (count > 1)}, {count / performance.fps:.1f} s; rendered at "
        f"{times.rate:.1f} frames/s"
    )


def refuse_framing(config, *names: str) -> None:
    """The release's orbit brings its own cameras: settings that it would pass over in silence are refused.

    Raises:
        InputError: One of the fields ``names`` is not as it is by default.
    """
    from guava.errors import InputError

    defaults = {field.name: field.default for field in fields(config)}
    for name in names:
        if getattr(config, name) != defaults[name]:
            raise InputError(f"--{name} does not go with --orbit official.", "Leave one of them out.")


def find_motion(name: str, template: Template, seed: int = 0) -> tuple[Motion, Literal["photo", "motion"]]:
    """A clip by name or a motion file, and what its stance starts from.

    Raises:
        InputError: Neither a clip nor a file.
        FileFormatError: The file is no motion.
    """
    from guava.errors import InputError
    from guava.motion import CLIP_NAMES, load_motion, make_clip

    if name in CLIP_NAMES:
        return make_clip(name, template, seed), "photo"
    if not Path(name).is_file():
        raise InputError(
            f"'{name}' is neither a clip nor a file.",
            f"Clips: {', '.join(CLIP_NAMES)}; files: see guava track.",
        )
    return load_motion(name), "motion"


def perform(
    motion: Motion,
    avatar: Avatar,
    template: Template,
    anchor: str,
    arms: str,
    fps: float | None,
    seconds: float | None,
) -> Performance:
    """The motion on the avatar, at a frame rate and length."""
    from dataclasses import replace

    import torch

    from guava.errors import InputError
    from guava.motion import apply_motion, resample

    motion = resample(motion, fps or motion.fps or 25.0)
    performance = apply_motion(motion, avatar, template, anchor=anchor, arms=arms)
    if seconds is not None:
        if seconds <= 0:
            raise InputError(f"--seconds {seconds:g} is not a length.")
        count = max(1, round(seconds * performance.fps))
        own = performance.pose.joints.shape[0]
        frames = (
            torch.arange(count) % own if performance.loop or own == 1 else torch.arange(min(count, own))
        )
        performance = replace(performance, pose=performance.pose[frames])
    return performance


def follow_driver(config: Config, avatar: Avatar, template: Template) -> tuple[Performance, list[Camera]]:
    """The avatar in the frames of a tracked motion file, and a camera for each.

    Raises:
        InputError: Settings that contradict the driver's camera.
        FileFormatError: The motion did not come from tracking.
    """
    from guava.errors import InputError
    from guava.motion import CLIP_NAMES, Performance, reenact
    from guava.tracking.file import load_tracked

    if config.motion in CLIP_NAMES:
        raise InputError(
            f"--camera {config.camera} needs a tracked motion file, and '{config.motion}' is a clip of ours.",
            "Track a video: guava track VIDEO -o M.motion",
        )
    default = Config(avatar=config.avatar, output=config.output)
    for name in ("yaw", "pitch", "orbit", "frame", "fps", "arms", "anchor", "seed"):
        if getattr(config, name) != getattr(default, name):
            raise InputError(f"--{name} does not go with --camera {config.camera}.", "Leave one of them out.")
    done = reenact(avatar, load_tracked(config.motion), template, camera=config.camera)
    fps = done.fps or 25.0
    count = len(done)
    if config.seconds is not None:
        if config.seconds <= 0:
            raise InputError(f"--seconds {config.seconds:g} is not a length.")
        count = min(count, max(1, round(config.seconds * fps)))
    zoom = config.size / max(done.camera.width, done.camera.height)
    size = round(done.camera.width * zoom), round(done.camera.height * zoom)
    views = [done.camera[t].resized(*size) for t in range(count)]
    return Performance(done.pose[:count], fps, False, (True, True), done.notes), views


def render_video(
    avatar: Avatar,
    template: Template,
    performance: Performance,
    output: Path,
    *,
    size: int,
    yaw: float = 0.0,
    pitch: float = 0.0,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    description: str = "animate",
    animator: Animator | None = None,
    orbit: str = "none",
    frame: str = "photo",
    views: list[Camera] | None = None,
) -> FrameTimes:
    """Render and encode, frame by frame; returns what it cost. ``animator`` is made without it; ``orbit`` and
    ``frame`` are those of :class:`Config`; ``views``, one camera a frame, take the place of both and of the
    angles."""
    from guava.avatar import Animator
    from guava.avatar.framing import framing, pivot
    from guava.avatar.views import RELEASE_DYNAMIC_FRAMES, avatar_release_orbit, turntable
    from guava.avatar.views import orbit as orbited
    from guava.commands.render import frame_view

    animator = animator or Animator(avatar, template)
    count = performance.pose.joints.shape[0]
    if views is None:
        if frame == "photo":
            camera = framing(avatar, template, size, poses=performance.pose, hands=performance.arms)
            center = pivot(avatar, template)
        else:
            camera, center = frame_view(animator, template, performance.pose[:1], size, frame)
        camera = orbited(camera, center, yaw, pitch)
        views = [camera]
        if orbit == "round":
            views = list(turntable(camera, center, count))
        elif orbit == "official":
            period = RELEASE_DYNAMIC_FRAMES
            swing = (avatar_release_orbit(avatar, template, period, t) for t in range(period))
            views = [view.resized(size, size) for view in swing]
    return write_video(
        animator,
        ((performance.pose[t : t + 1], views[t % len(views)]) for t in range(count)),
        count,
        output,
        fps=performance.fps,
        size=(views[0].width, views[0].height),
        background=background,
        description=description,
    )
