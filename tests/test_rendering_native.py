"""The native splatter against the float64 reference, and properties that a splatter must have."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import warnings
from dataclasses import replace

import pytest
import torch
from splat_scenes import NAMES, Scene, gradients, random_scene, weighted_sum

from guava import native
from guava.camera import Camera
from guava.rendering import GSPLAT, THREE_DGS, SplatConventions, SplatOutput, splat, splat_native, splatting

CONVENTIONS = {"gsplat": GSPLAT, "3dgs": THREE_DGS}
VALUES = 2e-5
"""Largest error of pictures whose features are below 1 and whose depths are about 4 m."""
GRADIENTS = 5e-5
"""Largest error of a gradient, of its largest entry. Measured: 5e-6 (torch in float32: 3e-6)."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """The pictures are tiny: torch's threads would only wait for each other, for long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _same_number_of_threads():
    """No call changes torch's own setting; tests that change it change it back."""
    yield
    assert torch.get_num_threads() == 1


def draw(scene: Scene, **options) -> SplatOutput:
    scene = scene.to(torch.float32)
    options.setdefault("background", scene.background)
    with torch.no_grad():
        return splat(*scene.gaussians, scene.camera, backend="native", **options)


def planes(out: SplatOutput) -> dict[str, torch.Tensor]:
    depth = out.inverse_depth if out.depth is None else out.depth
    return {"features": out.features, "alpha": out.alpha, "depth": depth}


def assert_same(one: SplatOutput, other: SplatOutput) -> None:
    """Bit for bit."""
    for (name, a), b in zip(planes(one).items(), planes(other).values(), strict=True):
        assert torch.equal(a, b), name


def assert_near(got: SplatOutput, wanted: SplatOutput, tolerance: float = VALUES) -> None:
    for (name, a), b in zip(planes(got).items(), planes(wanted).values(), strict=True):
        assert a.dtype == torch.float32 and a.shape == b.shape
        scale = 4.0 if name == "depth" else 1.0
        error = largest(a.detach().double() - b.detach())
        assert error <= scale * tolerance, f"{name} is off by {error:.2g}"


def assert_gradients_near(got: dict, wanted: dict, tolerance: float = GRADIENTS) -> None:
    for name, reference in wanted.items():
        assert got[name].shape == reference.shape and torch.isfinite(got[name]).all()
        scale, error = largest(reference), largest(got[name].double() - reference)
        assert error <= tolerance * scale, f"{name}: {error:.2g} of {scale:.2g}"


def largest(values: torch.Tensor) -> float:
    """The largest magnitude; of no values, 0."""
    return float(values.abs().max()) if values.numel() else 0.0


SCENES = {
    "rgb": {"count": 300, "channels": 3, "width": 45, "height": 33, "seed": 1},
    "latents": {"count": 160, "channels": 32, "width": 40, "height": 24, "seed": 2},
    "odd latents": {"count": 100, "channels": 33, "width": 17, "height": 31, "seed": 3},
    "grey": {"count": 100, "channels": 1, "width": 31, "height": 17, "seed": 4},
    "four": {"count": 200, "channels": 4, "width": 64, "height": 48, "seed": 5},
    "seven": {"count": 80, "channels": 7, "width": 9, "height": 50, "seed": 6},
    "nothing but alpha": {"count": 80, "channels": 0, "width": 20, "height": 20, "seed": 7},
    # Pixels end early.
    "deep": {
        "count": 250, "channels": 3, "width": 40, "height": 40, "seed": 8, "sigma": 0.35,
        "opacity": (0.5, 1.0),
    },
    # Alphas are clamped.
    "walls": {
        "count": 40, "channels": 3, "width": 30, "height": 40, "seed": 10, "sigma": 0.8,
        "opacity": (0.9995, 1.0),
    },
    # Thousands in a tile, each smaller than a pixel.
    "dust": {"count": 4000, "channels": 3, "width": 18, "height": 14, "seed": 9, "sigma": 0.003},
}


@pytest.fixture(scope="module", params=[(c, s) for c in CONVENTIONS for s in SCENES], ids="-".join)
def case(request):
    """A scene, its conventions, and the reference's picture and gradients."""
    conventions = CONVENTIONS[request.param[0]]
    scene = random_scene(**SCENES[request.param[1]], conventions=conventions)
    out, grads = gradients(scene, backend="torch", conventions=conventions)
    assert out.alpha.max() > (0.99 if request.param[1] in ("deep", "walls") else 0.3)
    return scene, conventions, out, grads


