"""Time of splatting: the table of targets, or single scenes on any backend.

    python benchmarks/splat.py [--json] [--threads 2] [--isa avx2] [--mesh mesh.npz] [--quick]
    python benchmarks/splat.py --backend gsplat|native|numba|torch [--count N] [--size S] [--channels C]

The first prints what the native splatter is held to (docs/speed.md), each figure beside its peer's of the
same run: medians of interleaved batches, disturbed ones marked. It first compares all pictures, and refuses
to report on any that differ. The second times the same scenes on one backend, with its distance to the native
one's pictures and gradients: for GPUs, which are waited for.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections.abc import Callable
from functools import partial

import numba_peer
import numpy as np
import torch
from peers import NaiveSplatter, Peers, Picture, agreement
from scenes import (
    SCENE_SEED,
    SplatScene,
    accelerator,
    machine,
    read_mesh,
    speed_scene,
    template_mesh,
)
from table import Row, markdown
from timing import Cell, Times, interleave
from torch import Tensor

from guava import native
from guava.body import load_template
from guava.rendering import GSPLAT, SplatOutput, conventions_by_name, splat, splat_numba
from guava.rendering.splat_native import Scene, count_work, recorded_stats
from guava.rendering.splatting import normalized_frustum

# (Gaussians, side of the picture, channels)
BASE, LARGE_PICTURE, RGB = (150_000, 512, 32), (150_000, 1024, 32), (150_000, 512, 3)
CASES = {"512x512, 32 channels": BASE, "1024x1024, 32 channels": LARGE_PICTURE, "512x512, RGB": RGB}

# Operations of an evaluated exponent and what follows from it, per pixel: the offset 2, the exponent 7, the
# power of two 9 (splitting 2, five multiply-adds, scaling is an integer's), alpha and transmittance 5; less
# than the kernels execute, which blend with masks. A weight costs a multiplication and an addition a channel.
OPERATIONS_PER_EVALUATION = 23
# Memory traffic of blending at the least: a record and its feature row per Gaussian-tile pair, the picture.
RECORD_BYTES = 36  # with its index in the tile's list


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", choices=["best", "baseline", "avx2", "avx512"], default="best")
    parser.add_argument("--mesh", help="another surface than the template's: an .npz file with v and f")
    parser.add_argument("--repeats", type=int, default=10, help="batches of each cell")
    parser.add_argument("--quick", action="store_true", help="three short batches of each cell")
    single = parser.add_argument_group("single scenes instead of the table")
    single.add_argument("--backend", choices=["native", "numba", "torch", "gsplat"])
    single.add_argument("--count", type=int)
    single.add_argument("--size", type=int)
    single.add_argument("--channels", type=int)
    single.add_argument("--conventions", choices=["gsplat", "3dgs"])
    args = parser.parse_args()
    if args.quick:
        args.repeats = 3
    torch.set_num_threads(args.threads)
    mesh = read_mesh(args.mesh) if args.mesh else template_mesh(load_template())
    options = (args.backend, args.count, args.size, args.channels, args.conventions)
    with native.forced_isa(args.isa):
        if any(option is not None for option in options):
            report = single_scenes(args, mesh)
            print(json.dumps(report) if args.json else single_text(report))
        else:
            report, rows = targets(args, mesh)
            print(json.dumps(report) if args.json else text(report, rows))


# --- the table ----------------------------------------------------------------------------------------------


def targets(args: argparse.Namespace, mesh: tuple[np.ndarray, np.ndarray]) -> tuple[dict, list[Row]]:
    """Everything that the native splatter is held to."""
    scenes = {name: speed_scene(mesh, *case) for name, case in CASES.items()}
    base, large, rgb = scenes.values()
    isa = native.isa_name(native.ISAS[args.isa])
    peers = Peers(isa)
    checks, facts = {}, {}
    naive = {name: NaiveSplatter(peers, c_scene(scene)) for name, scene in scenes.items()}
    for name, scene in scenes.items():
        checks |= compare(name, scene, naive[name], args.threads)
        facts[name] = scene_facts(scene, naive[name], args.threads)
    wrong = [name for name, check in checks.items() if not check["agree"]]
    if wrong:
        sys.exit("Not reported, because the pictures differ: " + json.dumps({n: checks[n] for n in wrong}))

    threads = args.threads
    memory = np.ones(64 << 20, np.float32)  # 256 MB
    working_set = memory[: (base.features.nbytes + 4 * 512 * 512 * 34) // 4]
    cells = {
        "forward": Cell(forward(base), threads),
        "forward, 1 thread": Cell(forward(base), 1),
        "forward, new memory": Cell(forward(base, reuse=False), threads),
        "forward + backward": Cell(forward_backward(base), threads),
        "forward 1024": Cell(forward(large), threads),
        "forward RGB": Cell(forward(rgb, depth=False), threads),
        "naive C++": Cell(naive_blend(naive["512x512, 32 channels"], base, threads), threads),
        "numba, per pixel": Cell(numba_blend(naive["512x512, 32 channels"], base), threads),
        "numba backend": Cell(backend_forward(base, "numba"), threads),
        "numba backend, blend": Cell(former_blend(base), threads),
        "numba backend 1024": Cell(backend_forward(large, "numba"), threads),
        "numba backend RGB": Cell(backend_forward(rgb, "numba"), threads),
        "peak": Cell(lambda: {"rate": peers.peak(threads)}, threads),
        "peak, 1 thread": Cell(lambda: {"rate": peers.peak(1)}, 1),
        "read": Cell(lambda: {"rate": peers.bandwidth(threads, memory, copy=False)}, threads),
        "copy": Cell(lambda: {"rate": peers.bandwidth(threads, memory, copy=True)}, threads),
        "read, working set": Cell(
            lambda: {"rate": peers.bandwidth(threads, working_set, copy=False)}, threads
        ),
    }
    times = interleave(cells, args.repeats, batch_seconds=0.1 if args.quick else 0.3)
    roof = roofline(base, times)
    rows = table_rows(times, roof, threads)
    report = {
        "benchmark": "splat", "mesh": args.mesh or "template", "seed": SCENE_SEED, "threads": threads,
        "isa": isa, "rows": [row.report() for row in rows], "scenes": facts, "agreement": checks,
        "roofline": roof,
        "times": {
            cell: {stage or "whole": t.report() for stage, t in stages.items()}
            for cell, stages in times.items()
        },
        "native": native.build_info(), **machine(),
    }
    return report, rows


def table_rows(times: dict[str, dict[str, Times]], roof: dict, threads: int) -> list[Row]:
    """The targets, in the order of docs/speed.md."""

    def whole(cell: str) -> Times:
        return times[cell][""]

    def forward_row(what: str, cell: str, bound: float, peer: str) -> Row:
        t, other = whole(cell), whole(peer)
        cpu = times[cell]["cpu"].median
        note = f"numba backend {other.median:.0f} ms; processor time {cpu:.1f} ms"
        return Row(what, t.median, "ms", bound, True, note, t.quiet, {"spread": t.report()})

    def ratio_row(what: str, above: Times, below: Times, bound: float | None, note: str) -> Row:
        quiet = above.quiet and below.quiet
        return Row(what, above.median / below.median, "x", bound, False, note, quiet)

    blend, single = times["forward"]["blend"], times["forward, 1 thread"]
    naive, per_pixel = whole("naive C++"), whole("numba, per pixel")
    former = times["numba backend, blend"][""]
    both, both_cpu = whole("forward + backward"), times["forward + backward"]["cpu"].median
    new = whole("forward, new memory").median
    first = forward_row("150 k, 32 channels, 512x512: forward", "forward", 30, "numba backend")
    beside = f"blend {blend.median:.1f} ms, "
    rows = [
        Row(**{**vars(first), "note": f"{first.note}; into new memory {new:.1f} ms"}),
        Row("the same: forward + backward", both.median, "ms", 85, True,
            f"no fast CPU peer has gradients; processor time {both_cpu:.1f} ms", both.quiet,
            {"spread": both.report()}),
        ratio_row("blend against the naive C++ loop", naive, blend, 6, f"{beside}C++ {naive.median:.0f} ms"),
        ratio_row("blend against numba per pixel", per_pixel, blend, 7,
                  f"{beside}numba {per_pixel.median:.0f} ms"),
        ratio_row("blend against the numba backend's", former, blend, None,
                  f"{beside}numba {former.median:.0f} ms"),
        forward_row("the same, 1024x1024: forward", "forward 1024", 70, "numba backend 1024"),
        forward_row("RGB + alpha, 512x512: forward", "forward RGB", 16, "numba backend RGB"),
        Row("blend against its roofline", roof["percent"], "%", 35, False,
            f"{roof['bound_by']}: at least {roof['least_ms']:.1f} ms", blend.quiet),
    ]
    if threads > 1:
        rows += [
            ratio_row(f"1 -> {threads} threads: blend", single["blend"], blend, 0.9 * threads,
                      f"{single['blend'].median:.1f} -> {blend.median:.1f} ms"),
            ratio_row(f"1 -> {threads} threads: whole forward", single[""], whole("forward"), 0.75 * threads,
                      f"{single[''].median:.1f} -> {whole('forward').median:.1f} ms"),
        ]
    return rows


def roofline(scene: SplatScene, times: dict[str, dict[str, Times]]) -> dict:
    """Least time of blending from counted operations and traffic at this run's peaks, and the share of the
    measured time that it is."""
    work = count_work(*scene.tensors, scene.camera, conventions=GSPLAT)
    channels, pixels = scene.features.shape[1], scene.camera.width * scene.camera.height
    operations = 2 * channels * work.weights + OPERATIONS_PER_EVALUATION * work.evaluations
    traffic = work.pairs * (RECORD_BYTES + 4 * channels) + 4 * pixels * (channels + 2)
    peak, read = times["peak"]["rate"].median, times["read, working set"]["rate"].median
    compute_ms, traffic_ms = operations / peak / 1e6, traffic / read / 1e6
    least, measured = max(compute_ms, traffic_ms), times["forward"]["blend"].median
    figures = {
        "peak_gflops": peak, "peak_gflops_1_thread": times["peak, 1 thread"]["rate"].median,
        "read_gbs": times["read"]["rate"].median, "copy_gbs": times["copy"]["rate"].median,
        "read_working_set_gbs": read, "compute_ms": compute_ms, "traffic_ms": traffic_ms, "least_ms": least,
        "blend_ms": measured, "percent": 100 * least / measured, "gflops": operations / measured / 1e6,
    }
    return {
        "visible": work.visible, "pairs": work.pairs, "evaluations": work.evaluations,
        "weights": work.weights, "operations": operations, "traffic_bytes": traffic,
        "bound_by": "arithmetic" if compute_ms >= traffic_ms else "memory",
        **{name: round(value, 2) for name, value in figures.items()},
    }


def text(report: dict, rows: list[Row]) -> str:
    """The report for people."""
    roof, base = report["roofline"], next(iter(report["scenes"].values()))
    lines = [
        f"Scene: {base['covered']:.1%} of the pixels covered, {base['contributions_per_pixel']:.1f} "
        f"contributions each, {base['pairs']} Gaussian-tile pairs",
        markdown(rows), "",
        "Stages, ms: median (min .. max)",
    ]
    for name in ("forward", "forward, 1 thread", "forward + backward", "forward 1024", "forward RGB"):
        stages = ", ".join(
            f"{stage} {t['median']:.2f} ({t['min']:.2f} .. {t['max']:.2f})"
            for stage, t in report["times"][name].items()
        )
        lines.append(f"  {name}: {stages}")
    lines += [
        "",
        f"Roofline of blending: {roof['evaluations'] / 1e6:.1f} M exponents x {OPERATIONS_PER_EVALUATION}, "
        f"{roof['weights'] / 1e6:.1f} M weights x 2 x 32 = {roof['operations'] / 1e9:.2f} GFLOP at "
        f"{roof['peak_gflops']:.0f} GFLOP/s: {roof['compute_ms']:.1f} ms;",
        f"  {roof['traffic_bytes'] / 1e6:.0f} MB at {roof['read_working_set_gbs']:.0f} GB/s "
        f"({roof['read_gbs']:.0f} from memory): {roof['traffic_ms']:.1f} ms; "
        f"measured {roof['blend_ms']:.1f} ms = {roof['gflops']:.0f} GFLOP/s",
        "",
        ", ".join(f"{k} {report[k]}" for k in ("isa", "threads", "cpu", "cores", "load", "torch", "numba")),
        ", ".join(f"{k} {v}" for k, v in report["native"].items()),
    ]
    return "\n".join(lines)


# --- what is timed ------------------------------------------------------------------------------------------


def forward(scene: SplatScene, *, reuse: bool = True, depth: bool = True) -> Callable[[], dict[str, float]]:
    """A native forward pass into one picture's memory (``reuse``) or into new memory; gives its stages."""
    size, channels = scene.camera.width, scene.features.shape[1]
    out = SplatOutput.empty(size, size, channels, depth=depth) if reuse else None

    def run() -> dict[str, float]:
        with recorded_stats() as passes, torch.no_grad():
            splat(*scene.tensors, scene.camera, backend="native", out=out)
        return stages(passes)

    return run


