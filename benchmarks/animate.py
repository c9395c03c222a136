"""Time of an animated frame, by stage.

    python benchmarks/animate.py [--avatar A.guava | --model official|paper|lite] [--device cuda] [--json]

Without either, Gaussians on the template's surface in three channels, without a refiner. With --model, an
avatar of that network with untrained weights that cost what trained ones do (plausible.py), splatted in all
channels and refined, beside the paper's 52 frames per second (RTX 3090). Options that make a GPU faster state
their error against single precision without them.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import replace

import torch
from plausible import benchmark_source, plausible_weights
from scenes import (
    accelerator,
    accelerator_options,
    machine,
    median_ms,
    peak_memory,
    standing_pose,
    surface_avatar,
)

from guava.avatar import Animator, Avatar, Provenance, RefinerReference, SourceView, load_avatar, over
from guava.avatar.animate import PRECISIONS, find_device
from guava.body import Identity, Template, load_template
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
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--coarse", action="store_true", help="without the refiner")
    accelerator_options(parser, "the refiner")
    parser.add_argument("--torch-threads", type=int, default=1)
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

    elbow = template.joint("left_elbow")
    seconds, cpu = [], []
    for frame in range(args.frames + args.warm_up):
        if frame == args.warm_up:
            animator.seconds.clear()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
        pose.joints[0, elbow, 1] = -0.05 * frame
        start, start_cpu = time.perf_counter(), time.process_time()
        over(animator.render(pose, camera))  # the frame arrives in the CPU's memory, which waits for a GPU
        if frame >= args.warm_up:
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
    report = {
        "benchmark": "animate",
        "model": args.model or avatar.provenance.generator,
        "template": args.template,
        "gaussians": len(avatar.gaussians),
        "channels": animator.gaussians.features.shape[1],
        "size": args.size,
        "refiner": refiner is not None,
        "precision": args.precision,
        "channels_last": args.channels_last,
        "compile": args.compile,
        **accelerator(device),
        "median_ms": median_ms(seconds),
        "frames_per_second": round(1000 / median_ms(seconds), 1),
        "cpu_ms": median_ms(cpu),
        **{f"{stage}_ms": round(1000 * sum_ / args.frames, 2) for stage, sum_ in animator.seconds.items()},
        **(PAPER if args.model in ("official", "paper") else {}),
        **error,
        **peak_memory(device),
        "frames": args.frames,
        **machine(),
    }
    print(json.dumps(report) if args.json else "\n".join(f"{k:24} {v}" for k, v in report.items()))


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
