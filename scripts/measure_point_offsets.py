"""Measure where MediaPipe's body and hand points lie relative to the template's joints.

    python scripts/measure_point_offsets.py --count 50

Prints the tables of ``guava.tracking.fit.offsets``: for every point the offset (in the T pose's axes of the
joint that carries it, right side mirrored onto the left) that explains the detections of renders best, by
least squares over many orientations. Seeds come from ``guava.synth.dataset.TUNING_SEEDS``.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
import torch

from guava.body import EHM, load_template
from guava.synth.dataset import TUNING_SEEDS, accuracy_set
from guava.tracking.detectors import create_detector
from guava.tracking.fit.chain import finger_joints
from guava.tracking.observations import BODY_POINTS
from guava.tracking.priors import FINGERS

GROSS_BODY, GROSS_HAND = 0.12, 0.03
"""Metres: detections farther off are failures, not offsets."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=TUNING_SEEDS.start + 400_000)
    arguments = parser.parse_args()
    template, detector = load_template(), create_detector("mediapipe")
    names, parents = template.body.joint_names, template.body.parents.tolist()
    tips = [template.surface_points[f"{s}_{f}_tip"] for s in ("left", "right") for f in FINGERS]
    model = EHM(template, torch.tensor(tips))
    equations = defaultdict(list)
    for sample in accuracy_set(arguments.seed, arguments.count, template):
        detector.reset()
        person = detector.detect(sample.view.rgb).person
        if person is None:
            continue
        with torch.no_grad():
            out = model(sample.view.identity, sample.view.pose)
        turns = out.joint_transforms[0, :, :3, :3].numpy()
        joints, vertices, camera = out.joints[0].numpy(), out.vertices[0].numpy(), sample.view.camera

        def gap(point, pixel, camera=camera):
            """World x, y in metres from a 3D point to a detected pixel at its depth."""
            at, depth = camera.project(torch.from_numpy(point)[None])
            metres = float(depth[0] / camera.intrinsics[0, 0])
            return (pixel - at[0].numpy()) * [metres, -metres]

        if person.body is not None:
            for name, index in BODY_POINTS["mediapipe33"].items():
                inside = (person.body.points[index] > 0).all() & (
                    person.body.points[index] < camera.width
                ).all()
                joint = names.index(name)
                offset = gap(joints[joint], person.body.points[index])
                if person.body.confidence[index] >= 0.7 and inside and np.linalg.norm(offset) < GROSS_BODY:
                    side, _, part = name.partition("_")
                    equations[part].append((_left(turns[parents[joint]], side), offset))
        for s, side in enumerate(("left", "right")):
            hand = getattr(person, f"{side}_hand")
            if hand is None or hand.confidence.max() < 0.5:
                continue
            rows = []
            for n, joint in enumerate(finger_joints(template, side)):
                if joint >= 0:
                    carrier, point = joint if n == 0 else parents[joint], joints[joint]
                else:
                    finger = (n - 1) // 4
                    carrier = template.joint(f"{side}_{FINGERS[finger]}3")
                    point = vertices[5 * s + finger]
                rows.append((_left(turns[carrier], side), gap(point, hand.points[n])))
            if np.median([np.linalg.norm(offset) for _, offset in rows]) < GROSS_HAND:
                for n, row in enumerate(rows):
                    equations[f"hand {n:02d}"].append(row)
    for key in sorted(equations):
        matrix = np.concatenate([m for m, _ in equations[key]])
        target = np.concatenate([v for _, v in equations[key]])
        offset = np.linalg.solve(matrix.T @ matrix + np.eye(3), matrix.T @ target)
        before, after = np.sqrt((target**2).mean()), np.sqrt(((target - matrix @ offset) ** 2).mean())
        print(f"{key:10s} {np.round(1000 * offset, 1)} mm   rms {1000 * before:.1f} -> {1000 * after:.1f} mm")


def _left(turn: np.ndarray, side: str) -> np.ndarray:
    """(2, 3) from a left-side offset to world x, y."""
    return (turn if side == "left" else turn * [-1.0, 1.0, 1.0])[:2]


if __name__ == "__main__":
    main()
