"""Cameras that show what the photo showed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from guava.avatar.avatar import Avatar
from guava.body import EHM, Pose, Template
from guava.camera import Camera

_EYE_DETAIL = 800
"""Samples a metre at which open eyes look open."""
_MOST_SAMPLES = 2048
"""Most samples along a picture's side for the sake of that."""


def skeleton(template: Template) -> EHM:
    """The cheapest EHM that gives posed joints: of one vertex."""
    return EHM(template, torch.zeros(1, dtype=torch.long))


def joint_pixels(avatar: Avatar, template: Template, pose: Pose, camera: Camera) -> Tensor:
    """(T, J, 2) pixels of the avatar's joints in ``pose`` (B = T)."""
    with torch.no_grad():
        return camera.project(skeleton(template)(avatar.identity, pose).joints)[0]


def photo_camera(avatar: Avatar) -> Camera:
    """The camera of the whole photo, at the photo's own pixels."""
    source = avatar.source
    image_from_crop = torch.linalg.inv(source.crop_from_image.float())
    return source.camera.through(image_from_crop, source.width, source.height)


def framing(
    avatar: Avatar,
    template: Template,
    size: int,
    *,
    poses: Pose | None = None,
    hands: tuple[bool, bool] = (True, True),
) -> Camera:
    """A square camera from where the photo was taken, framed by what the photo shows.

    It is the part of the avatar's crop that lies in the photo, made square. Where the photo cuts the person
    (below the chest, say), the frame ends too, so that nothing that was made up becomes the subject. If the
    person's hands rise above the lower edge in ``poses`` and leave the frame, it widens upwards and sideways
    until they are in. Where the photo shows the person down to the ankles, head and legs are kept in the
    frame too, and it widens downwards as well.

    Args:
        avatar: Whom to frame.
        template: The avatar's.
        size: Side of the picture in pixels.
        poses: B = T, all poses that will be shown.
        hands: Left and right: whose hands are to be kept in the frame.
    """
    source = avatar.source
    side = float(source.camera.width)
    corners = torch.tensor([[0.0, 0.0], [source.width, source.height]])
    affine = source.crop_from_image.float()
    (photo_left, photo_top), (photo_right, photo_bottom) = (
        corners @ affine[:2, :2].T + affine[:2, 2]
    ).tolist()
    # Outside the photo nothing was seen: the frame is the part of the crop that lies in it, made square.
    left, right = max(0.0, photo_left), min(side, photo_right)
    top, bottom = max(0.0, photo_top), min(side, photo_bottom)
    width = max(right - left, bottom - top)
    center, top = (left + right) / 2, bottom - width

    if poses is not None:
        names = [
            f"{s}_{part}"
            for s, wanted in zip(("left", "right"), hands, strict=True)
            if wanted
            for part in ("elbow", "wrist", "index3", "middle3", "ring3", "pinky3", "thumb3")
        ]
        ankles = [template.joint(f"{s}_ankle") for s in ("left", "right")]
        stood = joint_pixels(avatar, template, source.pose, source.camera)[0, ankles]
        standing = bool(((stood > torch.tensor([left, top])) & (stood < torch.tensor([right, bottom]))).all())
        room = 0.15 * width  # sleeves and fingers reach beyond the joints
        if standing:
            legs = ("knee", "ankle", "foot")
            names += ["head", *(f"{s}_{part}" for s in ("left", "right") for part in legs)]
            room = 0.12 * width  # crown and toes, in a frame of about the person's height
        points = joint_pixels(avatar, template, poses, source.camera)[:, [template.joint(n) for n in names]]
        points = points.reshape(-1, 2)
        if not standing:
            points = points[points[:, 1] < bottom]
        if len(points):
            low, high = points.amin(0) - room, points.amax(0) + room
            x0, x1 = min(center - width / 2, float(low[0])), max(center + width / 2, float(high[0]))
            top = min(top, float(low[1]))
            bottom = max(bottom, float(high[1])) if standing else bottom
            width = max(x1 - x0, bottom - top)
            center = (x0 + x1) / 2
            top = bottom - width
    scale = size / width
    frame = torch.tensor([[scale, 0, scale * (width / 2 - center)], [0, scale, -scale * top], [0, 0, 1.0]])
    return source.camera.through(frame, size, size)


def pivot(avatar: Avatar, template: Template) -> Tensor:
    """(3,) the point that the camera goes round: inside the neck, in the photo's pose, world metres."""
    with torch.no_grad():
        joints = skeleton(template)(avatar.identity, avatar.source.pose).joints[0]
    return (joints[template.joint("neck")] + joints[template.joint("head")]) / 2


def samples(camera: Camera, pose: Pose) -> int:
    """Samples per pixel side for a picture of this pose (B = 1; see ``Animator.render``): 2 up to 1024
    pixels, and up to 4 where a body is so far away that lids would cover its eyes all the same."""
    base = 2 if max(camera.width, camera.height) <= 1024 else 1
    depth = camera.transform(pose.translation[:1].to(camera.world_to_camera))[0, 2].clamp(min=1e-3)
    needed = math.ceil(_EYE_DETAIL / float(camera.intrinsics[0, 0] / depth))
    return max(base, min(needed, 4, _MOST_SAMPLES // max(camera.width, camera.height)))
