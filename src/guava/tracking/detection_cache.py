"""Detections kept on disk while a long clip is looked at, so that an interrupted job goes on where it was.

A folder beside the result holds chunks of frames, each with a key: the video's digest, the detector and the
version. Nothing that is damaged or does not fit the key is used, and nobody needs any of it once the result
is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guava import __version__
from guava.container import read_container, write_container
from guava.errors import FileFormatError, InputError
from guava.tracking.detectors.base import FrameDetections, PersonDetection, PointSet

_KIND, _VERSION, _SUFFIX = "detections", 1, ".detections"
_PARTS = ("face", "body", "left_hand", "right_hand")
_FRAMES = 100  # in a chunk


@dataclass(frozen=True)
class SeenFrame:
    """What following a person keeps of one frame.

    Attributes:
        found: Detections, without a mask.
        look: (3, 24) colours of face, hair and clothes; None without a face.
        shot: Number of its shot.
        index: Number in the file; time: seconds from the first frame.
    """

    found: FrameDetections
    look: np.ndarray | None
    shot: int
    index: int
    time: float


class DetectionCache:
    """Chunks of seen frames in a folder. Files of others in it are left alone.

    Args:
        folder: Made when first needed; its own parent must exist.
        sha256: Of the video's bytes.
        detector: Whatever tells two detectors and their settings apart.
    """

    def __init__(self, folder: str | os.PathLike, sha256: str, detector: str):
        self.folder = Path(folder)
        self._key = {"guava": __version__, "sha256": sha256, "detector": detector}
        self._waiting: list[SeenFrame] = []
        self._chunks = 0

    def load(self) -> list[SeenFrame]:
        """The frames of an earlier job on the same video; those of any other job, and what follows a damaged
        chunk, are deleted."""
        self._waiting, self._chunks = [], 0
        frames: list[SeenFrame] = []
        while (path := self._path(self._chunks)).is_file():
            try:
                tensors, header = read_container(path, _KIND, _VERSION)
                if header["key"] != self._key:
                    break
                # Copies: tensors of a file are mapped, and the file is to be deleted some time.
                frames += _unpack({name: tensor.numpy().copy() for name, tensor in tensors.items()}, header)
            except (FileFormatError, InputError, KeyError, IndexError, TypeError, ValueError):
                break  # its frames are looked at again
            self._chunks += 1
        remove_detections(self.folder, self._chunks)
        return frames

    def add(self, frame: SeenFrame) -> None:
        """Keep one more frame; every hundredth writes a chunk."""
        self._waiting.append(frame)
        if len(self._waiting) == _FRAMES:
            self.flush()

    def flush(self) -> None:
        """Write what is not yet on disk.

        Raises:
            InputError: The folder cannot be written to, or the disk is full.
        """
        if not self._waiting:
            return
        arrays, layouts = _pack(self._waiting)
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"Cannot keep detections in '{self.folder}': {error.strerror or error}.",
                "Check the folder and the free space.",
            ) from error
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        header = {"key": self._key, "layouts": layouts}
        write_container(self._path(self._chunks), _KIND, _VERSION, tensors, header)
        self._chunks += 1
        self._waiting = []

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06d}{_SUFFIX}"


def remove_detections(folder: str | os.PathLike, first: int = 0) -> None:
    """Delete the chunks of a :class:`DetectionCache` from number ``first`` on; without any, what killed jobs
    left too, and the folder, unless there is something else in it."""
    folder = Path(folder)
    for path in folder.glob(f"[0-9]*{_SUFFIX}"):
        if path.stem.isdecimal() and int(path.stem) >= first:
            path.unlink(missing_ok=True)
    if first:
        return
    for path in folder.glob(f".[0-9]*{_SUFFIX}.*"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it, or it was never made
        folder.rmdir()


def _pack(frames: Sequence[SeenFrame]) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Frames as arrays, and the layout of every point set."""
    people = [(n, f.found.person) for n, f in enumerate(frames) if f.found.person is not None]
    looks = [(n, f.look) for n, f in enumerate(frames) if f.look is not None]
    arrays = {
        "people": np.array([f.found.people for f in frames], dtype=np.int64),
        "shot": np.array([f.shot for f in frames], dtype=np.int64),
        "index": np.array([f.index for f in frames], dtype=np.int64),
        "time": np.array([f.time for f in frames], dtype=np.float64),
        "person.frames": np.array([n for n, _ in people], dtype=np.int64),
        "person.box": np.array([p.box for _, p in people]),
        "person.score": np.array([p.score for _, p in people]),
        "look.frames": np.array([n for n, _ in looks], dtype=np.int64),
        "look.values": np.array([look for _, look in looks]),
    }
    layouts: dict[str, list[str]] = {}
    for part in _PARTS:
        sets = [(n, points) for n, p in people if (points := getattr(p, part)) is not None]
        arrays[f"{part}.frames"] = np.array([n for n, _ in sets], dtype=np.int64)
        layouts[part] = [s.layout for _, s in sets]
        for name in ("points", "confidence", "depth", "world"):
            known = [(k, values) for k, (_, s) in enumerate(sets) if (values := getattr(s, name)) is not None]
            arrays[f"{part}.{name}"] = np.array([values for _, values in known])
            arrays[f"{part}.{name}.sets"] = np.array([k for k, _ in known], dtype=np.int64)
    return arrays, layouts


def _unpack(arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> list[SeenFrame]:
    sets: dict[str, dict[int, PointSet]] = {}
    for part in _PARTS:
        columns = {}
        for name in ("points", "confidence", "depth", "world"):
            at = arrays[f"{part}.{name}.sets"].tolist()
            columns[name] = dict(zip(at, arrays[f"{part}.{name}"], strict=True))
        sets[part] = {
            n: PointSet(
                str(header["layouts"][part][k]), columns["points"][k], columns["confidence"][k],
                columns["depth"].get(k), columns["world"].get(k),
            )
            for k, n in enumerate(arrays[f"{part}.frames"].tolist())
        }  # fmt: skip
    people = {
        n: PersonDetection(
            arrays["person.box"][k], float(arrays["person.score"][k]), *(sets[p].get(n) for p in _PARTS)
        )
        for k, n in enumerate(arrays["person.frames"].tolist())
    }
    looks = dict(zip(arrays["look.frames"].tolist(), arrays["look.values"], strict=True))
    rows = zip(*(arrays[name].tolist() for name in ("people", "shot", "index", "time")), strict=True)
    return [
        SeenFrame(FrameDetections(people.get(n), count, None), looks.get(n), shot, index, time)
        for n, (count, shot, index, time) in enumerate(rows)
    ]
