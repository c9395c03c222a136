"""Stage times of a reconstruction, for ``--profile``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


class Stages:
    """Names the stages of one job as they begin and remembers how long each took.

    Args:
        names: All stages, in order.
        progress: Told of every stage as it begins, and of the end.

    Attributes:
        seconds: Wall time by stage.
    """

    def __init__(self, names: tuple[str, ...], progress: Progress | None = None):
        self.names = names
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run one stage."""
        if self.progress:
            self.progress(name, self.names.index(name), len(self.names))
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        if self.progress and name == self.names[-1]:
            self.progress(name, len(self.names), len(self.names))


def seconds_table(seconds: Mapping[str, float]) -> str:
    """One line a stage, and the sum."""
    rows = [*seconds.items(), ("total", sum(seconds.values()))]
    return "\n".join(f"{name:<14}{value:7.2f} s" for name, value in rows)
