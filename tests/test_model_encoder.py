"""The image encoder against formulas written out here: the backbone's tokens, the neck, the ID embedding."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from guava.errors import MissingDependencyError
from guava.model.config import EncoderConfig
from guava.model.encoder import EncoderNeck, FusionBlock, ImageEncoder, build_backbone, normalize_image

OFFICIAL = json.loads((Path(__file__).parent / "data" / "official_blocks.json").read_text())
TINY = EncoderConfig(
    image_size=56, map_size=24, global_channels=128, width=4, neck_channels=(3, 4, 5, 6), uv_channels=2,
    template_channels=3, pyramid=(0, 1, 2, 2, 3),
)  # fmt: skip


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _shaken(module, amount=0.3, seed=1):
    generator = _seeded(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return module


def _bilinear(x, size, aligned=False):
    """Bilinear resize by explicit weight matrices, one per axis."""

    def matrix(n, m):
        out = torch.zeros(m, n, dtype=x.dtype)
        for i in range(m):
            place = i * (n - 1) / (m - 1) if aligned else max((i + 0.5) * n / m - 0.5, 0)
            low = min(int(place), n - 1)
            high = min(low + 1, n - 1)
            out[i, low] += 1 - (place - low)
            out[i, high] += place - low
        return out

    return torch.einsum("ih,jw,bchw->bcij", matrix(x.shape[2], size[0]), matrix(x.shape[3], size[1]), x)


def _antialiased(x, size):
    """Downscaling by a triangle as wide as the ratio asks for, its weights summing to 1."""

    def matrix(n, m):
        out, ratio = torch.zeros(m, n, dtype=x.dtype), max(n / m, 1)
        for i in range(m):
            centre = (i + 0.5) * n / m
            for j in range(n):
                out[i, j] = max(0, 1 - abs(j + 0.5 - centre) / ratio)
        return out / out.sum(1, keepdim=True)

    return torch.einsum("ih,jw,bchw->bcij", matrix(x.shape[2], size[0]), matrix(x.shape[3], size[1]), x)


def _neck_by_formulas(neck, tokens, image):
    def conv(layer, x, pad=1, stride=1):
        return F.conv2d(x, layer.weight, layer.bias, stride=stride, padding=pad)

    def unit(block, x):
        return x + conv(block.conv2, conv(block.conv1, x.clamp(min=0)).clamp(min=0))

    low, *stages = tokens
    pyramid = []
    for i in range(4):
        x = conv(neck.projects[i], stages[i], pad=0)
        layer = neck.resize_layers[i]
        if i in (0, 1):
            k = (4, 2)[i]  # kernel = stride: every token paints its own k x k square
            x = torch.einsum("bihw,iokl->bohkwl", x, layer.weight).reshape(
                x.shape[0], layer.weight.shape[1], x.shape[2] * k, x.shape[3] * k
            ) + layer.bias[:, None, None]
        elif i == 3:
            x = conv(layer, x, stride=2)
        picture = _antialiased(image, x.shape[2:])
        pyramid.append(conv(neck.layer_rn[i], torch.cat([picture, x], 1)))
    side = stages[0].shape[-1]
    x = None
    for block, stage, goal in zip(neck.refinenet, pyramid[::-1], (1, 2, 4, 8), strict=True):
        x = stage if x is None else x + unit(block.resConfUnit1, stage)
        x = conv(block.out_conv, _bilinear(unit(block.resConfUnit2, x), (goal * side,) * 2), pad=0)
    size = (neck.map_size, neck.map_size)
    picture = torch.cat([_bilinear(x, size), _bilinear(image, size)], 1)
    low = conv(neck.project_l[1], _bilinear(low, (2 * side, 2 * side), aligned=True))
    low = conv(neck.project_l[3], _bilinear(low, (8 * side, 8 * side), aligned=True))
    hidden = conv(neck.fuse_l[0], torch.cat([picture, _bilinear(low, size)], 1))
    hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    h = conv(neck.fuse_l[2], hidden) + conv(neck.skip_l, picture)
    return conv(neck.output_conv, h), conv(neck.output_conv_2, h)


def _tiny_neck():
    torch.manual_seed(2)
    return _shaken(EncoderNeck(6, 4, (3, 4, 5, 6), 40, 2, 3).double(), 0.1)


def _tokens(side=5, batch=2, seed=3):
    generator = _seeded(seed)
    return [torch.randn(batch, 6, side, side, generator=generator, dtype=torch.float64) for _ in range(5)]


def test_neck_is_its_formulas():
    neck, tokens = _tiny_neck(), _tokens()
    image = torch.randn(2, 3, 70, 70, generator=_seeded(4), dtype=torch.float64)
    expected = _neck_by_formulas(neck, tokens, image)
    for ours, theirs in zip(neck(tokens, image), expected, strict=True):
        assert theirs.std() > 1e-3
        assert torch.allclose(ours, theirs, atol=1e-9)


def test_neck_has_the_releases_keys_and_sizes():
    with torch.device("meta"):
        neck = EncoderNeck()
        f_map1, f_map2 = neck([torch.rand(1, 768, 37, 37) for _ in range(5)], torch.rand(1, 3, 518, 518))
    assert {k: list(v.shape) for k, v in neck.state_dict().items()} == OFFICIAL["EncoderNeck"]
    assert sum(p.numel() for p in neck.parameters()) == 16_623_648
    assert f_map1.shape == (1, 32, 512, 512) and f_map2.shape == (1, 128, 512, 512)


def test_the_coarsest_level_never_uses_its_first_unit_and_all_else_learns():
    neck, tokens = _tiny_neck(), _tokens()
    a, b = neck(tokens, torch.randn(2, 3, 70, 70, generator=_seeded(), dtype=torch.float64))
    (a.square().sum() + b.square().sum()).backward()
    idle = {name for name, p in neck.named_parameters() if p.grad is None}
    unused = "refinenet.0.resConfUnit1."
    assert idle == {name for name, _ in neck.named_parameters() if name.startswith(unused)}


def test_no_gradient_goes_to_the_picture_and_it_goes_to_the_tokens():
    neck, tokens = _tiny_neck(), _tokens()
    image = torch.randn(2, 3, 70, 70, dtype=torch.float64, requires_grad=True)
    tokens = [t.requires_grad_() for t in tokens]
    sum(m.sum() for m in neck(tokens, image)).backward()
    assert image.grad is None
    assert all(t.grad.abs().sum() > 0 for t in tokens)


def test_fusion_block_gradients():
    block = FusionBlock(2).double()
    x, finer = (torch.randn(1, 2, 3, 3, generator=_seeded(i), dtype=torch.float64) for i in range(2))
    assert torch.autograd.gradcheck(
        lambda a, b: block(a, b, size=(5, 6)), (x.requires_grad_(), finer.requires_grad_())
    )


# --- backbone and tokens ------------------------------------------------------------------------------------


def _vit_by_formulas(state, image, blocks, heads):
    """Every block's output (B, 1 + N, C), from weights under the original DINOv2 names' meaning."""

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[name + ".weight"] + state[name + ".bias"]

    def linear(x, name):
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    batch, _, height, width = image.shape
    patches = image.unfold(2, 14, 14).unfold(3, 14, 14)  # B, 3, h, w, 14, 14
    weight = state["embeddings.patch_embeddings.projection.weight"]
    x = torch.einsum("bihwkl,oikl->bhwo", patches, weight).flatten(1, 2)
    x = x + state["embeddings.patch_embeddings.projection.bias"]
    x = torch.cat([state["embeddings.cls_token"].expand(batch, -1, -1), x], 1)
    x = x + state["embeddings.position_embeddings"]
    outputs = []
    for i in range(blocks):
        block = f"encoder.layer.{i}."
        y = norm(x, block + "norm1")
        size = y.shape[-1] // heads
        q, k, v = (linear(y, f"{block}attention.{p}_proj") for p in "qkv")
        attended = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            weights = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)).softmax(-1)
            attended.append(weights @ v[..., part])
        y = linear(torch.cat(attended, -1), block + "attention.o_proj")
        x = x + state[block + "layer_scale1.lambda1"] * y
        y = linear(norm(x, block + "norm2"), block + "mlp.fc1")
        y = linear(y * 0.5 * (1 + torch.erf(y / math.sqrt(2))), block + "mlp.fc2")
        x = x + state[block + "layer_scale2.lambda1"] * y
        outputs.append(norm(x, "layernorm"))
    return outputs


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    return _shaken(ImageEncoder(TINY), 0.05)


def _layout(state):
    """transformers 4 names the attention's parts differently."""
    old = {
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
    }
    out = {}
    for key, value in state.items():
        for a, b in old.items():
            key = key.replace(a, b)
        out[key] = value.double()
    return out


