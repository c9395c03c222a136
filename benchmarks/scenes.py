"""What the rendering benchmarks draw: Gaussians on the template's surface, by seed."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numba
import numpy as np
import torch
from torch import Tensor

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

# The scene that splatting is timed on: see speed_scene.
SCENE_SEED = 0
_UPPER_BODY = 0.72  # metres from the crown down
_AIM = 0.27  # the picture's centre below the crown, metres
_DISTANCE = 2.2  # of the camera, metres
_FIELD = 0.56  # metres that the picture's side shows at that distance
_REFERENCE_SIZE = 512  # of the picture that sigmas are stated in pixels of


@dataclass(frozen=True)
class SplatScene:
    """What ``guava.rendering.splat`` takes.

    Attributes:
        means: (N, 3) metres.
        quaternions: (N, 4).
        scales: (N, 3) metres.
        opacities: (N,).
        features: (N, C).
        camera: Square; looks along the world's y axis, so that depths are sums of two numbers, equal in every
            implementation, and with them the order in which Gaussians are composited.
    """

    means: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor
    camera: Camera

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The arguments of ``splat`` before the camera."""
        return self.means, self.quaternions, self.scales, self.opacities, self.features

    def to(self, device: torch.device | str) -> SplatScene:
        """The same scene on another device (the camera stays)."""
        names = ("means", "quaternions", "scales", "opacities", "features")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def resized(self, size: int) -> SplatScene:
        """The same Gaussians before a picture of another size."""
        return replace(self, camera=self.camera.resized(size, size))

    def with_channels(self, channels: int) -> SplatScene:
        """The first ``channels`` features."""
        return replace(self, features=self.features[:, :channels].contiguous())


def speed_scene(
    mesh: tuple[np.ndarray, np.ndarray], count: int = 150_000, size: int = 512, channels: int = 32,
    seed: int = SCENE_SEED,
) -> SplatScene:
    """The scene that the splatter's times are stated for: a person's upper body, front and back.

    ``count`` points by area on the surface; standard deviations along it log-uniform from 0.9 to 2.5 pixels
    of a 512-pixel picture, 0.2 times the smaller across it; opacities 0.3 to 1; normally distributed
    features; in random order, which is the worst for caches. With the mesh of the feasibility study this is,
    number for number, that study's scene.

    Args:
        mesh: Vertices (V, 3), metres, z up and facing -y, and triangles (F, 3): ``template_mesh`` or
            ``read_mesh``.
    """
    rng = np.random.default_rng(seed)
    vertices, faces = mesh
    crown = vertices[:, 2].max()
    corners = vertices[faces]
    faces = faces[corners.mean(1)[:, 2] > crown - _UPPER_BODY]
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normals, axis=1) / 2
    normals = normals / (2 * area[:, None] + 1e-12)
    chosen = rng.choice(len(faces), count, p=area / area.sum())
    u = rng.random((count, 2))
    root, v = np.sqrt(u[:, :1]), u[:, 1:]
    barycentrics = np.concatenate([1 - root, root * (1 - v), root * v], 1)
    means = (corners[chosen] * barycentrics[..., None]).sum(1)
    axes = _tangent_frames(normals[chosen], 2 * np.pi * rng.random((count, 1)))
    pixels = np.exp(rng.uniform(np.log(0.9), np.log(2.5), (count, 2)))
    tangent = pixels * (_FIELD / _REFERENCE_SIZE)
    scales = np.concatenate([tangent, 0.2 * tangent.min(1, keepdims=True)], 1)
    opacities = rng.uniform(0.3, 1.0, count)
    features = rng.standard_normal((count, channels)) * 0.5

    rotation = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    view = np.eye(4)
    view[:3, :3], view[:3, 3] = rotation, -rotation @ [0, -_DISTANCE, crown - _AIM]
    focal = size * _DISTANCE / _FIELD
    intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32))

    return SplatScene(
        tensor(means), tensor(matrix_to_quaternion(torch.from_numpy(axes)).numpy()), tensor(scales),
        tensor(opacities), tensor(features), Camera(tensor(view), tensor(intrinsics), size, size),
    )


def _tangent_frames(normals: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Right-handed (N, 3, 3) frames, columns: tangents turned by ``angles`` (N, 1) and the normal or its
    opposite."""
    other = np.where(np.abs(normals[:, :1]) > 0.8, [[0, 1.0, 0]], [[1.0, 0, 0]])
    first = np.cross(normals, other)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(normals, first)
    cos, sin = np.cos(angles), np.sin(angles)
    frames = np.stack([cos * first + sin * second, -sin * first + cos * second, normals], -1)
    frames[np.linalg.det(frames) < 0, :, 2] *= -1
    return frames


def template_mesh(template: Template) -> tuple[np.ndarray, np.ndarray]:
    """The mean person, arms half down, as ``speed_scene`` takes it.

    The arms' angle is chosen so that the picture costs what the feasibility study's does: 52 % of its pixels
    are covered, by 39 contributions each (there: 51 % and 41).
    """
    pose, _ = standing_pose(template, arms_down=0.85)
    pose.translation.zero_()
    vertices = posed(template, pose).vertices[0].double().numpy()
    return vertices[:, [0, 2, 1]] * [1, -1, 1], template.faces.numpy()


def read_mesh(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices ``v`` and triangles ``f`` of an .npz file, z up and facing -y, metres."""
    with np.load(path) as file:
        return file["v"].astype(np.float64), file["f"].reshape(-1, 3).astype(np.int64)


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
        "numpy": np.__version__, "commit": commit(),
    }


def commit() -> str | None:
    """The checkout's git commit, with "+" if files differ from it; None if there is none."""
    command = ["git", "-C", os.path.dirname(__file__), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


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
