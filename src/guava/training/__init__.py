"""Training: the losses of Sec. 3.4, LPIPS, and the optimiser's groups and schedule."""

from guava.training.losses import (
    GuavaLoss,
    LossConfig,
    LossTerms,
    crop_parts,
    image_l1,
    loss_config,
    position_loss,
    scale_loss,
)
from guava.training.lpips import Lpips
from guava.training.optim import (
    OptimConfig,
    linear_decay,
    make_optimizer,
    optim_config,
    parameter_groups,
)

__all__ = [
    "GuavaLoss",
    "LossConfig",
    "LossTerms",
    "Lpips",
    "OptimConfig",
    "crop_parts",
    "image_l1",
    "linear_decay",
    "loss_config",
    "make_optimizer",
    "optim_config",
    "parameter_groups",
    "position_loss",
    "scale_loss",
]
