"""Train the networks of ``guava.tracking.lifting`` on renders of the template with known joints.

    python scripts/train_depth_lifting.py collect --seed 700000 --count 1500 rows_a.npz
    python scripts/train_depth_lifting.py train rows_a.npz rows_b.npz

``collect`` renders people with arms in view (a third of them in poses beyond those of
``guava.synth.sample_pose``), detects them and keeps the networks' inputs and the truth; about 0.6 s a render.
``train`` fits the networks and prints their errors on people left out. Seeds come from
``guava.synth.dataset.TUNING_SEEDS``.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import dropout, huber_loss

from guava.body import EHM, Pose, Template, load_template
from guava.camera import Camera
from guava.synth import (
    frame_person,
    render_person,
    sample_background,
    sample_light,
    sample_person,
    sample_pose,
)
from guava.synth.dataset import TUNING_SEEDS
from guava.tracking.detectors import create_detector
from guava.tracking.fit.chain import finger_joints
from guava.tracking.fit.offsets import hand_offsets
from guava.tracking.lifting import DEPTH_LIFTING, arm_features, hand_features
from guava.tracking.priors import FINGERS

KINDS = ("two_hands", "one_hand", "two_hands", "two_hands", "one_hand", "arms_down")
POSES_EACH = 3
GROSS_HAND = 15.0
"""Pixels: a hand farther off than this in the median was mistaken for something else."""
MEMBERS, HIDDEN, DECAY, NOISE, DROPOUT, EPOCHS, RATE = 4, 64, 0.3, 0.15, 0.1, 300, 3e-3
SIDES = ("left", "right")
_FLIP = np.array([-1.0, 1.0, 1.0])


def collect(template: Template, seed: int, count: int, path: Path) -> None:
    """Render, detect, and write one row for every arm and hand."""
    detector, camera, size = create_detector("mediapipe"), Camera.frontal(512), 512
    tips = [template.surface_points[f"{s}_{f}_tip"] for s in SIDES for f in FINGERS]
    model, rows = EHM(template, torch.tensor(tips)), defaultdict(list)
    for i in range(count):
        rng = np.random.default_rng([seed + i, 909])
        if i % POSES_EACH == 0:
            person = sample_person(seed + i // POSES_EACH, template)
        wide = i % 3 == 2
        pose = sample_pose(rng, template, KINDS[i % len(KINDS)], face_camera=not wide)
        if wide:
            _disturb(rng, template, pose)
        pose = frame_person(rng, person, pose, template, kind="upper_body", camera=camera)
        background, light = sample_background(rng, size, size), sample_light(rng)
        view = render_person(
            person, pose, camera, template, background=background, light=light, supersample=1
        )
        detector.reset()
        found = detector.detect(view.rgb).person
        if found is None or found.face is None:
            continue
        with torch.no_grad():
            output = model(view.identity, view.pose)
        for side in (0, 1):
            _add_rows(rows, template, camera, found, output, side, person.seed)
        if i % 50 == 49:
            print(f"{i + 1} of {count}", flush=True)
    np.savez(path, **{key: np.array(value) for key, value in rows.items()})


def _disturb(rng: np.random.Generator, template: Template, pose: Pose) -> None:
    for name, spread in (("shoulder", 0.25), ("elbow", 0.25), ("wrist", 0.2)):
        for side in SIDES:
            turn = torch.from_numpy(rng.normal(0, spread, 3)).float()
            pose.joints[0, template.joint(f"{side}_{name}")] += turn


def _add_rows(rows, template, camera, found, output, side: int, whom: int) -> None:
    joints = output.joints[0].numpy().astype(float)
    own, other = SIDES[side], SIDES[1 - side]
    mirror = _FLIP if side == 1 else np.ones(3)

    def bone(a: str, b: str) -> np.ndarray:
        line = (joints[template.joint(b)] - joints[template.joint(a)]) * mirror
        return line / np.linalg.norm(line)

    features = arm_features(found, side)
    if features is not None:

        def inside(k: int) -> bool:
            return bool((found.body.points[k] > 0).all() and (found.body.points[k] < camera.width).all())

        hand = found.right_hand if side else found.left_hand
        elbow = inside(13 + side)
        wrist = elbow and (inside(15 + side) or hand is not None)
        rows["arm_x"].append(features)
        rows["arm_y"].append(
            np.concatenate(
                [
                    bone(f"{own}_shoulder", f"{own}_elbow"),
                    bone(f"{own}_elbow", f"{own}_wrist"),
                    bone(f"{other}_shoulder", f"{own}_shoulder"),
                ]
            )
        )
        rows["arm_w"].append(np.repeat([elbow, wrist, True], 3).astype(float))
        rows["arm_person"].append(whom)
    seen = hand_features(found, side)
    if seen is not None:
        points = _hand_points(template, output, side)
        pixels, depth = camera.project(points.float())
        hand = found.right_hand if side else found.left_hand
        if np.median(np.linalg.norm(pixels.numpy() - hand.points, axis=1)) < GROSS_HAND:
            pixels_per_metre = float(camera.intrinsics[0, 0] / depth.mean())
            rows["hand_x"].append(seen[0])
            rows["hand_y"].append((points[:, 2] - points[0, 2]).numpy() * pixels_per_metre / seen[1])
            rows["hand_w"].append(np.ones(21))
            rows["hand_person"].append(whom)


def _hand_points(template: Template, output, side: int) -> torch.Tensor:
    """(21, 3) where a perfect detector's points would lie in the world."""
    name, offsets = SIDES[side], hand_offsets(SIDES[side])
    turns = output.joint_transforms[0, :, :3, :3].double()
    points = []
    for n, joint in enumerate(finger_joints(template, name)):
        if joint >= 0:
            carrier, point = joint if n == 0 else int(template.body.parents[joint]), output.joints[0, joint]
        else:
            finger = (n - 1) // 4
            carrier = template.joint(f"{name}_{FINGERS[finger]}3")
            point = output.vertices[0, 5 * side + finger]
        points.append(point.double() + turns[carrier] @ offsets[n])
    return torch.stack(points)