def test_tokens_are_those_of_a_vision_transformer_by_its_formulas(encoder):
    image = torch.rand(2, 3, 56, 56, generator=_seeded(5))
    with torch.no_grad():
        maps, class_token, first_patch = encoder.tokens(normalize_image(image))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalized = (image - mean.reshape(1, 3, 1, 1)) / std.reshape(1, 3, 1, 1)
    outputs = _vit_by_formulas(_layout(encoder.backbone.state_dict()), normalized.double(), 4, 2)
    assert outputs[0].std() > 0.1
    for tokens, block in zip(maps, TINY.pyramid, strict=True):
        for row in range(4):
            for column in range(4):  # row-major, the class token left out
                expected = outputs[block][:, 1 + 4 * row + column]
                assert torch.allclose(tokens[:, :, row, column].double(), expected, atol=1e-4)
    assert torch.allclose(class_token.double(), outputs[3][:, 0], atol=1e-4)
    assert torch.allclose(first_patch.double(), outputs[3][:, 1], atol=1e-4)


def test_the_id_embedding_is_the_top_left_patch_or_the_class_token(encoder):
    image = torch.rand(2, 3, 56, 56, generator=_seeded(6))
    with torch.no_grad():
        maps, class_token, _ = encoder.tokens(normalize_image(image))
        f_map1, f_map2, f_id = encoder(image)
        assert torch.equal(f_id, maps[4][:, :, 0, 0])
        encoder.config = replace(TINY, global_token="class")
        assert torch.equal(encoder(image)[2], class_token)
        encoder.config = TINY
        for ours, theirs in zip((f_map1, f_map2), encoder.neck(maps, normalize_image(image)), strict=True):
            assert torch.equal(ours, theirs)
    assert f_map1.shape == (2, 2, 24, 24) and f_map2.shape == (2, 3, 24, 24)


