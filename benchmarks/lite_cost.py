"""What the ``lite`` network costs: parameters, multiply-accumulates, and processor time by stage.

    python benchmarks/lite_cost.py [--size 256 512] [--threads 1] [--repeat 3] [--json]

Times are the process' own processor time (all threads together), so that other load does not count; the wall
time on two free cores is a little over half of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from plausible import benchmark_source
from scenes import machine

from guava.body import load_template
from guava.model import preset
from guava.model.lite import LiteNetwork, count_macs, count_parameters, lite_refiner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[256, 512], help="of picture and atlas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config, template = preset("lite"), load_template()
    network, refiner = LiteNetwork(config, template), lite_refiner(config)
    report: dict = {
        "machine": machine(),
        "parameters": {
            **{name: count_parameters(module) for name, module in network.named_children()},
            "uv_base_feature": network.uv_base_feature.numel(),
            "refiner": count_parameters(refiner),
            "total": count_parameters(network, refiner),
        },
    }
    for size in args.size:
        network.set_atlas_size(size)
        source, _, _ = benchmark_source(template, size)
        report[str(size)] = measure(network, refiner, source, size, args.repeat)
    if args.json:
        print(json.dumps(report))
        return
    for name, part in report.items():
        print(name)
        for key, value in part.items():
            print(f"  {key:<28}{value}")


def measure(network, refiner, source, size: int, repeat: int) -> dict:
    """Work in GMAC and times in ms at one size."""
    features, alpha = torch.rand(1, network.config.channels, size, size), torch.rand(1, 1, size, size)
    features = features.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        view = network.look(source)
        picture = view.picture.contiguous(memory_format=torch.channels_last)
        macs = count_macs(network, source, view=view)
        out = {f"GMAC {name}": round(count / 1e9, 2) for name, count in macs.items()}
        out["GMAC refiner"] = round(count_macs(refiner, features, alpha)["total"] / 1e9, 2)
        folded = refiner.for_inference()
        times = {
            "look (no weights)": lambda: network.look(source),
            "encoder": lambda: network.encoder(picture),
            "forward after look": lambda: network(source, view=view),
            "refiner": lambda: refiner(features, alpha),
            "refiner folded": lambda: folded(features, alpha),
        }
        out.update({f"ms {name}": clock(run, repeat) for name, run in times.items()})

    def step() -> None:
        output = network(source, view=view)
        sum(layer.features.mean() + layer.local_offsets.mean() for layer in output.uv).backward()

    out["ms forward and backward"] = clock(step, repeat)
    out["Gaussians"] = len(network.tables) + len(network.tables.second)
    return out


def clock(run: Callable[[], object], repeat: int) -> float:
    """Least processor time of several calls after a first one, in ms."""
    run()
    seconds = []
    for _ in range(repeat):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return round(1000 * min(seconds), 1)


if __name__ == "__main__":
    main()
