"""The learning-free avatar on real pictures: its own view against the matted photo, and other views for
holes.

    python benchmarks/baseline_portraits.py [--portraits DIR] [--out DIR] [--only NAME ...] [--profile]

Own view: full frame on white against ``alpha * photo + (1 - alpha) * white`` at 512, inside the photo; the
matte is the reconstruction's own, there is no other truth. Other views have no truth at all: "holes" is the
share of the silhouette's 13 px closing that is not covered, and the sheets in --out must be looked at.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from guava.avatar import Avatar
from guava.avatar.posing import pose_gaussians
from guava.body import Pose, Template, load_template
from guava.camera import Camera
from guava.errors import GuavaError
from guava.model import Stages, reconstruct
from guava.model.baseline import STAGES, BaselineConfig, guessed_faces, matte_person
from guava.model.baseline.surface import pose_template, see, surface_tables, to_camera
from guava.photo import Photo, load_photo, resize_area, save_png, warp_affine
from guava.rendering import splat
from guava.rotation import axis_angle_to_matrix, matrix_to_axis_angle
from guava.tracking import TrackedSequence

SIZE = 512
EXPRESSIONS = {
    "jaw": {"jawOpen": 0.6},
    "smile": {
        "mouthSmileLeft": 0.8,
        "mouthSmileRight": 0.8,
        "mouthUpperUpLeft": 0.5,
        "mouthUpperUpRight": 0.5,
        "mouthLowerDownLeft": 0.5,
        "mouthLowerDownRight": 0.5,
    },
    "blink": {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
}


@dataclass(frozen=True)
class Row:
    """Figures of one portrait: PSNR in dB, IoU, uncovered and holes in percent, seconds by stage."""

    psnr: float
    iou: float
    uncovered: float
    holes: dict[str, float]
    gaussians: int
    seconds: dict[str, float]


def shared_folder() -> Path:
    """GUAVA_SHARED, or ``shared`` next to the checkout."""
    return Path(os.environ.get("GUAVA_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def draw(avatar: Avatar, template: Template, pose: Pose, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """The avatar on white, (H, W, 3), and its alpha, (H, W)."""
    posed = pose_gaussians(avatar.gaussians, pose_template(template, avatar.identity, pose), template.faces)
    out = splat(
        posed.means,
        posed.quaternions,
        posed.scales,
        posed.opacities,
        posed.features,
        camera,
        background=torch.ones(3),
    )
    return out.features.clamp(0, 1).numpy(), out.alpha.numpy()


def holes(alpha: np.ndarray) -> float:
    """Percent of the closing's area that the closing by a disc of 13 px fills."""
    mask = np.pad(alpha > 0.5, 8, mode="edge")
    yy, xx = np.mgrid[-6:7, -6:7]
    closed = ndimage.binary_closing(mask, yy**2 + xx**2 <= 42)[8:-8, 8:-8]
    return float(100 * (closed & ~(alpha > 0.5)).sum() / max(1, closed.sum()))


def turned(template: Template, pose: Pose, joint: str, angles: tuple[float, float, float]) -> Pose:
    """A joint turned by a further axis-angle, in its parent's frame."""
    index, joints = template.joint(joint), pose.joints.clone()
    extra = axis_angle_to_matrix(torch.tensor([angles]))
    joints[:, index] = matrix_to_axis_angle(extra @ axis_angle_to_matrix(joints[:, index]))
    return replace(pose, joints=joints)


def raised(template: Template, pose: Pose) -> Pose:
    """Both arms up and the head tilted."""
    joints = pose.joints.clone()
    for name, value in {
        "left_shoulder": (0.0, 0.0, -0.35),
        "left_elbow": (0.0, -0.4, 1.3),
        "right_shoulder": (0.0, 0.0, 0.75),
        "right_elbow": (0.0, 0.3, 0.0),
    }.items():
        joints[:, template.joint(name)] = torch.tensor(value)
    return turned(template, replace(pose, joints=joints), "head", (0.0, -0.3, 0.1))


def views(avatar: Avatar, template: Template) -> dict[str, tuple[Pose, Camera]]:
    """The poses and cameras of the table."""
    pose, camera = avatar.source.pose, avatar.source.camera.resized(SIZE, SIZE)
    pivot = pose_template(template, avatar.identity, pose).joints[0, template.joint("spine3")]
    return {
        "own": (pose, camera),
        "+30": (pose, camera.orbit(math.radians(30), 0.0, pivot)),
        "-30": (pose, camera.orbit(math.radians(-30), 0.0, pivot)),
        "55": (pose, camera.orbit(math.radians(55), 0.0, pivot)),
        "head": (turned(template, pose, "head", (0.0, math.radians(25), 0.0)), camera),
        "arms": (raised(template, pose), camera),
    }


def head_camera(avatar: Avatar, template: Template, size: int = 320) -> Camera:
    """A close-up of the face, in the photo's own view."""
    camera = avatar.source.camera
    joints = pose_template(template, avatar.identity, avatar.source.pose).joints[0]
    eyes = joints[[template.joint("left_eye_smplhf"), template.joint("right_eye_smplhf")]].mean(
        0, keepdim=True
    )
    (x, y), depth = (
        camera.project(eyes - torch.tensor([[0.0, 0.02, 0.0]]))[0][0].tolist(),
        camera.project(eyes)[1],
    )
    zoom = size / (2 * 0.17 * float(camera.intrinsics[0, 0]) / float(depth))
    matrix = torch.tensor([[zoom, 0, size / 2 - zoom * x], [0, zoom, size / 2 - zoom * y], [0, 0, 1]])
    return camera.through(matrix, size, size)


