"""Cameras of novel views: free orbits, turntables, and the orbit of the authors' release.

All are OpenCV cameras in the avatar's world (y up), for :meth:`guava.avatar.Animator.render`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from guava.avatar.avatar import Avatar
from guava.avatar.framing import skeleton
from guava.body import Template
from guava.camera import FOCAL_NDC, Camera

RELEASE_DYNAMIC_FRAMES, RELEASE_STATIC_FRAMES = 120, 360
"""Length of the release's orbits: while the driving motion goes on, and round a frozen pose."""

_PI = 3.14  # [Q] as the release writes it, where it writes it
_TARGET_HEIGHT = 0.75  # of the point that it looks at, metres in its turned world


def orbit(camera: Camera, pivot: Tensor, azimuth: float, elevation: float) -> Camera:
    """The camera moved round ``pivot`` (3,) at its own distance, upright in the world.

    The pivot stays at its pixel and depth, so that a framed camera stays framed; with both angles 0 the
    result is ``camera``. Unlike :meth:`Camera.orbit`, which turns about the camera's own axes, the way round
    is about the world's vertical, also for a camera that looks down.

    Args:
        camera: One camera.
        pivot: World metres.
        azimuth: Degrees; positive moves the camera to the person's left (the picture's right), +-180 behind
            them.
        elevation: Degrees, added to the camera's own; positive moves it up. At +-90 it looks straight down or
            up, and beyond the person is upside down.
    """
    w2c = camera.world_to_camera
    # In the release's world, where up is -y, the same way round is the other sense about y.
    a, e = math.radians(azimuth if w2c[1, 1] <= 0 else -azimuth), math.radians(elevation)
    # The world turns the opposite way: about its vertical, then about the camera's horizontal axis.
    about_up = w2c.new_tensor([[math.cos(a), 0, -math.sin(a)], [0, 1, 0], [math.sin(a), 0, math.cos(a)]])
    about_x = w2c.new_tensor([[1, 0, 0], [0, math.cos(e), -math.sin(e)], [0, math.sin(e), math.cos(e)]])
    before = w2c[:3, :3]
    rotation = about_x @ before @ about_up
    pivot = pivot.to(w2c)
    out = w2c.clone()
    out[:3, :3] = rotation
    out[:3, 3] = before @ pivot + w2c[:3, 3] - rotation @ pivot
    return replace(camera, world_to_camera=out)


def orbit_framing(
    avatar: Avatar, means: Tensor, size: int, *, margin: float = 0.08, whole: bool = False
) -> tuple[Camera, Tensor]:
    """A square camera on the photo's side that keeps its subject in the frame from everywhere.

    :func:`guava.avatar.framing.framing` fills the picture from where the photo was taken, with the pivot at
    the neck; seen from above or below, outstretched arms would leave it.

    Args:
        avatar: Whom to frame.
        means: (N, 3) its posed Gaussians (``PosedGaussians.means``), world metres.
        size: Side of the picture in pixels.
        margin: Free share of the half side.
        whole: Frame the whole body, not what the photo shows.

    Returns:
        The camera, and the pivot (3,) to go round, which it has in its middle.
    """
    source = avatar.source
    means = means.to(source.camera.world_to_camera)
    kept = avatar.gaussians.opacities.to(means) > 0.05
    if not whole:
        pixels, depth = source.camera.project(means)
        affine = torch.linalg.inv(source.crop_from_image.to(means))
        pixels = pixels @ affine[:2, :2].T + affine[:2, 2]
        size_of_photo = pixels.new_tensor([source.width, source.height])
        kept = kept & (depth > 0) & ((pixels >= 0) & (pixels <= size_of_photo)).all(-1)
    subject = means[kept] if bool(kept.any()) else means
    # Stray Gaussians must not shrink the picture.
    low, high = (torch.quantile(_sample(subject), q, dim=0) for q in (0.002, 0.998))
    pivot = (low + high) / 2
    radius = torch.quantile((_sample(subject) - pivot).norm(dim=1), 0.998)
    (center,), (depth,) = source.camera.project(pivot[None])
    focal = source.camera.intrinsics[0, 0]
    half = float(focal * radius / depth) * (1 + margin)
    scale = size / (2 * half)
    frame = torch.eye(3).to(means) * scale
    frame[:2, 2] = size / 2 - scale * center
    frame[2, 2] = 1
    return source.camera.through(frame, size, size), pivot


