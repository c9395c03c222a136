"""Weights that were never trained but cost what trained ones cost, and a source view for them.

Random weights predict the same everywhere: every Gaussian is kept, half transparent and as large as a hand.
What an avatar costs depends on how many Gaussians survive pruning and how much of the picture they cover, so
the last layer of every head is shifted and scaled until its outputs have the spread that is stated here.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from scenes import standing_pose
from torch import Tensor, nn

from guava.body import EHM, Identity, Pose, Template
from guava.camera import Camera
from guava.model import GuavaConfig, SourceBatch, build_network
from guava.model.generate import random_weights
from guava.model.weights import Weights
from guava.rendering import shade_mesh

KEPT = 150_000
"""Gaussians of an avatar after pruning, template Gaussians included: about what trained avatars have."""

OPACITY_SPREAD = 6.0
"""Standard deviation of the UV opacities' logits: nearly all are either gone or solid."""

# Mean and standard deviation before the activation.
UV_TARGETS = {
    "scale_head": (-0.9, 0.4),  # exp: 0.4 of a triangle's size
    "local_pos_head": (0.0, 0.4),
    "color_head": (0.0, 1.0),
}
TEMPLATE_TARGETS = {
    "opacity_layers": (0.0, 2.0),
    "scale_layers": (-2.4, 0.4),  # 0.05 sigmoid: 4 mm
    "color_layers": (0.0, 1.0),
}


def benchmark_source(
    template: Template, size: int, *, camera_size: int = 512
) -> tuple[SourceBatch, Pose, Camera]:
    """A half figure as a network sees it (B = 1), with its pose and camera in the tracker's world."""
    pose, camera = standing_pose(template, size=camera_size)
    identity, ehm = Identity.neutral(template), EHM(template)
    with torch.no_grad():
        body = ehm(identity, pose).vertices[0]
        still = ehm(identity, replace(pose, translation=torch.zeros_like(pose.translation))).vertices
        rest = ehm(identity, Pose.rest(template)).vertices
    colors = 0.5 + 0.3 * torch.sin(rest[0] * torch.tensor([19.0, 17.0, 23.0]))
    drawn = shade_mesh(body, template.faces, camera.resized(size, size), vertex_colors=colors)
    picture = drawn.permute(2, 0, 1)[None]
    world_to_camera = camera.world_to_camera.clone()
    world_to_camera[:3, 3] += world_to_camera[:3, :3] @ pose.translation[0]
    here = replace(camera, world_to_camera=world_to_camera)
    source = SourceBatch(
        picture[:, :3] * picture[:, 3:], picture[:, 3:], still, rest, here.resized(size, size)
    )
    return source, pose, camera


def plausible_weights(config: GuavaConfig, template: Template, seed: int = 0) -> Weights:
    """Random weights whose avatars have a trained avatar's number, size and opacity of Gaussians.

    The ``lite`` preset's own initialisation is a plausible avatar already and stays as it is.
    """
    weights = random_weights(config, template, seed)
    if config.uv_branch.kind != "styleunet":
        return weights
    network = build_network(config, template).eval()
    network.load_state_dict(weights.network)
    hooks = []
    uv_targets = dict(UV_TARGETS)
    if config.ablation.uv_gaussians:
        templates = template.body.num_vertices if config.template_branch is not None else 0
        share = min(max((KEPT - templates) / len(network.texel_index), 0.01), 0.99)
        threshold = math.log(config.opacity_threshold / (1 - config.opacity_threshold))
        above = OPACITY_SPREAD * float(torch.special.ndtri(torch.tensor(share, dtype=torch.float64)))
        uv_targets["opacity_head"] = (threshold + above, OPACITY_SPREAD)
    for decoder, targets in (("uv_decoder", uv_targets), ("template_decoder", TEMPLATE_TARGETS)):
        for name, (mean, spread) in targets.items():
            if hasattr(network, decoder):
                last = getattr(getattr(network, decoder), name)[-1]
                hooks.append(last.register_forward_hook(_calibrator(mean, spread)))
    source, _, _ = benchmark_source(template, config.encoder.image_size)
    with torch.no_grad():
        network(source, noise="off")
    for hook in hooks:
        hook.remove()
    return replace(
        weights, network=network.state_dict(), provenance={**weights.provenance, "plausible": True}
    )


def _calibrator(mean: float, spread: float):
    """A hook that gives a last layer's outputs this mean and spread over all places."""

    def hook(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        places = (0, 2, 3) if isinstance(layer, nn.Conv2d) else (0, 1)
        center, width = output.mean(places), output.std(places).clamp(min=1e-8)
        gain = spread / width
        layer.weight.mul_(gain.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.sub_(center).mul_(gain).add_(mean)
        shape = [1, -1, 1, 1] if isinstance(layer, nn.Conv2d) else [1, 1, -1]
        return (output - center.view(shape)) * gain.view(shape) + mean

    return hook
