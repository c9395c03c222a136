"""How time and memory of splatting grow with Gaussians, pixels and channels, and the largest case.

    python benchmarks/growth.py [--json] [--plot growth.png] [--quick]

Everything else stays as in the scene of benchmarks/splat.py (150,000 Gaussians, 512 x 512, 32 channels). More
Gaussians keep their size, so that they overlap more. Each point runs in a process of its own, which loads
the scene from a file, so that its peak memory (VmHWM) is that of rendering: "rss_mb" is all of the process,
Python and torch included, "added_mb" what rendering added to what the process held with the scene loaded
(the picture and working memory; with gradients also those). --frames 1000 instead draws so many frames of a
slowly turning scene and prints how the memory went: a leak would be seen as a slope.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

COUNTS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
SIZES = (256, 512, 1024, 2048)
CHANNELS = (3, 8, 16, 32, 64, 128)
BASE = {"count": 150_000, "size": 512, "channels": 32}
LARGE = tuple({"count": 1_000_000, "size": 1024, "channels": channels} for channels in (3, 32))
MEMORY_LIMIT_MB = 1500.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", help="draw the growth to this PNG file")
    parser.add_argument("--from-json", help="plot the figures of an earlier run's JSON file, measure nothing")
    parser.add_argument("--large-only", action="store_true", help="only a million Gaussians at 1024 x 1024")
    parser.add_argument("--quick", action="store_true", help="three points a curve, fewer repeats")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backend", default="native", choices=["native", "numba"], help="of guava.rendering")
    parser.add_argument("--mesh", help="another surface than the template's: an .npz file with v and f")
    parser.add_argument("--frames", type=int, help="resident memory while so many frames are drawn, only")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(**json.loads(args.child))))
        return
    if args.frames:
        report = long_run(args.frames, args.threads, args.backend)
        print(json.dumps(report) if args.json else "\n".join(f"{k:24} {v}" for k, v in report.items()))
        return
    if args.from_json:
        report = json.loads(Path(args.from_json).read_text())
    else:
        report = run(args)
    if args.plot:
        draw(report, args.plot)
    print(json.dumps(report) if args.json else table(report))


def run(args: argparse.Namespace) -> dict:
    """All points, each in a fresh process."""
    import torch
    from scenes import machine, read_mesh, speed_scene, template_mesh

    from guava.body import load_template

    mesh = read_mesh(args.mesh) if args.mesh else template_mesh(load_template())

    def thinned(values: tuple[int, ...]) -> tuple[int, ...]:
        return (values[0], values[len(values) // 2], values[-1]) if args.quick else values

    curves = {} if args.large_only else {
        "count": thinned(COUNTS), "size": thinned(SIZES), "channels": thinned(CHANNELS)
    }
    cases = [BASE | {axis: value} for axis, values in curves.items() for value in values]
    points = {}
    with tempfile.TemporaryDirectory(prefix="guava-growth-") as folder:
        for case in [*cases, *LARGE]:
            key = tuple(case.values())
            if key in points:
                continue
            scene = speed_scene(mesh, **case)
            names = ("means", "quaternions", "scales", "opacities", "features")
            for name in names:
                np.save(Path(folder) / f"{name}.npy", getattr(scene, name).numpy())
            camera = {
                "view": scene.camera.world_to_camera.tolist(), "intrinsics": scene.camera.intrinsics.tolist()
            }
            del scene
            job = {
                "folder": folder, "camera": camera, "size": case["size"], "threads": args.threads,
                "backend": args.backend, "gradients": args.backend == "native" and case not in LARGE,
                "rounds": 2 if args.quick else 5,
            }
            points[key] = case | child(job)
            print(f"{case} {points[key]['forward']['median']:.1f} ms", file=sys.stderr)
    return {
        "benchmark": "growth", "backend": args.backend, "threads": args.threads,
        "mesh": Path(args.mesh).name if args.mesh else "template",
        "curves": {
            axis: [points[tuple((BASE | {axis: value}).values())] for value in values]
            for axis, values in curves.items()
        },
        "large": [points[tuple(case.values())] for case in LARGE],
        "large_within_limit": all(
            points[tuple(case.values())]["forward"]["rss_mb"] <= MEMORY_LIMIT_MB for case in LARGE
        ) if memory_known() else None,
        **machine(), "torch_threads": args.threads, "torch": torch.__version__,
    }


def child(job: dict) -> dict:
    """``measure`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(job)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def measure(
    folder: str, camera: dict, size: int, threads: int, backend: str, gradients: bool, rounds: int
) -> dict:
    """Times and memory of one scene that lies in ``folder``."""
    import torch
    from timing import Cell, interleave

    from guava.camera import Camera
    from guava.rendering import splat

    torch.set_num_threads(threads)
    inputs = [
        torch.from_numpy(np.load(Path(folder) / f"{name}.npy"))
        for name in ("means", "quaternions", "scales", "opacities", "features")
    ]
    view = Camera(torch.tensor(camera["view"]), torch.tensor(camera["intrinsics"]), size, size)

    def forward() -> None:
        with torch.no_grad():
            splat(*inputs, view, backend=backend)

    def both() -> None:
        for tensor in inputs:
            tensor.grad = None
            tensor.requires_grad_(True)
        out = splat(*inputs, view, backend=backend)
        (out.features.sum() + out.alpha.sum()).backward()

    def cell(function: Callable[[], None]) -> dict:
        before = reset_peak_rss()
        stages = interleave({"": Cell(function)}, rounds)[""]
        times = stages[""].report() | {"cpu_ms": round(stages["cpu"].median, 2)}
        if before is None:
            return times
        peak = resident("VmHWM")
        return times | {"rss_mb": round(peak, 1), "added_mb": round(peak - before, 1)}

    result = {"forward": cell(forward)}
    if gradients:
        result["forward_backward"] = cell(both)
    return result


def long_run(frames: int, threads: int, backend: str) -> dict:
    """Resident memory while frames are drawn, forward, and forward and backward in every tenth."""
    import torch
    from scenes import machine, speed_scene, template_mesh

    from guava.body import load_template
    from guava.rendering import splat

    if not memory_known():
        sys.exit("Resident memory is read from /proc, which this system does not have.")
    torch.set_num_threads(threads)
    scene = speed_scene(template_mesh(load_template()), 50_000, 256, 16)
    inputs = [tensor.requires_grad_() for tensor in scene.tensors]
    megabytes = []
    for frame in range(frames):
        count = len(inputs[0]) - 31 * (frame % 100)  # buffers have to follow
        turn = torch.tensor(0.002 * frame)
        view = scene.camera.world_to_camera.clone()
        view[0, 0], view[0, 1], view[2, 0], view[2, 1] = turn.cos(), -turn.sin(), turn.sin(), turn.cos()
        camera = replace(scene.camera, world_to_camera=view)
        part = [tensor[:count] for tensor in inputs]
        with torch.set_grad_enabled(backend == "native" and frame % 10 == 0):
            out = splat(*part, camera, backend=backend)
        if out.features.requires_grad:
            torch.autograd.grad(out.features.sum(), inputs)
        if frame % max(1, frames // 20) == 0 or frame == frames - 1:
            megabytes.append((frame, round(resident("VmRSS"), 1)))
    # Buffers find their size in the first half.
    late = [m for m in megabytes if m[0] >= frames / 2]
    slope = np.polyfit(*zip(*late, strict=True), 1)[0] if len(late) > 1 else float("nan")
    return {
        "benchmark": "growth, long run", "backend": backend, "frames": frames, "rss_mb": megabytes,
        "second_half_kb_per_frame": round(1000 * float(slope), 3), **machine(),
    }


def memory_known() -> bool:
    """Whether this system tells a process's memory in the way that is used here (Linux)."""
    return os.path.exists("/proc/self/clear_refs")


def reset_peak_rss() -> float | None:
    """Forget the largest resident memory so far; returns the present one, MB, or None off Linux."""
    if not memory_known():
        return None
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return resident("VmRSS")


def resident(field: str) -> float:
    """A line of /proc/self/status, MB."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


AXES = {"count": "Gaussians", "size": "picture's side", "channels": "channels"}


def table(report: dict) -> str:
    """The report as text."""
    lines = []
    for axis, points in [*report["curves"].items(), ("large", report["large"])]:
        lines.append(
            f"{AXES.get(axis, axis):16}{'forward ms':>12}{'RSS MB':>9}{'added MB':>10}"
            f"{'fwd + bwd ms':>14}{'RSS MB':>9}{'added MB':>10}"
        )
        for point in points:
            name = str(point.get(axis, ""))
            name = name or f"{point['count']:.0e} {point['channels']} ch"
            text = f"{name:16}"
            for key, width in (("forward", 12), ("forward_backward", 14)):
                if key in point:
                    cell = point[key]
                    text += f"{cell['median']:{width}.1f}{cell.get('rss_mb', float('nan')):9.0f}"
                    text += f"{cell.get('added_mb', float('nan')):10.0f}"
                    text += "" if cell["quiet"] else " (disturbed)"
            lines.append(text)
        lines.append("")
    within = report["large_within_limit"]
    if within is not None:
        lines.append(f"1 M Gaussians, 1024^2 within {MEMORY_LIMIT_MB:.0f} MB: {'yes' if within else 'NO'}")
    return "\n".join(lines)


# Colours that are told apart by people with colour-vision deficiencies, too (Okabe and Ito).
_SERIES = {"forward": ("forward", "#0072b2"), "forward_backward": ("forward + backward", "#d55e00")}
_PANEL = (340, 250)  # of one diagram, pixels before doubling
_MARGIN = (62, 34, 14, 44)  # left, top, right, bottom


def draw(report: dict, path: str) -> None:
    """Six log-log diagrams, time above and memory below, as a PNG of a few dozen kilobytes."""
    from PIL import Image, ImageDraw, ImageFont

    scale = 2
    width, height = _PANEL
    image = Image.new("RGB", (3 * width * scale, 2 * height * scale), "white")
    pen = ImageDraw.Draw(image)
    font, bold = ImageFont.load_default(11 * scale), ImageFont.load_default(13 * scale)
    rows = (("milliseconds", "median"), ("MB that rendering adds", "added_mb"))
    for row, (unit, key) in enumerate(rows):
        for column, (axis, points) in enumerate(report["curves"].items()):
            series = {
                name: [(p[axis], p[name][key]) for p in points if p.get(name, {}).get(key, 0) > 0]
                for name in _SERIES
            }
            series = {name: line for name, line in series.items() if line}
            corner = (column * width * scale, row * height * scale)
            ticks = [(p[axis], short(p[axis]) if axis == "count" else str(p[axis])) for p in points]
            _diagram(pen, corner, scale, series, ticks, f"{unit} by {AXES[axis]}", font, bold)
    image.quantize(64).save(path, optimize=True)


def _diagram(pen, corner, scale, series, ticks, title, font, bold) -> None:
    left, top, right, bottom = (m * scale for m in _MARGIN)
    x0, x1 = corner[0] + left, corner[0] + _PANEL[0] * scale - right
    y0, y1 = corner[1] + top, corner[1] + _PANEL[1] * scale - bottom
    values = [v for line in series.values() for _, v in line]
    pen.text(((x0 + x1) / 2, corner[1] + top / 2), title, "black", bold, "mm")
    if not values:
        pen.text(((x0 + x1) / 2, (y0 + y1) / 2), "not measured", "#777777", font, "mm")
        return
    low, high = 10 ** np.floor(np.log10(min(values))), 10 ** np.ceil(np.log10(max(values)))
    high = max(high, 10 * low)
    first, last = ticks[0][0], ticks[-1][0]

    def place(x: float, y: float) -> tuple[float, float]:
        across = np.log(x / first) / np.log(last / first) if last > first else 0.5
        up = np.log(y / low) / np.log(high / low)
        return x0 + (0.03 + 0.94 * across) * (x1 - x0), y1 - up * (y1 - y0)

    decade = low
    while decade <= high * 1.001:
        for multiple in (1, 2, 5):
            if decade * multiple > high * 1.001:
                break
            y = place(first, decade * multiple)[1]
            pen.line((x0, y, x1, y), "#cccccc" if multiple == 1 else "#eeeeee", scale)
            if multiple == 1 or high / low <= 100:
                pen.text((x0 - 5 * scale, y), short(decade * multiple), "black", font, "rm")
        decade *= 10
    for value, label in ticks:
        x = place(value, low)[0]
        pen.line((x, y1, x, y1 + 4 * scale), "black", scale)
        pen.text((x, y1 + 7 * scale), label, "black", font, "mt")
    pen.line((x0, y0, x0, y1, x1, y1), "black", scale)
    for index, (name, line) in enumerate(series.items()):
        label, color = _SERIES[name]
        dots = [place(x, y) for x, y in line]
        pen.line(dots, color, 2 * scale, "curve")
        for x, y in dots:
            pen.ellipse((x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale), color)
        y = y0 + (8 + 15 * index) * scale
        pen.line((x0 + 10 * scale, y, x0 + 30 * scale, y), color, 2 * scale)
        pen.text((x0 + 36 * scale, y), label, "black", font, "lm")


def short(value: float) -> str:
    """10000 -> 10k."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


if __name__ == "__main__":
    main()
