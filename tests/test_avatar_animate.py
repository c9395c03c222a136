"""Showing a network's avatar: what the refiner gets, and what becomes of its picture."""

from dataclasses import replace

import pytest
import torch
from samples import small_avatar
from tiny_network import CHANNELS, SIDE, assert_close_pictures, scene, tiny_config
from torch import nn

from guava.avatar import Animator, RefinerReference, over, save_avatar
from guava.avatar.animate import square_view
from guava.body import load_template
from guava.camera import Camera
from guava.commands.main import main
from guava.errors import InputError
from guava.model import build_refiner, reconstruct
from guava.rendering import CONVENTIONS, splat

pytestmark = pytest.mark.filterwarnings("ignore:Random weights")


class Recorder(nn.Module):
    """A refiner that gives back the coarse picture, brighter by ``lift``, and remembers what it was given."""

    def __init__(self, size: int = SIDE, lift: float = 0.0):
        super().__init__()
        self.size, self.lift, self.given = size, lift, []

    def forward(self, features, alpha, *, noise="off", generator=None):
        self.given.append((features, alpha, noise, generator))
        return features[:, :3] + self.lift


@pytest.fixture(scope="module")
def template():
    return load_template()


@pytest.fixture(scope="module")
def avatar(template):
    """A grey figure with latents far from [0, 1]."""
    plain = small_avatar(template, size=SIDE)
    latents = 5 * torch.randn(len(plain.gaussians), 5, generator=torch.Generator().manual_seed(0))
    features = torch.cat([plain.gaussians.features, latents], 1)
    return replace(
        plain,
        gaussians=replace(plain.gaussians, features=features),
        refiner=RefinerReference("somebody's", "0" * 64),
        splat_conventions="3dgs",
    )


def test_refiner_gets_all_channels_unnormalised_on_black(avatar, template):
    refiner = Recorder()
    animator = Animator(avatar, template, refiner=refiner)
    pose, camera = avatar.source.pose, avatar.source.camera
    animator.render(pose, camera)
    (features, alpha, noise, _), g = refiner.given[0], animator.pose(pose)
    wanted = splat(
        g.means,
        g.quaternions,
        g.scales,
        g.opacities,
        avatar.gaussians.features,
        camera,
        background=torch.zeros(8),
        conventions=CONVENTIONS["3dgs"],
    )
    assert torch.equal(features[0].permute(1, 2, 0), wanted.features) and noise == "off"
    assert torch.equal(alpha[0, 0], wanted.alpha)
    assert features.abs().max() > 2 and alpha.max() > 0.9
    # The avatar's own conventions count: gsplat's let more through.
    other = splat(g.means, g.quaternions, g.scales, g.opacities, avatar.gaussians.features, camera)
    assert not torch.equal(other.alpha, wanted.alpha)
    assert set(animator.seconds) == {"body", "pose", "splat", "refine"} and animator.frames == 1


def test_refined_picture_on_black_is_shown_as_it_is(avatar, template):
    refiner = Recorder(lift=0.3)  # brighter than the coverage allows, and on the background
    frame = Animator(avatar, template, refiner=refiner).render(avatar.source.pose)
    features, alpha, *_ = refiner.given[0]
    picture = (features[0, :3] + 0.3).permute(1, 2, 0)
    shown = over(frame, (0.0, 0.0, 0.0))
    wanted = picture.clamp(0, 1).mul(255).add(0.5).to(torch.uint8)
    assert (shown.int() - wanted.int()).abs().max() <= 1
    assert (frame[..., 3] >= alpha[0, 0] - 1e-6).all() and frame.min() >= 0 and frame.max() <= 1


def test_background_shows_where_nothing_is(avatar, template):
    # A sigmoid never gives black itself.
    frame = Animator(avatar, template, refiner=Recorder(lift=1e-3)).render(avatar.source.pose)
    coarse = Animator(avatar, template, coarse=True).render(avatar.source.pose)
    empty = coarse[..., 3] == 0
    assert empty.any() and (frame[empty] == 0).all()
    white = over(frame)[empty]
    assert (white == 255).all()
    half = (coarse[..., 3] > 0.3) & (coarse[..., 3] < 0.7)
    assert half.any() and (frame[..., 3] - coarse[..., 3])[half].abs().max() < 2e-3


def test_identity_refiner_changes_nothing_at_its_own_size(avatar, template):
    pose = avatar.source.pose
    refined = Animator(avatar, template, refiner=Recorder()).render(pose)
    coarse = Animator(avatar, template, coarse=True).render(pose)
    assert coarse.shape == refined.shape == (SIDE, SIDE, 4)
    assert (coarse[..., 3] - refined[..., 3]).abs().max() < 1e-6
    assert (over(coarse).int() - over(refined).int()).abs().max() <= 1


