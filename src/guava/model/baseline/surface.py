"""What the baseline knows about a template's surface, and the surface as the photo sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from scipy import ndimage
from scipy.sparse.linalg import factorized
from scipy.spatial import cKDTree
from torch import Tensor

from guava.body import EHM, EHMOutput, Identity, Pose, Template
from guava.camera import Camera
from guava.rendering.mesh import MeshFragments, rasterize_mesh, rasterize_uv

TORSO, ARM, HEAD, HAND = 0, 1, 2, 3
"""Body classes. Neck counts as head, legs as torso."""

TRUNK, LEFT, RIGHT = 0, 1, 2
"""Limb groups: nothing is blended between {head, neck, torso}, {left arm} and {right arm}, so that nothing
webs."""

EYEBALLS = ("left_eyeball", "right_eyeball")
TEETH = ("lower_teeth", "upper_teeth")
INNER_PARTS = (*EYEBALLS, *TEETH, "tongue", "mouth_cavity", "eye_sockets")
"""Parts that lie behind lids and lips."""

_LIMITS = {
    "torso": 0.10,
    "left_arm": 0.10,
    "right_arm": 0.10,
    "legs": 0.10,
    "scalp": 0.08,
    "neck": 0.015,
    "left_hand": 0.004,
    "right_hand": 0.004,
    "face": 0.006,
}
LOCKED = 1e-4
"""Displacement limit of what must not move: the inner parts."""

_DIRECTION_SMOOTHING = 0.02
"""Metres over which displacement directions are averaged, so that ears and folds move as a whole."""


@dataclass(frozen=True)
class SurfaceTables:
    """Static tables of one template at one atlas size (V vertices, F faces, N texels).

    Attributes:
        faces: (F, 3) int64.
        face_class: (F,) TORSO, ARM, HEAD or HAND.
        face_group: (F,) TRUNK, LEFT or RIGHT.
        vertex_limit: (V,) metres, how far the silhouette may push a vertex outwards.
        laplacian: (V, V) cotangent Laplacian (positive semi-definite) of the neutral mesh.
        vertex_area: (V,) square metres.
        smoother: Solves (A + l^2 L) x = A b for b (V,): an average over l = 2 cm of surface.
        texel_face: (N,) face of every texel. Legs and the front of the eyeballs are sampled more finely than
            the atlas.
        texel_size: (N,) side of what a sample stands for, in texels.
        texel_barycentrics: (N, 3) float32.
        texel_rows, texel_columns: (N,) place in the atlas.
        texel_rest: (N, 3) float32 place on the neutral template in the T pose.
        texel_normal: (N, 3) float32 outward normal there.
        texel_part: (N,) index into ``Template.part_names``.
        texel_jacobian: (F, 2, 3): d(barycentric)/d(column), d(row) of every face: texel steps on the surface.
        mirror: (N,) texel nearest to the left-right mirrored place.
        texel_border: (N,) bool: a neighbouring texel is empty; beyond it lies a seam of the atlas.
    """

    template: Template
    faces: np.ndarray
    face_class: np.ndarray
    face_group: np.ndarray
    vertex_limit: np.ndarray
    laplacian: sp.csr_matrix
    vertex_area: np.ndarray
    smoother: Callable[[np.ndarray], np.ndarray]
    texel_face: np.ndarray
    texel_size: np.ndarray
    texel_barycentrics: np.ndarray
    texel_rows: np.ndarray
    texel_columns: np.ndarray
    texel_rest: np.ndarray
    texel_normal: np.ndarray
    texel_part: np.ndarray
    texel_jacobian: np.ndarray
    mirror: np.ndarray
    texel_border: np.ndarray

    @property
    def texel_class(self) -> np.ndarray:
        """(N,) body class of every texel."""
        return self.face_class[self.texel_face]

    def texels_of(self, *parts: str) -> np.ndarray:
        """(N,) bool: the texels of the named parts; names that the template lacks are skipped."""
        wanted = [self.template.part_names.index(p) for p in parts if p in self.template.part_names]
        return np.isin(self.texel_part, wanted)

    def faces_of(self, *parts: str) -> np.ndarray:
        """(F,) bool: the faces of the named parts; names that the template lacks are skipped."""
        wanted = [self.template.part_names.index(p) for p in parts if p in self.template.part_names]
        return np.isin(self.template.face_parts.numpy(), wanted)


EYE_SPLIT = 4
"""Samples a texel's side on the front of the eyeballs."""
FINER, FINER_SPLIT = ("legs",), 3
"""Parts to which an atlas made for upper bodies gives few texels, 13 mm wide, and the samples a texel's side
there."""

