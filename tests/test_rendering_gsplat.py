"""gsplat's own pictures and gradients against the native ones, where there are a GPU and gsplat."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from splat_scenes import NAMES, Scene, random_scene, weighted_sum

from guava.rendering import splat
from guava.rendering.splat_gsplat import gsplat_available

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and gsplat_available()), reason="needs a CUDA device and gsplat"
)

SCENES = {
    "rgb": {"count": 400, "channels": 3, "width": 64, "height": 48, "seed": 1},
    "latents": {"count": 300, "channels": 32, "width": 50, "height": 70, "seed": 2},
    "deep": {
        "count": 250, "channels": 4, "width": 40, "height": 40, "seed": 8, "sigma": 0.35,
        "opacity": (0.5, 1.0),
    },
    "dust": {"count": 1500, "channels": 3, "width": 24, "height": 24, "seed": 9, "sigma": 0.003},
}


def run(scene: Scene, backend: str, device: str):
    """The picture and the gradients but for the intrinsics', which gsplat has not; all on the CPU."""
    leaves = [t.detach().to(device) for t in scene.leaves()]
    for leaf in leaves[:7]:
        leaf.requires_grad_()
    s = scene.with_leaves(leaves)
    out = splat(*s.gaussians, s.camera, background=s.background, backend=backend)
    out = replace(out, features=out.features.cpu(), alpha=out.alpha.cpu(), depth=out.depth.cpu())
    return out, [g.cpu() for g in torch.autograd.grad(weighted_sum(out), leaves[:7])]


@pytest.mark.parametrize("name", SCENES)
def test_gsplat_agrees_with_native(name):
    scene = random_scene(**SCENES[name], skew=0.0).to(torch.float32)
    wanted, wanted_grads = run(scene, "gsplat", "cuda")
    out, grads = run(scene, "native", "cpu")
    torch.testing.assert_close(out.features, wanted.features, atol=1e-4, rtol=0)
    torch.testing.assert_close(out.alpha, wanted.alpha, atol=1e-4, rtol=0)
    torch.testing.assert_close(out.depth, wanted.depth, atol=4e-4, rtol=0)
    for key, got, reference in zip(NAMES, grads, wanted_grads, strict=False):
        if key == "view":
            got, reference = got[:3], reference[:3]
        error = float((got - reference).abs().max())
        assert error <= 1e-4 * float(reference.abs().max()), f"{key}: {error:.2g}"
