"""Other people's files of tensors, read without running anything that is in them."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from guava.errors import FileFormatError, InputError

_CHUNK = 1 << 24
UNREADABLE = (
    pickle.UnpicklingError, zipfile.BadZipFile, OSError, RuntimeError, ValueError, EOFError, KeyError,
    IndexError, TypeError, AttributeError, AssertionError, OverflowError, MemoryError, struct.error,
)  # fmt: skip
"""What ``torch.load`` raises at damaged files."""


def read_torch_file(path: str | os.PathLike, *, what: str = "checkpoint") -> Any:
    """What ``torch.save`` wrote, with ``weights_only=True``; tensors stay on the disk until they are used.

    Args:
        path: The file.
        what: What it should be, for errors.

    Raises:
        InputError: There is no such file.
        FileFormatError: It is no torch file, is cut off or damaged, or holds more than tensors and plain
            values.
    """
    path = Path(path)
    _check_start(path, what)
    try:
        # Only zip archives, torch's format since 1.6, can stay on the disk.
        archive = _is_archive(path)
        if archive and _is_script(path):
            raise FileFormatError(f"'{path}' is a program (TorchScript), not a {what}.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about dialects of pickle: not the reader's doing
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        if found := re.search(r"(?:GLOBAL|Unsupported global|Unsupported class) ([\w.]+)", str(error)):
            raise FileFormatError(
                f"'{path}' holds more than tensors and plain values ({found[1]}). Reading that could run "
                "code of whoever made the file, so it was refused; nothing of it was run.",
                f"Get the {what} from where its authors offer it.",
            ) from error
        raise FileFormatError(f"'{path}' is no torch file, or damaged.", f"Get the {what} again.") from error
    except OSError as error:
        raise FileFormatError(
            f"'{path}' cannot be read ({error.strerror}); it may be cut off.", f"Get the {what} again."
        ) from error
    except UNREADABLE as error:
        lines = [] if isinstance(error, LookupError) else str(error).strip().splitlines()
        reason = f" ({lines[0][:200]})" if lines else ""
        raise FileFormatError(f"'{path}' is no torch {what}, or damaged{reason}.") from error


def _check_start(path: Path, what: str) -> None:
    """Refuse what is plainly something else, by name."""
    if path.is_dir():
        raise InputError(f"'{path}' is a folder; the {what}'s file itself is needed.")
    if not path.is_file():
        raise InputError(f"There is no file '{path}'.")
    try:
        with open(path, "rb") as handle:
            start = handle.read(64)
    except PermissionError as error:
        raise InputError(f"'{path}' may not be read.", "Check its permissions.") from error
    hint = f"Get the {what} again."
    if not start:
        raise FileFormatError(f"'{path}' is empty.", hint)
    if start.startswith(b"version https://git-lfs"):
        raise FileFormatError(f"'{path}' is a pointer of git-lfs, not the file itself.", "Run: git lfs pull")
    if start.lstrip()[:1] == b"<":
        raise FileFormatError(f"'{path}' is a web page, not a {what}.", "Save the download, not the page.")
    if start.startswith(b"PK\x03\x04") and not _is_archive(path):
        raise FileFormatError(f"'{path}' is cut off: its end is missing.", hint)
    if start[8:9] == b"{":
        raise FileFormatError(f"'{path}' is a safetensors file, not a torch {what}.")


def _is_archive(path: str | os.PathLike) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # an end that speaks of several disks
        return False


def _is_script(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def fingerprint(path: str | os.PathLike, progress: Callable[[int, int], None] | None = None) -> str:
    """SHA-256 of a file.

    Args:
        path: The file.
        progress: Called with (bytes done, bytes in all).
    """
    digest, total, done = hashlib.sha256(), os.path.getsize(path), 0
    with open(path, "rb") as handle:
        while block := handle.read(_CHUNK):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()


def damaged_member(path: str | os.PathLike, progress: Callable[[int, int], None] | None = None) -> str | None:
    """The first part of a torch file whose checksum does not match; None if all do, or if it is of the old
    format, which has none.

    ``torch.load`` itself does not look at the checksums.

    Args:
        path: The file.
        progress: Called with (bytes done, bytes in all).
    """
    if not _is_archive(path):
        return None
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total, done = sum(member.file_size for member in members), 0
        for member in members:
            try:
                with archive.open(member) as handle:
                    while block := handle.read(_CHUNK):
                        done += len(block)
                        if progress is not None:
                            progress(done, total)
            except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
                return f"{member.filename}: {error}"
    return None
