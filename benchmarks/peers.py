"""The native splatter's peers (``native/peers.cpp``), compiled when a benchmark asks, and their checks."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
_PICTURE = [ctypes.c_void_p] * 3

TOLERANCE = 1e-4
"""Largest difference of two pictures at a pixel."""
FLIPS = 1e-4
"""Share of the pixels where a Gaussian lies so near to a threshold (alpha_min, the stop rule) that rounding
decides whether it is drawn: exempt from ``TOLERANCE``, but held to ``FLIP_TOLERANCE``."""
FLIP_TOLERANCE = 0.05


class Peers:
    """``peers.cpp`` for one instruction set."""

    def __init__(self, isa: str):
        self.isa = isa
        library = ctypes.CDLL(str(_compiled(isa)))
        library.peer_prepare.restype = ctypes.c_void_p
        library.peer_prepare.argtypes = [ctypes.c_void_p]
        library.peer_destroy.restype = None
        library.peer_destroy.argtypes = [ctypes.c_void_p]
        library.peer_pairs.restype = ctypes.c_int64
        library.peer_pairs.argtypes = [ctypes.c_void_p]
        library.peer_lists.restype = None
        library.peer_lists.argtypes = [ctypes.c_void_p] * 4
        library.peer_blend.restype = ctypes.c_int64
        library.peer_blend.argtypes = [ctypes.c_void_p, ctypes.c_int32, *_PICTURE]
        library.peer_peak.restype = ctypes.c_double
        library.peer_peak.argtypes = [ctypes.c_int32, ctypes.c_double]
        library.peer_bandwidth.restype = ctypes.c_double
        library.peer_bandwidth.argtypes = [
            ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
        ]
        self.library = library

    def peak(self, threads: int, seconds: float = 0.1) -> float:
        """Single-precision multiply-adds, 1e9 operations (two each) a second."""
        return self.library.peer_peak(threads, seconds)

    def bandwidth(self, threads: int, data: np.ndarray, *, copy: bool, seconds: float = 0.1) -> float:
        """Bytes read, or read and written by memcpy, 1e9 a second, going through ``data`` again and again."""
        return self.library.peer_bandwidth(threads, int(copy), data.ctypes.data, data.nbytes, seconds)


class NaiveSplatter:
    """The straightforward C++ splatter on one scene, everything before blending done.

    Args:
        scene: A ``guava_splat_scene``; the arrays that it points to must live as long as this.
    """

    def __init__(self, peers: Peers, scene: ctypes.Structure):
        self._library, self._scene = peers.library, scene
        self._handle = peers.library.peer_prepare(ctypes.addressof(scene))
        weakref.finalize(self, peers.library.peer_destroy, self._handle)
        self.pairs = peers.library.peer_pairs(self._handle)

    def blend(self, threads: int, picture: Picture) -> int:
        """Draw; returns the number of contributions, (Gaussian, pixel) weights that are added."""
        return self._library.peer_blend(self._handle, threads, *picture.pointers)

    def lists(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Records (N, 10), starts (tiles + 1,), entries (pairs,): see ``numba_peer.blend``."""
        scene = self._scene
        tiles = -(-scene.width // 8) * -(-scene.height // 8)
        records = np.empty((scene.count, 10), np.float32)
        starts, entries = np.empty(tiles + 1, np.int64), np.empty(self.pairs, np.int32)
        self._library.peer_lists(
            self._handle, records.ctypes.data, starts.ctypes.data, entries.ctypes.data
        )
        return records, starts, entries


class Picture:
    """Memory that a picture is drawn to: ``features`` (H, W, C), ``alpha`` and ``depth`` (H, W)."""

    def __init__(self, height: int, width: int, channels: int):
        self.features = torch.zeros(height, width, channels)
        self.alpha, self.depth = torch.zeros(height, width), torch.zeros(height, width)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.features, self.alpha, self.depth

    @property
    def pointers(self) -> tuple[int, int, int]:
        return tuple(tensor.data_ptr() for tensor in self.tensors)


def agreement(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> dict:
    """How far two pictures of one scene are apart: features (H, W, C), alpha and depth (H, W) of each.

    Returns:
        max_difference at the pixels within ``TOLERANCE``; flipped_pixels beyond it and their
        max_flip; agree: whether those are at most ``FLIPS`` of the pixels and within ``FLIP_TOLERANCE``.
    """
    shape = ours[1].shape
    worst = torch.zeros(shape)
    for a, b in zip(ours, theirs, strict=True):
        difference = (a - b).abs().reshape(*shape, -1)
        if difference.shape[-1]:
            worst = torch.maximum(worst, torch.nan_to_num(difference, nan=torch.inf).amax(-1))
    flipped = worst > TOLERANCE
    count, largest = int(flipped.sum()), float(worst.max())
    return {
        "max_difference": float(worst[~flipped].max()) if count < worst.numel() else largest,
        "flipped_pixels": count,
        "max_flip": largest if count else 0.0,
        "agree": count <= FLIPS * worst.numel() and largest <= FLIP_TOLERANCE,
    }


@lru_cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="guava-peers-")


@lru_cache
def _compiled(isa: str) -> Path:
    """The shared library of ``peers.cpp``, by the compiler and with the flags of the native kernels.

    Raises:
        RuntimeError: It does not compile; with the compiler's message.
    """
    build = _recipe()
    target = build.host_target()
    compiler = build.find_compiler(target)
    out = Path(_folder().name) / f"peers_{isa}{Path(target.library).suffix}"
    command = [
        *compiler.command, *build.compile_flags(compiler, target),
        *build.isa_flags(compiler, target, "baseline" if isa in ("sse2", "neon") else isa),
        f"-I{ROOT / 'native' / 'include'}", "-shared",
        str(ROOT / "benchmarks" / "native" / "peers.cpp"), "-o", str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"peers.cpp was not compiled: {' '.join(command)}\n{done.stderr}")
    return out


def _recipe() -> ModuleType:
    """native/build.py"""
    spec = importlib.util.spec_from_file_location("guava_native_build", ROOT / "native" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
