"""Colours of the surface: projection sampling and inverse texture mapping where the photo sees it, fills
elsewhere.

A texel is *observed* where the z-buffer says that the photo sees it, and not through a mixed, hairy or
doubtful pixel. What is not observed is inferred, the best guess first:

1. limbs: rings round the limb's axis (a sleeve's end stays a ring);
2. face and hands: the mirrored side, with its light matched to this side's;
3. back of the head: hair colours inpainted across the face, projected onto the head in rows;
4. torso: the photo's colour at the texel's own projection, as if the torso were transparent;
5. hands that the detector did not see, unless the other hand can be mirrored: the face's skin colour;
6. the rest: nearest known texels of the same body class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from guava.camera import Camera
from guava.model.baseline.images import blur, grow, nearest, pull_push, shrink
from guava.model.baseline.matte import SourcePicture
from guava.model.baseline.surface import (
    ARM,
    HAND,
    HEAD,
    INNER_PARTS,
    LEFT,
    RIGHT,
    TORSO,
    PosedSurface,
    SurfaceTables,
    texel_points,
)
from guava.model.sampling import sample_projected, visible_points
from guava.rendering import MeshFragments


@dataclass(frozen=True)
class Texture:
    """Colours of the N texels.

    Attributes:
        colors: (N, 3) float32 in [0, 1].
        observed: (N,) bool: sampled from a visible pixel.
        in_picture: (N,) bool: the texel projects into the photo, seen or not.
    """

    colors: np.ndarray
    observed: np.ndarray
    in_picture: np.ndarray


@dataclass(frozen=True)
class Projection:
    """Where the texels lie in the picture.

    Attributes:
        points: (N, 3) camera coordinates on the displaced surface.
        facing: (N,) cosine between the surface's normal and the view, positive towards the camera.
        rows, columns: (N,) pixel of the working picture, clipped to it.
        inside: (N,) bool.
        colors: (N, 3) Eq. 2 samples of the person's colours.
        visible: (N,) bool, by z-buffer and facing alone.
    """

    points: np.ndarray
    facing: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    inside: np.ndarray
    colors: np.ndarray
    visible: np.ndarray


def project_texels(
    picture: SourcePicture, surface: PosedSurface, fine: PosedSurface, tables: SurfaceTables
) -> Projection:
    """Sample the photo at every texel (Eq. 2, Eq. 6) and test the z-buffer (B.4).

    Args:
        picture: The cut-out photo.
        surface: The displaced surface, seen at the picture's working size.
        fine: The same, seen at the size of the picture's colours.
        tables: The template's tables.
    """
    points = texel_points(surface.vertices, tables)
    normals = texel_points(surface.normals, tables)
    viewer = Camera(torch.eye(4), fine.camera.intrinsics, fine.camera.width, fine.camera.height)
    world = torch.from_numpy(points.astype(np.float32))
    features = torch.from_numpy(np.ascontiguousarray(picture.fine_foreground.transpose(2, 0, 1)))[None]
    colors = sample_projected(features, world[None], viewer)[0].numpy()
    fragments = MeshFragments(
        torch.from_numpy(fine.face_ids),
        torch.from_numpy(fine.barycentrics),
        torch.from_numpy(fine.depth.astype(np.float32)),
    )
    visible = visible_points(world, viewer, fragments, tolerance=0.006).numpy()
    pixels = np.floor(surface.project(points)).astype(int)
    inside = (pixels >= 0).all(1) & (pixels < picture.size).all(1)
    columns, rows = np.clip(pixels, 0, picture.size - 1).T
    inside &= picture.inside[rows, columns]
    view = points / np.linalg.norm(points, axis=1, keepdims=True)
    facing = -(normals * view).sum(1) / np.maximum(np.linalg.norm(normals, axis=1), 1e-9)
    return Projection(points, facing, rows, columns, inside, colors, visible & inside & (facing > 0.15))


def observed_texels(
    picture: SourcePicture,
    surface: PosedSurface,
    tables: SurfaceTables,
    projection: Projection,
    hair: np.ndarray,
) -> np.ndarray:
    """(N,) bool: the visible texels whose pixel can be trusted."""
    unit = picture.size / 512
    rows, columns = projection.rows, projection.columns
    person = shrink((picture.alpha > 0.6) & picture.inside, 1.5 * unit)
    depth = np.where(surface.covered, surface.depth, surface.depth[surface.covered].max() + 1).astype(
        np.float32
    )
    size = 2 * round(3 * unit) + 1
    cliff = ndimage.maximum_filter(depth, 3) - ndimage.minimum_filter(depth, 3) > 0.05
    behind = ndimage.maximum_filter(ndimage.minimum_filter(depth, size) < depth - 0.05, 3)
    class_map = surface.class_map(tables)
    hands = grow(class_map == HAND, 7 * unit) & (class_map != HAND)
    texel_class = tables.texel_class
    face = tables.texels_of("face", *INNER_PARTS)
    body = ~face
    doubtful = body & (cliff | behind)[rows, columns]
    # A hand is rarely fitted to the pixel; what lies beside it may still be hand.
    doubtful |= (texel_class == TORSO) & hands[rows, columns]
    doubtful |= ((texel_class == TORSO) | (texel_class == ARM)) & hair[rows, columns]
    # Ears, arms and sides are narrow: what is mixed into their rims spreads over all that they fill.
    solid = shrink((picture.alpha > 0.9) & picture.inside, 3 * unit)
    narrow = (texel_class == ARM) | tables.texels_of("scalp", "neck")
    doubtful |= narrow & ~(solid[rows, columns] & (projection.facing > 0.3)) & ~hair[rows, columns]
    doubtful |= (texel_class == TORSO) & ~solid[rows, columns]
    return projection.visible & person[rows, columns] & ~doubtful


def texture(
    picture: SourcePicture,
    surface: PosedSurface,
    tables: SurfaceTables,
    projection: Projection,
    hair: np.ndarray,
    hands_seen: tuple[bool, bool] = (True, True),
) -> Texture:
    """Colour every texel but those of eyes and mouth, which :mod:`.eyes_and_mouth` does.

    Args:
        picture: The cut-out photo.
        surface: The displaced surface in the photo's pose.
        tables: The template's tables.
        projection: :func:`project_texels` of that surface.
        hair: (S, S) bool.
        hands_seen: Left and right: whether the photo is known to show that hand.
    """
    observed = observed_texels(picture, surface, tables, projection, hair)
    colors = projection.colors.copy()
    skin = ~tables.texels_of(*INNER_PARTS)
    unseen_hands = tables.texels_of(
        *(name for name, seen in zip(("left_hand", "right_hand"), hands_seen, strict=True) if not seen)
    )
    complexion = skin_color(colors, observed, tables)
    # Where a hand is only guessed to be, the photo usually shows something else, with specks that look like
    # skin.
    shown = observed.copy()
    for side in (LEFT, RIGHT):
        guess = unseen_hands & (tables.face_group[tables.texel_face] == side) & observed
        like = guess & looks_like(colors, complexion)
        observed &= ~guess | (like & (like.sum() > 0.5 * guess.sum()))
    texel_class, rest = tables.texel_class, tables.texel_rest
    face = tables.texels_of("face")
    known = observed & skin
    group = tables.face_group[tables.texel_face]

    limbs = ((texel_class == ARM) | (texel_class == HAND)) & skin
    for side in (LEFT, RIGHT):
        mine = np.nonzero(limbs & (group == side))[0]
        filled = ring_fill(rest[mine], colors[mine], known[mine])
        if filled is not None:
            arm = ~known[mine] & (texel_class[mine] == ARM)
            colors[mine[arm]] = filled[arm]
            known[mine[arm]] = True

    mirrored = ~known & known[tables.mirror] & skin & (face | limbs)
    colors[mirrored] = _relit_mirror(colors, observed, mirrored, face & skin, tables)
    known |= mirrored

    scalp = tables.texels_of("scalp")
    if hair.sum() > 300:
        known |= _fill_hair(colors, known, picture, projection, tables, hair, skin)

    torso = ~known & skin & (texel_class == TORSO) & projection.inside
    class_map = surface.class_map(tables)
    clear = (class_map == TORSO) & ~hair & ~grow(class_map == HAND, 5) & shrink(picture.person, 2)
    through = torso & clear[projection.rows, projection.columns]
    known |= through

    for members in (texel_class == TORSO, limbs, scalp | tables.texels_of("neck"), face):
        mine = np.nonzero(members & skin)[0]
        sources = known[mine]
        if sources.sum() < 50:
            continue
        filled, _ = _from_nearest(rest[mine], colors[mine], sources, count=12, floor=0.01)
        colors[mine[~sources]] = filled[~sources]
        known[mine] = True
    rest_of = skin & ~known
    if rest_of.any() and known.any():
        filled, _ = _from_nearest(rest[skin], colors[skin], known[skin], count=12, floor=0.01)
        colors[rest_of] = filled[rest_of[skin]]
    # A seen hand, mirrored, is better than a plain one; specks of it are not.
    if unseen_hands.any() and not (any(hands_seen) and mirrored[unseen_hands].mean() > 0.2):
        bare = unseen_hands & ~observed
        colors[bare] = complexion * _finger_shade(tables)[bare]
    # The photo shows something else in a guessed hand's place: that side blends in, and is not observed.
    blend = unseen_hands & shown & ~observed
    colors[blend] = projection.colors[blend]
    _feather(colors, observed & skin, skin, tables)
    return Texture(np.clip(colors, 0, 1).astype(np.float32), observed & skin, projection.inside)


def skin_color(colors: np.ndarray, observed: np.ndarray, tables: SurfaceTables) -> np.ndarray:
    """(3,) the colour of the face's seen skin in full light; a typical one if hardly any was seen."""
    face = colors[tables.texels_of("face") & observed]
    if len(face) < 100:
        return np.float32([0.80, 0.62, 0.53])
    # Darker is shadow, brows and lips, brighter is gloss.
    light = face.mean(1)
    low, high = np.quantile(light, [0.5, 0.85])
    return np.median(face[(light >= low) & (light <= high)], axis=0)