@pytest.mark.parametrize("width, height", [(128, 128), (32, 32), (96, 40), (40, 96), (64, 31)])
def test_other_sizes_are_splatted_at_the_refiners_and_resized(avatar, template, width, height):
    pose = avatar.source.pose
    camera = avatar.source.camera.resized(width, height)
    if width != height:  # a cut of the view instead of a squeezed one
        shift = torch.tensor([[1.0, 0, width / 2 - 32], [0, 1.0, height / 2 - 32], [0, 0, 1]])
        camera = avatar.source.camera.through(shift, width, height)
    refiner = Recorder()
    frame = Animator(avatar, template, refiner=refiner).render(pose, camera, supersample=2)
    assert refiner.given[0][0].shape == (1, CHANNELS, SIDE, SIDE)
    assert frame.shape == (height, width, 4)
    coarse = Animator(avatar, template, coarse=True).render(pose, camera)
    assert_close_pictures(over(frame) / 255, over(coarse) / 255, 0.05)
    blank = torch.ones_like(coarse)
    assert (over(blank) / 255 - over(coarse) / 255).abs().mean() > 0.05  # there is something to miss


def test_square_view_keeps_the_cameras_rays():
    camera = Camera.frontal(100).through(torch.tensor([[0.7, 0, 3], [0, 0.7, -2], [0, 0, 1.0]]), 60, 90)
    square, left, top = square_view(camera, 64)
    points = torch.tensor([[0.1, 0.2, -10.0], [-0.2, 0.0, -12.0]])
    here, there = camera.project(points)[0], square.project(points)[0]
    assert (square.width, square.height, left, top) == (64, 64, 15, 0)
    torch.testing.assert_close(there * 90 / 64 - torch.tensor([left, top]), here, atol=1e-4, rtol=0)


def test_coarse_shows_the_first_channels_without_weights(avatar, template):
    animator = Animator(avatar, template, coarse=True)
    assert animator.refiner is None and animator.gaussians.features.shape[1] == 3
    plain = replace(
        avatar,
        refiner=None,
        gaussians=replace(avatar.gaussians, features=avatar.gaussians.features[:, :3].contiguous()),
    )
    pose = avatar.source.pose
    assert torch.equal(animator.render(pose), Animator(plain, template).render(pose))
    with pytest.raises(ValueError, match="no refiner"):
        animator.refine(torch.zeros(4, 4, 3), torch.zeros(4, 4))


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("size", [SIDE, 40])
def test_frames_are_renders_over_a_background(avatar, template, refined, size):
    """The fast way, which works in the same memory again and again, draws the same pictures."""
    torch.manual_seed(0)
    refiner = build_refiner(tiny_config("lite"))
    nn.init.normal_(refiner.last.weight, std=0.05)
    options = {"refiner": refiner} if refined else {"coarse": True}
    fast, plain = (Animator(avatar, template, **options) for _ in range(2))
    camera = avatar.source.camera.resized(size, size)
    picture = torch.rand(size, size, 3, generator=torch.Generator().manual_seed(1))
    out, before = torch.zeros(size, size, 3, dtype=torch.uint8), None
    elbow = template.joint("left_elbow")
    for turn, supersample, background in ((0.0, 1, (1.0, 1.0, 1.0)), (0.9, 2, picture), (0.3, 1, picture)):
        joints = avatar.source.pose.joints.clone()
        joints[0, elbow, 1] -= turn
        pose = replace(avatar.source.pose, joints=joints)
        assert fast.frame(pose, camera, supersample, background, out) is out
        wanted = over(plain.render(pose, camera, supersample), background)
        assert (out.int() - wanted.int()).abs().max() <= 1
        assert before is None or not torch.equal(out, before)
        before = out.clone()
    assert "convert" in fast.seconds and fast.frames == 3


@pytest.mark.filterwarnings("ignore:Splatting on the CPU is several times slower")
@pytest.mark.parametrize("refined", [False, True])
def test_the_slow_path_draws_the_same_pictures(avatar, template, refined, monkeypatch):
    options = {"refiner": Recorder(lift=0.1)} if refined else {"coarse": True}
    pose = avatar.source.pose
    fast = Animator(avatar, template, **options).frame(pose, background=(0.2, 0.9, 0.4))
    monkeypatch.setenv("GUAVA_NATIVE", "off")
    slow = Animator(avatar, template, **options).frame(pose, background=(0.2, 0.9, 0.4))
    difference = (fast.int() - slow.int()).abs()
    assert difference.max() <= 2 and difference.float().mean() < 0.02
    assert fast.float().std() > 20


