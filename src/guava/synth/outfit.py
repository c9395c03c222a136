"""Clothes and hair as geometry of their own, off the body."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from guava.synth.surface import Surface


@dataclass(frozen=True)
class Garment:
    """A top: the body's surface, refined once, cut along its hems and pushed outward.

    Its vertex k is ``(1 - cut_t) m[cut_pairs[k, 0]] + cut_t m[cut_pairs[k, 1]]`` with
    ``m[j] = mean(body[mid_pairs[j]])``, moved by ``thickness[k]`` along the normal.

    Attributes:
        mid_pairs: (M, 2) body vertices.
        cut_pairs: (N, 2) rows of ``mid_pairs``.
        cut_t: (N,).
        faces: (F, 3).
        thickness: (N,) metres.
        canonical: (N, 3).
        covered: (F_body,) bool: body faces that lie well under the garment and need not be drawn.
        average: (N, N) sparse, the mean over a vertex and its neighbours (on hems: along the hem).
        relaxation: How many averaging steps the fabric spans hollows by (it never goes under the skin).
    """

    mid_pairs: np.ndarray
    cut_pairs: np.ndarray
    cut_t: np.ndarray
    faces: np.ndarray
    thickness: np.ndarray
    canonical: np.ndarray
    covered: np.ndarray
    average: csr_matrix
    relaxation: int

    def pose(self, vertices: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Body vertices and unit normals (V, 3) -> garment vertices (N, 3)."""
        a, b = self.mid_pairs.T
        middle = 0.5 * (vertices[a] + vertices[b])
        # Phong tessellation rounds the refined surface.
        for end in (a, b):
            gap = ((0.5 * (vertices[a] + vertices[b]) - vertices[end]) * normals[end]).sum(1, keepdims=True)
            middle = middle - 0.375 * gap * normals[end]
        lean = normals[a] + normals[b]
        p, q = self.cut_pairs.T
        t = self.cut_t[:, None]
        out, n = (1 - t) * middle[p] + t * middle[q], (1 - t) * lean[p] + t * lean[q]
        n = n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-9)
        smooth, lean = out, n
        for step in range(self.relaxation):
            smooth = self.average @ smooth
            if step < 6:
                lean = self.average @ lean
        lean = lean / np.maximum(np.linalg.norm(lean, axis=1, keepdims=True), 1e-9)
        span = np.maximum(((smooth - out) * lean).sum(1), 0)
        return out + (self.thickness + span)[:, None] * lean


@dataclass(frozen=True)
class GarmentStyle:
    """Cut of a top; metres in canonical coordinates.

    Attributes:
        sleeve: |x| at which the sleeve ends.
        hem: y at which it ends.
        scoop: Depth of the neckline below the neck joint.
        v_neck: Extra depth of a V; 0 for a round neck.
        collar: Height to which the fabric follows the neck; 0 for none.
        thickness: Distance from the skin where it is tight.
        loose: Additional distance where it hangs.
        folds: Depth of folds.
        seed: Phase of the folds.
    """

    sleeve: float
    hem: float
    scoop: float
    v_neck: float
    collar: float
    thickness: float
    loose: float
    folds: float
    seed: int


def sample_garment_style(rng: np.random.Generator, *, loose: bool = False) -> GarmentStyle:
    """Draw a cut. ``loose`` gives clothes that leave the body by centimetres; otherwise by millimetres."""
    sleeve = float(rng.choice([0.30, 0.36, 0.52, 0.70], p=(0.25, 0.25, 0.1, 0.4)))
    collar = float(rng.choice([0.0, 0.015], p=(0.8, 0.2)))
    return GarmentStyle(
        sleeve=sleeve + rng.normal(0, 0.01),
        hem=float(rng.uniform(-0.06, -0.01)),
        scoop=float(rng.uniform(0.0, 0.05)) if not collar else 0.0,
        v_neck=float(rng.uniform(0.05, 0.11)) if rng.random() < 0.25 and not collar else 0.0,
        collar=collar,
        thickness=float(rng.uniform(0.004, 0.008) if not loose else rng.uniform(0.008, 0.014)),
        loose=float(rng.uniform(0.0, 0.008) if not loose else rng.uniform(0.015, 0.035)),
        folds=float(rng.uniform(0.001, 0.003) if not loose else rng.uniform(0.005, 0.009)),
        seed=int(rng.integers(1 << 30)),
    )