def looks_like(colors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(N,) bool: colours (N, 3) that are the reference (3,), lit more or less."""
    light = colors @ reference / (reference @ reference)
    rest = np.linalg.norm(colors - light[:, None] * reference, axis=1)
    return (light > 0.35) & (light < 1.5) & (rest < 0.10)


def _finger_shade(tables: SurfaceTables) -> np.ndarray:
    """(N, 1) brightness by the neutral surface's direction: the sides of fingers are darker than the hand's
    back and palm (which look up and down in the T pose), so that fingers of one colour stay apart."""
    return 0.75 + 0.25 * np.abs(tables.texel_normal[:, 1:2])


def ring_fill(rest: np.ndarray, colors: np.ndarray, known: np.ndarray) -> np.ndarray | None:
    """Carry the known colours of an arm round and along it.

    Args:
        rest: (n, 3) places in the T pose, where arms lie along x.
        colors: (n, 3).
        known: (n,) bool.

    Returns:
        (n, 3): the trimmed mean colour of every place's ring, interpolated between known rings, and blended
        with the nearest known colours where those are near. None if too little of the arm was seen.
    """
    if known.sum() < 300:
        return None
    width = 0.005
    slot = np.floor((rest[:, 0] - rest[:, 0].min()) / width).astype(int)
    count = slot.max() + 1
    ring, weight = np.zeros((count, 3)), np.zeros(count)
    for index in np.unique(slot[known]):
        members = colors[known & (slot == index)]
        # The darkest is shadow and edge, the brightest is light from behind.
        order = members.mean(1).argsort(kind="stable")
        first = int(0.3 * len(order))
        ring[index] = members[order[first : max(int(0.85 * len(order)), first + 1)]].mean(0)
        weight[index] = min(len(members), 40) if len(members) >= 8 else 0
    solid = np.nonzero(weight)[0]
    if not len(solid):
        return None
    spread = ndimage.gaussian_filter1d(weight, 1.5, mode="constant")
    smooth = ndimage.gaussian_filter1d(ring * weight[:, None], 1.5, axis=0, mode="constant")
    smooth = smooth[solid] / spread[solid, None]
    along = np.stack([np.interp(np.arange(count), solid, smooth[:, c]) for c in range(3)], 1)
    near, distance = _from_nearest(rest, colors, known, count=16, floor=0.004)
    share = np.exp(-((distance / 0.012) ** 2))[:, None]
    return share * near + (1 - share) * along[slot]


def _from_nearest(
    points: np.ndarray, colors: np.ndarray, known: np.ndarray, *, count: int, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Inverse-distance means of the nearest known colours for every unknown point: colours (n, 3) (known ones
    unchanged) and distance to the nearest known point (n,), infinite if nothing is known."""
    out, distance = colors.copy(), np.where(known, 0.0, np.inf)
    if known.sum() < count or known.all():
        return out, distance
    away, index = cKDTree(points[known]).query(points[~known], k=count, workers=-1)
    weight = 1 / (away + floor) ** 2
    out[~known] = (colors[known][index] * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
    distance[~known] = away[:, 0]
    return out, distance


def _relit_mirror(
    colors: np.ndarray, observed: np.ndarray, wanted: np.ndarray, face: np.ndarray, tables: SurfaceTables
) -> np.ndarray:
    """Mirrored colours of the wanted texels; on the face, shifted by the difference in light between both
    sides.

    The difference is measured where both sides are seen, and carried from the nearest such places.
    """
    mirror, rest = tables.mirror, tables.texel_rest
    out = colors[mirror[wanted]].copy()
    both = face & observed & observed[mirror]
    target = face[wanted]
    if both.sum() < 100 or not target.any():
        return out
    difference = colors[both] - colors[mirror[both]]
    away, index = cKDTree(rest[both]).query(rest[wanted][target], k=48, workers=-1)
    weight = 1 / (away + 0.01)
    out[target] += (difference[index] * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
    return np.clip(out, 0, 1)


def _fill_hair(
    colors: np.ndarray,
    known: np.ndarray,
    picture: SourcePicture,
    projection: Projection,
    tables: SurfaceTables,
    hair: np.ndarray,
    skin: np.ndarray,
) -> np.ndarray:
    """Hair colours for the unseen head (and upper back under long hair), written into ``colors``.

    Returns:
        (N,) bool: the texels that were filled.
    """
    inpainted, span = hair_behind(picture, hair)
    face = tables.texels_of("face")
    scalp = tables.texels_of("scalp")
    neck = tables.texels_of("neck")
    rows, columns, inside = projection.rows, projection.columns, projection.inside
    rest = tables.texel_rest
    face_height = rest[face][:, 1]
    chin, brow = face_height.min(), np.quantile(face_height, 0.75)
    away = projection.facing < 0.6
    back = (tables.texel_class == TORSO) & (projection.facing < 0.1) & (rest[:, 1] > chin - 0.2)
    # The throat under the chin is hidden, too, but it is not hairy.
    nape = neck & (projection.facing < 0.2) & (rest[:, 2] < np.median(rest[neck, 2]))
    filled = ~known & skin & span[rows, columns] & inside & ((scalp & away) | nape | back)
    colors[filled] = inpainted[rows[filled], columns[filled]]
    source = filled | (known & scalp & hair[rows, columns])
    top = ~known & ~filled & scalp & (rest[:, 1] > brow)
    if top.any() and source.sum() > 100:
        _, index = cKDTree(rest[source]).query(rest[top], k=8, workers=-1)
        colors[top] = colors[source][index].mean(1)
        filled |= top
    return filled


def hair_behind(picture: SourcePicture, hair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the hair looks like behind the face.

    Returns:
        (S, S, 3) hair colours carried across the picture, with the fine structure of the hair beside it
        reflected in, and (S, S) bool: between the outermost hair pixels of every row.
    """
    solid = shrink(hair, 1.5)
    if not solid.any():
        solid = hair
    smooth = pull_push(picture.foreground, solid.astype(np.float32))
    detail = (picture.foreground - blur(picture.foreground, 4, solid)) * solid[..., None]
    _, row, column = nearest(solid)
    yy, xx = np.indices(hair.shape)
    reflected_row = np.clip(2 * row - yy, 0, picture.size - 1)
    reflected_column = np.clip(2 * column - xx, 0, picture.size - 1)
    inpainted = np.where(
        solid[..., None], picture.foreground, smooth + 0.8 * detail[reflected_row, reflected_column]
    )
    enough = hair.sum(1) > 3
    first = np.where(enough, hair.argmax(1), picture.size)
    last = np.where(enough, picture.size - 1 - hair[:, ::-1].argmax(1), -1)
    return np.clip(inpainted, 0, 1), (xx >= first[:, None]) & (xx <= last[:, None])


def _feather(colors: np.ndarray, observed: np.ndarray, skin: np.ndarray, tables: SurfaceTables) -> None:
    """Let inferred colours start from the observed ones beside them and fade within a centimetre, in
    place."""
    rest = tables.texel_rest
    head = tables.texel_class == HEAD
    for members, reach in ((head & skin, 0.008), (~head & skin, 0.006)):
        source, target = members & observed, members & ~observed
        if source.sum() < 100 or not target.any():
            continue
        away, index = cKDTree(rest[source]).query(
            rest[target], k=6, distance_upper_bound=2.5 * reach, workers=-1
        )
        near = np.isfinite(away[:, -1])
        chosen = np.nonzero(target)[0][near]
        weight = 1 / (away[near] + 0.002) ** 2
        start = (colors[source][index[near]] * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
        share = np.exp(-((away[near, 0] / reach) ** 2))[:, None]
        colors[chosen] = share * start + (1 - share) * colors[chosen]
