"""What the rendering benchmarks draw: Gaussians on the template's surface, by seed."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
import torch

from guava.avatar import Avatar, Gaussians, Layer, Provenance, SourceView
from guava.avatar.animate import PRECISIONS
from guava.avatar.posing import bind_to_skin, bind_to_triangles, bind_to_vertices, triangle_frames
from guava.body import EHM, EHMOutput, Identity, Pose, Template
from guava.camera import Camera
from guava.rotation import matrix_to_quaternion


def standing_pose(template: Template, *, arms_down: float = 1.0, size: int = 512) -> tuple[Pose, Camera]:
    """Half figure before the tracker's camera, arms lowered by ``arms_down`` radians (negative: raised)."""
    pose = Pose.rest(template)
    pose.joints[0, template.joint("left_shoulder"), 2] = -arms_down
    pose.joints[0, template.joint("right_shoulder"), 2] = arms_down
    output = EHM(template)(Identity.neutral(template), pose)
    chest = output.joints[0, template.joint("head")] - torch.tensor([0.0, 0.2, 0.0])
    pose.translation[0] = torch.tensor([0.0, 0.0, -13.0]) - chest
    return pose, Camera.frontal(size)


def surface_gaussians(template: Template, count: int, channels: int, seed: int) -> Gaussians:
    """``count`` flat Gaussians on the upper body: half on triangles, 8 % on vertices, the rest skinned.

    Standard deviations are 0.7 of the mean distance between neighbours, opacities 0.3 to 1.
    """
    generator = torch.Generator().manual_seed(seed)
    rest = EHM(template)(Identity.neutral(template), Pose.rest(template))
    vertices, faces = rest.vertices[0], template.faces
    corners = vertices[faces]
    edges = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    hips = float(rest.joints[0, template.joint("pelvis"), 1])
    area = edges.norm(dim=1) / 2 * (corners[..., 1].mean(1) > hips - 0.1)
    face_ids = torch.multinomial(area, count, True, generator=generator)
    weights = -torch.log(torch.rand(count, 3, generator=generator).clamp(min=1e-6))
    barycentrics = weights / weights.sum(1, keepdim=True)
    spacing = float((area.sum() / count).sqrt())
    spread = spacing * 0.7 * torch.exp(0.3 * torch.randn(count, 3, generator=generator))
    spread[:, 1] *= 0.2  # a1 is the normal
    values = {
        "rotations": matrix_to_quaternion(triangle_frames(vertices, faces[face_ids], "mean_edge").rotation),
        "scales": spread,
        "opacities": 0.3 + 0.7 * torch.rand(count, generator=generator),
        "features": torch.rand(count, channels, generator=generator),
    }
    positions = (corners[face_ids] * barycentrics[..., None]).sum(1)
    skin = (template.body.weights[faces[face_ids]] * barycentrics[..., None]).sum(1)
    triangle, vertex = slice(0, count // 2), slice(count // 2, count // 2 + count // 12)
    own = slice(vertex.stop, count)

    def part(rows: slice) -> dict:
        return {name: value[rows] for name, value in values.items()}

    corner = faces[face_ids, 0]
    return Gaussians.concatenate(
        bind_to_triangles(vertices, faces, face_ids[triangle], barycentrics[triangle], **part(triangle)),
        bind_to_vertices(vertices, corner[vertex], **part(vertex)),
        bind_to_skin(positions[own], skin[own], layer=Layer.SHELL, **part(own)),
    )


def surface_avatar(template: Template, count: int, seed: int, size: int) -> Avatar:
    """An avatar of ``surface_gaussians`` before ``standing_pose``'s camera."""
    pose, camera = standing_pose(template, size=size)
    return Avatar(
        surface_gaussians(template, count, 3, seed), Identity.neutral(template), template.hash,
        SourceView(pose, camera, torch.eye(3), size, size, "", "benchmark"),
        Provenance("benchmark", {"seed": seed}, "benchmark", "", 1.0),
    )


def posed(template: Template, pose: Pose) -> EHMOutput:
    """The mean person in a pose."""
    return EHM(template)(Identity.neutral(template), pose)


def machine() -> dict:
    """What the figures depend on."""
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":")[1].strip() for line in lines if "model name" in line), model)
    return {
        "cpu": model, "cores": os.cpu_count(), "numba_threads": numba.get_num_threads(),
        "torch_threads": torch.get_num_threads(), "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else
        None, "python": platform.python_version(), "torch": torch.__version__, "numba": numba.__version__,
        "numpy": np.__version__,
    }


def accelerator_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Where ``what`` (the networks' parts) runs and what may make it faster there."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help=f"of {what}")
    parser.add_argument("--channels-last", action="store_true", help=f"memory layout of {what}")
    parser.add_argument("--tf32", action="store_true", help="TF32 arithmetic, as in the release")
    parser.add_argument(
        "--compile",
        choices=("none", "default", "reduce-overhead", "max-autotune"),
        default="none",
        help=f"torch.compile of {what}; the last two use CUDA graphs",
    )


def accelerator(device: torch.device) -> dict:
    """The device that a benchmark ran on, and what it is driven by."""
    if device.type != "cuda":
        return {"device": "cpu"}
    facts = torch.cuda.get_device_properties(device)
    try:
        from importlib.metadata import version

        gsplat = version("gsplat")
    except ImportError:  # PackageNotFoundError
        gsplat = None
    return {
        "device": facts.name, "device_memory_gb": round(facts.total_memory / 2**30, 1),
        "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "gsplat": gsplat,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def peak_memory(device: torch.device) -> dict:
    """Largest memory so far: of the process (weights, tables and all), and on the device since its last
    ``torch.cuda.reset_peak_memory_stats``."""
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes on Linux
    report = {"peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)}
    if device.type == "cuda":
        report["peak_cuda_mb"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return report


class Timer:
    """Synchronised stage times of repeated runs.

    Attributes:
        runs: Seconds by stage, one entry a run.
        cpu: Seconds of processor time, of all threads, likewise: what is left of a figure on a busy machine.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.runs: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def clear(self) -> None:
        """Forget the runs so far: they warmed up."""
        self.runs.clear()
        self.cpu.clear()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time one stage of one run, the device's work included."""
        self._wait()
        start, start_cpu = time.perf_counter(), time.process_time()
        yield
        self._wait()
        self.runs.setdefault(stage, []).append(time.perf_counter() - start)
        self.cpu.setdefault(stage, []).append(time.process_time() - start_cpu)

    def medians(self) -> dict[str, float]:
        """Milliseconds by stage; on the CPU also of processor time."""
        wall = {f"{stage}_ms": median_ms(seconds) for stage, seconds in self.runs.items()}
        if self.device.type == "cuda":
            return wall
        return wall | {f"{stage}_cpu_ms": median_ms(seconds) for stage, seconds in self.cpu.items()}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def median_ms(seconds: list[float]) -> float:
    return round(1000 * float(np.median(seconds)), 2)
