"""The ``lite`` preset: a network that starts from the photo's own colours on the surface and corrects them.

Every texel of the atlas begins as a disc on the body with the colour that the picture shows at its projection
(or shows on the other side of the body, or that its surroundings have), and a small U-Net over the atlas
predicts what to change: colour, offset from the body in metres, size, turn, opacity, latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from guava.body import Template
from guava.errors import InputError
from guava.model.config import GuavaConfig
from guava.model.lite.frames import MIN_DISC, SmoothFrames, to_triangle_units
from guava.model.lite.layers import CompactEncoder, ScaledLinear, UVNet
from guava.model.lite.prior import read_prior
from guava.model.lite.source import SurfaceView, look
from guava.model.lite.tables import SECOND_STRIDE, uv_tables
from guava.model.outputs import NetworkOutput, UVGaussians
from guava.model.sampling import sample_features
from guava.model.source import SourceBatch, SurfacePrior
from guava.rotation import quaternion_multiply

DISC = 0.62
"""Standard deviation of a Gaussian at initialisation, in texels: flat where they overlap, without holes."""

THICKNESS = 4e-4
"""Standard deviation across the surface at initialisation, metres."""

OPACITY, SECOND_OPACITY = 3.0, -3.5
"""Logits at initialisation: 0.95 and 0.03. The second layer must stay above the splatter's smallest alpha,
1/255, or no gradient would ever wake it."""

SECOND_REACH = 0.07
"""Metres that a second-layer Gaussian may move along each axis."""

TRUST = 6.0
"""Bias of the softmax towards the seen colour, or the mirrored one where only that is seen."""

SCALE_RANGE = 1.5
"""Scales stay within exp(+-1.5) of where they start."""

BASE_SIZE = 256
"""Side of the learned base feature, whatever the atlas' size."""

_EPS = 1e-4
_START = 2e-3  # of the outputs, before their activations


class _Head(nn.Module):
    """Two linear layers a Gaussian, with named outputs."""

    def __init__(self, inputs: int, hidden: int, outputs: dict[str, int]):
        super().__init__()
        self.outputs = outputs
        self.hidden = ScaledLinear(inputs, hidden)
        self.last = ScaledLinear(hidden, sum(outputs.values()))
        # Small, so that the first avatar is the photo's; not zero, so that gradients reach what lies before.
        nn.init.normal_(self.last.weight, std=_START)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        out = self.last(nn.functional.silu(self.hidden(features))).float()
        return dict(zip(self.outputs, out.split(list(self.outputs.values()), -1), strict=True))