def forward_backward(scene: SplatScene, backend: str = "native") -> Callable[[], dict[str, float]]:
    """A forward and a backward pass, with random gradients of features, alpha and depth."""
    inputs = [tensor.detach().requires_grad_() for tensor in scene.tensors]
    upstream = gradients_of_picture(scene)

    def run() -> dict[str, float]:
        with recorded_stats() as passes:
            out = splat(*inputs, scene.camera, backend=backend)
            torch.autograd.grad((out.features, out.alpha, out.depth), inputs, upstream)
        return stages(passes)

    return run


def gradients_of_picture(scene: SplatScene) -> list[Tensor]:
    """Random gradients of a loss by features, alpha and depth, on the scene's device."""
    generator = torch.Generator().manual_seed(1)
    size, channels = scene.camera.width, scene.features.shape[1]
    shapes = ((size, size, channels), (size, size), (size, size))
    return [torch.randn(shape, generator=generator).to(scene.means.device) for shape in shapes]


def stages(passes: list) -> dict[str, float]:
    """Milliseconds by stage of the passes since recording began."""
    names = ("project", "sort", "bin", "blend", "blend_backward", "project_backward")
    sums = {name: sum(getattr(p, f"{name}_ms") for p in passes) for name in names}
    return {name: ms for name, ms in sums.items() if ms > 0}


