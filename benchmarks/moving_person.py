"""A clip of a moving person: a synthetic one, rendered, whose hands are in view.

    python benchmarks/moving_person.py OUT.mp4 --frames 300

The same arguments give the same pictures. The motion is smooth and closed, so that a clip of any length is
made of one period's renders (about a second of work each); light noise keeps frames different from each
other. Needs only the open template.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch

from guava.body import Pose, load_template
from guava.camera import Camera
from guava.photo import VideoWriter
from guava.synth.dataset import TEST_SEEDS
from guava.synth.person import sample_person
from guava.synth.pose import sample_pose
from guava.synth.render import frame_person, render_person, sample_background, sample_light

FPS = 30.0
PERIOD = 30
SEED = TEST_SEEDS.start + 90_000
_POSES = 3
_KIND = "two_hands"


def period_frames(seed: int = SEED, size: int = 512, count: int = PERIOD) -> np.ndarray:
    """(count, size, size, 3) uint8: one period of the motion, through a few drawn poses."""
    template, rng = load_template(), np.random.default_rng(seed)
    person, camera = sample_person(seed, template), Camera.frontal(size)
    first = sample_pose(rng, template, _KIND)
    placed = frame_person(rng, person, first, template, kind="upper_body", camera=camera)
    poses = [placed]
    for _ in range(_POSES - 1):
        drawn = sample_pose(rng, template, _KIND)
        # Neighbouring poses stay near each other, as a speaker's do.
        poses.append(_between(placed, replace(drawn, translation=placed.translation), 0.6))
    background, light = sample_background(rng, size, size), sample_light(rng)
    frames = []
    for n in range(count):
        at = n / count * _POSES
        share = 0.5 - 0.5 * np.cos(np.pi * (at % 1))
        pose = _between(poses[int(at)], poses[(int(at) + 1) % _POSES], share)
        view = render_person(person, pose, camera, template, background=background, light=light)
        frames.append(view.rgb)
    return np.stack(frames)


def _between(a: Pose, b: Pose, share: float) -> Pose:
    """Axis-angles are mixed as they are: the poses are near."""
    return Pose(*(torch.lerp(getattr(a, f.name), getattr(b, f.name), share) for f in fields(Pose)))


def write_clip(path: Path, frames: int, period: np.ndarray, seed: int = SEED) -> None:
    """Write ``frames`` frames: the period (n, S, S, 3) again and again, with a little noise."""
    rng = np.random.default_rng(seed)
    size = period.shape[1]
    noise = [rng.normal(0, 1.5, (size, size, 1)).astype(np.float32) for _ in range(8)]
    with VideoWriter(path, FPS, (size, size)) as writer:
        for n in range(frames):
            noisy = period[n % len(period)] + np.roll(noise[n % len(noise)], 7 * n, axis=1)
            writer.write(np.clip(noisy + 0.5, 0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--period", type=int, default=PERIOD, help="different renders")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    write_clip(args.output, args.frames, period_frames(args.seed, args.size, args.period), args.seed)


if __name__ == "__main__":
    main()
