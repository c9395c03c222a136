"""The whole path on a real photo, through the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guava.avatar import load_avatar
from guava.body import load_template
from guava.commands.main import main
from guava.motion import load_motion
from guava.photo import VideoReader

pytest.importorskip("mediapipe")
skimage = pytest.importorskip("skimage")
PHOTO = Path(skimage.__file__).parent / "data" / "astronaut.png"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PHOTO.is_file(), reason="scikit-image brings no astronaut here"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the astronaut's avatar."""
    path = tmp_path_factory.mktemp("astronaut")
    assert main(["reconstruct", str(PHOTO), "-o", str(path / "a.guava"), "--consent", "public domain"]) == 0
    return path


def test_avatar_says_what_it_is(folder):
    avatar = load_avatar(folder / "a.guava", load_template())
    assert len(avatar.gaussians) > 50_000
    assert 0.1 < avatar.provenance.observed_fraction < 0.9
    assert avatar.provenance.subject_consent == "public domain"
    assert avatar.provenance.settings["command"]["photo"] == "astronaut.png"
    assert avatar.source.hands_seen == (False, False)
    assert avatar.source.name == "astronaut.png" and len(avatar.source.sha256) == 64


def test_avatar_over_its_photo_looks_like_the_photo(folder):
    out = folder / "over.png"
    assert main(["render", str(folder / "a.guava"), "--over", str(PHOTO), "-o", str(out)]) == 0
    photo = np.asarray(Image.open(PHOTO).convert("RGB")).astype(float)
    drawn = np.asarray(Image.open(out)).astype(float)
    changed = (photo != drawn).any(-1)
    assert 0.2 < changed.mean() < 0.9
    assert not changed[:60, :100].any() and not changed[:60, -100:].any(), "the background stays"
    error = np.abs(photo - drawn)[changed].mean()
    assert error < 16, "levels of 255"


def test_it_talks(folder):
    out = folder / "talk.mp4"
    arguments = [
        "animate",
        str(folder / "a.guava"),
        "-o",
        str(out),
        "--size",
        "192",
        "--fps",
        "6",
        "--seconds",
    ]
    assert main([*arguments, "1.5"]) == 0
    frames = [frame.pixels.astype(float) for frame in VideoReader(out)]
    assert len(frames) == 9
    moves = [np.abs(a - b).mean() for a, b in zip(frames[:-1], frames[1:], strict=True)]
    assert 0.05 < np.mean(moves) < 12
    assert json.loads((folder / "talk.mp4.json").read_text())["notes"]


def test_its_own_photo_drives_it(folder):
    motion, overlay = folder / "self.motion", folder / "overlay.png"
    assert main(["track", str(PHOTO), "-o", str(motion), "--overlay", str(overlay)]) == 0
    read = load_motion(motion)
    source = load_avatar(folder / "a.guava").source.pose
    assert len(read) == 1 and read.pose.translation.abs().max() == 0
    assert np.allclose(read.pose.joints, source.joints, atol=1e-4)
    assert np.allclose(read.pose.expression, source.expression, atol=1e-4)
    fit = np.asarray(Image.open(overlay)).astype(float)
    assert np.abs(fit - np.asarray(Image.open(PHOTO).convert("RGB"))).mean() > 2


def test_network_from_photo_to_video(tmp_path, capsys):
    """Untrained "lite" weights start from the photo's own colours: they already look like the person."""
    made = str(tmp_path / "lite.guava")
    command = ["reconstruct", str(PHOTO), "-o", made, "--model", "lite", "--weights", "random:0", "--profile"]
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "RANDOM" in told and "network" in told and "matte" in told
    avatar = load_avatar(made, load_template())
    assert avatar.gaussians.features.shape[1] == 32 and len(avatar.gaussians) > 100_000
    assert avatar.refiner.weights == "random:0" and avatar.provenance.generator == "lite"

    out = tmp_path / "over.png"
    assert main(["render", made, "--over", str(PHOTO), "-o", str(out)]) == 0
    photo = np.asarray(Image.open(PHOTO).convert("RGB")).astype(float)
    drawn = np.asarray(Image.open(out)).astype(float)
    changed = (photo != drawn).any(-1)
    assert 0.15 < changed.mean() < 0.9
    assert np.abs(photo - drawn)[changed].mean() < 25, "levels of 255"

    video = tmp_path / "talk.mp4"
    assert main(["animate", made, "--motion", "talk", "--seconds", "0.2", "-o", str(video)]) == 0
    frames = [frame.pixels.astype(float) for frame in VideoReader(video)]
    assert len(frames) == json.loads((tmp_path / "talk.mp4.json").read_text())["frames"] > 3
    assert frames[0].shape == (512, 512, 3) and (frames[0] < 200).mean() > 0.1
