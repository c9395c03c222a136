"""How much work a network is, counted instead of timed."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn


def count_parameters(*modules: nn.Module) -> int:
    """Trainable numbers in all modules together."""
    return sum(p.numel() for module in modules for p in module.parameters())


def count_macs(module: nn.Module, *inputs: object, **named: object) -> dict[str, int]:
    """Multiply-accumulates of one call, by top-level child and in "total".

    Convolutions and linear layers count; activations, resampling and normalisation (a few per cent) do not.
    Works on the meta device, where nothing is computed.
    """
    counts: dict[str, int] = defaultdict(int)
    names = {id(m): name for name, m in module.named_modules()}

    def count(layer: nn.Module, _arguments: tuple, output: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            each = layer.weight[0].numel()
        else:
            each = layer.weight.shape[1]
        work = output.numel() * each
        counts[names[id(layer)].split(".")[0] or "self"] += work
        counts["total"] += work

    counted = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [m.register_forward_hook(count) for m in counted]
    try:
        with torch.no_grad():
            module(*inputs, **named)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(counts)
