"""Reading the body models' pickles and numpy files without running what is in them.

The owners distribute pickles, some written by Python 2 with chumpy and old scipy. What plain data needs is
:mod:`guava.unpickle`'s; every further name that such a file may use stands for a small class of this module
that only stores what it is given. What it comes to is put together afterwards, from checked parts. No scipy,
torch or chumpy code runs on a file's behalf.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from guava.errors import FileFormatError, InputError
from guava.unpickle import build_array
from guava.unpickle import unpickle as unpickle_plain

MAX_BYTES = 2 * 1024**3
"""Larger files are refused; SMPL-X with all its directions has 0.3 GB."""
MAX_ITEMS = 2_000_000
"""Most objects that one pickle may hold, and a tenth of the steps that it may take."""


class _Refused(Exception):
    """The file does something that no body model needs."""


class _Stored:
    """An object of which only the state is kept. Subclasses say what it comes to."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def value(self, resolve) -> Any:
        raise _Refused(f"an object of {type(self).__name__}")


class _Sparse(_Stored):
    """``scipy.sparse`` matrices by columns or rows, as dense arrays."""

    by_columns = True

    def value(self, resolve) -> np.ndarray:
        state = resolve(self.state)
        if not isinstance(state, dict):
            raise _Refused("a sparse matrix without content")
        shape = state.get("_shape", state.get("shape"))
        data, indices, pointer = (np.asarray(state.get(k)) for k in ("data", "indices", "indptr"))
        if shape is None or len(shape) != 2 or data.ndim != 1 or indices.shape != data.shape:
            raise _Refused("an incomplete sparse matrix")
        rows, columns = (int(n) for n in shape)
        major = columns if self.by_columns else rows
        minor = rows if self.by_columns else columns
        counts = np.diff(pointer)
        if rows * columns * 8 > MAX_BYTES or min(rows, columns) < 0:
            raise _Refused("a sparse matrix of this size")
        if len(counts) != major or (counts < 0).any() or pointer[0] != 0 or pointer[-1] != len(data):
            raise _Refused("a sparse matrix whose parts do not fit")
        if len(indices) and not 0 <= indices.min() <= indices.max() < minor:
            raise _Refused("a sparse matrix with entries outside of it")
        dense = np.zeros((major, minor), data.dtype)
        np.add.at(dense, (np.repeat(np.arange(major), counts), indices), data)
        return dense.T if self.by_columns else dense


class _SparseRows(_Sparse):
    by_columns = False


class Chumpy(_Stored):
    """An object of chumpy: its array if it has one (``Ch``), or a choice of another's entries (``Select``).

    Other ones are formulas; they stay what they are here, and are an error where an array is needed.
    """

    def value(self, resolve) -> Any:
        state = self.state if isinstance(self.state, dict) else {}
        if "x" in state:
            return np.asarray(resolve(state["x"]))
        if "a" in state and "idxs" in state:
            entries = np.asarray(resolve(state["a"])).ravel()
            picked = np.asarray(resolve(state["idxs"]))
            whole = picked.dtype.kind in "iu" and picked.size > 0
            if whole and 0 <= picked.min() <= picked.max() < entries.size:
                shape = resolve(state.get("preferred_shape"))
                out = entries[picked]
                return out.reshape(shape) if shape is not None else out
        return self


class _TorchStorage(_Stored):
    """``torch.storage._load_from_bytes(data)``."""

    def value(self, resolve) -> Any:
        import torch

        (data,) = self.arguments
        if isinstance(data, str):
            data = data.encode("latin1")
        try:
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise _Refused(f"a torch array that cannot be read ({error})") from error
        if isinstance(found, torch.Tensor):
            return found.numpy()
        return torch.tensor([], dtype=found.dtype).set_(found).numpy()


class _TorchTensor(_Stored):
    """``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)``."""

    def value(self, resolve) -> np.ndarray:
        storage, offset, size, stride = (resolve(a) for a in self.arguments[:4])
        if not isinstance(storage, np.ndarray) or storage.ndim != 1 or len(size) != len(stride):
            raise _Refused("a torch array without content")
        if any(n < 0 for n in (*size, *stride, offset)) or np.prod(size, dtype=object) > MAX_BYTES // 8:
            raise _Refused("a torch array of this size")
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if 0 not in size and last >= len(storage):
            raise _Refused("a torch array that reaches beyond its data")
        index = np.full(size, offset, np.int64)
        for axis, (n, step) in enumerate(zip(size, stride, strict=True)):
            index += (np.arange(n) * step).reshape([-1 if a == axis else 1 for a in range(len(size))])
        return storage[index]


# A pickle may set attributes of what it names, so that only classes with a __setstate__ can be named.


class _Object(_Stored):
    """Stands for ``object`` in Python 2's ``copy_reg._reconstructor(class, object, None)``."""


class _Reconstructed(_Stored):
    """``copy_reg._reconstructor``: an empty object of the class that is named."""

    def __new__(cls, kind: Any, base: Any, state: Any):
        if not (isinstance(kind, type) and issubclass(kind, _Stored)) or base is not _Object:
            raise _Refused("an object of an unknown class")
        return kind()


