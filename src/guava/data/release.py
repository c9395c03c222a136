"""Folders that the authors' EHM-Tracker writes (their pickles, JSON files and LMDB), read and checked.

Two layouts: one clip (or picture) a folder, and the combined training set, whose pickles and LMDB keys have a
clip level. Nothing is written, and no pickle can run anything (:mod:`guava.unpickle`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from guava.data.images import ReleaseImages
from guava.errors import FileFormatError, InputError
from guava.photo import Photo
from guava.unpickle import load_pickle

TRACKING, IDENTITY, BASE = "optim_tracking_ehm.pkl", "id_share_params.pkl", "base_tracking.pkl"
VIDEOS, SPLITS, TEST_SPLIT = "videos_info.json", "dataset_frames.json", "testing_split.json"
CROP_SIZE, PART_SIZE = 1024, 512
PARTS = ("head", "left_hand", "right_hand")
POINTS = 134

_FIELDS = {
    "smplx_coeffs": {
        "global_pose": 3,
        "body_pose": 63,
        "left_hand_pose": 45,
        "right_hand_pose": 45,
        "exp": 50,
        "camera_RT_params": 12,
    },
    "flame_coeffs": {"expression_params": 50, "jaw_params": 3, "eye_pose_params": 6, "eyelid_params": 2},
    "body_crop": {"M_o2c-hd": 9},
}
_IDENTITY_FIELDS = {
    "smplx_shape": 200,
    "flame_shape": 300,
    "joints_offset": 165,
    "head_scale": 3,
    "hand_scale": 3,
}
_NOT_A_ROTATION = 1e-2


@dataclass(frozen=True)
class Damage:
    """Something that could not be used.

    Attributes:
        where: "clip", "clip/frame" or a key of the LMDB.
        reason: What is wrong with it.
    """

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where} ({self.reason})"


def tell(damage: Sequence[Damage], most: int = 3) -> str:
    """The first few, for a sentence."""
    return "; ".join(str(one) for one in damage[:most]) + ("; ..." if len(damage) > most else "")


@dataclass(frozen=True)
class ReleaseIdentity:
    """A clip's entry of ``id_share_params.pkl``, float32.

    Attributes:
        smplx_shape: (200,).
        flame_shape: (300,).
        joints_offset: (55, 3) metres.
        head_scale, hand_scale: (3,) factors.
    """

    smplx_shape: np.ndarray
    flame_shape: np.ndarray
    joints_offset: np.ndarray
    head_scale: np.ndarray
    hand_scale: np.ndarray


@dataclass(frozen=True)
class ReleaseClip:
    """T tracked frames of one clip; damaged ones stay in, with ``usable`` False and NaN values.

    Attributes:
        name: Of the clip.
        frames: T keys in order ("frame_000000"). The tracker renumbers the frames that it keeps: these are
            not numbers of the video's frames.
        usable: (T,) bool.
        identity: Shared by all frames.
        values: (T, n) float32 by the release's own names: axis-angle for poses, "exp" and "expression_params"
            50, "camera_RT_params" 12 (3 x 4 row-major).
        body_crop: (T, 3, 3) ``M_o2c-hd``: pixels of the original picture -> of the 1024 crop.
        part_crops: (T, 3, 3, 3) ``M_c2o`` of head, left and right hand: pixels of the 512 part crop -> of the
            original picture; NaN where not recorded.
        keypoints: (T, 134, 2) DWPose points in pixels of the 1024 crop, or None where not recorded. Where
            the score is below 0.3 they are no coordinates.
        scores: (T, 134), or None.
        damage: What is wrong with frames that are not usable.
        images: The pictures, or None.
        prefix: What the LMDB's keys of this clip start with ("" or "clip/").
    """

    name: str
    frames: tuple[str, ...]
    usable: np.ndarray
    identity: ReleaseIdentity
    values: dict[str, np.ndarray]
    body_crop: np.ndarray
    part_crops: np.ndarray
    keypoints: np.ndarray | None
    scores: np.ndarray | None
    damage: tuple[Damage, ...] = ()
    images: ReleaseImages | None = None
    prefix: str = ""

    def __len__(self) -> int:
        return len(self.frames)

    def __contains__(self, frame: object) -> bool:
        return frame in self._rows

    def row(self, frame: str) -> int:
        """Index of a frame.

        Raises:
            InputError: The clip has no such frame.
        """
        try:
            return self._rows[frame]
        except KeyError:
            raise InputError(f"The clip '{self.name}' has no frame '{frame}'.") from None

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {frame: row for row, frame in enumerate(self.frames)}

    def key(self, frame: str, picture: str) -> str:
        """Name of a picture in the LMDB."""
        return f"{self.prefix}{frame}/{picture}"

    def image(self, frame: str) -> np.ndarray:
        """``body_image``: (3, 1024, 1024) uint8 RGB, not masked.

        Raises:
            InputError: There is no LMDB.
            FileFormatError: The picture is missing or damaged.
        """
        return self._images().read(self.key(frame, "body_image"))

    def mask(self, frame: str) -> np.ndarray:
        """``body_mask``: (1024, 1024) uint8, the person's alpha times 255. Raises as :meth:`image`."""
        return self._images().read(self.key(frame, "body_mask"))[0]

    def photo(self, frame: str) -> Photo:
        """The 1024 crop with its mask as a photo, to reconstruct an avatar from. Raises as :meth:`image`."""
        pixels, alpha = self.image(frame).transpose(1, 2, 0).copy(), self.mask(frame)
        pixels[alpha == 0] = 255
        digest = sha256(pixels.tobytes() + alpha.tobytes()).hexdigest()
        return Photo(pixels, alpha, digest, f"{self.name}/{frame}")

    def original_size(self, frame: str) -> tuple[int, int] | None:
        """(width, height) of the picture that the crop was taken from; None where that is not stored."""
        return None if self.images is None else self.images.size(self.key(frame, "ori_image"))

    def _images(self) -> ReleaseImages:
        if self.images is None:
            raise InputError(
                f"The clip '{self.name}' has no pictures.", "Its folder needs 'img_lmdb' with 'data.mdb'."
            )
        return self.images


