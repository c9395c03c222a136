"""``guava animate``: an avatar and a motion become a video."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from guava.commands.console import bar, check_output, parse_color, say, warn, write_sidecar

if TYPE_CHECKING:
    from guava.avatar import Animator, Avatar
    from guava.body import Template
    from guava.camera import Camera
    from guava.motion import Motion, Performance


@dataclass(frozen=True)
class Config:
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
    template: str | None = None
    """The body template that the avatar must belong to. Files find theirs by themselves; this only checks
    it."""
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
    weights: str | None = None
    """Name or file of the weights that the avatar was made with, if they are not installed by that name."""
    coarse: Annotated[bool, tyro.conf.arg(aliases=["--no-refiner"])] = False
    """Show the Gaussians' own colours, without the refiner (of avatars that have one)."""
    device: str = "cpu"
    """Where everything runs: cpu or cuda."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the refiner."""
    noise: int | None = None
    """Seed of the random noise that the authors' refiner draws at every frame; without it there is none."""
    profile: bool = False
    """Print how long each stage took, a frame."""


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
    rate = render_video(
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
        **facts_of(animator),
    )
    if config.profile:
        for stage, spent in animator.seconds.items():
            print(f"{stage:<14}{1000 * spent / animator.frames:7.1f} ms", file=sys.stderr)
    say(
        f"{config.output}: {count} frame{'s' * (count > 1)}, {count / performance.fps:.1f} s; rendered at "
        f"{rate:.1f} frames/s"
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


def open_animator(avatar: Avatar, template: Template, config) -> Animator:
    """The avatar ready to be shown as the settings ``weights``, ``coarse``, ``device``, ``precision`` and
    ``noise`` of ``config`` say; tells what is to be known of its network.

    Raises:
        InputError: Settings that do not fit the avatar.
        GuavaError: Its refiner's weights are not there, or are others.
    """
    from guava.avatar import Animator
    from guava.avatar.animate import PRECISIONS, find_device
    from guava.errors import InputError

    if avatar.refiner is None and config.weights is not None:
        raise InputError("This avatar needs no weights to be shown.", "Leave out --weights.")
    warn([note for note in avatar.provenance.notes if "RANDOM" in note])
    refiner = None
    if config.weights is not None and not config.coarse:
        from guava.model.generate import load_refiner

        refiner = load_refiner(avatar, config.weights)
        refiner = refiner.to(find_device(config.device), PRECISIONS[config.precision])
    return Animator(
        avatar,
        template,
        refiner=refiner,
        coarse=config.coarse,
        device=config.device,
        precision=config.precision,
        noise=config.noise,
    )


def facts_of(animator: Animator) -> dict[str, Any]:
    """What a result's sidecar says of the avatar and how it was shown."""
    avatar = animator.avatar
    baked = avatar.provenance.baked
    return {
        "generator": avatar.provenance.generator,
        "refiner": None if animator.refiner is None else asdict(avatar.refiner),
        "baked": baked and {"weights": baked.weights, "hash": baked.hash, "mean": baked.mean},
        "template": animator.template.name,
        "template_hash": avatar.template_hash,
        "source_sha256": avatar.source.sha256,
        "synthetic_media": True,
    }


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
) -> float:
    """Render and encode, frame by frame; returns frames a second. ``animator`` is made without it; ``orbit``
    and ``frame`` are those of :class:`Config`; ``views``, one camera a frame, take the place of both and of
    the angles."""
    from guava.avatar import Animator, over
    from guava.avatar.framing import framing, pivot, samples
    from guava.avatar.views import RELEASE_DYNAMIC_FRAMES, avatar_release_orbit, turntable
    from guava.avatar.views import orbit as orbited
    from guava.commands.render import frame_view
    from guava.photo import VideoWriter

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
    with VideoWriter(output, performance.fps, (views[0].width, views[0].height)) as writer:
        with bar(range(count), desc=description, unit="frame") as frames:
            for t in frames:
                view = views[t % len(views)]
                pose = performance.pose[t : t + 1]
                drawn = animator.render(pose, view, samples(view, pose))
                writer.write(over(drawn, background).numpy())
            rate = count / max(frames.format_dict["elapsed"], 1e-9)
    warn(writer.notes)
    return rate
