"""Every choice of the learned system in one dataclass, and the three presets.

The authors' release differs from the paper in places ([P]) and has quirks that its checkpoint depends on
([Q]). Each is a named option here, so that ``official`` reproduces the release, ``paper`` follows the text,
and nobody has to guess which reading a network was trained with. The table of readings, with reasons, is
docs/network.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from guava.errors import InputError


@dataclass(frozen=True)
class EncoderConfig:
    """The image encoder and what it hands on.

    Attributes:
        kind: "dinov2" is DINOv2 ViT-B/14 with a dense neck; "compact" is a small convolutional network that
            two CPU cores can run and train.
        image_size: Side of the picture that the encoder sees.
        map_size: Side of its feature maps.
        uv_channels: Channels of f_map1, for inverse texture mapping.
        template_channels: Channels of f_map2, sampled at the vertices (Eq. 2).
        global_channels: Channels of the global ID embedding f_id; for "dinov2" also the backbone's width.
        width: Channels of the dense neck, or of the compact encoder's finest level.
        neck_channels: Channels of the dense neck's four stages; the compact encoder has none.
        pyramid: Which blocks feed the neck: the low level first, then stages 0-3. [Q] the release takes the
            last five, 7-11, not blocks spread over the depth. No block after the last of them is built.
        global_token: What f_id is. [Q][P] The release takes the first *patch* (the picture's top-left corner)
            of the last block; "class" is the class token, the usual image embedding.
        silhouette: Whether the encoder also sees the projected body's silhouette and the person mask.
    """

    kind: Literal["dinov2", "compact"] = "dinov2"
    image_size: int = 518
    map_size: int = 512
    uv_channels: int = 32
    template_channels: int = 128
    global_channels: int = 768
    width: int = 64
    neck_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    pyramid: tuple[int, int, int, int, int] = (7, 8, 9, 10, 11)
    global_token: Literal["first_patch", "class"] = "first_patch"
    silhouette: bool = False


@dataclass(frozen=True)
class TemplateBranchConfig:
    """The template Gaussians' branch (Sec. 3.2, Eq. 2).

    Attributes:
        base_channels: Channels of the learned feature of every vertex.
        global_channels: Channels that f_id is mapped to.
        max_scale: Scale of a template Gaussian at saturation, metres.
        rotation_norm: [Q] The release normalises quaternions over the *vertex* axis, which turns them;
            "component" is the usual norm of a quaternion.
    """

    base_channels: int = 128
    global_channels: int = 256
    max_scale: float = 0.05
    rotation_norm: Literal["vertex", "component"] = "vertex"


@dataclass(frozen=True)
class UVBranchConfig:
    """The UV Gaussians' branch (Sec. 3.2, B.4).

    Attributes:
        kind: "styleunet" is the paper's StyleUNet and convolutional decoder with offsets in triangle units
            (Eq. 3); "residual" is the compact one: a U-Net that starts from the sampled RGB and predicts
            bounded absolute offsets in a smooth frame.
        size: Side of the UV maps.
        base_channels: Channels of the learned UV base feature.
        feature_channels: Channels that the StyleUNet (or U-Net) hands to the decoder.
        style_channels: Width of the style vectors.
        channel_scale: Divides the StyleUNet's channels.
        noise: Noise inside the StyleUNet. [Q] The release draws fresh noise at every call, in evaluation too;
            "off" is deterministic.
        collapsed_texels: [Q] 547 texels of the release's table lie on triangles that rounding collapsed, and
            their Gaussians hang at the world origin; "drop" leaves them out.
        sample_hidden: Sample the encoder's features at hidden texels too (with the visibility as an input).
            The release sets hidden texels to zero.
        second_layer: A second, small UV layer over scalp, neck, upper torso and upper arms, for hair in front
            of the body and loose cloth.
        widths: Channels of the compact U-Net at 1/2, 1/4, 1/8, 1/16 and 1/32 of ``size``.
        prior: What the compact network starts from. "none": the colours that the picture shows of the bare
            body; "baseline": the texture and displacement of an avatar of the "baseline" generator
            (``SourceBatch.prior``).
    """

    kind: Literal["styleunet", "residual"] = "styleunet"
    size: int = 512
    base_channels: int = 32
    feature_channels: int = 96
    style_channels: int = 512
    channel_scale: float = 1.0
    noise: Literal["off", "random"] = "random"
    collapsed_texels: Literal["origin", "drop"] = "origin"
    sample_hidden: bool = False
    second_layer: bool = False
    widths: tuple[int, int, int, int, int] = (32, 64, 128, 256, 320)
    prior: Literal["none", "baseline"] = "none"


@dataclass(frozen=True)
class RefinerConfig:
    """The neural refiner (Sec. 3.3).

    Attributes:
        kind: "styleunet" is the paper's; "residual" is a compact network that corrects the coarse picture.
        size: Side of the picture it works on.
        style_channels, channel_scale, noise: See :class:`UVBranchConfig`.
        width: Channels of the compact refiner at its working resolution.
    """

    kind: Literal["styleunet", "residual"] = "styleunet"
    size: int = 512
    style_channels: int = 512
    channel_scale: float = 1.0
    noise: Literal["off", "random"] = "random"
    width: int = 64


@dataclass(frozen=True)
class Ablation:
    """What Tab. 4 leaves out. Each switch changes the network that is built, so it belongs to training too.

    Attributes:
        refiner: False: the coarse picture is the result.
        inverse_mapping: False: the screen-space map goes into the UV decoder as it is.
        uv_gaussians: False: template Gaussians only.
        expressive_head: False: the body model keeps its own head ("w/o EHM"), in tracking too (C.4).
    """

    refiner: bool = True
    inverse_mapping: bool = True
    uv_gaussians: bool = True
    expressive_head: bool = True


@dataclass(frozen=True)
class GuavaConfig:
    """The learned system of Sec. 3.2-3.3.

    Attributes:
        preset: Name of the preset that this started from.
        encoder, template_branch, uv_branch, refiner: Its parts; ``template_branch`` is None where the preset
            has no template Gaussians.
        channels: Feature channels of every Gaussian; the first three are RGB.
        opacity_threshold: UV Gaussians at or below it are pruned when an avatar is made.
        view_direction: The 3-vector of the camera code. [Q] The release takes the third *column* of the
            world-to-camera rotation (world z seen by the camera); "camera_axis" is the third row (the
            camera's axis in the world).
        sigma_rule: [P] sigma of Eq. 3: the paper's mean edge length, or the release's mean of one edge and
            the height over it.
        splat_conventions: Constants of the splatter: "gsplat" or "3dgs" (the release's rasteriser).
        ablation: Tab. 4's switches.
    """

    preset: str = "official"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    template_branch: TemplateBranchConfig | None = field(default_factory=TemplateBranchConfig)
    uv_branch: UVBranchConfig = field(default_factory=UVBranchConfig)
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    channels: int = 32
    opacity_threshold: float = 0.001
    view_direction: Literal["third_column", "camera_axis"] = "third_column"
    sigma_rule: Literal["mean_edge", "edge_and_height"] = "edge_and_height"
    splat_conventions: Literal["gsplat", "3dgs"] = "3dgs"
    ablation: Ablation = field(default_factory=Ablation)


def official() -> GuavaConfig:
    """Bit-faithful to the authors' release: every [Q] and [P] as its code has it."""
    return GuavaConfig()


def paper() -> GuavaConfig:
    """The paper's text where the release differs from it, and the evident intention where the release has a
    quirk that the text does not mention. docs/network.md has the reasons, one by one."""
    return GuavaConfig(
        preset="paper",
        encoder=EncoderConfig(pyramid=(2, 2, 5, 8, 11), global_token="class"),
        template_branch=TemplateBranchConfig(rotation_norm="component"),
        uv_branch=UVBranchConfig(noise="off", collapsed_texels="drop"),
        refiner=RefinerConfig(noise="off"),
        view_direction="camera_axis",
        sigma_rule="mean_edge",
        splat_conventions="gsplat",
    )


def lite() -> GuavaConfig:
    """For two CPU cores: at most 20 M parameters, with what mattered in our first trainings."""
    return GuavaConfig(
        preset="lite",
        encoder=EncoderConfig(
            kind="compact", image_size=512, map_size=256, uv_channels=48, template_channels=48,
            global_channels=256, width=32, silhouette=True,
        ),
        template_branch=None,
        uv_branch=UVBranchConfig(
            kind="residual", base_channels=16, feature_channels=32, style_channels=256, noise="off",
            collapsed_texels="drop", sample_hidden=True, second_layer=True,
        ),
        refiner=RefinerConfig(kind="residual", noise="off", width=64),
        view_direction="camera_axis",
        sigma_rule="mean_edge",
        splat_conventions="gsplat",
    )


PRESETS = {"official": official, "paper": paper, "lite": lite}


def preset(name: str, **changes: object) -> GuavaConfig:
    """A preset by name, with fields replaced.

    Raises:
        InputError: There is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"There is no preset '{name}'.", f"Choose one of: {', '.join(PRESETS)}.")
    return replace(PRESETS[name](), **changes)
