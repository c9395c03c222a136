"""Time of splatting.

python benchmarks/splat.py [--count 150000] [--channels 3] [--size 512] [--conventions 3dgs] [--json]
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from scenes import machine, median_ms, posed, standing_pose, surface_gaussians

from guava.avatar.posing import pose_gaussians
from guava.body import load_template
from guava.rendering import conventions_by_name, splat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=150_000)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--backend", default="auto", choices=["auto", "native", "numba", "torch", "gsplat"])
    parser.add_argument("--conventions", default="gsplat", choices=["gsplat", "3dgs"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--torch-threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.torch_threads)
    template = load_template()
    pose, camera = standing_pose(template, size=args.size)
    gaussians = surface_gaussians(template, args.count, args.channels, args.seed)
    g = pose_gaussians(gaussians, posed(template, pose), template.faces)
    device = "cuda" if args.backend == "gsplat" else "cpu"
    inputs = [t.to(device) for t in (g.means, g.quaternions, g.scales, g.opacities, g.features)]
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    conventions = conventions_by_name(args.conventions)
    seconds, cpu = [], []
    with torch.no_grad():
        for repeat in range(args.repeats + 2):
            wait()
            start, start_cpu = time.perf_counter(), time.process_time()
            out = splat(*inputs, camera, backend=args.backend, conventions=conventions)
            wait()
            if repeat >= 2:
                seconds.append(time.perf_counter() - start)
                cpu.append(time.process_time() - start_cpu)
    report = {
        "benchmark": "splat", "backend": args.backend,
        "conventions": args.conventions, "gaussians": args.count, "channels": args.channels,
        "size": args.size, "covered": round(float((out.alpha > 0).float().mean()), 3),
        "median_ms": median_ms(seconds), "best_ms": round(1000 * min(seconds), 2), "cpu_ms": median_ms(cpu),
        "repeats": args.repeats, **machine(),
    }
    print(json.dumps(report) if args.json else "\n".join(f"{k:14} {v}" for k, v in report.items()))


if __name__ == "__main__":
    main()
