"""The learning-free avatar against synthetic truth at other views: dressed renders, true parameters.

    python benchmarks/baseline_synthetic.py [--people 6] [--out DIR]

The "photo" is a 1024 px render of a person in loose clothes and with hair, before a background; pose, shape,
camera and mask are the true ones. Compared are renders at other yaws: PSNR over the union of both
silhouettes, and the silhouettes' IoU, for the whole avatar and for the bare textured mesh.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from subjects import subject

from guava.avatar.posing import pose_gaussians
from guava.body import load_template
from guava.model import reconstruct
from guava.model.baseline import BaselineConfig
from guava.model.baseline.surface import pose_template
from guava.photo import save_png
from guava.rendering import splat
from guava.synth import render_person

YAWS = (0, 30, -30, 55)
VARIANTS = {
    "bare mesh": BaselineConfig(displacement=None, shell=False, hair=False),
    "no shell": BaselineConfig(shell=False),
    "baseline": BaselineConfig(),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=5_090_000)
    parser.add_argument("--out", type=Path, help="folder for sheets")
    options = parser.parse_args()
    template, size = load_template(), 512
    figures: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    for seed in range(options.first_seed, options.first_seed + options.people):
        someone = subject(seed, template, size)
        identity, pose = someone.person.identity, someone.pose
        pivot = pose_template(template, identity, pose).joints[0, template.joint("spine3")]
        cameras = [someone.camera.orbit(math.radians(yaw), 0.0, pivot) for yaw in YAWS]
        truths = [render_person(someone.person, pose, c, template, light=someone.light) for c in cameras]
        sheet = [np.hstack([t.rgb.astype(np.float32) / 255 for t in truths])]
        for name, config in VARIANTS.items():
            avatar = reconstruct(someone.photo, someone.tracked, template=template, config=config)
            posed = pose_gaussians(
                avatar.gaussians, pose_template(template, avatar.identity, pose), template.faces
            )
            row, tiles = [], []
            for c, truth in zip(cameras, truths, strict=True):
                out = splat(
                    posed.means,
                    posed.quaternions,
                    posed.scales,
                    posed.opacities,
                    posed.features,
                    c,
                    background=torch.ones(3),
                )
                color, alpha = out.features.clamp(0, 1).numpy(), out.alpha.numpy()
                ours, theirs = alpha > 0.5, truth.alpha > 0.5
                union = ours | theirs
                error = ((color - truth.rgb / 255.0)[union] ** 2).mean()
                row += [10 * math.log10(1 / error), (ours & theirs).sum() / union.sum()]
                tiles.append(color)
            figures[name].append(row)
            sheet.append(np.hstack(tiles))
        print(seed, flush=True)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            save_png(options.out / f"{seed}.png", np.vstack(sheet))
    print(f"mean of {options.people}: PSNR over the union / IoU at " + ", ".join(f"{y:+d}" for y in YAWS))
    for name, rows in figures.items():
        mean = np.mean(rows, 0)
        print(
            f"{name:<12}" + "  ".join(f"{mean[2 * i]:6.2f} / {mean[2 * i + 1]:.3f}" for i in range(len(YAWS)))
        )


if __name__ == "__main__":
    main()
