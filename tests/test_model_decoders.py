"""Template decoder, UV decoder and camera code against formulas written out here."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from guava.model.camera_code import camera_code
from guava.model.decoders import TemplateDecoder, UVDecoder

OFFICIAL = json.loads((Path(__file__).parent / "data" / "official_blocks.json").read_text())


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _rotation(seed):
    q, r = torch.linalg.qr(_randn(3, 3, seed=seed))
    q = q * r.diagonal().sign()
    return q * q.det()


# --- camera code --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["third_column", "camera_axis"])
def test_camera_code_is_its_formula(direction):
    matrices = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    for b in range(3):
        matrices[b, :3, :3] = _rotation(b)
        matrices[b, :3, 3] = _randn(3, seed=b + 10)
    codes = camera_code(matrices, direction)
    for b in range(3):
        r = matrices[b, :3, :3].tolist()
        x, y, z = (r[0][2], r[1][2], r[2][2]) if direction == "third_column" else r[2]
        expected = [
            math.sin(x), math.sin(2 * x), math.sin(4 * x), math.sin(8 * x),
            math.sin(y), math.sin(2 * y), math.sin(4 * y), math.sin(8 * y),
            math.sin(z), math.sin(2 * z), math.sin(4 * z), math.sin(8 * z),
            math.cos(x), math.cos(2 * x), math.cos(4 * x), math.cos(8 * x),
            math.cos(y), math.cos(2 * y), math.cos(4 * y), math.cos(8 * y),
            math.cos(z), math.cos(2 * z), math.cos(4 * z), math.cos(8 * z),
            x, y, z,
        ]  # fmt: skip
        assert codes[b].tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(camera_code(matrices[0], direction), codes[0])


def test_the_two_view_directions_by_what_they_mean():
    rotation = _rotation(4)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = rotation
    up_front = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    assert torch.allclose(camera_code(matrix, "third_column")[-3:], rotation @ up_front)
    assert torch.allclose(rotation @ camera_code(matrix, "camera_axis")[-3:], up_front, atol=1e-12)
    with pytest.raises(ValueError, match="sideways"):
        camera_code(matrix, "sideways")


# --- template decoder ---------------------------------------------------------------------------------------


def _linear(layer, x):
    return torch.einsum("oi,...i->...o", layer.weight, x) + layer.bias


def _relu(x, slope=0.0):
    return torch.where(x > 0, x, slope * x)


@pytest.mark.parametrize("norm", ["vertex", "component"])
def test_template_decoder_is_its_formula(norm):
    torch.manual_seed(0)
    decoder = TemplateDecoder(20, 7, hidden=12, head_hidden=6, max_scale=0.3, rotation_norm=norm).double()
    features, code = _randn(2, 9, 20), _randn(2, 27, seed=1)
    out = decoder(features, code)
    trunk = features
    for index in (0, 2, 4):
        trunk = _relu(_linear(decoder.feature_layers[index], trunk))
    trunk = _linear(decoder.feature_layers[6], trunk)
    trunk = torch.cat([trunk, code[:, None].repeat(1, 9, 1)], 2)

    def head(layers):
        return _linear(layers[2], _relu(_linear(layers[0], trunk)))

    assert torch.allclose(out.features, head(decoder.color_layers), atol=1e-12)
    assert torch.allclose(out.opacities, 1 / (1 + torch.exp(-head(decoder.opacity_layers))), atol=1e-12)
    assert torch.allclose(out.scales, 0.3 / (1 + torch.exp(-head(decoder.scale_layers))), atol=1e-12)
    raw = head(decoder.rotation_layers).detach()
    for b in range(2):
        for v in range(9):
            for k in range(4):
                column = raw[b, :, k] if norm == "vertex" else raw[b, v]
                expected = raw[b, v, k] / math.sqrt(sum(float(c) ** 2 for c in column))
                assert out.rotations[b, v, k].item() == pytest.approx(float(expected), abs=1e-12)


def test_template_decoder_has_the_releases_keys():
    with torch.device("meta"):
        decoder = TemplateDecoder()
        out = decoder(torch.rand(2, 10595, 512), torch.rand(2, 27))
    assert {k: list(v.shape) for k, v in decoder.state_dict().items()} == OFFICIAL["TemplateDecoder"]
    assert sum(p.numel() for p in decoder.parameters()) == 479_272
    shapes = [tuple(t.shape) for t in (out.rotations, out.scales, out.opacities, out.features)]
    assert shapes == [(2, 10595, 4), (2, 10595, 3), (2, 10595, 1), (2, 10595, 32)]


def test_the_vertex_norm_depends_on_the_number_of_vertices_and_not_on_the_batch():
    decoder = TemplateDecoder(8, 3)
    features, code = _randn(3, 10, 8).float(), _randn(3, 27).float()
    whole = decoder(features, code)
    assert torch.allclose(whole.rotations.square().sum(1), torch.ones(3, 4), atol=1e-5)
    assert not torch.allclose(decoder(features[:, :5], code).rotations, whole.rotations[:, :5], atol=1e-3)
    for name in ("rotations", "scales", "opacities", "features"):
        alone = getattr(decoder(features[1:2], code[1:2]), name)
        assert torch.allclose(getattr(whole, name)[1:2], alone, atol=1e-6)


def test_template_decoder_gradients():
    torch.manual_seed(1)
    for norm in ("vertex", "component"):
        decoder = TemplateDecoder(4, 3, hidden=5, head_hidden=4, code_channels=3, rotation_norm=norm).double()
        features, code = _randn(1, 3, 4).requires_grad_(), _randn(1, 3, seed=2).requires_grad_()

        def call(features, code, decoder=decoder):
            out = decoder(features, code)
            return out.rotations, out.scales, out.opacities, out.features

        assert torch.autograd.gradcheck(call, (features, code))


def test_unknown_rotation_norms_are_refused():
    with pytest.raises(ValueError, match="both"):
        TemplateDecoder(rotation_norm="both")


# --- UV decoder ---------------------------------------------------------------------------------------------


def test_uv_decoder_is_its_formula():
    torch.manual_seed(0)
    decoder = UVDecoder(10, 7).double()
    maps, code = _randn(2, 10, 5, 6), _randn(2, 27, seed=1)
    out = decoder(maps, code)
    planes = torch.ones(2, 27, 5, 6, dtype=torch.float64) * code[:, :, None, None]
    x = torch.cat([maps, planes], 1)

    def stack(layers, x):
        convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
        for i, layer in enumerate(convolutions):
            x = F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)
            if i < len(convolutions) - 1:
                x = _relu(x, 0.01)
        return x

    trunk = stack(decoder.feature_conv, x)
    assert torch.allclose(out.features, stack(decoder.color_head, trunk), atol=1e-10)
    assert torch.allclose(out.opacities, 1 / (1 + torch.exp(-stack(decoder.opacity_head, trunk))), atol=1e-10)
    assert torch.allclose(out.scales, torch.exp(stack(decoder.scale_head, trunk)), atol=1e-10)
    assert torch.allclose(out.local_offsets, stack(decoder.local_pos_head, trunk), atol=1e-10)
    raw = stack(decoder.rot_head, trunk)
    assert torch.allclose(out.rotations, raw / raw.square().sum(1, keepdim=True).sqrt(), atol=1e-10)


def test_uv_decoder_has_the_releases_keys():
    with torch.device("meta"):
        decoder = UVDecoder()
        out = decoder(torch.rand(1, 128, 512, 512), torch.rand(1, 27))
    assert {k: list(v.shape) for k, v in decoder.state_dict().items()} == OFFICIAL["UVDecoder"]
    assert sum(p.numel() for p in decoder.parameters()) == 1_069_035
    shapes = (out.local_offsets, out.rotations, out.scales, out.opacities, out.features)
    assert [tuple(t.shape) for t in shapes] == [(1, c, 512, 512) for c in (3, 4, 3, 1, 32)]


def test_uv_decoder_gradients():
    torch.manual_seed(1)
    decoder = UVDecoder(2, 3, code_channels=2).double()
    maps, code = _randn(1, 2, 3, 3).requires_grad_(), _randn(1, 2, seed=3).requires_grad_()

    def call(maps, code):
        out = decoder(maps, code)
        return out.local_offsets, out.rotations, out.scales, out.opacities, out.features

    assert torch.autograd.gradcheck(call, (maps, code))


def test_uv_decoder_samples_do_not_depend_on_their_batch():
    decoder = UVDecoder(4, 3)
    maps, code = _randn(3, 4, 6, 6).float(), _randn(3, 27).float()
    whole = decoder(maps, code)
    for i in range(3):
        alone = decoder(maps[i : i + 1], code[i : i + 1])
        for name in ("local_offsets", "rotations", "scales", "opacities", "features"):
            assert torch.allclose(getattr(whole, name)[i : i + 1], getattr(alone, name), atol=1e-5)


def test_half_precision_hands_on_single_precision():
    decoder, template = UVDecoder(4, 3), TemplateDecoder(8, 3)
    maps, features, code = torch.randn(1, 4, 6, 6), torch.randn(1, 5, 8), torch.randn(1, 27)
    with torch.no_grad():
        exact, exact_template = decoder(maps, code), template(features, code)
        with torch.autocast("cpu", torch.bfloat16):
            rough, rough_template = decoder(maps, code), template(features, code)
    for a, b in ((rough, exact), (rough_template, exact_template)):
        for name in ("rotations", "scales", "opacities", "features"):
            assert getattr(a, name).dtype == torch.float32
            assert torch.allclose(getattr(a, name), getattr(b, name), atol=0.05)
