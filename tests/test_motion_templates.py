"""Clips and motions on templates whose faces are moved differently: units, or jaw, lids and eye joints."""

from dataclasses import replace

import pytest
import torch
from samples import small_avatar
from synthetic_models import synthetic_template

from guava.body import EHM, Identity, Pose, load_template
from guava.body.controls import FULL_JAW, FaceControls, read_controls, with_units, write_controls
from guava.body.ehm import JAW, LEFT_EYE, RIGHT_EYE
from guava.body.template import plain_head
from guava.body.transfer import unit_transfer
from guava.motion import CLIP_NAMES, apply_motion, for_template, load_motion, make_clip, save_motion


@pytest.fixture(scope="module")
def licensed():
    return synthetic_template()


LIPS, LIDS = (13, 14), (159, 145)


def gap(template, pose, pair):
    """(T,) metres between two landmarks."""
    table = template.landmarks["mediapipe478"]
    rows = list(pair)
    ids, inverse = template.faces[table.faces[rows]].unique(return_inverse=True)
    with torch.no_grad():
        vertices = EHM(template, ids)(Identity.neutral(template), pose).vertices
    upper, lower = (vertices[:, inverse] * table.barycentrics[rows][..., None]).sum(2).unbind(1)
    return (upper - lower).norm(dim=-1)


@pytest.mark.parametrize("name", CLIP_NAMES)
def test_clips_move_a_face_without_units(licensed, name):
    clip, known = make_clip(name, licensed), make_clip(name)
    assert clip.template_name == "smplx-flame" and clip.expression_names == licensed.expression_names
    blinks = known.pose.expression[:, known.expression_names.index("eyeBlinkLeft")]
    torch.testing.assert_close(clip.pose.eyelids[:, 0], blinks)
    opened = known.pose.expression[:, known.expression_names.index("jawOpen")]
    if name == "talk":
        assert float(clip.pose.joints[:, JAW, 0].max()) > 0.5 * FULL_JAW * float(opened.max())
    gaze = read_controls(known.pose, known.expression_names).gaze
    torch.testing.assert_close(clip.pose.joints[:, LEFT_EYE, 1], gaze[:, 0, 0])
    torch.testing.assert_close(clip.pose.joints[:, RIGHT_EYE, 0], -gaze[:, 1, 1])
    # Loops stay seamless and nothing jumps.
    step = (clip.pose.joints - clip.pose.joints.roll(1, 0)).abs().max()
    assert float(step) < 0.35
    assert torch.isfinite(clip.pose.joints).all()


def test_arms_reach_where_the_open_templates_do(licensed):
    """The wave beside the head, on a skeleton with another origin and other lengths of bone."""
    template = load_template()
    moved = replace(
        template,
        hash="c" * 64,
        body=replace(template.body, joints_template=0.9 * template.body.joints_template - 0.3),
    )
    for other in (licensed, moved):
        tips = []
        for each in (template, other):
            clip = make_clip("wave", each)
            frame = 60
            with torch.no_grad():
                joints = EHM(each, torch.zeros(1, dtype=torch.long))(
                    Identity.neutral(each), clip.pose[frame : frame + 1]
                ).joints[0]
            arm = [each.joint(f"right_{part}") for part in ("shoulder", "elbow", "wrist")]
            length = (joints[arm[1]] - joints[arm[0]]).norm() + (joints[arm[2]] - joints[arm[1]]).norm()
            tips.append((joints[arm[2]] - joints[arm[0]]) / length)
        assert float((tips[0] - tips[1]).norm()) < 0.1


def test_controls_survive_the_way_there_and_back(licensed):
    open_template = load_template()
    controls = FaceControls(
        torch.tensor([[0.2, 0.03, 0.0], [0.0, -0.05, 0.0]]),
        torch.tensor([[1.0, 0.0], [0.3, 0.7]]),
        torch.tensor([[[0.2, -0.1], [0.15, -0.1]], [[-0.3, 0.2], [0.0, 0.0]]]),
    )
    for template in (licensed, open_template):
        pose, lost = write_controls(Pose.rest(template, 2), template, controls)
        back = read_controls(pose, template.expression_names)
        assert lost == ()
        for name in ("jaw", "lids", "gaze"):
            torch.testing.assert_close(getattr(back, name), getattr(controls, name), atol=1e-6, rtol=0)


def test_a_jaw_opens_alike_on_both(licensed):
    open_template = load_template()
    gaps = {}
    for template in (licensed, open_template):
        poses = [with_units(Pose.rest(template), template, {"jawOpen": v}) for v in (0.0, 1.0)]
        gaps[template.name] = float(gap(template, poses[1], LIPS) - gap(template, poses[0], LIPS))
    assert gaps["open"] > 0.015
    assert gaps["smplx-flame"] == pytest.approx(gaps["open"], rel=0.35)
    shut = with_units(Pose.rest(licensed), licensed, {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0})
    assert float(gap(licensed, shut, LIDS)) < 0.5 * float(gap(licensed, Pose.rest(licensed), LIDS))


