"""Jitter of a tracked clip against that of the detector's own points.

    python benchmarks/tracking_video.py [VIDEO]

Jitter is the mean second difference of a point, in crop pixels at 512, over neighbouring frames of one shot
in which it was detected. Without VIDEO: ``video/speaker.mp4`` in $GUAVA_SHARED or in ../shared beside the
checkout.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor

from guava.body import EHM, load_template
from guava.tracking import track_video
from guava.tracking.fit.chain import finger_joints
from guava.tracking.priors import FINGERS
from guava.tracking.quality import landmark_pixels

BODY = {"left_shoulder": 11, "right_shoulder": 12, "left_elbow": 13, "right_elbow": 14}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(os.environ.get("GUAVA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    parser.add_argument("video", type=Path, nargs="?", default=shared / "video" / "speaker.mp4")
    arguments = parser.parse_args()
    if not arguments.video.is_file():
        raise SystemExit(f"There is no '{arguments.video}'; set GUAVA_SHARED or name a video.")
    template, tracked = load_template(), track_video(arguments.video)
    ok, shots, keypoints, camera = tracked.valid, tracked.shots, tracked.keypoints, tracked.camera[0]
    triple = ok[2:] & ok[1:-1] & ok[:-2] & (shots[2:] == shots[:-2])

    def jitter(points: Tensor, confidence: Tensor) -> float:
        change = (points[2:] - 2 * points[1:-1] + points[:-2]).norm(dim=-1)
        seen = confidence > 0
        known = seen[2:] & seen[1:-1] & seen[:-2] & triple[:, None]
        return float(change[known].mean()) * 512 / camera.width

    def line(name: str, detected: Tensor, fitted: Tensor, confidence: Tensor) -> None:
        a, b = jitter(detected, confidence), jitter(fitted, confidence)
        print(f"{name:12s} detector {a:6.2f} px   fit {b:6.2f} px   {'ok' if b <= a else 'WORSE'}")

    marks = landmark_pixels(template, camera, tracked.identity, tracked.pose, "mediapipe478")
    line("face", keypoints["face"].points, marks, keypoints["face"].confidence)
    tips = [template.surface_points[f"{side}_{f}_tip"] for side in ("left", "right") for f in FINGERS]
    with torch.no_grad():
        output = EHM(template, torch.tensor(tips))(tracked.identity, tracked.pose)
    for s, side in enumerate(("left", "right")):
        points = [
            output.joints[:, joint] if joint >= 0 else output.vertices[:, 5 * s + (n - 1) // 4]
            for n, joint in enumerate(finger_joints(template, side))
        ]
        hand = keypoints[f"{side}_hand"]
        line(f"{side} hand", hand.points, camera.project(torch.stack(points, 1))[0], hand.confidence)
    body, index = keypoints["body"], list(BODY.values())
    fitted = camera.project(output.joints[:, [template.joint(name) for name in BODY]])[0]
    sure = (body.confidence[:, index] > 0.5).float()
    line("arms", body.points[:, index], fitted, sure)
    print(f"{len(ok)} frames, {int(ok.sum())} valid, {len(shots.unique())} shots")
    print("\n".join(tracked.quality.notes))


if __name__ == "__main__":
    main()
