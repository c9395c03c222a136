"""The image encoder (Sec. 3.2, B.2): a frozen DINOv2 and the dense neck that upsamples its tokens.

The neck's sub-keys are those of the authors' release (``dino_encoder.*`` without ``dino_model``); the
backbone is transformers' ``Dinov2Model``, which needs the extra "network". All maps are (B, C, H, W) with
half-pixel centres, except where align_corners is said.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guava.errors import MissingDependencyError
from guava.model.config import EncoderConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PATCH = 14
HEAD_CHANNELS = 64  # of one attention head, in every DINOv2


def normalize_image(image: Tensor) -> Tensor:
    """(B, 3, H, W) RGB in [0, 1] -> ImageNet's normalisation."""
    mean, std = image.new_tensor(IMAGENET_MEAN), image.new_tensor(IMAGENET_STD)
    return (image - mean[:, None, None]) / std[:, None, None]


class ImageEncoder(nn.Module):
    """A picture -> f_map1, f_map2 and f_id.

    The backbone is as wide as ``config.global_channels`` and as deep as the last block that
    ``config.pyramid`` names: ViT-B/14 for the presets. Its weights are *random* until they are loaded, and it
    is frozen.

    Args:
        config: With ``kind`` "dinov2".

    Raises:
        MissingDependencyError: transformers is not installed.
        ValueError: Another kind or an unknown token, a picture that does not divide into patches, or a width
            that does not divide into heads.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        if config.kind != "dinov2":
            raise ValueError(f"ImageEncoder is the 'dinov2' encoder, not '{config.kind}'.")
        if config.global_token not in ("first_patch", "class"):
            raise ValueError(f"There is no global token '{config.global_token}': 'first_patch' or 'class'.")
        if config.image_size % PATCH:
            raise ValueError(f"image_size {config.image_size} is not a multiple of {PATCH}.")
        self.config = config
        self.backbone = build_backbone(
            channels=config.global_channels, blocks=max(config.pyramid) + 1, image_size=config.image_size
        )
        self.neck = EncoderNeck(
            token_channels=config.global_channels,
            stage_channels=config.neck_channels,
            width=config.width,
            map_size=config.map_size,
            uv_channels=config.uv_channels,
            template_channels=config.template_channels,
            image_channels=5 if config.silhouette else 3,
        )

    def forward(self, image: Tensor, shapes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            image: (B, 3, S, S) RGB in [0, 1], S a multiple of 14.
            shapes: (B, 2, S, S) body silhouette and person mask in [0, 1], if ``config.silhouette``.

        Returns:
            f_map1 (B, uv_channels, M, M), f_map2 (B, template_channels, M, M), f_id (B, global_channels).

        Raises:
            ValueError: ``shapes`` missing or needless, or S not a multiple of 14.
        """
        if (shapes is not None) != self.config.silhouette:
            raise ValueError("An encoder with 'silhouette' needs shapes, and no other takes them.")
        normalized = normalize_image(image)
        maps, first, last = self.tokens(normalized)
        f_id = first if self.config.global_token == "class" else last
        if shapes is not None:
            normalized = torch.cat([normalized, shapes.to(normalized.dtype)], 1)
        return *self.neck(maps, normalized), f_id

    def tokens(self, normalized: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """The backbone's patch tokens as maps, one (B, C, S/14, S/14) per entry of ``config.pyramid``, each
        after the final LayerNorm; then the class token and the first patch token of the last block, (B, C).
        """
        height, width = normalized.shape[-2] // PATCH, normalized.shape[-1] // PATCH
        if normalized.shape[-2:] != (height * PATCH, width * PATCH):
            raise ValueError(f"Sides {tuple(normalized.shape[-2:])} are not multiples of {PATCH}.")
        # Block by block, because only some blocks' tokens are wanted, and each after the final norm.
        x = self.backbone.embeddings(normalized)
        normed = {}
        for index, block in enumerate(self.backbone.encoder.layer):
            x = block(x)
            if index in self.config.pyramid:
                normed[index] = self.backbone.layernorm(x)
        maps = [
            normed[index][:, 1:].transpose(1, 2).unflatten(2, (height, width))
            for index in self.config.pyramid
        ]
        last = normed[max(self.config.pyramid)]
        return maps, last[:, 0], last[:, 1]


def build_backbone(channels: int = 768, blocks: int = 12, image_size: int = 518) -> nn.Module:
    """transformers' ``Dinov2Model`` with random weights, frozen; nothing is downloaded. The defaults are
    ViT-B/14 with positions for 37 x 37 patches.

    Raises:
        MissingDependencyError: transformers is not installed.
        ValueError: ``channels`` is not a multiple of 64.
    """
    try:
        from transformers import Dinov2Config, Dinov2Model
    except ImportError as error:
        raise MissingDependencyError("transformers", "network", "The DINOv2 image encoder") from error
    if channels % HEAD_CHANNELS:
        raise ValueError(f"A DINOv2's width is a multiple of {HEAD_CHANNELS}, not {channels}.")
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=channels,
            num_hidden_layers=blocks,
            num_attention_heads=channels // HEAD_CHANNELS,
            mlp_ratio=4,
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            image_size=image_size,
            patch_size=PATCH,
            qkv_bias=True,
            attn_implementation="sdpa",
        )
    )
    return model.requires_grad_(False).eval()


