"""Time of an animated frame, by stage.

    python benchmarks/animate.py [--avatar A.guava | --model official|paper|lite] [--device cuda] [--json]

``frames_per_second`` is everything from the pose to a picture in 8 bits; ``with_encoding`` is a video made as
``guava animate`` makes it, encoded on a thread beside. Frames of avatars without a refiner are drawn with
--supersample samples a side, 2 by default as ``guava animate`` does at 512 pixels, and with 1 in turn. Page
faults tell whether a frame allocates big memory. Times are medians of runs while the machine was quiet
(``timing.py``).

Without either, Gaussians on the template's surface in three channels, without a refiner. With --model, an
avatar of that network with untrained weights that cost what trained ones do (plausible.py), splatted in all
channels and refined, beside the paper's 52 frames per second (RTX 3090). Options that make a GPU faster state
their error against single precision without them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the guava command does, for the same reason

import torch
from plausible import benchmark_source, plausible_weights
from scenes import (
    accelerator,
    accelerator_options,
    machine,
    peak_memory,
    standing_pose,
    surface_avatar,
)
from timing import Cell, interleave

from guava.avatar import Animator, Avatar, Provenance, RefinerReference, SourceView, load_avatar, over
from guava.avatar.animate import PRECISIONS, find_device
from guava.body import Identity, Pose, Template, load_template
from guava.camera import Camera
from guava.commands.showing import write_video
from guava.model import assemble, build_refiner, preset
from guava.model.generate import Generator, load_refiner, to_device

BLACK = (0.0, 0.0, 0.0)
PAPER = {"paper_frames_per_second": 52.0, "paper_device": "NVIDIA RTX 3090"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--avatar", help="an avatar file")
    parser.add_argument("--model", choices=("official", "paper", "lite"), help="an avatar of this network")
    parser.add_argument("--template", default="open")
    parser.add_argument("--count", type=int, default=150_000, help="Gaussians, without avatar and model")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--frames", type=int, default=100, help="about so many are timed, of each kind")
    parser.add_argument("--supersample", type=int, default=2, help="samples a side, without a refiner")
    parser.add_argument("--coarse", action="store_true", help="without the refiner")
    accelerator_options(parser, "the refiner")
    parser.add_argument("--torch-threads", type=int, default=1, help="of torch and of the native kernels")
    parser.add_argument("--no-video", action="store_true", help="leave out encoding")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Random weights")
    torch.set_num_threads(args.torch_threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device, template = find_device(args.device), load_template(args.template)
    refiner = None
    if args.avatar:
        avatar = load_avatar(args.avatar, template)
        pose, camera = avatar.source.pose, avatar.source.camera.resized(args.size, args.size)
        if avatar.refiner is not None and not args.coarse:
            refiner = load_refiner(avatar)
    elif args.model:
        avatar, refiner = network_avatar(args.model, template, args.seed, device)
        pose, camera = avatar.source.pose, avatar.source.camera.resized(args.size, args.size)
    else:
        avatar = surface_avatar(template, args.count, args.seed, args.size)
        pose, camera = standing_pose(template, size=args.size)
    if args.coarse:
        refiner = None

    changed = args.precision != "fp32" or args.channels_last or args.tf32 or args.compile != "none"
    options = {"coarse": refiner is None, "device": device}
    reference = None
    if refiner is not None and changed:
        reference = Animator(avatar, template, refiner=refiner.to(device), **options).render(pose, camera)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    if refiner is not None:
        refiner = refiner.to(device, PRECISIONS[args.precision])
        if args.channels_last:
            refiner = refiner.to(memory_format=torch.channels_last)
        if args.compile != "none" and device.type == "cpu" and hasattr(refiner, "for_inference"):
            refiner = refiner.for_inference(PRECISIONS[args.precision])  # before the animator does it
        if args.compile != "none":
            refiner.compile(mode=args.compile)
    animator = Animator(avatar, template, refiner=refiner, **options)
    error = {}
    if reference is not None:
        change = (over(reference, BLACK).float() - over(animator.render(pose, camera), BLACK).float()).abs()
        error = {
            "error_levels_mean": round(float(change.mean()), 3),
            "error_levels_max": int(change.max()),
        }

    runs = Runs(animator, pose, camera, template.joint("left_elbow"))
    samples = 1 if refiner is not None else args.supersample
    cells = {str(n): Cell(runs.cell(n), args.torch_threads) for n in sorted({samples, 1})}
    interleave(cells, 1, batch_seconds=0.2)  # warms up
    runs.clear()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    batches = max(3, args.frames // 10)
    times = interleave(cells, batches, batch_seconds=args.frames / batches * runs.seconds(samples))
    frame = times[str(samples)]
    report = {
        "benchmark": "animate",
        "model": args.model or avatar.provenance.generator,
        "template": args.template,
        "gaussians": len(avatar.gaussians),
        "channels": animator.gaussians.features.shape[1],
        "size": args.size,
        "supersample": samples,
        "refiner": refiner is not None,
        "precision": args.precision,
        "channels_last": args.channels_last,
        "compile": args.compile,
        **accelerator(device),
        "median_ms": round(frame[""].median, 2),
        "frames_per_second": round(1000 / frame[""].median, 1),
        **({"frames_per_second_one_sample": round(1000 / times["1"][""].median, 1)} if samples > 1 else {}),
        "quiet": all(cell[""].quiet for cell in times.values()),
        "others": frame[""].report()["others"],
        "least_cpu_ms": runs.cpu_ms(samples),
        "page_faults_per_frame": runs.faults(samples),
        **{f"{stage}_ms": round(t.median, 2) for stage, t in frame.items() if stage},
        **(PAPER if args.model in ("official", "paper") else {}),
        **error,
        **({} if args.no_video else {"with_encoding": video(runs, min(args.frames, 100), args.size)}),
        **peak_memory(device),
        "frames": frame[""].runs,
        **machine(),
    }
    print(json.dumps(report) if args.json else "\n".join(f"{k:30} {v}" for k, v in report.items()))


class Runs:
    """One avatar, drawn in one pose after the other."""

    def __init__(self, animator: Animator, pose: Pose, camera: Camera, elbow: int):
        self.animator, self._pose, self.camera, self._elbow = animator, pose, camera, elbow
        self._out = torch.empty(camera.height, camera.width, 3, dtype=torch.uint8)
        self._count = 0
        self.clear()

    def clear(self) -> None:
        """Forget what was counted so far: it warmed up."""
        self._cpu: dict[int, list[float]] = {}
        self._faults: dict[int, list[int]] = {}

    def next_pose(self) -> Pose:
        """The next pose: an elbow bends to and fro."""
        self._count += 1
        joints = self._pose.joints.clone()
        joints[0, self._elbow, 1] = -0.05 * abs(self._count % 40 - 20)
        return replace(self._pose, joints=joints)

    def cell(self, samples: int) -> Callable[[], dict[str, float]]:
        """What draws one frame and tells its stages, milliseconds."""

        def draw() -> dict[str, float]:
            pose, before = self.next_pose(), dict(self.animator.seconds)
            start_cpu, start_faults = time.process_time(), page_faults()
            self.animator.frame(pose, self.camera, samples, out=self._out)  # on the CPU: waits for a GPU
            self._cpu.setdefault(samples, []).append(time.process_time() - start_cpu)
            self._faults.setdefault(samples, []).append(page_faults() - start_faults)
            spent = self.animator.seconds
            return {stage: 1000 * (spent[stage] - before.get(stage, 0.0)) for stage in spent}

        return draw

    def seconds(self, samples: int) -> float:
        """Of one more frame."""
        start = time.perf_counter()
        self.cell(samples)()
        return time.perf_counter() - start

    def cpu_ms(self, samples: int) -> float:
        """Least processor time of a frame, all threads together: what is left of a busy machine's times."""
        return round(1000 * min(self._cpu[samples]), 2)

    def faults(self, samples: int) -> float | None:
        """Minor page faults of a frame, mean; None where the system does not count them."""
        counted = self._faults[samples]
        return None if sys.platform == "win32" else round(sum(counted) / len(counted), 2)


