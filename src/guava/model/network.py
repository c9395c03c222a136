"""The reconstruction network of Sec. 3.2 and the refiner of Sec. 3.3, built from a :class:`GuavaConfig`.

The data flow with all shapes, and what each preset does where paper and release differ, is docs/network.md.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guava.body import Template
from guava.errors import InputError
from guava.model.camera_code import camera_code
from guava.model.config import GuavaConfig
from guava.model.decoders import TemplateDecoder, UVDecoder, UVMaps
from guava.model.encoder import ImageEncoder
from guava.model.outputs import NetworkOutput, TemplateGaussians, UVGaussians
from guava.model.sampling import inverse_texture_map, sample_projected, source_fragments, visible_faces
from guava.model.source import SourceBatch
from guava.model.styleunet import Noise, StyleUNet
from guava.model.texels import uv_texels
from guava.rendering import MeshFragments


def build_network(config: GuavaConfig, template: Template) -> nn.Module:
    """The reconstruction network of a config, on the CPU and with random weights (the backbone's too, until
    they are loaded).

    It is called as ``network(source, noise=None, generator=None)`` with a
    :class:`guava.model.source.SourceBatch` and returns a :class:`guava.model.outputs.NetworkOutput`.

    Raises:
        InputError: Parts that do not go together.
        MissingDependencyError: The encoder needs transformers, which is not installed.
    """
    kinds = (config.encoder.kind, config.uv_branch.kind)
    if kinds == ("dinov2", "styleunet"):
        return GuavaNetwork(config, template)
    if kinds == ("compact", "residual"):
        from guava.model.lite import LiteNetwork

        return LiteNetwork(config, template)
    raise InputError(
        f"The encoder '{kinds[0]}' does not go with the UV branch '{kinds[1]}'.",
        "Use 'dinov2' with 'styleunet', or 'compact' with 'residual'.",
    )


def build_refiner(config: GuavaConfig) -> nn.Module | None:
    """The refiner of a config with random weights; None in the ablation without it.

    It is called as ``refiner(features, alpha, noise="off", generator=None)`` with the splatted features
    (B, C, H, W), premultiplied on black, and their alpha (B, 1, H, W), and returns RGB (B, 3, H, W) in
    [0, 1]. Its ``size`` is the side of the pictures that it is made for.
    """
    if not config.ablation.refiner:
        return None
    if config.refiner.kind == "styleunet":
        return StyleUNetRefiner(config)
    from guava.model.lite import lite_refiner

    return lite_refiner(config)


def to_channels_last(module: nn.Module) -> nn.Module:
    """Lays out the module's convolutions for channels-last maps, in place; returns the module.

    ``module.to(memory_format=torch.channels_last)`` refuses the five-dimensional modulated weights.
    """
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


class GuavaNetwork(nn.Module):
    """DINOv2 encoder, template branch and StyleUNet UV branch: the paper's network.

    The state dict holds the trainable parameters, the unused noise buffers of the release and the frozen
    backbone. Top-level names: ``encoder.neck``, ``encoder.backbone``, ``global_mapping``,
    ``vertex_base_feature`` (V, 128), ``template_decoder``, ``uv_style_mapping``, ``uv_styleunet``,
    ``uv_base_feature`` (32, S, S), ``uv_decoder``; a branch that the config leaves out has none.

    Args:
        config: With the encoder "dinov2" and the UV branch "styleunet".
        template: Its vertices, faces and UV atlas; nothing else of it is kept.

    Attributes:
        faces: (F, 3) int64 buffer.
        texel_faces, texel_barycentrics: (S, S) int32 and (S, S, 3), the UV atlas.
        texel_index: (M,) int64: row-major positions of the texels that carry a Gaussian.

    Raises:
        InputError: An option that belongs to the other kind of network, or no Gaussians at all.
    """

    faces: Tensor
    texel_faces: Tensor
    texel_barycentrics: Tensor
    texel_index: Tensor

    def __init__(self, config: GuavaConfig, template: Template):
        super().__init__()
        encoder, uv, branch = config.encoder, config.uv_branch, config.template_branch
        if uv.second_layer:
            raise InputError(
                "A second UV layer belongs to the UV branch 'residual'.",
                "Set uv_branch.second_layer to False.",
            )
        if uv.prior != "none":
            raise InputError(
                "A prior belongs to the UV branch 'residual'.", "Set uv_branch.prior to 'none'."
            )
        if branch is None and not config.ablation.uv_gaussians:
            raise InputError("Without template branch and UV Gaussians nothing is left to predict.")
        self.config = config
        self.encoder = ImageEncoder(encoder)
        if branch is not None:
            vertices = template.body.num_vertices
            self.global_mapping = _mapping(encoder.global_channels, branch.global_channels)
            self.vertex_base_feature = nn.Parameter(torch.randn(vertices, branch.base_channels))
            self.template_decoder = TemplateDecoder(
                encoder.template_channels + branch.base_channels + branch.global_channels,
                config.channels,
                max_scale=branch.max_scale,
                rotation_norm=branch.rotation_norm,
            )
        if config.ablation.uv_gaussians:
            self.uv_style_mapping = _mapping(encoder.global_channels, uv.style_channels)
            self.uv_styleunet = StyleUNet(
                3 + encoder.uv_channels + int(uv.sample_hidden),
                uv.feature_channels,
                size=uv.size,
                style_channels=uv.style_channels,
                extra_style=uv.style_channels,
                channel_scale=uv.channel_scale,
            )
            self.uv_base_feature = nn.Parameter(torch.randn(uv.base_channels, uv.size, uv.size))
            self.uv_decoder = UVDecoder(uv.feature_channels + uv.base_channels, config.channels)
        self._register_tables(template)

    def _register_tables(self, template: Template) -> None:
        """Buffers that follow the module to its device and are no part of its weights."""
        self._mesh_faces = template.faces.long().cpu()  # for the z-buffer, which stays on the CPU
        uv = self.config.uv_branch
        texels = uv_texels(template, uv.size)
        carries = texels.mask
        if uv.collapsed_texels not in ("origin", "drop"):
            raise InputError(f"Collapsed texels are 'origin' or 'drop', not '{uv.collapsed_texels}'.")
        if uv.collapsed_texels == "drop":
            carries = carries & (texels.barycentrics.sum(-1) > 0)
        tables = {
            "faces": template.faces.long(),
            "texel_faces": texels.face_ids,
            "texel_barycentrics": texels.barycentrics,
            "texel_index": carries.flatten().nonzero()[:, 0],
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(
        self,
        source: SourceBatch,
        *,
        noise: Noise | None = None,
        generator: torch.Generator | None = None,
    ) -> NetworkOutput:
        """All Gaussians of the people in B source views.

        Args:
            source: Tensors on the module's device.
            noise: Of the UV StyleUNet (:class:`StyleUNet`); what the config says without it.
            generator: Source of random noise, on the module's device.

        Raises:
            ValueError: A picture of another size than the encoder's.
        """
        config = self.config
        side = config.encoder.image_size
        if source.image.shape[2:] != (side, side):
            raise ValueError(f"The encoder sees {side} x {side} pixels, not {tuple(source.image.shape)}.")
        f_map1, f_map2, f_id, visible = self.encode(source)
        code = self.camera_code(source)
        template, uv, texture = None, (), None
        if config.template_branch is not None:
            template = self.template_gaussians(source, f_map2, f_id, code)
        if config.ablation.uv_gaussians:
            painted = self.paint(source, f_map1, f_id, visible, noise=noise, generator=generator)
            uv = (self.uv_gaussians(painted, code),)
            texture = painted[:, :3].float().sigmoid()
        return NetworkOutput(template, uv, texture)

    # --- the steps, for whoever compares or times them ------------------------------------------------------

    def encode(self, source: SourceBatch) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """f_map1 (B, 32, 512, 512), f_map2 (B, 128, 512, 512), f_id (B, 768), and which faces the source
        shows, (B, F) bool, or None where nothing asks for it."""
        encoder, ablation = self.config.encoder, self.config.ablation
        if not (encoder.silhouette or (ablation.uv_gaussians and ablation.inverse_mapping)):
            return *self.encoder(source.image), None
        # To the CPU before the encoder is queued: behind it, the copy would wait for the whole of it.
        posed = replace(source, vertices=source.vertices.detach().cpu(), camera=source.camera.to("cpu"))
        if encoder.silhouette:
            visible, body = self._seen(posed)
            body = F.interpolate(
                body.to(source.mask), size=source.mask.shape[2:], mode="bilinear", align_corners=False
            )
            encoded = self.encoder(source.image, torch.cat([body, source.mask], 1))
        else:
            encoded = self.encoder(source.image)
            visible, _ = self._seen(posed)
        return *encoded, visible.to(source.image.device)

    def _seen(self, posed: SourceBatch) -> tuple[Tensor, Tensor]:
        """Which faces the source shows (B, F), and the body's silhouette (B, 1, M, M); bool, on the CPU."""
        fragments = source_fragments(
            posed.vertices, self._mesh_faces, posed.camera, self.config.encoder.map_size
        )
        visible = torch.stack([visible_faces(one, len(self._mesh_faces)) for one in fragments])
        return visible, torch.stack([one.mask for one in fragments])[:, None]

    def camera_code(self, source: SourceBatch) -> Tensor:
        """(B, 27)."""
        code = camera_code(source.camera.world_to_camera, self.config.view_direction)
        return code.expand(source.image.shape[0], -1).to(source.image.dtype)

    def template_gaussians(
        self, source: SourceBatch, f_map2: Tensor, f_id: Tensor, code: Tensor
    ) -> TemplateGaussians:
        """The template branch: Eq. 2, [f_p | f_b | f_id] of every vertex, D_T."""
        sampled = sample_projected(f_map2, source.vertices, source.camera)
        batch, count = sampled.shape[:2]
        base = self.vertex_base_feature.to(sampled.dtype).expand(batch, -1, -1)
        identity = self.global_mapping(f_id)[:, None].expand(-1, count, -1).to(sampled.dtype)
        return self.template_decoder(torch.cat([sampled, base, identity], -1), code)

    def uv_features(self, source: SourceBatch, f_map1: Tensor, visible: Tensor | None) -> Tensor:
        """F_uv (B, 35, S, S): inverse texture mapping of [RGB | f_map1] (Eq. 6)."""
        uv, size = self.config.uv_branch, f_map1.shape[-1]
        rgb = F.interpolate(source.image, size=(size, size), mode="bilinear", align_corners=False)
        features = torch.cat([rgb.to(f_map1.dtype), f_map1], 1)
        if not self.config.ablation.inverse_mapping:
            mapped = F.interpolate(features, size=(uv.size, uv.size), mode="bilinear", align_corners=False)
            seen = torch.zeros_like(mapped[:, :1])
        else:
            texels = MeshFragments(self.texel_faces, self.texel_barycentrics, self.texel_barycentrics[..., 0])
            mapped, seen = inverse_texture_map(
                features, source.vertices, self.faces, texels, source.camera,
                visible=None if uv.sample_hidden else visible,
            )  # fmt: skip
            if uv.sample_hidden:
                seen = visible[:, self.texel_faces.clamp(min=0).long()] & texels.mask
            seen = seen[:, None].to(mapped.dtype)
        return torch.cat([mapped, seen], 1) if uv.sample_hidden else mapped

    def paint(
        self,
        source: SourceBatch,
        f_map1: Tensor,
        f_id: Tensor,
        visible: Tensor | None,
        *,
        noise: Noise | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, 96, S, S): the StyleUNet fills what the picture does not show."""
        mapped = self.uv_features(source, f_map1, visible)
        noise = self.config.uv_branch.noise if noise is None else noise
        return self.uv_styleunet(mapped, self.uv_style_mapping(f_id), noise=noise, generator=generator)

    def uv_gaussians(self, painted: Tensor, code: Tensor) -> UVGaussians:
        """One Gaussian for every valid texel, in row-major order."""
        base = self.uv_base_feature.to(painted.dtype).expand(painted.shape[0], -1, -1, -1)
        maps: UVMaps = self.uv_decoder(torch.cat([painted, base], 1), code)

        def gathered(attribute: Tensor) -> Tensor:
            return attribute.flatten(2).index_select(2, self.texel_index).transpose(1, 2)

        return UVGaussians(
            face_ids=self.texel_faces.flatten()[self.texel_index].long(),
            barycentrics=self.texel_barycentrics.flatten(0, 1)[self.texel_index],
            local_offsets=gathered(maps.local_offsets),
            rotations=gathered(maps.rotations),
            scales=gathered(maps.scales),
            opacities=gathered(maps.opacities),
            features=gathered(maps.features),
        )


class StyleUNetRefiner(StyleUNet):
    """The paper's refiner (Sec. 3.3): the splatted features -> the picture.

    Its state dict is that of the release's ``nerual_refiner``.
    """

    def __init__(self, config: GuavaConfig):
        super().__init__(
            config.channels,
            3,
            size=config.refiner.size,
            style_channels=config.refiner.style_channels,
            extra_style=0,
            small=True,
            activation="sigmoid",
            channel_scale=config.refiner.channel_scale,
        )
        self.noise = config.refiner.noise

    def forward(
        self,
        features: Tensor,
        alpha: Tensor | None = None,
        *,
        noise: Noise | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, C, H, W) on black -> (B, 3, H, W). ``alpha`` is not read: features on black tell it. Noise
        without an argument is the config's."""
        return super().forward(features, noise=self.noise if noise is None else noise, generator=generator)


def _mapping(cin: int, cout: int) -> nn.Sequential:
    """f_id -> a branch's own embedding (B.2)."""
    return nn.Sequential(
        nn.Linear(cin, cout), nn.LeakyReLU(), nn.Linear(cout, cout), nn.LeakyReLU(), nn.Linear(cout, cout)
    )