_TABLES: dict[tuple[str, int], SurfaceTables] = {}


def surface_tables(template: Template, texture_size: int) -> SurfaceTables:
    """Tables for a template, made once per process: they take a second."""
    key = (template.hash, texture_size)
    if key not in _TABLES:
        _TABLES.clear()
        _TABLES[key] = _make_tables(template, texture_size)
    return _TABLES[key]


def _make_tables(template: Template, texture_size: int) -> SurfaceTables:
    faces = template.faces.numpy().astype(np.int64)
    part_names = template.part_names
    face_part = template.face_parts.numpy()
    neutral = EHM(template)(Identity.neutral(template), Pose.rest(template)).rest_vertices[0].double().numpy()

    def part_class(name: str) -> int:
        if name in ("torso", "legs"):
            return TORSO
        if name.endswith("_arm"):
            return ARM
        return HAND if name.endswith("_hand") else HEAD

    face_class = np.array([part_class(name) for name in part_names])[face_part]
    side = np.array(
        [LEFT if n.startswith("left_") else RIGHT if n.startswith("right_") else TRUNK for n in part_names]
    )
    limb = np.array([n.endswith(("_arm", "_hand")) for n in part_names])
    face_group = np.where(limb, side, TRUNK)[face_part]

    limit_of = np.array([_LIMITS.get(name, LOCKED) for name in part_names])
    vertex_limit = np.full(len(neutral), np.inf)
    np.minimum.at(vertex_limit, faces.ravel(), np.repeat(limit_of[face_part], 3))
    vertex_limit[~np.isfinite(vertex_limit)] = LOCKED
    laplacian, area = _cotangent_laplacian(neutral, faces)
    solve = factorized((sp.diags(area + 1e-12) + _DIRECTION_SMOOTHING**2 * laplacian).tocsc())

    coarse = ~np.isin(face_part, [part_names.index(name) for name in FINER if name in part_names])
    samples = [_atlas_samples(template, texture_size, 1, coarse)]
    if not coarse.all():
        samples.append(_atlas_samples(template, texture_size, FINER_SPLIT, ~coarse))
    rows, columns, texel_face, barycentrics, border, size = (
        np.concatenate(values) for values in zip(*samples, strict=True)
    )
    jacobian = _texel_jacobian(template, texture_size)
    rest = (neutral[faces[texel_face]] * barycentrics[..., None]).sum(1).astype(np.float32)

    # Eyes are small and looked at first: split the texels of the eyeballs' fronts.
    front = np.zeros(len(rest), bool)
    for name in EYEBALLS:
        if name in part_names:
            ball = np.nonzero(face_part[texel_face] == part_names.index(name))[0]
            if len(ball):
                low, high = rest[ball].min(0), rest[ball].max(0)
                front[ball] = rest[ball, 2] > low[2] + 0.75 * (high[2] - low[2])
    index = np.nonzero(front)[0]
    split_face, split_barycentrics = split_samples(
        texel_face[index], barycentrics[index], EYE_SPLIT, jacobian
    )
    repeat = EYE_SPLIT**2
    texel_face = np.concatenate([texel_face[~front], split_face])
    barycentrics = np.concatenate([barycentrics[~front], split_barycentrics]).astype(np.float32)
    rows = np.concatenate([rows[~front], np.repeat(rows[index], repeat)])
    columns = np.concatenate([columns[~front], np.repeat(columns[index], repeat)])
    border = np.concatenate([border[~front], np.zeros(len(split_face), bool)])
    size = np.concatenate([size[~front], np.repeat(size[index] / EYE_SPLIT, repeat)])
    rest = (neutral[faces[texel_face]] * barycentrics[..., None]).sum(1).astype(np.float32)
    normal = (vertex_normals(neutral, faces)[faces[texel_face]] * barycentrics[..., None]).sum(1)
    _, mirror = cKDTree(rest).query(rest * np.float32([-1, 1, 1]), workers=-1)
    return SurfaceTables(
        template,
        faces,
        face_class,
        face_group,
        vertex_limit,
        laplacian,
        area,
        lambda values: solve((area + 1e-12) * values),
        texel_face,
        size,
        barycentrics,
        rows,
        columns,
        rest,
        normal.astype(np.float32),
        face_part[texel_face],
        jacobian,
        mirror,
        border,
    )


