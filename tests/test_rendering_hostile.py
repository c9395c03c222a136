"""Splatting what nobody should splat: a picture without surprises, or an error that says what is wrong."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from splat_scenes import NAMES, Scene, clear_of_limits, gradients, random_scene, turned_camera

from guava import native
from guava.camera import Camera
from guava.rendering import GSPLAT, THREE_DGS, SplatConventions, splat, splat_native
from guava.rendering.splatting import normalized_frustum

BACKENDS = ["native", "numba", "torch"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """The pictures are tiny: torch's threads would only wait for each other, for long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def one(position=(0.0, 0.0, -12.0), sigma=0.03, opacity=0.8, color=(1.0, 0.5, 0.25)):
    return (
        torch.tensor([position]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), sigma),
        torch.tensor([opacity]), torch.tensor([color]),
    )


def assert_sane(out, height, width, channels):
    """Shapes, and values that pictures can have."""
    depth = out.inverse_depth if out.depth is None else out.depth
    assert out.features.shape == (height, width, channels)
    assert out.alpha.shape == depth.shape == (height, width)
    for plane in (out.features, out.alpha, depth):
        assert torch.isfinite(plane).all()
    assert (out.alpha >= 0).all() and (out.alpha <= 1).all() and (depth >= 0).all()


# --- random scenes ------------------------------------------------------------------------------------------

# Magnitudes that float32 has, zero included.
_magnitudes = st.one_of(st.just(0.0), st.floats(-12, 12).map(lambda e: 10.0**e))
_signed = st.tuples(_magnitudes, st.sampled_from((-1.0, 1.0))).map(lambda t: t[0] * t[1])


@st.composite
def wild_gaussians(draw):
    """Up to eight Gaussians of any magnitude anywhere, before a camera of any size and lens."""
    count, channels = draw(st.integers(0, 8)), draw(st.sampled_from((0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 33)))
    rows = range(count)
    means = [[draw(_signed) for _ in range(3)] for _ in rows]
    quaternions = [[draw(_signed) for _ in range(4)] for _ in rows]
    quaternions = [q if any(q) else [0.0, 1e-30, 0.0, 0.0] for q in quaternions]
    scales = [[draw(_magnitudes) for _ in range(3)] for _ in rows]
    opacities = [draw(st.sampled_from((0.0, 1e-9, 1 / 255, 0.004, 0.5, 0.999, 1.0, 1.00005))) for _ in rows]
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    camera = Camera.frontal(32, focal_ndc=10 ** draw(st.floats(-2, 2))).resized(width, height)
    if draw(st.booleans()):
        camera = camera.orbit(draw(st.floats(-3, 3)), draw(st.floats(-3, 3)), torch.tensor([0.0, 0, -2]))
    return (
        torch.tensor(means).reshape(-1, 3), torch.tensor(quaternions).reshape(-1, 4),
        torch.tensor(scales).reshape(-1, 3), torch.tensor(opacities),
        torch.rand(count, channels, generator=g), camera.to(dtype=torch.float32),
    )


