"""Legs: fitted where the picture shows them, at rest where it does not; and people keep a person's size."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from samples import small_avatar
from synthetic_models import synthetic_template

from guava.body import EHM, Identity, Pose, load_template
from guava.body.template import plain_head
from guava.camera import Camera
from guava.model.baseline import BaselineConfig
from guava.model.baseline.surface import surface_tables
from guava.motion import apply_motion, make_clip
from guava.synth import LEG_KINDS, frame_person, sample_legs, sample_person, sample_pose
from guava.tracking import SourceMedia, TrackingConfig, track_detections
from guava.tracking.detectors.base import FrameDetections, PersonDetection, PointSet
from guava.tracking.fit.offsets import body_offset, offsets_known
from guava.tracking.keypoints import fit_keypoints
from guava.tracking.observations import BODY_POINTS

SIZE = 768
MEDIA = SourceMedia("made.png", "", SIZE, SIZE)
LEGS = [f"{side}_{part}" for side in ("left", "right") for part in ("hip", "knee", "ankle")]


@pytest.fixture(scope="module")
def template():
    return load_template()


def whole_body(template, kind, seed=3, frames=1):
    """Identity and pose of somebody, crown to soles, and what a perfect detector sees of face and body."""
    rng = np.random.default_rng(seed)
    person = replace(sample_person(seed, template), garment=None, hair=None)
    pose = sample_legs(rng, template, sample_pose(rng, template, "arms_down"), kind)
    camera = Camera.frontal(SIZE)
    pose = frame_person(rng, person, pose, template, kind="full_body", camera=camera)
    return person.identity, pose, detected(template, person.identity, pose) * frames


def detected(template, identity, pose):
    camera = Camera.frontal(SIZE)
    with torch.no_grad():
        out = EHM(template)(identity, pose)
    parents = template.body.parents.tolist()
    table = template.landmarks["mediapipe478"]
    marks = (out.vertices[0, template.faces[table.faces]] * table.barycentrics[..., None]).sum(1)
    face = camera.project(marks)[0].double().numpy()
    body, sure, world = np.zeros((33, 2)), np.zeros(33), np.zeros((33, 3))
    for name, index in BODY_POINTS["mediapipe33"].items():
        joint = template.joint(name)
        turn = out.joint_transforms[0, parents[joint], :3, :3]
        aside = body_offset(name).float() * offsets_known(template)
        point = out.joints[0, joint] + turn @ aside
        body[index] = camera.project(point[None])[0][0].numpy()
        sure[index], world[index] = 1, out.joints[0, joint].numpy() * [1, -1, -1]
    found = PersonDetection(
        np.concatenate([face.min(0), body[sure > 0].max(0)]), 1.0,
        PointSet("mediapipe478", face, np.ones(len(face))),
        PointSet("mediapipe33", body, sure, None, world), None, None,
    )
    return [FrameDetections(found, 1, None)]


def track(template, found, **options):
    return track_detections(
        found, [(SIZE, SIZE)] * len(found), media=MEDIA, detector="made", template=template, **options
    )


def without(found, *parts):
    """The detections without the body points of these joints of either side."""
    out = []
    for frame in found:
        body = frame.person.body
        sure = body.confidence.copy()
        for name, index in BODY_POINTS["mediapipe33"].items():
            if name.partition("_")[2] in parts:
                sure[index] = 0.4
        person = replace(frame.person, body=replace(body, confidence=sure))
        out.append(replace(frame, person=person))
    return out


@pytest.mark.parametrize("kind", LEG_KINDS)
def test_seen_legs_are_found(template, kind):
    identity, pose, found = whole_body(template, kind)
    tracked = track(template, found)
    model = EHM(template)
    with torch.no_grad():
        mine, truth = model(tracked.identity, tracked.pose).joints[0], model(identity, pose).joints[0]
    rows = [template.joint(name) for name in LEGS]
    pixels, crop = tracked.camera[0].project(mine)[0], tracked.crop_from_image[0]
    pixels = (pixels - crop[:2, 2]) / crop[0, 0]
    gap = (pixels - Camera.frontal(SIZE).project(truth)[0])[rows].norm(dim=1)
    assert float(gap.max()) < 0.02 * SIZE
    away = ((mine - mine[0]) - (truth - truth[0]))[rows].norm(dim=1)
    assert float(away.max()) < 0.2
    # Knees are hinges that bend backwards.
    knees = tracked.pose.joints[0, [template.joint("left_knee"), template.joint("right_knee")]]
    assert (knees[:, 0] > -0.1).all() and float(knees[:, 1:].abs().max()) < 0.25


def test_a_raised_thigh_points_forwards_even_if_the_detector_takes_it_for_straight(template):
    _, pose, found = whole_body(template, "lift")
    person = found[0].person
    world = person.body.world.copy()
    for knee, ankle, hip in ((25, 27, 23), (26, 28, 24)):
        below = world[ankle] - world[knee]
        world[knee] = world[hip] + [0, 0.43, 0]
        world[ankle] = world[knee] + below
    wrong = replace(found[0], person=replace(person, body=replace(person.body, world=world)))
    hips = [template.joint("left_hip"), template.joint("right_hip")]
    tracked = track(template, [wrong])
    raised = int(pose.joints[0, hips, 0].argmin())
    assert float(pose.joints[0, hips[raised], 0]) < -0.6
    assert float(tracked.pose.joints[0, hips[raised], 0]) < -0.3


@pytest.mark.parametrize("name", ["smplx-flame", "smplx-flame-plain-head", "open-plain-head"])
def test_legs_on_other_templates(name):
    template = load_template(name) if name.startswith("open") else synthetic_template()
    if name == "smplx-flame-plain-head":
        template = plain_head(template)
    pose = Pose.rest(template)
    turns = {"left_hip": (-1.0, 0.1, 0.1), "left_knee": (1.4, 0, 0), "right_hip": (-0.05, 0, -0.1)}
    for joint, turn in turns.items():
        pose.joints[:, template.joint(joint)] = torch.tensor(turn)
    for joint, turn in (("left_shoulder", -1.0), ("right_shoulder", 1.0)):
        pose.joints[:, template.joint(joint), 2] = turn
    pose.translation[:] = torch.tensor([0.0, 0.1, -26.0])
    tracked = track(template, detected(template, Identity.neutral(template), pose))
    for joint in ("left_hip", "left_knee", "right_hip", "right_knee"):
        at = template.joint(joint)
        assert float((tracked.pose.joints[0, at] - pose.joints[0, at]).norm()) < 0.35, joint


def test_unseen_legs_rest(template):
    _, _, found = whole_body(template, "sit")
    joints = [template.joint(name) for name in LEGS]
    tracked = track(template, without(found, "knee"))  # and what hangs from them
    assert (tracked.pose.joints[0, joints] == 0).all()
    # An ankle out of sight leaves the knee straight, not the hip.
    half = track(template, without(found, "ankle"))
    turns = dict(zip(LEGS, half.pose.joints[0, joints], strict=True))
    assert float(turns["left_hip"].norm()) > 0.7
    assert float(turns["left_knee"].norm()) < 0.1


def test_legs_move_smoothly_and_rest_in_frames_that_lose_them(template):
    _, _, found = whole_body(template, "lift", frames=4)
    rng = np.random.default_rng(0)
    shaken = []
    for frame in found:
        body = frame.person.body
        points = body.points + rng.normal(0, 3, body.points.shape)
        shaken.append(replace(frame, person=replace(frame.person, body=replace(body, points=points))))
    joints = [template.joint(name) for name in LEGS]

    def steps(**options):
        turns = track(template, shaken, fps=30.0, **options).pose.joints[:, joints]
        return float((turns[1:] - turns[:-1]).norm(dim=-1).mean())

    assert steps() < 0.6 * steps(config=TrackingConfig(smoothness=0.0))
    lost = track(template, found[:3] + without(found[:1], "knee"), config=TrackingConfig(smoothness=0.0))
    assert float(lost.pose.joints[3, joints].norm(dim=-1).max()) < 0.1
    assert float(lost.pose.joints[0, joints].norm(dim=-1).max()) > 0.6


def core_sizes(template, identity):
    with torch.no_grad():
        joints = EHM(template, torch.tensor([0]))(identity, Pose.rest(template)).joints[0]
    names = [f"{s}_{p}" for s in ("left", "right") for p in ("hip", "knee", "ankle", "shoulder", "elbow")]
    rows = [template.joint(name) for name in (*names, "neck", "head", "spine2")]
    parents = template.body.parents[rows].long()
    return (joints[rows] - joints[parents]).norm(dim=1)


def test_biased_landmarks_of_many_frames_do_not_shrink_people(template):
    """Another detector's idea of a face: wrong alike in all frames, so that evidence piles up against the
    priors of shape. The person once came out five times too small and near."""
    rng = np.random.default_rng(5)
    pose = replace(Pose.rest(template), translation=torch.tensor([[0.0, -0.45, -9.0]]))
    camera = Camera.frontal(512)
    with torch.no_grad():
        out = EHM(template)(Identity.neutral(template), pose)
    table = template.landmarks["ibug68"]
    marks = (out.vertices[0, template.faces[table.faces]] * table.barycentrics[..., None]).sum(1)
    face = camera.project(marks)[0].numpy()
    face = face.mean(0) + (face - face.mean(0)) * [0.9, 1.1] + rng.normal(0, 3.0, face.shape)
    body, score = np.full((18, 2), np.nan), np.zeros(18)
    for name, index in BODY_POINTS["openpose18"].items():
        body[index], score[index] = camera.project(out.joints[0, [template.joint(name)]])[0][0].numpy(), 1
    frames = 6
    moved = face[None] + rng.normal(0, 1.0, (frames, *face.shape))
    tracked = fit_keypoints(
        np.repeat(body[None], frames, 0) / 512, np.repeat(score[None], frames, 0),
        np.zeros((frames, 2, 21, 2)), np.zeros((frames, 2, 21)), moved / 512, np.ones((frames, 68)), fps=24.0,
    )  # fmt: skip
    ratio = core_sizes(template, tracked.identity) / core_sizes(template, Identity.neutral(template))
    assert float(ratio.min()) > 0.4 and 0.7 < float(ratio.mean()) < 1.3
    distance = -tracked.pose.translation[:, 2] * tracked.crop_from_image[0, 0, 0]
    assert 6.0 < float(distance.mean()) < 12.0


def test_discs_of_legs_are_as_dense_as_their_size_allows(template):
    """Texels of legs once lay 13 mm apart under discs of 6 mm at most."""
    tables, config = surface_tables(template, 512), BaselineConfig()
    with torch.no_grad():
        rest = EHM(template)(Identity.neutral(template), Pose.rest(template)).vertices[0].double().numpy()
    steps = np.linalg.norm(tables.texel_jacobian @ rest[tables.faces], axis=-1).max(1)
    legs = tables.texels_of("legs")
    apart = steps[tables.texel_face[legs]] * tables.texel_size[legs]
    assert legs.sum() > 20_000
    assert np.quantile(config.disc_size * apart, 0.99) < config.max_disc
    assert tables.texel_rest[legs][:, 1].min() < -0.95


def test_drivers_without_legs_leave_the_photos(template):
    """Our clips and motions of upper bodies keep a stance; motions with legs set it."""
    avatar = small_avatar(template)
    legs = [template.joint(name) for name in LEGS]
    stance = avatar.source.pose.joints.clone()
    stance[0, legs[0], 0], stance[0, legs[1], 0] = -1.0, 1.2
    avatar = replace(avatar, source=replace(avatar.source, pose=replace(avatar.source.pose, joints=stance)))
    clip = make_clip("idle", template)
    for anchor in ("photo", "motion"):
        driven = apply_motion(clip, avatar, template, anchor=anchor)
        torch.testing.assert_close(
            driven.pose.joints[:, legs], stance[:, legs].expand(len(clip), -1, -1), atol=1e-5, rtol=0
        )
    walking = clip.pose.joints.clone()
    walking[:, legs[1], 0] = 0.5
    driven = apply_motion(replace(clip, pose=replace(clip.pose, joints=walking)), avatar, template)
    assert float((driven.pose.joints[:, legs] - walking[:, legs]).abs().max()) < 1e-5
    assert float(driven.pose.joints[:, legs[0]].abs().max()) == 0
