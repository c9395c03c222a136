"""Measure how MediaPipe's face landmarks answer to the template's expression units.

    python scripts/train_landmark_response.py --renders 3000 --cache renders.npz

Renders heads of many people with known expressions, runs MediaPipe's face mesh on them (about 0.3 s a
render), and
fits a linear response with Gaussian noise:

    aligned landmarks = mean + response . units + noise,    noise ~ N(0, Sigma)

Sigma holds what other people, poses and lights do to the landmarks. The result (projection and precision of
the generalised least-squares estimate) is shipped with the package; the renders are not. Seeds come from
``guava.synth.dataset.TUNING_SEEDS``, apart from all that is reported.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from guava.body import load_template
from guava.camera import Camera
from guava.synth.dataset import TUNING_SEEDS
from guava.synth.person import sample_person
from guava.synth.pose import sample_pose
from guava.synth.render import frame_person, render_person, sample_background, sample_light
from guava.tracking.config import FaceFitConfig
from guava.tracking.expression import (
    LANDMARK_RESPONSE,
    LandmarkResponse,
    align_landmarks,
    read_expression,
    save_response,
)
from guava.tracking.fit.face import FACE_LAYOUTS, FaceLandmarkModel

LAYOUT, SIZE, PER_PERSON = "mediapipe478", 288, 5
GAIN = 0.7
"""The response is pulled towards this share of the template's own landmark motion."""


def render_heads(first_seed: int, count: int) -> dict[str, np.ndarray]:
    """Landmarks (n, 478, 3) in pixels, units (n, E) and person seeds (n,)."""
    import mediapipe

    template = load_template()
    mesh = mediapipe.solutions.face_mesh.FaceMesh(
        static_image_mode=True, refine_landmarks=True, min_detection_confidence=0.3
    )
    camera, marks, units, people = Camera.frontal(SIZE), [], [], []
    for i in range(count):
        rng = np.random.default_rng([first_seed + i, 77])
        if i % PER_PERSON == 0:
            person = sample_person(first_seed + i // PER_PERSON, template)
        pose = sample_pose(rng, template, "head", expression="sparse" if i % 3 == 0 else None)
        if i % PER_PERSON == 0:
            pose = replace(pose, expression=torch.zeros_like(pose.expression))
        elif i % 3 == 1:
            more = sample_pose(rng, template, "head", expression="sparse").expression
            both = template.bounded_expression((pose.expression + more).clamp(0, 1))
            pose = replace(pose, expression=both)
        pose = frame_person(rng, person, pose, template, kind="head", camera=camera)
        background, light = sample_background(rng, SIZE, SIZE), sample_light(rng)
        view = render_person(
            person, pose, camera, template, background=background, light=light, supersample=1
        )
        found = mesh.process(view.rgb).multi_face_landmarks
        if found:
            marks.append(np.array([[p.x, p.y, p.z] for p in found[0].landmark]) * SIZE)
            units.append(pose.expression[0].numpy())
            people.append(first_seed + i // PER_PERSON)
        if i % 50 == 49:
            print(f"{i + 1} of {count} rendered", flush=True)
    return {"marks": np.stack(marks), "units": np.stack(units), "people": np.array(people)}


def measure_response(marks: np.ndarray, units: np.ndarray, *, ridge: float, floor: float) -> LandmarkResponse:
    """Fit response and noise to renders and their mirror images.

    Args:
        marks: (n, L, 3) pixels.
        units: (n, E).
        ridge: Strength of the pull of the response towards the template's own.
        floor: Share of the noise's mean variance that is added to its diagonal.
    """
    template = load_template()
    model = FaceLandmarkModel(template, LAYOUT)
    base, dirs = model.base, model.expression_dirs
    layout = FACE_LAYOUTS[LAYOUT]
    moving = set(layout.lips + layout.contour + layout.right_eye + layout.left_eye)
    moving |= set(layout.right_iris + layout.left_iris)
    reach = dirs.abs().amax((1, 2))
    stiff = torch.tensor([i for i in range(len(base)) if i not in moving and float(reach[i]) < 0.0035])

    def offsets(points: torch.Tensor) -> torch.Tensor:
        return 1000 * (align_landmarks(points[..., :2], points[..., 2], base, stiff) - base)

    aligned = offsets(torch.from_numpy(marks))
    flip = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    distance = torch.cdist(base * flip, base)
    twin = torch.from_numpy(linear_sum_assignment((distance + distance.T).numpy())[1])
    mirrored = (aligned + 1000 * base)[:, twin] * flip - 1000 * base
    names = list(template.expression_names)
    other = [names.index(_mirrored(name)) for name in names]
    x = torch.cat([aligned, mirrored]).flatten(1)
    y = torch.from_numpy(np.concatenate([units, units[:, other]])).double()
    to_pixels = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    own = offsets((base + dirs.permute(2, 0, 1)) * to_pixels).flatten(1)

    mean_x, mean_y = x.mean(0), y.mean(0)
    centred_x, centred_y = x - mean_x, y - mean_y
    gram = centred_y.T @ centred_y + ridge * torch.eye(len(names), dtype=torch.float64)
    response = torch.linalg.solve(gram, centred_y.T @ centred_x + ridge * GAIN * own)
    noise = centred_x - centred_y @ response
    sigma = noise.T @ noise / len(noise)
    sigma.diagonal().add_(floor * float(sigma.trace()) / len(sigma))
    projection = torch.linalg.solve(sigma, response.T)
    precision = response @ projection
    offset = mean_x @ projection - mean_y @ precision
    return LandmarkResponse(stiff, projection, offset, (precision + precision.T) / 2)


def _mirrored(name: str) -> str:
    if name.endswith("Left"):
        return name[:-4] + "Right"
    return name[:-5] + "Left" if name.endswith("Right") else name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renders", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=TUNING_SEEDS.start + 300_000)
    parser.add_argument(
        "--cache", type=Path, required=True, help="npz of renders' landmarks; made if missing"
    )
    parser.add_argument("--out", type=Path, default=LANDMARK_RESPONSE)
    parser.add_argument("--ridge", type=float, default=3.0)
    parser.add_argument("--floor", type=float, default=0.02)
    arguments = parser.parse_args()
    if not arguments.cache.is_file():
        np.savez(arguments.cache, **render_heads(arguments.seed, arguments.renders))
    data = dict(np.load(arguments.cache))
    marks, units, people = data["marks"], data["units"], data["people"]
    settings = {"ridge": arguments.ridge, "floor": arguments.floor}
    held = np.isin(people, np.unique(people)[::5])
    trial = measure_response(marks[~held], units[~held], **settings)
    template = load_template()
    base = FaceLandmarkModel(template, LAYOUT).base
    test = torch.from_numpy(marks[held])
    aligned = align_landmarks(test[..., :2], test[..., 2], base, trial.stiff)
    read = read_expression(trial, aligned, base, torch.ones(units.shape[1]).double(), FaceFitConfig()).numpy()
    error = np.abs(read - units[held])
    print(f"{held.sum()} renders of {len(np.unique(people[held]))} people held out:")
    strong, zero = error[units[held] > 0.3].mean(), error[units[held] == 0].mean()
    print(f"MAE of units > 0.3: {strong:.3f}, of units at 0: {zero:.3f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_response(arguments.out, measure_response(marks, units, **settings), template.hash)
    print(f"{len(marks)} renders -> {arguments.out}")


if __name__ == "__main__":
    main()