class EncoderNeck(nn.Module):
    """Convolutional upsampling of the tokens to the picture's resolution, with the picture itself at every
    level.

    Args:
        token_channels: Channels of the tokens.
        width: Channels of the fused maps.
        stage_channels: Channels of the four stages.
        map_size: Side of the outputs.
        uv_channels, template_channels: Channels of f_map1 and f_map2.
        image_channels: Channels of the picture.
    """

    def __init__(
        self,
        token_channels: int = 768,
        width: int = 64,
        stage_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024),
        map_size: int = 512,
        uv_channels: int = 32,
        template_channels: int = 128,
        image_channels: int = 3,
    ):
        super().__init__()
        self.map_size = map_size
        c0, c1, _, c3 = stage_channels

        def conv(cin: int, cout: int, *, bias: bool = False) -> nn.Conv2d:
            return nn.Conv2d(cin, cout, 3, padding=1, bias=bias)

        self.projects = nn.ModuleList(nn.Conv2d(token_channels, c, 1) for c in stage_channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(c0, c0, 4, stride=4),
                nn.ConvTranspose2d(c1, c1, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(c3, c3, 3, stride=2, padding=1),
            ]
        )
        self.layer_rn = nn.ModuleList(conv(image_channels + c, width) for c in stage_channels)
        self.refinenet = nn.ModuleList(FusionBlock(width) for _ in stage_channels)
        self.project_l = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            conv(token_channels, width),
            nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True),
            conv(width, width // 2),
        )
        fused = image_channels + width
        self.fuse_l = nn.Sequential(conv(fused + width // 2, width), nn.LeakyReLU(), conv(width, width))
        self.skip_l = conv(fused, width)
        self.output_conv = conv(width, uv_channels, bias=True)
        self.output_conv_2 = conv(width, template_channels, bias=True)

    def forward(self, tokens: Sequence[Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            tokens: Five (B, token_channels, h, w) maps of normalised patch tokens: the low level, then the
                stages 0-3.
            image: (B, image_channels, H, W), ImageNet-normalised. No gradient goes to it.

        Returns:
            f_map1 (B, uv_channels, M, M) and f_map2 (B, template_channels, M, M).

        Raises:
            ValueError: Other tokens than five such maps.
        """
        if len(tokens) != 5 or any(one.ndim != 4 for one in tokens):
            shapes = ", ".join(str(tuple(one.shape)) for one in tokens)
            raise ValueError(f"The neck takes five (B, C, h, w) maps of patch tokens, not: {shapes}.")
        low, *stages = tokens
        image = image.detach()
        layers = []
        for stage, project, resize, squeeze in zip(
            stages, self.projects, self.resize_layers, self.layer_rn, strict=True
        ):
            x = resize(project(stage))
            small = F.interpolate(
                image, size=x.shape[2:], mode="bilinear", align_corners=False, antialias=True
            )
            layers.append(squeeze(torch.cat([small.to(x.dtype), x], 1)))
        block0, block1, block2, block3 = self.refinenet
        x = block0(layers[3], size=layers[2].shape[2:])
        x = block1(x, layers[2], size=layers[1].shape[2:])
        x = block2(x, layers[1], size=layers[0].shape[2:])
        x = block3(x, layers[0], size=tuple(2 * side for side in layers[0].shape[2:]))

        size = (self.map_size, self.map_size)
        picture = torch.cat([_resize(x, size), _resize(image, size).to(x.dtype)], 1)
        low = _resize(self.project_l(low), size)
        h = self.fuse_l(torch.cat([picture, low], 1)) + self.skip_l(picture)
        return self.output_conv(h), self.output_conv_2(h)


class FusionBlock(nn.Module):
    """Adds a finer level, refines and resizes. (The block of the coarsest level never uses its first unit,
    which the release's checkpoint has all the same.)"""

    def __init__(self, width: int):
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        self.resConfUnit1 = ResidualUnit(width)
        self.resConfUnit2 = ResidualUnit(width)

    def forward(self, x: Tensor, finer: Tensor | None = None, *, size: Sequence[int]) -> Tensor:
        """(B, C, h, w) and perhaps another of the same size -> (B, C, *size)."""
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        # The release resizes first. The two commute, and 1 x 1 is cheaper on fewer pixels.
        return _resize(self.out_conv(self.resConfUnit2(x)), size)


class ResidualUnit(nn.Module):
    """x + conv(ReLU(conv(ReLU(x))))."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