def test_a_sample_does_not_depend_on_its_batch(encoder):
    image = torch.rand(3, 3, 56, 56, generator=_seeded(7))
    with torch.no_grad():
        together = encoder(image)
        for i in range(3):
            for whole, alone in zip(together, encoder(image[i : i + 1]), strict=True):
                assert torch.allclose(whole[i : i + 1], alone, atol=1e-4)


def test_the_backbone_is_frozen_and_the_neck_is_not(encoder):
    assert not any(p.requires_grad for p in encoder.backbone.parameters())
    assert all(p.requires_grad for p in encoder.neck.parameters())


def test_other_multiples_of_a_patch_work_and_nothing_else(encoder):
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 70, 70))[0].shape == (1, 2, 24, 24)
        with pytest.raises(ValueError, match="multiples of 14"):
            encoder(torch.rand(1, 3, 60, 60))
    with pytest.raises(ValueError, match="multiple of 14"):
        ImageEncoder(replace(TINY, image_size=512))
    with pytest.raises(ValueError, match="multiple of 64"):
        build_backbone(channels=100)
    with pytest.raises(ValueError, match="mean"):
        ImageEncoder(replace(TINY, global_token="mean"))
    with pytest.raises(ValueError, match="compact"):
        ImageEncoder(EncoderConfig(kind="compact"))


def test_silhouettes_enter_beside_the_picture(encoder):
    image, shapes = torch.rand(1, 3, 56, 56), torch.rand(1, 2, 56, 56)
    with pytest.raises(ValueError, match="silhouette"):
        encoder(image, shapes)
    torch.manual_seed(1)
    seeing = ImageEncoder(replace(TINY, silhouette=True))
    assert seeing.neck.skip_l.weight.shape[1] == 4 + 5
    with torch.no_grad():
        assert not torch.allclose(seeing(image, shapes)[0], seeing(image, 1 - shapes)[0], atol=1e-4)
    with pytest.raises(ValueError, match="silhouette"):
        seeing(image)


def test_the_default_is_vit_b_14_at_518():
    pytest.importorskip("transformers")
    with torch.device("meta"):
        encoder = ImageEncoder(EncoderConfig())
        f_map1, f_map2, f_id = encoder(torch.rand(1, 3, 518, 518))
    assert (f_map1.shape, f_map2.shape, f_id.shape) == ((1, 32, 512, 512), (1, 128, 512, 512), (1, 768))
    config = encoder.backbone.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    # Counted by hand: 12 blocks, patch embedding, class and mask token, positions, final norm.
    block = 2 * 2 * 768 + 768 * 2304 + 2304 + 768 * 768 + 768 + 2 * 768 + 2 * 768 * 3072 + 3072 + 768
    expected = 12 * block + 768 * 3 * 14 * 14 + 768 + 2 * 768 + 1370 * 768 + 2 * 768
    assert sum(p.numel() for p in encoder.backbone.parameters()) == expected


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"guava-avatar\[network\]"):
        ImageEncoder(TINY)


def test_neck_names_what_it_takes():
    neck = EncoderNeck(token_channels=4, width=4, stage_channels=(4, 4, 4, 4), map_size=8)
    with pytest.raises(ValueError, match=r"five \(B, C, h, w\) maps"):
        neck([torch.zeros(1, 4, 2, 2)] * 4, torch.zeros(1, 3, 28, 28))
    with pytest.raises(ValueError, match=r"\(1, 4, 4\)"):
        neck([torch.zeros(1, 4, 4)] * 5, torch.zeros(1, 3, 28, 28))
