"""LPIPS (the paper's [108]), with weights from files of the user's.

The feature stacks of AlexNet and VGG16 are written out from their published shapes, so that nothing beyond
torch is needed. The weights are not Guava's to ship: torchvision's ImageNet weights and the five 1x1 layers
of LPIPS v0.1 are read from local files, and without them there is no such module.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guava.errors import FileFormatError, InputError, MissingAssetError

Network = Literal["alex", "vgg"]

# Convolutions by their index in torchvision's `features`: (index, in, out, kernel, stride, padding);
# a pooling is (kernel, stride).
_STACKS: dict[str, tuple[tuple[int, ...], ...]] = {
    "alex": (
        (0, 3, 64, 11, 4, 2),
        (3, 2),
        (3, 64, 192, 5, 1, 2),
        (3, 2),
        (6, 192, 384, 3, 1, 1),
        (8, 384, 256, 3, 1, 1),
        (10, 256, 256, 3, 1, 1),
    ),
    "vgg": (
        (0, 3, 64, 3, 1, 1),
        (2, 64, 64, 3, 1, 1),
        (2, 2),
        (5, 64, 128, 3, 1, 1),
        (7, 128, 128, 3, 1, 1),
        (2, 2),
        (10, 128, 256, 3, 1, 1),
        (12, 256, 256, 3, 1, 1),
        (14, 256, 256, 3, 1, 1),
        (2, 2),
        (17, 256, 512, 3, 1, 1),
        (19, 512, 512, 3, 1, 1),
        (21, 512, 512, 3, 1, 1),
        (2, 2),
        (24, 512, 512, 3, 1, 1),
        (26, 512, 512, 3, 1, 1),
        (28, 512, 512, 3, 1, 1),
    ),
}
_TAPS = {"alex": (0, 3, 6, 8, 10), "vgg": (2, 7, 14, 21, 28)}
"""After the ReLU of which convolutions features are compared (VGG: relu1_2, 2_2, 3_3, 4_3, 5_3)."""

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10

_SOURCES = {
    "alex": "torchvision's alexnet-owt-*.pth (ImageNet) and LPIPS v0.1's alex.pth (pip package 'lpips')",
    "vgg": "torchvision's vgg16-*.pth (ImageNet) and LPIPS v0.1's vgg.pth (pip package 'lpips')",
}


class Lpips(nn.Module):
    """Learned perceptual distance: sum over 5 taps of the weighted squared difference of unit features.

    Use :meth:`from_files` or :meth:`from_states`; a module built directly has no weights and refuses to run.
    All parameters are frozen; gradients flow to the pictures.

    Args:
        network: "alex" for the losses, "vgg" for the paper's evaluation.
        input_range: How pictures in [0, 1] enter. "signed" maps them to [-1, 1] first, as LPIPS was trained;
            "unit" does not ([Q]: what the authors' release does, in training and in evaluation, so that its
            numbers are not comparable with others).
        reduction: Over the batch: "mean", "sum" ([Q] the release's training), or "none".
    """

    def __init__(
        self,
        network: Network = "alex",
        *,
        input_range: Literal["unit", "signed"] = "signed",
        reduction: Literal["mean", "sum", "none"] = "mean",
    ):
        super().__init__()
        if network not in _STACKS:
            raise InputError(f"There is no LPIPS network '{network}'.", "Choose alex or vgg.")
        if input_range not in ("unit", "signed") or reduction not in ("mean", "sum", "none"):
            raise InputError(f"LPIPS has no input range '{input_range}' with reduction '{reduction}'.")
        self.network, self.input_range, self.reduction = network, input_range, reduction
        self.loaded = False
        # On the meta device, so that no random number can ever pass for a weight.
        with torch.device("meta"):
            self.convs = nn.ModuleDict(
                {
                    str(layer[0]): nn.Conv2d(*layer[1:4], stride=layer[4], padding=layer[5])
                    for layer in _STACKS[network]
                    if len(layer) > 2
                }
            )
            self.linear = nn.ParameterList(
                nn.Parameter(torch.empty(1, self.convs[str(tap)].out_channels, 1, 1))
                for tap in _TAPS[network]
            )
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False)

    @classmethod
    def from_files(
        cls,
        backbone: str | os.PathLike,
        linear: str | os.PathLike | None = None,
        network: Network = "alex",
        **options: str,
    ) -> Lpips:
        """LPIPS with weights from one or two local files (safetensors, or a torch file of tensors).

        Args:
            backbone: AlexNet or VGG16 in torchvision's layout (``features.0.weight``...), or a whole LPIPS
                module's state (``net.slice1.0.weight``..., ``lin0.model.1.weight``...).
            linear: LPIPS v0.1's linear layers (``lin0.model.1.weight``...); None if ``backbone`` has them.
            network, options: See the class.

        Raises:
            MissingAssetError: A file is not there.
            FileFormatError: A file is damaged, holds other objects than tensors, or lacks weights.
        """
        state = _read_state(backbone, network)
        lines = state if linear is None else _read_state(linear, network)
        return cls.from_states(state, lines, network, **options)

    @classmethod
    def from_states(
        cls,
        backbone: Mapping[str, Tensor],
        linear: Mapping[str, Tensor],
        network: Network = "alex",
        **options: str,
    ) -> Lpips:
        """As :meth:`from_files`, from state dictionaries."""
        model = cls(network, **options)
        found = {**_map_backbone(backbone), **_map_linear(linear)}
        wanted = {name: value.shape for name, value in model.state_dict().items()}
        missing = [_original(name) for name in wanted if name not in found]
        wrong = [
            f"{_original(name)} is {tuple(found[name].shape)}, not {tuple(shape)}"
            for name, shape in wanted.items()
            if name in found and found[name].shape != shape
        ]
        if missing or wrong:
            told = [f"missing: {', '.join(missing)}"] if missing else []
            raise FileFormatError(
                f"These are not the weights of LPIPS with {network}: {'; '.join(told + wrong)}.",
                f"Needed: {_SOURCES[network]}.",
            )
        state = {name: found[name].detach().float().clone() for name in wanted}
        if not all(bool(value.isfinite().all()) for value in state.values()):
            raise FileFormatError(f"The weights of LPIPS with {network} are not all finite.")
        model.load_state_dict(state, assign=True)
        model.requires_grad_(False)
        model.loaded = True
        return model.eval()

    def features(self, images: Tensor) -> list[Tensor]:
        """The five tapped feature maps of pictures (B, 3, H, W) in [0, 1], not yet normalised."""
        if not self.loaded:
            raise MissingAssetError(
                f"LPIPS with {self.network} has no weights.", f"Needed: {_SOURCES[self.network]}."
            )
        x = images * 2 - 1 if self.input_range == "signed" else images
        x = (x - self.shift) / self.scale
        out = []
        for layer in _STACKS[self.network]:
            if len(layer) == 2:
                x = F.max_pool2d(x, layer[0], layer[1])
                continue
            x = F.relu(self.convs[str(layer[0])](x))
            if layer[0] in _TAPS[self.network]:
                out.append(x)
        return out

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distance of pictures (B, 3, H, W) in [0, 1]: a scalar, or (B,) with reduction "none"."""
        if not len(first):
            return first.sum() if self.reduction != "none" else first.flatten(1).sum(1)
        distance = first.new_zeros(first.shape[0])
        pairs = zip(self.features(first), self.features(second), self.linear, strict=True)
        for a, b, weight in pairs:
            difference = (_unit(a) - _unit(b)) ** 2
            distance = distance + (difference * weight).sum(1).mean((1, 2))
        return {"mean": distance.mean(), "sum": distance.sum(), "none": distance}[self.reduction]


def _unit(features: Tensor) -> Tensor:
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + _EPSILON)


