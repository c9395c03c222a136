"""The learned blocks a second time, as plain formulas on a dictionary of weights.

Written from the description of the released model alone, without looking at ``guava.model``, so that both can
be compared. Everything here is slow and literal; nothing outside the tests may use it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F


def sub(state: dict, prefix: str) -> dict:
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def bilinear(x, size, align_corners=False):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


# --- StyleUNet ---


def modulated_conv(weights, x, latent, demodulate, upsample):
    """A convolution whose kernel is scaled per sample and input channel, one sample at a time."""
    style = latent @ weights["modulation.weight"].T + weights["modulation.bias"]
    kernel = weights["weight"][0]
    if upsample:
        x = bilinear(x, (2 * x.shape[2], 2 * x.shape[3]))
    out = []
    for i in range(x.shape[0]):
        w = kernel * style[i][None, :, None, None]
        if demodulate:
            w = w / torch.sqrt((w**2).sum((1, 2, 3), keepdim=True) + 1e-8)
        out.append(F.conv2d(x[i : i + 1], w, padding=kernel.shape[-1] // 2))
    return torch.cat(out)


def styled_conv(weights, x, latent, noise, upsample=False):
    y = math.sqrt(2) * modulated_conv(sub(weights, "modulated_conv."), x, latent, True, upsample)
    if noise is not None:
        y = y + weights["weight"] * noise
    return F.leaky_relu(y + weights["bias"], 0.2)


def to_rgb(weights, x, latent, image):
    y = modulated_conv(sub(weights, "modulated_conv."), x, latent, False, False) + weights["bias"]
    return y if image is None else y + bilinear(image, y.shape[2:])


def residual_block(weights, x, size):
    main = F.leaky_relu(F.conv2d(x, weights["conv1.weight"], weights["conv1.bias"], padding=1), 0.2)
    main = bilinear(main, size)
    main = F.leaky_relu(F.conv2d(main, weights["conv2.weight"], weights["conv2.bias"], padding=1), 0.2)
    return main + F.conv2d(bilinear(x, size), weights["skip.weight"])


def style_unet(state, x, *, size, small, extra=None, noise=None, sigmoid=False):
    """StyleUNet; ``noise`` is a list of maps, one per noise-injecting layer, or None for none."""
    levels = int(math.log2(size)) - 2
    noise = [None] * (2 * levels + 1) if noise is None else list(noise)

    def conv(name, value, padding):
        return F.conv2d(value, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    if x.shape[-1] < size:
        x = bilinear(x, (size, size))
    feature = F.leaky_relu(conv("conv_body_first", x, 0), 0.2)
    skips = []
    for i in range(levels):
        half = feature.shape[-1] // 2
        feature = residual_block(sub(state, f"conv_body_down.{i}."), feature, (half, half))
        skips.append(feature)
    feature = F.leaky_relu(conv("final_conv", feature, 1), 0.2)
    style = feature.flatten(1) @ state["final_linear.weight"].T + state["final_linear.bias"]
    if extra is not None:
        both = torch.cat([style, extra], 1)
        both = F.leaky_relu(both @ state["style_fuse.0.weight"].T + state["style_fuse.0.bias"], 0.2)
        style = both @ state["style_fuse.2.weight"].T + state["style_fuse.2.bias"]
    scales, shifts = [], []
    for i in range(levels):
        feature = feature + skips[levels - 1 - i]
        double = 2 * feature.shape[-1]
        feature = residual_block(sub(state, f"conv_body_up.{i}."), feature, (double, double))
        for name, results in (("condition_scale", scales), ("condition_shift", shifts)):
            hidden = F.leaky_relu(conv(f"{name}.{i}.0", feature, 1), 0.2)
            results.append(conv(f"{name}.{i}.2", hidden, 1))

    decoder = sub(state, "stylegan_decoder.")
    latent = style * torch.rsqrt((style**2).mean(1, keepdim=True) + 1e-8)
    for i in range(8):
        name = f"style_mlp.{2 * i + 1}"
        latent = F.leaky_relu(latent @ decoder[f"{name}.weight"].T + decoder[f"{name}.bias"], 0.2)
    out = decoder["constant_input.weight"].expand(x.shape[0], -1, -1, -1)
    out = styled_conv(sub(decoder, "style_conv1."), out, latent, noise[0])
    image = to_rgb(sub(decoder, "to_rgb1."), out, latent, None)
    for i in range(levels):
        if small:
            out = styled_conv(sub(decoder, f"style_convs.{i}."), out, latent, noise[1 + i], True)
            out = out * scales[i] + shifts[i]
            plain = sub(decoder, f"normal_convs.{i}.0.")
            out = F.leaky_relu(F.conv2d(out, plain["weight"], plain["bias"], padding=1), 0.2)
        else:
            out = styled_conv(sub(decoder, f"style_convs.{2 * i}."), out, latent, noise[1 + 2 * i], True)
            out = out * scales[i] + shifts[i]
            out = styled_conv(sub(decoder, f"style_convs.{2 * i + 1}."), out, latent, noise[2 + 2 * i])
        image = to_rgb(sub(decoder, f"to_rgbs.{i}."), out, latent, image)
    return image.sigmoid() if sigmoid else image


# --- encoder neck ---


def encoder_neck(state, tokens, image, out_size=512, fused=(37, 74, 148, 296)):
    """``tokens``: normalised patch tokens of the low level and of the four stages (B, 768, h, w) each;
    ``image``: ImageNet-normalised (B, 3, S, S)."""

    def conv(name, value, padding, bias=True, stride=1):
        return F.conv2d(
            value, state[f"{name}.weight"], state[f"{name}.bias"] if bias else None, stride, padding
        )

    low, *stages = tokens
    pyramid = []
    for i, stage in enumerate(stages):
        y = conv(f"projects.{i}", stage, 0)
        if i < 2:
            stride = (4, 2)[i]
            y = F.conv_transpose2d(
                y, state[f"resize_layers.{i}.weight"], state[f"resize_layers.{i}.bias"], stride=stride
            )
        elif i == 3:
            y = conv("resize_layers.3", y, 1, stride=2)
        picture = F.interpolate(
            image, size=y.shape[2:], mode="bilinear", align_corners=False, antialias=True
        )
        pyramid.append(conv(f"layer_rn.{i}", torch.cat([picture, y], 1), 1, bias=False))

    def unit(name, x):
        y = conv(f"{name}.conv1", F.relu(x), 1)
        return x + conv(f"{name}.conv2", F.relu(y), 1)

    result = None
    for block, stage in enumerate(reversed(pyramid)):
        name = f"refinenet.{block}"
        y = stage if result is None else result + unit(f"{name}.resConfUnit1", stage)
        y = unit(f"{name}.resConfUnit2", y)
        result = conv(f"{name}.out_conv", bilinear(y, (fused[block],) * 2), 0)

    size = (out_size, out_size)
    with_image = torch.cat([bilinear(result, size), bilinear(image, size)], 1)
    low = bilinear(low, (2 * low.shape[2], 2 * low.shape[3]), align_corners=True)
    low = conv("project_l.1", low, 1, bias=False)
    low = bilinear(low, (4 * low.shape[2], 4 * low.shape[3]), align_corners=True)
    low = bilinear(conv("project_l.3", low, 1, bias=False), size)
    h = F.leaky_relu(conv("fuse_l.0", torch.cat([with_image, low], 1), 1, bias=False), 0.01)
    h = conv("fuse_l.2", h, 1, bias=False) + conv("skip_l", with_image, 1, bias=False)
    return conv("output_conv", h, 1), conv("output_conv_2", h, 1)


# --- decoders and codes ---


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def mapping(state, x):
    x = F.leaky_relu(linear(state, "0", x), 0.01)
    x = F.leaky_relu(linear(state, "2", x), 0.01)
    return linear(state, "4", x)


def camera_code(world_to_camera):
    codes = []
    for matrix in np.asarray(world_to_camera, dtype=np.float64):
        x, y, z = matrix[:3, :3] @ np.array([0.0, 0, 1])
        row = [math.sin(v * f) for v in (x, y, z) for f in (1, 2, 4, 8)]
        row += [math.cos(v * f) for v in (x, y, z) for f in (1, 2, 4, 8)]
        codes.append([*row, x, y, z])
    return torch.tensor(codes)


def template_decoder(state, features, code):
    """``features`` (B, N, 512), ``code`` (B, 27) -> colour, opacity, scale, rotation."""
    x = features
    for i in (0, 2, 4):
        x = F.relu(linear(state, f"feature_layers.{i}", x))
    x = linear(state, "feature_layers.6", x)
    x = torch.cat([x, code[:, None].expand(-1, x.shape[1], -1)], -1)

    def head(name):
        return linear(state, f"{name}.2", F.relu(linear(state, f"{name}.0", x)))

    rotation = head("rotation_layers")
    rotation = rotation / rotation.norm(dim=1, keepdim=True).clamp(min=1e-12)
    opacity, scale = head("opacity_layers").sigmoid(), 0.05 * head("scale_layers").sigmoid()
    return head("color_layers"), opacity, scale, rotation


def uv_decoder(state, features, code):
    """``features`` (B, C, H, W), ``code`` (B, 27) -> maps of colour, opacity, scale, rotation, position."""
    planes = code[:, :, None, None].expand(-1, -1, *features.shape[2:])
    x = torch.cat([features, planes], 1)

    def conv(name, value):
        weight = state[f"{name}.weight"]
        return F.conv2d(value, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    x = F.leaky_relu(conv("feature_conv.0", x), 0.01)
    x = F.leaky_relu(conv("feature_conv.2", x), 0.01)
    x = conv("feature_conv.4", x)

    def head(name, layers):
        y = x
        for i in range(layers):
            y = conv(f"{name}.{2 * i}", y)
            if i < layers - 1:
                y = F.leaky_relu(y, 0.01)
        return y

    rotation = head("rot_head", 2)
    rotation = rotation / rotation.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return (
        head("color_head", 2),
        head("opacity_head", 2).sigmoid(),
        head("scale_head", 2).exp(),
        rotation,
        head("local_pos_head", 3),
    )


def bilinear_at(feature, x, y, border):
    """One bilinear sample of a (C, H, W) array at pixel position (x, y), pixel centres at half-integers."""
    channels, height, width = feature.shape
    x, y = x - 0.5, y - 0.5
    if border:
        x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    x0, y0 = math.floor(x), math.floor(y)
    out = np.zeros(channels)
    for row, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for column, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            if 0 <= row < height and 0 <= column < width:
                out += wx * wy * feature[:, row, column]
    return out
