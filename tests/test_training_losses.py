"""The losses of Sec. 3.4 against their formulas written out in loops, and LPIPS against its definition."""

from __future__ import annotations

import json
import math
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from guava.errors import FileFormatError, InputError, MissingAssetError
from guava.model.outputs import UVGaussians
from guava.training import (
    GuavaLoss,
    Lpips,
    OptimConfig,
    crop_parts,
    image_l1,
    linear_decay,
    loss_config,
    make_optimizer,
    optim_config,
    parameter_groups,
    position_loss,
    scale_loss,
)


def _rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _uv(offsets, scales):
    batch, count = offsets.shape[:2]
    blank = torch.zeros(batch, count, 1, dtype=offsets.dtype)
    ids = torch.zeros(count, dtype=torch.int64)
    return UVGaussians(ids, torch.zeros(count, 3), offsets, blank, scales, blank, blank)


class _Distance:
    """Stands in for LPIPS: something else than L1, and a sum over the batch."""

    def __call__(self, a, b):
        return ((a - b) ** 2).mean((1, 2, 3)).sum()


# --- pieces -------------------------------------------------------------------------------------------------


def _bilinear(picture: np.ndarray, size: int) -> np.ndarray:
    """(C, H, W) sampled at half-pixel centres, edges repeated, no antialiasing: by the definition."""
    _, height, width = picture.shape
    out = np.zeros((picture.shape[0], size, size))
    for i in range(size):
        for j in range(size):
            y = min(max((i + 0.5) * height / size - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / size - 0.5, 0), width - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            dy, dx = y - y0, x - x0
            out[:, i, j] = (
                picture[:, y0, x0] * (1 - dy) * (1 - dx)
                + picture[:, y0, x1] * (1 - dy) * dx
                + picture[:, y1, x0] * dy * (1 - dx)
                + picture[:, y1, x1] * dy * dx
            )
    return out


def test_crops_are_rows_top_to_bottom_and_columns_left_to_right_with_open_ends():
    images = _rand(3, 3, 20, 30)
    boxes = torch.tensor([[4, 17, 2, 9], [5, 5, 2, 9], [0, 30, 0, 20]])
    crops = crop_parts(images, boxes, 8)
    assert crops.shape == (2, 3, 8, 8)  # the empty one is left out
    assert np.allclose(crops[0], _bilinear(images[0, :, 2:9, 4:17].numpy(), 8), atol=1e-12)
    assert np.allclose(crops[1], _bilinear(images[2].numpy(), 8), atol=1e-12)
    assert crop_parts(images[1:2], boxes[1:2], 8).shape == (0, 3, 8, 8)
    assert crop_parts(images[:1], torch.tensor([[-3, -1, -2, 5]]), 8).shape[0] == 0
    with pytest.raises(ValueError, match="whole pixels"):
        crop_parts(images, boxes.float(), 8)


def test_regularisers_by_loops():
    offsets, scales = 4 * _rand(2, 7, 3) - 2, 1.5 * _rand(2, 7, 3, seed=1)
    position = scale = floor_position = floor_scale = 0.0
    for b in range(2):
        for m in range(7):
            x, s = offsets[b, m].tolist(), scales[b, m].tolist()
            position += max(math.sqrt(sum(v * v for v in x)) - 1.5, 0) / 14
            scale += math.sqrt(sum(max(v - 0.6, 0) ** 2 for v in s)) / 14
            floor_position += math.sqrt(sum(max(abs(v), 1.5) ** 2 for v in x)) / 14
            floor_scale += math.sqrt(sum(max(v, 0.6) ** 2 for v in s)) / 14
    assert position > 0.1 and scale > 0.1
    assert float(position_loss(offsets, 1.5)) == pytest.approx(position, rel=1e-12)
    assert float(scale_loss(scales)) == pytest.approx(scale, rel=1e-12)
    assert float(position_loss(offsets, 1.5, "floor")) == pytest.approx(floor_position, rel=1e-12)
    assert float(scale_loss(scales, 0.6, "floor")) == pytest.approx(floor_scale, rel=1e-12)


@pytest.mark.parametrize("form", ["hinge", "floor"])
def test_regularisers_are_flat_within_the_threshold_and_differentiable_beyond(form):
    near = torch.tensor([[0.1, -0.2, 0.3], [0, 0, 0]], dtype=torch.float64, requires_grad=True)
    (position_loss(near, 3.0, form) + scale_loss(near, 0.6, form)).backward()
    assert not near.grad.any()
    far = (5 + _rand(4, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: position_loss(x, 3.0, form), far)
    assert torch.autograd.gradcheck(lambda x: scale_loss(x, 0.6, form), far)


# --- the total ----------------------------------------------------------------------------------------------


def _scene(batch=2, size=24):
    pictures = [_rand(batch, 3, size, size, seed=s) for s in (1, 2, 3)]
    mask = (_rand(batch, 1, size, size, seed=4) > 0.4).double()
    boxes = torch.tensor(
        [[[3, 15, 2, 12], [0, 8, 10, 20], [9, 9, 3, 8]], [[0, 23, 0, 23], [4, 4, 4, 4], [10, 20, 5, 17]]]
    )
    uv = [_uv(8 * _rand(batch, 5, 3, seed=5), _rand(batch, 5, 3, seed=6))]
    return *pictures, mask, boxes, uv


@pytest.mark.parametrize(("iteration", "masked", "weight"), [(0, True, 0.025), (999, True, 0.025),
                                                             (1000, False, 0.025), (10_000, False, 0.025),
                                                             (10_001, False, 0.05)])  # fmt: skip
def test_the_releases_total_by_hand(iteration, masked, weight):
    refined, coarse, target, mask, boxes, uv = _scene()
    loss = GuavaLoss(_Distance(), loss_config(crop_size=16))
    result = loss(refined, coarse, target, mask, boxes, uv, iteration)
    truth = (target * mask).numpy()
    total = 0.0
    for picture in ((refined * mask if masked else refined).numpy(), coarse.numpy()):
        total += np.abs(picture - truth).mean()
        total += weight * sum(((p - t) ** 2).mean() for p, t in zip(picture, truth, strict=True))
        for row, factor in ((0, 0.25), (1, 0.1), (2, 0.1)):
            made, wanted = [], []
            for b in range(2):
                left, right, top, bottom = boxes[b, row].tolist()
                if right > left and bottom > top:
                    made.append(_bilinear(picture[b][:, top:bottom, left:right], 16))
                    wanted.append(_bilinear(truth[b][:, top:bottom, left:right], 16))
            total += factor * np.abs(np.array(made) - np.array(wanted)).mean()
            total += factor * weight * sum(((p - t) ** 2).mean() for p, t in zip(made, wanted, strict=True))
    norms = np.linalg.norm(uv[0].local_offsets.numpy(), axis=-1)
    total += 0.01 * np.maximum(norms - 3, 0).mean()
    total += np.linalg.norm(np.maximum(uv[0].scales.numpy() - 0.6, 0), axis=-1).mean()
    assert float(result.total) == pytest.approx(total, rel=1e-10)
    assert float(sum(result.terms.values())) == pytest.approx(total, rel=1e-10)


def test_the_papers_reading_crops_the_refined_picture_only():
    refined, coarse, target, mask, boxes, uv = _scene()
    config = loss_config("paper", crop_size=16)
    distance = _Distance()
    terms = GuavaLoss(distance, config)(refined, coarse, target, mask, boxes, uv, 0).terms
    assert "refined.head.l1" in terms and not any(name.startswith("coarse.head") for name in terms)
    assert float(terms["refined.l1"]) == pytest.approx(float(image_l1(refined, target * mask)))
    assert float(terms["position"]) == pytest.approx(
        0.01 * float(position_loss(uv[0].local_offsets, 3.0, "floor"))
    )
    assert (config.input_range, config.reduction) == ("signed", "mean")
    with pytest.raises(InputError, match="no preset 'lite'"):
        loss_config("lite")


def test_hands_that_nobody_shows_add_nothing():
    refined, coarse, target, mask, boxes, uv = _scene()
    boxes[:, 1:] = 0
    terms = GuavaLoss(_Distance(), loss_config(crop_size=16))(
        refined, coarse, target, mask, boxes, uv, 0
    ).terms
    assert not any("hand" in name for name in terms) and "coarse.head.l1" in terms
    assert all(math.isfinite(float(value)) for value in terms.values())


def test_without_refiner_and_without_uv_gaussians():
    _, coarse, target, mask, boxes, uv = _scene()
    terms = GuavaLoss(_Distance(), loss_config(crop_size=16))(None, coarse, target, mask, boxes, [], 0).terms
    assert terms and all(name.startswith("coarse.") for name in terms)


def test_two_uv_layers_count_by_their_gaussians():
    refined, coarse, target, mask, boxes, (first,) = _scene()
    second = _uv(20 * _rand(2, 3, 3, seed=9), _rand(2, 3, 3, seed=10))
    both = _uv(
        torch.cat([first.local_offsets, second.local_offsets], 1), torch.cat([first.scales, second.scales], 1)
    )
    loss = GuavaLoss(_Distance(), loss_config(crop_size=16))
    apart = loss(refined, coarse, target, mask, boxes, [first, second], 0).terms
    together = loss(refined, coarse, target, mask, boxes, [both], 0).terms
    assert all(torch.equal(apart[name], together[name]) for name in ("position", "scale"))


def test_perceptual_terms_are_never_left_out_silently():
    with pytest.raises(InputError, match="no perceptual distance"):
        GuavaLoss(None)
    terms = GuavaLoss(None, loss_config(perceptual=0.0, perceptual_late=0.0, crop_size=8))(*_scene(), 0).terms
    assert not any("perceptual" in name for name in terms)
    with pytest.raises(InputError, match="input_range 'signed', the loss 'unit'"):
        GuavaLoss(_lpips("alex", reduction="sum"))


def test_gradients_of_the_total():
    _, _, target, mask, boxes, uv = _scene(1, 6)
    boxes = torch.tensor([[[1, 5, 2, 6], [0, 3, 3, 6], [3, 3, 0, 4]]])
    loss = GuavaLoss(_Distance(), loss_config(crop_size=4))
    refined, coarse = (_rand(1, 3, 6, 6, seed=seed).requires_grad_() for seed in (7, 8))
    assert torch.autograd.gradcheck(
        lambda r, c: loss(r, c, target, mask, boxes, uv, 5).total, (refined, coarse), nondet_tol=1e-9
    )


# --- LPIPS --------------------------------------------------------------------------------------------------

_CONVS = {"alex": {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}}
_CONVS["vgg"] = {
    index: (cout, cin, 3)
    for index, cin, cout in zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512),
        (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
        strict=True,
    )
}
_LINES = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


@lru_cache
def _made(network: str):
    """Made-up weights in torchvision's and LPIPS's layouts."""
    g = torch.Generator().manual_seed(3)
    backbone = {}
    for index, (cout, cin, k) in _CONVS[network].items():
        weight = torch.randn(cout, cin, k, k, generator=g) / math.sqrt(cin * k * k / 2)
        backbone[f"features.{index}.weight"] = weight
        backbone[f"features.{index}.bias"] = 0.1 * torch.randn(cout, generator=g)
    backbone["classifier.1.weight"] = torch.zeros(4, 4)
    lines = {
        f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=g) for i, c in enumerate(_LINES[network])
    }
    return backbone, lines


