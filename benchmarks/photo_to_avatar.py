"""Seconds from photos on disk to avatar files, tracking included; the first photo only warms up.

    python benchmarks/photo_to_avatar.py PHOTO PHOTO [...] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from scenes import machine

from guava.avatar import save_avatar
from guava.model import reconstruct
from guava.photo import load_photo
from guava.tracking import track_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if len(args.photos) < 2:
        parser.error("at least two photos are needed: the first only warms up.")
    torch.set_num_threads(args.threads)
    seconds, cpu = [], []
    with tempfile.TemporaryDirectory() as folder:
        for path in args.photos:
            start, start_cpu = time.perf_counter(), time.process_time()
            photo = load_photo(path)
            save_avatar(reconstruct(photo, track_image(photo)), Path(folder) / "avatar.guava")
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
            if not args.json:
                print(f"{path.name:24} {seconds[-1]:6.2f} s", flush=True)
    report = {
        "benchmark": "photo_to_avatar", "first_s": round(seconds[0], 2),
        "median_s": round(statistics.median(seconds[1:]), 2),
        "median_cpu_s": round(statistics.median(cpu[1:]), 2), "runs": len(seconds) - 1,
        "seconds": [round(s, 2) for s in seconds], **machine(),
    }
    print(json.dumps(report) if args.json else "\n".join(f"{k:20} {v}" for k, v in report.items()))


if __name__ == "__main__":
    main()
