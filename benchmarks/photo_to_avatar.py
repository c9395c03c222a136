"""Seconds from photos on disk to avatar files, by stage: the very first one, a new process's first, and warm.

    python benchmarks/photo_to_avatar.py PHOTO [PHOTO ...] [--threads 2] [--json]

Two processes are started. In the first one numba has nothing compiled, as after an installation. The second
one finds what the first compiled, and its first photo is what a command costs. Then it makes an avatar of
every photo, and of these the medians are taken. Files are in the system's cache in all three.
"""

from __future__ import annotations

import time

_BEGIN = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from contextlib import contextmanager, nullcontext  # noqa: E402
from pathlib import Path  # noqa: E402

STAGES = ("start", "load", "track", "matte", "generator", "save")
"""Start: imports. Track loads the detector's models if they are not there yet, and the template. Generator:
all of the model that is not the matte."""

CLOCKS = ("wall", "cpu")


class Clock:
    """Wall and processor seconds by stage."""

    def __init__(self):
        self.stages = {name: dict.fromkeys(CLOCKS, 0.0) for name in STAGES}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.add(name, time.perf_counter() - wall, time.process_time() - cpu)

    def add(self, name: str, wall: float, cpu: float) -> None:
        self.stages[name]["wall"] += wall
        self.stages[name]["cpu"] += cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.photos, args.threads)))
        return
    with tempfile.TemporaryDirectory() as cache:
        first = child(args.photos[:1], args.threads, cache)
        rest = child([args.photos[0], *args.photos], args.threads, cache)
    columns = {"first": first["runs"][0], "new process": rest["runs"][0], "warm": medians(rest["runs"][1:])}
    if not args.json:
        print(table(columns))
    warm = columns["warm"]["total"]
    report = {
        "benchmark": "photo_to_avatar", "first_s": columns["first"]["total"]["wall"],
        "first_cpu_s": columns["first"]["total"]["cpu"],
        "new_process_s": columns["new process"]["total"]["wall"],
        "new_process_cpu_s": columns["new process"]["total"]["cpu"],
        "median_s": warm["wall"], "median_cpu_s": warm["cpu"], "runs": len(args.photos),
        "seconds": [run["total"]["wall"] for run in rest["runs"][1:]],
        **({"stages": columns} if args.json else {}), **rest["machine"],
    }  # fmt: skip
    print(json.dumps(report) if args.json else "\n" + "\n".join(f"{k:20} {v}" for k, v in report.items()))


def child(photos: list[Path], threads: int, cache: str) -> dict:
    """What ``measure`` returns in a new process, with numba's cache in a folder."""
    command = [sys.executable, __file__, "--measure", "--threads", str(threads), *map(str, photos)]
    # Threads that wait sleep, as the guava command has it.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "NUMBA_CACHE_DIR": cache}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(photos: list[Path], threads: int) -> dict:
    """An avatar of each photo, one after the other: seconds by stage, and the machine."""
    import torch

    from guava.avatar import save_avatar
    from guava.model import generator_stages, reconstruct
    from guava.model.stages import Stages
    from guava.photo import load_photo
    from guava.tracking import track_image

    class MatteStage(Stages):
        """Tells the matte's seconds from the rest of the model's."""

        def __init__(self, clock: Clock):
            super().__init__(generator_stages("baseline"))
            self.clock = clock

        @contextmanager
        def __call__(self, name: str) -> Iterator[None]:
            with self.clock("matte") if name == "matte" else nullcontext(), super().__call__(name):
                yield

    torch.set_num_threads(threads)
    start = time.perf_counter() - _BEGIN, time.process_time()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(photos):
            clock = Clock()
            if number == 0:
                clock.add("start", *start)
            with clock("load"):
                photo = load_photo(path)
            with clock("track"):
                tracked = track_image(photo)
            whole = Clock()
            with whole("generator"):
                avatar = reconstruct(photo, tracked, stages=MatteStage(clock))
            for kind in CLOCKS:
                inside = whole.stages["generator"][kind] - clock.stages["matte"][kind]
                clock.stages["generator"][kind] = inside
            with clock("save"):
                save_avatar(avatar, Path(folder) / "avatar.guava")
            total = {kind: sum(clock.stages[name][kind] for name in STAGES) for kind in CLOCKS}
            runs.append(rounded({**clock.stages, "total": total}))
    from scenes import machine

    return {"runs": runs, "machine": machine()}


def rounded(stages: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {name: {kind: round(cell[kind], 3) for kind in CLOCKS} for name, cell in stages.items()}


def medians(runs: list[dict]) -> dict[str, dict[str, float]]:
    """Of every cell; those of the stages need not add up to that of the total."""
    return rounded({
        name: {kind: statistics.median(run[name][kind] for run in runs) for kind in CLOCKS}
        for name in runs[0]
    })


def table(columns: dict[str, dict[str, dict[str, float]]]) -> str:
    """Stages in rows; wall and processor seconds of every column."""
    lines = ["| seconds | " + " | ".join(f"{name}: wall | cpu" for name in columns) + " |"]
    lines.append("|---|" + "---:|" * (2 * len(columns)))
    for stage in (*STAGES, "total"):
        cells = [f"{column[stage][kind]:.2f}" for column in columns.values() for kind in CLOCKS]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