def build_garment(surface: Surface, style: GarmentStyle) -> Garment:
    """Cut a top of the given style out of the template's surface."""
    candidate = surface.part_faces("torso", "left_arm", "right_arm", "neck", "legs")
    faces = surface.faces[candidate]
    a, b, c = faces.T
    edges = np.sort(np.stack([a, b, b, c, c, a], 1).reshape(-1, 2), 1)
    unique, inverse = np.unique(edges, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1, 3)
    corners, corner_of = np.unique(faces, return_inverse=True)
    corner_of = corner_of.reshape(-1, 3)
    mid_pairs = np.concatenate([np.stack([corners, corners], 1), unique])
    e = inverse + len(corners)
    (a, b, c), (ab, bc, ca) = corner_of.T, e.T
    fine = np.concatenate([np.stack(x, 1) for x in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    canonical = surface.vertices[mid_pairs].mean(1)
    normals = surface.normals[mid_pairs].mean(1)
    field = _inside(surface, style, canonical)
    cut_pairs, cut_t, cut_faces = _clip(fine, field)
    t = cut_t[:, None]
    where = (1 - t) * canonical[cut_pairs[:, 0]] + t * canonical[cut_pairs[:, 1]]
    n = (1 - t) * normals[cut_pairs[:, 0]] + t * normals[cut_pairs[:, 1]]
    depth = (1 - cut_t) * field[cut_pairs[:, 0]] + cut_t * field[cut_pairs[:, 1]]
    thickness = _thickness(surface, style, where, n, depth)
    body_field = _inside(surface, style, surface.vertices)
    covered = candidate & (body_field[surface.faces].min(1) > 0.012)
    average = _neighbour_average(len(where), cut_faces)
    relaxation = int(12 + 900 * style.loose)
    return Garment(
        mid_pairs,
        cut_pairs,
        cut_t.astype(np.float32),
        cut_faces,
        thickness.astype(np.float32),
        where.astype(np.float32),
        covered,
        average,
        relaxation,
    )


def _neighbour_average(count: int, faces: np.ndarray) -> csr_matrix:
    a, b, c = faces.T
    i, j = np.concatenate([a, b, c, b, c, a]), np.concatenate([b, c, a, a, b, c])
    links = csr_matrix((np.ones(len(i)), (i, j)), (count, count))  # entries count the faces at an edge
    hem = np.zeros(count, bool)
    hem[np.concatenate(links.tocsr().multiply(links == 1).nonzero())] = True
    links.data[:] = 1
    rows = np.repeat(np.arange(count), np.diff(links.indptr))
    links.data[hem[rows] & ~hem[links.indices]] = 0
    links = links + csr_matrix((np.ones(count), (np.arange(count), np.arange(count))), (count, count))
    scale = 1 / np.asarray(links.sum(1)).ravel()
    return csr_matrix((scale, (np.arange(count), np.arange(count))), (count, count)) @ links


def _inside(surface: Surface, style: GarmentStyle, p: np.ndarray) -> np.ndarray:
    """Signed distance-like field, positive where the garment is, metres."""
    x, y, z = np.abs(p[:, 0]), p[:, 1], p[:, 2]
    neck = surface.joints[_NECK]
    top = neck[1] + 0.02
    # A tilted plane through the neck's root, lower in front; the scoop lowers its front part.
    front = np.clip((z - neck[2]) / 0.09, -1, 1.3)
    height = top - 0.035 * front - style.scoop * np.clip(front, 0, 1) + style.collar
    ring = np.hypot(x / 0.082, (z - neck[2] - 0.005) / 0.085)
    neckline = np.maximum(height - y, (ring - 1 - 4 * style.scoop * np.clip(front, 0, 1)) * 0.07)
    if style.v_neck:
        bottom = top - 0.055 - style.v_neck
        wedge = x - 0.55 * (y - bottom)
        neckline = np.where(z > neck[2], np.minimum(neckline, np.maximum(wedge, bottom - y)), neckline)
    return np.minimum(np.minimum(neckline, style.sleeve - x), y - style.hem)


_NECK, _WAIST = 12, 3
"""SMPL-X joint order: neck and spine1."""


def _thickness(surface, style, p, n, depth) -> np.ndarray:
    rng = np.random.default_rng(style.seed)
    x, y, z = p.T
    shoulder = surface.joints[16]
    on_arm = 1 / (1 + np.exp(-(np.abs(x) - shoulder[0] - 0.02) / 0.012))
    below_chest = np.clip((shoulder[1] - 0.10 - y) / 0.22, 0, 1)
    hanging = (1 - on_arm) * (0.25 + 0.75 * below_chest) + on_arm * (0.45 + 0.5 * (n[:, 1] < 0))
    out = style.thickness + style.loose * hanging
    for _ in range(4):  # folds: slanted on the trunk, round the sleeve on the arms
        k, phase, slant = rng.uniform(30, 75), rng.uniform(0, 6.3), rng.uniform(-35, 35)
        bend = 0.6 * np.sin(p @ rng.normal(0, 12, 3) + rng.uniform(0, 6.3))
        torso_wave = np.sin(slant * y + k * x * 0.6 + 0.3 * k * z + phase + bend)
        arm_wave = np.sin(k * np.abs(x) + 25 * z * np.sign(x) + phase + bend)
        wave = on_arm * arm_wave + (1 - on_arm) * torso_wave
        out = out + style.folds * (0.35 + 0.65 * np.maximum(below_chest, on_arm)) * (0.5 * wave + 0.2)
    near_hem = np.where(y < style.hem + 0.05, 1.0, np.clip((np.abs(x) - shoulder[0]) / 0.05, 0, 1))
    edge = 0.35 + 0.65 * near_hem  # sleeves and hems stand off; the neckline lies on the skin
    return np.minimum(
        np.maximum(out, 0.7 * style.thickness), style.thickness + np.maximum(depth, 0) * 0.5 + edge * out
    )


def _clip(faces: np.ndarray, field: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut triangles along ``field = 0`` and keep the positive side: vertex pairs, weights, faces."""
    inside = field > 0
    count = inside[faces].sum(1)
    whole = faces[count == 3]
    # Turn every cut face so that its odd corner comes first.
    tips, stumps = faces[count == 1], faces[count == 2]
    tips = np.take_along_axis(tips, (inside[tips].argmax(1)[:, None] + np.arange(3)) % 3, 1)
    stumps = np.take_along_axis(stumps, ((~inside[stumps]).argmax(1)[:, None] + np.arange(3)) % 3, 1)

    def edge(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return np.minimum(i, j) * len(field) + np.maximum(i, j)

    a, b, c = tips.T
    keys = [np.stack([edge(v, v) for v in whole.T], 1), np.stack([edge(a, a), edge(a, b), edge(c, a)], 1)]
    a, b, c = stumps.T
    keys.append(np.stack([edge(a, b), edge(b, b), edge(c, c)], 1))
    keys.append(np.stack([edge(a, b), edge(c, c), edge(c, a)], 1))
    unique, index = np.unique(np.concatenate(keys), return_inverse=True)
    pairs = np.stack([unique // len(field), unique % len(field)], 1)
    fi, fj = field[pairs[:, 0]], field[pairs[:, 1]]
    t = np.where(pairs[:, 0] == pairs[:, 1], 0.0, fi / np.where(fi == fj, 1, fi - fj))
    return pairs, t, index.reshape(-1, 3).astype(np.int32)


__all__ = ["Garment", "GarmentStyle", "build_garment", "sample_garment_style"]
