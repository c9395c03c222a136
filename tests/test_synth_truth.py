"""The renders' truth: what is said about a picture must be what the picture shows."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from guava.body import EHM, load_template
from guava.camera import Camera
from guava.rendering.mesh import rasterize_mesh
from guava.synth import (
    HARD_UNITS,
    POSE_KINDS,
    TEST_SEEDS,
    TUNING_SEEDS,
    accuracy_sample,
    accuracy_set,
    dress,
    frame_person,
    render_person,
    sample_expression,
    sample_person,
    sample_pose,
    unit_visibility,
)
from guava.synth.outfit import build_garment, sample_garment_style
from guava.synth.render import GARMENT_PART, HAIR_PART
from guava.synth.surface import surface_of

SIZE = 192


@pytest.fixture(scope="module")
def template():
    return load_template()


@pytest.fixture(scope="module")
def samples(template):
    return list(accuracy_set(TUNING_SEEDS.start + 900_000, 4, template, size=SIZE))


def test_the_same_seed_gives_the_same_picture(template, samples):
    again = accuracy_sample(samples[2].seed, template, size=SIZE, index=2)
    assert np.array_equal(again.view.rgb, samples[2].view.rgb)
    assert torch.equal(again.view.pose.joints, samples[2].view.pose.joints)
    other = accuracy_sample(samples[2].seed + 1000, template, size=SIZE, index=2)
    assert not np.array_equal(other.view.rgb, samples[2].view.rgb)
    assert not torch.equal(other.view.identity.head_shape, samples[2].view.identity.head_shape)


def test_seed_ranges_do_not_meet():
    assert max(TUNING_SEEDS) < min(TEST_SEEDS)


def test_records_have_their_shapes_and_ranges(template, samples):
    for sample in samples:
        view = sample.view
        assert view.rgb.shape == (SIZE, SIZE, 3) and view.rgb.dtype == np.uint8
        assert (
            view.alpha.shape
            == view.depth.shape
            == view.part_ids.shape
            == view.body_mask.shape
            == (SIZE, SIZE)
        )
        assert 0 <= view.alpha.min() and view.alpha.max() <= 1
        assert np.isfinite(view.joints3d).all() and view.joints3d.shape == (template.body.num_joints, 3)
        assert np.allclose(np.linalg.norm(view.gaze, axis=1), 1, atol=1e-5)
        assert view.landmarks2d.shape == (478, 2)
        known = set(range(len(template.part_names))) | {-1, GARMENT_PART, HAIR_PART}
        assert set(np.unique(view.part_ids)) <= known
    assert [s.kind for s in samples] == list(POSE_KINDS)


def test_parameters_reproduce_joints_and_vertices(template, samples):
    for sample in samples:
        output = EHM(template)(sample.view.identity, sample.view.pose)
        assert np.allclose(output.joints[0].detach(), sample.view.joints3d, atol=1e-5)
        assert np.allclose(output.vertices[0].detach(), sample.view.vertices, atol=1e-5)


def test_upper_body_joints_project_into_the_silhouette(template, samples):
    names = [
        "neck",
        "head",
        "spine3",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
    ]
    hits = total = 0
    for sample in samples:
        view = sample.view
        pixels, depth = view.camera.project(
            torch.from_numpy(view.joints3d[[template.joint(n) for n in names]])
        )
        assert bool((depth > 0).all())
        for x, y in pixels.numpy():
            if 0 <= x < SIZE and 0 <= y < SIZE:
                total += 1
                hits += view.alpha[int(y), int(x)] > 0.5
    assert total >= 20 and hits == total


def test_depth_and_coverage_agree_with_the_bare_mesh(template):
    person = replace(sample_person(7, template), garment=None, hair=None)
    rng = np.random.default_rng(7)
    camera = Camera.frontal(SIZE)
    pose = frame_person(rng, person, sample_pose(rng, template, "one_hand"), template, camera=camera)
    view = render_person(person, pose, camera, template)
    large = rasterize_mesh(
        torch.from_numpy(view.vertices), template.faces, camera.resized(2 * SIZE, 2 * SIZE)
    )
    coverage = large.mask.numpy().reshape(SIZE, 2, SIZE, 2).mean((1, 3))
    assert np.allclose(view.alpha, coverage, atol=1e-6)
    assert np.array_equal(view.alpha, view.body_mask)
    inside = view.alpha == 1
    # Off-centre samples of one pixel lie at most a few millimetres apart in depth away from contours.
    centre = rasterize_mesh(torch.from_numpy(view.vertices), template.faces, camera).depth.numpy()
    assert np.median(np.abs(view.depth[inside] - centre[inside])) < 0.002
    white = (view.rgb == 255).all(-1)
    assert white[view.alpha == 0].all() and not white[inside].any()


def test_parts_are_where_their_joints_are(template, samples):
    view = samples[2].view
    ids = {name: template.part_names.index(name) for name in template.part_names}
    for side in ("left", "right"):
        seen = np.argwhere(view.part_ids == ids[f"{side}_hand"])
        joint = torch.from_numpy(view.joints3d[[template.joint(f"{side}_middle1")]])
        pixel = view.camera.project(joint)[0][0].numpy()
        assert len(seen) > 20
        assert np.linalg.norm(np.median(seen[:, ::-1], 0) - pixel) < 0.12 * SIZE
    face = np.argwhere(view.part_ids == ids["face"])
    trusted = template.landmarks["mediapipe478"].weights.numpy() > 0
    assert np.linalg.norm(face[:, ::-1].mean(0) - view.landmarks2d[trusted].mean(0)) < 0.05 * SIZE


def test_clothes_and_hair_leave_the_body(template):
    person = sample_person(3, template)
    dressed = dress(person, template, hair="long")
    rng = np.random.default_rng(3)
    camera = Camera.frontal(SIZE)
    pose = frame_person(rng, person, sample_pose(rng, template, "arms_down"), template, camera=camera)
    bare = render_person(replace(person, garment=None, hair=None), pose, camera, template, supersample=1)
    view = render_person(dressed, pose, camera, template, supersample=1)
    assert view.alpha.sum() > 1.08 * bare.alpha.sum()
    # The body stays inside, but for the hands' and face's own outline.
    assert (view.body_mask > view.alpha).mean() < 0.002
    assert (view.part_ids == GARMENT_PART).mean() > 0.1 and (view.part_ids == HAIR_PART).mean() > 0.005
    head = np.argwhere(view.part_ids == HAIR_PART)[:, 0].mean()
    assert head < np.argwhere(view.part_ids == GARMENT_PART)[:, 0].mean()


def test_no_garment_covers_the_face(template):
    landmarks = template.landmarks["mediapipe478"]
    surface = surface_of(template)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        garment = build_garment(surface, sample_garment_style(rng, loose=bool(seed % 2)))
        distance = cKDTree(surface.landmarks[landmarks.weights.numpy() > 0]).query(garment.canonical)[0]
        assert distance.min() > 0.015
        faces = np.flatnonzero(garment.covered)
        assert not np.isin(faces, np.flatnonzero(surface.part_faces("face", "scalp"))).any()


def test_expressions_are_bounded_sparse_and_symmetric_enough(template):
    rng = np.random.default_rng(0)
    drawn = torch.stack([sample_expression(rng, template) for _ in range(300)])
    assert drawn.min() >= 0 and drawn.max() <= 1
    for unit, limit in template.expression_bounds:
        assert bool((drawn[:, template.unit(unit)] <= drawn[:, template.unit(limit)] + 1e-6).all())
    assert float((drawn == 0).float().mean()) > 0.7
    strong = (drawn > 0.3).float().sum(1)
    assert 1.5 < float(strong.mean()) < 8
    left, right = drawn[:, template.unit("mouthSmileLeft")], drawn[:, template.unit("mouthSmileRight")]
    assert float(torch.corrcoef(torch.stack([left, right]))[0, 1]) > 0.8
    never = [n for i, n in enumerate(template.expression_names) if float(drawn[:, i].max()) < 0.3]
    assert never == ["tongueOut"]
    assert bool(
        (drawn[:, template.unit("eyeLookUpLeft")] * drawn[:, template.unit("eyeLookDownLeft")] == 0).all()
    )


def test_gaze_follows_the_look_units(template):
    person = replace(sample_person(5, template), hair=None)
    rng = np.random.default_rng(5)
    camera = Camera.frontal(96)
    pose = frame_person(rng, person, sample_pose(rng, template, "head"), template, kind="head", camera=camera)
    turn = {}
    for name in ("none", "eyeLookOutLeft", "eyeLookInLeft", "eyeLookUpLeft"):
        expression = torch.zeros_like(pose.expression)
        if name != "none":
            expression[0, template.unit(name)] = 1
        turn[name] = render_person(
            person, replace(pose, expression=expression), camera, template, supersample=1
        ).gaze[0]
    head = (
        EHM(template)(person.identity, pose)
        .joint_transforms[0, template.joint("head"), :3, :3]
        .detach()
        .numpy()
    )
    local = {k: head.T @ v for k, v in turn.items()}
    assert local["eyeLookOutLeft"][0] > local["none"][0] + 0.1  # the person's left is +x
    assert local["eyeLookInLeft"][0] < local["none"][0] - 0.1
    assert local["eyeLookUpLeft"][1] > local["none"][1] + 0.05


def test_probes_are_exact(template):
    blink = accuracy_sample(11, template, size=64, index=1)
    assert blink.probe == "blink"
    active = {n for i, n in enumerate(template.expression_names) if blink.view.pose.expression[0, i] != 0}
    assert active == {"eyeBlinkLeft", "eyeBlinkRight"}
    assert float(blink.view.pose.expression.max()) == 1.0
    smile = accuracy_sample(13, template, size=64, index=3)
    assert smile.probe == "smile" and float(smile.view.pose.expression.max()) == pytest.approx(0.8)


def test_visible_hands_are_flagged(template):
    person = sample_person(1, template)
    rng = np.random.default_rng(4)
    camera = Camera.frontal(SIZE)
    shown = frame_person(rng, person, sample_pose(rng, template, "two_hands"), template, camera=camera)
    assert render_person(person, shown, camera, template).hands_visible.all()
    close = frame_person(
        rng, person, sample_pose(rng, template, "head"), template, kind="head", camera=camera
    )
    view = render_person(person, close, camera, template)
    assert not view.hands_visible.any() and view.face_visible


def test_units_that_cannot_be_seen(template):
    seen = unit_visibility(template)
    assert set(seen) == set(template.expression_names)
    across = {name: value[0] for name, value in seen.items()}
    assert across["jawOpen"] > 15 and across["tongueOut"] < 0.5
    for name in HARD_UNITS:
        assert across[name] < 4 or seen[name][1] > 2 * across[name]


def test_a_person_of_another_template_is_refused(template):
    person = replace(sample_person(0, template), template_hash="0" * 64)
    with pytest.raises(ValueError, match="another template"):
        render_person(person, sample_pose(np.random.default_rng(0), template), Camera.frontal(64), template)


@pytest.mark.skipif(importlib.util.find_spec("mediapipe") is None, reason="mediapipe is not installed")
def test_mediapipe_finds_the_faces(template):
    from guava.tracking.detectors import create_detector

    detector = create_detector("mediapipe")
    found = 0
    for index in (0, 2, 3, 4, 6, 7):
        sample = accuracy_sample(TUNING_SEEDS.start + 910_000 + index, template, index=index)
        detector.reset()
        person = detector.detect(sample.view.rgb).person
        if person is not None and person.face is not None:
            across = np.linalg.norm(person.face.points[33] - person.face.points[263])
            found += (
                np.linalg.norm(person.face.points - sample.view.landmarks2d, axis=1).mean() < 0.2 * across
            )
    assert found >= 5
