"""Baking: plain RGB Gaussians recover known truths, keep their bindings, and say what they lost."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from samples import small_avatar
from tiny_network import CHANNELS, scene, tiny_config
from torch import Tensor, nn

from guava.avatar import Animator, Avatar, BakeReport, RefinerReference, load_avatar, save_avatar
from guava.avatar.gaussians import BindingKind
from guava.body import EHM, load_template
from guava.commands.main import main
from guava.errors import InputError
from guava.model import bake as baking
from guava.model import reconstruct
from guava.model.bake import FITTED, BakeConfig, BakePose, bake, bake_cameras, baked_avatar, compare
from guava.model.weights import list_weights

SIZE = 64
QUICK = BakeConfig(
    fitted=tuple(
        (BakePose("talk", seconds), (yaw, pitch))
        for seconds, yaw, pitch in ((0.4, -28, 6), (2.1, -14, -8), (3.9, 0, 4), (5.0, 14, 9), (6.6, 28, -5))
    ),
    judged_poses=(BakePose("talk", 1.7, seed=7), BakePose("idle", 3.3, head=(15, 5))),
    judged_views=((-20, 5), (12, 0)),
    steps=0,
    samples=1,
)


@pytest.fixture(scope="module")
def template():
    return load_template()


class TrueColors(nn.Module):
    """A refiner that shows other channels than the coarse ones: the true answer is a set of colours."""

    size = SIZE

    def forward(self, features: Tensor, alpha: Tensor, *, noise: str, generator: object) -> Tensor:
        del alpha, noise, generator
        return features[:, 3:6]


class Brighter(nn.Module):
    """A refiner that is an affine change of the coarse colours, which the prior alone can bake."""

    size = SIZE

    def forward(self, features: Tensor, alpha: Tensor, *, noise: str, generator: object) -> Tensor:
        del noise, generator
        return 0.5 * features[:, [2, 1, 0]] + 0.25 * alpha


@pytest.fixture(scope="module")
def avatar(template) -> Avatar:
    """Grey on the first three channels, smoothly coloured on the next."""
    plain = small_avatar(template)
    g = plain.gaussians
    waves = torch.sin(g.positions @ torch.tensor([[9.0, 4, 2], [3, 11, 5], [2, 5, 8]]))
    g = replace(
        g,
        features=torch.cat([0.5 + 0.2 * waves[:, [1]].repeat(1, 3), 0.5 + 0.35 * waves], 1),
        scales=g.scales * torch.tensor([1.0, 0.5, 0.8]),
    )
    return replace(plain, gaussians=g, refiner=RefinerReference("true", "cd" * 32))


@pytest.fixture(scope="module")
def baked(avatar, template):
    config = replace(QUICK, fitted=FITTED[::2], iterations=16, prior=1e-3)
    return bake(avatar, template, TrueColors(), config)


def test_known_colours_are_recovered_in_unseen_poses(baked, avatar):
    assert baked.report.worst > 45 > 30 > baked.report.mean - baked.report.gain
    features = baked.avatar.gaussians.features
    assert features.shape == (len(avatar.gaussians), 3) and features.min() >= 0 and features.max() <= 1
    assert baked.avatar.refiner is None


def test_an_affine_change_reaches_what_no_view_shows(avatar, template):
    done = bake(avatar, template, Brighter(), replace(QUICK, iterations=3)).avatar.gaussians.features
    expected = 0.5 * avatar.gaussians.features[:, [2, 1, 0]] + 0.25
    # The back and the feet are in no fitted picture.
    assert (done - expected).abs().max() < 0.02


def test_conjugate_gradients_and_adam_agree(avatar, template):
    """Both minimise the same function, where colours stay within their bounds."""
    show = Animator(avatar, template, refiner=TrueColors())
    coarse = Animator(avatar, template, coarse=True)
    frames = [
        baking._Frame.of(coarse, show, pose, camera, 1)
        for pose, camera in bake_cameras(avatar, template, QUICK.fitted[:2], 32)
    ]
    frames = [replace(f, target=_shrunk(f.target, f.camera.width)) for f in frames]
    whole = baking._Scene(frames, coarse.gaussians.opacities, coarse.conventions, "auto")
    prior, weight = torch.full_like(coarse.gaussians.features[:, :3], 0.5), 1.0
    solved = baking.solve_colors(whole, prior, prior, weight, 30)

    colors = prior.clone().requires_grad_()
    optimizer = torch.optim.Adam([colors], lr=0.03)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.03 * 0.96**step
        error = weight * (colors - prior).square().sum()
        for frame in frames:
            error = error + (whole.draw(frame, colors)[0] - frame.target[..., :3]).square().sum()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert (colors.detach() - prior).abs().max() > 0.1
    assert (colors.detach() - solved).abs().max() < 0.01


def _shrunk(picture: Tensor, size: int) -> Tensor:
    step = picture.shape[0] // size
    return picture.reshape(size, step, size, step, -1).mean((1, 3))


def test_drawing_and_its_transpose_belong_together(avatar, template):
    """<A c, y> = <c, A^T y>, with several samples a pixel too."""
    show, coarse = Animator(avatar, template, refiner=TrueColors()), Animator(avatar, template, coarse=True)
    generator = torch.Generator().manual_seed(0)
    ((pose, camera),) = bake_cameras(avatar, template, QUICK.fitted[:1], SIZE)
    for samples in (1, 2):
        frame = baking._Frame.of(coarse, show, pose, camera, samples)
        whole = baking._Scene([frame], coarse.gaussians.opacities, coarse.conventions, "auto")
        colors = torch.rand(len(avatar.gaussians), 3, generator=generator)
        picture = torch.rand(SIZE, SIZE, 3, generator=generator)
        drawn, _ = whole.draw(frame, colors)
        pulled = baking._transposed(whole, frame, colors, lambda _picture, y=picture: y)
        assert drawn.shape == picture.shape
        torch.testing.assert_close((drawn * picture).sum(), (colors * pulled).sum(), rtol=1e-4, atol=0)


def test_colours_stay_in_range_and_neighbours_make_up(avatar, template):
    show, coarse = Animator(avatar, template, refiner=TrueColors()), Animator(avatar, template, coarse=True)
    ((pose, camera),) = bake_cameras(avatar, template, QUICK.fitted[2:3], SIZE)
    frame = baking._Frame.of(coarse, show, pose, camera, 1)
    sharp = frame.target.clone()
    sharp[..., :3] = ((sharp[..., :3] > 0.5 * sharp[..., 3:]).float() * 0.96 + 0.02) * sharp[..., 3:]
    whole = baking._Scene(
        [replace(frame, target=sharp)], coarse.gaussians.opacities, coarse.conventions, "auto"
    )
    start = coarse.gaussians.features[:, :3]

    def error(colors: Tensor) -> float:
        return float((whole.draw(frame, colors)[0] - sharp[..., :3]).square().sum())

    cut = baking._descend(whole, start, start, 0.1, 6, torch.ones_like(start), lambda: None)
    assert cut.min() < -0.02 or cut.max() > 1.02
    solved = baking.solve_colors(whole, start, start, 0.1, 9)
    assert solved.min() >= 0 and solved.max() <= 1
    assert error(solved) < error(cut.clamp(0, 1)) < error(start)


def test_shapes_move_with_the_body(avatar, template):
    """A frame with changed shapes is what posing the changed avatar gives, bindings untouched."""
    g = avatar.gaussians
    generator = torch.Generator().manual_seed(3)
    shapes = baking._Shapes(
        g.opacities * 0.9,
        0.2 * torch.randn(len(g), 3, generator=generator),
        0.01 * torch.randn(len(g), 3, generator=generator),
    )
    coarse = Animator(avatar, template, coarse=True)
    show = Animator(avatar, template, refiner=TrueColors())
    changed = baked_avatar(avatar, g.features[:, :3], shapes)
    for name in ("binding", "anchor", "barycentrics", "sigma", "triangle_rotation", "skin_weights"):
        assert torch.equal(getattr(changed.gaussians, name), getattr(g, name))
    ((pose, camera),) = bake_cameras(avatar, template, [(BakePose("wave", 1.6, arms="motion"), (0, 0))], SIZE)
    frame = baking._Frame.of(coarse, show, pose, camera, 1).changed(shapes)
    posed = Animator(changed, template).pose(pose)
    assert (posed.means - coarse.pose(pose).means).norm(dim=1).mean() > 0.005
    torch.testing.assert_close(frame.means, posed.means, rtol=0, atol=2e-5)
    torch.testing.assert_close(frame.scales, posed.scales, rtol=1e-4, atol=1e-7)


def test_vertex_gaussians_have_no_place_of_their_own(avatar, template):
    g = avatar.gaussians
    on_vertices = torch.arange(len(g)) % 2 == 0
    g = replace(
        g, binding=torch.where(on_vertices, int(BindingKind.VERTEX), g.binding).to(torch.uint8),
        anchor=torch.where(on_vertices, template.faces[g.anchor.long(), 0], g.anchor).to(torch.int32),
    )
    avatar = replace(avatar, gaussians=g)
    show, coarse = Animator(avatar, template, refiner=TrueColors()), Animator(avatar, template, coarse=True)
    ((pose, camera),) = bake_cameras(avatar, template, QUICK.fitted[:1], SIZE)
    frame = baking._Frame.of(coarse, show, pose, camera, 1)
    whole = baking._Scene([frame], g.opacities, coarse.conventions, "auto")
    shapes, _ = baking.refine_shapes(whole, g, g.features[:, :3], 3)
    assert shapes.shift[on_vertices].abs().max() == 0 < shapes.shift[~on_vertices].abs().max()
    assert shapes.growth.abs().max() > 0 and not torch.equal(shapes.opacities, g.opacities)


def test_fitted_and_judged_views_are_apart():
    assert len(baking.JUDGED_POSES) == 5 and len(baking.JUDGED_VIEWS) == 3
    assert not {pose for pose, _ in baking.FITTED} & {*baking.JUDGED_POSES}
    assert not {view for _, view in baking.FITTED} & {*baking.JUDGED_VIEWS}


def test_poses_are_what_they_say(avatar, template):
    items = [BakePose("idle", 1.0), BakePose("idle", 1.0, head=(20, 0)), BakePose("idle", 1.0, fingers=40)]
    wanted = [(item, (0, 0)) for item in items]
    (plain, camera), (turned, _), (bent, _) = bake_cameras(avatar, template, wanted, SIZE)
    ehm, head = EHM(template), template.joint("head")
    with torch.no_grad():
        ahead = [ehm(avatar.identity, p).joint_transforms[0, head, :3, 2] for p in (plain, turned)]
        rows = [ehm(avatar.identity, p).joints[0] for p in (plain, bent)]
    angle = torch.rad2deg(torch.acos((ahead[0] * ahead[1]).sum().clamp(-1, 1)))
    assert 18 < angle < 22 and ahead[1][0] > ahead[0][0]  # towards +x, the person's left
    # Bent fingers end nearer to the wrist.
    for side in ("left", "right"):
        tip, wrist = template.joint(f"{side}_middle3"), template.joint(f"{side}_wrist")
        reach = [float((row[tip] - row[wrist]).norm()) for row in rows]
        assert reach[1] < 0.97 * reach[0]
    assert camera.width == SIZE


def test_the_report_is_kept_in_the_file(baked, avatar, tmp_path):
    path = tmp_path / "baked.guava"
    save_avatar(baked.avatar, path)
    again = load_avatar(path)
    report = again.provenance.baked
    assert isinstance(report, BakeReport) and report == baked.report
    assert (report.weights, report.hash, report.size) == ("true", "cd" * 32, SIZE)
    assert [len(row) for row in report.psnr] == [2, 2]
    assert report.worst <= report.mean
    assert any("Baked from the refiner of 'true'" in note for note in again.provenance.notes)
    # Plain RGB for gsplat's conventions is what the first version holds: older programs read it.
    header = _header(path)
    assert header["version"] == 1 and header["refiner"] is None and header["channels"] == 3
    unbaked = tmp_path / "unbaked.guava"
    save_avatar(avatar, unbaked)
    assert load_avatar(unbaked).provenance.baked is None


def _header(path) -> dict:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["guava"])


def test_what_cannot_be_baked_is_told(baked, template):
    with pytest.raises(InputError, match="baked already.*dB"):
        bake(baked.avatar, template, TrueColors(), QUICK)
    with pytest.raises(InputError, match="has no refiner.*'test'"):
        bake(small_avatar(template), template, TrueColors(), QUICK)


def test_compare_judges_over_black_and_white():
    truth = torch.zeros(4, 4, 4)
    truth[:2] = torch.tensor([0.5, 0.5, 0.5, 1.0])
    assert compare(truth, truth, 0.0) == 100
    thin = truth.clone()
    thin[:2, :, 3] = 0.5
    assert compare(thin, truth, 0.0) == pytest.approx(-10 * torch.log10(torch.tensor(0.25**2 / 2)).item())
    dark = truth.clone()
    dark[2:, :, 3] = 0.2  # black where nothing should be: invisible over black
    assert compare(dark, truth, 0.0) == 100 > compare(dark, truth, 1.0)


# --- commands ---


@pytest.fixture(scope="module")
def lite(template) -> Avatar:
    """Of a tiny untrained network, whose refiner shows the coarse picture."""
    shot = scene(template)
    with pytest.warns(RuntimeWarning, match="Random"):
        return reconstruct(
            shot.photo, shot.tracked, model="lite", weights="random:0", network=tiny_config("lite"),
            matting="tracker",
        )  # fmt: skip


@pytest.fixture
def few(monkeypatch):
    """Few pictures, by default."""
    monkeypatch.setattr(baking, "BakeConfig", lambda steps=2: replace(QUICK, steps=steps, iterations=2))


def test_bake_command(lite, tmp_path, few, capsys):
    path, out = tmp_path / "a.guava", tmp_path / "b.guava"
    save_avatar(lite, path)
    assert lite.gaussians.features.shape[1] == CHANNELS
    assert main(["bake", str(path), "-o", str(out)]) == 0
    printed = capsys.readouterr()
    done = load_avatar(out)
    report = done.provenance.baked
    assert done.refiner is None and done.gaussians.features.shape[1] == 3
    assert f"mean {report.mean:.2f} dB" in printed.out and "talk 7 at 1.7 s" in printed.out
    assert done.provenance.settings["bake_command"]["avatar"] == "a.guava"
    assert load_avatar(path).refiner is not None
    # No weights are needed any more.
    assert main(["render", str(out), "-o", str(tmp_path / "b.png"), "--size", "32"]) == 0
    assert json.loads((tmp_path / "b.png.json").read_text())["baked"]["mean"] == pytest.approx(report.mean)
    assert main(["bake", str(out), "-o", str(out)]) == 2
    assert "baked already" in capsys.readouterr().err
    for options, words in (
        (["--device", "abacus"], "no device 'abacus'"),
        (["--weights", "random:3"], "no weights named"),
        (["--steps", "-1"], "--steps -1"),
    ):
        assert main(["bake", str(path), "-o", str(tmp_path / "c.guava"), *options]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "c.guava").exists()


def test_an_interrupted_bake_loses_nothing(lite, tmp_path, few, monkeypatch, capsys):
    from guava.commands import reconstruct as command

    out = tmp_path / "me.guava"
    settings = command.Config(tmp_path / "photo.png", out, model="lite", weights="random:0", bake=True)
    monkeypatch.setattr(command, "make_avatar", lambda config: (lite, {}))

    def stopped(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(baking, "bake", stopped)
    with pytest.raises(KeyboardInterrupt):
        command.run(settings)
    assert load_avatar(out).refiner == lite.refiner
    assert f"guava bake {out} -o {out}" in capsys.readouterr().err
    monkeypatch.undo()

    monkeypatch.setattr(command, "make_avatar", lambda config: (lite, {}))
    monkeypatch.setattr(baking, "BakeConfig", lambda: replace(QUICK, iterations=1))
    command.run(settings)
    assert load_avatar(out).provenance.baked.weights == "random:0"
    assert [p.name for p in tmp_path.iterdir()] == ["me.guava"]


def test_reconstruct_refuses_to_bake_without_a_refiner(tmp_path, capsys):
    for options in (["--model", "baseline"], ["--model", "lite", "--ablate", "refiner"]):
        assert main(["reconstruct", "none.jpg", "-o", str(tmp_path / "x.guava"), "--bake", *options]) == 2
        assert "Leave out --bake" in capsys.readouterr().err


SHIPPED = [info.name for info in list_weights() if info.embedded and info.has_refiner]


@pytest.mark.skipif(not SHIPPED, reason="no weights with a refiner come with the package: nothing to bake")
@pytest.mark.parametrize("name", SHIPPED or ["none"])
def test_shipped_weights_bake_within_their_bound(name, template, monkeypatch):
    """benchmarks/bake.py on one person and half of the fitted pictures."""
    folder = Path(__file__).parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    bench = runpy.run_path(str(folder / "bake.py"))
    figures = bench["measure"](
        name, template, bench["FIRST_SEED"], config=BakeConfig(fitted=FITTED[::2])
    )  # fmt: skip
    assert figures["loss_db"] <= bench["BOUND_DB"], figures
