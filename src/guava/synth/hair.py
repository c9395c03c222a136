"""Hair as locks: tapered strips that grow from the scalp, are combed, fall, and lie on head and shoulders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from guava.synth.surface import Surface

HAIR_LENGTHS = ("short", "medium", "long", "curly", "tied")


@dataclass(frozen=True)
class Hair:
    """Locks in the rest pose of one identity.

    Attributes:
        vertices: (N, 3) rest positions.
        normals: (N, 3) unit, for shading.
        faces: (F, 3).
        extra: (N, 3) position along the lock [0, 1], the lock's shade [0, 1], position across it in metres.
        head_weight: (N,) share of the head joint; the rest follows the chest.
    """

    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    extra: np.ndarray
    head_weight: np.ndarray

    def pose(self, head: np.ndarray, chest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rest-to-posed transforms (4, 4) of the head and chest joints -> vertices and normals (N, 3)."""
        w = self.head_weight[:, None, None]
        blend = w * head[:3] + (1 - w) * chest[:3]
        moved = np.einsum("nij,nj->ni", blend[:, :, :3], self.vertices) + blend[:, :, 3]
        normals = np.einsum("nij,nj->ni", blend[:, :, :3], self.normals)
        return moved, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)


def hairline_height(surface: Surface, hairline: float, p: np.ndarray) -> np.ndarray:
    """Canonical y (N,) above which the scalp at canonical points (N, 3) carries hair."""
    eyes = surface.eye_centers.mean(0)
    back = np.maximum(0, eyes[2] - 0.012 - p[:, 2])
    return eyes[1] + hairline - 0.9 * back - 2.2 * np.maximum(0, eyes[2] - 0.06 - p[:, 2])


