"""The same movement before another camera.

Guava's tracker keeps its camera and moves people in front of it; the tracks of the paper's release keep
people at the origin, upside down, and move the camera. A motion has no camera, so it is told for the frontal
one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from guava.avatar.avatar import Avatar
from guava.avatar.framing import skeleton
from guava.body import Identity, Pose, Template
from guava.camera import Camera
from guava.rotation import axis_angle_to_matrix, matrix_to_axis_angle

FRONTAL = Camera.frontal(1).world_to_camera
"""(4, 4) of the camera that motions are told for."""


def seen_from(pose: Pose, cameras: Tensor, camera: Tensor, root: Tensor) -> Pose:
    """Poses that one camera sees as others saw the given ones.

    Args:
        pose: B = T.
        cameras: (T, 4, 4) or (4, 4) world_to_camera that see ``pose``.
        camera: (4, 4) world_to_camera that shall see the result.
        root: (3,) the person's root joint in the rest pose.

    Returns:
        The same poses with other root orientation and translation; root orientations stay bit-equal where no
        turn is needed.
    """
    move = torch.linalg.inv(camera.double()) @ cameras.double().expand(len(pose.joints), 4, 4)
    turn, shift = move[:, :3, :3], move[:, :3, 3]
    # The root turns in place: x -> R (x - root) + root + translation.
    place = root.double() + pose.translation.double()
    translation = (turn @ place[..., None]).squeeze(-1) + shift - root.double()
    before = pose.joints[:, 0]
    after = matrix_to_axis_angle(turn @ axis_angle_to_matrix(before.double())).to(before)
    still = (turn - torch.eye(3).to(turn)).abs().amax((1, 2)) < 1e-7
    joints = torch.cat([torch.where(still[:, None], before, after)[:, None], pose.joints[:, 1:]], 1)
    return replace(pose, joints=joints, translation=translation.to(pose.translation))


def before_avatar(pose: Pose, avatar: Avatar, template: Template) -> Pose:
    """Poses (B = T) that are told for the frontal camera, turned for the avatar's own source camera: the same
    ones for an avatar from Guava's tracker, others for one from a track of the release."""
    camera = avatar.source.camera.world_to_camera
    if is_frontal(camera):
        return pose
    return seen_from(pose, FRONTAL, camera, root_joint(avatar.identity, template))


def root_joint(identity: Identity, template: Template) -> Tensor:
    """(3,) the root joint in the rest pose; posed, it turns in place and is moved by the translation."""
    with torch.no_grad():
        return skeleton(template)(identity, Pose.rest(template)).rest_joints[0, 0]


def is_frontal(cameras: Tensor) -> bool:
    """Whether all world_to_camera (*B, 4, 4) have the axes of :meth:`guava.camera.Camera.frontal`, at the
    origin."""
    return bool((cameras - FRONTAL.to(cameras)).abs().max() < 1e-6)
