"""What the photo hardly shows: eyeballs behind lids, closed lids, teeth, tongue and the mouth's inside."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from guava.body import EHM, Identity, Pose
from guava.model.baseline.surface import EYEBALLS, TEETH, PosedSurface, SurfaceTables
from guava.model.baseline.texture import Projection, Texture

IRIS_ANGLE = np.radians(33)
"""From the eyeball's axis; a little more than the iris of a 12 mm eyeball."""

_TOOTH, _TONGUE, _CAVITY, _SCLERA = (
    np.float32([0.88, 0.85, 0.79]), np.float32([0.66, 0.36, 0.35]), np.float32([0.20, 0.07, 0.07]),
    np.float32([0.90, 0.88, 0.86]),
)
"""Colours under full light."""


def finish_face(texture: Texture, projection: Projection, surface: PosedSurface, tables: SurfaceTables) -> Texture:
    """Colour eyeballs, lids, teeth, tongue and cavity.

    Returns:
        The completed texture.
    """
    colors, observed = texture.colors.copy(), texture.observed.copy()
    light = _brightness(colors, observed, tables)
    for name in EYEBALLS:
        _eyeball(name, colors, observed, projection, surface, tables, light)
    _lids(colors, observed, tables)
    depth = _mouth_depth(tables)
    teeth = tables.texels_of(*TEETH)
    shade = np.clip(1 - 12 * depth, 0.35, 1)[:, None].astype(np.float32)
    colors[teeth] = (_TOOTH * light * shade)[teeth]
    tongue = tables.texels_of("tongue")
    colors[tongue] = (_TONGUE * light * shade)[tongue]
    inside = tables.texels_of("mouth_cavity")
    colors[inside] = _CAVITY * light
    sockets = tables.texels_of("eye_sockets")
    colors[sockets] = _CAVITY * light
    observed[teeth | tongue | inside | sockets] = False
    return Texture(np.clip(colors, 0, 1), observed, texture.in_picture)


def _brightness(colors: np.ndarray, observed: np.ndarray, tables: SurfaceTables) -> np.ndarray:
    """(3,) light on the face: brightness of its lit skin against typical skin, with a trace of its tint."""
    face = tables.texels_of("face") & observed
    if face.sum() < 100:
        return np.full(3, 0.8, np.float32)
    lit = np.quantile(colors[face], 0.8, axis=0)
    level = np.clip(lit.mean() / 0.62, 0.35, 1.05)
    tint = lit / max(lit.mean(), 1e-3)
    tint = 1 + 0.25 * (tint / (np.float32([1.2, 0.95, 0.85])) - 1)
    return (level * np.clip(tint, 0.7, 1.3)).astype(np.float32)


def _mouth_depth(tables: SurfaceTables) -> np.ndarray:
    """(N,) metres behind the foremost teeth, in the neutral template."""
    teeth = tables.texels_of(*TEETH)
    if not teeth.any():
        return np.zeros(len(tables.texel_face), np.float32)
    front = tables.texel_rest[teeth, 2].max()
    return np.maximum(front - tables.texel_rest[:, 2], 0)


