"""StyleUNet (Sec. 3.2, Sec. 3.3, B.2): the network that paints the UV maps and the refiner.

A U-Net whose decoder is a style-based generator without blur kernels, equalised learning rates or minibatch
statistics. Its encoder gives a style vector and, from every level on the way up, a scale and a shift for the
generator's features. All maps are (B, C, H, W); every resize is bilinear with half-pixel centres.

Sub-keys of the state dict are those of the authors' release, unused noise buffers included, so that the
release's ``uv_feature_decoder`` and ``nerual_refiner`` load with ``strict=True``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Noise = Literal["off", "random"] | Sequence[Tensor]
"""Noise of the styled layers: none, drawn anew at every call, or one (1 or B, 1, H, W) map per layer."""

CHANNELS = {4: 256, 8: 256, 16: 256, 32: 256, 64: 128, 128: 64, 256: 32, 512: 16, 1024: 8}
"""Channels by resolution, before ``channel_scale``."""

_SLOPE = 0.2


class StyleUNet(nn.Module):
    """With the release's sizes the UV branch is ``StyleUNet()`` and the refiner ``StyleUNet(in_channels=32,
    out_channels=3, extra_style=0, small=True, activation="sigmoid")``.

    Args:
        in_channels: Channels of the input map.
        out_channels: Channels of the output map.
        size: Side of the output, a power of two from 8 to 1024. A smaller input is resized up to it.
        style_channels: Width of the style vectors.
        style_layers: Linear layers between the encoder's style and the generator's.
        extra_style: Channels of a second style vector (the ID embedding) that is fused with the encoder's;
            0 for none.
        small: Whether a plain convolution takes the place of every second styled one.
        activation: "none" or "sigmoid", of the output.
        channel_scale: Divides the channels of :data:`CHANNELS`.

    Raises:
        ValueError: A size that is not such a power of two, or an unknown activation.
    """

    def __init__(
        self,
        in_channels: int = 35,
        out_channels: int = 96,
        *,
        size: int = 512,
        style_channels: int = 512,
        style_layers: int = 8,
        extra_style: int = 512,
        small: bool = False,
        activation: Literal["none", "sigmoid"] = "none",
        channel_scale: float = 1.0,
    ):
        super().__init__()
        if size not in CHANNELS or size < 8:
            raise ValueError(f"A StyleUNet's size is a power of two from 8 to 1024, not {size}.")
        if activation not in ("none", "sigmoid"):
            raise ValueError(f"There is no output activation '{activation}'; choose 'none' or 'sigmoid'.")
        self.size, self.activation = size, activation
        self.in_channels, self.out_channels, self.extra_style = in_channels, out_channels, extra_style
        width = {side: max(1, int(count / channel_scale)) for side, count in CHANNELS.items()}
        sides = [2**k for k in range(3, size.bit_length())]  # 8 .. size

        self.conv_body_first = nn.Conv2d(in_channels, width[size], 1)
        self.conv_body_down = nn.ModuleList(
            ResidualBlock(width[side], width[side // 2], "down") for side in reversed(sides)
        )
        self.final_conv = nn.Conv2d(width[4], width[4], 3, padding=1)
        self.conv_body_up = nn.ModuleList(
            ResidualBlock(width[side // 2], width[side], "up") for side in sides
        )
        self.final_linear = nn.Linear(width[4] * 16, style_channels)
        self.style_fuse = (
            nn.Sequential(
                nn.Linear(style_channels + extra_style, style_channels),
                nn.LeakyReLU(_SLOPE),
                nn.Linear(style_channels, style_channels),
            )
            if extra_style
            else None
        )
        self.stylegan_decoder = StyleGenerator(
            out_channels, [4, *sides], width, style_channels, style_layers, small
        )
        self.condition_scale = nn.ModuleList(_condition(width[side]) for side in sides)
        self.condition_shift = nn.ModuleList(_condition(width[side]) for side in sides)

    @property
    def noise_shapes(self) -> tuple[tuple[int, int], ...]:
        """(H, W) of the noise map of every styled layer, in the order of use."""
        return self.stylegan_decoder.noise_shapes

    def forward(
        self,
        x: Tensor,
        extra_style: Tensor | None = None,
        *,
        noise: Noise = "off",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, in_channels, h, w) and, where it was built for one, (B, extra_style) -> (B, out_channels, size,
        size).

        Args:
            x: Input map, h = w <= size.
            extra_style: The second style vector.
            noise: "off", "random", or maps of :attr:`noise_shapes`.
            generator: Source of random noise, on ``x``'s device; torch's global one without it.

        Raises:
            ValueError: A map of the wrong size, a missing or needless second style, or noise maps of another
                number or shape.
        """
        if (extra_style is None) != (self.style_fuse is None):
            raise ValueError(
                "This StyleUNet takes no second style." if self.style_fuse is None
                else f"This StyleUNet needs a second style of {self.extra_style} channels."
            )
        if x.shape[-2] == x.shape[-1] < self.size:
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        if x.shape[2:] != (self.size, self.size):
            raise ValueError(
                f"This StyleUNet takes square maps of side {self.size} or less, not {tuple(x.shape)}."
            )
        x = F.leaky_relu(self.conv_body_first(x), _SLOPE)
        skips = []
        for block in self.conv_body_down:
            x = block(x)
            skips.append(x)
        x = F.leaky_relu(self.final_conv(x), _SLOPE)
        style = self.final_linear(x.flatten(1))
        if self.style_fuse is not None:
            style = self.style_fuse(torch.cat([style, extra_style.to(style.dtype)], 1))
        scales, shifts = [], []
        for block, scale, shift in zip(
            self.conv_body_up, self.condition_scale, self.condition_shift, strict=True
        ):
            x = block(x + skips.pop())
            scales.append(scale(x))
            shifts.append(shift(x))
        out = self.stylegan_decoder(style, scales, shifts, noise=noise, generator=generator)
        return out.sigmoid() if self.activation == "sigmoid" else out