def backend_forward(scene: SplatScene, backend: str) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            splat(*scene.tensors, scene.camera, backend=backend)

    return run


def naive_blend(naive: NaiveSplatter, scene: SplatScene, threads: int) -> Callable[[], None]:
    picture = Picture(scene.camera.height, scene.camera.width, scene.features.shape[1])

    def run() -> None:
        naive.blend(threads, picture)

    return run


def numba_blend(
    naive: NaiveSplatter, scene: SplatScene, picture: Picture | None = None
) -> Callable[[], None]:
    """The per-pixel numba kernel on the naive splatter's lists."""
    if picture is None:
        picture = Picture(scene.camera.height, scene.camera.width, scene.features.shape[1])
    return partial(
        numba_peer.blend, *naive.lists(), scene.features.numpy(), GSPLAT.alpha_max, GSPLAT.alpha_min,
        GSPLAT.transmittance_min, *(tensor.numpy() for tensor in picture.tensors),
    )


def former_blend(scene: SplatScene) -> Callable[[], None]:
    """The numba backend's blending alone, with what the stages before it gave."""
    kernel, calls = splat_numba._blend, []

    def remember(*arguments):
        calls.append(arguments)
        return kernel(*arguments)

    splat_numba._blend = remember
    try:
        backend_forward(scene, "numba")()
    finally:
        splat_numba._blend = kernel

    def run() -> None:
        kernel(*calls[0])

    return run


