"""Gaussians before cameras, for comparing splatters that round differently.

Two right answers may differ where a limit decides: a Gaussian at 1/255 is in one picture and not in the
other. The scenes here have nothing near a limit: what is left of a difference is rounding or a mistake.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from guava.camera import Camera
from guava.rendering import GSPLAT, SplatConventions, SplatOutput
from guava.rendering.splat_torch import project_gaussians

NAMES = ("means", "quaternions", "scales", "opacities", "features", "background", "view", "intrinsics")


@dataclass(frozen=True)
class Scene:
    """What ``splat`` takes. Float64, but every number is one of float32's."""

    means: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor
    background: Tensor
    camera: Camera

    @property
    def gaussians(self) -> tuple[Tensor, ...]:
        return self.means, self.quaternions, self.scales, self.opacities, self.features

    def to(self, dtype: torch.dtype) -> Scene:
        arrays = (t.to(dtype) for t in (*self.gaussians, self.background))
        return Scene(*arrays, self.camera.to(dtype=dtype))

    def rows(self, index) -> Scene:
        """Some of the Gaussians, or all of them in another order."""
        return Scene(*(t[index] for t in self.gaussians), self.background, self.camera)

    def leaves(self) -> list[Tensor]:
        """Fresh copies of all eight inputs, by ``NAMES``, that ask for gradients."""
        arrays = (
            *self.gaussians, self.background, self.camera.world_to_camera, self.camera.intrinsics
        )
        return [t.clone().requires_grad_() for t in arrays]

    def with_leaves(self, leaves: list[Tensor]) -> Scene:
        camera = replace(self.camera, world_to_camera=leaves[6], intrinsics=leaves[7])
        return Scene(*leaves[:6], camera)


def turned_camera(width: int, height: int, seed: int = 0, skew: float = 1.0) -> Camera:
    """Looks at the world's origin from 4 m, 50 degrees wide, with skew and an eccentric centre."""
    g = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))
    turn[0] *= torch.linalg.det(turn)
    view = torch.eye(4, dtype=torch.float64)
    view[:3, :3], view[:3, 3] = turn, torch.tensor([0.1, -0.05, 4.0])
    f = 1.1 * max(width, height)
    intrinsics = torch.tensor(
        [[f, 0.07 * skew * f, 0.47 * width], [-0.02 * skew * f, 0.93 * f, 0.54 * height], [0, 0, 1]],
        dtype=torch.float64,
    )
    return Camera(view.float().double(), intrinsics.float().double(), width, height)


def random_scene(
    count: int, channels: int, width: int, height: int, seed: int = 0, *, sigma: float = 0.08,
    opacity: tuple[float, float] = (0.05, 1.0), conventions: SplatConventions = GSPLAT, skew: float = 1.0,
    clear: bool = True,
) -> Scene:
    """Gaussians over and beyond the picture, every eighth far beside it or behind the camera, clear of all
    limits and ties unless ``clear`` is False. There may be fewer than ``count`` in the end."""
    g = torch.Generator().manual_seed(1000 + seed)

    def rand(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    means = 3.0 * (rand(count, 3) - 0.5)
    means[::8] *= 5
    turns = torch.randn(count, 4, generator=g, dtype=torch.float64)
    turns = torch.nn.functional.normalize(turns, dim=1) * (0.9 + 0.2 * rand(count, 1))
    scales = sigma * torch.exp(2.0 * (rand(count, 3) - 0.5))
    opacities = opacity[0] + (opacity[1] - opacity[0]) * rand(count)
    arrays = [means, turns, scales, opacities, rand(count, channels) - 0.25, rand(channels)]
    scene = Scene(*(t.float().double() for t in arrays), turned_camera(width, height, seed, skew))
    return clear_of_limits(scene, conventions) if clear else scene


def clear_of_limits(scene: Scene, conventions: SplatConventions) -> Scene:
    """Without the Gaussians of which a limit decides within float32's rounding, at any pixel."""
    camera, n = scene.camera, conventions
    y, x = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    centres = torch.stack([x, y], -1).reshape(-1, 2).double() + 0.5
    for _ in range(20):
        pixels, depth, covariance = project_gaussians(
            scene.means, scene.quaternions, scene.scales, camera, conventions
        )
        order = torch.argsort(depth, stable=True)
        ties = torch.zeros(len(depth), dtype=torch.bool)
        ties[order[1:]] = depth[order].diff() < 1e-5 * depth[order[1:]].abs()
        bad = ties | ((depth - n.near).abs() < 1e-3)
        a, b, c = covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]
        det = a * c - b * b
        dx, dy = (centres[:, None] - pixels[None]).unbind(-1)
        power = 0.5 * (c * dx * dx + a * dy * dy - 2 * b * dx * dy) / det
        raw = scene.opacities * torch.exp(-power) * (depth > n.near)
        for limit in (n.alpha_min, n.alpha_max):
            bad |= ((raw / limit - 1).abs() < 3e-5).any(0)
        if n.extent == "radius":
            mid = (a + c) / 2
            reach = 3 * (mid + (mid * mid - det).clamp(min=0.1).sqrt()).sqrt()
            radius, at = reach.ceil()[:, None], pixels - 0.5
            edges = torch.cat([reach[:, None], (at - radius) / 16, (at + radius + 15) / 16], 1)
            bad |= ((edges - edges.round()).abs() < 1e-4).any(1) & (depth > n.near)
        alpha = raw.clamp(max=n.alpha_max)[:, order]
        alpha = torch.where(alpha >= n.alpha_min, alpha, 0)
        left = torch.cumprod(1 - alpha, 1)
        bad[order] |= (((left / n.transmittance_min - 1).abs() < 1e-3) & (alpha > 0)).any(0)
        if not bad.any():
            return scene
        scene = scene.rows(~bad)
    raise AssertionError("The scene stays near a limit.")


def weighted_sum(out: SplatOutput, seed: int = 7) -> Tensor:
    """A loss that depends on every number of a picture, with weights of both signs."""
    g = torch.Generator().manual_seed(seed)
    depth = out.inverse_depth if out.depth is None else out.depth
    pictures = (out.features, out.alpha, depth)
    weights = (torch.randn(p.shape, generator=g, dtype=torch.float64).to(p) for p in pictures)
    return sum((p * w).sum() for p, w in zip(pictures, weights, strict=True))


def gradients(scene: Scene, **options) -> tuple[SplatOutput, dict[str, Tensor]]:
    """The picture and the gradients of :func:`weighted_sum` by all eight inputs."""
    from guava.rendering import splat

    leaves = scene.leaves()
    s = scene.with_leaves(leaves)
    out = splat(*s.gaussians, s.camera, background=s.background, **options)
    grads = torch.autograd.grad(weighted_sum(out), leaves, allow_unused=True)  # by no Gaussians, say
    grads = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True)]
    out = replace(out, **{f.name: t.detach() for f in fields(out) if (t := getattr(out, f.name)) is not None})
    return out, dict(zip(NAMES, grads, strict=True))
