"""How the compiled CPU kernels use threads.

The number of threads is numba's (``NUMBA_NUM_THREADS``). OpenMP pools do not survive a fork: worker processes
that draw must be started with the "spawn" method.
"""

from __future__ import annotations

import threading

import torch


class _KernelLock:
    """One parallel numba kernel at a time, with no effect on torch.

    numba's fallback thread pool (``workqueue``) aborts the process when two Python threads start parallel
    kernels at once; and its OpenMP pool shares its thread count with torch's, so that a kernel would undo
    ``torch.set_num_threads``.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._torch_threads = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._torch_threads = torch.get_num_threads()

    def __exit__(self, *_) -> None:
        if torch.get_num_threads() != self._torch_threads:
            torch.set_num_threads(self._torch_threads)
        self._lock.release()


KERNEL_LOCK = _KernelLock()
"""Held, with ``with``, while a parallel numba kernel runs."""