def _atlas_samples(
    template: Template, texture_size: int, split: int, chosen: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Samples of the faces ``chosen`` (F,), ``split`` a side of a texel: row, column, face, barycentrics,
    whether at a border, and side in texels."""
    atlas = rasterize_uv(template, texture_size * split)
    mask = atlas.mask.numpy()
    border = ~ndimage.binary_erosion(mask, np.ones((3, 3)))
    mask = mask & chosen[np.maximum(atlas.face_ids.numpy(), 0)]
    rows, columns = np.nonzero(mask)
    return (
        rows // split,
        columns // split,
        atlas.face_ids.numpy()[mask].astype(np.int64),
        atlas.barycentrics.numpy()[mask],
        border[mask],
        np.full(len(rows), 1 / split),
    )


def split_samples(
    face_ids: np.ndarray, barycentrics: np.ndarray, count: int, jacobian: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` x ``count`` sub-samples of texels.

    Args:
        face_ids: (n,).
        barycentrics: (n, 3) of the texels' centres.
        count: Sub-samples a side.
        jacobian: (F, 2, 3), :attr:`SurfaceTables.texel_jacobian`.

    Returns:
        Face (n count^2,) and barycentrics (n count^2, 3), those of one texel in a row; they may lie a little
        outside the face.
    """
    offsets = (np.arange(count) + 0.5) / count - 0.5
    right, down = np.meshgrid(offsets, offsets)
    steps = np.stack([right.ravel(), down.ravel()], 1)
    moved = barycentrics[:, None] + np.einsum("ks,nsb->nkb", steps, jacobian[face_ids])
    return np.repeat(face_ids, count**2), moved.reshape(-1, 3)


def _cotangent_laplacian(vertices: np.ndarray, faces: np.ndarray) -> tuple[sp.csr_matrix, np.ndarray]:
    """Cotangent Laplacian (V, V) with weights clamped to [0.025, 2.5], and vertex areas (V,)."""
    count = len(vertices)
    rows, columns, weights, area = [], [], [], np.zeros(count)
    for k in range(3):
        corner, first, second = faces[:, k], faces[:, (k + 1) % 3], faces[:, (k + 2) % 3]
        e1, e2 = vertices[first] - vertices[corner], vertices[second] - vertices[corner]
        cross = np.linalg.norm(np.cross(e1, e2), axis=1) + 1e-12
        cotangent = np.clip((e1 * e2).sum(1) / cross, 0.05, 5) / 2
        rows += [first, second]
        columns += [second, first]
        weights += [cotangent, cotangent]
        np.add.at(area, corner, cross / 6)
    matrix = sp.csr_matrix(
        (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), (count, count)
    )
    return (sp.diags(np.asarray(matrix.sum(1)).ravel()) - matrix).tocsr(), area


def _texel_jacobian(template: Template, size: int) -> np.ndarray:
    """(F, 2, 3): how the barycentrics change by one texel to the right and one texel down."""
    corners = (template.uv.double() * size)[template.uv_faces].numpy()
    e1, e2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    det = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
    det = np.where(np.abs(det) < 1e-9, 1e-9, det)
    # (b1, b2) = inverse([e1 e2]) @ (column, row); b0 = 1 - b1 - b2.
    b1 = np.stack([e2[:, 1], -e2[:, 0]], 1) / det[:, None]
    b2 = np.stack([-e1[:, 1], e1[:, 0]], 1) / det[:, None]
    return np.stack([-b1 - b2, b1, b2], -1)


# --- the surface in the photo's pose
# ----------------------------------------------------------------------------


@dataclass(frozen=True)
class PosedSurface:
    """A mesh in the photo's pose, in camera coordinates (x right, y down, z forward), and what the photo sees
    of it.

    Attributes:
        vertices: (V, 3) float64.
        normals: (V, 3) outward unit normals.
        camera: Of the square picture that all maps below share (size S).
        face_ids: (S, S), -1 where nothing is seen.
        barycentrics: (S, S, 3).
        depth: (S, S) metres; infinite where nothing is seen.
    """

    vertices: np.ndarray
    normals: np.ndarray
    camera: Camera
    face_ids: np.ndarray
    barycentrics: np.ndarray
    depth: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """(S, S) bool."""
        return self.face_ids >= 0

    def project(self, points: np.ndarray) -> np.ndarray:
        """Camera coordinates (N, 3) -> pixels (N, 2)."""
        k = self.camera.intrinsics.double().numpy()
        homogeneous = points @ k.T
        return homogeneous[:, :2] / np.maximum(homogeneous[:, 2:], 1e-8)

    def lift(self, columns: np.ndarray, rows: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Pixel centres (N,), (N,) at depths (N,) -> camera coordinates (N, 3)."""
        k = np.linalg.inv(self.camera.intrinsics.double().numpy())
        rays = np.stack([columns + 0.5, rows + 0.5, np.ones_like(depth)], 1) @ k.T
        return rays * (depth / rays[:, 2])[:, None]

    @property
    def focal(self) -> float:
        """Pixels per unit of x / z."""
        return float(self.camera.intrinsics[0, 0])

    def class_map(self, tables: SurfaceTables) -> np.ndarray:
        """(S, S) body class, -1 where nothing is seen."""
        return np.where(self.covered, tables.face_class[self.face_ids], -1)


def to_camera(points: Tensor, camera: Camera) -> np.ndarray:
    """World points (N, 3) -> camera coordinates, float64."""
    return camera.to(dtype=torch.float64).transform(points.double()).numpy()


def to_world(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Camera coordinates (N, 3) -> world, float64."""
    w2c = camera.world_to_camera.double().numpy()
    return (points - w2c[:3, 3]) @ w2c[:3, :3]


def see(
    vertices: np.ndarray, tables: SurfaceTables, camera: Camera, left_out: np.ndarray | None = None
) -> PosedSurface:
    """Z-buffer a mesh given in camera coordinates.

    Args:
        vertices: (V, 3).
        tables: The template's tables.
        camera: Of the square picture; only its intrinsics count.
        left_out: (F,) bool, faces that hide nothing and are not seen.
    """
    viewer = Camera(torch.eye(4), camera.intrinsics, camera.width, camera.height)
    faces = tables.template.faces
    if left_out is not None:
        # Face numbers must stay: a face of one corner has no area.
        faces = torch.where(torch.from_numpy(left_out)[:, None], faces[:, :1], faces)
    fragments: MeshFragments = rasterize_mesh(torch.from_numpy(vertices), faces, viewer)
    return PosedSurface(
        vertices,
        vertex_normals(vertices, tables.faces),
        camera,
        fragments.face_ids.numpy(),
        fragments.barycentrics.numpy(),
        fragments.depth.double().numpy(),
    )


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (V, 3)."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    area = np.cross(b - a, c - a)
    total = np.zeros_like(vertices)
    for axis in range(3):
        for k in range(3):
            total[:, axis] += np.bincount(faces[:, k], area[:, axis], len(vertices))
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-20)


def displacement_directions(normals: np.ndarray, tables: SurfaceTables) -> np.ndarray:
    """(V, 3) unit directions in which the silhouette moves vertices: normals averaged over the surface."""
    smooth = np.stack([tables.smoother(normals[:, axis]) for axis in range(3)], 1)
    return smooth / np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-9)


def texel_points(
    values: np.ndarray, tables: SurfaceTables, chosen: np.ndarray | slice = slice(None)
) -> np.ndarray:
    """Per-vertex values (V, C) at the texels (N, C)."""
    corners = values[tables.faces[tables.texel_face[chosen]]]
    return np.einsum("nk,nkc->nc", tables.texel_barycentrics[chosen], corners)


_MODELS: dict[str, EHM] = {}


def pose_template(template: Template, identity: Identity, pose: Pose) -> EHMOutput:
    """The EHM of Eq. 1 without gradients; the model is kept."""
    if template.hash not in _MODELS:
        _MODELS.clear()
        _MODELS[template.hash] = EHM(template)
    with torch.no_grad():
        return _MODELS[template.hash](identity, pose)
