"""How far the splat backends are from the float64 reference, on the benchmarks' scene.

    python benchmarks/splat_accuracy.py [--count 150000] [--size 512] [--channels 32] [--forward] [--json F]

Two kinds of differences are told apart: rounding, and pixels where a limit decided otherwise (an alpha at
1/255 or a transmittance at its end, one float to this or that side), which move a pixel by up to 1/255 of
what is there. All have one order: the depths are numbers that float32 holds. The gradients are those of a
sum of all numbers of the picture with normally distributed weights.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch
from scenes import SplatScene, machine, read_mesh, speed_scene, template_mesh
from torch import Tensor

from guava.body import load_template
from guava.rendering import CONVENTIONS, SplatConventions, SplatOutput, splat

NAMES = ("means", "quaternions", "scales", "opacities", "features", "world_to_camera", "intrinsics")
DECIDED = 1e-4
"""Pixels that are further off than this, of features of deviation 0.5, are counted as decided otherwise."""


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--count", type=int, default=150_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--conventions", choices=tuple(CONVENTIONS), default="gsplat")
    parser.add_argument("--forward", action="store_true", help="pictures only")
    parser.add_argument("--mesh", help="another mesh than the template, see scenes.read_mesh")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    mesh = read_mesh(args.mesh) if args.mesh else template_mesh(load_template("open"))
    scene = with_exact_depths(speed_scene(mesh, args.count, args.size, args.channels))
    conventions = CONVENTIONS[args.conventions]
    inputs = [*scene.tensors, scene.camera.world_to_camera, scene.camera.intrinsics]
    backends = [("torch", torch.float64), ("torch", torch.float32), ("native", torch.float32)]
    backends += [("numba", torch.float32)] if args.forward else []
    report, wanted, single = {}, None, None
    for backend, dtype in backends:
        start = time.perf_counter()
        pictures, grads = run(backend, [t.to(dtype) for t in inputs], scene.camera, conventions, args.forward)
        seconds = time.perf_counter() - start
        if wanted is None:
            wanted = pictures, grads
            print(f"torch, float64: {seconds:.1f} s")
            continue
        name = f"{backend}, float32"
        report[name] = {"seconds": round(seconds, 2)} | compare(pictures, grads, *wanted)
        print(f"{name}, from torch in float64", json.dumps(report[name], indent=1))
        if single is None:
            single = pictures, grads
            continue
        report[f"{name}, from torch in float32"] = closer = compare(pictures, grads, *single)
        print(f"{name}, from torch in float32", json.dumps(closer, indent=1))
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"benchmark": "splat_accuracy", **vars(args), "machine": machine(), **report}, file)


def with_exact_depths(scene: SplatScene) -> SplatScene:
    """The scene's camera adds a number to y; here the sums need no rounding."""
    row = scene.camera.world_to_camera[2]
    assert row[:3].tolist() == [0, 1, 0]
    means = scene.means.clone()
    means[:, 1] = (means[:, 1] + row[3]) - row[3]
    assert torch.equal((means[:, 1] + row[3]).double(), means[:, 1].double() + row[3].double())
    return replace(scene, means=means)


def run(
    backend: str, inputs: list[Tensor], camera, conventions: SplatConventions, forward: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Planes of the picture, and gradients by name, as float64."""
    leaves = [t.detach().clone().requires_grad_(not forward) for t in inputs]
    camera = replace(camera, world_to_camera=leaves[5], intrinsics=leaves[6])
    out = splat(*leaves[:5], camera, backend=backend, conventions=conventions)
    planes = planes_of(out)
    grads = {}
    if not forward:
        generator = torch.Generator().manual_seed(1)
        weights = {name: torch.randn(p.shape, generator=generator).to(p) for name, p in planes.items()}
        loss = sum((planes[name] * w).sum() for name, w in weights.items())
        grads = dict(zip(NAMES, torch.autograd.grad(loss, leaves), strict=True))
    return tuple({n: t.detach().double() for n, t in d.items()} for d in (planes, grads))


def planes_of(out: SplatOutput) -> dict[str, Tensor]:
    depth = out.inverse_depth if out.depth is None else out.depth
    return {"features": out.features, "alpha": out.alpha, "depth": depth}


def compare(pictures: dict, grads: dict, wanted: dict, wanted_grads: dict) -> dict:
    """Largest errors and shares; gradients relative to the largest, and by length."""
    result = {}
    apart = (pictures["features"] - wanted["features"]).abs().amax(-1)
    apart = apart.maximum((pictures["alpha"] - wanted["alpha"]).abs())
    result["pixels_decided_otherwise"] = int((apart > DECIDED).sum())
    for name, plane in pictures.items():
        error = (plane - wanted[name]).abs()
        result[f"{name}_max"] = float(f"{float(error.max()):.2g}")
        result[f"{name}_max_of_other_pixels"] = float(f"{float(error[apart <= DECIDED].max()):.2g}")
    for name, grad in grads.items():
        error, reference = grad - wanted_grads[name], wanted_grads[name]
        result[f"grad_{name}_max"] = float(f"{float(error.abs().max() / reference.abs().max()):.2g}")
        result[f"grad_{name}_l2"] = float(f"{float(error.norm() / reference.norm()):.2g}")
    return result


if __name__ == "__main__":
    main()
