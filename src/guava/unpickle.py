"""Other people's pickles, read without running anything that is in them.

A pickle is a program. This reader knows the few names that containers and numeric arrays need and refuses all
others before anything of them is looked up. Even numpy's own constructors are not called: arrays are put
together here from checked shapes, plain element types and exactly as many bytes as they need.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

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


class _Function:
    """Stands in for a function. A pickle can set attributes of whatever it names, unless that says no."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("attributes of a function")


def _refuse(*_: Any) -> None:
    raise ValueError("an array outside of its constructor")


_NDARRAY = _Function(_refuse)
"""Stands in for ``numpy.ndarray`` as an argument of ``_reconstruct``; it cannot be called."""


class PickledArray(np.ndarray):
    """An array out of a pickle: an ordinary ndarray that checks what it is filled with.

    ``np.asarray`` gives the plain one.
    """

    __slots__ = ()

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        super().__setstate__((1, shape, *_checked(shape, _element(dtype), raw, bool(fortran))))


def _element(dtype: Any) -> np.dtype:
    if type(dtype) is not _Dtype:
        raise ValueError("an array without an element type")
    return dtype.plain


def _checked(shape: Any, element: np.dtype, raw: Any, fortran: bool) -> tuple[np.dtype, bool, bytes | list]:
    """The parts of an array, if they fit each other."""
    if type(shape) is not tuple or len(shape) > 32:
        raise ValueError("an array without a shape")
    for side in shape:
        if type(side) is not int or side < 0:
            raise ValueError(f"shape {shape!r}")
    count = math.prod(shape)
    if element.hasobject:
        if type(raw) is not list or len(raw) != count:
            raise ValueError("an array of objects of another length")
        return element, fortran, raw
    if type(raw) is str:  # written by Python 2
        raw = raw.encode("latin1")
    if type(raw) not in (bytes, bytearray) or len(raw) != count * element.itemsize:
        raise ValueError("an array with more or fewer bytes than its shape needs")
    return element, fortran, bytes(raw)


def build_array(shape: tuple[int, ...], element: np.dtype, fortran: bool, raw: bytes) -> np.ndarray:
    """An array out of exactly as many bytes as its shape needs.

    Raises:
        ValueError: They do not fit, or the elements are objects or records.
    """
    if element.hasobject or element.fields is not None or element.subdtype is not None:
        raise ValueError(f"element type {element}")
    _, fortran, raw = _checked(shape, element, raw, fortran)
    if not element.itemsize:
        return np.zeros(shape, element)
    return np.frombuffer(raw, element).reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> PickledArray:
    if kind is not _NDARRAY:
        raise ValueError("an array of another class")
    return np.empty(0, np.uint8).view(PickledArray)


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> PickledArray:
    if order not in ("C", "F"):
        raise ValueError(f"memory order {order!r}")
    out = _reconstruct(_NDARRAY, (0,), b"b")
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


def _bytearray(*content: Any) -> bytearray:
    return bytearray(_bytes(*content))


_FUNCTIONS = {
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    **{(module, "bytes"): _bytes for module in ("builtins", "__builtin__")},
    **{(module, "bytearray"): _bytearray for module in ("builtins", "__builtin__")},
}
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
    **{name: _Function(function) for name, function in _FUNCTIONS.items()},
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (dict, list, tuple, set, frozenset, complex)
    },
}

Extra = Callable[[str, str], Any]
"""(module, name) -> a stand-in, or None for names that are not known. Stand-ins are called with whatever the
file says and get its states, so they must do nothing else than hold it, and need a ``__setstate__``."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, extra: Extra | None):
        super().__init__(file, encoding="latin1")
        self._extra = extra

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None and self._extra is not None:
            known = self._extra(module, name)
        if known is None:
            raise _Refused(f"{module}.{name}")
        return known


def _scan(data: bytes, most_steps: int) -> None:
    """Refuse what would use up time or memory before the first object is there."""
    for steps, (step, argument, _) in enumerate(pickletools.genops(data)):
        if steps > most_steps:
            raise ValueError("too many steps")
        if step.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > steps:
            raise ValueError("a reference out of order")


def unpickle(
    data: bytes | BinaryIO, what: str, *, extra: Extra | None = None, most_steps: int | None = None
) -> Any:
    """What a pickle of containers, plain values and numpy arrays holds (of numpy 1 or 2, or Python 2).

    Args:
        data: The pickle, or an open file.
        what: What to call it in errors.
        extra: Stand-ins for further names.
        most_steps: Refuse longer programs, and such as would use up memory with few steps, before anything is
            made of them. It takes longer than the reading itself, and needs ``data`` to be bytes.

    Returns:
        The content; arrays are ordinary ones or :class:`PickledArray`.

    Raises:
        FileFormatError: It is damaged, no pickle, or asks for anything else. Nothing of it was run.
    """
    try:
        if most_steps is not None:
            _scan(data, most_steps)
        return _Unpickler(io.BytesIO(data) if isinstance(data, bytes) else data, extra).load()
    except _Refused as error:
        if str(error).startswith("torch."):
            raise FileFormatError(
                f"{what} holds torch tensors ({error}) inside a pickle, which cannot be read safely.",
                "Write it again with numpy arrays (tensor.numpy()).",
            ) from error
        raise FileFormatError(
            f"{what} asks for '{error}', which plain data does not need. Reading that could run code of "
            "whoever made the file, so it was refused; nothing of it was run.",
            "Get the file from where its owners offer it.",
        ) from error
    except _BROKEN as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileFormatError(f"{what} is no pickle of plain data, or damaged ({reason[:200]}).") from error


def load_pickle(path: str | os.PathLike, *, extra: Extra | None = None) -> Any:
    """:func:`unpickle` for a file.

    Raises:
        InputError: There is no such file, or it may not be read.
        FileFormatError: As there.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file '{path}'.")
    try:
        with open(path, "rb") as file:
            return unpickle(file, f"'{path}'", extra=extra)
    except PermissionError as error:
        raise InputError(f"'{path}' may not be read.", "Check its permissions.") from error
    except OSError as error:
        raise FileFormatError(f"'{path}' cannot be read ({error.strerror}).") from error