@settings(max_examples=150, deadline=None)
@given(wild_gaussians(), st.sampled_from((GSPLAT, THREE_DGS)))
def test_wild_gaussians(args, conventions):
    """Forward and backward end, and give pictures; what cannot be drawn is not drawn. Gradients by what is
    far outside float32's comfort may overflow, but those by the features, which are weights, never do."""
    *gaussians, camera = args
    leaves = [t.requires_grad_() for t in gaussians]
    out = splat(*leaves, camera, backend="native", conventions=conventions)
    channels = gaussians[4].shape[1]
    assert_sane(out, camera.height, camera.width, channels)
    assert (out.features <= out.alpha[..., None] + 1e-5).all()
    depth = out.inverse_depth if out.depth is None else out.depth
    loss = out.features.sum() + out.alpha.sum() + depth.sum()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert torch.isfinite(grads[4]).all() and (grads[4] >= 0).all()
    weights = grads[4].sum(0)
    torch.testing.assert_close(weights, out.alpha.sum().expand(channels), atol=1e-3, rtol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(0, 60), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9),
    st.floats(-3, 0.3), st.sampled_from((GSPLAT, THREE_DGS)),
)
@example(seed=0, count=0, width=1, height=1, channels=3, size=-1.0, conventions=GSPLAT)
@example(seed=1, count=50, width=1, height=1, channels=3, size=0.0, conventions=THREE_DGS)
@example(seed=2, count=60, width=40, height=1, channels=0, size=0.0, conventions=GSPLAT)
@example(seed=3266, count=2, width=5, height=3, channels=2, size=0.0, conventions=GSPLAT)  # it cancels
def test_random_scenes(seed, count, width, height, channels, size, conventions):
    """Against the reference, pictures and gradients."""
    scene = random_scene(count, channels, width, height, seed, sigma=10**size, conventions=conventions)
    wanted, wanted_grads = gradients(scene, backend="torch", conventions=conventions)
    out, grads = gradients(scene.to(torch.float32), backend="native", conventions=conventions)
    assert_sane(out, height, width, channels)
    assert float((out.alpha - wanted.alpha).abs().max()) < 2e-5
    if channels:
        assert float((out.features - wanted.features).abs().max()) < 2e-5
    for name, reference in wanted_grads.items():
        if reference.numel():
            error = float((grads[name] - reference).abs().max())
            # What cancels in a sum over pixels has been rounded: the second term.
            bound = 2e-4 * float(reference.abs().max()) + 3e-6 * float(wanted.alpha.sum())
            assert error <= max(bound, 1e-7), name


def degenerate_scene(kind: str) -> Scene:
    scene = random_scene(60, 3, 32, 24, 40, sigma=0.1)
    scales = scene.scales.clone()
    if kind == "points":
        scales[:] = 0
    elif kind == "discs":
        scales[:, 1] = 0
    elif kind == "lines":
        scales[:, 1:] = 0
    elif kind == "needles":
        scales[:, 0] = 0.5
        scales[:, 1:] = 1e-5
    elif kind == "huge":
        scales[::3] = 30
    return clear_of_limits(replace(scene, scales=scales.float().double()), GSPLAT)


@pytest.mark.parametrize("kind", ["points", "discs", "lines", "needles", "huge"])
def test_degenerate_covariances(kind):
    """Against the reference, gradients included: flat Gaussians are what Guava's avatars are made of."""
    scene = degenerate_scene(kind)
    wanted, wanted_grads = gradients(scene, backend="torch")
    out, grads = gradients(scene.to(torch.float32), backend="native")
    assert wanted.alpha.max() > 0.3
    # A needle's inverse covariance amplifies rounding by its length in pixels, squared.
    loose = 10 if kind in ("needles", "lines", "huge") else 1
    assert float((out.features - wanted.features).abs().max()) < 2e-5 * loose
    for name, reference in wanted_grads.items():
        error = float((grads[name] - reference).abs().max())
        assert error <= 1e-4 * loose * float(reference.abs().max()), name


@pytest.mark.parametrize("eps2d", [0.3, 0.0])
@pytest.mark.parametrize("sigma", [0.0, 1e-30, 1e-12, 1e12, 1e19, 1e30, 3e38])
def test_any_size(sigma, eps2d):
    """Squares that overflow or vanish: drawn or not, but never NaN. Without dilation points have no area."""
    conventions = SplatConventions(eps2d=eps2d)
    for scales in ([sigma] * 3, [sigma, 0.01, 0.01], [0.01, 0.01, sigma], [sigma, sigma, 0.0]):
        args = one(opacity=0.9)
        args = (*args[:2], torch.tensor([scales]).requires_grad_(), *args[3:])
        out = splat(*args, Camera.frontal(32), backend="native", conventions=conventions)
        assert_sane(out, 32, 32, 3)
        (out.features.sum() + out.alpha.sum()).backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("far", [1e4, 1e8, 1e19, 1e30, 3e38])
def test_any_distance(far, backend):
    camera = Camera.frontal(32)
    for direction in ((1, 0, -1), (0, 0, -1), (0, 0, 1), (1, 1, 0), (-1, 1, -1e-6)):
        position = tuple(far * d for d in direction)
        for sigma in (0.1, far):
            with torch.no_grad():
                assert_sane(splat(*one(position, sigma), camera, backend=backend), 32, 32, 3)