class StyleGenerator(nn.Module):
    """The decoder of :class:`StyleUNet`: a style vector and a scale and shift per level -> picture.

    Args:
        out_channels: Channels of the picture.
        sides: Resolutions, 4 first, doubling.
        width: Channels by resolution.
        style_channels: Width of the style vector.
        style_layers: Linear layers of the style MLP.
        small: See :class:`StyleUNet`.
    """

    def __init__(
        self,
        out_channels: int,
        sides: Sequence[int],
        width: dict[int, int],
        style_channels: int,
        style_layers: int,
        small: bool,
    ):
        super().__init__()
        self.small = small
        layers: list[nn.Module] = [StyleNorm()]
        for _ in range(style_layers):
            linear = nn.Linear(style_channels, style_channels)
            nn.init.kaiming_normal_(linear.weight, a=_SLOPE, mode="fan_in", nonlinearity="leaky_relu")
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.LeakyReLU(_SLOPE)]
        self.style_mlp = nn.Sequential(*layers)
        self.constant_input = ConstantInput(width[4])
        self.style_conv1 = StyledConv(width[4], width[4], style_channels)
        self.to_rgb1 = ToRGB(width[4], out_channels, style_channels)
        self.style_convs, self.to_rgbs, plain = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        shapes = [sides[0]]
        for side in sides[1:]:
            cin, cout = width[side // 2], width[side]
            self.style_convs.append(StyledConv(cin, cout, style_channels, upsample=True))
            shapes.append(side)
            if small:
                plain.append(nn.Sequential(nn.Conv2d(cout, cout, 3, padding=1), nn.LeakyReLU(_SLOPE)))
            else:
                self.style_convs.append(StyledConv(cout, cout, style_channels))
                shapes.append(side)
            self.to_rgbs.append(ToRGB(cout, out_channels, style_channels))
        self.noise_shapes = tuple((side, side) for side in shapes)
        # Stored by the release and never read by it; in the small variant their sizes do not even fit.
        self.noises = nn.Module()
        for index in range(len(shapes)):
            side = 2 ** ((index + 5) // 2)
            self.noises.register_buffer(f"noise{index}", torch.randn(1, 1, side, side))
        if small:
            self.normal_convs = plain

    def forward(
        self,
        style: Tensor,
        scales: Sequence[Tensor],
        shifts: Sequence[Tensor],
        *,
        noise: Noise = "off",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, S) style, and (B, C, H, W) conditions of the resolutions from 8 up -> (B, out, H, W).

        The noise is drawn layer by layer in the order of use, (B, 1, H, W) each.
        """
        maps = iter(self._noise(noise, style, generator))
        latent = self.style_mlp(style)
        x = self.style_conv1(self.constant_input(latent), latent, next(maps))
        picture = self.to_rgb1(x, latent)
        for level, to_rgb in enumerate(self.to_rgbs):
            first = self.style_convs[level if self.small else 2 * level]
            x = first(x, latent, next(maps)) * scales[level] + shifts[level]
            if self.small:
                x = self.normal_convs[level](x)
            else:
                x = self.style_convs[2 * level + 1](x, latent, next(maps))
            picture = to_rgb(x, latent, picture)
        return picture

    def _noise(
        self, noise: Noise, like: Tensor, generator: torch.Generator | None
    ) -> Sequence[Tensor | None]:
        """One map, or None, per styled layer."""
        batch = like.shape[0]
        if isinstance(noise, str):
            if noise == "off":
                return [None] * len(self.noise_shapes)
            if noise != "random":
                raise ValueError(f"Noise is 'off', 'random' or a list of maps, not '{noise}'.")
            # In float32 at least, so that half precision sees the same noise.
            dtype = torch.promote_types(like.dtype, torch.float32)
            return [
                torch.empty(batch, 1, h, w, dtype=dtype, device=like.device).normal_(generator=generator)
                for h, w in self.noise_shapes
            ]
        expected = [(1, h, w) for h, w in self.noise_shapes]
        if [tuple(given.shape[1:]) for given in noise] != expected or any(
            given.shape[0] not in (1, batch) for given in noise
        ):
            raise ValueError(
                f"Noise maps must be (1 or {batch}, 1, H, W) with the {len(expected)} (H, W) "
                f"{list(self.noise_shapes)}, got {[tuple(given.shape) for given in noise]}."
            )
        return noise


class ModulatedConv2d(nn.Module):
    """A convolution whose weights are scaled by the style, per input channel, and normalised per output
    channel.

    Args:
        in_channels, out_channels: Of the convolution.
        kernel_size: Odd; the border is padded with zeros.
        style_channels: Width of the style.
        demodulate: Whether every output channel's weights are brought to unit norm.
        upsample: Whether the input is resized x2 first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_channels: int,
        *,
        demodulate: bool = True,
        upsample: bool = False,
    ):
        super().__init__()
        self.kernel_size, self.demodulate, self.upsample = kernel_size, demodulate, upsample
        self.modulation = nn.Linear(style_channels, in_channels)
        nn.init.kaiming_normal_(self.modulation.weight, mode="fan_in", nonlinearity="linear")
        nn.init.ones_(self.modulation.bias)
        scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(
            torch.randn(1, out_channels, in_channels, kernel_size, kernel_size) * scale
        )

    def forward(self, x: Tensor, style: Tensor, *, gain: float = 1.0, bias: Tensor | None = None) -> Tensor:
        """(B, cin, H, W) and style (B, S) -> ``gain`` * (B, cout, H', W') + ``bias`` (cout,)."""
        batch, cin = x.shape[:2]
        # The norm is a sum over many squares: never in half precision.
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        scale = self.modulation(style).to(dtype)
        weight = self.weight.to(dtype) * scale[:, None, :, None, None]
        if self.demodulate:
            norm = (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
            weight = weight * (norm * gain)
        elif gain != 1.0:
            weight = weight * gain
        weight = weight.to(x.dtype)
        if bias is not None:
            bias = bias.to(x.dtype)
        if self.upsample:
            x = _resize(x, 2.0)
        pad = self.kernel_size // 2
        if batch == 1:
            return F.conv2d(x, weight[0], bias, padding=pad)
        # One group per sample, because every sample has weights of its own.
        height, width = x.shape[2:]
        out = F.conv2d(
            x.reshape(1, batch * cin, height, width),
            weight.flatten(0, 1),
            None if bias is None else bias.repeat(batch),
            padding=pad,
            groups=batch,
        )
        return out.view(batch, -1, height, width)


class StyledConv(nn.Module):
    """sqrt(2) * modulated convolution + strength * noise + bias, leaky ReLU (0.2)."""

    def __init__(self, in_channels: int, out_channels: int, style_channels: int, *, upsample: bool = False):
        super().__init__()
        self.modulated_conv = ModulatedConv2d(in_channels, out_channels, 3, style_channels, upsample=upsample)
        self.weight = nn.Parameter(torch.zeros(1))  # strength of the noise
        self.bias = nn.Parameter(torch.zeros(1, out_channels, 1, 1))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, cin, H, W), (B, S), and (1 or B, 1, H', W') or None -> (B, cout, H', W')."""
        out = self.modulated_conv(x, style, gain=math.sqrt(2), bias=self.bias.flatten())
        if noise is not None:
            out = out + (self.weight * noise).to(out.dtype)
        return F.leaky_relu(out, _SLOPE)


class ToRGB(nn.Module):
    """The level's share of the picture, added to the smaller level's picture resized x2."""

    def __init__(self, in_channels: int, out_channels: int, style_channels: int):
        super().__init__()
        self.modulated_conv = ModulatedConv2d(in_channels, out_channels, 1, style_channels, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, out_channels, 1, 1))

    def forward(self, x: Tensor, style: Tensor, picture: Tensor | None = None) -> Tensor:
        """(B, cin, H, W), (B, S) and the smaller picture (B, out, H/2, W/2) -> (B, out, H, W)."""
        out = self.modulated_conv(x, style, bias=self.bias.flatten())
        return out if picture is None else out + _resize(picture, 2.0)


class ResidualBlock(nn.Module):
    """Two convolutions with a resize between, beside a resized 1 x 1 skip; nothing acts on the sum."""

    def __init__(self, in_channels: int, out_channels: int, direction: Literal["up", "down"]):
        super().__init__()
        self.up = direction == "up"
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, cin, H, W) -> (B, cout, 2H, 2W) or (B, cout, H/2, W/2)."""
        factor = 2.0 if self.up else 0.5
        out = _resize(F.leaky_relu(self.conv1(x), _SLOPE), factor)
        out = F.leaky_relu(self.conv2(out), _SLOPE)
        # A 1 x 1 convolution without bias commutes with the resize: it runs where there are fewer pixels.
        return out + (_resize(self.skip(x), factor) if self.up else self.skip(_resize(x, factor)))


class ConstantInput(nn.Module):
    """The generator's learned 4 x 4 start."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, channels, 4, 4))

    def forward(self, latent: Tensor) -> Tensor:
        """(B, S) -> (B, C, 4, 4)."""
        return self.weight.to(latent.dtype).expand(latent.shape[0], -1, -1, -1)


class StyleNorm(nn.Module):
    """v / sqrt(mean(v^2) + 1e-8)."""

    def forward(self, style: Tensor) -> Tensor:
        wide = style.to(torch.promote_types(style.dtype, torch.float32))
        return (wide * (wide.square().mean(1, keepdim=True) + 1e-8).rsqrt()).to(style.dtype)


def _condition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.LeakyReLU(_SLOPE),
        nn.Conv2d(channels, channels, 3, padding=1),
    )


def _resize(x: Tensor, factor: float) -> Tensor:
    if factor == 0.5:
        return F.avg_pool2d(x, 2)  # what bilinear x0.5 is at even sizes
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
