"""Reading ahead: the next frames are decoded while the present one is looked at."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_END = object()


def read_ahead(items: Iterable[T], depth: int = 4) -> Iterator[T]:
    """The same items in the same order, made by a thread that is at most ``depth`` items ahead.

    An error of ``items`` is raised where it would have come. Whoever stops early closes the generator, which
    ends the thread and closes ``items``.
    """
    waiting: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        source = iter(items)
        try:
            for item in source:
                put((item, None))
                if stop.is_set():
                    return
            put((_END, None))
        except BaseException as error:  # noqa: BLE001 - handed to the reader, who raises it
            put((_END, error))
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, name="guava-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item, error = waiting.get(timeout=0.2)  # a wait that lets Ctrl-C through everywhere
            except queue.Empty:
                continue
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        thread.join()
