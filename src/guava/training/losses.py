"""The training losses (paper Sec. 3.4, Eq. 4 and 5), as the text has them and as the release runs them.

Tensor layouts, everywhere here: pictures (B, 3, H, W) in [0, 1]; masks (B, 1, H, W) or (B, 3, H, W) in
[0, 1]; boxes (B, 4) int64 pixels as (left, right, top, bottom) with right and bottom exclusive, empty where
right <= left or bottom <= top; part boxes (B, 3, 4) for head, left hand, right hand. docs/training-losses.md
has the table of readings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guava.errors import InputError

if TYPE_CHECKING:  # guava.model offers these losses too, so neither may import the other
    from guava.model.outputs import UVGaussians

Regulariser = Literal["hinge", "floor"]


@dataclass(frozen=True)
class LossConfig:
    """Weights and readings of Eq. 4 and 5. The defaults are those of the authors' release.

    Attributes:
        l1: lambda_1.
        perceptual: lambda_lpips at the start.
        perceptual_late: lambda_lpips once ``iteration > perceptual_switch``.
        perceptual_switch: See there.
        head: lambda_f, of the head crop.
        hand: lambda_h, of each hand crop.
        position: lambda_p.
        scale: lambda_s.
        position_threshold: eps_pos, in units of the parent triangle's scale.
        scale_threshold: eps_sca, likewise.
        crop_size: Side that crops are resized to, bilinear without antialiasing.
        coarse_crops: [P] Crop terms for the coarse picture too; Eq. 4 has them for the refined one only.
        regulariser: [P] "hinge": mean of max(norm(offset) - eps, 0), and mean of norm(max(scale - eps, 0)).
            "floor": the formulas as printed, mean of norm(max(|x|, eps)) for both. Within the thresholds both
            are constant; beyond them their gradients differ.
        mask_until: For ``iteration < mask_until`` the refined picture is multiplied by the target's mask
            before all its terms. The paper does not mention it.
        input_range: [Q] How pictures enter LPIPS: "unit" as they are, "signed" as LPIPS was trained.
        reduction: [Q] LPIPS over the batch: "sum" makes its weight grow with the batch, "mean" does not.
    """

    l1: float = 1.0
    perceptual: float = 0.025
    perceptual_late: float = 0.05
    perceptual_switch: int = 10_000
    head: float = 0.25
    hand: float = 0.1
    position: float = 0.01
    scale: float = 1.0
    position_threshold: float = 3.0
    scale_threshold: float = 0.6
    crop_size: int = 256
    coarse_crops: bool = True
    regulariser: Regulariser = "hinge"
    mask_until: int = 1000
    input_range: Literal["unit", "signed"] = "unit"
    reduction: Literal["sum", "mean"] = "sum"


def loss_config(preset: str = "official", **changes: object) -> LossConfig:
    """The readings of "official" (the release) or "paper" (its text), with fields replaced.

    Raises:
        InputError: There is no such preset.
    """
    if preset not in ("official", "paper"):
        raise InputError(f"There is no preset '{preset}' of the losses.", "Choose official or paper.")
    config = LossConfig()
    if preset == "paper":
        config = LossConfig(
            coarse_crops=False, regulariser="floor", mask_until=0, input_range="signed", reduction="mean"
        )
    return replace(config, **changes)


@dataclass(frozen=True)
class LossTerms:
    """What a training step minimises.

    Attributes:
        total: Scalar, the sum of ``terms`` (Eq. 5).
        terms: Weighted scalars by name, e.g. "refined.l1", "coarse.head.perceptual", "position".
    """

    total: Tensor
    terms: dict[str, Tensor]


def image_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference over every element (L_1 of Eq. 4)."""
    return (prediction - target).abs().mean()


def position_loss(local_offsets: Tensor, threshold: float = 3.0, form: Regulariser = "hinge") -> Tensor:
    """L_pos of Sec. 3.4 over offsets (..., 3) in units of the parent triangle's scale: a scalar.

    ``form`` is :attr:`LossConfig.regulariser`. With "floor", absolute components are compared: as printed, an
    offset in a negative direction would be free, which is not what the sentence around the formula asks.
    """
    if form == "hinge":
        return F.relu(torch.linalg.vector_norm(local_offsets, dim=-1) - threshold).mean()
    return torch.linalg.vector_norm(local_offsets.abs().clamp(min=threshold), dim=-1).mean()


def scale_loss(scales: Tensor, threshold: float = 0.6, form: Regulariser = "hinge") -> Tensor:
    """L_sca of Sec. 3.4 over scales (..., 3) > 0 in units of the parent triangle's scale: a scalar."""
    if form == "hinge":
        return torch.linalg.vector_norm(F.relu(scales - threshold), dim=-1).mean()
    return torch.linalg.vector_norm(scales.clamp(min=threshold), dim=-1).mean()


