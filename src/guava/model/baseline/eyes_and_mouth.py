"""What the photo hardly shows: eyeballs behind lids, closed lids, teeth, tongue and the mouth's inside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from guava.body import Identity, Pose, Template
from guava.body.controls import with_units
from guava.camera import Camera
from guava.model.baseline.surface import (
    EYEBALLS,
    TEETH,
    PosedSurface,
    SurfaceTables,
    pose_template,
    see,
    texel_points,
    to_camera,
)
from guava.model.baseline.texture import Projection, Texture

IRIS_RADIUS = 0.0062
"""Metres from the eyeball's axis; people differ little."""

_TOOTH, _TONGUE, _CAVITY, _SCLERA = (
    np.float32([0.88, 0.85, 0.79]),
    np.float32([0.66, 0.36, 0.35]),
    np.float32([0.20, 0.07, 0.07]),
    np.float32([0.90, 0.88, 0.86]),
)
"""Colours under full light."""


def finish_face(
    texture: Texture, projection: Projection, surface: PosedSurface, tables: SurfaceTables
) -> Texture:
    """Colour eyeballs, lids, teeth, tongue and cavity.

    Args:
        texture: Of the rest.
        projection: Of all texels.
        surface: The displaced surface as the photo sees it, at the photo's resolution.
        tables: The template's tables.

    Returns:
        The completed texture.
    """
    colors, observed = texture.colors.copy(), texture.observed.copy()
    light = _brightness(colors, observed, tables)
    for name in EYEBALLS:
        _eyeball(name, colors, observed, projection, surface, tables, light)
    _lids(colors, observed, tables)
    _mouth(colors, observed, projection, tables, light)
    sockets = tables.texels_of("eye_sockets")
    colors[sockets], observed[sockets] = _CAVITY * light, False
    return Texture(np.clip(colors, 0, 1), observed, texture.in_picture)


def _mouth(
    colors: np.ndarray, observed: np.ndarray, projection: Projection, tables: SurfaceTables, light: np.ndarray
) -> None:
    """Teeth, tongue and cavity: the photo's colours where the lips are open, else made up and darker
    inwards."""
    shade = np.clip(1 - 22 * _mouth_depth(tables), 0.25, 1)[:, None].astype(np.float32)
    for names, color, fade in (
        (TEETH, _TOOTH * light, shade),
        (("tongue",), _TONGUE * light, shade),
        (("mouth_cavity",), _CAVITY * light, 1),
    ):
        mine = tables.texels_of(*names)
        seen = mine & projection.visible
        if names == TEETH and seen.sum() > 30:
            sampled = projection.colors[seen]
            bright = sampled[sampled.mean(1) >= np.quantile(sampled.mean(1), 0.5)].mean(0)
            # Only what looks like teeth says what teeth look like.
            if bright.max() - bright.min() < 0.3 * bright.max():
                color = bright
        colors[mine] = (color * np.broadcast_to(fade, (len(colors), 1)))[mine]
        colors[seen] = projection.colors[seen]
        observed[mine] = seen[mine]


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
    clean = ndimage.binary_erosion(ball, np.ones((3, 1)))
    columns, rows = np.clip(
        np.floor(surface.project(projection.points[mine])).astype(int), 0, surface.camera.width - 1
    ).T
    seen = projection.visible[mine] & clean[rows, columns]
    rest = tables.texel_rest[mine]
    from_centre = rest - 0.5 * (rest.max(0) + rest.min(0))
    from_axis = np.hypot(from_centre[:, 0], from_centre[:, 1])
    angle = np.arctan2(from_axis, from_centre[:, 2])
    iris = (from_axis < IRIS_RADIUS) & (from_centre[:, 2] > 0)

    white = _SCLERA * light
    visible_white = seen & ~iris & (angle < np.radians(75))
    if visible_white.sum() > 20:
        sampled = projection.colors[mine][visible_white]
        bright = sampled[sampled.mean(1) >= np.quantile(sampled.mean(1), 0.6)].mean(0)
        # Lids cast shadow and skin bleeds in: trust the photo's white only so far.
        white = np.clip(0.5 * bright.mean() + 0.5 * white.mean(), 0.25, 0.95) * (
            0.4 * bright / bright.mean() + 0.6
        )
    out = np.broadcast_to(white, (len(mine), 3)).copy().astype(np.float32)
    # Darker towards the back and the corners.
    out *= np.clip(1.08 - 0.25 * (angle / np.radians(75))[:, None], 0.75, 1)

    seen_iris = seen & iris
    if seen_iris.sum() > 12:
        bins = np.clip((from_axis / IRIS_RADIUS * 8).astype(int), 0, 7)
        rings = np.zeros((8, 3), np.float32)
        known = np.zeros(8, bool)
        for b in range(8):
            chosen = seen_iris & (bins == b)
            if chosen.any():
                rings[b], known[b] = np.median(projection.colors[mine][chosen], 0), True
        for channel in range(3):
            rings[:, channel] = np.interp(np.arange(8), np.nonzero(known)[0], rings[known, channel])
        out[iris] = rings[bins[iris]]
    else:
        iris_color, pupil = np.float32([0.28, 0.19, 0.13]) * light, np.float32([0.05, 0.04, 0.04])
        out[iris] = np.where((from_axis[iris] < 0.4 * IRIS_RADIUS)[:, None], pupil, iris_color)
    keep = seen & (angle < np.radians(60))
    away = cKDTree(rest[keep]).query(rest)[0] if keep.sum() > 8 else np.full(len(mine), np.inf)
    share = np.where(keep, 1.0, np.exp(-((away / 0.0015) ** 2)))[:, None]
    nearest = cKDTree(rest[keep]).query(rest)[1] if keep.sum() > 8 else np.zeros(len(mine), int)
    if keep.sum() > 8:
        out = share * projection.colors[mine][keep][nearest] + (1 - share) * out
    colors[mine] = out
    observed[mine] = keep


