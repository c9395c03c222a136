"""Pictures in the LMDB folders that EHM-Tracker writes. Nothing is ever written to them."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from guava.errors import FileFormatError, InputError, MissingDependencyError

_MAX_PIXELS = 150_000_000
_JPEG, _PNG, _ZIP, _PICKLE = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x80"

# LMDB refuses to open an environment twice in one process, so all readers of a folder share it. A child made
# by fork inherits its parent's, which must not be used there: it is closed and opened anew.
_environments: dict[str, tuple[int, Any]] = {}
_lock = threading.Lock()


def _environment(folder: str) -> Any:
    with _lock:
        known = _environments.get(folder)
        if known is not None:
            if known[0] == os.getpid():
                return known[1]
            known[1].close()
        try:
            import lmdb
        except ImportError as error:
            raise MissingDependencyError("lmdb", "lmdb", "Reading the authors' pictures") from error
        try:
            opened = lmdb.open(folder, readonly=True, lock=False, readahead=False, create=False, max_dbs=0)
        except (lmdb.Error, OSError) as error:
            raise FileFormatError(f"'{folder}' is no LMDB folder, or damaged ({error}).") from error
        # LMDB maps the file into memory: reading beyond its end would kill the process.
        needed = (opened.info()["last_pgno"] + 1) * opened.stat()["psize"]
        size = os.path.getsize(os.path.join(folder, "data.mdb"))
        if size < needed:
            opened.close()
            raise FileFormatError(f"'{folder}/data.mdb' is cut off: {size:,} of {needed:,} bytes are there.")
        _environments[folder] = (os.getpid(), opened)
        return opened


class ReleaseImages:
    """The pictures of one ``img_lmdb`` folder, opened read-only and without a lock at the first use in every
    process; it can be pickled.

    Args:
        folder: With ``data.mdb``.

    Raises:
        InputError: There is no such folder, or it has no ``data.mdb``.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.path.realpath(folder)
        if not (Path(self.folder) / "data.mdb").is_file():
            raise InputError(f"'{folder}' is no LMDB folder: it has no 'data.mdb'.")

    def get(self, key: str) -> bytes | None:
        """The stored bytes; None if there is no such key.

        Raises:
            MissingDependencyError: lmdb is not installed.
            FileFormatError: The folder is damaged.
        """
        environment = _environment(self.folder)
        import lmdb

        try:
            with environment.begin(buffers=False) as transaction:
                return transaction.get(key.encode())
        except lmdb.Error as error:
            raise FileFormatError(f"'{self.folder}' is damaged at '{key}' ({error}).") from error

    def __len__(self) -> int:
        """Number of entries."""
        return _environment(self.folder).stat()["entries"]

    def read(self, key: str) -> np.ndarray:
        """A picture, (3, H, W) uint8 RGB.

        Raises:
            FileFormatError: There is none of that name, or it is damaged; the message names it.
        """
        data = self.get(key)
        if data is None:
            raise FileFormatError(f"'{self.folder}' has no picture '{key}'.")
        return decode_picture(data, key)

    def size(self, key: str) -> tuple[int, int] | None:
        """(width, height) of a picture, without decoding it; None if there is none, or it is damaged."""
        data = self.get(key)
        if data is None or not data.startswith((_JPEG, _PNG)):
            return None
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
                return picture.size
        except (OSError, ValueError, SyntaxError):
            return None

    def close(self) -> None:
        """Close the folder in this process; the next use opens it again."""
        with _lock:
            known = _environments.pop(self.folder, None)
        if known is not None:
            known[1].close()


def decode_picture(data: bytes, key: str) -> np.ndarray:
    """An entry's bytes -> (3, H, W) uint8 RGB.

    JPEG and PNG are the format; old sets hold a torch tensor instead, which is read with ``weights_only``.

    Args:
        data: The bytes.
        key: Its name, for errors.

    Raises:
        FileFormatError: The bytes are none of these, or damaged.
    """
    if data.startswith((_JPEG, _PNG)):
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
                if picture.width * picture.height > _MAX_PIXELS:
                    raise FileFormatError(f"The picture '{key}' is too large ({picture.size}).")
                pixels = np.asarray(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise FileFormatError(f"The picture '{key}' is damaged ({error}).") from error
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    if data.startswith((_ZIP, _PICKLE)):
        return _decode_tensor(data, key)
    raise FileFormatError(f"The picture '{key}' is neither JPEG nor PNG nor a torch tensor, or damaged.")


def _decode_tensor(data: bytes, key: str) -> np.ndarray:
    import torch

    from guava.model.torch_file import UNREADABLE

    try:
        tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise FileFormatError(
            f"The picture '{key}' is no plain torch tensor, or damaged; nothing of it was run."
        ) from error
    if (
        not isinstance(tensor, torch.Tensor)
        or tensor.ndim != 3
        or tensor.shape[0] not in (1, 3)
        or tensor.dtype != torch.uint8
        or tensor.is_meta
        or tensor.numel() > 3 * _MAX_PIXELS
    ):
        raise FileFormatError(f"The picture '{key}' is not a tensor of (3, H, W) bytes.")
    return np.ascontiguousarray(tensor.expand(3, -1, -1).numpy())
