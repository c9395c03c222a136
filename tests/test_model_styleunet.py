"""StyleUNet against formulas written out here, its initialisation, its noise, and the release's shapes."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from guava.model.styleunet import (
    ModulatedConv2d,
    ResidualBlock,
    StyledConv,
    StyleUNet,
    ToRGB,
)

OFFICIAL = json.loads((Path(__file__).parent / "data" / "official_blocks.json").read_text())


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _shaken(module, seed=1):
    """Every parameter moved away from its special initial value (zero biases, zero noise strengths)."""
    generator = _seeded(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return module


def _tiny(small=False, extra=5, size=16, **options):
    torch.manual_seed(7)
    return _shaken(
        StyleUNet(
            3, 4, size=size, style_channels=6, style_layers=2, extra_style=extra, small=small,
            channel_scale=64, **options,
        ).double()
    )  # fmt: skip


def _input(model, batch=2, seed=2):
    x = torch.randn(batch, 3, model.size, model.size, generator=_seeded(seed), dtype=torch.float64)
    extra = None
    if model.extra_style:
        extra = torch.randn(batch, model.extra_style, generator=_seeded(seed + 1), dtype=torch.float64)
    return x, extra


def _maps(model, batch=1, seed=5):
    generator = _seeded(seed)
    return [
        torch.randn(batch, 1, h, w, generator=generator, dtype=torch.float64) for h, w in model.noise_shapes
    ]


def _doubled(x):
    """Bilinear x2 with half-pixel centres, by its own weights: 1/4 of a neighbour, 3/4 of oneself."""
    for axis in (2, 3):
        n = x.shape[axis]
        before = x.index_select(axis, torch.arange(-1, n - 1).clamp(min=0))
        after = x.index_select(axis, torch.arange(1, n + 1).clamp(max=n - 1))
        pair = torch.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis + 1)
        x = pair.flatten(axis, axis + 1)
    return x


def _halved(x):
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def _lrelu(x):
    return torch.where(x > 0, x, 0.2 * x)


def _modulated_by_loops(layer, x, style, demodulate):
    weight, k = layer.weight[0], layer.kernel_size
    cout, cin = weight.shape[:2]
    out = torch.zeros(x.shape[0], cout, *x.shape[2:], dtype=x.dtype)
    padded = torch.zeros(*x.shape[:2], x.shape[2] + k - 1, x.shape[3] + k - 1, dtype=x.dtype)
    p = k // 2
    padded[..., p : p + x.shape[2], p : p + x.shape[3]] = x
    for b in range(x.shape[0]):
        s = [
            sum(layer.modulation.weight[i, j] * style[b, j] for j in range(style.shape[1]))
            + layer.modulation.bias[i]
            for i in range(cin)
        ]
        for o in range(cout):
            kernel = torch.stack([weight[o, i] * s[i] for i in range(cin)])
            if demodulate:
                kernel = kernel / math.sqrt(float((kernel**2).sum()) + 1e-8)
            for row in range(x.shape[2]):
                for column in range(x.shape[3]):
                    window = padded[b, :, row : row + k, column : column + k]
                    out[b, o, row, column] = (kernel * window).sum()
    return out


# --- the release's names and sizes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "parameters", "options"),
    [
        ("StyleUNet", 29_549_391, {}),
        (
            "Refiner",
            28_126_480,
            {"in_channels": 32, "out_channels": 3, "extra_style": 0, "small": True, "activation": "sigmoid"},
        ),
    ],
)
def test_keys_and_shapes_are_the_releases(block, parameters, options):
    with torch.device("meta"):
        model = StyleUNet(**options)
        out = model(
            torch.rand(2, model.in_channels, 512, 512),
            torch.rand(2, 512) if model.extra_style else None,
            noise="random",
        )
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == OFFICIAL[block]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert out.shape == (2, model.out_channels, 512, 512)


def test_noise_layers_of_the_full_and_the_small_variant():
    with torch.device("meta"):
        full, small = StyleUNet(), StyleUNet(32, 3, extra_style=0, small=True)
    doubling = [8, 16, 32, 64, 128, 256, 512]
    assert [h for h, _ in full.noise_shapes] == [4, *(side for side in doubling for _ in range(2))]
    assert [h for h, _ in small.noise_shapes] == [4, *doubling]


def test_channel_scale_divides_and_truncates():
    model = StyleUNet(3, 4, size=32, channel_scale=100, style_channels=8, extra_style=0)
    assert model.final_conv.weight.shape[0] == 2  # 256 / 100
    assert model.final_linear.in_features == 2 * 16


@pytest.mark.parametrize("size", [4, 12, 2048])
def test_sizes_that_are_not_possible_are_refused(size):
    with pytest.raises(ValueError, match="power of two"):
        StyleUNet(3, 3, size=size)


def test_unknown_activations_are_refused():
    with pytest.raises(ValueError, match="tanh"):
        StyleUNet(3, 3, size=8, activation="tanh")


# --- the layers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_against_loops(batch, kernel, demodulate):
    layer = _shaken(ModulatedConv2d(2, 3, kernel, 4, demodulate=demodulate).double())
    x = torch.randn(batch, 2, 4, 5, generator=_seeded(), dtype=torch.float64)
    style = torch.randn(batch, 4, generator=_seeded(1), dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(layer(x, style), _modulated_by_loops(layer, x, style, demodulate), atol=1e-12)
        bias = torch.tensor([0.3, -0.1, 2.0], dtype=torch.float64)
        changed = layer(x, style, gain=1.7, bias=bias)
        assert torch.allclose(changed, 1.7 * layer(x, style) + bias[:, None, None], atol=1e-12)


@torch.no_grad()
def test_demodulated_weights_have_unit_norm():
    layer = ModulatedConv2d(5, 2, 3, 4)
    # A convolution of a unit impulse reads the weights off.
    for channel in range(2):
        total = 0.0
        for i in range(5):
            x = torch.zeros(1, 5, 5, 5)
            x[0, i, 2, 2] = 1
            total += float(layer(x, torch.full((1, 4), 0.7))[0, channel].square().sum())
        assert total == pytest.approx(1, abs=1e-5)


def test_upsampling_comes_before_the_convolution():
    layer = _shaken(ModulatedConv2d(2, 3, 3, 4, upsample=True).double())
    plain = ModulatedConv2d(2, 3, 3, 4).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, 4, 4, generator=_seeded(), dtype=torch.float64)
    style = torch.randn(2, 4, generator=_seeded(1), dtype=torch.float64)
    assert torch.allclose(layer(x, style), plain(_doubled(x), style), atol=1e-12)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("demodulate", [True, False])
def test_gradients_of_the_modulated_convolution(batch, demodulate):
    layer = ModulatedConv2d(2, 2, 3, 3, demodulate=demodulate, upsample=True).double()
    x = torch.randn(batch, 2, 3, 3, generator=_seeded(), dtype=torch.float64, requires_grad=True)
    style = torch.randn(batch, 3, generator=_seeded(1), dtype=torch.float64, requires_grad=True)

    def call(x, style, weight, matrix, bias):
        state = {"weight": weight, "modulation.weight": matrix, "modulation.bias": bias}
        return torch.func.functional_call(layer, state, (x, style))

    assert torch.autograd.gradcheck(call, (x, style, layer.weight, *layer.modulation.parameters()))


def test_styled_convolution_is_its_formula():
    layer = _shaken(StyledConv(2, 3, 4).double())
    x = torch.randn(2, 2, 4, 4, generator=_seeded(), dtype=torch.float64)
    style = torch.randn(2, 4, generator=_seeded(1), dtype=torch.float64)
    noise = torch.randn(2, 1, 4, 4, generator=_seeded(2), dtype=torch.float64)
    with torch.no_grad():
        inner = _modulated_by_loops(layer.modulated_conv, x, style, True)
        expected = _lrelu(math.sqrt(2) * inner + layer.weight * noise + layer.bias)
        assert torch.allclose(layer(x, style, noise), expected, atol=1e-12)
        assert not torch.allclose(layer(x, style), expected, atol=1e-3)


def test_to_rgb_does_not_demodulate_and_adds_the_doubled_picture():
    layer = _shaken(ToRGB(2, 3, 4).double())
    x = torch.randn(2, 2, 4, 4, generator=_seeded(), dtype=torch.float64)
    style = torch.randn(2, 4, generator=_seeded(1), dtype=torch.float64)
    picture = torch.randn(2, 3, 2, 2, generator=_seeded(2), dtype=torch.float64)
    with torch.no_grad():
        own = _modulated_by_loops(layer.modulated_conv, x, style, False) + layer.bias
        assert torch.allclose(layer(x, style), own, atol=1e-12)
        assert torch.allclose(layer(x, style, picture), own + _doubled(picture), atol=1e-12)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_residual_block_is_its_formula(direction):
    block = _shaken(ResidualBlock(2, 3, direction).double())
    resize = _doubled if direction == "up" else _halved
    x = torch.randn(2, 2, 6, 6, generator=_seeded(), dtype=torch.float64)
    main = _lrelu(F.conv2d(x, block.conv1.weight, block.conv1.bias, padding=1))
    main = _lrelu(F.conv2d(resize(main), block.conv2.weight, block.conv2.bias, padding=1))
    expected = main + torch.einsum("oi,bihw->bohw", block.skip.weight[:, :, 0, 0], resize(x))
    assert torch.allclose(block(x), expected, atol=1e-12)
    assert block.skip.bias is None


# --- the whole ----------------------------------------------------------------------------------------------


def _by_formulas(model, x, extra, noise):
    """The U-Net's wiring, with the model's own layers of the generator (tested above) and plain resizes."""

    def conv(layer, value, pad):
        return F.conv2d(value, layer.weight, layer.bias, padding=pad)

    def residual(block, value, resize):
        main = _lrelu(conv(block.conv2, resize(_lrelu(conv(block.conv1, value, 1))), 1))
        return main + F.conv2d(resize(value), block.skip.weight)

    feature = _lrelu(conv(model.conv_body_first, x, 0))
    by_side = {}
    for block in model.conv_body_down:
        feature = residual(block, feature, _halved)
        by_side[feature.shape[-1]] = feature
    feature = _lrelu(conv(model.final_conv, feature, 1))
    style = feature.reshape(len(x), -1) @ model.final_linear.weight.T + model.final_linear.bias
    if extra is not None:
        first, last = model.style_fuse[0], model.style_fuse[2]
        hidden = _lrelu(torch.cat([style, extra], 1) @ first.weight.T + first.bias)
        style = hidden @ last.weight.T + last.bias
    scales, shifts = {}, {}
    for i, block in enumerate(model.conv_body_up):
        feature = residual(block, feature + by_side[feature.shape[-1]], _doubled)
        for results, stacks in ((scales, model.condition_scale), (shifts, model.condition_shift)):
            results[feature.shape[-1]] = conv(stacks[i][2], _lrelu(conv(stacks[i][0], feature, 1)), 1)

    decoder = model.stylegan_decoder
    latent = style / (style.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for linear in decoder.style_mlp[1::2]:
        latent = _lrelu(latent @ linear.weight.T + linear.bias)
    noise = iter(noise)
    out = decoder.constant_input.weight.repeat(len(x), 1, 1, 1)
    out = decoder.style_conv1(out, latent, next(noise))
    picture = decoder.to_rgb1(out, latent)
    layers = iter(decoder.style_convs)
    for i, to_rgb in enumerate(decoder.to_rgbs):
        out = next(layers)(out, latent, next(noise))
        out = out * scales[out.shape[-1]] + shifts[out.shape[-1]]
        if model.stylegan_decoder.small:
            plain = decoder.normal_convs[i][0]
            out = _lrelu(conv(plain, out, 1))
        else:
            out = next(layers)(out, latent, next(noise))
        picture = to_rgb(out, latent, picture)
    assert next(noise, None) is None and next(layers, None) is None
    return picture


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("extra", [0, 5])
def test_the_whole_is_its_formulas(small, extra):
    model = _tiny(small, extra, size=32)
    x, second = _input(model)
    noise = _maps(model, batch=2)
    with torch.no_grad():
        expected = _by_formulas(model, x, second, noise)
        assert torch.allclose(model(x, second, noise=noise), expected, atol=1e-10)
        assert expected.std() > 1e-3


def test_a_narrower_input_is_resized_up_first():
    model = _tiny()
    x, extra = _input(model)
    small = x[..., :8, :8]
    assert torch.allclose(model(small, extra), model(_doubled(small), extra), atol=1e-12)


def test_output_activation():
    torch.manual_seed(0)
    raw = _tiny(extra=0)
    squashed = _tiny(extra=0, activation="sigmoid")
    squashed.load_state_dict(raw.state_dict())
    x, _ = _input(raw)
    assert torch.allclose(squashed(x), 1 / (1 + torch.exp(-raw(x))), atol=1e-12)


@pytest.mark.parametrize("small", [False, True])
def test_a_sample_does_not_depend_on_its_batch(small):
    model = _tiny(small)
    x, extra = _input(model, batch=3)
    maps = _maps(model, batch=3)
    together = model(x, extra, noise=maps)
    for i in range(3):
        alone = model(x[i : i + 1], extra[i : i + 1], noise=[m[i : i + 1] for m in maps])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-10)


def test_every_parameter_but_unused_ones_gets_a_gradient():
    model = _tiny()
    x, extra = _input(model)
    model(x, extra, noise=_maps(model)).square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_gradient_of_the_whole_by_finite_differences():
    model = _tiny(size=8)
    x, extra = _input(model, batch=1)
    maps = _maps(model)
    # A few inputs are enough: the layers have their own gradchecks.
    picked = x[:, :, :2, :2].clone().requires_grad_()

    def call(corner, extra):
        full = x.clone()
        full[:, :, :2, :2] = corner
        return model(full, extra, noise=maps).sum((2, 3))

    assert torch.autograd.gradcheck(call, (picked, extra.requires_grad_()), atol=1e-6)


# --- noise --------------------------------------------------------------------------------------------------


def test_noise_off_is_deterministic_and_is_no_noise():
    model = _tiny()
    x, extra = _input(model)
    zeros = [torch.zeros_like(m) for m in _maps(model)]
    assert torch.equal(model(x, extra), model(x, extra, noise="off"))
    assert torch.allclose(model(x, extra), model(x, extra, noise=zeros), atol=1e-12)


def test_random_noise_is_fresh_at_every_call_and_repeats_with_its_generator():
    model = _tiny().eval()
    x, extra = _input(model)
    assert not torch.allclose(model(x, extra, noise="random"), model(x, extra, noise="random"), atol=1e-4)
    first = model(x, extra, noise="random", generator=_seeded(4))
    assert torch.equal(first, model(x, extra, noise="random", generator=_seeded(4)))
    torch.manual_seed(4)
    assert torch.equal(first, model(x, extra, noise="random"))


def test_random_noise_is_one_normal_map_per_sample_and_layer_in_the_order_of_use():
    model = _tiny()
    x, extra = _input(model)
    generator = _seeded(9)
    maps = [
        torch.empty(2, 1, h, w, dtype=torch.float64).normal_(generator=generator)
        for h, w in model.noise_shapes
    ]
    drawn = model(x, extra, noise="random", generator=_seeded(9))
    assert torch.equal(drawn, model(x, extra, noise=maps))


def test_one_noise_map_serves_a_whole_batch():
    model = _tiny()
    x, extra = _input(model)
    maps = _maps(model)
    repeated = [m.expand(2, -1, -1, -1) for m in maps]
    assert torch.equal(model(x, extra, noise=maps), model(x, extra, noise=repeated))


@pytest.mark.parametrize("wrong", ["few", "size", "batch", "word"])
def test_noise_that_does_not_fit_is_refused(wrong):
    model = _tiny()
    x, extra = _input(model)
    maps = _maps(model)
    if wrong == "few":
        maps = maps[:-1]
    elif wrong == "size":
        maps[1] = maps[1][..., :4]
    elif wrong == "batch":
        maps[0] = maps[0].expand(3, -1, -1, -1)
    else:
        maps = "fixed"
    with pytest.raises(ValueError, match="[Nn]oise"):
        model(x, extra, noise=maps)


def test_inputs_that_do_not_fit_are_refused():
    model, plain = _tiny(), _tiny(extra=0)
    x, extra = _input(model)
    with pytest.raises(ValueError, match="second style"):
        model(x)
    with pytest.raises(ValueError, match="second style"):
        plain(x, extra)
    with pytest.raises(ValueError, match="side 16"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.float64), extra[:1])


# --- initialisation and precision ---------------------------------------------------------------------------


@torch.no_grad()
def test_initial_values():
    torch.manual_seed(3)
    model = StyleUNet(8, 6, size=16, style_channels=256, style_layers=2, extra_style=16)
    decoder = model.stylegan_decoder
    for linear in decoder.style_mlp[1::2]:
        assert float(linear.weight.std()) == pytest.approx(math.sqrt(2 / (1 + 0.2**2) / 256), rel=0.02)
        assert not linear.bias.any()
    for layer in (decoder.style_conv1, *decoder.style_convs, decoder.to_rgb1, *decoder.to_rgbs):
        conv = layer.modulated_conv
        assert float(conv.modulation.weight.std()) == pytest.approx(1 / math.sqrt(256), rel=0.03)
        assert (conv.modulation.bias == 1).all()
        assert float(conv.weight.std()) == pytest.approx(1 / math.sqrt(256 * conv.kernel_size**2), rel=0.05)
        assert not layer.bias.any()
    for layer in (decoder.style_conv1, *decoder.style_convs):
        assert not layer.weight.any()
    assert float(decoder.constant_input.weight.std()) == pytest.approx(1, rel=0.05)
    # torch's own default: uniform within 1 / sqrt(fan in).
    for layer, fan in ((model.final_conv, 256 * 9), (model.final_linear, 4096), (model.conv_body_first, 8)):
        bound = 1 / math.sqrt(fan)
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert float(layer.weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert layer.bias.abs().max() > 0


def test_autocast_stays_close_to_single_precision():
    torch.manual_seed(0)
    model = _shaken(StyleUNet(3, 4, size=32, style_channels=32, extra_style=8, channel_scale=8)).eval()
    x, extra = torch.rand(2, 3, 32, 32), torch.randn(2, 8)
    with torch.no_grad():
        exact = model(x, extra, noise="random", generator=_seeded())
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x, extra, noise="random", generator=_seeded())
    assert rough.isfinite().all()
    assert (rough.float() - exact).abs().mean() < 0.03 * exact.std()