def fit_ensemble(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
    """Three layers (K, out, in) and their biases (K, out); inputs are jittered."""
    torch.set_num_threads(1)  # these matrices are too small to share between threads
    torch.manual_seed(0)
    count, inputs = x.shape
    sizes = (inputs, HIDDEN, HIDDEN, y.shape[1])
    gains = (1.0, 1.0, 0.3)
    weights = [
        gain * torch.randn(MEMBERS, b, a) / a**0.5
        for a, b, gain in zip(sizes[:-1], sizes[1:], gains, strict=True)
    ]
    biases = [torch.zeros(MEMBERS, b) for b in sizes[1:]]
    biases[-1][:] = (y * w).sum(0) / w.sum(0)
    for value in weights + biases:
        value.requires_grad_()
    groups = [{"params": weights, "weight_decay": DECAY}, {"params": biases, "weight_decay": 0.0}]
    optimizer, batch = torch.optim.AdamW(groups, lr=RATE), 128
    steps = EPOCHS * (count // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(steps):
        index = torch.randint(count, (MEMBERS, batch))
        noisy = x[index] + NOISE * torch.randn(MEMBERS, batch, inputs)
        error = huber_loss(
            run_ensemble(noisy, weights, biases, DROPOUT), y[index], reduction="none", delta=0.2
        )
        loss = 100 * (error * w[index]).sum() / w[index].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return [value.detach() for value in weights + biases]


def run_ensemble(x: torch.Tensor, weights: list, biases: list, drop: float = 0.0) -> torch.Tensor:
    """(K, N, F) -> (K, N, O)."""
    for n, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        if n + 1 < len(weights):
            x = torch.tanh(x)
            x = dropout(x, drop) if drop else x
    return x


def train(template: Template, paths: list[Path], out: Path) -> None:
    """Fit both ensembles; their sigma comes from a fit without every fifth person."""
    files = [np.load(path) for path in paths]
    tensors = {"template_hash": torch.from_numpy(np.frombuffer(template.hash.encode(), np.uint8).copy())}
    for part in ("arm", "hand"):
        x, y, w, people = (
            np.concatenate([f[f"{part}_{key}"] for f in files]) for key in ("x", "y", "w", "person")
        )
        mean, spread = x.mean(0), x.std(0) + 0.02
        scaled = torch.from_numpy(np.clip((x - mean) / spread, -4, 4)).float()
        target, weight = torch.from_numpy(y).float(), torch.from_numpy(w).float()
        held = torch.from_numpy(people % 5 == 2)
        fitted = fit_ensemble(scaled[~held], target[~held], weight[~held])
        read = run_ensemble(scaled[held].expand(MEMBERS, -1, -1), fitted[:3], fitted[3:]).mean(0)
        square = ((read - target[held]).square() * weight[held]).sum(0) / weight[held].sum(0)
        print(part, len(x), "rows; sigma", [round(float(s), 3) for s in square.sqrt()], flush=True)
        fitted = fit_ensemble(scaled, target, weight)
        tensors[f"{part}.mean"] = torch.from_numpy(mean).float()
        tensors[f"{part}.spread"] = torch.from_numpy(spread).float()
        tensors[f"{part}.sigma"] = square.sqrt()
        for n in range(3):
            tensors[f"{part}.weight{n}"] = fitted[n].half().contiguous()
            tensors[f"{part}.bias{n}"] = fitted[3 + n].contiguous()
    save_file(tensors, out)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    gather = commands.add_parser("collect", help="render and detect")
    gather.add_argument("--seed", type=int, default=TUNING_SEEDS.start + 700_000)
    gather.add_argument("--count", type=int, default=1500)
    gather.add_argument("out", type=Path)
    fit = commands.add_parser("train", help="fit the networks")
    fit.add_argument("--out", type=Path, default=DEPTH_LIFTING)
    fit.add_argument("rows", type=Path, nargs="+")
    arguments = parser.parse_args()
    template = load_template()
    if arguments.command == "collect":
        collect(template, arguments.seed, arguments.count, arguments.out)
    else:
        train(template, arguments.rows, arguments.out)


if __name__ == "__main__":
    main()
