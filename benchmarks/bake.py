"""What baking loses, against the refined pictures and against the truth; and how long it takes.

    python benchmarks/bake.py [--weights NAME] [--people 1] [--size 512] [--out DIR] [--json]

Dressed synthetic people with their true pose, shape and camera become avatars of the weights NAME, and are
baked. In 5 poses x 3 views that were not fitted, the coarse, the refined and the baked picture are compared
with the true one, on black: "loss" is by how many dB baked is behind refined. Weights that are shipped must
stay within BOUND_DB; the command fails if they do not.

Without --weights nothing learned is measured. Then the avatar is the baseline's with made-up latents, and a
"practice" refiner is trained for a minute on true pictures of this one person, so that there is something
real to bake: it shifts colours, sharpens, and moves outlines. Its loss says how baking does on such a
refiner, and nothing about any weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scenes import machine
from subjects import Subject, subject
from torch import nn

from guava.avatar import Animator, Avatar, RefinerReference
from guava.body import Template, load_template
from guava.model import reconstruct
from guava.model.bake import BakeConfig, BakePose, bake, bake_cameras, compare
from guava.model.generate import NetworkSettings, load_refiner
from guava.model.lite import LiteRefiner
from guava.model.weights import load_weights
from guava.photo import save_png

BOUND_DB = 1.5
FIRST_SEED = 5_092_000
PRACTICE_STEPS, PRACTICE_CHANNELS = 300, 32
_PRACTICE = (
    (BakePose(), (0, 0)),
    (BakePose("talk", 0.6, seed=3), (-30, 0)),
    (BakePose("talk", 2.2, seed=3), (25, -5)),
    (BakePose("talk", 3.4, seed=3), (12, 6)),
    (BakePose("talk", 4.6, seed=3), (-12, -8)),
    (BakePose("talk", 5.8, seed=3), (30, 8)),
    (BakePose("talk", 7.2, seed=3), (-22, 4)),
    (BakePose("wave", 1.7, seed=2, arms="motion"), (0, 0)),
    (BakePose("idle", 2.0, seed=3, head=(22, 0)), (-8, 3)),
    (BakePose("idle", 3.0, seed=3, head=(-20, 6)), (20, 0)),
)
"""What the practice refiner is trained on; neither fitted nor judged."""


def practice(someone: Subject, template: Template, size: int, steps: int) -> tuple[Avatar, nn.Module]:
    """The baseline's avatar with waves over the body as latents, and a refiner that was trained on it."""
    avatar = reconstruct(someone.photo, someone.tracked, template=template)
    generator = torch.Generator().manual_seed(1)
    count = PRACTICE_CHANNELS - 3
    waves = torch.randn(3, count, generator=generator) * torch.logspace(0.5, 2.3, count)
    phases = 6.28 * torch.rand(count, generator=generator)
    g = avatar.gaussians
    latents = torch.sin(g.positions @ waves + phases)
    avatar = replace(
        avatar,
        gaussians=replace(g, features=torch.cat([g.features, latents], 1)),
        refiner=RefinerReference("practice", "0" * 64),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        refiner = LiteRefiner(PRACTICE_CHANNELS, 64, size)
    show = Animator(avatar, template, refiner=refiner)
    inputs, targets = [], []
    for pose, camera in bake_cameras(avatar, template, _PRACTICE, size):
        out = show.splat(pose, camera)
        inputs.append(torch.cat([out.features, out.alpha[..., None]], -1).permute(2, 0, 1))
        drawn = someone.truth(pose, camera, template)
        targets.append((drawn[..., :3] * drawn[..., 3:]).permute(2, 0, 1))
    optimizer = torch.optim.Adam(refiner.parameters(), 2e-3, betas=(0.9, 0.99))
    side = size // 2
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        which = torch.randint(len(inputs), (4,), generator=generator).tolist()
        places = (4 * torch.randint((size - side) // 4 + 1, (4, 2), generator=generator)).tolist()
        cuts = [(i, slice(y, y + side), slice(x, x + side)) for i, (y, x) in zip(which, places, strict=True)]
        given = torch.stack([inputs[i][:, rows, columns] for i, rows, columns in cuts])
        wanted = torch.stack([targets[i][:, rows, columns] for i, rows, columns in cuts])
        error = (refiner(given[:, :-1], given[:, -1:]) - wanted).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    return avatar, refiner.eval()


def measure(
    weights: str | None,
    template: Template,
    seed: int,
    *,
    size: int = 512,
    config: BakeConfig | None = None,
    practice_steps: int = PRACTICE_STEPS,
    out: Path | None = None,
) -> dict:
    """Figures of one person; ``size`` is the practice refiner's (weights bring their own)."""
    someone = subject(seed, template)
    if weights is None:
        avatar, refiner = practice(someone, template, size, practice_steps)
    else:
        found = load_weights(weights)
        avatar = reconstruct(
            someone.photo, someone.tracked, model=found.preset, template=template,
            config=NetworkSettings(weights=found),
        )  # fmt: skip
        refiner = load_refiner(avatar, found)
    config = config or BakeConfig()
    start, start_cpu = time.perf_counter(), time.process_time()
    baked, report = bake(avatar, template, refiner, config)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu

    shown = {
        "coarse": Animator(avatar, template, coarse=True),
        "refined": Animator(avatar, template, refiner=refiner),
        "baked": Animator(baked, template),
    }
    judged = [(pose, view) for pose in config.judged_poses for view in config.judged_views]
    psnr: dict[str, list[float]] = {name: [] for name in shown}
    rows = []
    for pose, camera in bake_cameras(avatar, template, judged, shown["refined"].working_size):
        truth = someone.truth(pose, camera, template)
        pictures = {name: a.render(pose, camera, config.samples) for name, a in shown.items()}
        for name, picture in pictures.items():
            psnr[name].append(compare(picture, truth, 0.0))
        rows.append([*pictures.values(), truth])
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for shade, name in ((0.0, "black"), (1.0, "white")):
            sheet = [[_over(p, shade) for p in row] for row in rows[:: len(config.judged_views) + 1]]
            save_png(out / f"{seed}-{name}.png", np.vstack([np.hstack(row) for row in sheet]))
    mean = {name: float(np.mean(values)) for name, values in psnr.items()}
    return {
        "seed": seed,
        "gaussians": len(avatar.gaussians),
        "size": report.size,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "baked_to_refined_db": report.mean,
        "least_db": report.worst,
        "coarse_to_refined_db": report.mean - report.gain,
        "baked_to_refined_on_white_db": float(np.mean(report.psnr_on_white)),
        "coarse_to_refined_on_white_db": float(np.mean(report.coarse_psnr_on_white)),
        **{f"{name}_to_truth_db": value for name, value in mean.items()},
        "loss_db": mean["refined"] - mean["baked"],
    }


def _over(picture: torch.Tensor, shade: float) -> np.ndarray:
    alpha = picture[..., 3:]
    return (picture[..., :3] * alpha + shade * (1 - alpha)).numpy()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", help="name or file; without it a practice refiner is trained")
    parser.add_argument("--people", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--size", type=int, default=512, help="of the practice refiner")
    parser.add_argument("--steps", type=int, help="of fitting shapes")
    parser.add_argument("--iterations", type=int, help="of conjugate gradients")
    parser.add_argument("--samples", type=int, help="per pixel side")
    parser.add_argument("--practice-steps", type=int, default=PRACTICE_STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for sheets: coarse, refined, baked, true")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message="Random weights")
    given = {name: getattr(args, name) for name in ("steps", "iterations", "samples")}
    config = BakeConfig(**{name: value for name, value in given.items() if value is not None})
    template = load_template("open" if args.weights is None else load_weights(args.weights).template_name)
    people = []
    for seed in range(args.first_seed, args.first_seed + args.people):
        people.append(
            measure(
                args.weights, template, seed, size=args.size, config=config,
                practice_steps=args.practice_steps, out=args.out,
            )
        )  # fmt: skip
        print(f"{seed} done", file=sys.stderr)
    keys = [key for key in people[0] if key not in ("seed", "size")]
    mean = {key: round(float(np.mean([p[key] for p in people])), 2) for key in keys}
    judged = args.weights is not None
    report = {
        "benchmark": "bake",
        "weights": args.weights or "none: a practice refiner; says nothing about any weights",
        "people": args.people,
        "size": people[0]["size"],
        **mean,
        "bound_db": BOUND_DB,
        "within_bound": mean["loss_db"] <= BOUND_DB if judged else None,
        **machine(),
    }
    print(json.dumps(report) if args.json else "\n".join(f"{k:30} {v}" for k, v in report.items()))
    return 1 if judged and not report["within_bound"] else 0


if __name__ == "__main__":
    sys.exit(main())
