"""Motion files, and motions of other templates."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from guava.body import load_template
from guava.container import read_container, write_container
from guava.errors import FileFormatError, TemplateMismatchError
from guava.motion import for_template, held, load_motion, make_clip, resample, save_motion
from guava.rotation import axis_angle_to_matrix


@pytest.fixture(scope="module")
def motion():
    clip = make_clip("talk")
    valid = torch.ones(len(clip), dtype=torch.bool)
    valid[5:9] = False
    return replace(clip, valid=valid, fps=29.97, name="Ä talk", loop=False)


def test_round_trip_loses_nothing(motion, tmp_path):
    path = tmp_path / "m.motion"
    save_motion(motion, path)
    read = load_motion(path)
    for f in fields(motion.pose):
        assert torch.equal(getattr(read.pose, f.name), getattr(motion.pose, f.name)), f.name
    assert torch.equal(read.timestamps, motion.timestamps) and read.timestamps.dtype == torch.float64
    assert torch.equal(read.valid, motion.valid)
    for name in ("fps", "template_hash", "joint_names", "expression_names", "loop", "name"):
        assert getattr(read, name) == getattr(motion, name), name


def test_keys_are_those_of_the_format(motion, tmp_path):
    path = tmp_path / "m.motion"
    save_motion(motion, path)
    tensors, header = read_container(path, "motion", 1)
    assert set(tensors) == {
        "pose.joints",
        "pose.expression",
        "pose.body_expression",
        "pose.eyelids",
        "pose.translation",
        "timestamps",
        "valid",
    }
    assert {"fps", "template_hash", "joint_names", "expression_names", "loop", "name"} <= set(header)


def rewritten(path, tensors=None, header=None, version=1):
    """The file with other content."""
    old_tensors, old_header = read_container(path, "motion", 1)
    content = {k: v for k, v in old_header.items() if k not in ("kind", "version", "checksum")}
    write_container(path, "motion", version, old_tensors | (tensors or {}), content | (header or {}))


def test_absolute_translation_starts_at_the_first_valid_frame(motion, tmp_path):
    path = tmp_path / "m.motion"
    valid = motion.valid.clone()
    valid[:3] = False
    save_motion(replace(motion, valid=valid), path)
    place = torch.tensor([0.5, -0.2, -11.0])
    moved = motion.pose.translation + place
    rewritten(
        path,
        {"pose.translation": moved, "tracking.anything": torch.ones(2)},
        {"absolute_translation": True},
    )
    read = load_motion(path)
    assert torch.allclose(read.pose.translation, moved - moved[3])
    assert read.pose.translation[3].abs().max() == 0


def test_damage_is_noticed(motion, tmp_path):
    path, bad = tmp_path / "m.motion", tmp_path / "bad.motion"
    save_motion(motion, path)
    data = path.read_bytes()
    for keep in range(0, len(data), len(data) // 50):
        bad.write_bytes(data[:keep])
        with pytest.raises(FileFormatError):
            load_motion(bad)
    for place in range(0, len(data), len(data) // 200):
        bad.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(FileFormatError):
            load_motion(bad)


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"pose.joints": torch.zeros(240, 54, 3)}, "54"),
        ({"pose.expression": torch.zeros(10, 52)}, "10 frames"),
        ({"pose.translation": torch.full((240, 3), float("nan"))}, "not finite"),
        ({"valid": torch.zeros(240, dtype=torch.bool)}, "nobody"),
        ({"timestamps": torch.zeros(3, dtype=torch.float64)}, "one entry a frame"),
    ],
)
def test_unusable_content_is_named(motion, tmp_path, tensors, message):
    path = tmp_path / "m.motion"
    save_motion(motion, path)
    rewritten(path, tensors)
    with pytest.raises(FileFormatError, match=message):
        load_motion(path)


def test_newer_format_is_refused(motion, tmp_path):
    path = tmp_path / "m.motion"
    save_motion(motion, path)
    rewritten(path, version=2)
    with pytest.raises(FileFormatError, match="Update"):
        load_motion(path)


def test_other_template_with_the_same_names_in_another_order(motion):
    template = load_template()
    order = torch.randperm(len(motion.joint_names), generator=torch.Generator().manual_seed(1))
    units = list(motion.expression_names)[::-1] + ["novelUnit"]
    foreign = replace(
        motion,
        template_hash="f" * 64,
        joint_names=tuple(motion.joint_names[i] for i in order),
        expression_names=tuple(units),
        pose=replace(
            motion.pose,
            joints=motion.pose.joints[:, order],
            expression=torch.cat([motion.pose.expression.flip(1), torch.ones(len(motion), 1)], 1),
        ),
    )
    back, notes = for_template(foreign, template)
    assert torch.equal(back.pose.joints, motion.pose.joints)
    assert torch.equal(back.pose.expression, motion.pose.expression)
    assert back.template_hash == template.hash
    assert any("novelUnit" in note for note in notes)
    assert for_template(motion, template) == (motion, ())


def test_template_without_common_names_is_refused(motion):
    template = load_template()
    foreign = replace(motion, template_hash="f" * 64)
    with pytest.raises(TemplateMismatchError, match="other joints.*spine_77"):
        for_template(replace(foreign, joint_names=("spine_77", *motion.joint_names[1:])), template)
    numbered = tuple(f"pca{i}" for i in range(len(motion.expression_names)))
    with pytest.raises(TemplateMismatchError, match="pca0"):
        for_template(replace(foreign, expression_names=numbered), template)


def test_gaps_are_held(motion):
    valid = motion.valid.clone()
    valid[:2] = False
    pose = held(replace(motion, valid=valid))
    assert torch.equal(pose.joints[5:9], motion.pose.joints[4:5].expand(4, -1, -1))
    assert torch.equal(pose.joints[:2], motion.pose.joints[2:3].expand(2, -1, -1))
    assert torch.equal(pose.joints[9:], motion.pose.joints[9:])


def test_resampling_keeps_speed_and_loop():
    clip = make_clip("idle")
    slow = resample(clip, 15.0)
    assert len(slow) == len(clip) // 2 and slow.fps == 15.0
    assert torch.allclose(slow.pose.expression, clip.pose.expression[::2], atol=1e-6)
    assert torch.allclose(
        axis_angle_to_matrix(slow.pose.joints), axis_angle_to_matrix(clip.pose.joints[::2]), atol=1e-5
    )
    fast = resample(clip, 60.0)
    assert len(fast) == 2 * len(clip)
    between = (clip.pose.translation + clip.pose.translation.roll(-1, 0)) / 2
    assert torch.allclose(fast.pose.translation[1::2], between, atol=1e-6)


def test_resampling_follows_uneven_timestamps():
    clip = make_clip("idle")
    stamps = torch.from_numpy(np.cumsum(np.random.default_rng(0).uniform(0.01, 0.06, len(clip))))
    travel = torch.stack([stamps.float()] * 3, 1)
    uneven = replace(clip, loop=False, timestamps=stamps, pose=replace(clip.pose, translation=travel))
    even = resample(uneven, 30.0)
    expected = even.timestamps.float() + float(stamps[0])
    assert torch.allclose(even.pose.translation[:, 0], expected, atol=1e-4)
