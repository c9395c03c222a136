"""DINOv2: names of its tensors in three layouts, and that weights are found or asked for, never made up."""

import os
import re

import pytest
import torch
from safetensors.torch import save_file

from guava.errors import FileFormatError, InputError, MissingAssetError
from guava.model.backbone import (
    HUB_FILES,
    HUB_NAME,
    TORCH_FILE,
    VARIABLE,
    find_backbone,
    load_backbone,
    module_layout,
    to_layout,
)

pytest.importorskip("transformers", reason="the image encoder needs the extra 'network'")

from guava.model.encoder import build_backbone  # noqa: E402


def backbone(channels=64, blocks=2, image_size=42, seed=0):
    """With random numbers everywhere, so that no part of the network is the identity."""
    model = build_backbone(channels, blocks, image_size)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2 / channels**0.25, generator=generator)
    return model


def vision_transformer(state, image, heads):
    """DINOv2 as formulas on its own repository's tensors -> every block's tokens after the final norm."""

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    batch, _, height, width = image.shape
    patches = image.reshape(batch, 3, height // 14, 14, width // 14, 14).permute(0, 2, 4, 1, 3, 5)
    weight = state["patch_embed.proj.weight"]
    x = patches.reshape(batch, -1, 3 * 14 * 14) @ weight.reshape(len(weight), -1).T
    x = torch.cat([state["cls_token"].expand(batch, -1, -1), x + state["patch_embed.proj.bias"]], 1)
    x = x + state["pos_embed"]
    outputs = []
    for i in range(1 + max(int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)", key)))):
        b = f"blocks.{i}"
        qkv = linear(norm(x, f"{b}.norm1"), f"{b}.attn.qkv")
        query, key, value = qkv.reshape(batch, x.shape[1], 3, heads, -1).permute(2, 0, 3, 1, 4)
        attention = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        mixed = (attention @ value).transpose(1, 2).reshape(x.shape)
        x = x + state[f"{b}.ls1.gamma"] * linear(mixed, f"{b}.attn.proj")
        hidden = linear(norm(x, f"{b}.norm2"), f"{b}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + state[f"{b}.ls2.gamma"] * linear(hidden, f"{b}.mlp.fc2")
        outputs.append(norm(x, "norm"))
    return outputs


def assert_same_function(model, image, heads):
    state = to_layout(model.state_dict(), "official")
    assert module_layout(state) == "official"
    with torch.no_grad():
        expected = vision_transformer({k: v.double() for k, v in state.items()}, image.double(), heads)
        model = model.double()
        states = model(image.double(), output_hidden_states=True).hidden_states
        for ours, theirs in zip(states[1:], expected, strict=True):
            assert theirs.std() > 0.05
            assert (model.layernorm(ours) - theirs).abs().max() < 1e-5


def test_exported_weights_compute_what_the_official_layout_means():
    assert_same_function(backbone(128, 3), torch.randn(2, 3, 42, 42), heads=2)


@pytest.mark.slow
def test_exported_weights_compute_what_the_official_layout_means_at_full_size():
    assert_same_function(backbone(768, 12, 518), torch.randn(1, 3, 518, 518), heads=12)


@pytest.mark.parametrize("other", ["official", "transformers4", "transformers5"])
def test_layouts_there_and_back(other):
    state = to_layout(backbone().state_dict(), "transformers5")
    there = to_layout(state, other)
    assert module_layout(there) == other
    back = to_layout(there, "transformers5")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())
    if other == "official":
        query, key, value = (state[f"encoder.layer.1.attention.{p}_proj.weight"] for p in "qkv")
        assert torch.equal(there["blocks.1.attn.qkv.weight"], torch.cat([query, key, value]))


def test_keys_that_no_layout_has_keep_their_names():
    state = to_layout(backbone().state_dict(), "official") | {"register_tokens": torch.zeros(1, 4, 64)}
    assert "register_tokens" in to_layout(state, "transformers5")
    state.pop("blocks.1.attn.qkv.weight")
    assert "encoder.layer.1.attention.q_proj.weight" not in to_layout(state, "transformers5")
    odd = to_layout(backbone().state_dict(), "transformers5")
    del odd["encoder.layer.0.attention.k_proj.bias"]
    assert "encoder.layer.0.attention.q_proj.bias" in to_layout(odd, "official")


def test_a_fused_matrix_that_is_not_three_is_refused():
    state = to_layout(backbone().state_dict(), "official")
    state["blocks.0.attn.qkv.weight"] = torch.zeros(64, 64)
    with pytest.raises(FileFormatError, match="three equal parts"):
        to_layout(state, "transformers5")
    state = to_layout(backbone().state_dict(), "transformers5")
    state["encoder.layer.0.attention.k_proj.bias"] = torch.zeros(3)
    with pytest.raises(FileFormatError, match="same shape"):
        to_layout(state, "official")


# --- where they come from ---


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """No weights anywhere."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("GUAVA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_absent_weights_are_asked_for(empty):
    model = backbone()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(MissingAssetError) as error:
        load_backbone(model)
    for way in (f"hf download {HUB_NAME}", TORCH_FILE, str(empty / "home" / "backbones"), VARIABLE):
        assert way in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_named_files_must_exist(empty, monkeypatch):
    with pytest.raises(InputError, match="nowhere.pth"):
        find_backbone(empty / "nowhere.pth")
    monkeypatch.setenv(VARIABLE, str(empty / "elsewhere.pth"))
    with pytest.raises(InputError, match=f"elsewhere.pth.*{VARIABLE}"):
        find_backbone()


@pytest.mark.parametrize("place", ["variable", "folder", "own", "own hub", "hub", "torch"])
def test_every_place_and_layout_is_read(empty, monkeypatch, place):
    source, target = backbone(seed=1), backbone(seed=2)
    official = to_layout(source.state_dict(), "official")
    hub = {
        key: value.contiguous() for key, value in to_layout(source.state_dict(), "transformers4").items()
    }
    argument = None
    if place in ("variable", "own", "torch"):
        path = {
            "variable": empty / "mine.pth",
            "own": empty / "home" / "backbones" / TORCH_FILE,
            "torch": empty / "torch" / "hub" / "checkpoints" / TORCH_FILE,
        }[place]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(official, path)
        if place == "variable":
            monkeypatch.setenv(VARIABLE, str(path))
    elif place == "hub":
        folder = empty / "hub" / f"models--{HUB_NAME.replace('/', '--')}"
        path = folder / "snapshots" / "abc" / HUB_FILES[0]
        path.parent.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        save_file({f"dinov2.{key}": value for key, value in hub.items()}, path)
    else:
        path = (empty if place == "folder" else empty / "home" / "backbones" / "dinov2-base") / HUB_FILES[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(hub, path)
        argument = path.parent if place == "folder" else None
    assert os.path.samefile(load_backbone(target, argument), path)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_a_network_that_ends_earlier_takes_the_first_blocks(empty):
    source, target = backbone(blocks=3), backbone(blocks=2, seed=1)
    torch.save(to_layout(source.state_dict(), "official"), empty / "deep.pth")
    load_backbone(target, empty / "deep.pth")
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


def test_another_network_is_refused(empty):
    target = backbone()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    wide = to_layout(backbone(384).state_dict(), "official")
    torch.save(wide, empty / "small.pth")
    with pytest.raises(FileFormatError, match="ViT-S/14"):
        load_backbone(target, empty / "small.pth")
    registers = to_layout(backbone().state_dict(), "official") | {"register_tokens": torch.zeros(1, 4, 64)}
    torch.save(registers, empty / "reg.pth")
    with pytest.raises(FileFormatError, match="register tokens"):
        load_backbone(target, empty / "reg.pth")
    torch.save({"weight": torch.zeros(3)}, empty / "other.pth")
    with pytest.raises(FileFormatError, match="no DINOv2"):
        load_backbone(target, empty / "other.pth")
    (empty / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(FileFormatError, match="damaged"):
        load_backbone(target, empty / "broken.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
