"""From the owners' models and tables to Guava's template "smplx-flame" (Sec. 3.1; the release's EHM)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from guava.body.licensed import flame, regions, smplx, teeth
from guava.body.licensed.arrays import OwnerModel
from guava.body.licensed.correspondences import FoundTables
from guava.body.licensed.uv_table import uv_table
from guava.body.template import LandmarkEmbedding, LinearModel, Template, UVTable
from guava.errors import FileFormatError

NAME = "smplx-flame"
UV_SIZE = 512
RELEASE_TEXELS = 199_008
"""Valid texels of the release's table; another number means another UV layout."""
_CONTOUR, _CHIN = 0.1, 0.3
"""Trust in the 17 points of the outline, which slide over the cheeks as the head turns, and in the chin's
three."""
_IRISES = ((4597, 4543, 4511, 4479, 4575), (4051, 3997, 3965, 3933, 4029))
"""FLAME vertices of MediaPipe's points 468-472 (right eye) and 473-477 (left eye)."""


@dataclass(frozen=True)
class ConvertOptions:
    """Readings of the release that the template depends on.

    Attributes:
        teeth_order: [Q] "scrambled" is the release's order of the teeth's body vertices, which its checkpoint
            was trained with; "natural" puts every group of teeth where its faces and weights expect it.
        upper_teeth_joint: [Q] The body joint that carries the upper teeth. The release's is the neck, which
            they stay behind with when the head turns; "head" takes them along.
    """

    teeth_order: teeth.TeethOrder = "scrambled"
    upper_teeth_joint: Literal["neck", "head"] = "neck"


NATURAL_TEETH = ConvertOptions(teeth_order="natural", upper_teeth_joint="head")
"""Teeth as they should be; networks trained with the release's do not fit them."""


def convert(
    body: OwnerModel, head: OwnerModel, tables: FoundTables, options: ConvertOptions | None = None
) -> Template:
    """The template of a user's own models.

    Args:
        body: SMPL-X.
        head: FLAME.
        tables: All required ones.
        options: Readings; the release's without it.

    Raises:
        FileFormatError: The UV layout does not belong to this SMPL-X.
    """
    options = options or ConvertOptions()
    found = tables.arrays
    flame_ids = found["flame_ids"]["flame_ids"]
    layout = found["uv"]
    if not np.array_equal(layout["uv_body_faces"], body.faces):
        raise FileFormatError(
            "The UV layout's faces are not those of the SMPL-X model, or in another order.",
            "Add SMPL-X's own UV layout: guava assets add tables FOLDER",
        )
    first = body.v_template.shape[0]
    slots = first + teeth.slots(options.teeth_order)
    lips = [flame_ids[list(ids)] for ids in (teeth.UPPER_LIP, teeth.LOWER_LIP)]
    body_model = _with_teeth(
        body, smplx.JOINT_NAMES, teeth.body_vertices(body.v_template, flame_ids),
        teeth.shape_dirs(body.shape_dirs, *lips),
        (smplx.JOINT_NAMES.index(options.upper_teeth_joint), smplx.JOINT_NAMES.index("jaw")),
    )  # fmt: skip
    head_model = _with_teeth(
        head, flame.JOINT_NAMES, teeth.head_vertices(head.v_template), teeth.shape_dirs(head.shape_dirs),
        (flame.JOINT_NAMES.index("neck"), flame.JOINT_NAMES.index("jaw")),
    )  # fmt: skip
    faces = np.concatenate([body.faces, first + teeth.faces()])
    texture_first = len(layout["uv"])
    uv = np.concatenate([layout["uv"] * [1, -1] + [0, 1], teeth.uv()])
    uv_faces = np.concatenate([layout["uv_faces"], texture_first + teeth.faces()])
    face_ids, barycentrics = uv_table(uv, uv_faces, UV_SIZE)
    hands = tuple(found["hands"][f"{side}_hand_ids"] for side in ("left", "right"))
    parts = regions.face_parts(body, head, found, faces)
    landmarks, moved = _landmarks(body, head, found, flame_ids)
    eyelids = np.zeros((len(slots) + len(flame_ids), 3, 2), np.float32)
    eyelids[: len(flame_ids)] = found["eyelids"]["eyelid_dirs"]
    valid = face_ids >= 0
    return Template(
        name=NAME,
        body=body_model,
        head=head_model,
        head_vertex_ids=torch.from_numpy(np.concatenate([flame_ids, slots])),
        head_blend=torch.ones(len(flame_ids) + len(slots)),
        eyelid_dirs=torch.from_numpy(eyelids),
        hand_vertex_ids=tuple(torch.from_numpy(ids) for ids in hands),
        hand_centers=torch.stack([body_model.v_template[torch.from_numpy(ids)].mean(0) for ids in hands]),
        regress_joints=True,
        faces=torch.from_numpy(faces),
        uv=torch.from_numpy(uv.astype(np.float32)),
        uv_faces=torch.from_numpy(uv_faces),
        face_parts=torch.from_numpy(parts),
        part_names=regions.PART_NAMES,
        expression_names=tuple(f"flame_expression_{i:02d}" for i in range(head.expression_dirs.shape[-1])),
        expression_bounds=(),
        landmarks=landmarks,
        surface_points=regions.surface_points(body, head, found, flame_ids),
        provenance={
            "licence": "Made from SMPL-X and FLAME, whose licences apply; it may not be passed on.",
            "models": {"SMPL-X": {body.file: body.sha256}, "FLAME": {head.file: head.sha256}},
            "tables": tables.files,
            "options": asdict(options),
            "texels": {
                "valid": int(valid.sum()),
                "collapsed": int((valid & (barycentrics == 0).all(-1)).sum()),
                "release": RELEASE_TEXELS,
            },
            "landmarks_moved_to_the_nearest_face": moved,
        },
        uv_table=UVTable(torch.from_numpy(face_ids.astype(np.int64)), torch.from_numpy(barycentrics)),
    )


