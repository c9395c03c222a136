"""Detections kept on disk while a long clip is looked at, so that an interrupted job goes on where it was.

A folder beside the result holds chunks of frames as plain arrays, and a key: the video's digest, the detector
and the version. Nothing of it is trusted that does not fit the key, and nobody needs it once the result is
written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from guava import __version__
from guava.errors import InputError
from guava.tracking.detectors.base import FrameDetections, PersonDetection, PointSet

_SCHEMA = 1
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
    """Chunks of seen frames in a folder.

    Args:
        folder: Made when first needed; its own parent must exist.
        sha256: Of the video's bytes.
        detector: Whatever tells two detectors and their settings apart.
    """

    def __init__(self, folder: str | os.PathLike, sha256: str, detector: str):
        self.folder = Path(folder)
        self._key = {"schema": _SCHEMA, "version": __version__, "sha256": sha256, "detector": detector}
        self._waiting: list[SeenFrame] = []
        self._chunks = 0

    def load(self) -> list[SeenFrame]:
        """The frames of an earlier job on the same video; those of any other job are deleted."""
        self._waiting, self._chunks = [], 0
        try:
            fits = json.loads((self.folder / "key.json").read_text()) == self._key
        except (OSError, ValueError):
            fits = False
        if not fits:
            self.remove()
            return []
        frames: list[SeenFrame] = []
        while (path := self._path(self._chunks)).is_file():
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    frames += _unpack(dict(arrays))
            except (OSError, ValueError, KeyError, EOFError, BadZipFile):
                path.unlink()  # cut short; its frames are looked at again
                break
            self._chunks += 1
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
        try:
            if not self._chunks:
                self.folder.mkdir(exist_ok=True)
                (self.folder / "key.json").write_text(json.dumps(self._key))
            path = self._path(self._chunks)
            temporary = path.with_suffix(".part")
            with open(temporary, "wb") as handle:
                np.savez(handle, **_pack(self._waiting))
            os.replace(temporary, path)
        except OSError as error:
            raise InputError(
                f"Cannot keep detections in '{self.folder}': {error.strerror or error}.",
                "Check the folder and the free space.",
            ) from error
        self._chunks += 1
        self._waiting = []

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06d}.npz"


def _pack(frames: Sequence[SeenFrame]) -> dict[str, np.ndarray]:
    people = [(n, f.found.person) for n, f in enumerate(frames) if f.found.person is not None]
    looks = [(n, f.look) for n, f in enumerate(frames) if f.look is not None]
    arrays = {
        "people": np.array([f.found.people for f in frames]),
        "shot": np.array([f.shot for f in frames]),
        "index": np.array([f.index for f in frames]),
        "time": np.array([f.time for f in frames]),
        "person.frames": np.array([n for n, _ in people], dtype=np.int64),
        "person.box": np.array([p.box for _, p in people]),
        "person.score": np.array([p.score for _, p in people]),
        "look.frames": np.array([n for n, _ in looks], dtype=np.int64),
        "look.values": np.array([look for _, look in looks]),
    }
    for part in _PARTS:
        sets = [(n, points) for n, p in people if (points := getattr(p, part)) is not None]
        arrays[f"{part}.frames"] = np.array([n for n, _ in sets], dtype=np.int64)
        arrays[f"{part}.layout"] = np.array([s.layout for _, s in sets], dtype=str)
        for name in ("points", "confidence", "depth", "world"):
            known = [(k, values) for k, (_, s) in enumerate(sets) if (values := getattr(s, name)) is not None]
            arrays[f"{part}.{name}"] = np.array([values for _, values in known])
            arrays[f"{part}.{name}.sets"] = np.array([k for k, _ in known], dtype=np.int64)
    return arrays


def _unpack(arrays: dict[str, np.ndarray]) -> list[SeenFrame]:
    sets: dict[str, dict[int, PointSet]] = {}
    for part in _PARTS:
        columns = {}
        for name in ("points", "confidence", "depth", "world"):
            at = arrays[f"{part}.{name}.sets"].tolist()
            columns[name] = dict(zip(at, arrays[f"{part}.{name}"], strict=True))
        sets[part] = {
            n: PointSet(
                str(arrays[f"{part}.layout"][k]), columns["points"][k], columns["confidence"][k],
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