def _original(name: str) -> str:
    """A weight's name in the files."""
    if name.startswith("linear."):
        return f"lin{name.removeprefix('linear.')}.model.1.weight"
    return name.replace("convs.", "features.", 1)


def _map_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's ``features.N.*`` or LPIPS's ``net.sliceK.N.*`` -> ``convs.N.*``."""
    pattern = re.compile(r"(?:module\.)?(?:features|(?:net\.)?slice\d)\.(\d+)\.(weight|bias)")
    matches = ((pattern.fullmatch(name), value) for name, value in state.items())
    return {f"convs.{m[1]}.{m[2]}": value for m, value in matches if m}


def _map_linear(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``linK.model.1.weight`` (or ``lins.K.model.1.weight``) -> ``linear.K``."""
    pattern = re.compile(r"(?:module\.)?lin(?:s\.)?(\d)\.(?:model\.\d\.)?weight")
    matches = ((pattern.fullmatch(name), value) for name, value in state.items())
    return {f"linear.{m[1]}": value for m, value in matches if m}


def _read_state(path: str | os.PathLike, network: str) -> dict[str, Tensor]:
    path = Path(path)
    if not path.is_file():
        raise MissingAssetError(f"There is no file '{path}'.", f"LPIPS needs {_SOURCES[network]}.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise FileFormatError(f"'{path}' is damaged or not safetensors ({error}).") from error
    from guava.model.torch_file import read_torch_file

    state = read_torch_file(path, what="file of weights")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FileFormatError(f"'{path}' holds something else than named tensors.")
    return state
