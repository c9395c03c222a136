"""What the expressive head is worth (Tab. 4, Fig. 12 "w/o EHM"): the same photos fitted with and without it.

    python benchmarks/ablation_plain_head.py [--template open] [--count 12] [--synthetic 0]

With a plain head the body model keeps its own head, in tracking too (C.4): its shape follows the body's few
coefficients, the jaw opens, and little else moves. Reported: the distance of detected face landmarks from the
fitted ones, in percent of the outer-eye distance, of all landmarks, lips and lids, and how far open the mouth
is against the detector's. Photos come from ``portraits`` in $GUAVA_SHARED or in ../shared beside the
checkout; ``--synthetic N`` adds renders of ``guava.synth.dataset.TEST_SEEDS``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from guava.body import Template, load_template
from guava.body.template import PLAIN_HEAD
from guava.errors import GuavaError
from guava.photo import Photo, load_photo
from guava.synth.dataset import TEST_SEEDS, accuracy_set
from guava.tracking import SourceMedia, TrackedSequence, track_detections
from guava.tracking.detection import detect_photo
from guava.tracking.detectors import create_detector
from guava.tracking.fit.face import FACE_LAYOUTS
from guava.tracking.quality import landmark_pixels

COLUMNS = ("all", "lips", "lids", "mouth")
LAYOUT = FACE_LAYOUTS["mediapipe478"]


def face_errors(template: Template, tracked: TrackedSequence, known: np.ndarray) -> list[float]:
    """Percent of the outer-eye distance: mean distance of all ``known`` landmarks but the irises, of lips and
    of lids; and the error of the inner lips' gap."""
    detected = tracked.keypoints["face"].points[0].double()
    fitted = landmark_pixels(
        template, tracked.camera[0], tracked.identity, tracked.pose, LAYOUT.embedding
    )[0].double()
    distance = (fitted - detected).norm(dim=-1).numpy()
    a, b = LAYOUT.eye_corners
    depth = tracked.keypoints["face"].depth[0].double()
    corners = torch.cat([detected, depth[:, None]], 1)[[a, b]]
    size = float((corners[0] - corners[1]).norm())
    irises = LAYOUT.right_iris + LAYOUT.left_iris
    groups = (set(np.flatnonzero(known)) - set(irises), LAYOUT.lips, LAYOUT.right_eye + LAYOUT.left_eye)
    out = [100 * float(distance[[i for i in group if known[i]]].mean()) / size for group in groups]
    upper, lower = LAYOUT.lip_gaps[0]
    gaps = [float((points[upper] - points[lower]).norm()) for points in (fitted, detected)]
    return [*out, 100 * abs(gaps[0] - gaps[1]) / size]


def photos(count: int, synthetic: int) -> Iterator[tuple[str, Photo]]:
    """Portraits spread over the folder, then renders of the open template."""
    here = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("GUAVA_SHARED", here.parent / "shared")) / "portraits"
    found = sorted(folder.glob("*.jpg"))
    for path in found[:: max(1, len(found) // max(count, 1))][:count]:
        yield path.name, load_photo(path)
    for i, sample in enumerate(accuracy_set(TEST_SEEDS.start, synthetic, load_template())):
        yield f"render {i}", Photo(sample.view.rgb, None, "", f"render{i}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--template", default="open")
    parser.add_argument("--count", type=int, default=12, help="portraits")
    parser.add_argument("--synthetic", type=int, default=0, help="renders")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    templates = [load_template(arguments.template), load_template(arguments.template + PLAIN_HEAD)]
    known = np.logical_and(*(t.landmarks[LAYOUT.embedding].weights.numpy() > 0 for t in templates))
    detector = create_detector("mediapipe")
    rows = []
    head = "".join(f"{name:>8s}{'plain':>8s}" for name in COLUMNS)
    print(f"{'picture':18s}{head}")
    for name, photo in photos(arguments.count, arguments.synthetic):
        found = detect_photo(photo, detector)
        media = SourceMedia(photo.name, photo.sha256, photo.width, photo.height)
        try:
            row = [
                face_errors(
                    template,
                    track_detections(
                        [found], [(photo.width, photo.height)], media=media, detector="mediapipe",
                        template=template,
                    ),
                    known,
                )
                for template in templates
            ]
        except GuavaError as error:
            print(f"{name:18s} {error}")
            continue
        rows.append(row)
        print(f"{name:18s}" + "".join(f"{a:8.2f}{b:8.2f}" for a, b in zip(*row, strict=True)), flush=True)
    if not rows:
        raise SystemExit("There were no pictures; set GUAVA_SHARED or ask for --synthetic renders.")
    mean = np.array(rows).mean(0)
    print(f"{'mean':18s}" + "".join(f"{a:8.2f}{b:8.2f}" for a, b in zip(*mean, strict=True)))
    worse = ", ".join(f"{name} x{b / a:.1f}" for name, a, b in zip(COLUMNS, *mean, strict=True))
    print(f"{len(rows)} pictures, '{arguments.template}' without its expressive head: {worse}")


if __name__ == "__main__":
    main()