_ALLOWED: dict[tuple[str, str], Any] = {
    ("copy_reg", "_reconstructor"): _Reconstructed,
    ("copyreg", "_reconstructor"): _Reconstructed,
    ("__builtin__", "object"): _Object,
    ("builtins", "object"): _Object,
    ("torch._utils", "_rebuild_tensor_v2"): _TorchTensor,
    ("torch.storage", "_load_from_bytes"): _TorchStorage,
}
for _layout, _stand_in in (("csc", _Sparse), ("csr", _SparseRows)):
    for _module in (f"scipy.sparse.{_layout}", f"scipy.sparse._{_layout}", "scipy.sparse"):
        for _name in (f"{_layout}_matrix", f"{_layout}_array"):
            _ALLOWED[_module, _name] = _stand_in


def _stand_in_of(module: str, name: str) -> Any:
    """The names above; everything of chumpy is a :class:`Chumpy`."""
    return Chumpy if module.partition(".")[0] == "chumpy" else _ALLOWED.get((module, name))


class _Resolver:
    """Replaces what was stored by what it comes to, each object once."""

    def __init__(self) -> None:
        self.done: dict[int, Any] = {}
        self.kept: list[Any] = []  # so that no id() is used twice
        self.open: set[int] = set()

    def __call__(self, item: Any) -> Any:
        if not isinstance(item, dict | list | tuple | np.ndarray | _Stored):
            return item
        if isinstance(item, np.ndarray) and not item.dtype.hasobject:
            return np.asarray(item)
        key = id(item)
        if key in self.done:
            return self.done[key]
        if key in self.open:
            raise _Refused("an object that contains itself")
        if len(self.kept) > MAX_ITEMS:
            raise _Refused("too many objects")
        self.open.add(key)
        self.kept.append(item)
        if isinstance(item, _Stored):
            out = item.value(self)
        elif isinstance(item, dict):
            out = {k: self(v) for k, v in item.items()}
        elif isinstance(item, np.ndarray):
            out = np.empty(item.shape, object)
            for index, value in np.ndenumerate(item):
                out[index] = self(value)
        else:
            out = type(item)(self(v) for v in item)
        self.open.discard(key)
        self.done[key] = out
        return out


def unpickle(data: bytes, what: str) -> Any:
    """What a pickle of plain objects, numpy arrays, sparse matrices, chumpy and torch arrays holds.

    Sparse matrices come back dense, chumpy and torch arrays as numpy arrays, Python 2's byte strings as text.

    Args:
        data: The pickle.
        what: What to call it in errors.

    Raises:
        FileFormatError: It is damaged, or asks for anything else.
    """
    try:
        return _Resolver()(unpickle_plain(data, what, extra=_stand_in_of, most_steps=10 * MAX_ITEMS))
    except _Refused as refused:
        raise FileFormatError(
            f"{what} was not read: it holds what no body model needs ({refused}).",
            "Nothing in it was run. Download the file from its owner again.",
        ) from refused
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError, RecursionError) as error:
        raise FileFormatError(
            f"{what} is damaged or not a pickle ({type(error).__name__}: {error}).", "Download it again."
        ) from error


def read_npy(data: bytes, what: str) -> Any:
    """A ``.npy`` file; one that holds a single object gives that object.

    Raises:
        FileFormatError: It is damaged, or holds objects that :func:`unpickle` refuses.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        first = version == (1, 0)
        header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, fortran, kind = header(stream)
        if not kind.hasobject:
            return build_array(shape, kind, fortran, data[stream.tell() :])
    except (ValueError, TypeError, EOFError, SyntaxError, OverflowError) as error:
        raise FileFormatError(
            f"{what} is damaged or no numpy file ({error}).", "Download it again."
        ) from error
    found = unpickle(data[stream.tell() :], what)
    return found.item() if isinstance(found, np.ndarray) and found.shape == () else found


class NpzFile(Mapping):
    """A ``.npz`` file whose arrays are read when they are asked for."""

    def __init__(self, data: bytes, what: str):
        self.what = what
        try:
            self.archive = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise FileFormatError(f"{what} is damaged ({error}).", "Download it again.") from error
        self.members = {
            info.filename.removesuffix(".npy"): info
            for info in self.archive.infolist()
            if info.filename.endswith(".npy")
        }

    def __getitem__(self, key: str) -> Any:
        info = self.members[key]
        if info.file_size > MAX_BYTES:
            raise FileFormatError(f"'{key}' in {self.what} is too large to be part of a body model.")
        try:
            data = self.archive.read(info)
        except (zipfile.BadZipFile, zipfile.zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise FileFormatError(f"{self.what} is damaged ({error}).", "Download it again.") from error
        return read_npy(data, f"'{key}' in {self.what}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


def read_arrays(path: str | os.PathLike) -> Any:
    """A ``.npz``, ``.npy`` or ``.pkl`` file, recognised by its content.

    Returns:
        A mapping of names to arrays, or whatever else the file holds.

    Raises:
        InputError: There is no such file, or it may not be read.
        FileFormatError: It is damaged, too large, or holds what it should not.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file '{path}'.")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FileFormatError(f"'{path}' is too large to be a body model.")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    what = f"'{path}'"
    if data[:4] == b"PK\x03\x04":
        return NpzFile(data, what)
    if data[:6] == b"\x93NUMPY":
        return read_npy(data, what)
    if data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or path.suffix == ".pkl":
        return unpickle(data, what)
    raise FileFormatError(f"'{path}' is neither a numpy file nor a pickle.")
