"""Time and memory from a tracked source picture to an avatar's Gaussians, by stage.

    python benchmarks/reconstruct.py [--model official|paper|lite] [--device cuda] [--precision bf16] [--json]

Weights are random, with a trained avatar's number and size of Gaussians (plausible.py); matting and tracking
are left out, as in the paper's 98 ms (RTX 3090). Options that make a GPU faster state their error against the
same weights in single precision without them.
"""

from __future__ import annotations

import argparse
import json
import warnings

import torch
from plausible import benchmark_source, plausible_weights
from scenes import Timer, accelerator, accelerator_options, machine, peak_memory
from torch import Tensor

from guava.avatar.animate import PRECISIONS, find_device
from guava.avatar.posing import pose_gaussians
from guava.body import EHM, Identity, Template, load_template
from guava.model import NetworkOutput, SourceBatch, assemble, preset
from guava.model.generate import Generator, to_device
from guava.model.network import GuavaNetwork
from guava.rendering import CONVENTIONS, splat

PAPER = {"paper_ms": 98.0, "paper_device": "NVIDIA RTX 3090"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("official", "paper", "lite"), default="official")
    parser.add_argument("--template", default="open")
    accelerator_options(parser, "encoder and decoders")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of torch, on the CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Random weights")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device, template = find_device(args.device), load_template(args.template)
    config = preset(args.model)
    weights = plausible_weights(config, template, args.seed)
    source, pose, camera = benchmark_source(template, config.encoder.image_size)

    changed = args.precision != "fp32" or args.channels_last or args.tf32 or args.compile != "none"
    reference = None
    if changed:
        exact = Generator(weights, template, device=device)
        reference = exact.predict(source)
        del exact
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    generator = Generator(weights, template, device=device, precision=args.precision)
    speed_up(generator, args.channels_last, args.compile)
    source = to_device(source, device)
    faces, ehm = template.faces.to(device), EHM(template).to(device)
    identity, still = Identity.neutral(template).to(device), pose.to(device)

    timer = Timer(device)
    output = None
    for run in range(args.warm_up + args.repeat):
        if run == args.warm_up:
            timer.clear()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
        with timer("total"), torch.inference_mode():
            with timer("body"):  # the posed mesh that the features are sampled at
                ehm(identity, still)
            with timer("network"):
                output = generator.predict(source)
            with timer("assemble"):
                gaussians = assemble(
                    output,
                    source.rest_vertices,
                    faces,
                    sigma_rule=config.sigma_rule,
                    opacity_threshold=config.opacity_threshold,
                )
    memory = peak_memory(device)
    parts = Timer(device)
    if isinstance(generator.network, GuavaNetwork):
        for run in range(1 + args.repeat):
            if run == 1:
                parts.clear()
            steps(generator, source, parts)
    report = {
        "benchmark": "reconstruct",
        "model": args.model,
        "template": args.template,
        "precision": args.precision,
        "channels_last": args.channels_last,
        "compile": args.compile,
        **accelerator(device),
        "gaussians": len(gaussians),
        "texels": sum(len(u.face_ids) for u in output.uv),
        **timer.medians(),
        **{f"network/{name}": ms for name, ms in parts.medians().items()},
        **(PAPER if args.model != "lite" else {}),
        **memory,
        "runs": args.repeat,
    }
    if reference is not None:
        report |= differences(reference, output, template, pose, camera, config)
    report |= machine()
    print(json.dumps(report) if args.json else "\n".join(f"{k:24} {v}" for k, v in report.items()))


def speed_up(generator: Generator, channels_last: bool, compiled: str) -> None:
    """Options that change how the network runs, not what it computes (but for rounding)."""
    network = generator.network
    if channels_last:
        network.to(memory_format=torch.channels_last)
    if compiled != "none":
        # Visibility is decided by a z-buffer whose sizes depend on the picture: the parts around it compile.
        for name in ("encoder", "template_decoder", "uv_styleunet", "uv_decoder", "uv_net"):
            if hasattr(network, name):
                getattr(network, name).compile(mode=compiled)


@torch.inference_mode()
def steps(generator: Generator, source: SourceBatch, timer: Timer) -> None:
    """The paper's network, one step after the other."""
    network, dtype = generator.network, PRECISIONS[generator.precision]
    with torch.autocast(generator.device.type, dtype, enabled=dtype != torch.float32):
        with timer("encoder"):
            f_map1, f_map2, f_id, visible = network.encode(source)
            code = network.camera_code(source)
        with timer("template_branch"):
            network.template_gaussians(source, f_map2, f_id, code)
        with timer("uv_styleunet"):
            painted = network.paint(source, f_map1, f_id, visible, noise="off")
        with timer("uv_decoder"):
            network.uv_gaussians(painted, code)


def differences(
    reference: NetworkOutput, output: NetworkOutput, template: Template, pose, camera, config
) -> dict:
    """What the faster way changes: relative error of the features, and of the coarse picture."""
    exact, fast = reference.uv[0].features.float(), output.uv[0].features.float()
    spread = exact.std()
    body = EHM(template)(Identity.neutral(template), pose)

    def picture(predicted: NetworkOutput) -> Tensor:
        rest = EHM(template)(Identity.neutral(template), type(pose).rest(template)).vertices
        g = assemble(
            on_cpu(predicted),
            rest,
            template.faces,
            sigma_rule=config.sigma_rule,
            opacity_threshold=config.opacity_threshold,
        )
        posed = pose_gaussians(g, body, template.faces, sigma_rule=config.sigma_rule)
        drawn = splat(
            posed.means,
            posed.quaternions,
            posed.scales,
            posed.opacities,
            posed.features[:, :3].contiguous(),
            camera,
            conventions=CONVENTIONS[config.splat_conventions],
        )
        return drawn.features

    with torch.no_grad():
        change = (picture(reference) - picture(output)).abs()
    return {
        "error_features_rms": round(float((exact - fast).square().mean().sqrt() / spread), 6),
        "error_picture_mean": round(float(change.mean()), 6),
        "error_picture_max": round(float(change.max()), 4),
    }


def on_cpu(output: NetworkOutput) -> NetworkOutput:
    """A prediction as ordinary single-precision tensors on the CPU."""

    def moved(record):
        values = {k: v.clone().cpu() for k, v in vars(record).items()}
        return type(record)(**{k: v.float() if v.is_floating_point() else v for k, v in values.items()})

    template = None if output.template is None else moved(output.template)
    return NetworkOutput(template, tuple(moved(layer) for layer in output.uv))


if __name__ == "__main__":
    main()
