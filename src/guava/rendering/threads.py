"""How the compiled CPU kernels use threads."""

from __future__ import annotations

import threading

KERNEL_LOCK = threading.Lock()
"""Held while a parallel numba kernel runs: numba's fallback thread pool (``workqueue``) aborts the process
when two Python threads start parallel kernels at once."""
