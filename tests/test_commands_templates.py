"""Commands with a template of the user's own: --template, and files that find theirs by themselves."""

import json

import numpy as np
import pytest
import torch
from samples import small_avatar
from synthetic_models import synthetic_template
from test_tracking_fit import detect, made_pose

from guava.avatar import load_avatar, open_avatar, save_avatar
from guava.body import (
    Identity,
    choose_template,
    installed_templates,
    load_template,
    save_template,
    template_for,
)
from guava.commands.main import main
from guava.container import read_container
from guava.errors import MissingAssetError, TemplateMismatchError
from guava.motion import load_motion, make_clip, save_motion
from guava.tracking import load_tracked


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user's folder with the template smplx-flame."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "templates").mkdir()
    save_template(synthetic_template(), folder / "templates" / "smplx-flame.template", exact=True)
    return folder


@pytest.fixture
def installed(home, monkeypatch, tmp_path):
    monkeypatch.setenv("GUAVA_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return load_template("smplx-flame")


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    """Somebody else's machine."""
    monkeypatch.setenv("GUAVA_HOME", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path)


def keypoints_file(path, template):
    """DWPose's layout, of a person that the template made."""
    pose = made_pose(load_template(), 2)
    found = detect(load_template(), Identity.neutral(load_template()), pose, layout="openpose")
    people = [f.person for f in found]
    arrays = {
        "body": np.stack([p.body.points for p in people]) / 512,
        "body_score": np.stack([p.body.confidence for p in people]),
        "hands": np.stack([[p.left_hand.points, p.right_hand.points] for p in people]) / 512,
        "hands_score": np.ones((2, 2, 21)),
        "face": np.stack([p.face.points for p in people]) / 512,
        "face_score": np.ones((2, 68)),
    }
    np.savez(path, **arrays, fps=25)


def test_templates_are_found_by_hash(installed):
    assert installed_templates() == ("open", "smplx-flame", "open-plain-head", "smplx-flame-plain-head")
    assert template_for(installed.hash).name == "smplx-flame"
    assert template_for(load_template("smplx-flame-plain-head").hash).name == "smplx-flame-plain-head"
    assert choose_template(None, load_template().hash).name == "open"
    with pytest.raises(TemplateMismatchError, match="'smplx-flame'.*not to 'open'"):
        choose_template("open", installed.hash, "smplx-flame")


def test_a_missing_template_is_named(nothing_installed):
    with pytest.raises(MissingAssetError, match="'smplx-flame'.*not installed"):
        template_for("ab" * 32, "smplx-flame", "The avatar")
    with pytest.raises(TemplateMismatchError, match="another version of the template 'open'"):
        template_for("ab" * 32, "open")


@pytest.mark.parametrize("name", ["smplx-flame", "open-plain-head"])
def test_track_writes_the_template_and_animate_finds_it(installed, tmp_path, name, capsys):
    template = load_template(name)
    keypoints_file(tmp_path / "k.npz", template)
    assert main(["track", "k.npz", "-o", "k.motion", "--template", name]) == 0
    tracked, motion = load_tracked("k.motion"), load_motion("k.motion")
    assert (tracked.template_name, tracked.template_hash) == (name, template.hash)
    assert motion.template_name == name and len(motion) == 2
    save_avatar(small_avatar(template, 48), "a.guava")
    assert load_avatar("a.guava").template_name == name
    capsys.readouterr()
    assert main(["animate", "a.guava", "--motion", "k.motion", "--size", "48", "-o", "a.mp4"]) == 0
    assert json.loads((tmp_path / "a.mp4.json").read_text())["template_hash"] == template.hash
    assert "matched by name" not in capsys.readouterr().err, "the motion is of the avatar's own template"
    assert main(["render", "a.guava", "--pose", "talk", "--time", "1", "--size", "48", "-o", "a.png"]) == 0
    assert main(["render", "a.guava", "--template", "open", "-o", "b.png"]) == 2
    assert f"'{name}', not to 'open'" in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()


def test_a_motion_of_another_template_is_carried_over(installed, tmp_path, capsys):
    save_avatar(small_avatar(installed, 48), "a.guava")
    save_motion(make_clip("talk"), "talk.motion")
    arguments = ["animate", "a.guava", "--motion", "talk.motion", "--seconds", "0.2", "--size", "48"]
    assert main([*arguments, "-o", "a.mp4"]) == 0
    assert "jaw, lids and gaze were carried over" in capsys.readouterr().err


def test_files_of_a_template_that_is_not_here_say_so(installed, tmp_path, monkeypatch, capsys):
    save_avatar(small_avatar(installed, 48), "a.guava")
    monkeypatch.setenv("GUAVA_HOME", str(tmp_path / "empty"))
    assert main(["render", "a.guava", "-o", "a.png"]) == 2
    error = capsys.readouterr().err
    assert "'a.guava' belongs to the template 'smplx-flame'" in error and "not installed" in error
    assert "guava assets add" in error
    assert main(["track", "k.npz", "-o", "k.motion", "--template", "smplx-flame"]) == 2
    assert "smplx-flame" in capsys.readouterr().err


def test_older_files_without_a_name_open_all_the_same(installed, tmp_path):
    avatar = small_avatar(installed, 48)
    save_avatar(avatar, tmp_path / "a.guava")
    _, header = read_container(tmp_path / "a.guava", "avatar", 2)
    assert header["template_name"] == avatar.template_name
    read, template = open_avatar(tmp_path / "a.guava")
    assert template.hash == read.template_hash == installed.hash
    assert torch.equal(read.gaussians.positions, avatar.gaussians.positions)


def test_doctor_looks_at_every_template(installed, monkeypatch, capsys):
    from guava.commands import doctor

    monkeypatch.setattr(doctor, "_can_import", lambda module: "")
    main(["doctor", "--template", "smplx-flame-plain-head"])
    text = capsys.readouterr().out
    assert f"'smplx-flame', hash {installed.hash[:12]}" in text and "'smplx-flame-plain-head'" in text
    assert main(["doctor", "--template", "mine"]) == 1
    assert "There is no template named 'mine'" in capsys.readouterr().out


def test_a_damaged_template_of_the_users_does_not_stop_others(home, installed, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "home" / "templates"
    broken.mkdir(parents=True)
    (broken / "bad.template").write_bytes(b"no template")
    monkeypatch.setenv("GUAVA_HOME", str(tmp_path / "home"))
    save_avatar(small_avatar(load_template(), 48), "a.guava")
    assert main(["render", "a.guava", "--size", "48", "-o", "a.png"]) == 0
    assert (tmp_path / "a.png").is_file()