def crop_parts(images: Tensor, boxes: Tensor, size: int = 256) -> Tensor:
    """Cut a box out of each picture and resize it (bilinear, half-pixel centres, no antialiasing).

    Args:
        images: (B, C, H, W).
        boxes: (B, 4) whole pixels: left, right, top, bottom; right and bottom are exclusive.
        size: Side of the crops.

    Returns:
        (K, C, size, size), K <= B: pictures with an empty box are left out, so K may be 0.

    Raises:
        ValueError: Boxes that are not integers.
    """
    if boxes.is_floating_point():
        raise ValueError(f"Boxes are whole pixels (an integer tensor), not {boxes.dtype}.")
    crops = []
    for image, (left, right, top, bottom) in zip(images, boxes.tolist(), strict=True):
        cut = image[None, :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        if cut.shape[-1] and cut.shape[-2]:
            crops.append(F.interpolate(cut, size=(size, size), mode="bilinear", align_corners=False))
    return torch.cat(crops) if crops else images.new_zeros(0, images.shape[1], size, size)


class GuavaLoss(nn.Module):
    """The total loss of Eq. 5.

    Args:
        perceptual: D(prediction, target) -> scalar, normally :class:`guava.training.Lpips` built with the
            config's ``input_range`` and ``reduction``. None leaves the perceptual terms out, which must be
            said by setting ``perceptual`` and ``perceptual_late`` to 0.
        config: Weights and readings.

    Raises:
        InputError: Perceptual weights without a perceptual distance, or one that was built with other
            readings than the config's.
    """

    def __init__(
        self, perceptual: Callable[[Tensor, Tensor], Tensor] | None, config: LossConfig | None = None
    ):
        super().__init__()
        self.config = config = config or LossConfig()
        if perceptual is None and (config.perceptual or config.perceptual_late):
            raise InputError(
                "The loss has a perceptual term but no perceptual distance.",
                "Give an Lpips with weights, or set its weights to 0.",
            )
        for name in ("input_range", "reduction"):
            given = getattr(perceptual, name, None)
            if given is not None and given != getattr(config, name):
                raise InputError(
                    f"The perceptual distance has {name} '{given}', the loss "
                    f"'{getattr(config, name)}'."
                )
        self.perceptual = perceptual

    def perceptual_weight(self, iteration: int) -> float:
        """lambda_lpips at an iteration (B.1)."""
        config = self.config
        return config.perceptual_late if iteration > config.perceptual_switch else config.perceptual

    def forward(
        self,
        refined: Tensor | None,
        coarse: Tensor,
        target: Tensor,
        mask: Tensor,
        boxes: Tensor,
        uv: Sequence[UVGaussians],
        iteration: int,
    ) -> LossTerms:
        """The weighted terms of one step.

        Args:
            refined: I_r (B, 3, H, W); None in the ablation without refiner.
            coarse: I_c (B, 3, H, W), the first three splatted channels.
            target: (B, 3, H, W), not yet masked: I_t is ``target * mask``.
            mask: (B, 1 or 3, H, W).
            boxes: (B, 3, 4) head, left hand, right hand. A part that no picture of the batch shows adds
                nothing (the release fails there).
            uv: The predicted UV layers, for L_pos and L_sca; empty adds neither.
            iteration: Counted from 0.
        """
        config = self.config
        truth = target * mask
        if refined is not None and iteration < config.mask_until:
            refined = refined * mask
        weight = self.perceptual_weight(iteration)
        terms: dict[str, Tensor] = {}

        def compare(name: str, prediction: Tensor, wanted: Tensor, factor: float) -> None:
            terms[f"{name}.l1"] = factor * config.l1 * image_l1(prediction, wanted)
            if weight:
                terms[f"{name}.perceptual"] = factor * weight * self.perceptual(prediction, wanted)

        for name, picture in (("refined", refined), ("coarse", coarse)):
            if picture is None:
                continue
            compare(name, picture, truth, 1.0)
            if name == "coarse" and not config.coarse_crops:
                continue
            parts = (("head", config.head), ("left_hand", config.hand), ("right_hand", config.hand))
            for row, (part, factor) in enumerate(parts):
                wanted = crop_parts(truth, boxes[:, row], config.crop_size)
                if factor and len(wanted):
                    crops = crop_parts(picture, boxes[:, row], config.crop_size)
                    compare(f"{name}.{part}", crops, wanted, factor)
        if uv:
            offsets = torch.cat([layer.local_offsets for layer in uv], 1)
            scales = torch.cat([layer.scales for layer in uv], 1)
            form = config.regulariser
            terms["position"] = config.position * position_loss(offsets, config.position_threshold, form)
            terms["scale"] = config.scale * scale_loss(scales, config.scale_threshold, form)
        return LossTerms(torch.stack(list(terms.values())).sum(), terms)