def source_in(avatar: Avatar, photo: Photo, camera: Camera) -> np.ndarray:
    """The photo as the given camera of the same view frames it, (H, W, 3) in [0, 1]."""
    change = camera.intrinsics.double() @ torch.linalg.inv(avatar.source.camera.intrinsics.double())
    matrix = (change @ avatar.source.crop_from_image.double()).numpy()
    return (
        warp_affine(photo.pixels, matrix, (camera.width, camera.height), border=255.0).astype(np.float32)
        / 255
    )


def evaluate(
    photo: Photo, tracked: TrackedSequence, template: Template, config: BaselineConfig | None = None
) -> tuple[Row, np.ndarray, np.ndarray]:
    """One portrait: figures, a row of views and a row of faces."""
    config = config or BaselineConfig()
    stages = Stages(STAGES)
    avatar = reconstruct(photo, tracked, template=template, config=config, stages=stages)
    tables = surface_tables(template, config.texture_size)
    camera = avatar.source.camera.resized(config.work_size, config.work_size)
    posed = pose_template(template, avatar.identity, avatar.source.pose)
    bare = see(to_camera(posed.vertices[0], camera), tables, camera, guessed_faces(tracked, tables))
    picture = matte_person(photo, tracked, bare, tables, config)
    alpha = resize_area(picture.alpha, (SIZE, SIZE))
    inside = resize_area(picture.inside.astype(np.float32), (SIZE, SIZE)) > 0.5
    target = alpha[..., None] * resize_area(picture.image, (SIZE, SIZE)) + (1 - alpha[..., None])

    figures, tiles = {}, [source_in(avatar, photo, avatar.source.camera.resized(SIZE, SIZE))]
    own_color = own_alpha = None
    for name, (pose, view) in views(avatar, template).items():
        color, cover = draw(avatar, template, pose, view)
        if name == "own":
            own_color, own_alpha = color, cover
        figures[name] = holes(cover)
        tiles.append(color)
    person, shown = (alpha > 0.5) & inside, (own_alpha > 0.5) & inside
    error = float(((own_color - target)[inside] ** 2).mean())
    close = head_camera(avatar, template)
    faces = [source_in(avatar, photo, close), draw(avatar, template, avatar.source.pose, close)[0]]
    for units in EXPRESSIONS.values():
        expression = torch.zeros_like(avatar.source.pose.expression)
        for unit, value in units.items():
            expression[:, template.unit(unit)] = value
        faces.append(draw(avatar, template, replace(avatar.source.pose, expression=expression), close)[0])
    row = Row(
        10 * math.log10(1 / error),
        float((person & shown).sum() / (person | shown).sum()),
        float(100 * (person & ~shown).sum() / person.sum()),
        figures,
        len(avatar.gaussians),
        stages.seconds,
    )
    return row, np.hstack(tiles), np.hstack(faces)


def print_row(name: str, row: Row) -> None:
    """One line of the table."""
    print(
        f"{name:<14}{row.psnr:7.2f}{row.iou:8.4f}{row.uncovered:7.2f}   "
        + "".join(f"{row.holes[n]:7.2f}" for n in ("own", "+30", "-30", "55", "head", "arms"))
        + f"{row.gaussians:9d}{sum(row.seconds.values()):7.2f}",
        flush=True,
    )


def print_summary(rows: dict[str, Row], profile: bool) -> None:
    """Means, minima and stage times."""
    values = list(rows.values())
    mean = Row(
        np.mean([r.psnr for r in values]),
        np.mean([r.iou for r in values]),
        np.mean([r.uncovered for r in values]),
        {n: np.mean([r.holes[n] for r in values]) for n in values[0].holes},
        int(np.mean([r.gaussians for r in values])),
        {"all": np.median([sum(r.seconds.values()) for r in values])},
    )
    print_row("MEAN", mean)
    worst = min(rows, key=lambda n: rows[n].psnr)
    print(
        f"{len(rows)} portraits; least PSNR {rows[worst].psnr:.2f} ({worst}), "
        f"least IoU {min(r.iou for r in values):.4f}, most uncovered {max(r.uncovered for r in values):.2f} %"
    )
    if profile:
        for stage in STAGES:
            print(f"{stage:<14}{np.median([r.seconds[stage] for r in values]):7.2f} s median")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--portraits", type=Path, default=shared_folder() / "portraits")
    parser.add_argument("--out", type=Path, help="folder for contact sheets")
    parser.add_argument("--only", nargs="*", help="file names without extension")
    parser.add_argument("--profile", action="store_true", help="median seconds of every stage")
    options = parser.parse_args()
    from guava.tracking import track_image

    files = sorted(options.portraits.glob("*.jpg"))
    if options.only:
        files = [f for f in files if f.stem in options.only]
    if not files:
        sys.exit(f"No portraits in '{options.portraits}'; set GUAVA_SHARED.")
    template, rows, failed = load_template(), {}, {}
    head = "portrait         PSNR     IoU  unc.%   holes %: own    +30    -30     55   head   arms"
    print(head + "   number  seconds")
    for file in files:
        photo = load_photo(file)
        try:
            row, sheet, faces = evaluate(photo, track_image(photo), template)
        except GuavaError as error:
            failed[file.stem] = str(error)
            continue
        rows[file.stem] = row
        print_row(file.stem, row)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            save_png(options.out / f"{file.stem}.png", sheet)
            save_png(options.out / f"{file.stem}_face.png", faces)
    if rows:
        print_summary(rows, options.profile)
    for name, reason in failed.items():
        print(f"{name}: {reason}")


if __name__ == "__main__":
    main()
