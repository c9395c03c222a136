"""All speeds that Guava is held to, as one table (docs/speed.md).

    python benchmarks/speed.py [--json] [--quick] [--only splat] [--only animate]

Runs the other benchmark scripts, each in a process of its own and one after the other. Rows whose inputs are
not there (a video and portraits, in --shared or $GUAVA_SHARED; a CPU with bfloat16) are shown as not run,
with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scenes import machine
from table import Row, markdown
from timing import QUIET, busy_seconds

HERE = Path(__file__).resolve().parent


class NotRun(Exception):
    """Why a row has no figure."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(os.environ.get("GUAVA_SHARED", HERE.parent.parent / "shared"))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="shorter runs, for a first look")
    parser.add_argument("--shared", type=Path, default=shared, help="folder with video/ and portraits/")
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="these parts only")
    args = parser.parse_args()
    rows, reports = [], {}
    for name, part in PARTS.items():
        if args.only and name not in args.only:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = part(args, reports)
        rows += found
        print(markdown(found), file=sys.stderr, flush=True)
    report = {
        "benchmark": "speed", "threads": args.threads,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "rows": [row.report() for row in rows], "parts": reports, **machine(),
    }
    if args.json:
        print(json.dumps(report))
        return
    print(markdown(rows))
    facts = ("cpu", "cores", "threads", "load", "python", "torch", "numba", "numpy", "commit", "date")
    print("\n" + ", ".join(f"{name} {report[name]}" for name in facts))


# --- the parts ----------------------------------------------------------------------------------------------


def splatting(args: argparse.Namespace, reports: dict) -> list[Row]:
    try:
        options = ["--threads", args.threads, *(["--quick"] if args.quick else [])]
        report = reports["splat"] = run("splat.py", *options)
    except NotRun as reason:
        return [Row("splatting", None, "", note=str(reason))]
    return [Row.from_report(row) for row in report["rows"]]


def animation(args: argparse.Namespace, reports: dict) -> list[Row]:
    frames = 20 if args.quick else 100
    common = ("--torch-threads", args.threads, "--frames", frames)
    lite = ("--model", "lite", *common)

    def bf16() -> dict:
        if not cpu_has_bf16():
            raise NotRun("this CPU has no bfloat16 arithmetic")
        return run("animate.py", *lite, "--precision", "bf16")

    return [
        frames_per_second(name, bound, job, reports)
        for name, bound, job in (
            ("animate, no refiner, 512x512", 25, lambda: run("animate.py", *common)),
            ("animate, lite refiner, fp32", 8, lambda: run("animate.py", *lite)),
            ("animate, lite refiner, bf16", 10, bf16),
        )
    ]


def frames_per_second(name: str, bound: float, job: Callable[[], dict], reports: dict) -> Row:
    """A row of benchmarks/animate.py."""
    try:
        report = reports[name] = job()
    except NotRun as reason:
        return Row(name, None, "frames/s", bound, False, str(reason))
    stages = {k[:-3]: v for k, v in report.items() if k.endswith("_ms") and not k.endswith("cpu_ms")}
    stages.pop("median", None)
    notes = ["ms: " + ", ".join(f"{stage} {ms:.1f}" for stage, ms in stages.items())]
    if "frames_per_second_one_sample" in report:
        notes.append(f"with one sample a pixel {report['frames_per_second_one_sample']:.1f} frames/s")
    if "error_levels_mean" in report:
        notes.append(f"{report['error_levels_mean']} grey levels from fp32")
    return Row(name, report["frames_per_second"], "frames/s", bound, False, "; ".join(notes), report["quiet"])


