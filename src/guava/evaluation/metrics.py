"""Picture metrics as the paper's release computes them (Sec. 4.1).

Pictures are (B, 3, H, W) RGB in [0, 1]; the truth is the person on black (picture times mask). Everything is
taken over the whole picture, background included, so that numbers depend on how much of it is black.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from guava.errors import InputError

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class ImageMetrics:
    """Figures of B pictures, (B,) each.

    Attributes:
        psnr: dB, over all pixels and channels, peak 1; infinite for equal pictures.
        l1: Mean absolute difference.
        ssim: See :func:`ssim`.
        lpips: None where no network was given.
        sharpness: Gradient energy of the prediction over the truth's: below 1 is blurrier than the truth.
    """

    psnr: Tensor
    l1: Tensor
    ssim: Tensor
    lpips: Tensor | None
    sharpness: Tensor


def through_8_bits(images: Tensor) -> Tensor:
    """Pictures as they come back from an 8-bit file: clamped and rounded. The release measures saved PNGs."""
    return (images.clamp(0, 1) * 255).round() / 255


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio, dB."""
    return -10 * torch.log10((prediction - truth).square().mean((1, 2, 3)))


def l1(prediction: Tensor, truth: Tensor) -> Tensor:
    """(B,) mean absolute difference."""
    return (prediction - truth).abs().mean((1, 2, 3))


def ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    """(B,) structural similarity: the mean of :func:`ssim_map` over every pixel and channel."""
    return ssim_map(prediction, truth).mean((1, 2, 3))


def ssim_map(prediction: Tensor, truth: Tensor) -> Tensor:
    """(B, C, H, W) structural similarity: 11 x 11 Gaussian window, sigma 1.5, of every channel on its own.

    As in the release, the window sees zeros beyond the picture's edge. (Other implementations mirror the edge
    and leave it out of the mean, and some divide the variances by n - 1.)
    """
    if prediction.shape != truth.shape:
        raise InputError(f"Pictures differ in shape: {tuple(prediction.shape)} and {tuple(truth.shape)}.")
    channels = prediction.shape[1]
    steps = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    line = torch.exp(-(steps**2) / (2 * _SIGMA**2))
    line = (line / line.sum()).to(prediction).expand(channels, 1, 1, _WINDOW)

    def blur(x: Tensor) -> Tensor:
        x = F.conv2d(x, line, padding=(0, _WINDOW // 2), groups=channels)
        return F.conv2d(x, line.transpose(2, 3), padding=(_WINDOW // 2, 0), groups=channels)

    mean_p, mean_t = blur(prediction), blur(truth)
    var_p = blur(prediction * prediction) - mean_p**2
    var_t = blur(truth * truth) - mean_t**2
    covariance = blur(prediction * truth) - mean_p * mean_t
    return ((2 * mean_p * mean_t + _C1) * (2 * covariance + _C2)) / (
        (mean_p**2 + mean_t**2 + _C1) * (var_p + var_t + _C2)
    )


def gradient_energy(images: Tensor) -> Tensor:
    """(B,) mean squared difference of neighbouring pixels, along both axes: how much fine detail there is."""
    across = (images[..., :, 1:] - images[..., :, :-1]).square().mean((1, 2, 3))
    down = (images[..., 1:, :] - images[..., :-1, :]).square().mean((1, 2, 3))
    return across + down


def compare_images(
    prediction: Tensor,
    truth: Tensor,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    quantise: bool = True,
) -> ImageMetrics:
    """All metrics of a batch.

    Args:
        prediction: (B, 3, H, W) in [0, 1].
        truth: Likewise, already on black.
        lpips: Pictures, pictures -> (B,). The paper's is
            ``Lpips.from_files(..., network="vgg", input_range="unit", reduction="none")`` [Q]; with
            ``input_range="signed"`` it is comparable with everybody else's.
        quantise: Round both to 8 bits first, as the release does.

    Raises:
        InputError: The shapes differ.
    """
    if prediction.shape != truth.shape or prediction.ndim != 4:
        raise InputError(f"Pictures differ in shape: {tuple(prediction.shape)} and {tuple(truth.shape)}.")
    if quantise:
        prediction, truth = through_8_bits(prediction), through_8_bits(truth)
    with torch.no_grad():
        return ImageMetrics(
            psnr=psnr(prediction, truth),
            l1=l1(prediction, truth),
            ssim=ssim(prediction, truth),
            lpips=None if lpips is None else lpips(prediction, truth).reshape(-1),
            sharpness=gradient_energy(prediction) / gradient_energy(truth).clamp(min=1e-12),
        )


def average_clips(clips: Mapping[str, Sequence[float] | Tensor]) -> tuple[dict[str, float], float]:
    """The release's averaging: the mean of every clip, and the frame-weighted mean of those.

    Args:
        clips: One figure a frame, by clip; clips without frames are refused.

    Raises:
        InputError: There is no clip, or one has no frames.
    """
    values = {name: torch.as_tensor(v, dtype=torch.float64).reshape(-1) for name, v in clips.items()}
    if not values or any(not len(v) for v in values.values()):
        raise InputError("There is nothing to average: no clip, or a clip without frames.")
    means = {name: float(v.mean()) for name, v in values.items()}
    return means, float(torch.cat(list(values.values())).mean())
