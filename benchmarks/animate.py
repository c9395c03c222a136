"""Time of an animated frame, by stage: python benchmarks/animate.py [--avatar A.guava] [--json]."""

from __future__ import annotations

import argparse
import json
import time

import torch
from scenes import machine, median_ms, standing_pose, surface_avatar

from guava.avatar import Animator, load_avatar, over
from guava.body import load_template


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--avatar", help="an avatar file; Gaussians on the template's surface without it")
    parser.add_argument("--count", type=int, default=150_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--torch-threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    torch.set_num_threads(args.torch_threads)
    template = load_template()
    if args.avatar:
        avatar = load_avatar(args.avatar, template)
        pose, camera = avatar.source.pose, avatar.source.camera.resized(args.size, args.size)
    else:
        avatar = surface_avatar(template, args.count, args.seed, args.size)
        pose, camera = standing_pose(template, size=args.size)
    animator = Animator(avatar, template)
    elbow = template.joint("left_elbow")
    seconds, cpu = [], []
    for frame in range(args.frames + 2):
        if frame == 2:
            animator.seconds.clear()
        pose.joints[0, elbow, 1] = -0.05 * frame
        start, start_cpu = time.perf_counter(), time.process_time()
        over(animator.render(pose, camera))
        if frame >= 2:
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
    report = {
        "benchmark": "animate", "gaussians": len(avatar.gaussians), "size": args.size,
        "median_ms": median_ms(seconds), "frames_per_second": round(1000 / median_ms(seconds), 1),
        "cpu_ms": median_ms(cpu),
        **{f"{stage}_ms": round(1000 * total / args.frames, 2) for stage, total in animator.seconds.items()},
        "frames": args.frames, **machine(),
    }
    print(json.dumps(report) if args.json else "\n".join(f"{k:18} {v}" for k, v in report.items()))


if __name__ == "__main__":
    main()