def _with_teeth(
    model: OwnerModel,
    joint_names: tuple[str, ...],
    vertices: np.ndarray,
    shape_dirs: np.ndarray,
    joints: tuple[int, int],
) -> LinearModel:
    """The model with 120 more vertices, which expression, pose and joint regressors leave alone."""

    def extended(array: np.ndarray, more: np.ndarray | None = None) -> Tensor:
        if more is None:
            more = np.zeros((teeth.COUNT, *array.shape[1:]), array.dtype)
        return torch.from_numpy(np.concatenate([array, more.astype(np.float32)]))

    v_template, shapes = extended(model.v_template, vertices), extended(model.shape_dirs, shape_dirs)
    regressor = np.pad(model.joint_regressor, ((0, 0), (0, teeth.COUNT)))
    regressor = torch.from_numpy(regressor)
    flat = regressor.double() @ shapes.double().reshape(shapes.shape[0], -1)
    return LinearModel(
        v_template=v_template,
        shape_dirs=shapes,
        expression_dirs=extended(model.expression_dirs),
        pose_dirs=extended(model.pose_dirs),
        weights=extended(model.weights, teeth.weights(len(joint_names), *joints)),
        parents=torch.from_numpy(model.parents),
        joint_names=joint_names,
        joints_template=(regressor.double() @ v_template.double()).float(),
        joints_shape_dirs=flat.reshape(len(joint_names), 3, -1).float(),
        joint_regressor=regressor,
    )


