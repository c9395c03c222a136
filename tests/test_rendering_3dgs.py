"""The release's rasteriser: against a second one, written from the description of its rules alone.

``rasterize`` below works in the release's own terms (PyTorch3D extrinsics, row-vector matrices, integer pixel
centres), pixel by pixel and Gaussian by Gaussian in float64, with a hand-written backward pass.
"""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from guava.camera import Camera, from_release_extrinsics
from guava.errors import InputError
from guava.rendering import GSPLAT, THREE_DGS, conventions_by_name, splat
from guava.rendering.splat_gsplat import splat_gsplat
from guava.rendering.splat_torch import splat_torch
from guava.rotation import axis_angle_to_matrix

BACKENDS = ["native", "numba", "torch"]
FLIP = np.diag([-1.0, -1, 1, 1])


def to_screen(mean, quaternion, scale, w2c, tan, size):
    """One Gaussian -> pixel position (centres at integers), 2D covariance (a, b, c), view z."""
    view = w2c[:3, :3] @ mean + w2c[:3, 3]
    far, near = 100.0, 0.01
    projection = np.zeros((4, 4))
    projection[0, 0], projection[1, 1] = 1 / tan[0], 1 / tan[1]
    projection[2, 2], projection[2, 3] = far / (far - near), -far * near / (far - near)
    projection[3, 2] = 1
    clip = np.append(mean, 1) @ (w2c.T @ projection.T)
    ndc = clip[:2] / (clip[3] + 1e-7)
    pixel = ((ndc + 1) * size - 1) / 2
    w, x, y, z = quaternion
    turn = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])
    sigma = turn @ np.diag(scale**2) @ turn.T
    focal = size / (2 * tan)
    tx, ty = np.clip(view[:2] / view[2], -1.3 * tan, 1.3 * tan) * view[2]
    jacobian = np.array([
        [focal[0] / view[2], 0, -focal[0] * tx / view[2] ** 2],
        [0, focal[1] / view[2], -focal[1] * ty / view[2] ** 2],
    ])
    flat = jacobian @ w2c[:3, :3] @ sigma @ w2c[:3, :3].T @ jacobian.T
    return np.array([*pixel, flat[0, 0] + 0.3, flat[0, 1], flat[1, 1] + 0.3, view[2]])


def conic_of(screen):
    a, b, c = screen[2:5]
    return np.array([c, -b, a]) / (a * c - b * b)


