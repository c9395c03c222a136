"""From a splatted or refined picture to the bytes that a file or a screen takes.

A splat is premultiplied and on black: over a background it is ``color + (1 - alpha) background``. No colour
is brighter than its alpha allows (rounding, and averages of clamped colours).

A refiner's picture is the person on black, without an alpha of its own. It goes with the splat's, raised
where the picture is brighter than that allows, so that over black the result is the refined picture itself.
Because a refiner's sigmoid never gives exactly black, less than :data:`FAINT` where no Gaussian is counts as
nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from guava import native
from guava.native.animation import Frame, call, pointer

FAINT = 2 / 255


def to_rgb8(
    features: Tensor,
    alpha: Tensor,
    background: tuple[float, float, float] | Tensor,
    *,
    samples: int = 1,
    refined: bool = False,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """A picture over a background, in 8 bits.

    Args:
        features: (samples H, samples W, C >= 3) on black; the first three channels are RGB: premultiplied and
            splatted, or refined.
        alpha: (samples H, samples W) of the splat.
        background: A colour in [0, 1], or a picture (H, W, 3).
        samples: Per pixel side; they are averaged.
        refined: The colours come from a refiner.
        out: (H, W, 3) uint8 on the CPU to write to; rows may lie apart.
        backend: "native" (CPU), "torch" (the readable reference, any device), or "auto": "native" where the
            library loads and the picture lies on the CPU in float32.

    Returns:
        (H, W, 3) uint8 on the CPU; ``out`` if it was given.
    """
    height, width = (side // samples for side in alpha.shape)
    sizes_fit = alpha.shape == (height * samples, width * samples) and features.shape[:2] == alpha.shape
    if not sizes_fit or features.ndim != 3 or features.shape[2] < 3:
        raise ValueError(
            f"to_rgb8 got features {tuple(features.shape)} and alpha {tuple(alpha.shape)} with {samples} "
            "samples a side."
        )
    if out is None:
        out = torch.empty(height, width, 3, dtype=torch.uint8, device="cpu")
    rows_apart = out.stride() == (out.stride(0), 3, 1) and out.stride(0) >= 3 * width
    fits = out.shape == (height, width, 3) and out.dtype == torch.uint8 and out.device.type == "cpu"
    if not (fits and rows_apart):
        raise ValueError(
            f"to_rgb8 cannot write {height} x {width} pixels to {tuple(out.shape)} {out.dtype} on "
            f"'{out.device}'."
        )
    usable = features.is_contiguous() and alpha.is_contiguous() and features.device.type == "cpu"
    usable = usable and features.dtype == alpha.dtype == torch.float32
    if backend == "auto":
        backend = "native" if usable and native.available() else "torch"
    if backend == "torch":
        behind = torch.as_tensor(background, dtype=torch.float32, device=features.device)
        return out.copy_(_reference(features, alpha, behind, samples, refined))
    if backend != "native" or not usable:
        raise ValueError("to_rgb8 has the backends 'torch' and 'native', which needs float32 CPU tensors.")
    behind, color = None, (0.0, 0.0, 0.0)
    if isinstance(background, Tensor) and background.ndim == 3:
        behind = background.to("cpu", torch.float32).contiguous()
    else:
        color = tuple(float(part) for part in background)
    frame = Frame(
        width=width, height=height, samples=samples, channels=features.shape[2], glowing=refined,
        features=features.data_ptr(), alpha=alpha.data_ptr(),
        behind=None if behind is None else pointer(behind, torch.float32, height, width, 3),
        background=color, row_bytes=out.stride(0), rgb=out.data_ptr(),
    )
    call("guava_frame_rgb8", frame)
    return out


def _reference(features: Tensor, alpha: Tensor, behind: Tensor, samples: int, refined: bool) -> Tensor:
    color, alpha = averaged(features[..., :3].float(), alpha.float(), samples)
    if refined:
        alpha, something = raised_alpha(color, alpha)
        color = color * something
    picture = color.maximum(color.new_zeros(())).minimum(alpha) + behind * (1 - alpha)
    return picture.clamp(0, 1).mul(255).add(0.5).to(torch.uint8)


def averaged(color: Tensor, alpha: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """(samples H, samples W, 3) and (samples H, samples W) -> (H, W, 3) and (H, W, 1), box averages."""
    height, width = alpha.shape
    stacked = torch.cat([color, alpha[..., None]], -1)
    if samples > 1:
        stacked = stacked.reshape(height // samples, samples, width // samples, samples, 4).mean((1, 3))
    return stacked[..., :3], stacked[..., 3:]


def raised_alpha(color: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The alpha (H, W, 1) that goes with a refined picture (H, W, 3), and where there is something."""
    bright = color.amax(-1, keepdim=True)
    something = (alpha > 0) | (bright >= FAINT)
    return alpha.maximum(bright).clamp(0, 1) * something, something
