"""Other people's pickles, read without running anything that is in them.

A pickle is a program. This reader knows the few names that containers and numeric arrays need and refuses all
others before anything of them is looked up. Even numpy's own constructors are not called: arrays are put
together here from checked shapes, plain element types and exactly as many bytes as they need.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from guava.errors import FileFormatError, InputError

_ELEMENT = re.compile(r"[?bB]|[biufc]\d{1,2}|[SUV]\d{0,6}|O8?")
_BROKEN = (
    pickle.UnpicklingError, struct.error, EOFError, AttributeError, ImportError, IndexError, KeyError,
    TypeError, ValueError, OverflowError, RecursionError, MemoryError,
)  # fmt: skip


class _Refused(pickle.UnpicklingError):
    """A name that the reader does not know."""


class _Dtype:
    """Stands in for ``numpy.dtype``: plain numbers, text and objects, no records.

    Attributes:
        plain: The element type that is meant.
    """

    def __init__(self, code: str, align: Any = False, copy: Any = True):
        if isinstance(code, bytes):
            code = code.decode("latin1")
        if not isinstance(code, str) or not _ELEMENT.fullmatch(code):
            raise ValueError(f"element type {code!r}")
        self.plain = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        order, *structure = state[1:5]
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "=") or any(part is not None for part in structure):
            raise ValueError("element type with fields")
        if order in "<>":
            self.plain = self.plain.newbyteorder(order)


class _NDArray:
    """Stands in for ``numpy.ndarray`` as an argument of ``_reconstruct``; it cannot be made or called."""

    def __new__(cls, *_: Any) -> _NDArray:
        raise ValueError("an array outside of its constructor")


class PickledArray(np.ndarray):
    """An array out of a pickle: an ordinary ndarray that checks what it is filled with.

    ``np.asarray`` gives the plain one.
    """

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        super().__setstate__((1, shape, *_checked(shape, dtype, raw, bool(fortran))))


def _checked(shape: Any, dtype: Any, raw: Any, fortran: bool) -> tuple[np.dtype, bool, bytes | list]:
    """The parts of an array, if they fit each other."""
    if type(dtype) is not _Dtype or type(shape) is not tuple or len(shape) > 32:
        raise ValueError("an array without a shape or element type")
    for side in shape:
        if type(side) is not int or side < 0:
            raise ValueError(f"shape {shape!r}")
    element, count = dtype.plain, math.prod(shape)
    if element.hasobject:
        if type(raw) is not list or len(raw) != count:
            raise ValueError("an array of objects of another length")
        return element, fortran, raw
    if type(raw) is str:  # written by Python 2
        raw = raw.encode("latin1")
    if type(raw) not in (bytes, bytearray) or len(raw) != count * element.itemsize:
        raise ValueError("an array with more or fewer bytes than its shape needs")
    return element, fortran, bytes(raw)


def _reconstruct(kind: Any, shape: Any, code: Any) -> PickledArray:
    if kind is not _NDArray:
        raise ValueError("an array of another class")
    return np.empty(0, np.uint8).view(PickledArray)


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> PickledArray:
    if order not in ("C", "F"):
        raise ValueError(f"memory order {order!r}")
    out = _reconstruct(_NDArray, (0,), b"b")
    out.__setstate__((1, shape, dtype, order == "F", raw))
    return out


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    if type(dtype) is _Dtype and dtype.plain.hasobject:
        return raw
    return _frombuffer(raw, dtype, (), "C")[()]


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("an encoding")
    return text.encode("latin1")


def _bytes(*content: Any) -> bytes:
    # bytes(10**12) would be a terabyte of zeros.
    if content and not isinstance(content[0], (bytes, list)):
        raise ValueError("bytes out of something else")
    return bytes(*content[:1])


_MULTIARRAY = {"_reconstruct": _reconstruct, "scalar": _scalar}
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _Dtype,
    **{(f"numpy.{core}.multiarray", n): v for core in ("core", "_core") for n, v in _MULTIARRAY.items()},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (dict, list, tuple, set, frozenset, complex)
    },
    **{(module, "bytes"): _bytes for module in ("builtins", "__builtin__")},
    **{(module, "bytearray"): lambda *c: bytearray(_bytes(*c)) for module in ("builtins", "__builtin__")},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, known: Mapping[tuple[str, str], Any]):
        super().__init__(file, encoding="latin1")
        self._names = known

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def load_pickle(
    path: str | os.PathLike, *, extra: Mapping[tuple[str, str], Callable[..., Any]] | None = None
) -> Any:
    """Read a pickle that holds containers, plain values and numpy arrays (written by numpy 1 or 2, or by
    Python 2).

    Args:
        path: The file.
        extra: Stand-ins for further (module, name) pairs. They are called with whatever the file says, so
            they must check it and do nothing else than hold it.

    Returns:
        What the file holds; arrays are ordinary ones or :class:`PickledArray`.

    Raises:
        InputError: There is no such file, or it may not be read.
        FileFormatError: It is damaged, no pickle, or asks for anything else. Nothing of it was run.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file '{path}'.")
    try:
        with open(path, "rb") as file:
            return _Unpickler(file, {**_KNOWN, **(extra or {})}).load()
    except PermissionError as error:
        raise InputError(f"'{path}' may not be read.", "Check its permissions.") from error
    except _Refused as error:
        if str(error).startswith("torch."):
            raise FileFormatError(
                f"'{path}' holds torch tensors ({error}) inside a pickle, which cannot be read safely.",
                "Write it again with numpy arrays (tensor.numpy()).",
            ) from error
        raise FileFormatError(
            f"'{path}' asks for '{error}', which plain data does not need. Reading that could run code of "
            "whoever made the file, so it was refused; nothing of it was run.",
            "Get the file from where its owners offer it.",
        ) from error
    except _BROKEN as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileFormatError(f"'{path}' is no pickle of plain data, or damaged ({reason[:200]}).") from error
    except OSError as error:
        raise FileFormatError(f"'{path}' cannot be read ({error.strerror}).") from error