@pytest.mark.parametrize("conventions", [GSPLAT, THREE_DGS], ids=["gsplat", "3dgs"])
def test_behind_and_at_the_near_plane(conventions):
    """World = camera axes, so that depths are exact in float32."""
    camera = replace(Camera.frontal(8), world_to_camera=torch.eye(4))
    near = float(torch.tensor(conventions.near))
    after = float(torch.nextafter(torch.tensor(near), torch.tensor(1.0)))
    before = float(torch.nextafter(torch.tensor(near), torch.tensor(0.0)))
    for z, drawn in (
        (-5.0, False), (-0.0, False), (before, False), (near, not conventions.exclusive_limits), (after, True)
    ):
        args = [t.requires_grad_() for t in one((0.0, 0.0, z), 1.0)]
        out = splat(*args, camera, backend="native", conventions=conventions)
        assert bool(out.alpha.any()) == drawn, z
        out.features.sum().backward()
        assert bool(args[4].grad.any()) == drawn
        assert drawn or not any(t.grad.any() for t in args)


def test_opacities_at_their_ends():
    scene = random_scene(80, 3, 24, 24, 41, sigma=0.2).to(torch.float32)
    nothing = splat(*scene.gaussians[:3], torch.zeros_like(scene.opacities), scene.features, scene.camera)
    assert not nothing.alpha.any() and not nothing.features.any()
    solid = torch.ones_like(scene.opacities)
    args = (*scene.gaussians[:3], solid, scene.features, scene.camera)
    out, wanted = (splat(*args, backend=b) for b in ("native", "torch"))
    # A pixel may end one Gaussian earlier.
    torch.testing.assert_close(out.features, wanted.features, atol=2e-3, rtol=0)
    # Rounding beyond the ends is forgiven, and drawn as what it is.
    slack = torch.where(torch.arange(len(solid)) % 2 == 0, 1.00009, -0.00009)
    assert_sane(splat(*scene.gaussians[:3], slack, scene.features, scene.camera, backend="native"), 24, 24, 3)


# --- sizes --------------------------------------------------------------------------------------------------


def test_nothing_visible_on_a_fresh_context():
    """It was taken for a cancelled call: its buffers were empty."""
    native.trim()
    args = one((0.0, 0.0, 12.0))
    assert not splat(*args, Camera.frontal(3), backend="native").alpha.any()
    native.trim()
    assert not splat(*(t[:0] for t in args), Camera.frontal(3), backend="native").alpha.any()


@pytest.mark.parametrize("channels", [0, 1, 3, 32])
def test_no_gaussians(channels):
    empty = [t[:0].requires_grad_() for t in one()[:4]] + [torch.zeros(0, channels, requires_grad=True)]
    background = torch.rand(channels).requires_grad_()
    out = splat(*empty, Camera.frontal(9), background=background, backend="native")
    assert not out.alpha.any() and torch.equal(out.features, background.expand(9, 9, channels))
    (out.features.sum() + out.alpha.sum()).backward()
    assert torch.equal(background.grad, torch.full((channels,), 81.0))
    assert [t.grad.shape for t in empty] == [t.shape for t in empty]


