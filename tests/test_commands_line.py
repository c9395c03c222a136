"""The command line: help, one clear line for everything that goes wrong, nothing half-written."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from samples import small_avatar

from guava.avatar import Animator, save_avatar
from guava.avatar.framing import framing, joint_pixels, photo_camera
from guava.body import load_template
from guava.commands import demo, doctor
from guava.commands import reconstruct as reconstruct_command
from guava.commands.main import VERBS, main
from guava.container import read_container
from guava.errors import GuavaError
from guava.motion import make_clip, save_motion
from guava.photo import VideoReader


@pytest.fixture(scope="module")
def avatar():
    return small_avatar()


@pytest.fixture
def folder(tmp_path, avatar, monkeypatch):
    """A working folder with an avatar and a picture of noise."""
    save_avatar(avatar, tmp_path / "a.guava")
    noise = np.random.default_rng(0).integers(0, 256, (192, 192, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(capsys, *arguments: str) -> str:
    """Run a command that must fail cleanly; its one line."""
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


# --- help ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"guava {verb}" in text and len(text) > 300


def test_general_help_and_version(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"guava {verb}" in text for verb in VERBS)
    assert main(["--version"]) == 0
    assert main([]) == 2


def test_help_does_not_load_torch():
    code = "import sys; from guava.commands.main import main; main(['animate', '--help']);"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_usage_errors(capsys):
    assert "no command 'fly'" in fails(capsys, "fly")
    assert main(["render"]) == 2
    assert main(["animate", "a.guava", "-o", "x.mp4", "--size", "many"]) == 2


# --- bad input ----------------------------------------------------------------------------------------------


def test_photos_that_cannot_be_used(folder, capsys):
    whole = (folder / "noise.png").read_bytes()
    cases = {
        "empty.png": (b"", "empty"),
        "cut.png": (whole[: len(whole) // 2], "cut short|damaged"),
        "text.jpg": (b"this is no picture, whatever its name says", "not a picture"),
    }
    for name, (data, _) in cases.items():
        (folder / name).write_bytes(data)
    Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(folder / "dot.png")
    cases["dot.png"] = (b"", "1x1")
    cases["absent.png"] = (b"", "no file")
    for name, (_, message) in cases.items():
        line = fails(capsys, "reconstruct", name, "-o", "out.guava")
        assert any(part in line for part in message.split("|")), line
        assert name in line
    assert not (folder / "out.guava").exists()
    assert not list(folder.glob(".*"))


def test_nobody_in_the_photo(folder, capsys):
    pytest.importorskip("mediapipe")
    assert "No person" in fails(capsys, "reconstruct", "noise.png", "-o", "out.guava")
    assert "No person" in fails(capsys, "track", "noise.png", "-o", "out.motion")
    assert not (folder / "out.guava").exists() and not (folder / "out.motion").exists()


def test_videos_that_cannot_be_used(folder, capsys):
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "junk.mp4").write_bytes(bytes(range(256)) * 40)
    assert "empty" in fails(capsys, "track", "empty.mp4", "-o", "m.motion")
    assert "not a video" in fails(capsys, "track", "junk.mp4", "-o", "m.motion")
    assert "no file" in fails(capsys, "track", "absent.mp4", "-o", "m.motion")


def test_keypoints_that_cannot_be_used(folder, capsys):
    (folder / "junk.npz").write_bytes(b"PK\x03\x04 not really")
    assert "junk.npz" in fails(capsys, "track", "junk.npz", "-o", "m.motion")
    np.savez(folder / "part.npz", body=np.zeros((4, 18, 2)))
    assert "body_score" in fails(capsys, "track", "part.npz", "-o", "m.motion")
    np.savez(folder / "objects.npz", body=np.array([{"a": 1}], dtype=object))
    assert "objects.npz" in fails(capsys, "track", "objects.npz", "-o", "m.motion")


def test_files_of_another_kind(folder, capsys):
    save_motion(make_clip("idle"), folder / "idle.motion")
    assert "motion file" in fails(capsys, "animate", "idle.motion", "-o", "x.mp4")
    assert "avatar file" in fails(capsys, "animate", "a.guava", "--motion", "a.guava", "-o", "x.mp4")
    assert "not a Guava file" in fails(capsys, "render", "noise.png", "-o", "x.png")
    assert "talk, wave" in fails(capsys, "animate", "a.guava", "--motion", "dance", "-o", "x.mp4")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("animate", "a.guava", "-o", "x.gif"), "must end in .mp4"),
        (("animate", "a.guava", "-o", "nowhere/x.mp4"), "no folder 'nowhere'"),
        (("animate", "a.guava", "-o", "x.mp4", "--background", "mauve"), "not a colour"),
        (("animate", "a.guava", "-o", "x.mp4", "--size", "4"), "outside"),
        (("animate", "a.guava", "-o", "x.mp4", "--seconds", "-1"), "not a length"),
        (("animate", "a.guava", "-o", "x.mp4", "--orbit", "official", "--yaw", "9"), "--yaw does not go"),
        (("render", "a.guava"), "Nothing to write"),
        (("render", "a.guava", "-o", "x.png", "--orbit", "official"), "Give --turntable"),
        (("render", "a.guava", "--turntable", "x.mp4", "--orbit", "official", "--pitch", "9"), "--pitch"),
        (("render", "a.guava", "-o", "x.jpg", "--over", "noise.png"), "must end in .png"),
        (("render", "a.guava", "-o", "x.jpg", "--background", "transparent"), "must end in .png"),
        (("render", "a.guava", "-o", "x.png", "--over", "noise.png", "--yaw", "20"), "Leave out"),
        (("reconstruct", "noise.png", "-o", "x.guava", "--model", "magic"), "no model 'magic'"),
        (("reconstruct", "noise.png", "-o", "x.guava", "--detector", "simcc"), "--detector-model"),
        (("demo", "--size", "1"), "outside"),
    ],
)
def test_bad_arguments(folder, capsys, arguments, message):
    before = sorted(os.listdir(folder))
    assert message in fails(capsys, *arguments)
    assert sorted(os.listdir(folder)) == before


# --- results ------------------------------------------------------------------------------------------------


def test_animate(folder, capsys):
    arguments = [
        "animate",
        "a.guava",
        "--motion",
        "wave",
        "-o",
        "x.mp4",
        "--size",
        "64",
        "--seconds",
        "0.2",
    ]
    assert main([*arguments, "--fps", "25", "--background", "#102030"]) == 0
    frames = list(VideoReader(folder / "x.mp4"))
    assert len(frames) == 5 and frames[0].pixels.shape == (64, 64, 3)
    assert np.abs(frames[0].pixels[2, 2].astype(int) - [0x10, 0x20, 0x30]).max() < 12
    beside = json.loads((folder / "x.mp4.json").read_text())
    assert beside["command"] == "animate" and beside["settings"]["motion"] == "wave"
    assert beside["frames"] == 5 and beside["synthetic_media"] is True
    assert beside["settings"]["output"] == "x.mp4" and str(folder) not in json.dumps(beside)
    assert "frames/s" in capsys.readouterr().out


def test_render_over_leaves_other_pixels_alone(folder, avatar, capsys):
    assert main(["render", "a.guava", "--over", "noise.png", "-o", "x.png"]) == 0
    assert "not the very file" in capsys.readouterr().err
    photo, drawn = np.asarray(Image.open("noise.png")), np.asarray(Image.open("x.png"))
    from guava.body import load_template

    alpha = (
        Animator(avatar, load_template())
        .render(avatar.source.pose, photo_camera(avatar), 2)[..., 3]
        .numpy()
    )
    assert drawn.shape == photo.shape
    assert (drawn[alpha == 0] == photo[alpha == 0]).all()
    solid = alpha > 0.95
    assert 0.05 < solid.mean() < 0.9
    assert np.abs(drawn[solid].astype(int) - 128).max() <= 8
    Image.fromarray(photo[:100]).save("smaller.png")
    assert "192x192" in fails(capsys, "render", "a.guava", "--over", "smaller.png", "-o", "y.png")


def test_render_poses_and_views(folder):
    for number, extra in enumerate(
        [(), ("--yaw", "30"), ("--pose", "rest"), ("--pose", "wave", "--time", "1.7"), ("--pitch", "20")]
    ):
        assert main(["render", "a.guava", "-o", f"{number}.png", "--size", "64", *extra]) == 0
    pictures = [np.asarray(Image.open(f"{n}.png")).astype(int) for n in range(5)]
    for i in range(5):
        assert (pictures[i] < 200).any()
        for j in range(i):
            assert np.abs(pictures[i] - pictures[j]).max() > 30
    assert main(["render", "a.guava", "-o", "t.png", "--size", "64", "--background", "transparent"]) == 0
    alpha = np.asarray(Image.open("t.png"))[..., 3]
    assert alpha.min() == 0 and alpha.max() > 240


def test_turntable(folder):
    assert main(["render", "a.guava", "--turntable", "t.mp4", "--size", "64", "--seconds", "0.2"]) == 0
    assert len(list(VideoReader(folder / "t.mp4"))) == 5


# --- disk full, interruption, bugs --------------------------------------------------------------------------


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_disk_full(folder, avatar, capsys, monkeypatch):
    before = sorted(os.listdir(folder))
    monkeypatch.setattr(os, "fsync", full_disk)
    assert "No space left" in fails(
        capsys, "animate", "a.guava", "-o", "x.mp4", "--size", "64", "--seconds", "0.1"
    )
    assert "No space left" in fails(capsys, "render", "a.guava", "-o", "x.png", "--size", "64")
    assert sorted(os.listdir(folder)) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_device_that_is_full(avatar):
    with pytest.raises(GuavaError, match="No space left"):
        save_avatar(avatar, "/dev/full")
    assert not os.path.isfile("/dev/full")


def test_interruption_leaves_nothing(folder, capsys, monkeypatch):
    before = sorted(os.listdir(folder))
    arguments = ["animate", "a.guava", "-o", "x.mp4", "--size", "64", "--seconds", "0.2"]
    frame, calls = Animator.frame, []

    def interrupted(self, *rest, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return frame(self, *rest, **options)

    monkeypatch.setattr(Animator, "frame", interrupted)
    assert main(arguments) == 130
    assert "interrupted" in capsys.readouterr().err
    assert sorted(os.listdir(folder)) == before
    assert main(arguments) == 0
    assert len(list(VideoReader(folder / "x.mp4"))) == 6


def test_bugs_are_called_bugs(folder, capsys, monkeypatch):
    def bug(*_, **__):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(Animator, "frame", bug)
    arguments = ["render", "a.guava", "-o", "x.png", "--size", "64"]
    assert main(arguments) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        main([*arguments, "--debug"])


def test_demo_goes_on_where_it_was_interrupted(folder, avatar, capsys, monkeypatch):
    import hashlib
    from dataclasses import replace

    made = []
    digest = hashlib.sha256((folder / "noise.png").read_bytes()).hexdigest()
    mine = replace(avatar, source=replace(avatar.source, sha256=digest))
    monkeypatch.setattr(
        reconstruct_command, "make_avatar", lambda config: (made.append("avatar"), (mine, {}))[1]
    )
    performance = demo.demo_performance
    monkeypatch.setattr(
        demo, "demo_performance", lambda *a: replace(performance(*a), pose=performance(*a).pose[200:203])
    )
    from guava.commands import render

    turntable = render.render_turntable

    def short(*a, **k):
        made.append("turntable")
        if made.count("turntable") == 1:
            raise KeyboardInterrupt
        turntable(*a, **{**k, "seconds": 0.1})

    monkeypatch.setattr(render, "render_turntable", short)
    arguments = ["demo", "-o", "results", "--photo", "noise.png", "--size", "64"]
    assert main(arguments) == 130
    moving = folder / "results" / "noise.mp4"
    stamp = moving.stat().st_mtime_ns
    assert main(arguments) == 0
    assert made == ["avatar", "turntable", "turntable"]
    assert moving.stat().st_mtime_ns == stamp
    names = sorted(p.name for p in (folder / "results").iterdir())
    videos = ["noise-turntable.mp4", "noise-turntable.mp4.json", "noise.mp4", "noise.mp4.json"]
    assert names == sorted(["noise.guava", "noise.png", "noise.png.json", *videos])
    sheet = Image.open(folder / "results" / "noise.png")
    assert sheet.width > 1000 and sheet.height > 500
    _, header = read_container(folder / "results" / "noise.guava", "avatar", 1)
    assert header["source"]["sha256"] == digest
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("is there already") == 4
    (folder / "results" / "noise.guava").write_bytes(b"damaged")
    assert main(arguments) == 0
    assert made.count("avatar") == 2


def test_demo_raises_no_hand_that_the_photo_hides():
    template = load_template()
    hidden, shown = (small_avatar(template, hands_seen=(seen, seen)) for seen in (False, True))
    quiet, lively = (demo.demo_performance(a, template) for a in (hidden, shown))
    assert quiet.arms == (False, False) and lively.arms == (True, True)
    assert len(lively.pose.joints) > len(quiet.pose.joints) > 100
    wrists = [template.joint(f"{side}_wrist") for side in ("left", "right")]

    def reach(avatar, performance):
        camera = avatar.source.camera
        pixels = joint_pixels(avatar, template, performance.pose, camera)[:, wrists]
        return float((pixels - pixels[:1]).norm(dim=-1).max()) / camera.width

    assert reach(hidden, quiet) < 0.1 < 0.2 < reach(shown, lively)
    frames = [
        framing(hidden, template, 64, poses=p, hands=quiet.arms).intrinsics for p in (None, quiet.pose)
    ]
    assert torch.equal(*frames)


# --- doctor, assets -----------------------------------------------------------------------------------------


def test_doctor_is_content_here(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_can_import", lambda module: "")
    status = main(["doctor", "--verbose"])
    text = capsys.readouterr().out
    assert "template" in text and "hash" in text and "safetensors" in text
    usable = "mediapipe      0.10.21" in text or "onnxruntime" in text
    assert status == (0 if usable else 1)


def test_doctor_knows_what_to_do(monkeypatch):
    monkeypatch.setattr(
        doctor, "_version", lambda package: "0.10.21" if package == "mediapipe" else "2.3.0"
    )

    def advice(problem):
        monkeypatch.setattr(doctor, "_can_import", lambda m: problem if "mediapipe" in m else "")
        return " ".join(f.text + f.advice for f in doctor.examine() if f.name == "mediapipe")

    libgl = "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"
    assert "opencv-contrib-python-headless" in advice(libgl)
    assert "numpy<2" in advice("AttributeError: _ARRAY_API not found (numpy 2.3.0)")
    monkeypatch.setattr(doctor.sys, "version_info", (3, 13, 0))
    python = [f for f in doctor.examine() if f.name == "Python"]
    assert "too new for MediaPipe" in python[0].text and "3.12" in python[0].advice


def test_doctor_survives_broken_parts(capsys, monkeypatch):
    def broken():
        raise OSError("damaged installation")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor._folders))
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "damaged installation" in text and "temporary" in text


def test_assets(capsys):
    assert main(["assets"]) == 0
    text = capsys.readouterr().out
    assert "open" in text and "CC0" in text and "baseline" in text
    assert main(["assets", "path"]) == 0
    assert "guava" in capsys.readouterr().out
