"""``guava demo``: everything once, on a photo that comes along."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from guava.commands.console import bar, read_sidecar, say, warn, write_sidecar
from guava.errors import GuavaError, InputError, MissingDependencyError

if TYPE_CHECKING:
    import numpy as np

    from guava.avatar import Avatar
    from guava.body import Pose, Template
    from guava.motion import Performance


_FPS = 24.0
"""Of the video in which it moves: the cinema's rate, a fifth cheaper than the clips' own 30."""


@dataclass(frozen=True)
class Config:
    """See what Guava does: from one photo to an avatar that talks, and gestures with the hands it shows.

    Takes NASA's portrait of the astronaut Eileen Collins (public domain; it comes with scikit-image) or a
    photo of yours, and writes the avatar file, a video in which it moves, a turntable, and one contact
    sheet. Steps that a former run finished are skipped, so after an interruption just run it again.
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("guava-demo")
    """Folder for the results; made if need be."""
    photo: Path | None = None
    """A photo of yours instead of the astronaut."""
    template: str = "open"
    """Body template to fit; see guava assets."""
    size: int = 512
    """Side of the videos in pixels."""
    again: bool = False
    """Make everything anew, whatever is there."""


def run(config: Config) -> None:
    """Make what is missing."""
    from guava.body import load_template
    from guava.photo import load_photo

    if not 64 <= config.size <= 2048:
        raise InputError(f"--size {config.size} is outside 64 to 2048.")
    path = config.photo or astronaut()
    photo = load_photo(path)
    folder = config.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make the folder '{folder}': {error.strerror}.") from error
    name = path.stem
    template = load_template(config.template)

    avatar_file = folder / f"{name}.guava"
    avatar = None if config.again else _finished_avatar(avatar_file, photo.sha256, template)
    if avatar is None:
        avatar = _reconstruct(path, avatar_file, config.template)
    else:
        say(f"{avatar_file} is there already")
    made_from = hashlib.sha256(avatar_file.read_bytes()).hexdigest()

    from guava.commands.render import render_turntable

    performance = demo_performance(avatar, template)
    moving, turntable, sheet = (
        folder / f"{name}.mp4",
        folder / f"{name}-turntable.mp4",
        folder / f"{name}.png",
    )

    def animate() -> None:
        from guava.commands.animate import render_video

        render_video(avatar, template, performance, moving, size=config.size)

    def turn() -> None:
        render_turntable(
            avatar, template, avatar.source.pose, turntable, size=config.size, seconds=4.0, fps=20.0
        )

    def show() -> None:
        from guava.photo import save_png

        save_png(sheet, contact_sheet(photo.pixels, avatar, template))

    facts = {"avatar_sha256": made_from, "template_hash": template.hash, "synthetic_media": True}
    for result, make in ((moving, animate), (turntable, turn), (sheet, show)):
        _once(result, make, config, facts)
    warn(avatar.provenance.notes)
    say("done:")
    for result, what in (
        (sheet, "contact sheet; look at this first"),
        (moving, "it moves"),
        (turntable, "from all sides"),
        (avatar_file, "the avatar: try  guava animate FILE --motion wave --arms right -o wave.mp4"),
    ):
        say(f"  {result.resolve()}  ({what})")


def astronaut() -> Path:
    """The portrait that scikit-image brings.

    Raises:
        MissingDependencyError: scikit-image is not installed.
    """
    import importlib.util

    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise MissingDependencyError("scikit-image", "demo", "The demo's photo")
    path = Path(spec.origin).parent / "data" / "astronaut.png"
    if not path.is_file():
        raise InputError(f"scikit-image has no '{path}'.", "Name a photo of yours: --photo ME.jpg")
    return path


def _finished_avatar(path: Path, photo_sha256: str, template: Template) -> Avatar | None:
    """The avatar that a former run made of this photo; None if there is none that can be used."""
    from guava.avatar import load_avatar

    try:
        avatar = load_avatar(path, template)
    except GuavaError:
        return None
    return avatar if avatar.source.sha256 == photo_sha256 else None


def _reconstruct(photo: Path, output: Path, template: str) -> Avatar:
    from guava.avatar import save_avatar
    from guava.commands import reconstruct

    avatar, _ = reconstruct.make_avatar(
        reconstruct.Config(photo=photo, output=output, template=template)
    )
    save_avatar(avatar, output)
    say(f"{output}: {len(avatar.gaussians):,} Gaussians")
    return avatar


def _once(result: Path, make: Callable[[], None], config: Config, facts: dict[str, Any]) -> None:
    """Make a result unless it is there, made from the same avatar at the same size.

    The sidecar is written last, so it stands for a finished result.
    """
    there = read_sidecar(result)
    same = there.get("avatar_sha256") == facts["avatar_sha256"]
    same = same and there.get("settings", {}).get("size") == config.size
    if result.is_file() and same and not config.again:
        say(f"{result} is there already")
        return
    make()
    write_sidecar(result, "demo", config, **facts)
    say(f"{result}")