def _eyeball(
    name: str,
    colors: np.ndarray,
    observed: np.ndarray,
    projection: Projection,
    surface: PosedSurface,
    tables: SurfaceTables,
    light: np.ndarray,
) -> None:
    """Seen texels keep the photo's colour; the hidden iris is filled round its axis, the rest is white."""
    mine = np.nonzero(tables.texels_of(name))[0]
    if not len(mine):
        return
    ball = surface.covered & tables.faces_of(name)[surface.face_ids]
    # The lids' edges and lashes spill over by a pixel.
    clean = ndimage.binary_erosion(ball, np.ones((3, 3)))
    seen = projection.visible[mine] & clean[projection.rows[mine], projection.columns[mine]]
    rest = tables.texel_rest[mine]
    from_centre = rest - 0.5 * (rest.max(0) + rest.min(0))
    angle = np.arctan2(np.hypot(from_centre[:, 0], from_centre[:, 1]), from_centre[:, 2])
    iris = angle < IRIS_ANGLE

    white = _SCLERA * light
    visible_white = seen & ~iris & (angle < np.radians(75))
    if visible_white.sum() > 20:
        sampled = projection.colors[mine][visible_white]
        bright = sampled[sampled.mean(1) >= np.quantile(sampled.mean(1), 0.6)].mean(0)
        # Lids cast shadow and skin bleeds in: trust the photo's white only so far.
        white = np.clip(0.5 * bright.mean() + 0.5 * white.mean(), 0.25, 0.95) * (0.4 * bright / bright.mean() + 0.6)
    out = np.broadcast_to(white, (len(mine), 3)).copy().astype(np.float32)
    # Darker towards the back and the corners.
    out *= np.clip(1.08 - 0.25 * (angle / np.radians(75))[:, None], 0.75, 1)

    seen_iris = seen & iris
    if seen_iris.sum() > 30:
        edges = np.linspace(0, IRIS_ANGLE, 9)
        bins = np.clip(np.digitize(angle, edges) - 1, 0, 7)
        rings = np.zeros((8, 3), np.float32)
        known = np.zeros(8, bool)
        for b in range(8):
            chosen = seen_iris & (bins == b)
            if chosen.sum() > 3:
                rings[b], known[b] = np.median(projection.colors[mine][chosen], 0), True
        for channel in range(3):
            rings[:, channel] = np.interp(np.arange(8), np.nonzero(known)[0], rings[known, channel])
        out[iris] = rings[bins[iris]]
    else:
        iris_color, pupil = np.float32([0.28, 0.19, 0.13]) * light, np.float32([0.05, 0.04, 0.04])
        out[iris] = np.where((angle[iris] < 0.4 * IRIS_ANGLE)[:, None], pupil, iris_color)
    keep = seen & (angle < np.radians(60))
    away = cKDTree(rest[keep]).query(rest)[0] if keep.sum() > 30 else np.full(len(mine), np.inf)
    share = np.where(keep, 1.0, np.exp(-((away / 0.0015) ** 2)))[:, None]
    nearest = cKDTree(rest[keep]).query(rest)[1] if keep.sum() > 30 else np.zeros(len(mine), int)
    if keep.sum() > 30:
        out = share * projection.colors[mine][keep][nearest] + (1 - share) * out
    colors[mine] = out
    observed[mine] = keep


def lid_stretch(tables: SurfaceTables) -> np.ndarray:
    """(F,) area of every face with both eyes shut over its area with both open; 1 if there are no blink units."""
    template = tables.template
    names = [n for n in ("eyeBlinkLeft", "eyeBlinkRight") if n in template.expression_names]
    pose = Pose.rest(template)
    expression = pose.expression.clone()
    for name in names:
        expression[:, template.unit(name)] = 1
    shut = Pose(pose.joints, expression, pose.body_expression, torch.ones_like(pose.eyelids), pose.translation)
    model, identity = EHM(template), Identity.neutral(template)

    def areas(p: Pose) -> np.ndarray:
        v = model(identity, p).rest_vertices[0].double().numpy()
        a, b, c = (v[tables.faces[:, k]] for k in range(3))
        return np.linalg.norm(np.cross(b - a, c - a), axis=1)

    with torch.no_grad():
        before, after = areas(pose), areas(shut)
    return np.where(before > 1e-10, after / np.maximum(before, 1e-10), 1.0)


def _lids(colors: np.ndarray, observed: np.ndarray, tables: SurfaceTables) -> None:
    """Give the lids the colour of the skin round the eyes: open eyes show of them only lashes and creases.

    The last stretch before the lid's edge keeps the photo's colours, so that lashes and liner stay.
    """
    stretch = lid_stretch(tables)[tables.texel_face]
    face = tables.texels_of("face")
    lid = face & (stretch > 1.5)
    if not lid.any():
        return
    rest = tables.texel_rest
    balls = tables.texels_of(*EYEBALLS)
    near_ball = cKDTree(rest[balls]).query(rest, distance_upper_bound=0.03, workers=-1)[0]
    clear = face & ~lid & observed & (stretch < 1.15) & (near_ball > 0.005) & (near_ball < 0.03)
    if clear.sum() < 50:
        return
    away, index = cKDTree(rest[clear]).query(rest[lid], k=64, workers=-1)
    weight = 1 / (away + 0.004) ** 2
    skin = (colors[clear][index] * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
    share = np.clip((stretch[lid] - 1.5) / 0.7, 0, 1)[:, None]
    colors[lid] = share * skin + (1 - share) * colors[lid]
    changed = np.nonzero(lid)[0][share[:, 0] > 0.5]
    observed[changed] = False
