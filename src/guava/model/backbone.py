"""DINOv2 ViT-B/14: where its weights come from, and the names that its tensors go by.

Three layouts of the same tensors are met: the "official" one of the DINOv2 repository and of the GUAVA
authors' checkpoint, with query, key and value in one matrix; that of transformers up to 4 and of the files on
its hub ("transformers4"); and that of transformers 5 ("transformers5"), which Guava's own files have.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from guava.errors import FileFormatError, InputError, MissingAssetError
from guava.folders import user_folder
from guava.model.torch_file import read_torch_file

BACKBONE = "encoder.backbone."
"""Where the backbone sits in a network's state."""

VARIABLE = "GUAVA_DINOV2"
"""Environment variable that names the backbone's file."""

HUB_NAME = "facebook/dinov2-base"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
TORCH_FILE = "dinov2_vitb14_pretrain.pth"
TORCH_URL = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/{TORCH_FILE}"

Layout = Literal["official", "transformers4", "transformers5"]

_TOP = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "ls2.gamma": "layer_scale2.lambda1",
}
_OUTPUT = {"transformers4": "attention.output.dense", "transformers5": "attention.o_proj"}
_QKV = {
    "transformers4": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    "transformers5": tuple(f"attention.{part}_proj" for part in "qkv"),
}


def module_layout(state: Iterable[str]) -> Layout | None:
    """Which layout the keys of a backbone's state have; None if there are none, or of none
    of the three."""
    for key in state:
        if re.fullmatch(r"blocks\.\d+\.attn\.qkv\.weight", key):
            return "official"
        for layout, (query, *_) in _QKV.items():
            if re.fullmatch(rf"encoder\.layer\.\d+\.{re.escape(query)}\.weight", key):
                return layout
    return None


def key_table(layout: Layout, blocks: int) -> dict[str, tuple[str, ...]]:
    """Official key -> the key, or the three of query, key and value, that hold it in another layout."""
    names = {key: (key if layout == "official" else other,) for key, other in _TOP.items()}
    for i in range(blocks):
        a, b = f"blocks.{i}.", f"encoder.layer.{i}."
        for kind in ("weight", "bias"):
            qkv, proj = f"{a}attn.qkv.{kind}", f"{a}attn.proj.{kind}"
            if layout == "official":
                names |= {qkv: (qkv,), proj: (proj,)}
            else:
                names[qkv] = tuple(f"{b}{part}.{kind}" for part in _QKV[layout])
                names[proj] = (f"{b}{_OUTPUT[layout]}.{kind}",)
        for key, other in _BLOCK.items():
            names[a + key] = (a + key if layout == "official" else b + other,)
    return names