def _landmarks(
    body: OwnerModel, head: OwnerModel, found: dict, flame_ids: np.ndarray
) -> tuple[dict[str, LandmarkEmbedding], int]:
    """"ibug68" and "mediapipe478" on the body's faces, and how many points had to move to another face."""
    full, mp = found["landmarks"], found["mediapipe"]
    on_body = FaceFinder(body, head, flame_ids)
    weights = torch.ones(68)
    weights[:17] = _CONTOUR
    weights[7:10] = _CHIN
    ibug = on_body.embedding(full["full_faces"], full["full_barycentrics"], weights)
    faces, barycentrics = torch.zeros(478, dtype=torch.int64), torch.full((478, 3), 1 / 3)
    weights = torch.zeros(478)
    embedded = on_body.embedding(mp["mediapipe_faces"], mp["mediapipe_barycentrics"], torch.ones(105))
    at = torch.from_numpy(mp["mediapipe_ids"])
    faces[at], barycentrics[at], weights[at] = embedded.faces, embedded.barycentrics, 1.0
    for start, ids in zip((468, 473), _IRISES, strict=True):
        for i, vertex in enumerate(ids):
            face, corner = np.argwhere(body.faces == flame_ids[vertex])[0]
            faces[start + i], weights[start + i] = int(face), 1.0
            barycentrics[start + i] = torch.eye(3)[corner]
    return {"ibug68": ibug, "mediapipe478": LandmarkEmbedding(faces, barycentrics, weights)}, on_body.moved


class FaceFinder:
    """Points on FLAME's faces as points on SMPL-X's faces of the same vertices.

    Where SMPL-X has no such face, the nearest point of its neutral head is taken.
    """

    def __init__(self, body: OwnerModel, head: OwnerModel, flame_ids: np.ndarray):
        self.body_faces = body.faces
        self.head_faces = flame_ids[head.faces]
        self.by_vertices = {tuple(sorted(f)): i for i, f in enumerate(body.faces.tolist())}
        self.vertices = body.v_template.astype(np.float64)
        self.of_head = np.isin(body.faces, flame_ids).all(1).nonzero()[0]
        self.moved = 0

    def embedding(self, faces: np.ndarray, barycentrics: np.ndarray, weights: Tensor) -> LandmarkEmbedding:
        out_faces, out_bary = [], []
        for face, bary in zip(self.head_faces[faces].tolist(), barycentrics.astype(np.float64), strict=True):
            bary = bary / bary.sum()
            there = self.by_vertices.get(tuple(sorted(face)))
            if there is None:
                there, bary = self._nearest(bary @ self.vertices[face])
                self.moved += 1
            else:
                bary = bary[[face.index(v) for v in self.body_faces[there].tolist()]]
            out_faces.append(there)
            out_bary.append(bary)
        return LandmarkEmbedding(torch.tensor(out_faces), torch.tensor(np.array(out_bary)).float(), weights)

    def _nearest(self, point: np.ndarray) -> tuple[int, np.ndarray]:
        corners = self.vertices[self.body_faces[self.of_head]]
        bary = nearest_barycentrics(point, corners)
        distance = np.linalg.norm((bary[..., None] * corners).sum(1) - point, axis=1)
        best = int(distance.argmin())
        return int(self.of_head[best]), bary[best]


def nearest_barycentrics(point: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """(F, 3) barycentrics of the point of each triangle (F, 3, 3) that is nearest to ``point`` (3,)."""
    a, b, c = corners.transpose(1, 0, 2)

    def on_edge(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        along = q - p
        return (((point - p) * along).sum(1) / (along**2).sum(1).clip(1e-18)).clip(0, 1)

    zero = np.zeros(len(corners))
    t, s, r = on_edge(a, b), on_edge(b, c), on_edge(c, a)
    candidates = [
        np.stack([1 - t, t, zero], 1), np.stack([zero, 1 - s, s], 1), np.stack([r, zero, 1 - r], 1),
    ]  # fmt: skip
    normal = np.cross(b - a, c - a)
    area = (normal**2).sum(1).clip(1e-24)
    inner = np.stack(
        [
            (np.cross(c - b, point - b) * normal).sum(1) / area,
            (np.cross(a - c, point - c) * normal).sum(1) / area,
            (np.cross(b - a, point - a) * normal).sum(1) / area,
        ],
        1,
    )
    within = (inner >= 0).all(1) & (area > 1e-24)
    candidates.append(np.where(within[:, None], inner, candidates[0]))
    choices = np.stack(candidates, 1)
    distance = np.linalg.norm(np.einsum("fnk,fkc->fnc", choices, corners) - point, axis=2)
    return choices[np.arange(len(corners)), distance.argmin(1)]