def page_faults() -> int:
    """Of this process, so far; those that needed no disk."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def video(runs: Runs, count: int, size: int) -> dict:
    """A video as ``guava animate`` makes it (``FrameTimes.facts``); thrown away."""
    shots = ((runs.next_pose(), runs.camera) for _ in range(count))
    with tempfile.TemporaryDirectory() as folder:
        times = write_video(
            runs.animator, shots, count, Path(folder) / "a.mp4", fps=25.0, size=(size, size),
            background=(1.0, 1.0, 1.0), description="video",
        )
        bytes_ = (Path(folder) / "a.mp4").stat().st_size
    return {**times.facts(), "bytes_per_frame": round(bytes_ / count)}


def network_avatar(
    name: str, template: Template, seed: int, device: torch.device
) -> tuple[Avatar, torch.nn.Module]:
    """An avatar of ``plausible_weights``, and its refiner."""
    config = preset(name)
    weights = plausible_weights(config, template, seed)
    source, pose, camera = benchmark_source(template, config.encoder.image_size)
    generator = Generator(weights, template, device=device)
    output = generator.predict(to_device(source, device))
    with torch.inference_mode():
        gaussians = assemble(
            output,
            source.rest_vertices.to(device),
            template.faces.to(device),
            sigma_rule=config.sigma_rule,
            opacity_threshold=config.opacity_threshold,
        ).to("cpu")
    gaussians = replace(gaussians, **{k: v.clone() for k, v in vars(gaussians).items()})
    refiner = build_refiner(config)
    refiner.load_state_dict(weights.refiner)
    view = SourceView(pose, camera, torch.eye(3), camera.width, camera.height, "", "benchmark")
    avatar = Avatar(
        gaussians,
        Identity.neutral(template),
        template.hash,
        view,
        Provenance(name, {"seed": seed}, "benchmark", "", 1.0),
        refiner=RefinerReference(weights.name, weights.hash),
        sigma_rule=config.sigma_rule,
        splat_conventions=config.splat_conventions,
    )
    return avatar, refiner


if __name__ == "__main__":
    main()
