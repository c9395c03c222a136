"""DINOv2 ViT-B/14: where its weights come from, and the names that its tensors go by.

Three layouts of the same tensors are met: the "official" one of the DINOv2 repository and of the GUAVA
authors' checkpoint, with query, key and value in one matrix; that of transformers up to 4 and of the files on
its hub ("transformers4"); and that of transformers 5 ("transformers5"), which Guava's own files have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from guava.errors import FileFormatError

BACKBONE = "encoder.backbone."
"""Where the backbone sits in a network's state."""

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