def test_values_and_all_gradients(case):
    scene, conventions, wanted, wanted_grads = case
    out, grads = gradients(scene.to(torch.float32), backend="native", conventions=conventions)
    assert (out.depth is None) == conventions.inverse_depth
    assert_near(out, wanted)
    assert_gradients_near(grads, wanted_grads)
    assert not grads["view"][3].any() and not grads["intrinsics"][2].any()
    assert_same(draw(scene, conventions=conventions), out)


def test_the_scenes_have_early_stops_and_clamped_alphas():
    """So that the comparison above covers them."""
    for conventions in CONVENTIONS.values():
        scene = random_scene(**SCENES["deep"], conventions=conventions)
        stops = splat(*scene.gaussians, scene.camera, backend="torch", conventions=conventions).alpha
        goes_on = replace(conventions, transmittance_min=1e-30)
        full = splat(*scene.gaussians, scene.camera, backend="torch", conventions=goes_on).alpha
        assert ((full - stops) > 1e-6).float().mean() > 0.02
        scene = random_scene(**SCENES["walls"], conventions=conventions)
        (_, through), (_, held) = (
            gradients(scene, backend="torch", conventions=replace(conventions, straight_through=passes))
            for passes in (True, False)
        )
        apart = largest(through["opacities"] - held["opacities"])
        assert apart > 100 * GRADIENTS * largest(held["opacities"])


@pytest.mark.parametrize("changed", [
    {"eps2d": 0.0}, {"eps2d": 2.5}, {"alpha_max": 0.5}, {"alpha_min": 0.05}, {"alpha_min": 1e-5},
    {"transmittance_min": 0.3}, {"transmittance_min": 0.0}, {"near": 3.9}, {"frustum_margin": 0.0},
    {"frustum_margin": 1e6}, {"exclusive_limits": True}, {"extent": "radius"},
    {"normalize_quaternions": False}, {"straight_through": True}, {"inverse_depth": True},
], ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()))
def test_every_convention_by_itself(changed):
    conventions = replace(GSPLAT, **changed)
    scene = random_scene(150, 3, 40, 30, 11, sigma=0.15, conventions=conventions)
    wanted, wanted_grads = gradients(scene, backend="torch", conventions=conventions)
    out, grads = gradients(scene.to(torch.float32), backend="native", conventions=conventions)
    assert_near(out, wanted)
    assert_gradients_near(grads, wanted_grads)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    if isa not in native.available_isas():
        pytest.skip(f"this library and machine have no {isa}")
    for name, conventions in (
        ("rgb", GSPLAT), ("odd latents", THREE_DGS), ("deep", THREE_DGS), ("latents", GSPLAT)
    ):
        scene = random_scene(**SCENES[name], conventions=conventions)
        wanted, wanted_grads = gradients(scene, backend="torch", conventions=conventions)
        with native.forced_isa(isa):
            out, grads = gradients(scene.to(torch.float32), backend="native", conventions=conventions)
        assert_near(out, wanted)
        assert_gradients_near(grads, wanted_grads)


@pytest.mark.parametrize("name", ["rgb", "odd latents", "nothing but alpha"])
def test_every_number_is_written(name, monkeypatch):
    """New memory may hold anything: pictures' edges, empty tiles and what is not drawn must be filled too."""
    scene = random_scene(**SCENES[name]).to(torch.float32)
    wanted, wanted_grads = gradients(scene, backend="native")
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: empty(*size, **kind).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty_like", lambda t: empty(t.shape).fill_(torch.nan))
    out, grads = gradients(scene, backend="native")
    assert_same(out, wanted)
    assert all(torch.equal(grads[key], wanted_grads[key]) for key in NAMES)
    assert_same(draw(scene), wanted)


def test_each_gradient_by_itself_is_the_same():
    """Kernels skip what is not asked for."""
    scene = random_scene(120, 4, 30, 30, 12).to(torch.float32)
    _, together = gradients(scene, backend="native")
    for k, name in enumerate(NAMES):
        leaves = [t.detach() for t in scene.leaves()]
        leaves[k].requires_grad_()
        s = scene.with_leaves(leaves)
        out = splat(*s.gaussians, s.camera, background=s.background, backend="native")
        (alone,) = torch.autograd.grad(weighted_sum(out), leaves[k])
        torch.testing.assert_close(alone, together[name], atol=0, rtol=0)


