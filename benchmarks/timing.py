"""Times on a machine that others use too: interleaved batches, and how much was going on beside each."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

QUIET = 0.12
"""A batch is quiet if other processes (and the hypervisor's other guests) took less than this share of one
core."""
ENOUGH = 3
"""So many quiet batches make a figure; with fewer, the least disturbed third stands in and is marked."""


@dataclass(frozen=True)
class Cell:
    """Something to time.

    Attributes:
        run: Does it once. May return stage times by name, milliseconds.
        threads: That torch, numba and the native kernels use meanwhile; None: ``run`` sees to it.
    """

    run: Callable[[], dict[str, float] | None]
    threads: int | None = None


@dataclass(frozen=True)
class Times:
    """Milliseconds of one thing.

    Attributes:
        runs: How many went into the figures.
        quiet: Whether at least ``ENOUGH`` batches were quiet; the figures are then of those only.
        others: Mean share of one core that others took during the batches that were kept; None: unknown.
    """

    median: float
    min: float
    max: float
    runs: int
    quiet: bool
    others: float | None

    def report(self) -> dict:
        rounded = {k: round(getattr(self, k), 3) for k in ("median", "min", "max")}
        others = None if self.others is None else round(self.others, 2)
        return {**rounded, "runs": self.runs, "quiet": self.quiet, "others": others}


@dataclass(frozen=True)
class Batch:
    """Runs in a row of one cell: milliseconds by stage, "" being the whole, and the share of others.

    The stage "cpu" is the processor time of all threads for one run, the batch's mean: on a busy machine it
    is what is left of a figure.
    """

    milliseconds: dict[str, list[float]]
    others: float | None


def interleave(
    cells: dict[str, Cell], rounds: int, *, batch_seconds: float = 0.3
) -> dict[str, dict[str, Times]]:
    """Time cells in turn, ``rounds`` batches each, and up to three times as many while batches are disturbed.

    Returns:
        By cell, by stage ("" the whole, "cpu" its processor time): times.
    """
    sizes, batches = {}, {name: [] for name in cells}
    for name, cell in cells.items():
        _use_threads(cell)
        cell.run()
        start = time.perf_counter()
        cell.run()
        once = time.perf_counter() - start
        sizes[name] = min(100, max(1, math.ceil(batch_seconds / max(once, 1e-6))))
    for round_ in range(3 * rounds):
        if round_ >= rounds and all(_quiet_enough(b) for b in batches.values()):
            break
        for name, cell in cells.items():
            if round_ < rounds or not _quiet_enough(batches[name]):
                batches[name].append(_batch(cell, sizes[name]))
    return {name: summarise(b) for name, b in batches.items()}


def summarise(batches: list[Batch]) -> dict[str, Times]:
    """Medians over the runs of the quiet batches, or of the least disturbed third if those are too few."""
    quiet = [b for b in batches if b.others is None or b.others < QUIET]
    enough = len(quiet) >= ENOUGH
    if not enough:
        by_quiet = sorted(batches, key=lambda b: b.others)
        quiet = by_quiet[: max(1, len(batches) // 3)]
    known = [b.others for b in quiet if b.others is not None]
    others = sum(known) / len(known) if known else None
    times = {}
    for stage in batches[0].milliseconds:
        runs = [ms for b in quiet for ms in b.milliseconds[stage]]
        # Without knowledge of others nothing can be called quiet.
        times[stage] = Times(median(runs), min(runs), max(runs), len(runs), enough and bool(known), others)
    return times


def _quiet_enough(batches: list[Batch]) -> bool:
    return sum(b.others is None or b.others < QUIET for b in batches) >= ENOUGH


def _use_threads(cell: Cell) -> None:
    if cell.threads is not None:
        torch.set_num_threads(cell.threads)
        if "numba" in sys.modules:  # importing it costs memory, which some benchmarks measure
            numba = sys.modules["numba"]
            numba.set_num_threads(min(cell.threads, numba.config.NUMBA_NUM_THREADS))


def _batch(cell: Cell, size: int) -> Batch:
    _use_threads(cell)
    milliseconds: dict[str, list[float]] = {"": []}
    busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
    for _ in range(size):
        before = time.perf_counter()
        stages = cell.run()
        milliseconds[""].append(1000 * (time.perf_counter() - before))
        for stage, ms in (stages or {}).items():
            milliseconds.setdefault(stage, []).append(ms)
    elapsed, own, busy_after = time.perf_counter() - start, time.process_time() - own, busy_seconds()
    milliseconds["cpu"] = [1000 * own / size]
    if busy is None or busy_after is None:
        return Batch(milliseconds, None)
    return Batch(milliseconds, max(0.0, busy_after - busy - own) / elapsed)


def busy_seconds() -> float | None:
    """Processor time of all processes and of stolen time so far, seconds over all cores; None off Linux."""
    if not os.path.exists("/proc/stat"):
        return None
    with open("/proc/stat") as lines:
        fields = [int(field) for field in lines.readline().split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