@pytest.mark.parametrize(
    "precision, amx, words",
    [
        ("fp32", False, ""), ("bf16", True, ""), ("bf16", None, ""), ("bf16", False, "AMX"),
        ("fp16", True, "fp16"),
    ],
)
def test_slow_precisions_are_told(monkeypatch, precision, amx, words):
    from guava.commands.showing import precision_notes

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    notes = precision_notes(torch.device("cpu"), precision)
    assert len(notes) == bool(words) and words in "".join(notes)
    assert precision_notes(torch.device("cuda"), precision) == []


def test_what_is_handed_out_is_not_drawn_over(avatar, template):
    animator = Animator(avatar, template, refiner=Recorder())
    pose = avatar.source.pose
    other = replace(pose, translation=pose.translation + 0.2)
    posed, drawn, picture = animator.pose(pose), animator.splat(pose), animator.render(pose)
    kept = [t.clone() for t in (posed.means, drawn.features, drawn.alpha, drawn.inverse_depth, picture)]
    animator.frame(other)
    animator.splat(other)
    again = (posed.means, drawn.features, drawn.alpha, drawn.inverse_depth, picture)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


@pytest.mark.parametrize("preset", ["official", "lite"])
def test_real_refiners_noise_and_precision(avatar, template, preset):
    torch.manual_seed(0)
    refiner = build_refiner(tiny_config(preset))
    strengths = [m.weight for m in refiner.modules() if type(m).__name__ == "StyledConv"]
    for strength in strengths:
        nn.init.constant_(strength, 0.5)
    if preset == "lite":
        nn.init.normal_(refiner.last.weight, std=0.05)
    pose = avatar.source.pose

    def frame(**options):
        return Animator(avatar, template, **{"refiner": refiner, **options}).render(pose)

    first = frame()
    assert torch.equal(first, frame()) and first[..., :3].std() > 0.01
    half = build_refiner(tiny_config(preset)).to(torch.bfloat16)
    half.load_state_dict(refiner.state_dict())
    rough = frame(refiner=half)
    assert not torch.equal(rough, first)
    assert_close_pictures(over(rough) / 255, over(first) / 255, 0.03)
    if preset == "official":
        noisy = frame(noise=1)
        assert torch.equal(noisy, frame(noise=1)) and not torch.equal(noisy, first)
        assert not torch.equal(noisy, frame(noise=2))
        animator = Animator(avatar, template, refiner=refiner, noise=1)
        assert not torch.equal(animator.render(pose), animator.render(pose))  # drawn anew at every frame
    else:
        assert torch.equal(frame(noise=1), first)


def test_unknown_devices_and_precisions(avatar, template):
    with pytest.raises(InputError, match="fp32, bf16, fp16"):
        Animator(avatar, template, coarse=True, precision="fp8")
    with pytest.raises(InputError, match="no device 'abacus'"):
        Animator(avatar, template, coarse=True, device="abacus")


# --- the commands -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(template, tmp_path_factory):
    """A network's avatar as a file, in a working folder."""
    path = tmp_path_factory.mktemp("network")
    shot = scene(template)
    made = reconstruct(
        shot.photo,
        shot.tracked,
        model="lite",
        weights="random:0",
        network=tiny_config("lite"),
        matting="tracker",
    )
    save_avatar(made, path / "a.guava")
    return path


def test_commands_show_a_networks_avatar(folder, monkeypatch, capsys):
    import json

    import numpy as np
    from PIL import Image

    monkeypatch.chdir(folder)
    assert main(["render", "a.guava", "-o", "x.png", "--size", "96"]) == 0
    assert "RANDOM NUMBERS" in capsys.readouterr().err
    beside = json.loads((folder / "x.png.json").read_text())
    assert beside["refiner"]["weights"] == "random:0" and beside["generator"] == "lite"
    assert beside["settings"]["coarse"] is False
    assert main(["render", "a.guava", "-o", "c.png", "--size", "96", "--coarse"]) == 0
    assert json.loads((folder / "c.png.json").read_text())["refiner"] is None
    fine, coarse = (np.asarray(Image.open(folder / n), float) for n in ("x.png", "c.png"))
    assert fine.shape == (96, 96, 3) and 0 < np.abs(fine - coarse).mean() < 16
    command = "animate a.guava --motion idle --seconds 0.1 --size 64"
    assert main([*command.split(), "-o", "v.mp4", "--precision", "bf16"]) == 0
    told = capsys.readouterr().err
    stages = ("body", "pose", "splat", "refine", "convert")
    assert all(f"{stage} " in told for stage in stages) and "encoding" in told
    beside = json.loads((folder / "v.mp4.json").read_text())
    assert beside["settings"]["precision"] == "bf16"
    assert list(beside["speed"]["ms_per_frame"]) == sorted(stages)
    assert beside["speed"]["frames_per_second_without_encoding"] > 0
    capsys.readouterr()
    assert main(["render", "a.guava", "-o", "x.png", "--weights", "nobody.weights"]) == 2
    assert "nobody.weights" in capsys.readouterr().err


