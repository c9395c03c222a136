"""The optimiser's groups and schedule, as the authors' release trains (official facts; paper B.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from guava.errors import InputError

_SLOW = ("style_mlp", "final_linear")  # of both StyleUNets
_UV = "network.uv_styleunet."
_TEMPLATE, _TRUNK = "network.template_decoder.", "network.template_decoder.feature_layers."


@dataclass(frozen=True)
class OptimConfig:
    """Adam and its schedule; the defaults are those of the authors' release.

    Attributes:
        learning_rate: Of the groups "main" and "uv".
        slow_learning_rate: Of the group "slow".
        betas: Of Adam.
        eps: Of Adam.
        final_factor: What the linear schedule of "main" and "uv" ends at, as a share of their rate.
        slow_final_factor: The same for "slow". [P] See :func:`optim_config`.
        decay_steps: Steps until then; rates stay there afterwards.
    """

    learning_rate: float = 1e-4
    slow_learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.0, 0.99)
    eps: float = 1e-8
    final_factor: float = 0.03
    slow_final_factor: float = 0.03
    decay_steps: int = 200_000


def optim_config(preset: str = "official", **changes: object) -> OptimConfig:
    """The readings of "official" (the release) or "paper" (its text), with fields replaced.

    [P] The release trains the style networks at 1e-5 and lets every group decay to 0.03 of its rate. The
    paper (B.1) has a fixed rate of 1e-4, while that of "certain MLPs" decays linearly to 1e-5.

    Raises:
        InputError: There is no such preset.
    """
    if preset not in ("official", "paper"):
        raise InputError(f"There is no preset '{preset}' of the optimiser.", "Choose official or paper.")
    config = OptimConfig()
    if preset == "paper":
        config = OptimConfig(slow_learning_rate=1e-4, final_factor=1.0, slow_final_factor=0.1)
    return replace(config, **changes)


def _trainable(network: nn.Module, refiner: nn.Module | None) -> Iterator[tuple[str, nn.Parameter]]:
    for prefix, module in (("network", network), ("refiner", refiner)):
        if module is not None:
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    yield f"{prefix}.{name}", parameter


def parameter_groups(
    network: nn.Module, refiner: nn.Module | None = None, config: OptimConfig | None = None
) -> list[dict[str, Any]]:
    """The release's three groups of trainable parameters, for ``torch.optim``.

    * "main": everything that is in no other group.
    * "slow": the style networks of both StyleUNets (names with ``style_mlp`` or ``final_linear``).
    * "uv": the rest of the UV StyleUNet and the four heads of the template decoder. (It was meant to hold the
      UV decoder too, which a misspelt name keeps in "main"; both have the same rate.)

    Parameters that do not require gradients, such as DINOv2's, are in none. A group that would be empty is
    left out.

    Args:
        network: As ``guava.model.build_network`` makes it.
        refiner: As ``guava.model.build_refiner`` makes it; None in the ablation without one.
        config: Learning rates.

    Returns:
        Dictionaries with "name", "params" and "lr".
    """
    config = config or OptimConfig()
    rates = {"main": config.learning_rate, "slow": config.slow_learning_rate, "uv": config.learning_rate}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in _trainable(network, refiner):
        if any(part in name for part in _SLOW):
            group = "slow"
        elif name.startswith(_UV) or (name.startswith(_TEMPLATE) and not name.startswith(_TRUNK)):
            group = "uv"
        else:
            group = "main"
        members[group].append(parameter)
    return [{"name": n, "params": members[n], "lr": rate} for n, rate in rates.items() if members[n]]


def make_optimizer(
    network: nn.Module, refiner: nn.Module | None = None, config: OptimConfig | None = None
) -> torch.optim.Adam:
    """Adam over :func:`parameter_groups`, without weight decay."""
    config = config or OptimConfig()
    groups = parameter_groups(network, refiner, config)
    return torch.optim.Adam(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)


def linear_decay(
    optimizer: torch.optim.Optimizer, config: OptimConfig | None = None
) -> torch.optim.lr_scheduler.LRScheduler:
    """Every group from its rate to its final factor of it, linearly over ``decay_steps``, then constant.

    Args:
        optimizer: Of :func:`make_optimizer`.
        config: With the factors.

    Returns:
        A scheduler; call ``step()`` on it once after each optimiser step.
    """
    config = config or OptimConfig()

    def schedule(final: float) -> Callable[[int], float]:
        return lambda step: 1.0 + min(step / config.decay_steps, 1.0) * (final - 1.0)

    finals = {"slow": config.slow_final_factor}
    factors = [schedule(finals.get(g.get("name"), config.final_factor)) for g in optimizer.param_groups]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
