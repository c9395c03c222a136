"""Are the made-up people real enough for MediaPipe? Asked: 98 % of the faces, 80 % of the visible hands.

    python benchmarks/synth_detectability.py --count 100

A face or hand counts as found when the detector's points lie at the true place: face within 15 % of the
outer-eye distance (mean over landmarks), hand within half a palm (middle knuckle).
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from guava.body import load_template
from guava.synth import TEST_SEEDS, accuracy_set, dress, render_person, sample_background, sample_light
from guava.tracking.detectors import create_detector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=TEST_SEEDS.start + 50_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--dressed", action="store_true", help="loose clothes and a full head of hair")
    parser.add_argument("--sheet", default="", help="write a contact sheet to this PNG")
    arguments = parser.parse_args()
    template = load_template()
    detector = create_detector("mediapipe")
    trusted = template.landmarks["mediapipe478"].weights.numpy() > 0
    faces, hands, errors, missed, thumbnails = [], [], [], [], []
    for sample in accuracy_set(arguments.seed, arguments.count, template, size=arguments.size):
        view = sample.view
        if arguments.dressed:
            rng = np.random.default_rng([sample.seed, 404])
            view = render_person(
                dress(sample.person, template),
                view.pose,
                view.camera,
                template,
                light=sample_light(rng),
                background=sample_background(rng, arguments.size, arguments.size),
            )
        detector.reset()
        person = detector.detect(view.rgb).person
        if view.face_visible:
            found = person is not None and person.face is not None
            if found:
                points = person.face.points
                across = np.linalg.norm(points[33] - points[263])
                error = np.linalg.norm(points - view.landmarks2d, axis=1)[trusted].mean() / across
                errors.append(100 * error)
                found = error < 0.15
            faces.append(found)
            if not found:
                missed.append(f"{sample.seed} face ({sample.kind})")
        for k, side in enumerate(("left", "right")):
            if not view.hands_visible[k]:
                continue
            hand = None if person is None else getattr(person, f"{side}_hand")
            rows = [template.joint(f"{side}_{name}") for name in ("wrist", "middle1")]
            truth = view.camera.project(torch.from_numpy(view.joints3d[rows]))[0].numpy()
            palm = max(np.linalg.norm(truth[0] - truth[1]), 0.04 * arguments.size)
            found = hand is not None and np.linalg.norm(hand.points[9] - truth[1]) < 0.5 * palm
            hands.append(found)
            if not found:
                missed.append(f"{sample.seed} {side} hand")
        if arguments.sheet:
            thumbnails.append(view.rgb)
    print(f"faces found: {np.mean(faces):.1%} of {len(faces)} (asked >= 98 %)")
    print(f"visible hands found: {np.mean(hands):.1%} of {len(hands)} (asked >= 80 %)")
    print(f"face landmarks to truth: {np.mean(errors):.2f} % of the eye distance (mean)")
    print("missed:", ", ".join(missed) or "none")
    if arguments.sheet:
        from PIL import Image

        columns = 8
        small = (240, 240)
        tiles = [np.asarray(Image.fromarray(t).resize(small, Image.Resampling.LANCZOS)) for t in thumbnails]
        tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
        rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
        Image.fromarray(np.vstack(rows)).save(arguments.sheet)


if __name__ == "__main__":
    main()