def test_cameras_from_everywhere(folder, monkeypatch):
    import json

    import numpy as np
    from PIL import Image

    monkeypatch.chdir(folder)
    base = ["render", "a.guava", "--size", "64"]
    assert main([*base, "-o", "photo.png"]) == 0
    assert main([*base, "-o", "round.png", "--frame", "round"]) == 0
    assert main([*base, "-o", "back.png", "--frame", "round", "--yaw", "180"]) == 0
    assert main([*base, "-o", "top.png", "--frame", "round", "--pitch", "90"]) == 0
    assert main([*base, "-o", "body.png", "--frame", "body"]) == 0
    drawn = {p.stem: np.asarray(Image.open(p), float) for p in folder.glob("*.png")}
    inked = {name: (picture < 250).any(-1) for name, picture in drawn.items()}
    for name in ("round", "back", "top", "body"):
        border = np.concatenate([inked[name][0], inked[name][:, 0], inked[name][:, -1]])
        assert inked[name].mean() > 0.02 and border.mean() < 0.05, name
    # From behind, the silhouette is the mirrored one.
    mirrored = inked["back"][:, ::-1]
    overlap = (inked["round"] & mirrored).sum() / (inked["round"] | mirrored).sum()
    assert overlap > 0.8, overlap

    monkeypatch.setattr("guava.avatar.views.RELEASE_STATIC_FRAMES", 3)
    assert main([*base, "--turntable", "o.mp4", "--orbit", "official"]) == 0
    command = "animate a.guava --motion idle --seconds 0.1 --size 64"
    assert main([*command.split(), "--orbit", "official", "--coarse", "-o", "m.mp4"]) == 0
    beside = json.loads((folder / "m.mp4.json").read_text())
    assert beside["settings"]["orbit"] == "official" and beside["frames"] == 3
    assert main(["render", "a.guava", "-o", "x.png", "--over", "photo.png", "--frame", "body"]) == 2


def test_a_tracked_clip_drives_before_its_own_camera(folder, template, monkeypatch, capsys):
    import json

    from guava.photo import VideoReader
    from guava.tracking.file import save_tracked

    monkeypatch.chdir(folder)
    tracked = scene(template).tracked
    save_tracked(replace(tracked, media=replace(tracked.media, width=256, height=128)), "driver.motion")
    base = ["animate", "a.guava", "--motion", "driver.motion", "--size", "64", "--coarse"]
    for camera, shape in (("target", (64, 64)), ("video", (32, 64)), ("source", (64, 64))):
        assert main([*base, "--camera", camera, "-o", "d.mp4"]) == 0
        (frame,) = [f.pixels for f in VideoReader(folder / "d.mp4")]
        assert frame.shape == (*shape, 3) and (frame < 200).mean() > 0.05
        beside = json.loads((folder / "d.mp4.json").read_text())
        assert beside["settings"]["camera"] == camera and beside["frames"] == 1
    capsys.readouterr()
    assert main([*base, "--camera", "target", "--yaw", "20", "-o", "d.mp4"]) == 2
    assert "--yaw does not go with --camera target" in capsys.readouterr().err
    assert main(["animate", "a.guava", "--motion", "talk", "--camera", "video", "-o", "d.mp4"]) == 2
    assert "guava track" in capsys.readouterr().err


def test_baseline_refuses_what_is_for_networks(template, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_avatar(small_avatar(template), "plain.guava")
    assert main(["render", "plain.guava", "-o", "x.png", "--weights", "official"]) == 2
    assert "needs no weights" in capsys.readouterr().err
    (tmp_path / "p.png").write_bytes(b"")
    assert main(["reconstruct", "p.png", "-o", "a.guava", "--ablate", "refiner"]) == 2
    assert "--model official" in capsys.readouterr().err
    monkeypatch.setenv("GUAVA_HOME", str(tmp_path))
    assert main(["reconstruct", "p.png", "-o", "a.guava", "--model", "official"]) == 2
    assert "guava weights import" in capsys.readouterr().err
