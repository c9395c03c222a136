"""How the compiled CPU kernels use threads.

There is one setting for the native kernels, numba's and torch's own: ``torch.set_num_threads``; numba's use
no more than ``NUMBA_NUM_THREADS`` (all processors by default). numba's OpenMP pool does not survive a fork:
worker processes that run its kernels must be started with the "spawn" method. The native kernels have threads
of their own and may be used on both sides of a fork.
"""

from __future__ import annotations

import threading

import numba
import torch


class _KernelLock:
    """One parallel numba kernel at a time, on as many threads as torch, and with no effect on torch.

    numba's fallback thread pool (``workqueue``) aborts the process when two Python threads start parallel
    kernels at once; and its OpenMP pool shares its thread count with torch's, so that a kernel would undo
    ``torch.set_num_threads``.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._torch_threads = self._numba_threads = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._torch_threads, self._numba_threads = torch.get_num_threads(), numba.get_num_threads()
        numba.set_num_threads(min(self._torch_threads, numba.config.NUMBA_NUM_THREADS))

    def __exit__(self, *_) -> None:
        numba.set_num_threads(self._numba_threads)
        if torch.get_num_threads() != self._torch_threads:
            torch.set_num_threads(self._torch_threads)
        self._lock.release()


KERNEL_LOCK = _KernelLock()
"""Held, with ``with``, while a parallel numba kernel runs."""
