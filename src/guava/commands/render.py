"""``guava render``: one picture of an avatar, or a turntable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from guava.commands.console import check_output, parse_color, say, stage_bar, warn, write_sidecar
from guava.commands.showing import FrameTimes, Showing, facts_of, open_animator, write_video
from guava.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from guava.avatar import Animator, Avatar
    from guava.body import Pose, Template
    from guava.camera import Camera


@dataclass(frozen=True)
class Config(Showing):
    """Draw an avatar: in the photo's pose, at rest, or at a moment of a motion; from any side.

    Examples:

        guava render me.guava -o me.png

        guava render me.guava --pose wave --time 1.6 --yaw 25 -o wave.png

        guava render me.guava --over me.jpg -o check.png

        guava render me.guava --turntable round.mp4

        guava render me.guava --yaw 150 --pitch 40 --frame round -o behind.png
    """

    avatar: tyro.conf.Positional[Path]
    """An avatar file, from guava reconstruct."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The picture to write (.png, .jpg or .webp)."""
    pose: str = "source"
    """"source" is the photo's own pose, "rest" the T pose with a neutral face; else a clip (talk, idle,
    wave) or a motion file, at --time."""
    time: float = 0.0
    """Seconds into the motion."""
    arms: Literal["auto", "motion", "photo", "left", "right"] = "auto"
    """Which arms follow a motion; as in guava animate."""
    yaw: float = 0.0
    """Degrees that the camera moves to its right, round the head."""
    pitch: float = 0.0
    """Degrees that the camera moves up."""
    size: int = 512
    """Side of the picture in pixels."""
    background: str = "white"
    """white, black, grey, green, #rrggbb, or transparent (.png and .webp)."""
    over: Path | None = None
    """The photo that the avatar was made from: the avatar is drawn at the photo's own pixels, and every
    pixel that it does not touch stays as it is, bit for bit (.png only)."""
    turntable: Path | None = None
    """Also, or instead of -o, write a video (.mp4) in which the camera goes once round the person."""
    seconds: float = 6.0
    """Length of the turntable."""
    orbit: Literal["round", "official"] = "round"
    """How the turntable's camera goes: "round" once round the person; "official" swings in front of them as
    in the videos of the paper's authors (360 frames, whatever --seconds says)."""
    frame: Literal["photo", "round", "body"] = "photo"
    """What the picture holds: "photo" what the photo showed, from where it was taken; "round" the same, with
    room for every side and angle; "body" the whole body, what nobody saw included."""


def run(config: Config) -> None:
    """Draw and save."""
    from guava.avatar import open_avatar
    from guava.commands.animate import refuse_framing

    if config.output is None and config.turntable is None:
        raise InputError("Nothing to write.", "Give -o OUT.png, --turntable OUT.mp4, or both.")
    clear = config.background == "transparent"
    if config.output is not None:
        kinds = (".png", ".webp") if clear else (".png", ".jpg", ".jpeg", ".webp")
        check_output(config.output, *((".png",) if config.over else kinds))
    if config.turntable is not None:
        check_output(config.turntable, ".mp4", ".mov", ".mkv")
    if config.turntable is None and config.orbit != "round":
        raise InputError("--orbit is the way of a turntable's camera.", "Give --turntable OUT.mp4 too.")
    if config.orbit == "official" and config.output is None:
        refuse_framing(config, "yaw", "pitch", "frame", "seconds")
    if not 16 <= config.size <= 4096:
        raise InputError(f"--size {config.size} is outside 16 to 4096.")
    background = (1.0, 1.0, 1.0) if clear else parse_color(config.background)
    if config.over and (config.yaw or config.pitch or config.frame != "photo"):
        raise InputError(
            "--over draws from where the photo was taken.", "Leave out --yaw, --pitch and --frame."
        )
    avatar, template = open_avatar(config.avatar, config.template)
    animator = open_animator(avatar, template, config)
    pose = find_pose(config.pose, config.time, avatar, template, config.arms)
    facts = facts_of(animator)
    if config.output is not None:
        with stage_bar("render") as progress:
            progress("drawing", 0, 1)
            _picture(config, animator, template, pose, background, clear)
        write_sidecar(config.output, "render", config, **facts)
        say(f"{config.output}")
    if config.turntable is not None:
        times = render_turntable(
            avatar,
            template,
            pose,
            config.turntable,
            size=config.size,
            pitch=config.pitch,
            seconds=config.seconds,
            background=background,
            animator=animator,
            orbit=config.orbit,
            frame=config.frame,
        )
        write_sidecar(config.turntable, "render", config, speed=times.facts(), **facts)
        say(f"{config.turntable}")


def _picture(
    config: Config, animator: Animator, template: Template, pose: Pose, background: tuple, clear: bool
) -> None:
    from functools import partial

    from guava.avatar.framing import samples
    from guava.avatar.views import orbit
    from guava.photo import load_photo, save_image

    avatar = animator.avatar
    if config.over:
        photo = load_photo(config.over)
        if photo.sha256 != avatar.source.sha256:
            made_from = avatar.source.name
            warn([f"'{photo.name}' is not the very file that the avatar was made from ('{made_from}')."])
        save_image(config.output, draw_over(photo.pixels, animator, pose))
        return
    poses = None if config.pose == "source" else pose
    camera, center = frame_view(animator, template, pose, config.size, config.frame, poses)
    if config.yaw or config.pitch:
        camera = orbit(camera, center, config.yaw, config.pitch)
    draw = animator.render if clear else partial(animator.frame, background=background)
    save_image(config.output, draw(pose, camera, samples(camera, pose)).numpy())