def test_units_become_coefficients_that_move_the_same_landmarks(licensed):
    """Smile, pucker and brows against the open template's own, by landmarks; jaw and lids stay put."""
    open_template = load_template()
    tables = [t.landmarks["mediapipe478"] for t in (licensed, open_template)]
    both = ((tables[0].weights > 0) & (tables[1].weights > 0)).nonzero()[:, 0]
    both = both[both < 468]
    mixed = {"browInnerUp": 0.8, "mouthFrownRight": 0.5}
    for units in ({"mouthSmileLeft": 1.0}, {"mouthPucker": 1.0}, mixed):
        moved = []
        for template, table in zip((licensed, open_template), tables, strict=True):
            pose = with_units(Pose.rest(template), template, units)
            ids, inverse = template.faces[table.faces[both]].unique(return_inverse=True)
            ehm = EHM(template, ids)
            with torch.no_grad():
                delta = ehm(Identity.neutral(template), pose).vertices - ehm(
                    Identity.neutral(template), Pose.rest(template)
                ).vertices
            moved.append((delta[:, inverse] * table.barycentrics[both][..., None]).sum(2)[0])
        mine, theirs = moved
        assert float((mine - theirs).norm()) < 0.35 * float(theirs.norm())
        assert float(theirs.norm(dim=-1).max()) > 0.002
    transfer = unit_transfer(licensed)
    names = ("jawOpen", "eyeBlinkLeft", "eyeLookUpRight", "tongueOut")
    rows = [transfer.names.index(name) for name in names]
    assert float(transfer.coefficients[rows].abs().max()) == 0
    assert unit_transfer(load_template("open-plain-head")).coefficients.shape == (52, 0)


def test_mouth_close_keeps_a_jaw_shut(licensed):
    pose = with_units(Pose.rest(licensed), licensed, {"jawOpen": 0.5, "mouthClose": 0.5})
    assert float(pose.joints[:, JAW].abs().max()) == 0


def test_a_motion_of_the_open_template_drives_a_licensed_one(licensed):
    clip = make_clip("talk")
    moved, notes = for_template(clip, licensed)
    assert moved.template_hash == licensed.hash and moved.template_name == "smplx-flame"
    own = make_clip("talk", licensed)
    torch.testing.assert_close(moved.pose.eyelids, own.pose.eyelids)
    torch.testing.assert_close(moved.pose.joints[:, JAW], own.pose.joints[:, JAW])
    body = [j for j in range(55) if j not in (JAW, LEFT_EYE, RIGHT_EYE)]
    assert torch.equal(moved.pose.joints[:, body], clip.pose.joints[:, body])
    torch.testing.assert_close(moved.pose.expression, own.pose.expression)
    text = " ".join(notes)
    assert "jaw, lids and gaze were carried over" in text and "the template 'open'" in text
    assert "translated into the coefficients of 'smplx-flame'" in text
    tongue = clip.pose.expression.clone()
    tongue[:, clip.expression_names.index("tongueOut")] = 0.5
    _, notes = for_template(replace(clip, pose=replace(clip.pose, expression=tongue)), licensed)
    assert any("dropped" in note and "tongueOut" in note for note in notes), "what was lost is said"


def test_a_motion_of_a_licensed_template_drives_the_open_one(licensed, tmp_path):
    clip = make_clip("talk", licensed)
    clip.pose.expression[:, 3] = 0.7
    path = tmp_path / "m.motion"
    save_motion(clip, path)
    back, notes = for_template(load_motion(path), load_template())
    names = back.expression_names
    jaw = clip.pose.joints[:, JAW, 0].clamp(0, FULL_JAW)
    torch.testing.assert_close(FULL_JAW * back.pose.expression[:, names.index("jawOpen")], jaw)
    torch.testing.assert_close(back.pose.expression[:, names.index("eyeBlinkRight")], clip.pose.eyelids[:, 1])
    assert float(back.pose.joints[:, [JAW, LEFT_EYE, RIGHT_EYE]].abs().max()) == 0, "units turn the eyes"
    assert any("flame_expression_03" in note for note in notes)


def test_plain_heads_say_that_they_cannot_blink(licensed):
    for template in (plain_head(licensed), load_template("open-plain-head")):
        moved, notes = for_template(make_clip("idle"), template)
        assert any("cannot show blinks" in note for note in notes)
        assert float(moved.pose.expression.abs().max()) == 0
        back, _ = for_template(moved, load_template())
        assert float(back.pose.expression[:, load_template().unit("eyeBlinkLeft")].max()) == 0


def test_a_licensed_avatar_performs_a_clip_from_the_photos_pose(licensed):
    avatar = small_avatar(licensed)
    avatar.source.pose.joints[:, JAW, 0] = 0.2
    avatar.source.pose.joints[:, [LEFT_EYE, RIGHT_EYE], 1] = 0.1
    done = apply_motion(make_clip("idle", licensed), avatar, licensed, anchor="photo")
    assert float(done.pose.joints[:, JAW, 0].abs().max()) == 0, "an open mouth in the photo is not kept"
    looks = done.pose.joints[:, LEFT_EYE, 1]
    assert float(looks.mean()) == pytest.approx(0.1, abs=0.05), "the photo's gaze is"
    neck = licensed.joint("neck")
    ehm = EHM(licensed, torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        first = ehm(avatar.identity, done.pose[:1]).joints[0, neck]
        photo = ehm(avatar.identity, avatar.source.pose).joints[0, neck]
    torch.testing.assert_close(first, photo, atol=1e-5, rtol=0)
