"""How far gsplat is from the release's rasteriser: python benchmarks/splat_conventions.py AVATAR.

The avatar (of ``guava reconstruct``) gets 29 latent channels beside its RGB: waves over the body plus noise
of every Gaussian's own. Both pictures are drawn on the CPU; "gsplat" as its backend draws "3dgs": opacities
clamped to 0.99, nothing cut.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import torch

from guava.avatar import load_avatar
from guava.avatar.framing import pivot
from guava.avatar.posing import pose_gaussians
from guava.avatar.views import orbit
from guava.body import EHM, load_template
from guava.rendering import GSPLAT, THREE_DGS, splat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("avatar")
    parser.add_argument("--template", default="open")
    args = parser.parse_args()
    template = load_template(args.template)
    avatar = load_avatar(args.avatar, template)
    generator = torch.Generator().manual_seed(0)
    g = avatar.gaussians
    waves = torch.sin(12 * g.positions @ torch.randn(3, 29, generator=generator) + torch.arange(29))
    latents = 0.7 * waves + 0.7 * torch.randn(len(g), 29, generator=generator)
    features = torch.cat([g.features[:, :3], latents], 1)
    with torch.no_grad():
        body = EHM(template)(avatar.identity, avatar.source.pose)
    posed = pose_gaussians(g, body, template.faces, sigma_rule=avatar.sigma_rule)
    spread = torch.sigmoid(1 + 2.5 * torch.randn(len(g), generator=generator))
    uneven = posed.scales * torch.exp(0.7 * torch.randn(len(g), 3, generator=generator))
    looks = {
        "as made": (posed.scales, posed.opacities),
        "opacities 0 to 1": (posed.scales, spread),
        "opacities 0 to 1, uneven scales": (uneven, spread),
        "opacities 0 to 1, scales doubled": (2 * posed.scales, spread),
        "opacities 1": (posed.scales, torch.ones(len(g))),
    }
    front = avatar.source.camera.resized(512, 512)
    views = {"front": front, "40 degrees": orbit(front, pivot(avatar, template), 40, 10)}
    print(f"{'view':12}{'Gaussians':36}RGB dB   max   | latents: rms/spread   max/spread | alpha max")
    for view, camera in views.items():
        for name, (scales, opacities) in looks.items():
            exact, near = (
                splat(
                    posed.means, posed.quaternions, scales, values, features, camera, backend="native",
                    conventions=conventions,
                )
                for values, conventions in (
                    (opacities, THREE_DGS), (opacities.clamp(max=0.99), replace(GSPLAT, near=0.2))
                )
            )
            off = (exact.features - near.features).abs()
            body_pixels = exact.alpha > 0.5
            deviation = float(exact.features[body_pixels][:, 3:].std())
            rms = float(off[body_pixels][:, 3:].square().mean().sqrt()) / deviation
            decibels = -10 * math.log10(float(off[..., :3].square().mean()))
            alpha = float((exact.alpha - near.alpha).abs().max())
            print(
                f"{view:12}{name:36}{decibels:6.1f} {float(off[..., :3].max()):7.4f} | {rms:18.4f} "
                f"{float(off[..., 3:].max()) / deviation:12.2f} | {alpha:9.4f}"
            )


if __name__ == "__main__":
    main()