def demo_performance(avatar: Avatar, template: Template) -> Performance:
    """The talk clip; then, with a hand that the photo shows, a wave. Both start and end in the photo's pose.

    Arms whose hands the photo does not show stay down, and the frame stays the photo's: raising them would
    make what was made up the subject, and the person small.
    """
    from dataclasses import replace

    import torch

    from guava.motion import apply_motion, eased, make_clip, resample
    from guava.motion.apply import follow_arms

    def part(clip: str, arms: str) -> Performance:
        motion = resample(make_clip(clip, template), _FPS)
        done = apply_motion(motion, avatar, template, anchor="photo", arms=arms)
        return replace(done, pose=eased(done.pose, avatar.source.pose, 0.8, done.fps))

    parts = [part("talk", "auto")]
    if avatar.source.hands_seen[1]:
        parts.append(part("wave", "right"))
    poses = [performance.pose for performance in parts]
    joined = {name: torch.cat([getattr(pose, name) for pose in poses]) for name in vars(poses[0])}
    return replace(
        parts[0],
        pose=type(poses[0])(**joined),
        loop=True,
        arms=follow_arms(*(performance.arms for performance in parts)),
        notes=tuple(note for performance in parts for note in performance.notes),
    )


# --- contact sheet ----------------------------------------------------------------------------------------


def contact_sheet(pixels: np.ndarray, avatar: Avatar, template: Template, cell: int = 384) -> np.ndarray:
    """Photo, fit, re-render, expressions, gestures and new views in one picture, with labels.

    Args:
        pixels: (H, W, 3) uint8, the photo.
        avatar: Made from it.
        template: The avatar's.
        cell: Side of one panel, pixels.

    Returns:
        (H, W, 3) uint8.
    """
    import numpy as np
    import torch

    from guava.avatar import Animator
    from guava.avatar.framing import framing, photo_camera, pivot, samples
    from guava.avatar.views import orbit
    from guava.commands.overlay import mesh_over

    source = avatar.source
    animator = Animator(avatar, template)
    camera, center = framing(avatar, template, cell), pivot(avatar, template)
    frame = (camera.intrinsics @ torch.linalg.inv(photo_camera(avatar).intrinsics)).double().numpy()
    fit = mesh_over(pixels, avatar.identity, source.pose, photo_camera(avatar), template.hash)

    def framed(picture: np.ndarray) -> np.ndarray:
        from guava.photo import warp_affine

        return warp_affine(picture, frame, (cell, cell), 255.0)

    raised = _moment("wave", 1.75, "right", avatar, template)
    turned = _turned(source.pose, template, 25.0)
    wide = framing(avatar, template, cell, poses=raised, hands=(False, True))
    panels: list[tuple[str, Callable[[], np.ndarray]]] = [
        ("the photo", lambda: framed(pixels)),
        ("the fitted body", lambda: framed(fit)),
        ("avatar in the photo's pose", lambda: draw(source.pose, camera)),
        ("new expression: surprise", lambda: draw(_expression(avatar, template, _SURPRISE), camera)),
        ("new expression: eyes closed", lambda: draw(_expression(avatar, template, _ASLEEP), camera)),
        ("new gesture: wave", lambda: draw(raised, wide)),
        ("new pose: head turned", lambda: draw(turned, camera)),
        ("seen from 30 degrees left", lambda: draw(source.pose, orbit(camera, center, -30, 0))),
        ("seen from 30 degrees right", lambda: draw(source.pose, orbit(camera, center, 30, 0))),
        ("seen from above", lambda: draw(source.pose, orbit(camera, center, 15, 20))),
    ]

    def draw(pose: Pose, view) -> np.ndarray:
        return animator.frame(pose, view, samples(view, pose)).numpy()

    made = [label(panel(), text) for text, panel in bar(panels, desc="contact sheet", unit="panel")]
    rows = [np.concatenate(made[i : i + 5], 1) for i in range(0, len(made), 5)]
    return np.concatenate(rows, 0)


_SURPRISE = {
    "jawOpen": 0.45,
    "browInnerUp": 0.8,
    "browOuterUpLeft": 0.8,
    "browOuterUpRight": 0.8,
    "eyeWideLeft": 0.7,
    "eyeWideRight": 0.7,
    "mouthFunnel": 0.2,
}
_ASLEEP = {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0, "mouthPressLeft": 0.2, "mouthPressRight": 0.2}


def _expression(avatar: Avatar, template: Template, units: dict[str, float]) -> Pose:
    """The photo's pose with another expression."""
    from guava.body.controls import with_units

    return with_units(avatar.source.pose, template, units)


def _moment(clip: str, seconds: float, arms: str, avatar: Avatar, template: Template) -> Pose:
    from guava.motion import apply_motion, make_clip

    performance = apply_motion(make_clip(clip, template), avatar, template, anchor="photo", arms=arms)
    frame = round(seconds * performance.fps)
    return performance.pose[frame : frame + 1]


def _turned(pose: Pose, template: Template, degrees: float) -> Pose:
    """The pose with the head turned to the person's left, shared by neck and head."""
    import math
    from dataclasses import replace

    import torch

    from guava.rotation import axis_angle_to_matrix, matrix_to_axis_angle

    turn = axis_angle_to_matrix(torch.tensor([0.0, math.radians(degrees) / 2, 0.0]))
    joints = pose.joints.clone()
    for name in ("neck", "head"):
        i = template.joint(name)
        joints[:, i] = matrix_to_axis_angle(axis_angle_to_matrix(joints[:, i]) @ turn)
    return replace(pose, joints=joints)


def label(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture (H, W, 3) uint8 under a strip with a line of text: (H + H // 14, W, 3)."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    height, width = picture.shape[:2]
    strip = Image.new("RGB", (width, height // 14), (255, 255, 255))
    font = ImageFont.load_default(max(10, round(height / 24)))
    ImageDraw.Draw(strip).text((8, height // 28), text, font=font, fill=(30, 30, 30), anchor="lm")
    return np.concatenate([np.asarray(strip), picture], 0)