def _states(network: str):
    """Copies, so that a test may spoil them."""
    return tuple(dict(part) for part in _made(network))


def _lpips(network: str, **options) -> Lpips:
    return Lpips.from_states(*_states(network), network, **options)


def _reference(network: str, a: torch.Tensor, b: torch.Tensor, signed: bool) -> list[float]:
    """The published definition, picture by picture, with torchvision's `features` as a Sequential."""
    backbone, lines = _states(network)
    layers, taps = [], []
    pools = {"alex": {2: (3, 2), 5: (3, 2)}, "vgg": {4: (2, 2), 9: (2, 2), 16: (2, 2), 23: (2, 2)}}[network]
    strides = {0: (4, 2), 3: (1, 2)} if network == "alex" else {}
    for index in range(max(_CONVS[network]) + 2):
        if index in _CONVS[network]:
            cout, cin, k = _CONVS[network][index]
            stride, padding = strides.get(index, (1, 1))
            conv = nn.Conv2d(cin, cout, k, stride, padding)
            conv.weight.data = backbone[f"features.{index}.weight"]
            conv.bias.data = backbone[f"features.{index}.bias"]
            layers.append(conv)
        else:
            layers.append(nn.MaxPool2d(*pools[index]) if index in pools else nn.ReLU())
    taps = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}[network]  # ReLUs
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(3, 1, 1)
    out = []
    for x, y in zip(a, b, strict=True):
        if signed:
            x, y = 2 * x - 1, 2 * y - 1
        x, y = (x - shift) / scale, (y - shift) / scale
        total = 0.0
        for index, layer in enumerate(layers):
            x, y = layer(x[None])[0], layer(y[None])[0]
            if index in taps:
                u = x / (x.pow(2).sum(0).sqrt() + 1e-10)
                v = y / (y.pow(2).sum(0).sqrt() + 1e-10)
                weight = lines[f"lin{taps.index(index)}.model.1.weight"].reshape(-1, 1, 1)
                total += float((weight * (u - v) ** 2).sum(0).mean())
        out.append(total)
    return out


