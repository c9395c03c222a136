"""What the readers of both body models check."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guava.body.licensed.unpickle import Chumpy, read_arrays
from guava.errors import FileFormatError, InputError

ROOT = 2**32 - 1
"""How the owners write that a joint has no parent."""


@dataclass(frozen=True)
class OwnerModel:
    """A body model's arrays in its owner's order, checked.

    Attributes:
        v_template: (V, 3) float32 metres.
        shape_dirs: (V, 3, 300).
        expression_dirs: (V, 3, 50): the first 50 of 100.
        pose_dirs: (V, 3, 9 (J - 1)).
        joint_regressor: (J, V).
        weights: (V, J).
        parents: (J,) int64, -1 at the root.
        faces: (F, 3) int64.
        file: The file's name.
        sha256: Of the file.
    """

    v_template: np.ndarray
    shape_dirs: np.ndarray
    expression_dirs: np.ndarray
    pose_dirs: np.ndarray
    joint_regressor: np.ndarray
    weights: np.ndarray
    parents: np.ndarray
    faces: np.ndarray
    file: str
    sha256: str


@dataclass(frozen=True)
class Expected:
    """What a model's file must hold.

    Attributes:
        title: The model as its owner calls it.
        vertices, faces, joints: Numbers of them.
        directions: Shape and expression directions together.
        parents: The kinematic tree.
        names: Usual file names, the best first; upper and lower case do not matter.
        others: Vertex counts of other models, and what they are.
        version: What to get instead of a file with fewer directions.
        owner: Where the owner offers it.
    """

    title: str
    vertices: int
    faces: int
    joints: int
    directions: int
    parents: tuple[int, ...]
    names: tuple[str, ...]
    others: dict[int, str]
    version: str
    owner: str


SHAPES, EXPRESSIONS = 300, 50
_GENDERED = re.compile(r"(?<![a-z])(female|male)(?![a-z])")


def find_file(path: Path, expected: Expected) -> Path:
    """``path`` itself, or the neutral model in a folder (subfolders too).

    Raises:
        InputError: There is nothing there, or only the models of one gender.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"There is no file or folder '{path}'.")
    files = {p.name.lower(): p for p in sorted(path.rglob("*"), reverse=True) if p.is_file()}
    for name in expected.names:
        if name.lower() in files:
            return files[name.lower()]
    hint = f"Usual names: {', '.join(expected.names)}. Or name the file itself."
    archives = [p.name for p in files.values() if p.suffix.lower() == ".zip"]
    if archives:
        hint = f"Unpack {archives[0]} first. {hint}"
    raise InputError(f"No neutral {expected.title} model was found in '{path}'.", hint)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read_model(path: Path, expected: Expected) -> OwnerModel:
    """Read and check a model file.

    Raises:
        InputError: There is no such file.
        FileFormatError: It is damaged, or another model, version or gender than expected.
    """
    found = _GENDERED.search(path.stem.lower())
    if found:
        raise FileFormatError(
            f"'{path}' is the {found[0]} {expected.title} model; the neutral one is needed.",
            f"Usual names: {', '.join(expected.names)}; from {expected.owner}.",
        )
    content = read_arrays(path)
    if not isinstance(content, Mapping):
        raise FileFormatError(f"'{path}' is not a {expected.title} model: it holds no named arrays.")
    gender = content["gender"] if "gender" in content else None
    if isinstance(gender, np.ndarray) and gender.size == 1:
        gender = gender.item()
    if isinstance(gender, str | bytes):
        gender = gender.decode("latin1") if isinstance(gender, bytes) else gender
        if gender.lower() in ("male", "female"):
            raise FileFormatError(
                f"'{path}' is the {gender.lower()} {expected.title} model; the neutral one is needed.",
                f"It is at {expected.owner}.",
            )

    v = _numbers(content, "v_template", path, expected)
    if v.ndim == 2 and v.shape[0] != expected.vertices:
        what = expected.others.get(v.shape[0], f"a model of {v.shape[0]:,} vertices")
        raise FileFormatError(
            f"'{path}' is {what}, not {expected.title} ({expected.vertices:,} vertices).",
            f"{expected.title} is at {expected.owner}.",
        )
    count, joints = expected.vertices, expected.joints
    v = _shaped(v, (count, 3), "v_template", path, expected)
    dirs = _numbers(content, "shapedirs", path, expected)
    if dirs.ndim == 3 and dirs.shape[:2] == (count, 3) and dirs.shape[2] < expected.directions:
        raise FileFormatError(
            f"'{path}' has {dirs.shape[2]} shape and expression directions, not {expected.directions}.",
            f"{expected.version} It is at {expected.owner}.",
        )
    dirs = _shaped(dirs, (count, 3, expected.directions), "shapedirs", path, expected)
    pose = _numbers(content, "posedirs", path, expected)
    pose = _shaped(pose, (count, 3, 9 * (joints - 1)), "posedirs", path, expected)
    regressor = _shaped(
        _numbers(content, "J_regressor", path, expected), (joints, count), "J_regressor", path, expected
    )
    weights = _shaped(
        _numbers(content, "weights", path, expected), (count, joints), "weights", path, expected
    )
    for name, rows in (("J_regressor", regressor), ("weights", weights)):
        if np.abs(rows.sum(1) - 1).max() > 0.02:
            raise _wrong(f"the rows of '{name}' do not sum to one", path, expected)
    tree = _numbers(content, "kintree_table", path, expected, integers=True)
    if tree.shape != (2, joints):
        raise _wrong(f"'kintree_table' is {tree.shape}, expected {(2, joints)}", path, expected)
    parents = tree[0].astype(np.int64)
    parents[0] = -1 if parents[0] in (-1, ROOT) else parents[0]
    if tuple(parents.tolist()) != expected.parents:
        raise _wrong("its joints hang together in another way", path, expected)
    faces = _numbers(content, "f", path, expected, integers=True).astype(np.int64)
    if faces.shape != (expected.faces, 3):
        raise _wrong(f"'f' is {faces.shape}, expected {(expected.faces, 3)}", path, expected)
    if faces.min() < 0 or faces.max() >= count:
        raise _wrong("its faces name vertices that are not there", path, expected)
    height = float(np.ptp(v[:, 1]))
    if not 0.1 < height < 3:
        raise _wrong(f"it is {height:.3g} high, not a person's size in metres", path, expected)

    def single(array: np.ndarray) -> np.ndarray:
        return np.array(array, dtype=np.float32, order="C")

    return OwnerModel(
        single(v), single(dirs[..., :SHAPES]), single(dirs[..., SHAPES : SHAPES + EXPRESSIONS]), single(pose),
        single(regressor), single(weights), parents, faces, path.name, sha256(path),
    )  # fmt: skip


def _wrong(what: str, path: Path, expected: Expected) -> FileFormatError:
    return FileFormatError(
        f"'{path}' is not {expected.title} as its owner distributes it: {what}.",
        f"Download it again from {expected.owner}.",
    )


def _numbers(
    content: Mapping, name: str, path: Path, expected: Expected, integers: bool = False
) -> np.ndarray:
    if name not in content:
        raise _wrong(f"'{name}' is missing", path, expected)
    value = content[name]
    if isinstance(value, Chumpy):
        raise _wrong(f"'{name}' is a formula of chumpy, not an array", path, expected)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in ("iu" if integers else "iuf"):
        raise _wrong(f"'{name}' is not an array of {'integers' if integers else 'numbers'}", path, expected)
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise _wrong(f"'{name}' has values that are not finite", path, expected)
    return value


def _shaped(
    value: np.ndarray, shape: tuple[int, ...], name: str, path: Path, expected: Expected
) -> np.ndarray:
    if value.shape != shape:
        raise _wrong(f"'{name}' is {value.shape}, expected {shape}", path, expected)
    return value
