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

    def for_inference(self, dtype: torch.dtype = torch.float32) -> FoldedLiteRefiner:
        """The same function, folded for drawing frames in ``dtype``; it does not follow later changes of the
        weights."""
        return FoldedLiteRefiner(self, dtype)


class FoldedLiteRefiner(nn.Module):
    """A :class:`LiteRefiner` made for drawing frames: the same function, without gradients.

    Scales and gains are folded into the weights, and the first convolution reads what the splatter writes,
    (H, W, C) in memory, where it lies: a 1x1 convolution after ``pixel_unshuffle`` is a 2x2 one of stride 2
    before it, and the channels of features and alpha are summed instead of concatenated. On one CPU core
    that takes a third of the time (``benchmarks/lite_cost.py``).

    Args:
        refiner: Trained; its device is kept, parameters stay its own.
        dtype: That it runs in; sums of products are folded in the refiner's own precision before.

    Attributes:
        channels_last: For the animator: features need not be laid out by channels first.
    """

    channels_last = True

    def __init__(self, refiner: LiteRefiner, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.size = refiner.size

        def keep(name: str, weight: Tensor, bias: Tensor | None) -> None:
            weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
            self.register_buffer(f"{name}_weight", weight, persistent=False)
            if bias is not None:
                self.register_buffer(f"{name}_bias", bias.detach().to(dtype), persistent=False)

        with torch.no_grad():
            squeeze = refiner.squeeze
            # pixel_unshuffle puts channel c, row i and column j of a 2x2 block into channel 4 c + 2 i + j.
            blocks = (squeeze.weight * squeeze.scale).unflatten(1, (-1, 4)).unflatten(2, (2, 2))[..., 0, 0]
            keep("features", blocks[:, :-1], squeeze.bias)
            keep("alpha", blocks[:, -1:], None)
            for name in ("down", "up", "join", "last"):
                layer = getattr(refiner, name)
                keep(name, layer.weight * layer.scale, layer.bias)
            first, second, gain = refiner.block.first, refiner.block.second, refiner.block.gain
            keep("first", first.weight * first.scale, first.bias)
            keep("second", second.weight * second.scale * gain[..., None], second.bias * gain.flatten())

    @property
    def dtype(self) -> torch.dtype:
        """What it runs in; features and alpha must be given in it."""
        return self.features_weight.dtype

    @torch.no_grad()
    def forward(
        self,
        features: Tensor,
        alpha: Tensor,
        *,
        noise: str = "off",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """As :meth:`LiteRefiner.forward`; fastest for features in channels-last memory."""
        del noise, generator
        conv = nn.functional.conv2d

        def silu_(x: Tensor) -> Tensor:
            return nn.functional.silu(x, inplace=True)

        fine = conv(features, self.features_weight, self.features_bias, 2)
        fine = silu_(fine.add_(conv(alpha, self.alpha_weight, None, 2)))
        coarse = conv(fine, self.down_weight, self.down_bias, 2, 1)
        inner = silu_(conv(nn.functional.silu(coarse), self.first_weight, self.first_bias, 1, 1))
        coarse = coarse.add_(conv(inner, self.second_weight, self.second_bias, 1, 1))
        x = upsample(conv(silu_(coarse), self.up_weight, self.up_bias))
        x = silu_(conv(silu_(x.add_(fine)), self.join_weight, self.join_bias, 1, 1))
        x = nn.functional.pixel_shuffle(conv(x, self.last_weight, self.last_bias, 1, 1), 2)
        return x.add_(features[:, :3]).clamp_(0, 1)


def lite_refiner(config: GuavaConfig) -> LiteRefiner:
    """The refiner of a configuration.

    Raises:
        InputError: The configuration asks for another kind.
    """
    if config.refiner.kind != "residual":
        raise InputError("LiteRefiner needs refiner.kind 'residual'.")
    return LiteRefiner(config.channels, config.refiner.width, config.refiner.size)
