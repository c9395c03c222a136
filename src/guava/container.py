"""Guava's one container for files: named tensors (safetensors) with a JSON header.

Avatars, motions and templates are all written through here, so that each of them is atomic on disk, carries
its kind and schema version, and answers a damaged, foreign or newer file with one clear error.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from guava import __version__
from guava.errors import FileFormatError, InputError

_KEY = "guava"
_CHECKSUM = "checksum"


_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write to; ``path`` holds its old content until the block ends, and all of the new one then.

    A symbolic link keeps pointing where it did; a device or pipe is written to directly.

    Raises:
        InputError: The folder does not exist, is not writable, or the disk is full; nothing is left behind.
    """
    path = Path(os.path.realpath(path))
    temporary = None
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with open(path, "wb") as handle:
                yield handle
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
            temporary = handle.name
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        publish(temporary, path)
        temporary = None
    except OSError as error:
        raise InputError(
            f"Cannot write '{path}': {error.strerror or error}.", "Check the folder and the free space."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike, data: bytes | Iterable[bytes | memoryview]) -> None:
    """Write ``data`` so that ``path`` holds either its old content or all of the new one.

    Args:
        path: Where to; see :func:`replacing`.
        data: All of it, or its pieces in order (so that a large file need not be in memory at once).

    Raises:
        InputError: As there.
    """
    with replacing(path) as handle:
        handle.writelines([data] if isinstance(data, bytes) else data)


def publish(temporary: str | os.PathLike, path: str | os.PathLike) -> None:
    """Give a finished temporary file its name in the same folder, and the permissions of a new file."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)
    os.replace(temporary, path)


def write_container(
    path: str | os.PathLike, kind: str, version: int, tensors: dict[str, Tensor], header: dict[str, Any]
) -> None:
    """Write tensors and a JSON header to one file, atomically.

    Args:
        path: Where to.
        kind: What the file is ("avatar", "motion", "template").
        version: Version of that kind's schema; readers refuse newer ones.
        tensors: Flat mapping of names to tensors of any dtype; they may share memory.
        header: JSON-serialisable metadata.
    """
    document = {"kind": kind, "version": version, "software": f"guava-avatar {__version__}", **header}
    document = json.loads(json.dumps(document))
    document[_CHECKSUM] = _checksum(tensors, document)
    write_atomically(path, _safetensors(tensors, {_KEY: json.dumps(document, sort_keys=True)}))


def _bytes(value: Tensor) -> memoryview:
    """A tensor's numbers in order; copied only if they do not lie so."""
    if not value.numel():
        return memoryview(b"")  # numpy's empty arrays have strides that cannot be viewed as bytes
    return memoryview(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Iterable[bytes | memoryview]:
    """The pieces of a safetensors file, one tensor at a time: the library's own writers want all of them in
    memory once more, and refuse tensors that share memory.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name in names:
        value = tensors[name]
        end = start + value.numel() * value.element_size()
        entries[name] = {
            "dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end],
        }  # fmt: skip
        start = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield _bytes(tensors[name])


def _checksum(tensors: Mapping[str, Tensor], header: dict[str, Any]) -> str:
    """SHA-256 over all tensors and the header; safetensors itself would not notice a flipped byte of data."""
    rest = {key: value for key, value in header.items() if key != _CHECKSUM}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def read_container(
    path: str | os.PathLike, kind: str, version: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_container` wrote.

    Args:
        path: The file.
        kind: The kind that is expected.
        version: The newest schema version that the caller understands.

    Returns:
        The tensors by name, and the header.

    Raises:
        InputError: There is no such file.
        FileFormatError: The file is damaged, of another kind, or newer than this software.
    """
    return _read(path, kind, version)


def read_part(
    path: str | os.PathLike, kind: str, version: int, *prefixes: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Only the tensors whose names begin with one of ``prefixes``, and the header.

    The checksum, which is over the whole file, is not verified: callers need one of their own.

    Raises:
        As :func:`read_container`.
    """
    return _read(path, kind, version, prefixes)


def _read(
    path: str | os.PathLike, kind: str, version: int, prefixes: tuple[str, ...] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file '{path}'.")
    try:
        with safe_open(path, framework="pt") as handle:
            text = (handle.metadata() or {}).get(_KEY)
            header = json.loads(text) if text else None
            if not isinstance(header, dict) or "kind" not in header:
                raise FileFormatError(f"'{path}' is not a Guava file.")
            if header["kind"] != kind:
                raise FileFormatError(
                    f"'{path}' is a Guava {header['kind']} file; a {kind} file is needed here."
                )
            if not isinstance(header.get("version"), int) or header["version"] > version:
                raise FileFormatError(
                    f"'{path}' has {kind} format {header.get('version')}, this software reads up to "
                    f"{version}.",
                    "Update with: pip install -U guava-avatar",
                )
            tensors = {
                name: handle.get_tensor(name)
                for name in handle.keys()
                if prefixes is None or name.startswith(prefixes)
            }
    except PermissionError as error:
        raise InputError(f"'{path}' may not be read.", "Check its permissions.") from error
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise FileFormatError(f"'{path}' is damaged or not a Guava file ({error}).") from error
    if prefixes is None and header.get(_CHECKSUM) != _checksum(tensors, header):
        raise FileFormatError(f"'{path}' is damaged: its checksum does not match.", "Copy it again.")
    return tensors, header
