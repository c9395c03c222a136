"""The tables between SMPL-X, FLAME, MANO and the landmark detectors.

They belong to the models' owners and to the authors of GUAVA, and are never shipped with Guava: the user adds
the folder that holds them. A file is known by its usual names and by what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guava.body.licensed import flame, smplx
from guava.body.licensed.arrays import sha256
from guava.body.licensed.unpickle import read_arrays
from guava.errors import FileFormatError, InputError

BODY, HEAD, BODY_FACES, HEAD_FACES = (
    smplx.EXPECTED.vertices, flame.EXPECTED.vertices, smplx.EXPECTED.faces, flame.EXPECTED.faces,
)  # fmt: skip
HAND, UV = 778, 11313
RELEASE = "the assets folder of the GUAVA authors' release"

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: What Guava calls it.
        about: What it is for, a noun phrase.
        files: Usual file names, whose case does not matter; several sets where the table is spread over
            several files.
        owner: Where it is offered.
        read: From those files' paths to arrays.
        required: Whether "smplx-flame" cannot be made without it.
    """

    name: str
    about: str
    files: tuple[tuple[str, ...], ...]
    owner: str
    read: Callable[[list[Path]], Arrays]
    required: bool = True


def _integers(value: Any, path: Path, shape: tuple[int, ...], limit: int, what: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        raise FileFormatError(f"'{path}' is not {what}: an array of integers is expected.")
    if value.shape != shape:
        raise FileFormatError(f"'{path}' is not {what}: its shape is {value.shape}, expected {shape}.")
    if value.min() < 0 or value.max() >= limit:
        raise FileFormatError(f"'{path}' is not {what}: it has numbers outside 0..{limit - 1}.")
    return value.astype(np.int64)


def _numbers(value: Any, path: Path, shape: tuple[int, ...], what: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or value.shape != shape:
        found = getattr(value, "shape", type(value).__name__)
        raise FileFormatError(f"'{path}' is not {what}: expected numbers of shape {shape}, found {found}.")
    if not np.isfinite(value).all():
        raise FileFormatError(f"'{path}' has values that are not finite.")
    return np.array(value, dtype=np.float32, order="C")


def _mapping(path: Path, what: str) -> Mapping:
    content = read_arrays(path)
    if not isinstance(content, Mapping):
        raise FileFormatError(f"'{path}' is not {what}: it holds no named arrays.")
    return content


def _entry(content: Mapping, key: str, path: Path, what: str) -> Any:
    if key not in content:
        raise FileFormatError(f"'{path}' is not {what}: '{key}' is missing.")
    return content[key]


def _read_flame_ids(paths: list[Path]) -> Arrays:
    what = "the SMPL-X vertices of FLAME"
    ids = _integers(read_arrays(paths[0]), paths[0], (HEAD,), BODY, what)
    if len(np.unique(ids)) != HEAD:
        raise FileFormatError(f"'{paths[0]}' is not {what}: it names a vertex twice.")
    return {"flame_ids": ids}


def _read_hands(paths: list[Path]) -> Arrays:
    what = "the SMPL-X vertices of MANO"
    content = _mapping(paths[0], what)
    return {
        f"{side}_hand_ids": _integers(
            _entry(content, f"{side}_hand", paths[0], what), paths[0], (HAND,), BODY, what
        )
        for side in ("left", "right")
    }


def _read_eyelids(paths: list[Path]) -> Arrays:
    what = "FLAME's lid directions"
    lids = []
    for path in paths:
        value = read_arrays(path)
        value = value[0] if isinstance(value, np.ndarray) and value.shape == (1, HEAD, 3) else value
        lids.append(_numbers(value, path, (HEAD, 3), what))
    return {"eyelid_dirs": np.stack(lids, -1)}


def _embedding(name: str, faces: Any, barycentrics: Any, count: int, path: Path, what: str) -> Arrays:
    faces, barycentrics = np.asarray(faces), np.asarray(barycentrics)
    faces = faces.reshape(-1) if faces.size == count else faces
    barycentrics = barycentrics.reshape(-1, 3) if barycentrics.size == 3 * count else barycentrics
    bary = _numbers(barycentrics, path, (count, 3), what)
    if np.abs(bary.sum(1) - 1).max() > 0.05:
        raise FileFormatError(f"'{path}' is not {what}: its barycentric weights do not sum to one.")
    return {
        f"{name}_faces": _integers(faces, path, (count,), HEAD_FACES, what),
        f"{name}_barycentrics": bary,
    }


def _read_landmarks(paths: list[Path]) -> Arrays:
    """The 68 fixed points; without them, the 51 inner ones and the outline of a head seen from the front."""
    what, path = "FLAME's landmark embedding", paths[0]
    content = _mapping(path, what)

    def one(name: str, count: int) -> Arrays:
        return _embedding(
            name, _entry(content, f"{name}_lmk_faces_idx", path, what),
            _entry(content, f"{name}_lmk_bary_coords", path, what), count, path, what,
        )  # fmt: skip

    if "full_lmk_faces_idx" in content:
        return one("full", 68)
    inner, outline = one("static", 51), one("dynamic", 79 * 17)
    return {
        f"full_{part}": np.concatenate([outline[f"dynamic_{part}"][:17], inner[f"static_{part}"]])
        for part in ("faces", "barycentrics")
    }


def _read_mediapipe(paths: list[Path]) -> Arrays:
    what, path = "FLAME's embedding of MediaPipe's points", paths[0]
    content = _mapping(path, what)
    ids = _entry(content, "landmark_indices", path, what)
    out = _embedding(
        "mediapipe", _entry(content, "lmk_face_idx", path, what), _entry(content, "lmk_b_coords", path, what),
        105, path, what,
    )  # fmt: skip
    out["mediapipe_ids"] = _integers(np.asarray(ids).reshape(-1), path, (105,), 478, what)
    return out


def _read_masks(paths: list[Path]) -> Arrays:
    what = "FLAME's region masks"
    content = _mapping(paths[0], what)
    out: Arrays = {}
    for region in ("face", "scalp", "neck", "left_eyeball", "right_eyeball", "left_ear", "right_ear"):
        ids = np.asarray(_entry(content, region, paths[0], what)).reshape(-1)
        out[f"mask_{region}"] = _integers(ids, paths[0], ids.shape, HEAD, what)
    return out


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texture coordinates (T, 2), faces (F, 3) and texture faces (F, 3) of a triangle OBJ.

    Raises:
        FileFormatError: It has no texture coordinates, or faces that are not triangles with them.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    uv: list[tuple[float, float]] = []
    corners: list[list[int]] = []
    textures: list[list[int]] = []
    try:
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "vt":
                u, v = rest.split()[:2]
                uv.append((float(u), float(v)))
            elif word == "f":
                pairs = [corner.split("/") for corner in rest.split()]
                corners.append([int(p[0]) - 1 for p in pairs])
                textures.append([int(p[1]) - 1 for p in pairs])
        faces, uv_faces = np.array(corners, np.int64), np.array(textures, np.int64)
        coordinates = np.array(uv, np.float64)
    except (ValueError, IndexError, OverflowError) as error:
        raise FileFormatError(f"'{path}' is no triangle mesh with texture coordinates ({error}).") from error
    if faces.ndim != 2 or faces.shape[1:] != (3,) or coordinates.ndim != 2:
        raise FileFormatError(f"'{path}' is no triangle mesh with texture coordinates.")
    if not np.isfinite(coordinates).all() or uv_faces.min() < 0 or uv_faces.max() >= len(coordinates):
        raise FileFormatError(f"'{path}' has texture coordinates that are not there.")
    return coordinates, faces, uv_faces


def _read_uv(paths: list[Path]) -> Arrays:
    uv, faces, uv_faces = read_obj(paths[0])
    if len(uv) != UV or len(faces) != BODY_FACES:
        raise FileFormatError(
            f"'{paths[0]}' is not SMPL-X's UV layout: it has {len(uv):,} texture coordinates and "
            f"{len(faces):,} faces, expected {UV:,} and {BODY_FACES:,}."
        )
    if faces.min() < 0 or faces.max() >= BODY:
        raise FileFormatError(f"'{paths[0]}' is not SMPL-X's UV layout: its faces name other vertices.")
    return {"uv": uv, "uv_faces": uv_faces, "uv_body_faces": faces}


TABLES = (
    Table(
        "flame_ids", "the SMPL-X vertices of FLAME's head",
        (("SMPL-X__FLAME_vertex_ids.npy", "SMPLX__FLAME_vertex_ids.npy"),),
        "https://smpl-x.is.tue.mpg.de (MANO and FLAME vertex indices)", _read_flame_ids,
    ),
    Table(
        "hands", "the SMPL-X vertices of MANO's hands",
        (("MANO_SMPLX_vertex_ids.pkl",),),
        "https://smpl-x.is.tue.mpg.de (MANO and FLAME vertex indices)", _read_hands,
    ),
    Table(
        "eyelids", "the lids' directions, left and right",
        (("l_eyelid.npy", "left_eyelid.npy"), ("r_eyelid.npy", "right_eyelid.npy")),
        RELEASE, _read_eyelids,
    ),
    Table(
        "uv", "SMPL-X's UV layout",
        (("smplx_uv.obj", "smplx_tex.obj", "smplx_uv_no_eyes.obj", "*.obj"),),
        f"https://smpl-x.is.tue.mpg.de (UV map), or {RELEASE}", _read_uv,
    ),
    Table(
        "landmarks", "FLAME's 68 face landmarks",
        (("landmark_embedding.npy", "flame_landmark_embedding.npy", "landmark_embedding_with_eyes.npy"),),
        f"https://flame.is.tue.mpg.de (downloads), or {RELEASE}", _read_landmarks,
    ),
    Table(
        "mediapipe", "FLAME's 105 points of MediaPipe's face mesh",
        (("mediapipe_landmark_embedding.npz",),),
        f"https://flame.is.tue.mpg.de (MediaPipe landmark embedding), or {RELEASE}", _read_mediapipe,
    ),
    Table(
        "masks", "FLAME's regions (face, scalp, neck, ears)",
        (("FLAME_masks.pkl",),),
        "https://flame.is.tue.mpg.de (FLAME vertex masks)", _read_masks, required=False,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class FoundTables:
    """Tables that were read.

    Attributes:
        arrays: By table name.
        files: Table name -> file names and their SHA-256.
    """

    arrays: dict[str, Arrays]
    files: dict[str, dict[str, str]]


def read_tables(path: Path) -> FoundTables:
    """Every known table in a folder and its subfolders, or the one that a file holds.

    Raises:
        InputError: There is none.
        FileFormatError: A file has a table's name but not its content.
    """
    if path.is_file():
        candidates = sorted(p for p in path.parent.iterdir() if p.is_file())
        only: Path | None = path
    elif path.is_dir():
        candidates, only = sorted(p for p in path.rglob("*") if p.is_file()), None
    else:
        raise InputError(f"There is no file or folder '{path}'.")
    arrays: dict[str, Arrays] = {}
    files: dict[str, dict[str, str]] = {}
    for table in TABLES:
        for found in _candidates(candidates, table, only):
            try:
                arrays[table.name] = table.read(found)
            except FileFormatError:
                # Without a usual name it may well be something else.
                if only is None and not _usual(found[0], table):
                    continue
                raise
            files[table.name] = {p.name: sha256(p) for p in found}
            break
    if not arrays:
        usual = ", ".join(names[0] for table in TABLES for names in table.files)
        raise InputError(f"'{path}' holds none of the tables.", f"Usual names: {usual}.")
    return FoundTables(arrays, files)


def _usual(path: Path, table: Table) -> bool:
    return path.name.lower() in {name.lower() for names in table.files for name in names}


def _candidates(files: list[Path], table: Table, only: Path | None) -> list[list[Path]]:
    """Sets of files that may hold a table, the likeliest first."""
    by_name = {p.name.lower(): p for p in reversed(files)}
    groups: list[list[Path]] = []
    for names in table.files:
        found = [by_name[name.lower()] for name in names if name.lower() in by_name]
        endings = tuple(name[1:] for name in names if name.startswith("*"))
        found += [p for p in files if endings and p.suffix.lower() in endings and p not in found]
        groups.append(found)
    if len(groups) == 1:
        return [[p] for p in groups[0] if only is None or p == only]
    if not all(groups):
        return []
    first = [group[0] for group in groups]
    return [first] if only is None or only in first else []