@dataclass(frozen=True)
class Lids:
    """The skin that shut eyes show and open ones fold away.

    Attributes:
        share: (N,) in [0, 1]: how much a texel belongs to it.
        edge: (N,) metres to the lid's edge, on the neutral template.
    """

    share: np.ndarray
    edge: np.ndarray


_LIDS: dict[tuple[str, int], Lids] = {}


def lid_texels(tables: SurfaceTables) -> Lids:
    """The face's texels that cover the eyeballs when both eyes shut, found by looking at the template from
    the front with open and with shut eyes. Made once per template."""
    key = (tables.template.hash, len(tables.texel_face))
    if key not in _LIDS:
        _LIDS.clear()
        _LIDS[key] = _find_lids(tables)
    return _LIDS[key]


def shut_eyes(template: Template) -> Pose:
    """The rest pose with both eyes shut, by blink units or by lid directions."""
    return with_units(Pose.rest(template), template, {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0})


def _find_lids(tables: SurfaceTables) -> Lids:
    template, identity = tables.template, Identity.neutral(tables.template)
    opened = pose_template(template, identity, Pose.rest(template)).vertices[0]
    closed = pose_template(template, identity, shut_eyes(template)).vertices[0]
    balls = tables.faces_of(*EYEBALLS)
    eyes = opened[template.faces[torch.from_numpy(balls)]].reshape(-1, 3)
    middle = 0.5 * (eyes.amax(0) + eyes.amin(0))
    width = float((eyes[:, 0].amax() - eyes[:, 0].amin()) * 1.4)
    size = 512
    # A far camera in front of the eyes: nearly orthographic.
    camera = Camera.frontal(size, focal_ndc=100.0)
    shift = torch.tensor([0.0, 0.0, -100.0 * width / 2]) - middle
    face = tables.faces_of("face")

    def look(vertices: torch.Tensor) -> tuple[np.ndarray, PosedSurface]:
        surface = see(to_camera(vertices + shift, camera), tables, camera)
        return surface.covered & balls[surface.face_ids], surface

    opening, _ = look(opened)
    _, surface = look(closed)
    points = texel_points(surface.vertices, tables)
    pixels = np.floor(surface.project(points)).astype(int)
    inside = (pixels >= 0).all(1) & (pixels < size).all(1)
    columns, rows = np.clip(pixels, 0, size - 1).T
    nearest = points[:, 2] < surface.depth[rows, columns] + 0.003
    distance = ndimage.distance_transform_edt(~opening) * width / size
    fade = np.clip(1 - (distance[rows, columns] - 0.0005) / 0.0025, 0, 1)
    skin = face[tables.texel_face]
    share = np.where(inside & nearest & skin, fade, 0.0)

    # Faces that share vertices with what lies behind the lids make the lid's edge.
    behind = np.zeros(len(opened), bool)
    behind[tables.faces[tables.faces_of("eye_sockets")].ravel()] = True
    rim = np.zeros(len(opened), bool)
    rim[tables.faces[face].ravel()] = True
    rim &= behind
    edge = np.full(len(share), np.inf)
    if rim.any():
        edge = cKDTree(opened.numpy()[rim]).query(tables.texel_rest, distance_upper_bound=0.02, workers=-1)[0]
    return Lids(share.astype(np.float32), edge)


def _lids(colors: np.ndarray, observed: np.ndarray, tables: SurfaceTables) -> None:
    """Give the lids the colour of the skin round the eyes: open eyes show of them only lashes and creases."""
    lids = lid_texels(tables)
    face, lid = tables.texels_of("face"), lids.share > 0
    if not lid.any():
        return
    rest = tables.texel_rest
    near = cKDTree(rest[lid]).query(rest, distance_upper_bound=0.015, workers=-1)[0]
    # Not the skin right beside the eye: shadow and lashes.
    clear = face & ~lid & observed & (near > 0.003) & (near < 0.015)
    if clear.sum() < 50:
        return
    away, index = cKDTree(rest[clear]).query(rest[lid], k=96, workers=-1)
    neighbours = colors[clear][index]
    # Brows are dark and near, so the darker neighbours do not count.
    level = neighbours.mean(2)
    weight = (level >= np.quantile(level, 0.55, axis=1, keepdims=True)) / (away + 0.006) ** 2
    skin = (neighbours * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
    # Lashes: the edge itself stays dark.
    lash = np.exp(-((lids.edge[lid] / 0.0006) ** 2))[:, None]
    skin = skin * (0.97 - 0.35 * lash)
    share = lids.share[lid][:, None]
    colors[lid] = share * skin + (1 - share) * colors[lid]
    observed[np.nonzero(lid)[0][share[:, 0] > 0.5]] = False
