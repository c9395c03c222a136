"""Where tracking spends its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass
class StageTime:
    """One stage: wall seconds, and CPU seconds of the whole process while it ran (all threads: a stage beside
    which another one runs counts its work too)."""

    wall: float = 0.0
    cpu: float = 0.0


class StageClock:
    """Adds up how long stages took. Stages may run in several threads at once; then their wall times add up
    to more than the clock's.

    Attributes:
        stages: By name, in the order in which they were first entered.
    """

    def __init__(self) -> None:
        self.stages: dict[str, StageTime] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a stage."""
        self.add(name, 0.0)
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - wall, time.process_time() - cpu)

    def add(self, name: str, wall: float, cpu: float = 0.0) -> None:
        """Add to a stage."""
        with self._lock:
            stage = self.stages.setdefault(name, StageTime())
            stage.wall += wall
            stage.cpu += cpu

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The same items; making each of them is timed as a stage."""
        source = iter(items)
        while True:
            with self(name):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def record(self) -> dict[str, list[float]]:
        """[wall, CPU] seconds by stage, for files."""
        return {name: [round(s.wall, 4), round(s.cpu, 4)] for name, s in self.stages.items()}


def stage_table(stages: Mapping[str, Iterable[float]], frames: int) -> str:
    """One line a stage, indented below the stage that contains it ("fit/face" below "fit").

    Args:
        stages: What :meth:`StageClock.record` gives.
        frames: For the time per frame.
    """
    lines = [f"{'stage':<22}{'wall s':>9}{'CPU s':>9}{'ms/frame':>10}"]
    for name, (wall, cpu) in stages.items():
        depth, _, own = name.rpartition("/")
        shown = "  " * (depth.count("/") + bool(depth)) + own
        used = f"{cpu:9.2f}" if cpu else " " * 9
        lines.append(f"{shown:<22}{wall:9.2f}{used}{1000 * wall / max(frames, 1):10.1f}")
    return "\n".join(lines)