def frame_view(
    animator: Animator, template: Template, pose: Pose, size: int, frame: str, poses: Pose | None = None
) -> tuple[Camera, Tensor]:
    """A camera in front of the person, and the point (3,) that it goes round.

    Args:
        animator: Of the avatar.
        template: The avatar's.
        pose: B = 1: what will be seen.
        size: Side of the picture in pixels.
        frame: "photo", "round" or "body", see :class:`Config`.
        poses: B = T: whose hands must be in the frame "photo".
    """
    from guava.avatar.framing import framing, pivot
    from guava.avatar.views import orbit_framing

    avatar = animator.avatar
    if frame == "photo":
        return framing(avatar, template, size, poses=poses), pivot(avatar, template)
    return orbit_framing(avatar, animator.pose(pose).means.cpu(), size, whole=frame == "body")


def draw_over(pixels: np.ndarray, animator: Animator, pose: Pose) -> np.ndarray:
    """The avatar at the photo's own pixels; pixels that no Gaussian touches are copied.

    Args:
        pixels: (H, W, 3) uint8, the photo that the avatar was made from.
        animator: The avatar's :class:`guava.avatar.Animator`.
        pose: B = 1.

    Raises:
        InputError: The photo has another size than the avatar's.
    """
    import numpy as np
    import torch

    from guava.avatar import over
    from guava.avatar.framing import photo_camera, samples

    source = animator.avatar.source
    if pixels.shape[:2] != (source.height, source.width):
        raise InputError(
            f"The photo has {pixels.shape[1]}x{pixels.shape[0]} pixels; the avatar was made from one with "
            f"{source.width}x{source.height}.",
            f"Use the photo itself ('{source.name}').",
        )
    camera = photo_camera(animator.avatar)
    drawn = animator.render(pose, camera, samples(camera, pose))
    mixed = over(drawn, torch.from_numpy(pixels.astype(np.float32) / 255)).numpy()
    touched = drawn[..., 3:].numpy() > 0
    return np.where(touched, mixed, pixels)


def find_pose(name: str, seconds: float, avatar: Avatar, template: Template, arms: str = "auto") -> Pose:
    """ "source", "rest" (standing where the photo has the person), or a moment of a motion; B = 1."""
    from guava.body import Pose
    from guava.commands.animate import find_motion
    from guava.motion import apply_motion
    from guava.motion.viewpoint import before_avatar

    if name == "source":
        return avatar.source.pose
    if name == "rest":
        return place_neck(before_avatar(Pose.rest(template), avatar, template), avatar, template)
    motion, anchor = find_motion(name, template)
    frame = round(seconds * (motion.fps or 25.0))
    if not 0 <= frame < len(motion) and not motion.loop:
        raise InputError(f"--time {seconds:g} is outside the motion.", f"It has {len(motion)} frames.")
    performance = apply_motion(motion, avatar, template, anchor=anchor, arms=arms)
    warn(performance.notes)
    return performance.pose[frame % len(motion) : frame % len(motion) + 1]


def place_neck(pose: Pose, avatar: Avatar, template: Template) -> Pose:
    """``pose`` (B = 1) moved so that its neck is where the photo's is."""
    from dataclasses import replace

    import torch

    from guava.avatar.framing import skeleton

    neck, ehm = template.joint("neck"), skeleton(template)
    with torch.no_grad():
        here = ehm(avatar.identity, avatar.source.pose).joints[:, neck]
        there = ehm(avatar.identity, pose).joints[:, neck]
    return replace(pose, translation=pose.translation + here - there)


def render_turntable(
    avatar: Avatar,
    template: Template,
    pose: Pose,
    output: Path,
    *,
    size: int,
    pitch: float = 0.0,
    seconds: float = 6.0,
    fps: float = 25.0,
    background=(1.0, 1.0, 1.0),
    description: str = "turntable",
    animator: Animator | None = None,
    orbit: str = "round",
    frame: str = "photo",
) -> FrameTimes:
    """A video in which the camera moves and the pose does not, and what it cost; ``orbit`` and ``frame`` as
    in :class:`Config`."""
    from guava.avatar import Animator
    from guava.avatar.views import RELEASE_STATIC_FRAMES, avatar_release_orbit, turntable

    if seconds <= 0:
        raise InputError(f"--seconds {seconds:g} is not a length.")
    animator = animator or Animator(avatar, template)
    if orbit == "official":
        count = RELEASE_STATIC_FRAMES
        views = (avatar_release_orbit(avatar, template, count, t).resized(size, size) for t in range(count))
    else:
        count = max(2, round(seconds * fps))
        camera, center = frame_view(animator, template, pose, size, frame)
        views = turntable(camera, center, count, pitch)
    return write_video(
        animator,
        ((pose, view) for view in views),
        count,
        output,
        fps=fps,
        size=(size, size),
        background=background,
        description=description,
    )