@dataclass(frozen=True)
class ReleaseDataset:
    """An opened folder.

    Attributes:
        path: The folder.
        single: Whether it holds one clip, without a clip level in pickles and keys.
        clip_names: In order.
        splits: "train", "valid" (``dataset_frames.json``) and "test" (``testing_split.json``: the last
            frames of each clip) where recorded: (clip, frame) pairs as listed, unchecked.
        images: The pictures, or None where there is no ``img_lmdb``.
        damage: What is wrong with the list of clips; :meth:`check` looks at everything.
    """

    path: Path
    single: bool
    clip_names: tuple[str, ...]
    splits: dict[str, tuple[tuple[str, str], ...]]
    images: ReleaseImages | None
    damage: tuple[Damage, ...]
    _tracking: dict[str, Any] = field(repr=False)
    _identities: dict[str, Any] = field(repr=False)
    _listed: dict[str, tuple[str, ...]] = field(repr=False)
    _clips: dict[str, ReleaseClip] = field(default_factory=dict, repr=False)

    def frames_of(self, clip: str) -> tuple[str, ...]:
        """Keys of a clip's frames in order, unchecked.

        Raises:
            InputError: There is no such clip.
        """
        if clip not in self.clip_names:
            names = ", ".join(self.clip_names[:8]) + (", ..." if len(self.clip_names) > 8 else "")
            raise InputError(f"'{self.path}' has no clip '{clip}'.", f"It has: {names}.")
        if clip in self._listed:
            return self._listed[clip]
        frames = self._tracking.get(clip)
        return tuple(sorted(str(key) for key in frames)) if isinstance(frames, dict) else ()

    def clip(self, name: str | None = None) -> ReleaseClip:
        """A clip, checked frame by frame.

        Args:
            name: May be left out where there is only one.

        Raises:
            InputError: There is no such clip, or there are several.
            FileFormatError: Its identity parameters are missing or damaged, or it has no frames.
        """
        if name is None:
            if len(self.clip_names) != 1:
                raise InputError(
                    f"'{self.path}' has {len(self.clip_names)} clips.",
                    f"Name one, for instance '{self.clip_names[0]}'." if self.clip_names else "",
                )
            name = self.clip_names[0]
        if name not in self._clips:
            self._clips[name] = clip = self._parse(name)
            # Ten times as large as the arrays that it has become.
            self._listed[name] = clip.frames
            self._tracking[name] = {}
        return self._clips[name]

    def check(
        self, *, decode: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> tuple[Damage, ...]:
        """Everything that cannot be used: clips, frames, entries of splits, pictures.

        Args:
            decode: Also decode every picture and mask; otherwise only see whether they are there.
            progress: Called with (clips done, clips in all).
        """
        found = list(self.damage)
        for number, name in enumerate(self.clip_names):
            try:
                clip = self.clip(name)
            except FileFormatError as error:
                if all(damage.where != name for damage in found):
                    found.append(Damage(name, error.message))
                continue
            found += clip.damage
            if self.images is not None:
                found += _check_pictures(clip, decode)
            if progress is not None:
                progress(number + 1, len(self.clip_names))
        tracked = {name: set(self.frames_of(name)) for name in self.clip_names}
        for split, entries in self.splits.items():
            for name, frame in entries:
                if frame not in tracked.get(name, ()):
                    found.append(Damage(f"{name}/{frame}", f"in the split '{split}', but not tracked"))
        return tuple(found)

    @cached_property
    def _base(self) -> dict[str, Any]:
        """``base_tracking.pkl`` of a single clip: it has the keypoints where the optimised file does not."""
        path = self.path / BASE
        content = load_pickle(path) if self.single and path.is_file() else {}
        return content if isinstance(content, dict) else {}

    def _parse(self, name: str) -> ReleaseClip:
        frames = self.frames_of(name)
        identity = _identity(self._identities.get(name), f"'{self.path / IDENTITY}', clip '{name}'")
        tracked = self._tracking.get(name)
        if not isinstance(tracked, dict) or not frames:
            raise FileFormatError(f"'{self.path / TRACKING}' has no frames of the clip '{name}'.")
        count = len(frames)
        values = {n: np.full((count, k), np.nan, np.float32) for g in _FIELDS.values() for n, k in g.items()}
        values["M_o2c-hd"] = np.full((count, 9), np.nan)
        parts = np.full((count, len(PARTS), 3, 3), np.nan)
        points = np.zeros((count, POINTS, 2), np.float32)
        scores = np.full((count, POINTS), np.nan, np.float32)
        usable, damage = np.zeros(count, bool), []
        for row, frame in enumerate(frames):
            entry = tracked.get(frame)
            if reason := _read_frame(entry, row, values):
                damage.append(Damage(f"{name}/{frame}", reason))
                continue
            usable[row] = True
            for part, label in enumerate(PARTS):
                matrix = _array(_get(entry, f"{label}_crop", "M_c2o"), 9)
                if matrix is not None:
                    parts[row, part] = matrix.reshape(3, 3)
            pose = entry.get("dwpose_rlt")
            if pose is None and self.single:
                pose = _get(self._base.get(frame), "dwpose_rlt")
            xy, score = _array(_get(pose, "keypoints"), 2 * POINTS), _array(_get(pose, "scores"), POINTS)
            if xy is not None and score is not None:
                points[row], scores[row] = xy.reshape(POINTS, 2), score
        recorded = bool(np.isfinite(scores).any())
        return ReleaseClip(
            name=name,
            frames=frames,
            usable=usable,
            identity=identity,
            values=values,
            body_crop=values.pop("M_o2c-hd").reshape(count, 3, 3),
            part_crops=parts,
            keypoints=points if recorded else None,
            scores=scores if recorded else None,
            damage=tuple(damage),
            images=self.images,
            prefix="" if self.single else f"{name}/",
        )


def _check_pictures(clip: ReleaseClip, decode: bool) -> list[Damage]:
    found = []
    for frame, usable in zip(clip.frames, clip.usable, strict=True):
        for name in ("body_image", "body_mask") if usable else ():
            key = clip.key(frame, name)
            if clip.images.get(key) is None:
                found.append(Damage(key, "no such picture"))
            elif decode:
                try:
                    clip.images.read(key)
                except FileFormatError as error:
                    found.append(Damage(key, error.message))
    return found


def _get(entry: Any, *path: str) -> Any:
    for key in path:
        if not isinstance(entry, dict):
            return None
        entry = entry.get(key)
    return entry


def _numbers(value: Any) -> np.ndarray:
    """A flat float64 array of real numbers that single precision can hold; empty if it is anything else."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biufO":
            return np.zeros(0)
        array = array.astype(np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        return np.zeros(0)
    return array if (np.abs(array) < np.finfo(np.float32).max).all() else np.zeros(0)


def _array(value: Any, size: int) -> np.ndarray | None:
    """``size`` numbers, whatever ones their shape has; None if it is anything else."""
    if value is None:
        return None
    array = _numbers(value)
    return array if array.size == size else None


def _read_frame(entry: Any, row: int, values: dict[str, np.ndarray]) -> str:
    """Put a frame's parameters into row ``row``; what is wrong with it, or ""."""
    if not isinstance(entry, dict):
        return "listed, but not tracked"
    read = {}
    for group, names in _FIELDS.items():
        for name, size in names.items():
            value = _get(entry, group, name)
            if value is None:
                return f"{group} has no {name}"
            read[name] = _array(value, size)
            if read[name] is None:
                return f"{name} is not {size} finite numbers"
    rotation = read["camera_RT_params"].reshape(3, 4)[:, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > _NOT_A_ROTATION or np.linalg.det(rotation) < 0:
        return "camera_RT_params is no rotation and translation"
    if abs(np.linalg.det(read["M_o2c-hd"].reshape(3, 3))) < 1e-12:
        return "M_o2c-hd cannot be inverted"
    for name, value in read.items():
        values[name][row] = value
    return ""


def _identity(entry: Any, where: str) -> ReleaseIdentity:
    """First row of every array, as the release takes it."""
    if not isinstance(entry, dict):
        raise FileFormatError(f"{where} has no identity parameters.")
    out = {}
    for name, size in _IDENTITY_FIELDS.items():
        array = _numbers(entry.get(name))
        if array.size < size or array.size % size:
            raise FileFormatError(f"{where}: {name} is missing, damaged or not {size} numbers.")
        out[name] = array[:size].astype(np.float32)
    out["joints_offset"] = out["joints_offset"].reshape(55, 3)
    return ReleaseIdentity(**out)


def open_release_dataset(path: str | os.PathLike) -> ReleaseDataset:
    """Open a folder that EHM-Tracker wrote: one clip's, one picture's, or a combined training set.

    Args:
        path: The folder with ``optim_tracking_ehm.pkl`` and ``id_share_params.pkl``; ``videos_info.json``,
            ``dataset_frames.json``, ``testing_split.json`` and ``img_lmdb`` are read where they are.

    Raises:
        InputError: There is no such folder, or tracking was not finished in it.
        FileFormatError: A file is damaged, or holds other things than plain data.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"There is no folder '{path}'.")
    if not (path / TRACKING).is_file():
        raise _not_a_dataset(path)
    identities = _mapping(load_pickle(path / IDENTITY), path / IDENTITY)
    tracking = _mapping(load_pickle(path / TRACKING), path / TRACKING)
    infos = _json(path / VIDEOS)
    # The identity file decides, as in the release: without a clip level it holds the arrays themselves.
    single = any(name in identities for name in _IDENTITY_FIELDS)
    if single:
        name = next(iter(infos)) if len(infos) == 1 else path.resolve().name
        identities, tracking = {name: identities}, {name: tracking}
        names = [name]
    else:
        names = [str(name) for name in dict.fromkeys((*infos, *tracking))]
    damage: list[Damage] = []
    listed = {}
    for name in names:
        keys = _get(infos, name, "frames_keys")
        if keys is None:
            continue
        if isinstance(keys, list) and all(isinstance(key, str) for key in keys) and keys:
            listed[name] = tuple(dict.fromkeys(keys))
        else:
            damage.append(Damage(name, f"no list of frames in {VIDEOS}"))
    for name in names:
        if not isinstance(tracking.get(name), dict):
            damage.append(Damage(name, f"not in {TRACKING}"))
        elif not isinstance(identities.get(name), dict):
            damage.append(Damage(name, f"not in {IDENTITY}"))
    names = [name for name in names if isinstance(tracking.get(name), dict)]
    folder = path / "img_lmdb"
    dataset = ReleaseDataset(
        path=path,
        single=single,
        clip_names=tuple(names),
        splits={},
        images=ReleaseImages(folder) if (folder / "data.mdb").is_file() else None,
        damage=(),
        _tracking=tracking,
        _identities=identities,
        _listed=listed,
    )
    splits = _splits(dataset, _json(path / SPLITS), _json(path / TEST_SPLIT), damage)
    return replace(dataset, splits=splits, damage=tuple(damage))


def _not_a_dataset(path: Path) -> InputError:
    inside = sorted(child.name for child in path.iterdir() if (child / TRACKING).is_file())
    if inside:
        hint = f"Open one of them, for instance '{path / inside[0]}'."
        return InputError(f"'{path}' holds {len(inside)} tracked folders.", hint)
    if (path / "data.mdb").is_file():
        return InputError(f"'{path}' is only the pictures.", f"Open the folder it lies in: '{path.parent}'.")
    if (path / "skipped.txt").is_file():
        return InputError(f"The tracker gave '{path}' up: it wrote 'skipped.txt' there instead of results.")
    if (path / BASE).is_file():
        return InputError(f"Tracking was not finished in '{path}': there is no '{TRACKING}'.", "Track again.")
    return InputError(f"'{path}' was not written by EHM-Tracker: there is no '{TRACKING}'.")


def _mapping(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        raise FileFormatError(f"'{path}' does not hold named entries.")
    return content


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"'{path}' is damaged or not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"'{path}' does not hold named entries.")
    return content


def _splits(
    dataset: ReleaseDataset, listed: dict[str, Any], test: dict[str, Any], damage: list[Damage]
) -> dict[str, tuple[tuple[str, str], ...]]:
    out = {}
    for split, entries in listed.items():
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            damage.append(Damage(str(split), f"no list of frames in {SPLITS}"))
            continue
        pairs = [entry.rpartition("/")[::2] for entry in entries]
        if dataset.single:
            pairs = [(clip or dataset.clip_names[0], frame) for clip, frame in pairs]
        out[split] = tuple(pairs)
    pairs = []
    for clip, count in test.items():
        if clip in dataset.clip_names and type(count) is int and count > 0:
            pairs += [(clip, frame) for frame in dataset.frames_of(clip)[-count:]]
        else:
            damage.append(Damage(str(clip), f"in {TEST_SPLIT}, but not tracked"))
    return {**out, "test": tuple(pairs)} if test else out
