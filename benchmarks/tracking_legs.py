"""Accuracy of the legs on renders of whole bodies with known parameters.

    python benchmarks/tracking_legs.py --count 20

In turn the bodies stand, step, lift a knee or sit (``guava.synth.LEG_KINDS``). Persons and seeds come from
``guava.synth.dataset.TEST_SEEDS``; nothing in the tracker is tuned on them (the first twenty were looked at
while the fit of legs was written, so the default starts beyond).
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
import torch

from guava.body import EHM, load_template
from guava.camera import Camera
from guava.synth import (
    LEG_KINDS,
    POSE_KINDS,
    frame_person,
    render_person,
    sample_background,
    sample_legs,
    sample_light,
    sample_person,
    sample_pose,
)
from guava.synth.dataset import TEST_SEEDS
from guava.tracking import SourceMedia, track_detections
from guava.tracking.detectors import create_detector

PARTS = ("hip", "knee", "ankle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20, help="renders")
    parser.add_argument("--seed", type=int, default=TEST_SEEDS.start + 1000, help="first seed")
    parser.add_argument("--size", type=int, default=768, help="side of the pictures")
    arguments = parser.parse_args()
    template, detector, size = load_template(), create_detector("mediapipe"), arguments.size
    model = EHM(template, torch.tensor([0])).requires_grad_(False)
    flat, deep = defaultdict(list), defaultdict(list)
    found_count = seen_count = 0
    for i in range(arguments.count):
        seed = arguments.seed + i
        rng, camera = np.random.default_rng([seed, 505]), Camera.frontal(size)
        person, kind = sample_person(seed, template), LEG_KINDS[i % 4]
        pose = sample_legs(rng, template, sample_pose(rng, template, POSE_KINDS[i % 3]), kind)
        pose = frame_person(rng, person, pose, template, kind="full_body", camera=camera)
        view = render_person(
            person, pose, camera, template, background=sample_background(rng, size, size),
            light=sample_light(rng),
        )  # fmt: skip
        detector.reset()
        found = detector.detect(view.rgb)
        if found.person is None or found.person.face is None or found.person.body is None:
            print(f"{seed} {kind:6s} face or body not found")
            continue
        found_count += 1
        tracked = track_detections(
            [found], [(size, size)], media=SourceMedia(str(seed), "", size, size), detector="mediapipe",
            template=template,
        )  # fmt: skip
        mine, true = model(tracked.identity, tracked.pose).joints[0], torch.from_numpy(view.joints3d)
        crop = tracked.crop_from_image[0]
        pixels = (tracked.camera[0].project(mine)[0] - crop[:2, 2]) / crop[0, 0]
        truth = camera.project(true)[0]
        height = float(np.ptp(camera.project(torch.from_numpy(view.vertices))[0][:, 1].numpy()))
        row = []
        seen_count += int((found.person.body.confidence[[27, 28]] > 0.5).sum())
        for part in PARTS:
            ids = [template.joint(f"{side}_{part}") for side in ("left", "right")]
            flat[part] += [100 * float(v) / height for v in (pixels - truth)[ids].norm(dim=1)]
            deep[part] += [1000 * float(v) for v in ((mine - mine[0]) - (true - true[0]))[ids].norm(dim=1)]
            row.append(f"{part} {np.mean(flat[part][-2:]):.1f} % {np.mean(deep[part][-2:]):.0f} mm")
        print(f"{seed} {kind:6s} " + ", ".join(row), flush=True)
    print(f"renders {arguments.count}, persons found {found_count}, ankles seen {seen_count}")
    for part in PARTS:
        print(
            f"{part:6s} in the picture {np.mean(flat[part]):.2f} % of the body's height "
            f"(median {np.median(flat[part]):.2f}); from the pelvis in 3D {np.mean(deep[part]):.0f} mm "
            f"(median {np.median(deep[part]):.0f})"
        )


if __name__ == "__main__":
    main()