def grow_hair(
    rng: np.random.Generator,
    surface: Surface,
    vertices: np.ndarray,
    normals: np.ndarray,
    hairline: float,
    style: str,
    clearance: float = 0.012,
) -> Hair:
    """Grow the locks of one person.

    Args:
        rng: Source of randomness.
        surface: Of the template.
        vertices, normals: (V, 3) the person's rest mesh (own identity, neutral face).
        hairline: Metres above the eyes.
        style: One of ``HAIR_LENGTHS``.
        clearance: Distance kept from the trunk, for clothes.
    """
    canonical = surface.vertices
    on_head = surface.part_vertices("scalp", "face")
    eyes = surface.eye_centers.mean(0)
    hairy = on_head & (canonical[:, 1] > hairline_height(surface, hairline, canonical) + 0.002)
    ear = (
        (np.abs(canonical[:, 0]) > 0.069)
        & (canonical[:, 1] < eyes[1] + 0.02)
        & (canonical[:, 2] > eyes[2] - 0.095)
    )
    hairy &= ~ear & (normals @ [0, 0, 1.0] < 0.985)
    face_ids = np.flatnonzero(hairy[surface.faces].all(1) & surface.part_faces("scalp", "face"))
    corners = vertices[surface.faces[face_ids]]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    length, spread, locks, width, steps, lift = {
        "short": (rng.uniform(0.022, 0.045), 0.25, 900, 0.009, 6, 0.010),
        "medium": (rng.uniform(0.13, 0.20), 0.18, 700, 0.013, 13, 0.014),
        "long": (rng.uniform(0.27, 0.40), 0.15, 700, 0.014, 18, 0.014),
        "curly": (rng.uniform(0.03, 0.06), 0.8, 1100, 0.012, 7, 0.020),
        "tied": (rng.uniform(0.08, 0.10), 0.08, 650, 0.012, 9, 0.006),
    }[style]
    picked = face_ids[rng.choice(len(face_ids), locks, p=area / area.sum())]
    w = rng.dirichlet((1, 1, 1), locks)[..., None]
    roots = (vertices[surface.faces[picked]] * w).sum(1).astype(float)
    rest = (canonical[surface.faces[picked]] * w).sum(1).astype(float)
    up = (normals[surface.faces[picked]] * w).sum(1).astype(float)
    up /= np.linalg.norm(up, axis=1, keepdims=True)

    head_ids = np.flatnonzero(
        surface.part_vertices("scalp", "face", "neck", "torso", "left_arm", "right_arm")
    )
    trunk = surface.part_vertices("torso", "left_arm", "right_arm")[head_ids]
    tree = cKDTree(vertices[head_ids])
    parting = rng.choice([-0.03, 0.0, 0.03])
    crown = np.array([parting, eyes[1] + 0.085, eyes[2] - 0.115])
    side = np.where(rest[:, 0] > parting, 1.0, -1.0)
    forward_share = rng.uniform(-0.2, 0.5)
    if style == "tied":
        knot = vertices[head_ids[~trunk]].mean(0) * [0, 0, 0] + np.array(
            [0, eyes[1] + rng.uniform(-0.01, 0.06), canonical[on_head][:, 2].min() - 0.012]
        )
        comb = knot - roots
    elif style in ("short", "curly"):
        comb = rest - crown
        comb[:, 0] += 0.02 * side
        comb[:, 2] += forward_share * 0.05
    else:
        comb = np.stack(
            [side * 0.9, np.full(locks, -0.25), np.where(rest[:, 2] > eyes[2] - 0.06, -0.45, -0.3)], 1
        )
    comb = comb / np.linalg.norm(comb, axis=1, keepdims=True) + rng.normal(0, spread, (locks, 3))
    # Fewer centimetres are left near the nape and the temples of short hair.
    own = length * rng.uniform(0.8, 1.12, locks)
    if style == "short":
        own *= np.clip(0.4 + (rest[:, 1] - eyes[1]) / 0.09, 0.35, 1.0)
    step = own / steps
    direction = comb - up * (comb * up).sum(1, keepdims=True)
    direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
    direction = direction + up * (0.9 if style == "curly" else 0.45)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    layer = rng.uniform(0.3, 1.0, locks) ** 1.5
    shade = rng.random(locks)
    wave, wave_phase = rng.uniform(0, 0.16) * (style in ("medium", "long")), rng.uniform(0, 6.3, locks)
    points, outs = [roots], [up]
    p = roots - 0.001 * up
    for k in range(steps):
        p = p + step[:, None] * direction
        distance, near = tree.query(p)
        n = normals[head_ids[near]].astype(float)
        gap = ((p - vertices[head_ids[near]]) * n).sum(1)
        t = (k + 1) / steps
        wanted = lift * layer * min(1.0, 2.5 * t) * (0.55 if style == "short" and t > 0.8 else 1.0)
        wanted = np.where(trunk[near], clearance + 0.6 * lift * layer, wanted)
        push = np.where((distance < 0.05) & (gap < wanted), wanted - gap, 0.0)
        p = p + push[:, None] * n
        if style in ("medium", "long"):
            # Hair is tucked beside the face, never across it.
            before = (p[:, 2] > eyes[2] - 0.055) & (p[:, 1] > eyes[1] - 0.16)
            room = (0.074 + 0.010 * layer) * np.clip((eyes[1] + 0.088 - p[:, 1]) / 0.04, 0, 1)
            p[:, 0] = np.where(before & (np.abs(p[:, 0]) < room), side * room, p[:, 0])
            # Locks stay near the neck: the arms of the rest pose are not there when they hang.
            wide = np.where(p[:, 1] < eyes[1] - 0.10, 0.085 + 0.035 * layer, 1.0)
            p[:, 0] = np.clip(p[:, 0], -wide, wide)
        points.append(p)
        outs.append(n)
        gravity = {"short": 0.12, "curly": 0.0, "tied": 0.0}.get(style, 0.36)
        direction = (p - points[-2]) / np.maximum(np.linalg.norm(p - points[-2], axis=1, keepdims=True), 1e-9)
        direction = direction * (1 - gravity) + gravity * np.array([0, -1.0, 0])
        if style == "tied":
            direction = 0.4 * direction + 0.6 * (knot - p) / np.linalg.norm(knot - p, axis=1, keepdims=True)
            step = np.minimum(step, np.linalg.norm(knot - p, axis=1) * 0.6)
        if style == "curly":
            direction = direction + rng.normal(0, 0.9, (locks, 3))
        if wave:
            swing = np.cross(n, direction)
            direction = direction + wave * np.sin(9 * t + wave_phase)[:, None] * swing
        direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
    line, out = np.stack(points, 1), np.stack(outs, 1)  # (locks, steps + 1, 3)
    hair = _strips(rng, line, out, width, shade, eyes[1])
    return hair if style != "tied" else _with_bun(rng, hair, knot, eyes[1])


