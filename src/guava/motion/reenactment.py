"""Reenactment as the paper's release does it: a tracked clip drives an avatar, before the clip's own camera.

From the avatar come shape, joint offsets, head and hand scale (``Identity``) and the Gaussians; from the
tracked clip come all joints (body, hands, jaw, eyes), expressions, lids and the camera. The clip may show the
avatar's own person (self-reenactment; its first frame is the usual source) or somebody else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from guava.avatar.avatar import Avatar
from guava.avatar.framing import skeleton
from guava.body import Identity, Pose, Template, template_for
from guava.camera import Camera
from guava.errors import InputError, TemplateMismatchError
from guava.motion.file import for_template
from guava.motion.keypoints import motion_of
from guava.motion.viewpoint import root_joint, seen_from
from guava.tracking.sequence import TrackedSequence

ReenactmentCamera = Literal["target", "video", "source"]
Placement = Literal["neck", "target"]

_BONES = (
    "spine1", "spine2", "spine3", "neck", "head", "left_collar", "right_collar", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
)  # fmt: skip


@dataclass(frozen=True)
class Reenactment:
    """An avatar in the frames of a tracked clip.

    Attributes:
        identity: B = 1, the avatar's own.
        pose: B = T, in the world of ``camera``.
        camera: Batched (T, ...); render frame t with ``pose[t : t + 1]`` and ``camera[t]``.
        valid: (T,) bool; False where the clip shows nobody (the pose is the nearest frame's).
        fps: Frames a second.
        notes: What was changed, in sentences.
    """

    identity: Identity
    pose: Pose
    camera: Camera
    valid: Tensor
    fps: float
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.pose.joints.shape[0]


def reenact(
    avatar: Avatar,
    tracked: TrackedSequence,
    template: Template,
    *,
    camera: ReenactmentCamera = "target",
    placement: Placement = "neck",
) -> Reenactment:
    """Drive an avatar with a tracked clip.

    Args:
        avatar: Who is shown.
        tracked: Who drives; of another template only if its joints and units have the same names.
        template: The avatar's.
        camera: "target": the clip's own, of its square crop (the release). "video": the same at the pixels of
            the whole video. "source": the avatar's source camera; the person turns and moves in it as the
            driver does in theirs, starting where the avatar's photo has them. (The release has such a switch,
            but it passes the wrong record.)
        placement: Where the person stands in the clip's cameras. "neck": where they look as large as the
            driver, with the neck at the driver's pixel in the first valid frame; way and distance from the
            camera are the driver's times the ratio of the two bodies' sizes, because one camera cannot tell a
            small person from a far one. "target": the driver's translation as it is (the release), which puts
            the *root* where the driver's is. For the same person both are the same, bit for bit.

    Raises:
        TemplateMismatchError: The avatar or the clip does not fit ``template``.
        MissingAssetError: The clip's own template is not installed.
        InputError: The size of the video is asked for and not known.
    """
    if avatar.template_hash != template.hash:
        raise TemplateMismatchError(
            f"The avatar belongs to another body template than '{template.name}'.",
            "Make it again from its photo with: guava reconstruct",
        )
    pose, notes, driver = tracked.pose, (), template
    if tracked.template_hash != template.hash:
        driver = template_for(tracked.template_hash, tracked.template_name)
        motion, notes = for_template(motion_of(tracked, driver), template)
        # A motion is told for the frontal camera; here the clip's own cameras go with its own root.
        joints = torch.cat([pose.joints[:, :1], motion.pose.joints[:, 1:]], 1)
        pose = replace(motion.pose, joints=joints, translation=pose.translation)
    first = int(tracked.valid.nonzero()[0])

    cameras, growth = tracked.camera, 0.0
    if camera == "video" and min(tracked.media.width, tracked.media.height) < 1:
        raise InputError(
            f"The tracked clip '{tracked.media.name}' does not say how large its video is.",
            "Use the camera 'target', which is its square crop's.",
        )
    if camera == "source" or placement == "neck":
        growth = _size(avatar.identity, template) / _size(tracked.identity, driver) - 1
    if camera == "source":
        pose = seen_from(
            pose, tracked.camera.world_to_camera, avatar.source.camera.world_to_camera,
            root_joint(avatar.identity, template),
        )
        cameras = _repeated(avatar.source.camera, len(tracked))
        there = _neck(avatar.identity, avatar.source.pose, template)
    else:
        there = _neck(tracked.identity, tracked.pose[first : first + 1], driver)
        there = there + growth * (there - cameras[first].center)
        if camera == "video":
            image_from_crop = torch.linalg.inv(tracked.crop_from_image.double())
            cameras = cameras.through(image_from_crop, tracked.media.width, tracked.media.height)
    if camera == "source" or placement == "neck":
        way = pose.translation + growth * (pose.translation - cameras.center)
        pose = replace(pose, translation=way)
        here = _neck(avatar.identity, pose[first : first + 1], template)
        pose = replace(pose, translation=pose.translation + (there - here))
    return Reenactment(avatar.identity, pose, cameras, tracked.valid, tracked.fps, notes)


def _neck(identity: Identity, pose: Pose, template: Template) -> Tensor:
    """(3,) world metres in a pose of B = 1."""
    with torch.no_grad():
        return skeleton(template)(identity, pose).joints[0, template.joint("neck")]


def _size(identity: Identity, template: Template) -> float:
    """Length of the upper body's bones together, metres."""
    names, parents = template.body.joint_names, template.body.parents.tolist()
    with torch.no_grad():
        joints = skeleton(template)(identity, Pose.rest(template)).rest_joints[0].double()
    bones = [names.index(name) for name in _BONES]
    return float((joints[bones] - joints[[parents[b] for b in bones]]).norm(dim=1).sum())


def _repeated(camera: Camera, count: int) -> Camera:
    return replace(
        camera, world_to_camera=camera.world_to_camera.expand(count, 4, 4),
        intrinsics=camera.intrinsics.expand(count, 3, 3),
    )
