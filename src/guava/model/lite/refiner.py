"""The compact refiner (Sec. 3.3): corrects the coarse picture from all channels, at 2 to 3.5 GMAC."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guava.errors import InputError
from guava.model.config import GuavaConfig
from guava.model.lite.layers import ResidualBlock, ScaledConv, upsample


class _Bounds(torch.autograd.Function):
    """Clamp to [0, 1] whose gradient still passes outside where it points back inside."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # Descent moves against the gradient.
        stuck = ((x < 0) & (gradient > 0)) | ((x > 1) & (gradient < 0))
        return gradient.masked_fill(stuck, 0)


class LiteRefiner(nn.Module):
    """Features and alpha -> the final picture. The coarse RGB is the answer until training changes it.

    Args:
        channels: Feature channels; the first three are the coarse RGB.
        width: Channels at a quarter of the picture's size.
        size: Side of the pictures that it is trained on, and that an animation gives it.
    """

    def __init__(self, channels: int = 32, width: int = 64, size: int = 512):
        super().__init__()
        self.size = size
        half = 3 * width // 4
        self.squeeze = ScaledConv(4 * (channels + 1), half, 1)
        self.down = ScaledConv(half, width, 3, 2)
        self.block = ResidualBlock(width)
        self.up = ScaledConv(width, half, 1)
        self.join = ScaledConv(half, half // 2)
        self.last = ScaledConv(half // 2, 12)
        nn.init.zeros_(self.last.weight)
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        features: Tensor,
        alpha: Tensor,
        *,
        noise: str = "off",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Refine B pictures.

        Args:
            features: (B, channels, H, W) premultiplied on black, H and W multiples of 4.
            alpha: (B, 1, H, W).
            noise, generator: For the common interface; nothing here is random.

        Returns:
            (B, 3, H, W) in [0, 1], on black.
        """
        del noise, generator
        silu = nn.functional.silu
        x = nn.functional.pixel_unshuffle(torch.cat([features, alpha], 1), 2)
        fine = silu(self.squeeze(x.contiguous(memory_format=torch.channels_last)))
        coarse = self.block(self.down(fine))
        x = silu(fine + upsample(self.up(silu(coarse))))
        x = self.last(silu(self.join(x)))
        return _Bounds.apply(features[:, :3] + nn.functional.pixel_shuffle(x, 2).to(features.dtype))


def lite_refiner(config: GuavaConfig) -> LiteRefiner:
    """The refiner of a configuration.

    Raises:
        InputError: The configuration asks for another kind.
    """
    if config.refiner.kind != "residual":
        raise InputError("LiteRefiner needs refiner.kind 'residual'.")
    return LiteRefiner(config.channels, config.refiner.width, config.refiner.size)
