"""Accuracy of the tracker on renders of the template with known parameters.

    python benchmarks/tracking_accuracy.py --count 200

A small reprojection error hides weak expressions and leaning torsos, so the fitted parameters are compared
with the truth: expression units, 3D joints and torso lean. Persons and seeds come from
``guava.synth.dataset.TEST_SEEDS``; nothing in the tracker is tuned or trained on them.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch

from guava.body import EHM, Identity, Pose, Template, load_template
from guava.synth.dataset import HARD_UNITS, TEST_SEEDS, accuracy_set
from guava.tracking import SourceMedia, TrackedSequence, track_detections
from guava.tracking.detectors import create_detector
from guava.tracking.expression import UNSEEN_UNITS

ARMS_AND_HEAD = ("head", "shoulder", "elbow", "wrist")


@dataclass
class Tally:
    """Sums over all renders; lists by what is measured."""

    renders: int = 0
    found: int = 0
    hands_visible: int = 0
    hands_found: int = 0
    units: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    probes: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    joints: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    fingers: list[float] = field(default_factory=list)
    lean: list[float] = field(default_factory=list)
    face: list[float] = field(default_factory=list)


def compare(
    tally: Tally, template: Template, tracked: TrackedSequence, pose: Pose, identity: Identity, probe: str
) -> None:
    """Add one tracked render to the tally.

    Args:
        tally: Added to.
        template: The template.
        tracked: What the tracker made of the render, T = 1.
        pose, identity: The truth.
        probe: "blink", "smile", "neutral" or "".
    """
    tally.found += 1
    tally.face.append(float(tracked.quality.face_error[0]))
    read, truth = tracked.pose.expression[0].numpy(), pose.expression[0].numpy()
    tally.units.append((read, truth))
    for name, stem in (("blink", "eyeBlink"), ("smile", "mouthSmile")):
        if probe == name:
            tally.probes[name] += [float(read[template.unit(stem + side)]) for side in ("Left", "Right")]
    model = EHM(template, torch.tensor([0]))
    with torch.no_grad():
        mine = model(tracked.identity, tracked.pose).joints[0]
        true = model(identity, pose).joints[0]
    neck = template.joint("neck")
    for j, name in enumerate(template.body.joint_names):
        if any(part in name for part in ARMS_AND_HEAD):
            gap = (mine[j] - mine[neck]) - (true[j] - true[neck])
            tally.joints[name].append(1000 * float(gap.norm()))
    for side in ("left", "right"):
        if not bool((tracked.keypoints[f"{side}_hand"].confidence > 0).any()):
            continue
        wrist = template.joint(f"{side}_wrist")
        fingers = [
            j
            for j, n in enumerate(template.body.joint_names)
            if n.startswith(side) and n[-1] in "123" and "spine" not in n
        ]
        gap = (mine[fingers] - mine[wrist]) - (true[fingers] - true[wrist])
        tally.fingers.append(1000 * float(gap.norm(dim=-1).mean()))
    up_mine = mine[neck] - mine[0]
    up_true = true[neck] - true[0]
    cosine = torch.nn.functional.cosine_similarity(up_mine, up_true, dim=0).clamp(-1, 1)
    tally.lean.append(float(torch.rad2deg(torch.acos(cosine))))


def report(tally: Tally, template: Template) -> str:
    """The table."""
    read, truth = (np.stack([pair[i] for pair in tally.units]) for i in (0, 1))
    seen = np.array([n not in UNSEEN_UNITS and n not in HARD_UNITS for n in template.expression_names])
    error = np.abs(read - truth)
    strong, zero = truth > 0.3, truth <= 1e-6
    lines = [
        f"renders {tally.renders}, faces found {tally.found}",
        f"face reprojection            {np.nanmean(tally.face):6.2f} % of the outer-eye distance",
        f"units > 0.3, visible   MAE   {error[:, seen][strong[:, seen]].mean():6.3f}   (asked <= 0.25)",
        f"units > 0.3, all       MAE   {error[strong].mean():6.3f}",
        f"units at 0             MAE   {error[zero].mean():6.3f}   (asked <= 0.08)",
    ]
    for name, asked in (("blink", "1.0 read >= 0.75"), ("smile", "0.8 read >= 0.55")):
        if tally.probes[name]:
            lines.append(f"{name:28s} {np.mean(tally.probes[name]):6.2f}   (asked {asked})")
    joints = {name: np.mean(values) for name, values in tally.joints.items()}
    lines += [
        f"arms and head, neck-aligned  {np.mean(list(joints.values())):6.1f} mm  (asked <= 45)",
        "   " + ", ".join(f"{name} {value:.0f}" for name, value in joints.items()),
        f"fingers, wrist-aligned       {np.mean(tally.fingers):6.1f} mm  (asked <= 12)",
        f"   {len(tally.fingers)} hands found, median {np.median(tally.fingers):.1f} mm",
        f"torso lean                   {np.mean(tally.lean):6.1f} deg (asked <= 4)",
        "not seen in a frontal picture: " + ", ".join(sorted(set(UNSEEN_UNITS) | set(HARD_UNITS))),
        "unit: MAE where > 0.3 (times), MAE where 0",
    ]
    for i, name in enumerate(template.expression_names):
        high, low = error[:, i][strong[:, i]], error[:, i][zero[:, i]]
        text = f"{high.mean():.2f} ({len(high)})" if len(high) else "-"
        lines.append(f"   {name:22s} {text:12s} {low.mean() if len(low) else float('nan'):.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="renders")
    parser.add_argument("--seed", type=int, default=TEST_SEEDS.start, help="first seed")
    arguments = parser.parse_args()
    template, detector, tally = load_template(), create_detector("mediapipe"), Tally()
    start = time.time()
    for i, sample in enumerate(accuracy_set(arguments.seed, arguments.count, template)):
        tally.renders += 1
        detector.reset()
        found = detector.detect(sample.view.rgb)
        if found.person is not None and found.person.face is not None:
            size = sample.view.rgb.shape[1]
            media = SourceMedia(f"render {sample.seed}", "", size, size)
            tracked = track_detections(
                [found], [(size, size)], media=media, detector="mediapipe", template=template
            )
            compare(tally, template, tracked, sample.view.pose, sample.view.identity, sample.probe)
        if i % 20 == 19:
            print(f"{i + 1} of {arguments.count}, {time.time() - start:.0f} s", flush=True)
    print(report(tally, template))


if __name__ == "__main__":
    main()