def tiles_of(screen, size):
    """First and last-plus-one tile in x and y; None if the box touches none."""
    a, b, c = screen[2:5]
    mid, det = (a + c) / 2, a * c - b * b
    radius = np.ceil(3 * np.sqrt(mid + np.sqrt(max(0.1, mid * mid - det))))
    grid = [-(-int(s) // 16) for s in size]
    low = [min(grid[k], max(0, int((screen[k] - radius) / 16))) for k in (0, 1)]
    high = [min(grid[k], max(0, int((screen[k] + radius + 15) / 16))) for k in (0, 1)]
    return None if (high[0] - low[0]) * (high[1] - low[1]) == 0 else (low, high)


def rasterize(g, w2c, tan, size, background, upstream=None):
    """All outputs; with ``upstream`` (gradients of colour, inverse depth and T_final), the gradients too."""
    means, quaternions, scales, opacities, features = g
    screens = [to_screen(m, q, s, w2c, tan, size) for m, q, s in zip(means, quaternions, scales, strict=True)]
    order = sorted(range(len(means)), key=lambda i: screens[i][5])  # stable: ties by input order
    tiles = [tiles_of(s, size) for s in screens]
    conics = [conic_of(s) for s in screens]
    width, height = (int(s) for s in size)
    color = np.zeros((height, width, features.shape[1]))
    inverse_depth, left = np.zeros((height, width)), np.ones((height, width))
    grad = {
        "screen": np.zeros((len(means), 6)), "opacity": np.zeros(len(means)),
        "feature": np.zeros_like(features), "background": np.zeros_like(background),
    }
    for y in range(height):
        for x in range(width):
            t, drawn = 1.0, []
            for i in order:
                if screens[i][5] <= 0.2 or tiles[i] is None:
                    continue
                low, high = tiles[i]
                if not (low[0] <= x // 16 < high[0] and low[1] <= y // 16 < high[1]):
                    continue
                dx, dy = screens[i][0] - x, screens[i][1] - y
                power = -0.5 * (conics[i][0] * dx * dx + conics[i][2] * dy * dy) - conics[i][1] * dx * dy
                if power > 0:
                    continue
                raw = opacities[i] * np.exp(power)
                alpha = min(0.99, raw)
                if alpha < 1 / 255:
                    continue
                if t * (1 - alpha) < 1e-4:
                    break
                color[y, x] += features[i] * alpha * t
                inverse_depth[y, x] += alpha * t / screens[i][5]
                drawn.append((i, dx, dy, power, raw, alpha, t))
                t *= 1 - alpha
            left[y, x] = t
            if upstream is not None:
                _backward(
                    drawn, t, [u[y, x] for u in upstream], screens, conics, features, background, grad
                )
    out = color + left[..., None] * background, inverse_depth, left
    if upstream is None:
        return out
    for name, values in (("mean", means), ("quaternion", quaternions), ("scale", scales)):
        grad[name] = np.zeros_like(values)
    for n in range(len(means)):  # from the screen to the parameters by central differences
        at = {"mean": means[n], "quaternion": quaternions[n], "scale": scales[n]}
        for name, value in at.items():

            def screen(changed, at=at, name=name):
                return to_screen(*(at | {name: changed}).values(), w2c, tan, size)

            grad[name][n] = _through(screen, value, grad["screen"][n])
    names = ("mean", "quaternion", "scale", "opacity", "feature", "background")
    return out, [grad[name] for name in names]


def _backward(drawn, t_final, upstream, screens, conics, features, background, grad):
    """Back to front; ``behind`` is the derivative of everything behind by the transmittance, times T."""
    g_color, g_depth, g_left = upstream
    g_final = g_left + g_color @ background
    grad["background"] += t_final * g_color
    behind = t_final * g_final
    for i, dx, dy, power, raw, alpha, t in reversed(drawn):
        value = g_color @ features[i] + g_depth / screens[i][5]
        grad["feature"][i] += alpha * t * g_color
        grad["screen"][i, 5] += -g_depth * alpha * t / screens[i][5] ** 2
        g_alpha = t * value - behind / (1 - alpha)
        behind += alpha * t * value
        # The clamp to 0.99 is not in the gradient.
        grad["opacity"][i] += g_alpha * np.exp(power)
        g_power = g_alpha * raw
        a, b, c = conics[i]
        grad["screen"][i, 0] += g_power * -(a * dx + b * dy)
        grad["screen"][i, 1] += g_power * -(c * dy + b * dx)
        g_conic = g_power * np.array([-0.5 * dx * dx, -dx * dy, -0.5 * dy * dy])
        padded = np.concatenate([[0, 0], screens[i][2:5], [0]])
        grad["screen"][i, 2:5] += _through(conic_of, padded, g_conic)[2:5]


def _through(function, value, upstream, step=1e-6):
    out = np.zeros(len(value))
    for k in range(len(value)):
        delta = np.zeros(len(value))
        delta[k] = step
        out[k] = upstream @ (function(value + delta) - function(value - delta)) / (2 * step)
    return out


def release_camera(width, height, seed=0):
    """A turned camera before the person: release extrinsics, tangents, and our camera."""
    generator = torch.Generator().manual_seed(seed)
    turn = axis_angle_to_matrix(0.3 * torch.randn(3, generator=generator, dtype=torch.float64))
    shift = torch.tensor([0.05, -0.1, 12.0], dtype=torch.float64)
    extrinsics = torch.cat([turn, shift[:, None]], 1)
    tan = np.array([1 / 24, 1 / 24 * height / width])
    camera = from_release_extrinsics(extrinsics, width)
    intrinsics = camera.intrinsics.clone()
    intrinsics[1, 2] = height / 2
    camera = replace(camera, intrinsics=intrinsics, height=height)
    w2c = FLIP @ np.concatenate([extrinsics.numpy(), [[0, 0, 0, 1]]])
    return camera, w2c, tan, np.array([width, height], float)


def scene(count, channels, seed, pixels, sigma, opacity=(0.05, 1.0)):
    """Float64 Gaussians about the world's origin, some behind the camera; quaternions are not unit.

    None lies where float32 could decide otherwise on the tiles.
    """
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    camera, w2c, tan, size = release_camera(*pixels, seed)
    means = (rand(count, 3) - 0.5) * torch.tensor([1.2, 1.2 * pixels[1] / pixels[0], 1.0])
    means[::17] *= 60
    quaternions = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator).double(), dim=1)
    quaternions = quaternions * (0.9 + 0.2 * rand(count, 1))
    scales = sigma * torch.exp(1.6 * (rand(count, 3) - 0.5))
    values = [means, quaternions, scales, opacity[0] + (opacity[1] - opacity[0]) * rand(count)]
    values.append(rand(count, channels))
    values = [v.float().double() for v in values]
    one_by_one = zip(*(v.numpy() for v in values[:3]), strict=True)
    screens = np.array([to_screen(m, q, s, w2c, tan, size) for m, q, s in one_by_one])
    a, b, c = screens[:, 2], screens[:, 3], screens[:, 4]
    mid = (a + c) / 2
    reach = 3 * np.sqrt(mid + np.sqrt(np.maximum(0.1, mid**2 - (a * c - b * b))))
    edges = np.concatenate([
        reach[:, None], (screens[:, :2] - np.ceil(reach)[:, None]) / 16,
        (screens[:, :2] + np.ceil(reach)[:, None] + 15) / 16,
    ], 1)
    clear = torch.from_numpy((np.abs(edges - np.round(edges)) > 1e-4).all(1))
    assert clear.float().mean() > 0.9
    return [v[clear] for v in values], camera, w2c, tan, size


CASES = {
    # Deep enough for pixels to stop early.
    "many": {"count": 130, "channels": 3, "seed": 1, "pixels": (40, 27), "sigma": 0.12},
    "small": {"count": 150, "channels": 5, "seed": 2, "pixels": (37, 37), "sigma": 0.006},
    # Opaque and some pixels wide: the 3-sigma tiles cut what gsplat would still draw.
    "cut": {"count": 6, "channels": 3, "seed": 6, "pixels": (72, 56), "sigma": 0.1, "opacity": (0.95, 1.0)},
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    gaussians, camera, w2c, tan, size = scene(**CASES[request.param])
    generator = torch.Generator().manual_seed(9)
    background = torch.rand(gaussians[4].shape[1], generator=generator, dtype=torch.float64)
    height, width = camera.height, camera.width
    upstream = [
        torch.randn(height, width, *extra, generator=generator, dtype=torch.float64)
        for extra in ((len(background),), (), ())
    ]
    wanted, grads = rasterize(
        [g.numpy() for g in gaussians], w2c, tan, size, background.numpy(), [u.numpy() for u in upstream]
    )
    return request.param, gaussians, background, camera, upstream, wanted, grads


def test_values_of_the_reference(case):
    name, gaussians, background, camera, _, (color, inverse_depth, left), _ = case
    out = splat(*gaussians, camera, background=background, backend="torch", conventions=THREE_DGS)
    assert out.depth is None and out.alpha.max() > {"many": 0.9998, "small": 0.6, "cut": 0.98}[name]
    for got, wanted in ((out.features, color), (out.inverse_depth, inverse_depth), (1 - out.alpha, left)):
        torch.testing.assert_close(got, torch.from_numpy(wanted), atol=2e-7, rtol=0)
    uncut = splat(
        *gaussians, camera, background=background, backend="torch",
        conventions=replace(THREE_DGS, extent="alpha"),
    )
    lost = float((uncut.features - out.features).abs().max())
    assert name != "cut" or lost > 0.003


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_values_of_the_cpu_backends(case, backend):
    """In float32, and so to 1e-5."""
    _, gaussians, background, camera, _, (color, inverse_depth, left), _ = case
    single = [g.float() for g in gaussians]
    out = splat(
        *single, camera.to(dtype=torch.float32), background=background.float(), backend=backend,
        conventions=THREE_DGS,
    )
    assert out.depth is None
    for got, wanted in ((out.features, color), (out.inverse_depth, inverse_depth), (1 - out.alpha, left)):
        torch.testing.assert_close(got, torch.from_numpy(wanted).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_gradients(case, backend):
    _, gaussians, background, camera, upstream, _, wanted = case
    leaves = [g.clone().requires_grad_() for g in (*gaussians, background)]
    out = splat(*leaves[:5], camera, background=leaves[5], backend=backend, conventions=THREE_DGS)
    loss = (out.features * upstream[0]).sum() + (out.inverse_depth * upstream[1]).sum()
    loss = loss + ((1 - out.alpha) * upstream[2]).sum()
    for leaf, expected in zip(leaves, wanted, strict=True):
        (got,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        expected = torch.from_numpy(expected)
        assert expected.abs().max() > 1e-3
        atol = (5e-5 if backend == "native" else 1e-5) * float(expected.abs().max())
        torch.testing.assert_close(got, expected, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("channels", [3, 32])
def test_backends_agree_on_a_crowd(backend, channels):
    gaussians, camera, _, _, _ = scene(1200, channels, 40, (72, 60), 0.016, (0.05, 1.0))
    reference = splat(*gaussians, camera, backend="torch", conventions=THREE_DGS)
    camera = camera.to(dtype=torch.float32)
    out = splat(*(g.float() for g in gaussians), camera, backend=backend, conventions=THREE_DGS)
    assert reference.alpha.mean() > 0.5
    # A Gaussian right at the limits 1/255 and 1e-4 may be in on one side only.
    difference = (out.features.double() - reference.features).abs().amax(-1)
    assert difference.max() < 4e-3 and (difference > 1e-5).sum() <= 3
    assert (out.inverse_depth.double() - reference.inverse_depth).abs().max() < 1e-3


def one(position=(0.0, 0.0, 12.0), sigma=0.03, opacity=0.8, color=(1.0, 0.5, 0.25)):
    return (
        torch.tensor([position]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), sigma),
        torch.tensor([opacity]), torch.tensor([color]),
    )


def plain_camera(size):
    """World = camera axes."""
    return replace(Camera.frontal(size), world_to_camera=torch.eye(4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_near_limit_is_excluded(backend):
    camera = plain_camera(1)
    for conventions, at_limit in ((THREE_DGS, 0.0), (replace(GSPLAT, near=0.2), 0.8)):
        at = splat(*one((0, 0, 0.2), 1.0), camera, backend=backend, conventions=conventions)
        assert at.alpha.item() == pytest.approx(at_limit, abs=1e-5)
        beyond = splat(*one((0, 0, 0.2001), 1.0), camera, backend=backend, conventions=conventions)
        assert beyond.alpha.item() == pytest.approx(0.8, abs=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pixel_stops_only_below_the_limit(backend):
    """0.01 is left after the first; the second leaves T = 0.01 * (1 - 0.99), one float from 1e-4."""
    camera = plain_camera(1)
    cap, first = torch.tensor(0.99), one(sigma=1.0, opacity=1.0)
    left = (1 - cap) * (1 - cap)
    pile = [torch.cat(p) for p in zip(first, one((0, 0, 13.0), 1.0, 1.0), strict=True)]
    for limit, stops in ((float(left), False), (float(left) * 1.0001, True)):
        conventions = replace(THREE_DGS, transmittance_min=limit)
        out = splat(*pile, camera, backend=backend, conventions=conventions)
        assert 1 - out.alpha.item() == pytest.approx(0.01 if stops else 1e-4, rel=1e-3)
    stops = replace(THREE_DGS, transmittance_min=float(left), exclusive_limits=False)
    out = splat(*pile, camera, backend=backend, conventions=stops)
    assert 1 - out.alpha.item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_box_of_three_deviations_cuts_at_tiles(backend):
    """sigma 5 px: r = ceil(3 sqrt(25.3 + sqrt(0.1))) = 16. About pixel 15.4 the box reaches 31.4, and
    (31.4 + 15) / 16 is below 3: tile 2 is not drawn, although alpha at pixel 32 is exp(-16.6^2 / 50.6). About
    16.9 even pixel 32.9 is reached, but 47.9 / 16 is still below 3; from 17 on tile 2 is drawn."""
    camera = plain_camera(64)
    pixel = 12 / (24 * 32)
    for at, cut in ((11.0, False), (15.4, True), (16.9, True), (17.1, False)):
        position = ((at + 0.5 - 32) * pixel, 0.0, 12.0)
        gaussian = one(position, sigma=5 * pixel, opacity=1.0)
        row = splat(*gaussian, camera, backend=backend, conventions=THREE_DGS).alpha[31]
        alpha = 1.0 * torch.exp(-((torch.arange(64) - at) ** 2 + 0.25) / (2 * 25.3))
        wanted = torch.where(alpha >= 1 / 255, alpha.clamp(max=0.99), 0.0)
        assert wanted[32] > 0.004 if cut else True
        wanted[32 if cut else 64 :] = 0
        torch.testing.assert_close(row, wanted, atol=3e-4, rtol=0)
        full = splat(*gaussian, camera, backend=backend).alpha[31]
        assert bool(full[32] > 0) == (at > 11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inverse_depth_is_not_divided(backend):
    near, far = one((0, 0, 10.0), 1.0, 0.5), one((0, 0, 20.0), 1.0, 0.5)
    out = splat(
        *(torch.cat(p) for p in zip(near, far, strict=True)), plain_camera(1), backend=backend,
        conventions=THREE_DGS,
    )
    assert out.inverse_depth.item() == pytest.approx(0.5 / 10 + 0.25 / 20, rel=1e-5)
    assert out.mean_depth.item() == pytest.approx(0.75 / (0.05 + 0.0125), rel=1e-5)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_only_the_releases_clamp_lets_gradients_through(backend):
    for conventions, wanted in ((THREE_DGS, 1.0), (GSPLAT, 0.0)):
        means, q, s, opacity, color = one(sigma=1.0, opacity=1.0, color=(1, 1, 1))
        opacity.requires_grad_()
        out = splat(means, q, s, opacity, color, plain_camera(1), conventions=conventions, backend=backend)
        out.alpha.sum().backward()
        assert opacity.grad.item() == pytest.approx(wanted, abs=1e-4)


def test_conventions_have_names():
    assert conventions_by_name("gsplat") is GSPLAT and conventions_by_name("3dgs") is THREE_DGS
    with pytest.raises(InputError, match="3DGS"):
        conventions_by_name("3DGS")


@pytest.fixture
def pretended_gsplat(monkeypatch):
    """gsplat's interface over our own reference, to see what is asked of it."""
    asked = {}

    def rasterization(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **options):  # noqa: N803
        asked.update(options, channels=colors.shape[-1], opacity=float(opacities.max()))
        conventions = replace(GSPLAT, near=options["near_plane"], eps2d=options["eps2d"])
        camera = Camera(viewmats[0], Ks[0], width, height)
        out = splat_torch(means, quats, scales, opacities, colors, camera, None, conventions)
        picture = out.features
        if options["render_mode"] == "RGB+D":
            picture = torch.cat([picture, out.depth[..., None]], -1)
        return picture[None], out.alpha[None, ..., None], {}

    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=rasterization))
    return asked


def test_gsplat_says_that_it_deviates(pretended_gsplat):
    gaussians, camera, _, _, _ = scene(60, 4, 7, (32, 32), 0.02)
    single = [g.float() for g in gaussians]
    single[1] = torch.nn.functional.normalize(single[1], dim=1)
    camera = camera.to(dtype=torch.float32)
    single[3][5] = 1.0
    with pytest.warns(RuntimeWarning, match="three standard deviations"):
        out = splat_gsplat(*single, camera, torch.ones(4), THREE_DGS)
    assert pretended_gsplat["near_plane"] == 0.2 and pretended_gsplat["channels"] == 5
    assert out.depth is None and pretended_gsplat["opacity"] == pytest.approx(0.99)
    exact = splat(*single, camera, background=torch.ones(4), conventions=THREE_DGS)
    torch.testing.assert_close(out.features, exact.features, atol=0.02, rtol=0)
    torch.testing.assert_close(out.inverse_depth, exact.inverse_depth, atol=2e-3, rtol=0)
    plain = splat_gsplat(*single, camera, None, GSPLAT)
    torch.testing.assert_close(plain.depth, splat(*single, camera).depth, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="eps2d and near"):
        splat_gsplat(*single, camera, None, replace(THREE_DGS, alpha_max=0.98))