# --- what is checked ----------------------------------------------------------------------------------------


def compare(name: str, scene: SplatScene, naive: NaiveSplatter, threads: int) -> dict[str, dict]:
    """Distances of the peers' pictures to the native one."""
    size, channels = scene.camera.width, scene.features.shape[1]
    with torch.no_grad():
        drawn = splat(*scene.tensors, scene.camera, backend="native")
    ours = (drawn.features, drawn.alpha, drawn.depth)
    cpp, jit = Picture(size, size, channels), Picture(size, size, channels)
    naive.blend(threads, cpp)
    checks = {f"{name}: naive C++": agreement(ours, cpp.tensors)}
    numba_blend(naive, scene, jit)()
    return checks | {f"{name}: numba per pixel": agreement(ours, jit.tensors)}


def scene_facts(scene: SplatScene, naive: NaiveSplatter, threads: int) -> dict:
    """What the times of a scene depend on."""
    size = scene.camera.width
    picture = Picture(size, size, scene.features.shape[1])
    contributions = naive.blend(threads, picture)
    covered = float((picture.alpha > 0).float().mean())
    return {
        "gaussians": len(scene.means), "size": size, "channels": scene.features.shape[1],
        "covered": round(covered, 4), "contributions": contributions, "pairs": naive.pairs,
        "contributions_per_pixel": round(contributions / (covered * size * size), 2),
    }


def c_scene(scene: SplatScene) -> Scene:
    """The scene as the C interface takes it, with gsplat's conventions; it points into ``scene``."""
    c, camera = GSPLAT, scene.camera
    pointers = [tensor.data_ptr() for tensor in scene.tensors]
    return Scene(
        len(scene.means), scene.features.shape[1], camera.width, camera.height, 1, *pointers, None,
        (ctypes.c_float * 12)(*camera.world_to_camera[:3].flatten().tolist()),
        (ctypes.c_float * 6)(*camera.intrinsics[:2].flatten().tolist()),
        (ctypes.c_float * 4)(*normalized_frustum(camera, c.frustum_margin)),
        c.eps2d, c.alpha_max, c.alpha_min, c.transmittance_min, c.near,
    )


