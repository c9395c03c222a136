"""What a template is, and its file.

One schema serves the embedded open template and a user's own SMPL-X + FLAME: two linear models, how the
head sits on the body, and the tables (UV atlas, landmark embeddings, regions) that the rest of Guava looks
things up in.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from guava.container import read_container, write_container
from guava.errors import FileFormatError, MissingAssetError
from guava.folders import templates_folder

TEMPLATE_KIND, TEMPLATE_VERSION = "template", 2
"""Version 2 can hold a UV table and exact skinning weights; files without them are written as version 1."""
OPEN_TEMPLATE = Path(__file__).parent / "data" / "open.template"


@dataclass(frozen=True)
class LinearModel:
    """A linear blend-skinned model: V vertices, J joints, S shape, E expression and P pose directions.

    Attributes:
        v_template: (V, 3) metres.
        shape_dirs: (V, 3, S); coefficients have unit variance.
        expression_dirs: (V, 3, E); E may be 0.
        pose_dirs: (V, 3, P) with P = 9 (J - 1), on the row-major entries of (R_j - I); P may be 0.
        weights: (V, J) skinning weights, rows sum to 1.
        parents: (J,) int64; -1 at the root; parents precede children.
        joint_names: J names.
        joints_template: (J, 3).
        joints_shape_dirs: (J, 3, S).
        joint_regressor: (J, V) or None. With ``Template.regress_joints`` the rest joints come from the edited
            mesh through it; otherwise from ``joints_template + joints_shape_dirs @ shape``.
    """

    v_template: Tensor
    shape_dirs: Tensor
    expression_dirs: Tensor
    pose_dirs: Tensor
    weights: Tensor
    parents: Tensor
    joint_names: tuple[str, ...]
    joints_template: Tensor
    joints_shape_dirs: Tensor
    joint_regressor: Tensor | None = None

    @property
    def num_vertices(self) -> int:
        return self.v_template.shape[0]

    @property
    def num_joints(self) -> int:
        return len(self.joint_names)

    @property
    def num_shape(self) -> int:
        return self.shape_dirs.shape[-1]

    @property
    def num_expression(self) -> int:
        return self.expression_dirs.shape[-1]


@dataclass(frozen=True)
class LandmarkEmbedding:
    """Landmarks as points on the template's triangles.

    Attributes:
        faces: (L,) int64 indices into ``Template.faces``.
        barycentrics: (L, 3).
        weights: (L,) in [0, 1]: how far each is to be trusted; 0 where the landmark has no place on
            the template.
    """

    faces: Tensor
    barycentrics: Tensor
    weights: Tensor


@dataclass(frozen=True)
class UVTable:
    """Which point of the surface every texel of the atlas is, where that is not to be computed from ``uv``.

    Attributes:
        face_ids: (S, S) int64 index into ``Template.faces``, -1 where there is none; row = v, column = u.
        barycentrics: (S, S, 3). [Q] All zeros at texels of faces that rounding collapsed (smplx-flame): such
            a texel's point is the origin.
    """

    face_ids: Tensor
    barycentrics: Tensor


@dataclass(frozen=True)
class Template:
    """Two linear models and the tables that go with them. See Eq. 1 and :class:`guava.body.ehm.EHM`.

    Vertex numbering is the body's; the head model's vertex i replaces body vertex ``head_vertex_ids[i]``.

    Attributes:
        name: "open", "smplx-flame", ...
        body, head: The two models. The head's joints are neck, head, jaw, left eye, right eye; its
            ``expression_dirs`` follow ``expression_names``.
        head_vertex_ids: (H,) int64 body vertex of each head vertex.
        head_blend: (H,) in [0, 1]; 1 everywhere is the paper's hard replacement, less blends a smooth neck.
        eyelid_dirs: (H, 3, L) added after the head's skinning; L may be 0.
        hand_vertex_ids: Left and right (n,) int64: the vertices that ``Identity.hand_scale`` scales.
        hand_centers: (2, 3) fixed points of that scaling, left and right, in the body's rest pose.
        regress_joints: Whether rest joints are re-regressed from the edited mesh.
        faces: (F, 3) int64.
        uv: (T, 2) in [0, 1], u right and v **down** (image orientation).
        uv_faces: (F, 3) int64 indices into ``uv``.
        face_parts: (F,) int64 index into ``part_names``.
        part_names: Named regions of the surface ("torso", "left_arm", "scalp", ...).
        expression_names: Names of the head's expression directions (ARKit units for the open template).
        expression_bounds: Pairs (unit, limiting unit): the first never exceeds the second
            (mouthClose <= jawOpen).
        landmarks: Embeddings by name ("mediapipe478", "ibug68").
        surface_points: Named single vertices (fingertips: "left_index_tip", ...).
        provenance: Where the data came from and under which licence.
        head_from_body: (S_head, S_body) or None: the head shape to expect of a person with a given body
            shape. The open template's models were sampled from the same people, so that gender, size and age
            of head and body go together; a fit should penalise ``head_shape -
            expected_head_shape(body_shape)``, or a large head will sit on a small body. None where the two
            models know nothing of each other.
        uv_table: The texels of the release's network (smplx-flame), or None: they are rasterised from ``uv``.
        expressive_head: False is the ablation "w/o EHM" ("plain head"): the body keeps its own head, moved by
            the body's own jaw, eyes and expression; ``head`` and ``eyelid_dirs`` are then not used.
        hash: SHA-256 over all arrays and names; avatars, motions and weights carry it.
    """

    name: str
    body: LinearModel
    head: LinearModel
    head_vertex_ids: Tensor
    head_blend: Tensor
    eyelid_dirs: Tensor
    hand_vertex_ids: tuple[Tensor, Tensor]
    hand_centers: Tensor
    regress_joints: bool
    faces: Tensor
    uv: Tensor
    uv_faces: Tensor
    face_parts: Tensor
    part_names: tuple[str, ...]
    expression_names: tuple[str, ...]
    expression_bounds: tuple[tuple[str, str], ...]
    landmarks: dict[str, LandmarkEmbedding]
    surface_points: dict[str, int]
    provenance: dict
    head_from_body: Tensor | None = None
    uv_table: UVTable | None = None
    expressive_head: bool = True
    hash: str = field(default="")

    def joint(self, name: str) -> int:
        """Index of a body joint by its SMPL-X name."""
        return self.body.joint_names.index(name)

    def unit(self, name: str) -> int:
        """Index of an expression direction by name."""
        return self.expression_names.index(name)

    def part(self, *names: str) -> Tensor:
        """(F,) bool: the faces of the named parts."""
        wanted = torch.tensor([self.part_names.index(name) for name in names])
        return torch.isin(self.face_parts, wanted)

    def expected_head_shape(self, body_shape: Tensor) -> Tensor:
        """(*B, k) body shape, k <= S_body -> (*B, S_head) expected head shape; zeros where the models are not
        tied."""
        if self.head_from_body is None:
            return body_shape.new_zeros(*body_shape.shape[:-1], self.head.num_shape)
        return body_shape @ self.head_from_body[:, : body_shape.shape[-1]].to(body_shape).T

    def bounded_expression(self, expression: Tensor) -> Tensor:
        """(*B, E) with every unit clamped to what ``expression_bounds`` allows."""
        out = expression.clone()
        for unit, limit in self.expression_bounds:
            i, j = self.unit(unit), self.unit(limit)
            out[..., i] = torch.minimum(expression[..., i], expression[..., j].clamp(min=0))
        return out


# --- file ---

_MODEL_ARRAYS = (
    "v_template",
    "shape_dirs",
    "expression_dirs",
    "pose_dirs",
    "weights",
    "parents",
    "joints_template",
    "joints_shape_dirs",
)
_DIRECTIONS = ("shape_dirs", "expression_dirs", "pose_dirs")
_TABLES = (
    "head_vertex_ids",
    "head_blend",
    "eyelid_dirs",
    "hand_centers",
    "faces",
    "uv",
    "uv_faces",
    "face_parts",
)
_NAMES = (
    "name",
    "body_joints",
    "head_joints",
    "regress_joints",
    "part_names",
    "expression_names",
    "expression_bounds",
    "surface_points",
)
_INTEGERS = {"parents", "head_vertex_ids", "faces", "uv_faces", "face_parts"}


def _sparse(dense: Tensor) -> dict[str, Tensor]:
    """Rows of (V, J) as their largest entries, so that skinning weights take little room."""
    count = max(1, int((dense != 0).sum(1).max()))
    values, indices = dense.topk(count, dim=1)
    return {"values": values, "indices": indices.to(torch.uint8), "columns": torch.tensor(dense.shape[1])}


def _dense(parts: dict[str, Tensor]) -> Tensor:
    values = parts["values"].float()
    out = torch.zeros(values.shape[0], int(parts["columns"]))
    out.scatter_add_(1, parts["indices"].long(), values)
    return out / out.sum(1, keepdim=True)


_FINE = 0.004
"""Metres: shape directions that move nothing further than this are stored as bytes (steps below 0.04 mm)."""


def _pack_directions(name: str, dense: Tensor, real: torch.dtype) -> dict[str, Tensor]:
    """(V, 3, K) directions as: sparse rows, or bytes with a scale per direction, or dense.

    ``real`` is float16, or float32, which rules out bytes.
    """
    vertices, _, count = dense.shape
    if not dense.numel():
        return {"shape": torch.tensor(dense.shape)}
    moved = (dense != 0).any(1)
    if moved.float().mean() < 0.5:
        columns, rows = moved.T.nonzero(as_tuple=True)
        return {
            "shape": torch.tensor(dense.shape),
            "sparse_rows": _compact_integers(rows),
            "sparse_counts": moved.sum(0).to(torch.int32),
            "sparse_values": dense[rows, :, columns].to(real),
        }
    flat = dense.reshape(vertices * 3, count)
    peak = flat.abs().amax(0)
    fine = (peak < _FINE) & (peak > 0)
    if name != "shape_dirs" or real == torch.float32:
        fine = torch.zeros(count, dtype=torch.bool)
    scale = peak[fine] / 127
    return {
        "shape": torch.tensor(dense.shape),
        "fine": fine,
        "half": flat[:, ~fine].to(real),
        "bytes": (flat[:, fine] / scale).round().to(torch.int8),
        "scale": scale.float(),
    }


def _unpack_directions(parts: dict[str, Tensor]) -> Tensor:
    vertices, axes, count = parts["shape"].tolist()
    if "sparse_rows" in parts:
        out = torch.zeros(vertices, axes, count)
        columns = torch.repeat_interleave(torch.arange(count), parts["sparse_counts"].long())
        out[parts["sparse_rows"].long(), :, columns] = parts["sparse_values"].float()
        return out
    out = torch.zeros(vertices * axes, count)
    if "fine" in parts:
        out[:, ~parts["fine"]] = parts["half"].float()
        out[:, parts["fine"]] = parts["bytes"].float() * parts["scale"]
    return out.reshape(vertices, axes, count)


def _compact(name: str, tensor: Tensor, real: torch.dtype) -> Tensor:
    if name in _INTEGERS:
        return _compact_integers(tensor)
    return tensor.to(real) if name.endswith("_dirs") else tensor.float()


def _compact_integers(tensor: Tensor) -> Tensor:
    low, high = (int(tensor.min()), int(tensor.max())) if tensor.numel() else (0, 0)
    return tensor.to(torch.int16 if high < 2**15 and low >= -(2**15) else torch.int32)


def save_template(template: Template, path: str | os.PathLike, *, exact: bool = False) -> str:
    """Write a template.

    Args:
        template: Its own ``hash`` is ignored.
        path: Where to.
        exact: Keep single precision, bit by bit. Otherwise directions and skinning weights are rounded to
            half precision and small shape directions to bytes, without which the embedded template would not
            fit its 8 MB.

    Returns:
        The hash, over the values as stored: it is what :func:`read_template` gives.

    Raises:
        ValueError: The template is a plain head, which is made of its template when it is loaded.
    """
    if not template.expressive_head:
        raise ValueError("A plain head is not a template of its own; save the template that it is made of.")
    real = torch.float32 if exact else torch.float16
    tensors: dict[str, Tensor] = {}
    for prefix, model in (("body", template.body), ("head", template.head)):
        for name in _MODEL_ARRAYS:
            if name == "weights" and exact:
                tensors[f"{prefix}.weights.rows"] = model.weights.float()
            elif name == "weights":
                for key, value in _sparse(model.weights).items():
                    tensors[f"{prefix}.weights.{key}"] = value.to(real) if key == "values" else value
            elif name in _DIRECTIONS:
                for key, value in _pack_directions(name, getattr(model, name), real).items():
                    tensors[f"{prefix}.{name}.{key}"] = value
            else:
                tensors[f"{prefix}.{name}"] = _compact(name, getattr(model, name), real)
        if model.joint_regressor is not None:
            tensors[f"{prefix}.joint_regressor"] = model.joint_regressor.float()
    for name in _TABLES:
        tensors[name] = _compact(name, getattr(template, name), real)
    if template.uv_table is not None:
        tensors["uv_table.face_ids"] = _compact_integers(template.uv_table.face_ids)
        tensors["uv_table.barycentrics"] = template.uv_table.barycentrics.float()
    if template.head_from_body is not None:
        tensors["head_from_body"] = template.head_from_body.float()
    for side, ids in zip(("left", "right"), template.hand_vertex_ids, strict=True):
        tensors[f"hand_vertex_ids.{side}"] = ids.to(torch.int32)
    for name, embedding in template.landmarks.items():
        tensors[f"landmarks.{name}.faces"] = embedding.faces.to(torch.int32)
        tensors[f"landmarks.{name}.barycentrics"] = embedding.barycentrics.float()
        tensors[f"landmarks.{name}.weights"] = embedding.weights.float()
    names = {
        "name": template.name,
        "body_joints": list(template.body.joint_names),
        "head_joints": list(template.head.joint_names),
        "regress_joints": template.regress_joints,
        "part_names": list(template.part_names),
        "expression_names": list(template.expression_names),
        "expression_bounds": [list(pair) for pair in template.expression_bounds],
        "surface_points": template.surface_points,
    }
    digest = _digest(tensors, names)
    write_container(
        path,
        TEMPLATE_KIND,
        TEMPLATE_VERSION if exact or template.uv_table is not None else 1,
        tensors,
        {**names, "provenance": template.provenance, "hash": digest},
    )
    return digest


def _digest(tensors: dict[str, Tensor], names: dict) -> str:
    digest = hashlib.sha256(json.dumps(names, sort_keys=True).encode())
    for key in sorted(tensors):
        value = tensors[key].contiguous()
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def read_template(path: str | os.PathLike) -> Template:
    """Read a template file; arrays come back as float32 and int64.

    Raises:
        FileFormatError: The file is damaged or incomplete, or its content does not match its hash.
    """
    tensors, header = read_container(path, TEMPLATE_KIND, TEMPLATE_VERSION)
    try:
        if _digest(tensors, {key: header[key] for key in _NAMES}) != header["hash"]:
            raise FileFormatError(
                f"The template '{path}' does not match its own hash; it was altered or damaged."
            )
        return _assemble(tensors, header)
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"'{path}' is not a complete template ({error}).") from error


def _assemble(tensors: dict[str, Tensor], header: dict) -> Template:
    def get(name: str) -> Tensor:
        value = tensors[name]
        return value.float() if value.is_floating_point() else value.long()

    def model(prefix: str, joint_names: list[str]) -> LinearModel:
        arrays = {n: get(f"{prefix}.{n}") for n in _MODEL_ARRAYS if n != "weights" and n not in _DIRECTIONS}
        for name in _DIRECTIONS:
            start = f"{prefix}.{name}."
            arrays[name] = _unpack_directions(
                {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
            )
        if f"{prefix}.weights.rows" in tensors:
            weights = get(f"{prefix}.weights.rows")
        else:
            weights = _dense({k: tensors[f"{prefix}.weights.{k}"] for k in ("values", "indices", "columns")})
        regressor = f"{prefix}.joint_regressor"
        return LinearModel(
            weights=weights,
            joint_names=tuple(joint_names),
            joint_regressor=get(regressor) if regressor in tensors else None,
            **arrays,
        )

    table = None
    if "uv_table.face_ids" in tensors:
        table = UVTable(get("uv_table.face_ids"), get("uv_table.barycentrics"))
    landmark_names = sorted({key.split(".")[1] for key in tensors if key.startswith("landmarks.")})
    return Template(
        name=header["name"],
        body=model("body", header["body_joints"]),
        head=model("head", header["head_joints"]),
        hand_vertex_ids=(get("hand_vertex_ids.left"), get("hand_vertex_ids.right")),
        regress_joints=header["regress_joints"],
        part_names=tuple(header["part_names"]),
        expression_names=tuple(header["expression_names"]),
        expression_bounds=tuple((a, b) for a, b in header["expression_bounds"]),
        landmarks={
            n: LandmarkEmbedding(
                get(f"landmarks.{n}.faces"), get(f"landmarks.{n}.barycentrics"), get(f"landmarks.{n}.weights")
            )
            for n in landmark_names
        },
        surface_points=header["surface_points"],
        provenance=header["provenance"],
        head_from_body=tensors.get("head_from_body"),
        uv_table=table,
        hash=header["hash"],
        **{name: get(name) for name in _TABLES},
    )


PLAIN_HEAD = "-plain-head"
"""Ending of the names of templates whose body keeps its own head (the ablation "w/o EHM")."""


def plain_head(template: Template) -> Template:
    """The ablation "w/o EHM" of a template (Tab. 4, C.4): the body keeps its own head.

    Returns:
        The same arrays under the name and hash of another template, because what was made with one does not
        fit the other.

    Raises:
        ValueError: The template's head is plain already.
    """
    if not template.expressive_head:
        raise ValueError(f"The head of the template '{template.name}' is plain already.")
    return replace(
        template,
        name=template.name + PLAIN_HEAD,
        expressive_head=False,
        hash=hashlib.sha256(f"{template.hash}{PLAIN_HEAD}".encode()).hexdigest(),
    )


def load_template(name: str = "open") -> Template:
    """A template by name: "open" is embedded; "smplx-flame" is made of the user's own SMPL-X and FLAME, which
    ``guava assets add`` takes.

    "NAME-plain-head" is :func:`plain_head` of the template NAME. A template is read once, as long as its file
    does not change.

    Raises:
        MissingAssetError: No template of that name is installed, or files of the user's are missing for it;
            each is named, with where its owner offers it.
        FileFormatError: Its file is damaged.
    """
    path = _template_file(name.removesuffix(PLAIN_HEAD))
    try:
        state = path.stat()
    except OSError as error:
        raise MissingAssetError(
            f"The embedded template is missing ('{path}').", "Reinstall guava-avatar."
        ) from error
    return _load(path, state.st_mtime_ns, state.st_size, name.endswith(PLAIN_HEAD))


def _template_file(name: str) -> Path:
    if name == "open":
        return OPEN_TEMPLATE
    if name == "smplx-flame":
        from guava.body.licensed.store import require_template

        return require_template()
    path = templates_folder() / f"{name}.template"
    if re.fullmatch(r"[\w-]+", name) and path.is_file():
        return path
    raise MissingAssetError(
        f"There is no template named '{name}'.", "'open' is embedded; see: guava assets list"
    )


@lru_cache(maxsize=4)
def _load(path: Path, modified: int, size: int, plain: bool) -> Template:
    """``modified`` and ``size`` make the cache notice that the file is another one."""
    return plain_head(_load(path, modified, size, False)) if plain else read_template(path)