@pytest.mark.parametrize("plane", ["features", "alpha", "depth"])
def test_gradients_of_one_plane(plane):
    """The others' are not there at all, which is not the same as zero to the kernels."""
    scene = random_scene(120, 4, 30, 30, 13)
    found = []
    for backend, dtype in (("torch", torch.float64), ("native", torch.float32)):
        s = scene.to(dtype)
        leaves = s.leaves()
        s = s.with_leaves(leaves)
        out = splat(*s.gaussians, s.camera, background=s.background, backend=backend)
        loss = planes(out)[plane].square().sum()
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        grads = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True)]
        found.append(dict(zip(NAMES, grads, strict=True)))
    assert_gradients_near(found[1], found[0])
    assert found[1]["features"].any() == (plane == "features")


def test_no_background_is_a_black_one():
    scene = random_scene(100, 3, 30, 20, 14).to(torch.float32)
    black = draw(scene, background=torch.zeros(3))
    assert_same(draw(scene, background=None), black)
    leaves = scene.leaves()
    s = scene.with_leaves(leaves)
    out = splat(*s.gaussians, s.camera, backend="native")
    wanted = splat(*s.gaussians, s.camera, backend="torch")
    for leaf in leaves[:5] + leaves[6:]:
        got, reference = (
            torch.autograd.grad(weighted_sum(o), leaf, retain_graph=True)[0] for o in (out, wanted)
        )
        assert_gradients_near({"": got}, {"": reference})


def test_float64_and_half_inputs_keep_their_gradients_dtype():
    scene = random_scene(80, 3, 24, 24, 15)
    wanted, wanted_grads = gradients(scene.to(torch.float32), backend="native")
    out, grads = gradients(scene, backend="native")
    assert_same(out, wanted)
    for name, grad in grads.items():
        assert grad.dtype == torch.float64
        torch.testing.assert_close(grad, wanted_grads[name].double(), atol=0, rtol=0)
    features = scene.features.half().requires_grad_()
    single = scene.to(torch.float32)
    out = splat(*single.gaussians[:4], features, single.camera, backend="native")
    assert out.features.dtype == torch.float32
    out.features.sum().backward()
    assert features.grad.dtype == torch.float16 and features.grad.any()


@pytest.mark.parametrize("default", [torch.float16, torch.float64, "meta"], ids=str)
def test_whatever_torch_makes_by_default(default):
    """The kernels write float32 to the CPU's memory: a picture of another kind would be overrun."""
    scene = random_scene(80, 3, 24, 24, 15).to(torch.float32)
    leaves = scene.leaves()
    s = scene.with_leaves(leaves)

    def run():
        out = splat(*s.gaussians, s.camera, background=s.background, backend="native")
        grads = torch.autograd.grad(out.features.sum() + out.alpha.sum(), leaves)
        return out, grads, draw(scene, out=SplatOutput.empty(24, 24, 3))

    wanted, wanted_grads, _ = run()
    before = torch.get_default_dtype()
    try:
        if isinstance(default, str):
            torch.set_default_device(default)
        else:
            torch.set_default_dtype(default)
        out, grads, given = run()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
    assert_same(out, wanted)
    assert_same(given, wanted)
    for grad, reference in zip(grads, wanted_grads, strict=True):
        assert torch.equal(grad, reference)


def test_strided_inputs():
    scene = random_scene(80, 5, 24, 24, 16).to(torch.float32)
    strided = [torch.stack([t, t + 1], -1)[..., 0] for t in scene.gaussians]
    strided[0] = scene.means.T.contiguous().T
    assert not any(t.is_contiguous() for t in strided)
    background = torch.stack([scene.background, scene.background], 1)[:, 0]
    view = scene.camera.world_to_camera.T.contiguous().T
    camera = replace(scene.camera, world_to_camera=view)
    out = splat(*strided, camera, background=background, backend="native")
    assert_same(out, draw(scene))


def test_agrees_with_numba():
    for conventions in CONVENTIONS.values():
        scene = random_scene(1200, 5, 70, 50, 17, sigma=0.05, conventions=conventions).to(torch.float32)
        wanted = splat(*scene.gaussians, scene.camera, background=scene.background, backend="numba",
                       conventions=conventions)
        assert_near(draw(scene, conventions=conventions), wanted)


# --- properties ---------------------------------------------------------------------------------------------