# --- single scenes ------------------------------------------------------------------------------------------


def single_scenes(args: argparse.Namespace, mesh: tuple[np.ndarray, np.ndarray]) -> dict:
    """Forward, and forward + backward where the backend has gradients, beside the native backend's result."""
    backend = args.backend or "native"
    device = torch.device("cuda" if backend == "gsplat" else "cpu")
    asked = (args.count, args.size, args.channels)
    cases = CASES.values()
    if any(value is not None for value in asked):
        cases = [tuple(given or usual for given, usual in zip(asked, BASE, strict=True))]
    conventions = conventions_by_name(args.conventions or "gsplat")
    reports = []
    for count, size, channels in cases:
        scene = speed_scene(mesh, count, size, channels)
        there = scene.to(device)

        def draw(inputs: list[Tensor], camera=scene.camera, backend: str = backend) -> SplatOutput:
            return splat(*inputs, camera, backend=backend, conventions=conventions)

        def once(there=there, draw=draw) -> None:
            with torch.no_grad():
                draw(there.tensors)
            wait(device)

        upstream = gradients_of_picture(there)

        def both(there=there, draw=draw, upstream=upstream) -> None:
            one_gradient(there, draw, upstream)

        cells = {"forward": Cell(once)}
        if backend != "numba":
            cells["forward + backward"] = Cell(both)
        times = interleave(cells, args.repeats, batch_seconds=0.1 if args.quick else 0.3)
        report = {
            "gaussians": count, "size": size, "channels": channels,
            **{name: stages[""].report() for name, stages in times.items()},
        }
        if backend != "native":
            report["against_native"] = distance(scene, there, draw, backend != "numba")
        reports.append(report)
    return {
        "benchmark": "splat", "backend": backend, "conventions": args.conventions or "gsplat",
        "mesh": args.mesh or "template", "seed": SCENE_SEED, "threads": args.threads, "scenes": reports,
        **accelerator(device), "native": native.build_info(), **machine(),
    }


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def one_gradient(scene: SplatScene, draw: Callable, upstream: list[Tensor]) -> list[Tensor]:
    """Gradients by the five inputs, from those by the picture (``gradients_of_picture``)."""
    inputs = [tensor.detach().requires_grad_() for tensor in scene.tensors]
    out = draw(inputs)
    depth = out.inverse_depth if out.depth is None else out.depth
    result = torch.autograd.grad((out.features, out.alpha, depth), inputs, upstream)
    wait(scene.means.device)
    return list(result)


def distance(scene: SplatScene, there: SplatScene, draw: Callable, gradients: bool) -> dict:
    """How far a backend's pictures and gradients are from the native backend's."""
    with torch.no_grad():
        ours = draw(scene.tensors, backend="native")
        theirs = draw(there.tensors)
    report = {}
    for name in ("features", "alpha", "depth", "inverse_depth"):
        a, b = getattr(ours, name), getattr(theirs, name)
        if a is not None and b is not None:
            difference = (a - b.cpu()).abs()
            report[name] = {
                "max": float(difference.max()), "share_above_1e-4": float((difference > 1e-4).float().mean())
            }
    if gradients:
        names = ("means", "quaternions", "scales", "opacities", "features")
        native_gradients = one_gradient(scene, partial(draw, backend="native"), gradients_of_picture(scene))
        others = one_gradient(there, draw, gradients_of_picture(there))
        for name, a, b in zip(names, native_gradients, others, strict=True):
            report[f"gradient_{name}_relative"] = float((a - b.cpu()).norm() / a.norm().clamp(min=1e-30))
    return report


def single_text(report: dict) -> str:
    lines = []
    for scene in report["scenes"]:
        size = scene["size"]
        lines.append(f"{scene['gaussians']} Gaussians, {size}x{size}, {scene['channels']} channels")
        for name in ("forward", "forward + backward"):
            if name in scene:
                t = scene[name]
                spread = f"({t['min']:.2f} .. {t['max']:.2f}, n {t['runs']})"
                lines.append(f"  {name}: {t['median']:.2f} ms {spread}")
        for name, value in scene.get("against_native", {}).items():
            lines.append(f"  against native, {name}: {value}")
    facts = {k: v for k, v in report.items() if k not in ("scenes", "benchmark")}
    return "\n".join([*lines, *(f"{k:20} {v}" for k, v in facts.items())])


if __name__ == "__main__":
    main()
