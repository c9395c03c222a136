"""From features to the attributes of Gaussians (Sec. 3.2): per vertex, and per texel.

Sub-keys of the state dicts are those of the authors' release (``vertex_gs_decoder``, ``uv_point_decoder``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guava.model.camera_code import CODE_CHANNELS
from guava.model.outputs import TemplateGaussians

RotationNorm = Literal["vertex", "component"]


class TemplateDecoder(nn.Module):
    """D_T: the attributes of the template Gaussians from ``f_p + f_b + f_id`` (concatenated, Sec. 3.2).

    Args:
        in_channels: Channels of the concatenated vertex features.
        feature_channels: Channels of every Gaussian's appearance.
        code_channels: Channels of the camera code.
        hidden: Width of the trunk.
        head_hidden: Width of the four heads.
        max_scale: Scale at saturation, metres.
        rotation_norm: "vertex": every component of the quaternions is divided by its own norm over all V
            vertices, as the release does (the outcome depends on V, and the quaternions are not unit);
            "component": unit quaternions.

    Raises:
        ValueError: An unknown ``rotation_norm``.
    """

    def __init__(
        self,
        in_channels: int = 512,
        feature_channels: int = 32,
        *,
        code_channels: int = CODE_CHANNELS,
        hidden: int = 256,
        head_hidden: int = 128,
        max_scale: float = 0.05,
        rotation_norm: RotationNorm = "vertex",
    ):
        super().__init__()
        if rotation_norm not in ("vertex", "component"):
            raise ValueError(f"There is no rotation norm '{rotation_norm}'; choose 'vertex' or 'component'.")
        self.max_scale, self.rotation_norm = max_scale, rotation_norm
        self.feature_layers = nn.Sequential(
            nn.Linear(in_channels, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden),
        )  # fmt: skip

        def head(channels: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(hidden + code_channels, head_hidden), nn.ReLU(), nn.Linear(head_hidden, channels)
            )

        self.color_layers = head(feature_channels)
        self.opacity_layers = head(1)
        self.scale_layers = head(3)
        self.rotation_layers = head(4)

    def forward(self, features: Tensor, code: Tensor) -> TemplateGaussians:
        """(B, V, in_channels) in the order [sampled | vertex base | global], and (B, 27)."""
        trunk = self.feature_layers(features)
        code = code.to(trunk.dtype)[:, None].expand(-1, trunk.shape[1], -1)
        trunk = torch.cat([trunk, code], -1)
        axis = 1 if self.rotation_norm == "vertex" else -1
        # Norms, sigmoids' tails and scales need more than half precision's digits.
        dtype = torch.promote_types(trunk.dtype, torch.float32)
        return TemplateGaussians(
            rotations=F.normalize(self.rotation_layers(trunk).to(dtype), dim=axis, eps=1e-12),
            scales=self.max_scale * self.scale_layers(trunk).to(dtype).sigmoid(),
            opacities=self.opacity_layers(trunk).to(dtype).sigmoid(),
            features=self.color_layers(trunk).to(dtype),
        )


@dataclass(frozen=True)
class UVMaps:
    """Attributes of UV Gaussians as maps; see :class:`guava.model.outputs.UVGaussians` for their meaning.

    Attributes:
        local_offsets: (B, 3, H, W).
        rotations: (B, 4, H, W) unit over the channels.
        scales: (B, 3, H, W).
        opacities: (B, 1, H, W).
        features: (B, C, H, W) raw.
    """

    local_offsets: Tensor
    rotations: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor


class UVDecoder(nn.Module):
    """The convolutional half of D_UV: the attributes of every texel's Gaussian.

    Args:
        in_channels: Channels of the StyleUNet's map and the UV base feature together.
        feature_channels: Channels of every Gaussian's appearance.
        code_channels: Channels of the camera code.
    """

    def __init__(
        self, in_channels: int = 128, feature_channels: int = 32, *, code_channels: int = CODE_CHANNELS
    ):
        super().__init__()
        wide, narrow = max(in_channels, 128), max(in_channels // 2, 64)

        def conv(cin: int, cout: int) -> nn.Conv2d:
            return nn.Conv2d(cin, cout, 3, padding=1)

        def head(hidden: int, channels: int) -> nn.Sequential:
            return nn.Sequential(conv(wide, hidden), nn.LeakyReLU(), nn.Conv2d(hidden, channels, 1))

        self.feature_conv = nn.Sequential(
            conv(in_channels + code_channels, wide), nn.LeakyReLU(),
            conv(wide, wide), nn.LeakyReLU(),
            conv(wide, wide),
        )  # fmt: skip
        self.rot_head, self.scale_head, self.opacity_head = head(narrow, 4), head(narrow, 3), head(narrow, 1)
        self.color_head = head(wide, feature_channels)
        self.local_pos_head = nn.Sequential(
            conv(wide, wide), nn.LeakyReLU(), conv(wide, narrow), nn.LeakyReLU(), nn.Conv2d(narrow, 3, 1)
        )

    def forward(self, maps: Tensor, code: Tensor) -> UVMaps:
        """(B, in_channels, H, W) in the order [StyleUNet | UV base], and (B, 27)."""
        planes = code.to(maps.dtype)[:, :, None, None].expand(-1, -1, *maps.shape[2:])
        trunk = self.feature_conv(torch.cat([maps, planes], 1))
        dtype = torch.promote_types(trunk.dtype, torch.float32)
        return UVMaps(
            local_offsets=self.local_pos_head(trunk).to(dtype),
            rotations=F.normalize(self.rot_head(trunk).to(dtype), dim=1, eps=1e-12),
            scales=self.scale_head(trunk).to(dtype).exp(),
            opacities=self.opacity_head(trunk).to(dtype).sigmoid(),
            features=self.color_head(trunk).to(dtype),
        )