@pytest.mark.parametrize("width, height", [(1, 1), (4096, 1), (1, 4096), (7, 1030), (4097, 9)])
def test_thin_pictures(width, height):
    """Against the reference where it has a picture: Gaussians about the middle, and at the last pixels."""
    middle = random_scene(40, 3, 8, 8, 42).to(torch.float32)
    shift = torch.tensor([[1, 0, width // 2 - 4.0], [0, 1, height // 2 - 4.0], [0, 0, 1]])
    camera = middle.camera.through(shift, width, height)
    # The middle's own lens: its frustum would be the whole picture's.
    conventions = replace(GSPLAT, frustum_margin=1e5)
    out, grads = gradients(replace(middle, camera=camera), backend="native", conventions=conventions)
    assert_sane(out, height, width, 3)
    left, top = max(width // 2 - 24, 0), max(height // 2 - 24, 0)
    crop = camera.through(torch.tensor([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]]), min(48, width - left),
                          min(48, height - top))
    wanted = splat(*middle.gaussians, crop, background=middle.background, backend="torch",
                   conventions=conventions)
    seen = out.features[top : top + crop.height, left : left + crop.width]
    torch.testing.assert_close(seen, wanted.features, atol=3e-3, rtol=0)
    assert float(((seen - wanted.features).abs() > 5e-5).float().mean()) < 0.01
    # A point on the last pixel.
    camera = replace(Camera.frontal(2), world_to_camera=torch.eye(4)).through(
        torch.tensor([[1, 0, width - 1.5], [0, 1, height - 1.5], [0, 0, 1]]), width, height
    )
    out = splat(*one((0.0, 0.0, 12.0), sigma=0.0), camera, backend="native")
    assert out.alpha.argmax() == width * height - 1 and out.alpha[-1, -1] == pytest.approx(0.8)


def test_a_large_picture_with_few_gaussians():
    """4096 x 4096: each where the camera projects it, everything else untouched."""
    camera = Camera.frontal(4096)
    generator = torch.Generator().manual_seed(1)
    means = torch.cat([0.9 * (torch.rand(9, 2, generator=generator) - 0.5), torch.full((9, 1), -12.0)], 1)
    args = [torch.cat([t] * 9) for t in one(sigma=0.0, opacity=0.9)]
    means[0, :2] = torch.tensor([-0.49995, 0.49995])  # the first pixels
    out = splat(means, *args[1:], camera, backend="native")
    pixels = camera.project(means)[0].floor().long()
    assert (out.alpha[pixels[:, 1], pixels[:, 0]] > 0.3).all()
    assert int((out.alpha > 0).sum()) <= 9 * 25
    assert float(out.features[..., 0].sum()) == pytest.approx(float(out.alpha.sum()), rel=1e-5)
    del out


def test_gradients_of_millions_of_pairs():
    """More Gaussian-tile pairs than the backward pass takes at once: the picture goes in bands. All but a few
    Gaussians lie behind walls that nobody sees through, so that the same gradients are known without them."""
    seen = random_scene(150, 3, 1024, 512, 48, sigma=0.1, clear=False).to(torch.float32)
    view = seen.camera.world_to_camera
    away = view[:3, :3].T @ (torch.tensor([0.0, 0.0, 20.0]) - view[:3, 3])  # 20 m before the camera
    behind = 2 + 2100
    generator = torch.Generator().manual_seed(4)
    scene = Scene(
        torch.cat([seen.means, away.repeat(behind, 1) + 0.01 * torch.rand(behind, 3, generator=generator)]),
        torch.cat([seen.quaternions, torch.tensor([[1.0, 0, 0, 0]]).repeat(behind, 1)]),
        torch.cat([seen.scales, torch.full((behind, 3), 1e3)]),
        torch.cat([seen.opacities, torch.ones(behind)]),
        torch.cat([seen.features, torch.rand(behind, 3, generator=generator)]), seen.background, seen.camera,
    )
    order = (scene.means @ view[2, :3]).argsort()
    scene = scene.rows(order)  # by depth: two walls, and what they hide, come last
    few = len(seen.means) + 2
    out, grads = gradients(scene.rows(slice(few)), backend="native")
    with splat_native.recorded_stats() as stats:
        crowded, crowded_grads = gradients(scene, backend="native")
    assert stats[1].pairs > 4_200_000  # of 48 bytes or more: 192 MB are taken at once
    assert torch.equal(crowded.features, out.features)
    for name, wanted in grads.items():
        got = crowded_grads[name]
        if name in NAMES[:5]:
            assert not got[few:].any()
            got = got[:few]
        torch.testing.assert_close(got, wanted, atol=1e-6 * float(wanted.abs().max()), rtol=1e-5)


def test_thousands_on_one_pixel():
    count = 20_000
    generator = torch.Generator().manual_seed(2)
    z = -12 - torch.randperm(count, generator=generator) * 1e-4
    means = torch.stack([torch.zeros(count), torch.zeros(count), z], 1)
    args = (
        means, torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1), torch.zeros(count, 3),
        torch.full((count,), 0.02), torch.rand(count, 3, generator=generator),
    )
    features = args[4].requires_grad_()
    out, wanted = (splat(*args, Camera.frontal(3), backend=b) for b in ("native", "torch"))
    assert wanted.alpha.max() > 0.99
    torch.testing.assert_close(out.features, wanted.features, atol=1e-3, rtol=0)
    got, reference = (torch.autograd.grad(o.features.sum(), features)[0] for o in (out, wanted))
    torch.testing.assert_close(got, reference, atol=1e-3 * float(reference.max()), rtol=0)


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["means", "quaternions", "scales", "opacities", "features", "background"])
def test_not_finite_names_array_and_row(name, value, backend):
    scene = random_scene(300, 5, 16, 16, 43).to(torch.float32)
    array = getattr(scene, name).clone()
    first = len(array) - 40 if name != "background" else 3
    for row in (first, len(array) - 1):
        array.view(len(array), -1)[row, -1] = value
    scene = replace(scene, **{name: array})
    match = rf"{name} with NaN or infinite values \(row {first}\)"
    with torch.no_grad(), pytest.raises(ValueError, match=match):
        splat(*scene.gaussians, scene.camera, background=scene.background, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_wrong_values_name_their_row(backend):
    scene = random_scene(300, 3, 16, 16, 44).to(torch.float32)
    quaternions = scene.quaternions.clone()
    quaternions[[77, 99]] = 0
    with pytest.raises(ValueError, match=r"quaternions that are zero \(row 77\)"):
        splat(scene.means, quaternions, *scene.gaussians[2:], scene.camera, backend=backend)
    for value in (-0.01, 1.01, 1e30):
        opacities = scene.opacities.clone()
        opacities[[55, 56]] = value
        match = re.escape(f"opacities outside [0, 1]: {value:.4g} in row 55")
        with pytest.raises(ValueError, match=match):
            splat(*scene.gaussians[:3], opacities, scene.features, scene.camera, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_cameras(backend):
    scene = random_scene(10, 3, 16, 16, 45).to(torch.float32)
    for changed, match in (
        ({"world_to_camera": scene.camera.world_to_camera * torch.nan}, "camera with NaN"),
        ({"world_to_camera": scene.camera.world_to_camera / 0.0}, "camera with NaN"),
        ({"intrinsics": scene.camera.intrinsics * torch.nan}, "camera whose intrinsics"),
        ({"intrinsics": torch.zeros(3, 3)}, "camera whose intrinsics"),
        ({"intrinsics": torch.eye(3) * 2}, "camera whose intrinsics"),
    ):
        with pytest.raises(ValueError, match=match):
            splat(*scene.gaussians, replace(scene.camera, **changed), backend=backend)


def test_errors_leave_everything_usable():
    """In the middle of training, say."""
    scene = random_scene(60, 3, 24, 24, 46).to(torch.float32)
    wanted, wanted_grads = gradients(scene, backend="native")
    for _ in range(20):
        broken = replace(scene, features=scene.features / 0.0)
        with pytest.raises(ValueError, match="features"):
            gradients(broken, backend="native")
        out, grads = gradients(scene, backend="native")
        assert torch.equal(out.features, wanted.features)
        assert all(torch.equal(grads[k], wanted_grads[k]) for k in grads)


@pytest.mark.parametrize("wrong", [
    {"alpha_min": 0.0}, {"alpha_max": 1.0}, {"alpha_min": 0.9, "alpha_max": 0.8}, {"near": 0.0},
    {"near": math.nan}, {"eps2d": -0.1}, {"frustum_margin": math.inf}, {"extent": "box"},
    {"transmittance_min": math.nan},
], ids=str)
def test_conventions_that_mean_nothing(wrong):
    with pytest.raises(ValueError, match="conventions"):
        SplatConventions(**wrong)


def test_frustum_by_the_inverse_of_the_intrinsics():
    camera = turned_camera(37, 53, seed=9)
    inverse = torch.linalg.inv(camera.intrinsics)
    corners = torch.tensor([[0, 0, 1], [37, 0, 1], [0, 53, 1], [37, 53, 1]], dtype=torch.float64) @ inverse.T
    low, high = corners[:, :2].amin(0), corners[:, :2].amax(0)
    wanted = torch.stack([low - 0.15 * (high - low), high + 0.15 * (high - low)], 1).flatten()
    torch.testing.assert_close(torch.tensor(normalized_frustum(camera, 0.3), dtype=torch.float64), wanted)
