"""Splatting: by hand, against itself on the other backend, and by its gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guava.camera import Camera
from guava.errors import MissingDependencyError
from guava.rendering import GSPLAT, SplatConventions, splat
from guava.rendering.splat_gsplat import gsplat_available
from guava.rendering.splat_torch import project_gaussians
from guava.rotation import quaternion_to_matrix

BACKENDS = ["native", "numba", "torch"]


def scene(count, channels=3, size=48, seed=0, sigma=0.02, dtype=torch.float32):
    """Gaussians over and beyond the picture, some behind the camera; depths are 1 mm apart at least."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=dtype)

    z = -12 - 2e-3 * torch.randperm(count, generator=generator) - 1e-3 * rand(count)
    z[::50] *= -1
    means = torch.stack([(rand(count) - 0.5) * 1.4, (rand(count) - 0.5) * 1.4, z], 1)
    quaternions = torch.randn(count, 4, generator=generator, dtype=dtype)
    scales = sigma * torch.exp(1.5 * (rand(count, 3) - 0.5))
    return means, quaternions, scales, 0.05 + 0.9 * rand(count), rand(count, channels), Camera.frontal(
        size, dtype=dtype
    )


def one(position=(0.0, 0.0, -12.0), sigma=0.03, opacity=0.8, color=(1.0, 0.5, 0.25)):
    return (
        torch.tensor([position]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), sigma),
        torch.tensor([opacity]), torch.tensor([color]),
    )


def stack(*gaussians):
    return tuple(torch.cat(parts) for parts in zip(*gaussians, strict=True))


def naive(means, quaternions, scales, opacities, features, camera, conventions=GSPLAT):
    """The docstring of the module in plain Python: every Gaussian at every pixel, in float64."""
    args = [t.double() for t in (means, quaternions, scales)]
    pixels, depth, covariance = project_gaussians(*args, camera.to(dtype=torch.float64), conventions)
    picture = torch.zeros(camera.height, camera.width, features.shape[1] + 1).double()
    transmittance = torch.ones(camera.height, camera.width).double()
    order = [i for i in torch.argsort(depth, stable=True).tolist() if depth[i] >= conventions.near]
    inverse = torch.linalg.inv(covariance)
    for y in range(camera.height):
        for x in range(camera.width):
            left = 1.0
            for i in order:
                d = torch.tensor([x + 0.5, y + 0.5]).double() - pixels[i]
                alpha = min(
                    conventions.alpha_max, float(opacities[i]) * math.exp(-0.5 * float(d @ inverse[i] @ d))
                )
                if alpha < conventions.alpha_min:
                    continue
                if left * (1 - alpha) <= conventions.transmittance_min:
                    break
                picture[y, x, :-1] += left * alpha * features[i]
                picture[y, x, -1] += left * alpha * depth[i]
                left *= 1 - alpha
            transmittance[y, x] = left
    return picture[..., :-1].float(), 1 - transmittance.float(), picture[..., -1].float()