@pytest.mark.parametrize(("network", "signed"), [("alex", False), ("alex", True), ("vgg", False)])
def test_lpips_by_its_definition(network, signed):
    side = 48 if network == "alex" else 32
    a, b = _rand(2, 3, side, side).float(), _rand(2, 3, side, side, seed=1).float()
    b[1] = (a[1] + b[1]) / 2
    with torch.no_grad():
        wanted = _reference(network, a, b, signed)
    options = {"input_range": "signed" if signed else "unit"}
    model = _lpips(network, reduction="none", **options)
    assert model(a, b).tolist() == pytest.approx(wanted, rel=1e-4)
    assert wanted[0] > 1.05 * wanted[1] > 0.01
    if network == "alex":
        both = [float(_lpips(network, reduction=how, **options)(a, b)) for how in ("sum", "mean")]
        assert both == pytest.approx([sum(wanted), sum(wanted) / 2], rel=1e-4)


def test_lpips_of_black_pictures_has_gradients():
    model = _lpips("alex", reduction="sum")
    picture = torch.zeros(1, 3, 48, 48, requires_grad=True)
    model(picture, _rand(1, 3, 48, 48).float()).backward()
    assert picture.grad.isfinite().all() and picture.grad.any()
    assert not any(p.requires_grad for p in model.parameters())
    assert float(model(picture[:0], picture[:0]).detach()) == 0


