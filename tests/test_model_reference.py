"""``guava.model``'s blocks against a second implementation that was written from the facts alone."""

from __future__ import annotations

import numpy as np
import pytest
import reference_network as reference
import torch

from guava.camera import Camera
from guava.model import (
    EncoderNeck,
    StyleUNet,
    TemplateDecoder,
    UVDecoder,
    camera_code,
    inverse_texture_map,
    sample_projected,
)
from guava.rendering import MeshFragments


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter random, also those that start at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return module.double()


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("small", [False, True])
def test_style_unet(small: bool, noisy: bool) -> None:
    size = 64
    options = {"extra_style": 0, "small": True, "activation": "sigmoid"} if small else {"extra_style": 24}
    net = StyleUNet(7, 5, size=size, style_channels=24, channel_scale=16, **options)
    net = randomised(net)
    x, extra = random(2, 7, size, size), None if small else random(2, 24, seed=2)
    noise = [random(2, 1, *shape, seed=3 + i) for i, shape in enumerate(net.noise_shapes)] if noisy else None
    expected = reference.style_unet(
        net.state_dict(), x, size=size, small=small, extra=extra, noise=noise, sigmoid=small
    )
    out = net(x, extra, noise=noise or "off")
    assert out.std() > 1e-3
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


def test_style_unet_enlarges_a_smaller_input() -> None:
    net = randomised(StyleUNet(3, 2, size=32, style_channels=8, channel_scale=32, extra_style=0))
    x = random(1, 3, 20, 20)
    expected = reference.style_unet(net.state_dict(), x, size=32, small=False)
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)


def test_noise_order_at_full_size() -> None:
    sides = [8, 16, 32, 64, 128, 256, 512]
    sides = {True: [4, *sides], False: [4, *(side for side in sides for _ in range(2))]}
    with torch.device("meta"):
        for small, wanted in sides.items():
            assert [h for h, _ in StyleUNet(32, 3, small=small).noise_shapes] == wanted


def test_encoder_neck() -> None:
    neck = randomised(
        EncoderNeck(token_channels=24, width=8, stage_channels=(6, 8, 10, 12), map_size=48, uv_channels=4,
                    template_channels=9)
    )  # fmt: skip
    tokens = [random(2, 24, 5, 5, seed=s) for s in range(5)]
    image = random(2, 3, 70, 70, seed=9)
    expected = reference.encoder_neck(neck.state_dict(), tokens, image, 48, fused=(5, 10, 20, 40))
    for out, wanted in zip(neck(tokens, image), expected, strict=True):
        torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_encoder_neck_at_full_size() -> None:
    neck = randomised(EncoderNeck()).float()
    tokens = [random(1, 768, 37, 37, seed=s).float() for s in range(5)]
    image = random(1, 3, 518, 518, seed=9).float()
    with torch.no_grad():
        expected = reference.encoder_neck(neck.state_dict(), tokens, image)
        for out, wanted, channels in zip(neck(tokens, image), expected, (32, 128), strict=True):
            assert out.shape == (1, channels, 512, 512)
            torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))


def test_camera_code() -> None:
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3, 3)))
    matrices = np.zeros((3, 4, 4))
    matrices[:, :3, :3] = q
    expected = reference.camera_code(matrices)
    torch.testing.assert_close(camera_code(torch.from_numpy(matrices)), expected, rtol=1e-12, atol=1e-12)


def test_template_decoder() -> None:
    decoder = randomised(TemplateDecoder())
    features, code = random(2, 11, 512), random(2, 27, seed=2)
    color, opacity, scale, rotation = reference.template_decoder(decoder.state_dict(), features, code)
    out = decoder(features, code)
    for value, wanted in (
        (out.features, color), (out.opacities, opacity), (out.scales, scale), (out.rotations, rotation)
    ):  # fmt: skip
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-10)


def test_uv_decoder() -> None:
    decoder = randomised(UVDecoder())
    maps, code = random(2, 128, 6, 7), random(2, 27, seed=2)
    color, opacity, scale, rotation, position = reference.uv_decoder(decoder.state_dict(), maps, code)
    out = decoder(maps, code)
    for value, wanted in (
        (out.features, color), (out.opacities, opacity), (out.scales, scale), (out.rotations, rotation),
        (out.local_offsets, position),
    ):  # fmt: skip
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-10)


def camera(size: int) -> Camera:
    """The release's: focal 24 in units of half the picture, 22 m away."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[1, 1] = matrix[2, 2] = -1
    matrix[2, 3] = 22
    intrinsics = torch.tensor([[12.0 * size, 0, size / 2], [0, 12.0 * size, size / 2], [0, 0, 1]]).double()
    return Camera(matrix, intrinsics, size, size)


def release_pixels(points: torch.Tensor, size: int) -> np.ndarray:
    view = points.numpy() * [1, -1, -1] + [0, 0, 22]
    ndc = 24 * view[:, :2] / (view[:, 2:] + 1e-7)
    return (ndc + 1) / 2 * size


def test_projection_sampling() -> None:
    size = 16
    features, points = random(1, 3, size, size), random(1, 40, 3) * 0.6
    pixels = release_pixels(points[0], size)
    assert (pixels < 0).any() and ((pixels > 1) & (pixels < size - 1)).any()
    expected = np.stack([reference.bilinear_at(features[0].numpy(), x, y, True) for x, y in pixels])
    out = sample_projected(features, points, camera(size))
    np.testing.assert_allclose(out[0], expected, atol=1e-6)


def test_inverse_texture_mapping() -> None:
    size, side = 16, 4
    generator = np.random.default_rng(0)
    features, vertices = random(1, 2, size, size), random(1, 9, 3) * 0.6
    faces = torch.from_numpy(generator.integers(0, 9, (6, 3)))
    ids = torch.from_numpy(generator.integers(-1, 6, (side, side))).int()
    weights = torch.from_numpy(generator.dirichlet(np.ones(3), (side, side)))
    visible = torch.tensor([[True, True, False, True, False, True]])
    out, mask = inverse_texture_map(
        features, vertices, faces, MeshFragments(ids, weights, weights[..., 0]), camera(size), visible=visible
    )
    for row in range(side):
        for column in range(side):
            face = int(ids[row, column])
            if face < 0 or not visible[0, face]:
                assert not mask[0, row, column] and not out[0, :, row, column].any()
                continue
            point = (vertices[0, faces[face]] * weights[row, column][:, None]).sum(0)
            (x, y), = release_pixels(point[None], size)
            expected = reference.bilinear_at(features[0].numpy(), x, y, False)
            np.testing.assert_allclose(out[0, :, row, column], expected, atol=1e-6)