def _sample(points: Tensor) -> Tensor:
    """At most 100,000 of the points, evenly: what torch.quantile can take."""
    return points[:: max(1, -(-len(points) // 100_000))]


def turntable(camera: Camera, pivot: Tensor, frames: int, elevation: float = 0.0) -> Iterator[Camera]:
    """``frames`` cameras that go once round ``pivot``, starting at ``camera``'s own azimuth."""
    for frame in range(frames):
        yield orbit(camera, pivot, 360 * frame / frames, elevation)


def release_orbit(source_camera: Camera, frames: int, frame: int) -> Camera:
    """Frame ``frame`` of ``frames`` of the release's novel-view orbit, in the release's own world.

    There the person is at the origin, and their root orientation turns them upside down (world y down), so
    that the source camera's axes are about the world's; :func:`avatar_release_orbit` does the same for an
    avatar of any world. The camera swings 20 degrees to either side and 17 up and down, looks at a point on
    the chest and keeps the source's distance from the origin.

    [Q] 3.14 stands for pi in the angles, so that the last frame does not quite meet the first.

    Args:
        source_camera: One camera; its size is kept.
        frames: 120 with a moving pose (``RELEASE_DYNAMIC_FRAMES``), 360 with a frozen one.
        frame: From 0.
    """
    radius = float(source_camera.center.double().norm())
    h = _PI / 2 + 0.35 * math.sin(2 * _PI * frame / frames)
    v = _PI / 2 - 0.05 + 0.3 * math.cos(2 * _PI * frame / frames)
    v = min(max(v, 1e-5), math.pi - 1e-5)
    phi = math.acos(1 - 2 * v / math.pi)
    x, z = math.sin(phi) * math.cos(math.pi - h), math.sin(phi) * math.sin(math.pi - h)
    origin = radius * torch.tensor([x, math.cos(phi), z], dtype=torch.float64)
    unit = torch.nn.functional.normalize
    forward = unit(torch.tensor([0, _TARGET_HEIGHT, 0], dtype=torch.float64) - origin, dim=0)
    up = torch.tensor([0.0, 1, 0], dtype=torch.float64)
    right = -unit(torch.linalg.cross(up, forward), dim=0)
    up = unit(torch.linalg.cross(forward, right), dim=0)
    camera_to_world = torch.eye(4, dtype=torch.float64)
    camera_to_world[:3] = torch.stack([right, up, forward, origin], 1)
    turned = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    world_to_camera = torch.linalg.inv(camera_to_world) @ turned
    side = source_camera.width
    f, c = FOCAL_NDC * side / 2, side / 2
    intrinsics = torch.tensor([[f, 0, c], [0, f, c], [0, 0, 1]])
    return Camera(
        world_to_camera.to(source_camera.world_to_camera), intrinsics.to(source_camera.intrinsics), side, side
    )


def release_world(avatar: Avatar, template: Template) -> Tensor:
    """(4, 4) from the avatar's world to the release's, as :func:`release_orbit` needs it.

    An avatar from the release's own tracks is there already (its source camera's y points along the world's).
    Guava's tracker keeps the person upright and moves them in front of the camera: the world is turned by
    half about x, and the middle of the source picture, at the person's depth, goes to the point that the
    orbit looks at, so that the person stays in the frame that they were tracked in.
    """
    source = avatar.source
    w2c = source.camera.world_to_camera
    if w2c[1, 1] > 0:
        return torch.eye(4).to(w2c)
    with torch.no_grad():
        joints = skeleton(template)(avatar.identity, source.pose).joints
    depth = source.camera.transform(joints[0, :1].to(w2c))[0, 2]
    ahead = w2c[:3, :3].T @ w2c.new_tensor([0.0, 0, 1])
    middle = source.camera.center + depth * ahead
    world = torch.diag(w2c.new_tensor([1.0, -1, -1, 1]))
    world[:3, 3] = w2c.new_tensor([0.0, -_TARGET_HEIGHT, 0]) - world[:3, :3] @ middle
    return world


def avatar_release_orbit(avatar: Avatar, template: Template, frames: int, frame: int) -> Camera:
    """:func:`release_orbit` of an avatar's source camera, in the avatar's world."""
    world = release_world(avatar, template)
    source = avatar.source.camera
    there = replace(source, world_to_camera=source.world_to_camera @ torch.linalg.inv(world))
    camera = release_orbit(there, frames, frame)
    return replace(camera, world_to_camera=camera.world_to_camera @ world)