def _strips(rng, line, out, width, shade, eye_height) -> Hair:
    """Roof-shaped strips along the locks: left edge, ridge, right edge."""
    locks, rows = line.shape[:2]
    along = np.gradient(line, axis=1)
    along /= np.maximum(np.linalg.norm(along, axis=2, keepdims=True), 1e-9)
    out = (out + np.roll(out, 1, 1) + np.roll(out, -1, 1)) / 3
    across = np.cross(along, out)
    across /= np.maximum(np.linalg.norm(across, axis=2, keepdims=True), 1e-9)
    ridge = np.cross(across, along)
    t = np.linspace(0, 1, rows)
    half = 0.5 * width * rng.uniform(0.7, 1.3, locks)[:, None] * (0.65 + 0.6 * t - 1.1 * t**4)[None]
    half = np.maximum(half, 0.0006)[..., None]
    left, middle, right = line - half * across, line + 0.22 * half * ridge, line + half * across
    vertices = np.stack([left, middle, right], 2).reshape(-1, 3)
    normals = np.stack([ridge - 0.75 * across, ridge, ridge + 0.75 * across], 2).reshape(-1, 3)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    extra = np.zeros((locks, rows, 3, 3), np.float32)
    extra[..., 0] = t[None, :, None]
    extra[..., 1] = shade[:, None, None]
    extra[..., 2] = np.concatenate([-half, 0 * half, half], 2)
    index = np.arange(locks * rows * 3).reshape(locks, rows, 3)
    a, b, c, d = index[:, :-1, :-1], index[:, :-1, 1:], index[:, 1:, 1:], index[:, 1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    weight = np.clip((vertices[:, 1] - (eye_height - 0.32)) / 0.18, 0, 1)
    return Hair(
        vertices.astype(np.float32),
        normals.astype(np.float32),
        faces.astype(np.int32),
        extra.reshape(-1, 3),
        weight.astype(np.float32),
    )


def _with_bun(rng, hair: Hair, knot: np.ndarray, eye_height: float) -> Hair:
    """A bun of wound strips at the knot."""
    count, rows, radius = 60, 16, rng.uniform(0.03, 0.042)
    axis = rng.normal(0, 0.5, (count, 3)) + [0, 0.2, -1]
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    first = np.cross(axis, [0.3, 1, 0.1])
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(axis, first)
    angle = rng.uniform(0, 6.3, count)[:, None] + np.linspace(0, 3.6, rows)[None]
    high = rng.uniform(-0.75, 0.75, count)
    ring = np.sqrt(1 - high**2)[:, None, None] * (
        np.cos(angle)[..., None] * first[:, None] + np.sin(angle)[..., None] * second[:, None]
    )
    unit = ring + (high[:, None] * axis)[:, None]
    line = knot - [0, 0, 0.4 * radius] + radius * unit
    bun = _strips(rng, line, unit, 0.016, rng.random(count), eye_height - 0.1)
    return Hair(
        np.concatenate([hair.vertices, bun.vertices]),
        np.concatenate([hair.normals, bun.normals]),
        np.concatenate([hair.faces, bun.faces + len(hair.vertices)]),
        np.concatenate([hair.extra, bun.extra]),
        np.concatenate([hair.head_weight, np.ones_like(bun.head_weight)]),
    )