@pytest.mark.parametrize("backend", BACKENDS)
def test_follows_the_definition(backend):
    args = scene(60, size=14, sigma=0.06)
    out = splat(*args, backend=backend)
    features, alpha, depth = naive(*args)
    assert alpha.max() > 0.9 and (alpha > 0).float().mean() > 0.7
    torch.testing.assert_close(out.features, features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.alpha, alpha, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.depth, depth, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_gaussian_by_hand(backend):
    # At z = 12 with f = 24 * 64 / 2 = 768 px, 1.5625 cm are 1 px. The centre projects to (32 + 3, 32 - 2).
    pixel = 12 / 768
    out = splat(*one((3 * pixel, 2 * pixel, -12.0), sigma=2 * pixel), Camera.frontal(64), backend=backend)
    variance = 4 + 0.3  # isotropic, dilated
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    alpha = 0.8 * torch.exp(-((x - 35) ** 2 + (y - 30) ** 2) / (2 * variance))
    alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
    # x/z tilts the ellipse by a part in ten thousand.
    torch.testing.assert_close(out.alpha, alpha, atol=2e-4, rtol=0)
    torch.testing.assert_close(out.features[..., 1], 0.5 * out.alpha)
    torch.testing.assert_close(out.depth, 12 * out.alpha)
    torch.testing.assert_close(out.mean_depth[30, 34], torch.tensor(12.0))
    assert out.mean_depth[0, 0].isinf()


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_gaussians_by_hand_and_the_background(backend):
    near = one((0, 0, -11.0), sigma=1.0, opacity=0.6, color=(1, 0, 0))
    far = one((0, 0, -12.0), sigma=1.0, opacity=0.5, color=(0, 1, 0))
    background = torch.tensor([0.0, 0.0, 1.0])
    camera = Camera.frontal(1)
    for order in ((near, far), (far, near)):
        out = splat(*stack(*order), camera, background=background, backend=backend)
        torch.testing.assert_close(out.features[0, 0], torch.tensor([0.6, 0.4 * 0.5, 0.4 * 0.5]))
        torch.testing.assert_close(out.alpha[0, 0], torch.tensor(1 - 0.4 * 0.5))
        torch.testing.assert_close(out.depth[0, 0], torch.tensor(0.6 * 11 + 0.2 * 12))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_depths_are_drawn_in_order_of_index(backend):
    red = one(sigma=1.0, opacity=0.5, color=(1, 0, 0))
    green = one(sigma=1.0, opacity=0.5, color=(0, 1, 0))
    first = splat(*stack(red, green), Camera.frontal(1), backend=backend).features[0, 0]
    second = splat(*stack(green, red), Camera.frontal(1), backend=backend).features[0, 0]
    torch.testing.assert_close(first, torch.tensor([0.5, 0.25, 0]))
    torch.testing.assert_close(second, torch.tensor([0.25, 0.5, 0]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_clamp_skip_and_stop(backend):
    camera = Camera.frontal(1)
    opaque = one(sigma=1.0, opacity=1.0)
    assert splat(*opaque, camera, backend=backend).alpha.item() == pytest.approx(0.999, abs=1e-6)
    official = SplatConventions(alpha_max=0.99, near=0.2)
    out = splat(*opaque, camera, backend=backend, conventions=official)
    assert out.alpha.item() == pytest.approx(0.99, abs=1e-6)
    assert splat(*one(opacity=0.0039), camera, backend=backend).alpha.item() == 0
    assert splat(*one(opacity=0.0040), camera, backend=backend).alpha.item() > 0
    # 0.001 is left after the first; the second would leave 5e-5 <= 1e-4, so it and all behind are dropped.
    pile = stack(opaque, one((0, 0, -13.0), 1.0, 0.95), one((0, 0, -14.0), 1.0, 0.5))
    assert splat(*pile, camera, backend=backend).alpha.item() == pytest.approx(0.999, abs=1e-6)
    pile = stack(opaque, one((0, 0, -13.0), 1.0, 0.85))
    assert splat(*pile, camera, backend=backend).alpha.item() == pytest.approx(1 - 1.5e-4, abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 7, 32])
def test_backends_agree(channels):
    args = scene(1500, channels=channels, size=50, seed=channels)
    background = torch.rand(channels)
    native, numba, reference = (splat(*args, background=background, backend=b) for b in BACKENDS)
    for out in (native, numba):
        assert 0.5 < out.alpha.mean() < 0.999
        torch.testing.assert_close(out.features, reference.features, atol=2e-4, rtol=0)
        torch.testing.assert_close(out.alpha, reference.alpha, atol=2e-4, rtol=0)
        torch.testing.assert_close(out.depth, reference.depth, atol=2e-3, rtol=0)


def test_backends_agree_on_a_turned_and_skewed_wide_camera():
    args = scene(400, seed=5, sigma=0.05)
    camera = Camera.frontal(40, focal_ndc=16).orbit(0.6, -0.3, torch.tensor([0.0, 0.1, -12.4]))
    turn = torch.tensor([[0.8, -0.6, 20.0], [0.7, 0.9, -8.0], [0, 0, 1]])
    camera = camera.through(turn, 57, 43)
    native, numba, reference = (splat(*args[:5], camera, backend=b) for b in BACKENDS)
    for out in (native, numba):
        assert out.features.shape == (43, 57, 3) and out.alpha.mean() > 0.2
        torch.testing.assert_close(out.features, reference.features, atol=2e-4, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 20), st.integers(1, 20))
def test_backends_agree_whatever_the_size(seed, count, width, height):
    means, quaternions, scales, opacities, features, _ = scene(count, seed=seed, sigma=0.1)
    camera = Camera.frontal(20).resized(width, height)
    native, numba, reference = (
        splat(means, quaternions, scales, opacities, features, camera, backend=b) for b in BACKENDS
    )
    for out in (native, numba):
        assert out.features.shape == (height, width, 3) and out.alpha.shape == (height, width)
        # A Gaussian right at the 1/255 limit may be in on one side only.
        torch.testing.assert_close(out.alpha, reference.alpha, atol=5e-3, rtol=0)
        assert (out.alpha >= 0).all() and (out.alpha <= 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("yaw", [0.0, 0.7])
def test_a_small_gaussian_is_drawn_where_the_camera_projects_it(backend, yaw):
    camera = Camera.frontal(64).orbit(yaw, 0.2, torch.tensor([0.0, 0.0, -12.0]))
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    for point in ((0.21, 0.3, -12.1), (-0.3, -0.1, -11.9), (0.0, 0.33, -12.0)):
        alpha = splat(*one(point, sigma=0.02), camera, backend=backend).alpha
        centre = torch.stack([(x * alpha).sum(), (y * alpha).sum()]) / alpha.sum()
        torch.testing.assert_close(centre, camera.project(torch.tensor([point]))[0][0], atol=0.02, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_degenerate_gaussians(backend):
    camera = Camera.frontal(32)
    means, _, _, opacity, color = one(opacity=0.9)
    q = torch.tensor([[0.3, -0.4, 0.5, 2.0]])
    point = splat(means, q, torch.zeros(1, 3), opacity, color, camera, backend=backend)
    # Only the dilation is left: variance 0.3, centre on the corner of four pixels.
    assert point.alpha[16, 16].item() == pytest.approx(0.9 * math.exp(-0.25 / 0.3), abs=1e-4)
    axis = quaternion_to_matrix(q)[0, :, 0]
    needle = splat(means, q, torch.tensor([[0.5, 0, 0]]), opacity, color, camera, backend=backend)
    y, x = (needle.alpha > 0.5).nonzero().float().unbind(1)
    direction = torch.linalg.svd(torch.stack([x - x.mean(), y - y.mean()], 1)).Vh[0]
    wanted = torch.nn.functional.normalize(torch.stack([axis[0], -axis[1]]), dim=0)
    assert abs(float(direction @ wanted)) > 0.98
    sheet = splat(means, q, torch.tensor([[1e4, 1e4, 0.0]]), opacity, color, camera, backend=backend)
    assert torch.isfinite(sheet.features).all()
    for long in (1e19, 1e30):  # the projected variance overflows along one axis, and that of both
        overflow = torch.tensor([[long, 0.01, 0.01]])
        for scales in (overflow, overflow.clamp(min=1e19)):
            out = splat(means, q, scales, opacity, color, camera, backend=backend)
            assert torch.isfinite(out.features).all() and torch.isfinite(out.alpha).all()
    for far in (1e8, 1e30):
        away = splat(means * 0 + far * torch.tensor([1, 1, -1.0]), q, torch.full((1, 3), far), opacity, color,
                     camera, backend=backend)
        assert torch.isfinite(away.alpha).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_draw(backend):
    camera = Camera.frontal(5)
    background = torch.tensor([0.2, 0.4, 0.6])
    none = tuple(t[:0] for t in one())
    behind = one((0, 0, 12.0), sigma=1.0)
    beside = one((5.0, 0, -12.0))
    for gaussians in (none, behind, beside):
        out = splat(*gaussians, camera, background=background, backend=backend)
        assert out.alpha.abs().max() == 0 and out.depth.abs().max() == 0
        torch.testing.assert_close(out.features, background.expand(5, 5, 3))


def test_projected_covariance_by_the_derivative_of_the_camera():
    """EWA's definition, J Sigma J^T + 0.3, with the derivative of ``Camera.project`` as J."""
    means, quaternions, scales, _, _, _ = scene(30, seed=8, dtype=torch.float64)
    camera = Camera.frontal(64, dtype=torch.float64).orbit(0.5, 0.2, torch.tensor([0.0, 0, -12]))
    camera = camera.through(torch.tensor([[0.8, -0.6, 20.0], [0.7, 0.9, -8.0], [0, 0, 1]]), 64, 64)
    wide = SplatConventions(frustum_margin=1e9)
    pixels, depth, covariance = project_gaussians(means, quaternions, scales, camera, wide)
    assert (depth > 0).any()
    for n in (depth > 0).nonzero()[:, 0].tolist():
        jacobian = torch.autograd.functional.jacobian(lambda p: camera.project(p[None])[0][0], means[n])
        axes = quaternion_to_matrix(quaternions[n])
        sigma = axes @ torch.diag(scales[n] ** 2) @ axes.T
        wanted = jacobian @ sigma @ jacobian.T + 0.3 * torch.eye(2, dtype=torch.float64)
        torch.testing.assert_close(covariance[n], wanted)
        torch.testing.assert_close(pixels[n], camera.project(means[n : n + 1])[0][0])


def test_jacobian_is_held_within_the_widened_frustum():
    """A Gaussian far beside the picture keeps the limit's Jacobian, but not its centre."""
    camera = Camera.frontal(64, dtype=torch.float64)
    q, s = torch.tensor([[1.0, 0, 0, 0]]).double(), torch.tensor([[0.0, 0, 1.0]]).double()
    far = torch.tensor([[5.0, 0, -12.0]]).double()
    pixels, depth, covariance = project_gaussians(far, q, s, camera, GSPLAT)
    torch.testing.assert_close(pixels, camera.project(far)[0])
    j02 = 768 / 12 * 1.3 / 24
    assert covariance[0, 0, 0].item() == pytest.approx(j02**2 + 0.3, rel=1e-9)


def test_gradients_of_the_reference():
    means, quaternions, scales, opacities, features, camera = scene(
        6, channels=2, size=6, seed=4, sigma=0.15, dtype=torch.float64
    )
    # Nothing near the 1/255 cut inside the picture, where the function jumps.
    conventions = SplatConventions(alpha_min=1e-12, transmittance_min=1e-12)
    background = torch.rand(2, dtype=torch.float64)
    inputs = (means, quaternions, scales, opacities, features, background)
    inputs = [t.clone().requires_grad_() for t in inputs]

    def draw(m, q, s, o, f, b):
        out = splat(m, q, s, o, f, camera, background=b, backend="torch", conventions=conventions)
        return out.features, out.alpha, out.depth

    assert draw(*inputs)[1].max() > 0.2
    assert torch.autograd.gradcheck(draw, inputs, atol=1e-5)


def test_backend_choice_is_never_silent():
    args = list(scene(5, size=4))
    assert not splat(*args).features.requires_grad
    args[0] = args[0].requires_grad_()
    assert splat(*args).features.requires_grad
    with pytest.raises(ValueError, match="no gradients"):
        splat(*args, backend="numba")
    with torch.no_grad():
        splat(*args, backend="numba")
    with pytest.raises(ValueError, match="CUDA"):
        splat(*args, backend="gsplat")
    with pytest.raises(ValueError, match="no splat backend"):
        splat(*args, backend="opengl")
    with pytest.raises(ValueError, match="0.0025"), torch.no_grad():
        splat(*args, backend="numba", conventions=SplatConventions(alpha_min=1e-3))


@pytest.mark.skipif(gsplat_available(), reason="gsplat is installed here")
def test_gsplat_missing_is_a_clear_error():
    from guava.rendering.splat_gsplat import splat_gsplat

    with pytest.raises(MissingDependencyError, match="gsplat"):
        splat_gsplat(*scene(2), None, GSPLAT)


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(index, value):
    args = list(scene(5))
    args[index] = args[index].clone()
    args[index].view(-1)[-1] = value
    name = ("means", "quaternions", "scales", "opacities", "features")[index]
    with pytest.raises(ValueError, match=name):
        splat(*args)


def test_wrong_inputs_are_refused():
    args = list(scene(5))
    with pytest.raises(ValueError, match="scales"):
        splat(*args[:2], args[2][:4], *args[3:])
    with pytest.raises(ValueError, match="zero"):
        splat(args[0], torch.zeros(5, 4), *args[2:])
    for value in (-0.1, 1.1):
        with pytest.raises(ValueError, match="opacities"):
            splat(*args[:3], torch.full((5,), value), *args[4:])
    with pytest.raises(ValueError, match="background"):
        splat(*args, background=torch.zeros(4))
    with pytest.raises(ValueError, match="batch"):
        camera = args[5]
        splat(*args[:5], Camera(camera.world_to_camera[None], camera.intrinsics[None], 4, 4))