def to_layout(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The same tensors under another layout's names.

    Keys that no layout has stay as they are, so that whoever checks the result names them; so do the parts of
    a block whose query, key or value is missing. Splitting gives views; fusing copies.

    Args:
        state: A backbone's state in any of the three layouts, without prefix.
        layout: The one that is wanted.

    Raises:
        FileFormatError: Query, key and value of a block do not have the same shape.
    """
    source = module_layout(state)
    if source is None or source == layout:
        return dict(state)
    found = (re.match(r"(?:blocks|encoder\.layer)\.(\d+)\.", key) for key in state)
    blocks = 1 + max(int(match[1]) for match in found if match)
    have, want = key_table(source, blocks), key_table(layout, blocks)
    out: dict[str, Tensor] = {}
    used: set[str] = set()
    for key, old in have.items():
        if any(name not in state for name in old):
            continue
        used.update(old)
        values = [state[name] for name in old]
        new = want[key]
        if len(old) < len(new):
            if values[0].shape[0] % 3:
                raise FileFormatError(f"'{old[0]}' has {values[0].shape[0]} rows, not three equal parts.")
            values = list(values[0].chunk(3))
        elif len(old) > len(new):
            if len({value.shape for value in values}) > 1:
                raise FileFormatError(f"'{old[0]}', '{old[1]}' and '{old[2]}' do not have the same shape.")
            values = [torch.cat(values)]
        out.update(zip(new, values, strict=True))
    return out | {key: value for key, value in state.items() if key not in used}


# --- where its weights come from ---


def backbone_places() -> list[Path]:
    """Every place where the weights of DINOv2 ViT-B/14 are looked for, the first that exists counts: the file
    that ``GUAVA_DINOV2`` names, the user's folder, the hub's cache, torch hub's cache."""
    places = [Path(named).expanduser()] if (named := os.environ.get(VARIABLE)) else []
    own = user_folder() / "backbones"
    places += [own / TORCH_FILE, *(own / HUB_NAME.split("/")[1] / name for name in HUB_FILES)]
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:  # comes with transformers
        pass
    else:
        cached = (try_to_load_from_cache(HUB_NAME, name) for name in HUB_FILES)
        places += [Path(path) for path in cached if isinstance(path, str)]
    return [*places, Path(torch.hub.get_dir()) / "checkpoints" / TORCH_FILE]


def find_backbone(path: str | os.PathLike | None = None) -> Path:
    """The file with the backbone's weights; nothing is downloaded.

    Args:
        path: The file, or transformers' folder of it; otherwise the first of :func:`backbone_places`.

    Raises:
        InputError: ``path``, or the file that ``GUAVA_DINOV2`` names, does not exist.
        MissingAssetError: It is nowhere; the hint names the ways to get it.
    """
    named = path if path is not None else os.environ.get(VARIABLE)
    if named:
        found = Path(named).expanduser()
        if found.is_dir():
            found = next((found / name for name in HUB_FILES if (found / name).is_file()), found)
        if not found.is_file():
            whose = "" if path is not None else f" (environment variable {VARIABLE})"
            raise InputError(f"There is no file '{found}'{whose} with the weights of DINOv2 ViT-B/14.")
        return found
    for place in backbone_places():
        if place.is_file():
            return place
    raise MissingAssetError(
        "The weights of the image encoder DINOv2 ViT-B/14 (346 MB, Apache-2.0) are not here, and Guava "
        "downloads nothing by itself.",
        f"Get them with 'hf download {HUB_NAME} model.safetensors', or save {TORCH_URL} in "
        f"'{user_folder() / 'backbones'}', or name your file with the environment variable {VARIABLE}.",
    )


def read_backbone(path: str | os.PathLike) -> dict[str, Tensor]:
    """Tensors of a backbone's file in the layout "transformers5".

    Args:
        path: DINOv2's own ``.pth``, or transformers' ``.safetensors`` or ``pytorch_model.bin``.

    Raises:
        InputError: There is no such file.
        FileFormatError: It is damaged, holds code, or holds no DINOv2.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise InputError(f"There is no file '{path}'.")
        try:
            state = load_file(path)
        except (SafetensorError, ValueError, OSError) as error:
            raise FileFormatError(f"'{path}' is damaged or no safetensors file ({error}).") from error
    else:
        state = read_torch_file(path, what="file of the backbone")
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FileFormatError(f"'{path}' does not hold a table of tensors.")
    state = {key.removeprefix("dinov2."): value.float() for key, value in state.items()}
    if module_layout(state) is None:
        raise FileFormatError(f"'{path}' holds no DINOv2: none of its keys is one of its blocks'.")
    return to_layout(state, "transformers5")


def load_backbone(backbone: nn.Module, path: str | os.PathLike | None = None) -> Path:
    """Put DINOv2's published weights into ``network.encoder.backbone``.

    Args:
        backbone: transformers' ``Dinov2Model``; one with fewer blocks than the file's takes the first ones.
        path: See :func:`find_backbone`.

    Returns:
        The file they came from.

    Raises:
        InputError: The named file does not exist.
        MissingAssetError: The weights are nowhere; the hint names the ways to get them.
        FileFormatError: The file is damaged, or of another network than ViT-B/14; nothing was loaded.
    """
    found = find_backbone(path)
    expected = backbone.state_dict()
    layout = module_layout(expected) or "transformers5"
    state = to_layout(read_backbone(found), layout)
    blocks = {key.split(".")[2] for key in expected if key.startswith("encoder.layer.")}
    state = {
        key: value
        for key, value in state.items()
        if not key.startswith("encoder.layer.") or key.split(".")[2] in blocks
    }
    wrong = [key for key in expected if key not in state or state[key].shape != expected[key].shape]
    more = [key for key in state if key not in expected]
    if wrong or more:
        widths = {384: "ViT-S/14", 768: "ViT-B/14", 1024: "ViT-L/14", 1536: "ViT-g/14"}
        weight = state.get("layernorm.weight")
        width = 0 if weight is None else len(weight)
        what = f" It is as wide as {widths[width]}." if width in widths else ""
        if any("register" in key for key in more):
            what += " It has register tokens, which DINOv2 without 'reg' in its name does not have."
        raise FileFormatError(
            f"'{found}' does not hold the backbone that is needed: {len(wrong)} of {len(expected)} tensors "
            f"are missing or of another shape{_first(wrong)}, {len(more)} are unknown{_first(more)}.{what}",
            f"DINOv2 ViT-B/14 is {HUB_NAME} on the hub, or {TORCH_URL}",
        )
    backbone.load_state_dict(state, strict=True)
    return found


def _first(keys: list[str]) -> str:
    return f" ({keys[0]}{', ...' if len(keys) > 1 else ''})" if keys else ""