def test_lpips_reads_the_layouts_that_are_about(tmp_path):
    backbone, lines = _states("alex")
    a, b = _rand(1, 3, 40, 40).float(), _rand(1, 3, 40, 40, seed=1).float()
    wanted = _lpips("alex")(a, b)
    torch.save(backbone, tmp_path / "b.pth")
    torch.save(lines, tmp_path / "l.pth")
    assert torch.equal(Lpips.from_files(tmp_path / "b.pth", tmp_path / "l.pth")(a, b), wanted)
    slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    whole = {
        f"net.slice{slices[int(name.split('.')[1])]}.{name.removeprefix('features.')}": value
        for name, value in backbone.items()
        if name.startswith("features.")
    }
    whole |= {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), **lines}
    whole |= {name.replace("lin", "lins.", 1): value for name, value in lines.items()}
    save_file({name: value.clone() for name, value in whole.items()}, tmp_path / "w.safetensors")
    assert torch.equal(Lpips.from_files(tmp_path / "w.safetensors")(a, b), wanted)


def test_lpips_is_never_random(tmp_path):
    pictures = torch.zeros(1, 3, 40, 40)
    with pytest.raises(MissingAssetError, match="has no weights"):
        Lpips("vgg")(pictures, pictures)
    backbone, lines = _states("alex")
    del backbone["features.6.bias"]
    with pytest.raises(FileFormatError, match=r"missing: features\.6\.bias"):
        Lpips.from_states(backbone, lines)
    with pytest.raises(FileFormatError, match=r"lin1.*\(1, 128, 1, 1\), not \(1, 192, 1, 1\)"):
        Lpips.from_states(_states("alex")[0], _states("vgg")[1])
    lines["lin2.model.1.weight"] = torch.full((1, 384, 1, 1), torch.nan)
    with pytest.raises(FileFormatError, match="not all finite"):
        Lpips.from_states(_states("alex")[0], lines)
    with pytest.raises((MissingAssetError, InputError), match="There is no file"):
        Lpips.from_files(tmp_path / "no.pth")
    torch.save({"features.0.weight": os.system}, tmp_path / "evil.pth")
    with pytest.raises(FileFormatError):
        Lpips.from_files(tmp_path / "evil.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(FileFormatError, match="damaged or not safetensors"):
        Lpips.from_files(tmp_path / "cut.safetensors")


# --- optimiser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official():
    pytest.importorskip("transformers")
    from guava.model.config import official
    from guava.model.network import build_network, build_refiner
    from guava.model.official_keys import sized_template

    template = sized_template()
    with torch.device("meta"):
        return build_network(official(), template), build_refiner(official())


def test_groups_are_the_releases(official):
    groups = {g["name"]: g for g in parameter_groups(*official)}
    counts = {n: (len(g["params"]), sum(p.numel() for p in g["params"])) for n, g in groups.items()}
    assert counts == {"main": (334, 52_941_211), "slow": (36, 8_397_824), "uv": (258, 25_501_047)}
    assert {n: g["lr"] for n, g in groups.items()} == {"main": 1e-4, "slow": 1e-5, "uv": 1e-4}
    trainable = [p for module in official for p in module.parameters() if p.requires_grad]
    assert sum(len(g["params"]) for g in groups.values()) == len(trainable)
    assert len({id(p) for g in groups.values() for p in g["params"]}) == len(trainable)


def test_groups_agree_with_the_recorded_counts(official):
    folder = Path(os.environ.get("GUAVA_SHARED", Path(__file__).parents[2] / "shared"))
    record = folder / "reference" / "official-state-dict.json"
    if not record.is_file():
        pytest.skip("the record of the release's state is not here")
    wanted = json.loads(record.read_text())["counts"]["optimizer_groups"]
    found = [
        {"lr": g["lr"], "tensors": len(g["params"]), "parameters": sum(p.numel() for p in g["params"])}
        for g in parameter_groups(*official)
    ]
    assert found == wanted


class _Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        for part, layers in (
            ("template_decoder", ("feature_layers", "color_layers")),
            ("uv_styleunet", ("conv", "final_linear")),
        ):
            self.add_module(part, nn.ModuleDict({layer: nn.Linear(2, 2) for layer in layers}))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_schedule_and_optimiser():
    network = _Tiny()
    groups = parameter_groups(network)
    assert [(g["name"], len(g["params"])) for g in groups] == [("main", 2), ("slow", 2), ("uv", 4)]
    config = OptimConfig(decay_steps=100)
    optimizer = make_optimizer(network, config=config)
    assert optimizer.defaults["betas"] == (0.0, 0.99) and optimizer.defaults["weight_decay"] == 0
    schedule = linear_decay(optimizer, config)
    seen = {}
    for step in range(131):
        seen[step] = [g["lr"] for g in optimizer.param_groups]
        optimizer.step()
        schedule.step()
    assert seen[0] == pytest.approx([1e-4, 1e-5, 1e-4])
    assert seen[50] == pytest.approx([1e-4 * 0.515, 1e-5 * 0.515, 1e-4 * 0.515])
    assert seen[100] == pytest.approx([3e-6, 3e-7, 3e-6]) == seen[130]


def test_the_papers_schedule_keeps_the_rate_and_lets_the_mlps_fall():
    config = optim_config("paper", decay_steps=10)
    optimizer = make_optimizer(_Tiny(), config=config)
    schedule = linear_decay(optimizer, config)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1e-4, 1e-4, 1e-4])
    for _ in range(15):
        optimizer.step()
        schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1e-4, 1e-5, 1e-4])
    with pytest.raises(InputError, match="no preset 'lite'"):
        optim_config("lite")


def test_one_step_is_adam_without_momentum():
    network = nn.Linear(1, 1, bias=False)
    optimizer = make_optimizer(network)
    before = float(network.weight.detach())
    F.mse_loss(network(torch.ones(1, 1)), torch.full((1, 1), before + 3.0)).backward()
    gradient = float(network.weight.grad)
    optimizer.step()
    # First step: m / (1 - 0) = g; sqrt(v / (1 - 0.99)) = |g|.
    moved = float(network.weight.detach()) - before
    assert moved == pytest.approx(-1e-4 * gradient / abs(gradient), rel=1e-2)