class LiteNetwork(nn.Module):
    """The compact network (at most 20 M parameters together with its refiner).

    Its state holds weights only: everything that comes from the template or the atlas' size is made anew, so
    the same weights run at 256 and 512 (:meth:`set_atlas_size`).

    Args:
        config: The ``lite`` preset or a variation of it.
        template: Any template; names of parts that it does not share with ours get cautious limits.

    Raises:
        InputError: The configuration asks for what this network is not.
    """

    def __init__(self, config: GuavaConfig, template: Template):
        super().__init__()
        if config.encoder.kind != "compact" or config.uv_branch.kind != "residual":
            raise InputError("LiteNetwork needs encoder.kind 'compact' and uv_branch.kind 'residual'.")
        if config.template_branch is not None:
            raise InputError("The lite network has no template Gaussians; template_branch must be None.")
        if not (config.ablation.uv_gaussians and config.ablation.inverse_mapping):
            raise InputError(
                "The lite network is nothing but UV Gaussians from inverse texture mapping.",
                "Use the preset 'paper' for these ablations.",
            )
        if not config.uv_branch.sample_hidden or config.uv_branch.collapsed_texels != "drop":
            raise InputError("LiteNetwork needs uv_branch.sample_hidden and collapsed_texels 'drop'.")
        _check_size(config.uv_branch.size)
        self.config = config
        self.template = template
        encoder, branch = config.encoder, config.uv_branch
        self.tables = uv_tables(template, branch.size)
        self.encoder = CompactEncoder(
            5 if encoder.silhouette else 3, encoder.width, encoder.uv_channels, encoder.global_channels
        )
        self.uv_base_feature = nn.Parameter(0.1 * torch.randn(branch.base_channels, BASE_SIZE, BASE_SIZE))
        surface = 3 + 1 + 3 + 1 + 3 + 1 + 1 + 3 + 1 + 3  # as they are joined in `_surface_inputs`
        surface += 3 + 1 + 3 + 1 if branch.prior != "none" else 0
        self.gather = nn.Sequential(
            ScaledLinear(surface + branch.base_channels + encoder.uv_channels, 48, gain=1),
            nn.SiLU(),
            ScaledLinear(48, 24),
        )
        self.uv_net = UVNet(24, branch.feature_channels, 32, encoder.global_channels, branch.widths)
        latents = config.channels - 3
        shared = {"offset": 3, "opacity": 1, "scale": 3, "turn": 3, "latent": latents}
        self.head = _Head(branch.feature_channels, 64, {"mix": 3, "color": 3, "tint": 3, **shared})
        self.second_head = _Head(32, 48, {"color": 3, **shared}) if branch.second_layer else None
        self.to(memory_format=torch.channels_last)

    def set_atlas_size(self, size: int) -> None:
        """Run with another atlas from now on; a multiple of 32. The weights stay."""
        _check_size(size)
        self.tables = uv_tables(self.template, size).to(self.uv_base_feature.device)

    def look(self, source: SourceBatch) -> SurfaceView:
        """What the picture shows of the surface: the part of :meth:`forward` that has no weights, for a
        trainer's data workers."""
        return look(source, self.tables, self.config.sigma_rule)

    def forward(
        self,
        source: SourceBatch,
        *,
        noise: str | Sequence[Tensor] = "off",
        generator: torch.Generator | None = None,
        view: SurfaceView | None = None,
    ) -> NetworkOutput:
        """Predict the Gaussians of B people.

        Args:
            source: B source views; the picture's side must be a multiple of 32 and need not be the
                configuration's.
            noise, generator: For the common interface; nothing here is random, and maps are refused.
            view: :meth:`look` of ``source``, where it was made before.

        Raises:
            ValueError: ``noise`` holds maps, the picture's side does not fit, or the network starts from a
                prior and gets none.
        """
        del generator
        if not isinstance(noise, str):
            raise ValueError("The lite network has no noise inputs.")
        if source.image.shape[-1] % 32 or source.image.shape[-2] != source.image.shape[-1]:
            raise ValueError(f"The picture must be square, 32 n wide, got {tuple(source.image.shape)}.")
        tables = self.tables
        view = view or self.look(source)
        prior = None
        if self.config.uv_branch.prior != "none":
            if source.prior is None:
                raise ValueError("This network starts from a prior, and SourceBatch.prior is None.")
            prior = read_prior(source.prior, tables)
        picture = view.picture if self.config.encoder.silhouette else view.picture[:, :3]
        features, vector = self.encoder(picture.contiguous(memory_format=torch.channels_last))

        first = tables.first
        sampled = sample_features(features.float(), view.pixels[:, first], view.width, view.height)
        inputs = torch.cat([self._surface_inputs(view, prior), self._base(len(sampled)), sampled], -1)
        gathered = self.gather(inputs)
        batch, size = len(gathered), tables.size
        atlas = gathered.new_zeros(batch, size * size, gathered.shape[-1])
        atlas = atlas.index_copy(1, tables.texel[first], gathered)
        fine, coarse = self.uv_net(atlas.view(batch, size, size, -1).permute(0, 3, 1, 2), vector)

        head = self.head(_rows(fine)[:, tables.texel])
        more = None
        if self.second_head is not None:
            more = self.second_head(_rows(coarse)[:, tables.second_texel])
        # Geometry needs single precision, whatever the network runs in.
        with torch.autocast(inputs.device.type, enabled=False):
            return self._output(view, prior, head, more)

    def _output(
        self,
        view: SurfaceView,
        prior: SurfacePrior | None,
        head: dict[str, Tensor],
        more: dict[str, Tensor] | None,
    ) -> NetworkOutput:
        """What the heads say of layer 1 and (if there is one) layer 2, as Gaussians."""
        tables, first, frames = self.tables, self.tables.first, view.frames
        raw = self._colors(view, prior, head)
        offsets = _bounded(head["offset"], tables.limits)
        discs, turns = DISC * frames.spacing, _turns(head["turn"])
        if prior is not None:
            offsets = offsets + prior.offsets
            discs = torch.where(prior.known > 0, prior.scales.clamp(min=MIN_DISC), discs)
            turns = torch.where(prior.known > 0, quaternion_multiply(prior.turns, turns), turns)
        kept = view.kept[..., None]
        layers = [self._layer(frames, slice(None), offsets, turns, discs, head, raw, OPACITY, kept)]
        if more is not None:
            second = tables.second
            moved = offsets[:, second] + SECOND_REACH * torch.tanh(more["offset"])
            layers.append(
                self._layer(
                    frames, second, moved, _turns(more["turn"]), SECOND_STRIDE * discs[:, second], more,
                    raw[:, second] + more["color"], SECOND_OPACITY, kept[:, second],
                )
            )
        batch, size = len(raw), tables.size
        texture = raw.new_zeros(batch, size * size, 3)
        texture = texture.index_copy(1, tables.texel[first], torch.sigmoid(raw[:, first]))
        return NetworkOutput(None, tuple(layers), texture.view(batch, size, size, 3).permute(0, 3, 1, 2))

    def _surface_inputs(self, view: SurfaceView, prior: SurfacePrior | None) -> Tensor:
        """(B, K, 20), and 8 more with a prior: what is known at the texels without weights."""
        tables, first = self.tables, self.tables.first
        seen = view.visible[:, first, None].float()
        mirrored = view.mirrored[:, first, None].float()
        position = (2 * tables.position[first]).expand(len(seen), -1, -1)
        more = []
        if prior is not None:
            # Centimetres are of the size of the other inputs.
            more = [prior.texture, prior.observed, 20 * prior.offsets, prior.known]
        return torch.cat(
            [
                view.colors[:, first] * seen, seen, view.mirror_colors[:, first] * mirrored,
                mirrored, view.filled[:, first], view.inside[:, first, None].float(), view.person[:, first],
                view.normals[:, first], view.facing[:, first], position, *(part[:, first] for part in more),
            ],
            -1,
        )

    def _base(self, batch: int) -> Tensor:
        """(B, K, base_channels) the learned feature of every texel."""
        size, base = self.tables.size, self.uv_base_feature[None]
        if size != BASE_SIZE:
            base = nn.functional.interpolate(base, (size, size), mode="bilinear", align_corners=False)
        return _rows(base)[:, self.tables.texel[self.tables.first]].expand(batch, -1, -1)

    def _colors(self, view: SurfaceView, prior: SurfacePrior | None, head: dict[str, Tensor]) -> Tensor:
        """(B, M, 3) raw colours: a mix of the seen, the mirrored and a predicted one, in the units that one
        sigmoid turns into RGB."""
        seen, mirrored, start = view.visible, view.mirrored, view.filled
        trusted = torch.zeros_like(seen)
        if prior is not None:
            known = prior.known[..., 0] > 0
            start = torch.where(known[..., None], prior.texture, start)
            # The eyes are sampled more finely than the prior's texels.
            trusted = known & ~(seen & self.tables.inner)
        bias = TRUST * torch.stack([seen & ~trusted, mirrored & ~seen & ~trusted, trusted], -1)
        absent = torch.stack([~seen, ~mirrored, torch.zeros_like(seen)], -1)
        weights = (head["mix"] + bias).masked_fill(absent, -torch.inf).softmax(-1)
        predicted = torch.sigmoid(_logit(start) + head["color"])
        color = (
            weights[..., :1] * view.colors
            + weights[..., 1:2] * view.mirror_colors
            + weights[..., 2:] * predicted
        )
        return _logit(color) + head["tint"]

    def _layer(
        self,
        frames: SmoothFrames,
        chosen: Tensor | slice,
        offsets: Tensor,
        turns: Tensor,
        discs: Tensor,
        head: dict[str, Tensor],
        raw: Tensor,
        opacity: float,
        kept: Tensor,
    ) -> UVGaussians:
        """One layer in the units of Eq. 3."""
        tables = self.tables
        factor = torch.exp(SCALE_RANGE * torch.tanh(head["scale"]))
        start = torch.cat([discs, torch.full_like(discs[..., :1], THICKNESS)], -1)
        local, rotations, scales = to_triangle_units(frames, chosen, offsets, turns, start * factor)
        return UVGaussians(
            face_ids=tables.face_ids[chosen],
            barycentrics=tables.barycentrics[chosen],
            local_offsets=local,
            rotations=rotations,
            scales=scales,
            opacities=torch.sigmoid(head["opacity"] + opacity) * kept,
            features=torch.cat([raw, head["latent"]], -1),
        )


def _turns(raw: Tensor) -> Tensor:
    """(B, M, 3) -> unit quaternions, the identity at 0, by at most 53 degrees about each axis."""
    turn = torch.cat([torch.ones_like(raw[..., :1]), 0.5 * torch.tanh(raw)], -1)
    return nn.functional.normalize(turn, dim=-1)


def _check_size(size: int) -> None:
    if size < 32 or size % 32:
        raise InputError(f"The lite network's atlas must be 32 n texels wide, got {size}.")


def _rows(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C)."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def _logit(color: Tensor) -> Tensor:
    return torch.logit(color.float(), eps=_EPS)


def _bounded(raw: Tensor, limits: Tensor) -> Tensor:
    """(B, M, 3) -> metres along tangent, bitangent and normal, within (M, 3) limits inwards, outwards and
    along the surface."""
    share = torch.tanh(raw)
    normal = share[..., 2:]
    reach = torch.where(normal > 0, limits[:, 1:2], limits[:, :1])
    return torch.cat([share[..., :2] * limits[:, 2:], normal * reach], -1)
