"""Driving an avatar: it keeps its place and shape, and takes what the motion gives."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import small_avatar

from guava.avatar import Animator
from guava.avatar.framing import framing, joint_pixels, pivot
from guava.avatar.views import orbit
from guava.body import load_template
from guava.commands.render import find_pose
from guava.errors import FileFormatError, TemplateMismatchError
from guava.motion import (
    apply_motion,
    eased,
    make_clip,
    motion_of,
    read_keypoints,
    track_keypoints,
)
from guava.motion.viewpoint import root_joint, seen_from
from guava.rotation import axis_angle_to_matrix

SHARED = Path(os.environ.get("GUAVA_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="module")
def template():
    return load_template()


@pytest.fixture(scope="module")
def avatar(template):
    return small_avatar(template)


def test_neck_starts_where_the_photo_has_it(avatar, template):
    neck = template.joint("neck")
    here = joint_pixels(avatar, template, avatar.source.pose, avatar.source.camera)[0, neck]
    clip = make_clip("wave", template)
    turned = clip.pose.joints.clone()
    turned[:, 0, 1] = 0.7
    for motion in (clip, replace(clip, pose=replace(clip.pose, joints=turned))):
        for anchor in ("motion", "photo"):
            pose = apply_motion(motion, avatar, template, anchor=anchor).pose
            there = joint_pixels(avatar, template, pose, avatar.source.camera)[:, neck]
            assert torch.allclose(there[0], here, atol=1e-3)
            assert (there - here).norm(dim=-1).max() < 3


def test_motion_anchor_takes_everything_from_the_motion(avatar, template):
    clip = make_clip("talk", template)
    performance = apply_motion(clip, avatar, template, anchor="motion", arms="motion")
    assert torch.equal(performance.pose.joints, clip.pose.joints)
    assert torch.equal(performance.pose.expression, clip.pose.expression)
    assert performance.arms == (True, True) and performance.notes == ()


@pytest.mark.parametrize("anchor", ["motion", "photo"])
def test_avatars_from_tracks_of_the_release_perform_the_same(avatar, template, anchor):
    """There the person is upside down, and so is the camera."""
    source = avatar.source
    world = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    world[:3, 3] = torch.tensor([0.1, -0.4, 3])
    camera = replace(source.camera, world_to_camera=source.camera.world_to_camera @ torch.linalg.inv(world))
    before, after = source.camera.world_to_camera, camera.world_to_camera
    pose = seen_from(source.pose, before, after, root_joint(avatar.identity, template))
    theirs = replace(avatar, source=replace(source, pose=pose, camera=camera))
    clip = make_clip("wave", template)
    turned = clip.pose.joints.clone()
    turned[:, 0, 1] = torch.linspace(0, 0.5, len(clip))
    moved = clip.pose.translation + torch.linspace(0, 0.2, len(clip))[:, None] * torch.tensor([1.0, 0.5, 1])
    clip = replace(clip, pose=replace(clip.pose, joints=turned, translation=moved))
    wanted, got = (
        joint_pixels(a, template, apply_motion(clip, a, template, anchor=anchor).pose, a.source.camera)
        for a in (avatar, theirs)
    )
    assert (got - wanted).abs().max() < 0.05
    rest, standing = (find_pose("rest", 0, a, template) for a in (avatar, theirs))
    wanted = joint_pixels(avatar, template, rest, source.camera)
    assert (joint_pixels(theirs, template, standing, camera) - wanted).abs().max() < 0.05


def test_photo_anchor_moves_from_the_photo(avatar, template):
    joints = avatar.source.pose.joints.clone()
    head = template.joint("head")
    joints[0, head] = torch.tensor([0.1, 0.5, -0.05])
    looking = avatar.source.pose.expression.clone()
    looking[0, template.unit("eyeLookOutLeft")] = 0.4
    source = replace(avatar.source, pose=replace(avatar.source.pose, joints=joints, expression=looking))
    turned = replace(avatar, source=source)
    clip = make_clip("talk", template)
    pose = apply_motion(clip, turned, template, anchor="photo").pose
    expected = axis_angle_to_matrix(joints[:, head]) @ axis_angle_to_matrix(clip.pose.joints[:, head])
    assert torch.allclose(axis_angle_to_matrix(pose.joints[:, head]), expected, atol=1e-5)
    out, into = template.unit("eyeLookOutLeft"), template.unit("eyeLookInLeft")
    signed = clip.pose.expression[:, out] - clip.pose.expression[:, into] + 0.4
    assert torch.allclose(pose.expression[:, out] - pose.expression[:, into], signed, atol=1e-5)
    assert torch.equal(
        pose.expression[:, template.unit("jawOpen")], clip.pose.expression[:, template.unit("jawOpen")]
    )


def test_hands_that_were_not_seen_keep_near_the_photo(template):
    avatar = small_avatar(template, hands_seen=(True, False))
    clip = make_clip("wave", template)
    performance = apply_motion(clip, avatar, template, anchor="photo")
    assert performance.arms == (True, False)
    assert len(performance.notes) == 1 and "right hand" in performance.notes[0]
    shoulder = template.joint("right_shoulder")
    photo = axis_angle_to_matrix(avatar.source.pose.joints[0, shoulder])
    turn = photo.T @ axis_angle_to_matrix(performance.pose.joints[:, shoulder])
    angle = torch.arccos(((turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1))
    assert 0.02 < angle.max() < 0.101
    raised = apply_motion(clip, avatar, template, anchor="photo", arms="right")
    assert torch.equal(raised.pose.joints[:, shoulder], clip.pose.joints[:, shoulder])
    assert raised.arms == (False, True)


def test_eased_begins_and_ends_in_the_given_pose(avatar, template):
    clip = make_clip("wave", template)
    pose = eased(clip.pose, avatar.source.pose, 0.5, clip.fps)
    start = axis_angle_to_matrix(avatar.source.pose.joints)
    for frame in (0, -1):
        assert torch.allclose(
            axis_angle_to_matrix(pose.joints[frame : frame + 1 or None]), start, atol=1e-4
        )
    middle = slice(20, 100)
    assert torch.allclose(
        axis_angle_to_matrix(pose.joints[middle]), axis_angle_to_matrix(clip.pose.joints[middle]), atol=1e-4
    )


def test_another_template_is_refused(avatar, template):
    with pytest.raises(TemplateMismatchError):
        apply_motion(make_clip("idle", template), replace(avatar, template_hash="0" * 64), template)


def test_frame_ends_where_the_photo_ends(avatar, template):
    """The crop reaches 20 px below the photo: the picture must not."""
    crop = torch.tensor([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1.0]])
    source = replace(avatar.source, crop_from_image=crop, height=152)
    camera = framing(replace(avatar, source=source), template, 100)
    below = source.camera.through(torch.linalg.inv(crop), 192, 152)
    pose = source.pose
    crop_y = joint_pixels(avatar, template, pose, below)[0, :, 1]
    frame_y = joint_pixels(avatar, template, pose, camera)[0, :, 1]
    scale = 100 / 192
    assert torch.allclose(frame_y - 100, (crop_y - 152) * scale, atol=0.05)


def test_frame_widens_for_raised_hands(avatar, template):
    narrow = framing(avatar, template, 96)
    performance = apply_motion(make_clip("wave", template), avatar, template, anchor="photo", arms="right")
    spread = performance.pose.joints.clone()
    spread[:, template.joint("right_shoulder")] = 0.0
    spread[:, template.joint("right_elbow")] = 0.0
    pose = replace(performance.pose, joints=spread)
    tip = template.joint("right_middle3")
    assert (joint_pixels(avatar, template, pose, narrow)[:, tip, 0] < 0).any()
    wide = framing(avatar, template, 96, poses=pose, hands=(False, True))
    x = joint_pixels(avatar, template, pose, wide)[:, tip, 0]
    assert ((x > 0) & (x < 96)).all()
    assert torch.equal(
        framing(avatar, template, 96, poses=pose, hands=(False, False)).intrinsics, narrow.intrinsics
    )


def test_view_goes_round_the_pivot(avatar, template):
    camera, center = framing(avatar, template, 96), pivot(avatar, template)
    before, depth = camera.project(center[None])
    for yaw, pitch in ((40.0, 0.0), (-170.0, 25.0)):
        after, new_depth = orbit(camera, center, yaw, pitch).project(center[None])
        assert torch.allclose(after, before, atol=1e-3) and torch.allclose(depth, new_depth, atol=1e-4)


def test_supersampled_frames_are_averages(avatar, template):
    """Premultiplied means of 2 x 2 finer pixels, and nothing where no finer pixel has anything."""
    animator, camera = Animator(avatar, template), framing(avatar, template, 40)
    fine = animator.splat(avatar.source.pose, camera.resized(80, 80))
    drawn = animator.render(avatar.source.pose, camera, 2)
    alpha = fine.alpha.reshape(40, 2, 40, 2).mean((1, 3))
    color = fine.features.reshape(40, 2, 40, 2, 3).mean((1, 3))
    assert torch.allclose(drawn[..., 3], alpha, atol=1e-6) and alpha.max() > 0.9
    assert torch.allclose(drawn[..., :3] * drawn[..., 3:], color, atol=1e-5)
    assert torch.equal(drawn[..., 3] == 0, (fine.alpha.reshape(40, 2, 40, 2) == 0).all(3).all(1))


# --- keypoints ----------------------------------------------------------------------------------------------


def keypoints(frames=4):
    return {
        "body": np.zeros((frames, 18, 2)),
        "body_score": np.zeros((frames, 18)),
        "hands": np.zeros((frames, 2, 21, 2)),
        "hands_score": np.zeros((frames, 2, 21)),
        "face": np.zeros((frames, 68, 2)),
        "face_score": np.zeros((frames, 68)),
    }


def test_keypoint_files_are_checked(tmp_path):
    path = tmp_path / "k.npz"
    np.savez(path, **keypoints(), fps=30)
    arrays, fps = read_keypoints(path)
    assert fps == 30 and arrays["hands"].shape == (4, 2, 21, 2)
    np.savez(path, **keypoints())
    assert read_keypoints(path)[1] == 24
    np.savez(path, **(keypoints() | {"face": np.zeros((3, 68, 2))}))
    with pytest.raises(FileFormatError, match="'face'.*T, 68, 2"):
        read_keypoints(path)
    np.savez(path, **keypoints(0))
    with pytest.raises(FileFormatError, match="no frames"):
        read_keypoints(path)
    np.savez(path, **keypoints(), fps=0)
    with pytest.raises(FileFormatError, match="0 frames a second"):
        read_keypoints(path)
    data = path.read_bytes()
    for keep in (0, 10, len(data) // 2):
        path.write_bytes(data[:keep])
        with pytest.raises(FileFormatError):
            read_keypoints(path)


@pytest.mark.skipif(not (SHARED / "motion").is_dir(), reason="needs the shared keypoint clips")
def test_a_thumbs_up_becomes_a_motion(tmp_path, template):
    with np.load(SHARED / "motion" / "gesture_good.npz") as content:
        part = {name: content[name][40:52] for name in content if content[name].ndim}
    np.savez(tmp_path / "k.npz", **part)
    tracked = track_keypoints(tmp_path / "k.npz", template)
    motion = motion_of(tracked, template)
    assert len(motion) == 12 and motion.valid.all() and motion.fps == 24
    assert motion.pose.translation[0].abs().max() == 0
    assert float(tracked.quality.body_error.mean()) < 8
    assert apply_motion(motion, small_avatar(template), template).pose.joints.isfinite().all()