def test_permutations_change_nothing():
    """Of a scene without equal depths: the same picture, and gradients that are permuted."""
    scene = random_scene(300, 4, 40, 40, 18).to(torch.float32)
    order = torch.randperm(len(scene.means), generator=torch.Generator().manual_seed(0))
    out, grads = gradients(scene, backend="native")
    other, permuted = gradients(scene.rows(order), backend="native")
    assert_same(other, out)
    for name in NAMES:
        wanted = grads[name] if name in NAMES[5:] else grads[name][order]
        torch.testing.assert_close(permuted[name], wanted, atol=1e-6 * float(wanted.abs().max()), rtol=1e-5)


def test_equal_depths_are_drawn_in_order_of_index():
    """Thousands on one plane, as the reference sorts them."""
    g = torch.Generator().manual_seed(3)
    count = 3000
    means = torch.cat([0.1 * (torch.rand(count, 2, generator=g) - 0.5), torch.full((count, 1), -12.0)], 1)
    args = (
        means, torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1), torch.full((count, 3), 0.01),
        0.1 + 0.3 * torch.rand(count, generator=g), torch.rand(count, 3, generator=g), Camera.frontal(16),
    )
    wanted = splat(*args, backend="torch")
    out = splat(*args, backend="native")
    assert out.alpha.max() > 0.99
    # A pixel may end one Gaussian earlier; another order would change what is seen by tenths.
    assert float((out.features - wanted.features).abs().max()) < 2e-4


def test_linear_in_features_and_background():
    scene = random_scene(200, 6, 30, 30, 19).to(torch.float32)
    other = torch.randn(scene.features.shape, generator=torch.Generator().manual_seed(1))
    mixed = replace(scene, features=2 * scene.features - 3 * other)
    first, second = (draw(replace(scene, features=f), background=None) for f in (scene.features, other))
    torch.testing.assert_close(
        draw(mixed, background=None).features, 2 * first.features - 3 * second.features, atol=1e-5, rtol=0
    )
    behind = draw(scene)
    torch.testing.assert_close(
        behind.features, first.features + (1 - first.alpha)[..., None] * scene.background, atol=1e-6, rtol=0
    )
    assert torch.equal(behind.alpha, first.alpha)


def test_channels_do_not_depend_on_each_other():
    """Whatever path the kernels take for a number of channels."""
    scene = random_scene(150, 70, 33, 18, 20).to(torch.float32)
    everything = draw(scene)
    for count in (1, 2, 3, 4, 5, 8, 12, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65):
        some = replace(scene, features=scene.features[:, :count], background=scene.background[:count])
        out = draw(some)
        torch.testing.assert_close(out.features, everything.features[..., :count], atol=1e-6, rtol=0)
        assert torch.equal(out.alpha, everything.alpha) and torch.equal(out.depth, everything.depth)


@pytest.mark.parametrize("name", ["rgb", "latents", "deep"])
def test_thread_count_and_repetition_change_no_bit(name):
    scene = random_scene(**(SCENES[name] | {"width": 150, "height": 110, "count": 500}), clear=False)
    scene = scene.to(torch.float32)
    wanted, wanted_grads = gradients(scene, backend="native")
    try:
        for count in (1, 2, 3, 4, 4, 1):
            torch.set_num_threads(count)
            out, grads = gradients(scene, backend="native")
            assert torch.get_num_threads() == count
            assert_same(out, wanted)
            for key in NAMES:
                assert torch.equal(grads[key], wanted_grads[key]), (key, count)
    finally:
        torch.set_num_threads(1)


def test_gradients_by_finite_differences():
    """Of the native picture itself, along random directions; nothing near the cut, where it jumps."""
    conventions = SplatConventions(alpha_min=1e-6, transmittance_min=1e-12)
    scene = random_scene(14, 3, 12, 12, 21, sigma=0.4, opacity=(0.1, 0.6), conventions=conventions)
    scene = scene.to(torch.float32)
    generator = torch.Generator().manual_seed(5)

    def loss(leaves):
        s = scene.with_leaves(leaves)
        out = splat(
            *s.gaussians, s.camera, background=s.background, backend="native", conventions=conventions
        )
        return weighted_sum(SplatOutput(out.features.double(), out.alpha.double(), out.depth.double()))

    leaves = scene.leaves()
    grads = torch.autograd.grad(loss(leaves), leaves)
    for k, name in enumerate(NAMES):
        direction = torch.randn(leaves[k].shape, generator=generator)
        direction[{"view": slice(3, 4), "intrinsics": slice(2, 3)}.get(name, slice(0, 0))] = 0
        step = 2e-3 / float(direction.abs().max()) * max(1.0, largest(leaves[k].detach()) ** 0.5)
        with torch.no_grad():
            up, down = (
                [*leaves[:k], leaves[k] + sign * step * direction, *leaves[k + 1 :]] for sign in (1, -1)
            )
            measured = float(loss(up) - loss(down)) / (2 * step)
        derived = float((grads[k] * direction).sum())
        assert derived == pytest.approx(measured, rel=2e-2, abs=2e-2 * float(grads[k].abs().max())), name


