"""The convolutional parts of the ``lite`` network.

Normalisation costs a CPU more than the convolutions at the fine levels, so only the three coarsest levels
have it; everywhere else residual blocks start small (``gain``) instead.

Weights have unit variance and are scaled when they are used, so that one step of Adam changes every layer by
the same share, wide or narrow (Karras et al. 2018, "equalised learning rate").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_GAIN = 1.6
"""Keeps the variance of what comes out of a SiLU; 1 keeps that of anything else."""


class ScaledConv(nn.Conv2d):
    """A convolution of unit-variance weights times ``gain / sqrt(fan in)``, keeping or halving the size."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, gain: float = _GAIN):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2)
        self.scale = gain * (inputs * kernel * kernel) ** -0.5
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.padding)


class ScaledLinear(nn.Linear):
    """A linear layer of unit-variance weights times ``gain / sqrt(fan in)``."""

    def __init__(self, inputs: int, outputs: int, gain: float = _GAIN):
        super().__init__(inputs, outputs)
        self.scale = gain * inputs**-0.5
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)



def upsample(x: Tensor) -> Tensor:
    """Twice the size, bilinear."""
    return nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class ResidualBlock(nn.Module):
    """x + gain * conv(act(conv(act(norm(x))))), pre-activated.

    Args:
        channels: In and out.
        norm: Normalise over groups of channels.
    """

    def __init__(self, channels: int, *, norm: bool = False):
        super().__init__()
        self.norm = nn.GroupNorm(max(channels // 16, 1), channels) if norm else nn.Identity()
        self.first = ScaledConv(channels, channels)
        self.second = ScaledConv(channels, channels)
        self.gain = nn.Parameter(torch.full((channels, 1, 1), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        act = nn.functional.silu
        return x + self.gain * self.second(act(self.first(act(self.norm(x)))))


class Down(nn.Module):
    """Half the size, then residual blocks."""

    def __init__(self, inputs: int, outputs: int, blocks: int, *, norm: bool = False):
        super().__init__()
        self.reduce = ScaledConv(inputs, outputs, 3, 2)
        self.blocks = nn.Sequential(*(ResidualBlock(outputs, norm=norm) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.reduce(nn.functional.silu(x)))


class Up(nn.Module):
    """Twice the size, joined with the level of that size, then residual blocks."""

    def __init__(self, inputs: int, skip: int, outputs: int, blocks: int, *, norm: bool = False):
        super().__init__()
        self.narrow = ScaledConv(inputs, outputs, 1, gain=1)
        self.join = ScaledConv(outputs + skip, outputs)
        self.blocks = nn.Sequential(*(ResidualBlock(outputs, norm=norm) for _ in range(blocks)))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        joined = torch.cat([upsample(self.narrow(x)), skip], 1)
        return self.blocks(self.join(nn.functional.silu(joined)))


class CompactEncoder(nn.Module):
    """The source picture, person mask and body silhouette -> a feature map and a global vector.

    The space between silhouette and mask tells how far hair and cloth stand off the body, which colours
    gathered on the surface cannot tell.

    Args:
        inputs: Channels of the picture (RGB, mask, silhouette).
        width: Channels at half resolution; they grow to 8 ``width``.
        outputs: Channels of the feature map.
        global_channels: Length of the global vector.
    """

    def __init__(self, inputs: int = 5, width: int = 32, outputs: int = 48, global_channels: int = 256):
        super().__init__()
        w = (width, 2 * width, 4 * width, 6 * width, 8 * width)
        self.stem = ScaledConv(4 * inputs, w[0], gain=1)
        self.down = nn.ModuleList(
            [
                Down(w[0], w[1], 1),
                Down(w[1], w[2], 1, norm=True),
                Down(w[2], w[3], 2, norm=True),
                Down(w[3], w[4], 2, norm=True),
            ]
        )
        self.up = nn.ModuleList(
            [Up(w[4], w[3], w[3], 0), Up(w[3], w[2], w[2], 0), Up(w[2], w[1], w[1], 1)]
        )
        self.fine = ScaledConv(w[0], outputs, 1)
        self.coarse = ScaledConv(w[1], outputs, 1)
        self.embed = ScaledLinear(2 * w[4], global_channels)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs, S, S), S a multiple of 32 -> features (B, outputs, S/2, S/2) and vector (B, global)."""
        levels = [self.stem(nn.functional.pixel_unshuffle(picture, 2))]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels[4]
        vector = self.embed(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        for up, skip in zip(self.up, (levels[3], levels[2], levels[1]), strict=True):
            x = up(x, skip)
        return self.fine(nn.functional.silu(levels[0])) + upsample(self.coarse(nn.functional.silu(x))), vector


class UVNet(nn.Module):
    """A U-Net over the atlas, thin at full resolution, with the global vector at its bottom.

    Args:
        inputs: Channels at full resolution.
        outputs: Channels that it hands on at full resolution.
        coarse_outputs: Channels that it hands on at half resolution.
        global_channels: Length of the global vector.
        widths: Channels at 1/2, 1/4, 1/8, 1/16, 1/32 of the atlas' size.
    """

    def __init__(
        self,
        inputs: int = 24,
        outputs: int = 32,
        coarse_outputs: int = 32,
        global_channels: int = 256,
        widths: tuple[int, int, int, int, int] = (32, 64, 128, 256, 320),
    ):
        super().__init__()
        w = widths
        self.stem = ScaledConv(4 * inputs, w[0], gain=1)
        self.down = nn.ModuleList(
            [
                Down(w[0], w[1], 1),
                Down(w[1], w[2], 1, norm=True),
                Down(w[2], w[3], 1, norm=True),
                Down(w[3], w[4], 2, norm=True),
            ]
        )
        self.style = ScaledLinear(global_channels, 2 * w[4], gain=0.3)
        self.up = nn.ModuleList(
            [
                Up(w[4], w[3], w[3], 1, norm=True),
                Up(w[3], w[2], w[2], 1, norm=True),
                Up(w[2], w[1], w[1], 1),
                Up(w[1], w[0], w[0], 0),
            ]
        )
        self.coarse = ScaledConv(w[0], coarse_outputs, 1)
        self.widen = ScaledConv(w[0], 4 * outputs, 1)
        self.fine = ScaledConv(inputs, outputs, 1, gain=1)
        self.blend = ScaledConv(outputs, outputs)

    def forward(self, atlas: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs, H, H), H a multiple of 32, and (B, global_channels) -> features (B, outputs, H, H) and
        (B, coarse_outputs, H/2, H/2)."""
        silu = nn.functional.silu
        levels = [self.stem(nn.functional.pixel_unshuffle(atlas, 2))]
        for down in self.down:
            levels.append(down(levels[-1]))
        scale, shift = self.style(vector)[..., None, None].chunk(2, 1)
        x = levels[4] * (1 + scale) + shift
        for up, skip in zip(self.up, levels[3::-1], strict=True):
            x = up(x, skip)
        x = silu(x)
        fine = nn.functional.pixel_shuffle(self.widen(x), 2) + self.fine(atlas)
        return silu(self.blend(silu(fine))), silu(self.coarse(x))
