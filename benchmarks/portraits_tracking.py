"""Fit every picture of the shared portraits and tabulate the quality.

    python benchmarks/portraits_tracking.py [--sheets FOLDER] [--template open]

Needs the folder ``portraits`` in $GUAVA_SHARED or in ../shared beside the checkout. A small reprojection
error says nothing about depth or expression (``tracking_accuracy.py`` measures those); look at the sheets.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from guava.body import EHM, Template, load_template
from guava.errors import GuavaError
from guava.photo import load_photo
from guava.rendering.mesh import shade_mesh
from guava.tracking import TrackedSequence, track_image
from guava.tracking.crop import crop_image
from guava.tracking.detectors import create_detector

CELL, COLUMNS, PER_SHEET = 380, 5, 15
COLORS = {
    "torso": (0.55, 0.65, 0.9), "left_arm": (0.5, 0.85, 0.6), "right_arm": (0.9, 0.75, 0.4),
    "left_hand": (0.3, 0.9, 0.4), "right_hand": (0.95, 0.5, 0.3), "face": (0.9, 0.8, 0.75),
}  # fmt: skip


def overlay(template: Template, tracked: TrackedSequence, picture: np.ndarray) -> np.ndarray:
    """The fitted mesh over the photo, (S, S, 3) uint8 in the crop."""
    with torch.no_grad():
        vertices = EHM(template)(tracked.identity, tracked.pose).vertices[0]
    size = tracked.camera.width
    photo = crop_image(torch.from_numpy(picture.copy()), tracked.crop_from_image[0], size) / 255
    palette = torch.tensor([COLORS.get(name, (0.65, 0.6, 0.55)) for name in template.part_names])
    drawn = shade_mesh(
        vertices, template.faces, tracked.camera[0], face_colors=palette[template.face_parts.long()]
    )
    strength = 0.55 * drawn[..., 3:]
    mixed = photo * (1 - strength) + drawn[..., :3] * strength
    return (mixed.clamp(0, 1) * 255).byte().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets (PNG)")
    parser.add_argument("--template", default="open", help="body template")
    arguments = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("GUAVA_SHARED", here.parent / "shared")) / "portraits"
    pictures = sorted(folder.glob("*.jpg"))
    if not pictures:
        raise SystemExit(f"There are no portraits in '{folder}'; set GUAVA_SHARED.")
    template, detector = load_template(arguments.template), create_detector("mediapipe")
    rows, cells = [], []
    print(f"{'picture':20s} {'s':>5s} {'face %':>7s} {'hands px':>12s} {'body px':>8s} {'IoU':>6s}  notes")
    for path in pictures:
        start = time.time()
        try:
            photo = load_photo(path)
            tracked = track_image(photo, template=template, detector=detector)
        except GuavaError as error:
            print(f"{path.name:20s} {error}")
            continue
        q = tracked.quality
        row = [q.face_error[0], *q.hand_error[0], q.body_error[0], q.mask_overlap[0]]
        rows.append([float(v) for v in row])
        face, left, right, body, overlap = rows[-1]
        print(
            f"{path.name:20s} {time.time() - start:5.1f} {face:7.2f} {left:6.2f}{right:6.2f} {body:8.2f} "
            f"{overlap:6.3f}  {' '.join(q.notes)}",
            flush=True,
        )
        if arguments.sheets:
            cells.append((path.name, overlay(template, tracked, photo.pixels)))
    table = np.array(rows)
    print(
        f"fitted {len(rows)} of {len(pictures)}; face {table[:, 0].mean():.2f} % (asked <= 1.8), "
        f"hands {np.nanmean(table[:, 1:3]):.2f} px (asked <= 3), body {np.nanmean(table[:, 3]):.2f} px, "
        f"IoU {np.nanmean(table[:, 4]):.3f}"
    )
    for first in range(0, len(cells), PER_SHEET):
        arguments.sheets.mkdir(parents=True, exist_ok=True)
        sheet = Image.new("RGB", (COLUMNS * CELL, -(-PER_SHEET // COLUMNS) * CELL))
        for i, (name, picture) in enumerate(cells[first : first + PER_SHEET]):
            corner = ((i % COLUMNS) * CELL, (i // COLUMNS) * CELL)
            sheet.paste(Image.fromarray(picture).resize((CELL, CELL)), corner)
            ImageDraw.Draw(sheet).text((corner[0] + 4, corner[1] + 4), name, fill=(255, 0, 0))
        sheet.save(arguments.sheets / f"sheet_{first // PER_SHEET}.png")


if __name__ == "__main__":
    main()