# --- the interface ------------------------------------------------------------------------------------------


def test_pictures_in_given_memory():
    for conventions in CONVENTIONS.values():
        scene = random_scene(100, 3, 30, 20, 22, conventions=conventions)
        wanted = draw(scene, conventions=conventions)
        for backend in ("native", "numba", "torch"):
            out = SplatOutput.empty(30, 20, 3, conventions)
            for plane in planes(out).values():
                plane.fill_(torch.nan)
            with torch.no_grad():
                s = scene.to(torch.float32)
                got = splat(
                    *s.gaussians, s.camera, background=s.background, backend=backend, conventions=conventions,
                    out=out,
                )
            assert got is out
            assert_near(out, wanted)
        bare = SplatOutput.empty(30, 20, 3, conventions, depth=False)
        assert bare.depth is None and bare.inverse_depth is None
        draw(scene, conventions=conventions, out=bare)
        assert torch.equal(bare.features, wanted.features) and torch.equal(bare.alpha, wanted.alpha)


def test_memory_that_does_not_fit_is_refused():
    scene = random_scene(20, 3, 30, 20, 23).to(torch.float32)
    right = SplatOutput.empty(30, 20, 3)
    for wrong, match in (
        (SplatOutput.empty(20, 30, 3), "features"), (SplatOutput.empty(30, 20, 4), "features"),
        (replace(right, alpha=torch.empty(20, 30).T.double().T), "alpha"),
        (replace(right, alpha=torch.empty(30, 20).T), "alpha"),
        (replace(right, depth=torch.empty(20, 31)), "depth"),
        (SplatOutput.empty(30, 20, 3, THREE_DGS), "inverse_depth"),
    ):
        with pytest.raises(ValueError, match=match):
            draw(scene, out=wrong)
    means = scene.means.requires_grad_()
    with pytest.raises(ValueError, match="no_grad"):
        splat(means, *scene.gaussians[1:], scene.camera, out=right, backend="native")


def test_a_graph_twice_and_changes_in_between():
    scene = random_scene(60, 3, 20, 20, 24).to(torch.float32)
    means = scene.means.clone().requires_grad_()
    out = splat(means, *scene.gaussians[1:], scene.camera, backend="native")
    first = torch.autograd.grad(out.features.sum(), means, retain_graph=True)[0]
    # Other pictures in between do not disturb what this one's backward pass needs.
    other = random_scene(200, 8, 50, 50, 25).to(torch.float32)
    gradients(other, backend="native")
    assert torch.equal(torch.autograd.grad(out.features.sum(), means, retain_graph=True)[0], first)
    scene.scales.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out.features.sum(), means)
    out = splat(means, *scene.gaussians[1:], scene.camera, backend="native")
    torch.autograd.grad(out.features.sum(), means)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out.features.sum(), means)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        out = splat(means, *scene.gaussians[1:], scene.camera, backend="native")
        (grad,) = torch.autograd.grad(out.features.square().sum(), means, create_graph=True)
        grad.sum().backward()


def test_several_pictures_before_one_backward_pass():
    scenes = [random_scene(60, 3, 20 + k, 20, 30 + k).to(torch.float32) for k in range(6)]
    wanted = [gradients(s, backend="native")[1]["means"] for s in scenes]
    leaves = [s.means.clone().requires_grad_() for s in scenes]
    outs = [
        splat(m, *s.gaussians[1:], s.camera, background=s.background, backend="native")
        for m, s in zip(leaves, scenes, strict=True)
    ]
    sum(weighted_sum(o) for o in reversed(outs)).backward()
    for leaf, grad in zip(leaves, wanted, strict=True):
        assert torch.equal(leaf.grad, grad)


def test_checkpoints_recompute_it():
    scene = random_scene(60, 3, 20, 20, 26).to(torch.float32)
    means = scene.means.clone().requires_grad_()

    def picture(m):
        return splat(m, *scene.gaussians[1:], scene.camera, backend="native").features

    plain = torch.autograd.grad(picture(means).square().sum(), means)[0]
    for reentrant in (False, True):
        means.grad = None
        torch.utils.checkpoint.checkpoint(picture, means, use_reentrant=reentrant).square().sum().backward()
        assert torch.equal(means.grad, plain)