def tracking(args: argparse.Namespace, reports: dict) -> list[Row]:
    video = args.shared / "video" / "speaker.mp4"
    frames = 60 if args.quick else 300

    def filmed() -> dict:
        if not video.is_file():
            raise NotRun(f"no video/{video.name} in --shared")
        return run("tracking_speed.py", "--video", video, *common, timeout=900)

    common = ("--frames", frames, "--threads", args.threads)
    rows = []
    for name, job in (
        ("track, per frame of a rendered clip", lambda: run("tracking_speed.py", *common, timeout=900)),
        (f"track, per frame of {video.name}", filmed),
    ):
        try:
            report = reports[name] = job()
        except NotRun as reason:
            rows.append(Row(name, None, "s", 0.25, True, str(reason)))
            continue
        (clip,) = report["runs"]
        note = f"{clip['frames']} frames; processor time {clip['cpu_s_per_frame']:.3f} s"
        rows.append(Row(name, clip["s_per_frame"], "s", 0.25, True, note, report["quiet"]))
    return rows


def portraits(args: argparse.Namespace, reports: dict) -> list[Row]:
    name, bound = "one portrait: photo -> avatar file, warm", 6.0
    photos = sorted((args.shared / "portraits").glob("*.jpg"))[: 4 if args.quick else 8]
    try:
        if len(photos) < 2:
            raise NotRun("no portraits/*.jpg in --shared")
        report = reports[name] = run("photo_to_avatar.py", *photos, "--threads", args.threads)
    except NotRun as reason:
        return [Row(name, None, "s", bound, True, str(reason))]
    first, cpu = report["first_s"], report["median_cpu_s"]
    note = f"of {report['runs']}; the first {first:.1f} s; processor time {cpu:.1f} s"
    return [Row(name, report["median_s"], "s", bound, True, note, report["quiet"])]


def a_million(args: argparse.Namespace, reports: dict) -> list[Row]:
    try:
        report = reports["growth"] = run("growth.py", "--large-only", "--threads", args.threads)
    except NotRun as reason:
        return [Row("1 M Gaussians, 1024x1024", None, "MB", 1500, True, str(reason))]
    rows = []
    for point in report["large"]:
        what = f"1 M Gaussians, 1024x1024, {point['channels']} channels"
        cell = point["forward"]
        memory, added = cell.get("rss_mb"), cell.get("added_mb")
        note = "memory is read from /proc" if memory is None else f"rendering adds {added:.0f} MB"
        rows += [
            Row(f"{what}: memory", memory, "MB", 1500, True, note, True),
            Row(f"{what}: forward", cell["median"], "ms", quiet=cell["quiet"]),
        ]
    return rows


PARTS = {
    "splat": splatting, "animate": animation, "track": tracking, "photo": portraits, "million": a_million
}


# --- running a benchmark ------------------------------------------------------------------------------------


def run(script: str, *options: object, timeout: float = 600) -> dict:
    """What a benchmark script prints with --json, and how much other processes were at work meanwhile.

    Returns:
        Its report with "others": the mean share of one core that others took, and "quiet"; the script's own
        where it says so.

    Raises:
        NotRun: It failed, took too long or is not there.
    """
    path = HERE / script
    if not path.is_file():
        raise NotRun(f"there is no benchmarks/{script}")
    command = [sys.executable, str(path), "--json", *(str(option) for option in options)]
    busy, own, start = busy_seconds(), children_seconds(), time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise NotRun(f"{script} took more than {timeout:.0f} s") from None
    elapsed = time.perf_counter() - start
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NotRun(f"{script} failed: {last}")
    report = json.loads(done.stdout.strip().splitlines()[-1])
    others, quiet = None, None
    if busy is not None:
        others = max(0.0, busy_seconds() - busy - (children_seconds() - own)) / elapsed
        quiet = others < QUIET
    return {"others": others, "quiet": quiet} | report


def children_seconds() -> float:
    """Processor time of the processes that this one started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 by itself (AVX-512 BF16, AMX; arm64 bf16)."""
    if not os.path.exists("/proc/cpuinfo"):
        return False
    with open("/proc/cpuinfo") as lines:
        flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


if __name__ == "__main__":
    main()