def test_gradients_that_are_not_finite_stay_so():
    """A loss that overflowed must be seen by whoever looks at the gradients."""
    scene = random_scene(60, 3, 20, 20, 27).to(torch.float32)
    features = scene.features.clone().requires_grad_()
    out = splat(*scene.gaussians[:4], features, scene.camera, backend="native")
    (grad,) = torch.autograd.grad((out.features * torch.tensor(float("nan"))).sum(), features)
    assert torch.isnan(grad).any()


def test_measurements():
    scene = random_scene(100, 3, 30, 20, 28).to(torch.float32)
    with splat_native.recorded_stats() as stats:
        gradients(scene, backend="native")
    draw(scene)
    forward, backward = stats
    assert 0 < forward.visible <= len(scene.means) and forward.pairs >= forward.visible
    assert forward.blend_ms > 0 and backward.blend_backward_ms > 0 and forward.blend_backward_ms == 0
    count = splat_native.count_work(*scene.gaussians, scene.camera, conventions=GSPLAT)
    assert (count.visible, count.pairs) == (forward.visible, forward.pairs)
    # Every weight that matters was evaluated; of the drawn ones at least the visible alphas' pixels.
    assert count.evaluations >= count.weights > int((draw(scene).alpha > 0).sum())


STRUCTS = {
    "scene": splat_native.Scene, "picture": splat_native.Picture, "problem": splat_native.Problem,
    "stats": splat_native.Stats, "gradients": splat_native.Gradients,
}


def test_structs_are_the_headers(tmp_path):
    """Sizes and the offsets of all fields, by the C compiler."""
    from pathlib import Path

    header = Path(__file__).resolve().parents[1] / "native" / "include" / "guava_native.h"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or not header.is_file():
        pytest.skip("no C compiler, or not a source checkout")
    lines = []
    for name, struct in STRUCTS.items():
        lines.append(f'printf("%zu\\n", sizeof(guava_splat_{name}));')
        for field in struct._fields_:
            lines.append(f'printf("%zu\\n", offsetof(guava_splat_{name}, {field[0]}));')
    source = tmp_path / "sizes.c"
    source.write_text(
        f'#include <stdio.h>\n#include "{header}"\nint main(void) {{ {" ".join(lines)} return 0; }}\n'
    )
    subprocess.run([compiler, str(source), "-o", str(tmp_path / "sizes")], check=True)
    printed = subprocess.run([str(tmp_path / "sizes")], check=True, capture_output=True, text=True).stdout
    ours = []
    for struct in STRUCTS.values():
        ours.append(ctypes.sizeof(struct))
        ours += [getattr(struct, field[0]).offset for field in struct._fields_]
    assert [int(line) for line in printed.split()] == ours


# --- which backend runs -------------------------------------------------------------------------------------


def test_auto_is_native_on_the_cpu():
    scene = random_scene(30, 3, 12, 12, 29).to(torch.float32)
    with splat_native.recorded_stats() as stats:
        means = scene.means.clone().requires_grad_()
        splat(means, *scene.gaussians[1:], scene.camera).alpha.sum().backward()
        splat(*scene.gaussians, scene.camera)
    assert len(stats) == 3 and means.grad.any()


def test_without_the_library_the_slow_path_says_so_once(monkeypatch):
    def unavailable():
        raise native.NativeUnavailable("the library is for another planet.")

    monkeypatch.setattr(native, "library", unavailable)
    splatting.warn_slow.cache_clear()
    scene = random_scene(30, 3, 12, 12, 29).to(torch.float32)
    with pytest.warns(RuntimeWarning, match="another planet.*guava doctor"):
        out = splat(*scene.gaussians, scene.camera)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        means = scene.means.clone().requires_grad_()
        slow = splat(means, *scene.gaussians[1:], scene.camera)
        assert slow.features.requires_grad
        assert_near(out, slow)
    with pytest.raises(native.NativeUnavailable, match="another planet"):
        splat(*scene.gaussians, scene.camera, backend="native")
    splatting.warn_slow.cache_clear()


def test_numba_uses_as_many_threads_as_torch():
    import numba

    from guava.rendering.threads import KERNEL_LOCK

    own = numba.get_num_threads()
    try:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            with KERNEL_LOCK:
                assert numba.get_num_threads() == min(threads, numba.config.NUMBA_NUM_THREADS)
            assert numba.get_num_threads() == own and torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
