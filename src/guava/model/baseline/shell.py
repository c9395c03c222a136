"""The pixel shell: Gaussians for what stands off the body (hair, loose cloth) and no displaced surface
covers.

Every uncovered person pixel, every hair pixel and a ring of overlap becomes a disc at the depth of the
nearest surface, swollen like an inflated cut-out; uncovered pixels get a second one behind. They are skinned
with weights of their own, smoothed inside {head, neck, torso}, {left arm} and {right arm} only: blurring
across limbs makes webs, not blurring makes tears.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy import ndimage

from guava.model.baseline.hair import face_region
from guava.model.baseline.images import blur, grow, nearest, shrink
from guava.model.baseline.matte import SourcePicture
from guava.model.baseline.surface import HAND, HEAD, PosedSurface, SurfaceTables


@dataclass(frozen=True)
class ShellConfig:
    """Settings of the pixel shell.

    Attributes:
        least_width: Pixels of 512; narrower uncovered strips get no shell, hair apart.
        overlap: Pixels of 512 by which it reaches over the covered surface.
        max_thickness: Metres.
        roundness: Thickness of an inflated strip against its half width.
        weight_blur: Sigma of the skinning weights' smoothing, pixels of 512.
        hand_reach: Metres beyond which nothing is bound to a hand (held objects would trail threads).
        opacity: Of a disc of full alpha.
        disc_size: Standard deviation of a disc, in its own pixels.
    """

    least_width: float = 5.0
    overlap: float = 8.0
    max_thickness: float = 0.04
    roundness: float = 0.7
    weight_blur: float = 7.0
    hand_reach: float = 0.04
    opacity: float = 0.96
    disc_size: float = 0.46


@dataclass(frozen=True)
class Shell:
    """n discs in the photo's pose, camera coordinates.

    Attributes:
        points: (n, 3).
        tangents: (n, 2, 3) steps of one pixel to the right and down along the disc.
        colors: (n, 3).
        opacities: (n,).
        weights: (n, J) skinning weights.
        hair: (n,) bool.
        observed: (n,) bool; False for the copies behind.
    """

    points: np.ndarray
    tangents: np.ndarray
    colors: np.ndarray
    opacities: np.ndarray
    weights: np.ndarray
    hair: np.ndarray
    observed: np.ndarray


def pixel_shell(
    picture: SourcePicture,
    surface: PosedSurface,
    tables: SurfaceTables,
    hair: np.ndarray,
    config: ShellConfig,
) -> Shell:
    """Build the shell.

    Args:
        picture: The cut-out photo.
        surface: The displaced surface in the photo's pose.
        tables: The template's tables.
        hair: (S, S) bool.
        config: Settings.
    """
    size = picture.size
    unit = size / 512
    joints = tables.template.body.num_joints
    covered, class_map = surface.covered, surface.class_map(tables)
    # Only hair is fine enough to be worth half-transparent pixels; elsewhere they are background that shines
    # through.
    person = (picture.alpha > np.where(grow(hair, 6 * unit), 0.1, 0.45)) & picture.inside
    face = face_region(surface, tables)
    hair = hair & ~shrink(face, 3 * unit)
    # The discs of the surface are wide enough for a rim of a few pixels; a shell there shows as a dark seam
    # from the side.
    missing = grow(shrink(person & ~covered, config.least_width / 2 * unit), config.least_width / 2 * unit)
    missing = (missing & person & ~covered) | ndimage.binary_opening(hair, np.ones((2, 2)))
    skin = covered & tables.faces_of("face")[surface.face_ids]
    ring = grow(missing, config.overlap * unit) & covered & person & (class_map != HAND) & ~face & ~skin
    members = missing | ring
    if not members.any() or not covered.any():
        return _empty(joints)

    own = covered & ~hair
    source_row, source_column, too_far = _bound_pixels(
        surface, class_map, covered, hair, own, face, config, unit
    )
    members &= ~too_far
    # The shell knows no jaw: what hugs the face must be hair.
    members &= hair | ~skin[source_row, source_column]
    if not members.any():
        return _empty(joints)
    rows, columns = np.nonzero(members)
    bound_face = surface.face_ids[source_row, source_column]
    # A hand before the chest or the upper arm is a layer of its own.
    limb = tables.face_group[bound_face] + 3 * (tables.face_class[bound_face] == HAND)
    group = np.where(members, limb, -1)

    base = _smooth_depth(surface, members, own, group, source_row, source_column, unit)
    thickness = _inflated(members)
    thickness = np.minimum(
        np.sqrt(2 * thickness) * config.roundness * base / surface.focal, config.max_thickness
    )
    limit = np.where(covered & members, surface.depth, np.inf)
    front = np.minimum(base - thickness, limit - 0.002)
    smooth = _group_blur(np.where(members, front, 0), 1.5 * unit, group)
    front = np.minimum(np.where(np.abs(smooth - front) < 0.01, smooth, front), limit - 0.0015)

    weights = _smooth_weights(
        surface, tables, members, group, source_row, source_column, config.weight_blur * unit
    )
    front_points, front_steps = _lift(surface, front, members, group, rows, columns)
    lone = ~covered[rows, columns]
    back_points, back_steps = _lift(surface, base + thickness, members, group, rows, columns)
    alpha = picture.alpha[rows, columns]
    color = picture.foreground[rows, columns]
    is_hair = hair[rows, columns]
    opacity = np.clip(config.opacity * alpha, 0.02, config.opacity)
    both = [np.ones(len(rows), bool), lone]
    return Shell(
        np.concatenate([front_points, back_points[lone]]),
        np.concatenate([front_steps, back_steps[lone]]),
        np.concatenate([color[m] for m in both]),
        np.concatenate([opacity[m] for m in both]),
        np.concatenate([weights[m] for m in both]),
        np.concatenate([is_hair[m] for m in both]),
        np.concatenate([np.ones(len(rows), bool), np.zeros(lone.sum(), bool)]),
    )


def _empty(joints: int) -> Shell:
    zero = np.zeros((0,), bool)
    return Shell(
        np.zeros((0, 3)),
        np.zeros((0, 2, 3)),
        np.zeros((0, 3)),
        np.zeros(0),
        np.zeros((0, joints)),
        zero,
        zero,
    )


def _bound_pixels(surface, class_map, covered, hair, own, face, config, unit):
    """For every pixel the covered pixel whose body part it follows, and (S, S) bool: too far from
    anything."""
    hand = covered & (class_map == HAND)
    body = covered & (class_map != HAND)
    head = covered & (class_map == HEAD)
    distance, row, column = nearest(body if body.any() else covered)
    pixel_metres = float(np.median(surface.depth[covered])) / surface.focal
    reach = config.hand_reach / pixel_metres
    too_far = np.zeros_like(covered)
    if hand.any():
        hand_distance, hand_row, hand_column = nearest(hand)
        to_hand = (hand_distance < distance) & (hand_distance < reach)
        too_far = (hand_distance < distance) & (hand_distance >= reach) & (distance > 3 * reach)
        row, column = np.where(to_hand, hand_row, row), np.where(to_hand, hand_column, column)
    if head.any():
        rows = np.nonzero(face.any(1))[0]
        height = rows.max() - rows.min() if len(rows) else 100 * unit
        head_distance, head_row, head_column = nearest(head)
        to_head = hair & (head_distance < 1.1 * height) & (head_distance < distance * 3 + 18 * unit)
        row, column = np.where(to_head, head_row, row), np.where(to_head, head_column, column)
    yy, xx = np.indices(covered.shape)
    return np.where(own, yy, row), np.where(own, xx, column), too_far


def _group_blur(image: np.ndarray, sigma: float, group: np.ndarray) -> np.ndarray:
    """Blur inside every limb group alone; 0 outside all groups."""
    out = np.zeros(image.shape, np.float32)
    for index in np.unique(group[group >= 0]):
        mask = group == index
        window = _window(mask, int(3 * sigma) + 2)
        out[window] = np.where(mask[window], blur(image[window], sigma, mask[window]), out[window])
    return out


def _window(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )


def _smooth_depth(surface, members, own, group, row, column, unit) -> np.ndarray:
    """(S, S) depth of the cut-out's middle: the surface's own where it is covered, carried outwards
    elsewhere."""
    bound = np.where(members, surface.depth[row, column], 0)
    depth = bound
    for _ in range(2):
        smooth = _group_blur(depth, 5 * unit, group)
        depth = np.where(own & members, surface.depth, smooth)
    # A blur that left its own surface by centimetres mixed two of them.
    smooth = np.where(np.abs(smooth - bound) > 0.025, bound, smooth)
    return np.where(members, np.where(own, np.where(np.isfinite(surface.depth), surface.depth, 0), smooth), 0)


def _inflated(mask: np.ndarray) -> np.ndarray:
    """Solution u of ``-laplace(u) = 1`` inside the mask, 0 outside, in square pixels, by multigrid-free
    Jacobi-CG."""
    rows, columns = np.nonzero(mask)
    index = np.full(mask.shape, -1)
    index[rows, columns] = np.arange(len(rows))
    padded = np.pad(index, 1, constant_values=-1)
    pairs_i, pairs_j = [], []
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        neighbour = padded[rows + 1 + dy, columns + 1 + dx]
        ok = neighbour >= 0
        pairs_i.append(np.nonzero(ok)[0])
        pairs_j.append(neighbour[ok])
    i, j = np.concatenate(pairs_i), np.concatenate(pairs_j)
    count = len(rows)
    system = sp.diags(np.full(count, 4.0)) - sp.csr_matrix((np.ones(len(i)), (i, j)), shape=(count, count))
    distance = ndimage.distance_transform_edt(mask)[rows, columns]
    solution, _ = sp.linalg.cg(system.tocsr(), np.ones(count), x0=distance, rtol=3e-3, maxiter=200)
    out = np.zeros(mask.shape)
    out[rows, columns] = np.maximum(solution, 0)
    return out


def _smooth_weights(surface, tables, members, group, row, column, sigma) -> np.ndarray:
    """(n, J) skinning weights of the members, blurred inside every limb group."""
    rows, columns = np.nonzero(members)
    from_row, from_column = row[rows, columns], column[rows, columns]
    corners = tables.faces[surface.face_ids[from_row, from_column]]
    skin = tables.template.body.weights.numpy()
    raw = np.einsum("nk,nkj->nj", surface.barycentrics[from_row, from_column], skin[corners])
    out = np.zeros_like(raw)
    plane = np.zeros(members.shape, np.float32)
    for index in np.unique(group[members]):
        mask = members & (group == index)
        mine = mask[rows, columns]
        window = _window(mask, int(3 * sigma) + 2)
        local = mask[window]
        spread = np.maximum(ndimage.gaussian_filter(local.astype(np.float32), sigma, truncate=3), 1e-6)
        for joint in np.nonzero(raw[mine].max(0) > 0.02)[0]:
            plane[:] = 0
            plane[rows[mine], columns[mine]] = raw[mine, joint]
            smooth = ndimage.gaussian_filter(plane[window], sigma, truncate=3) / spread
            out[mine, joint] = smooth[local]
    return out / np.maximum(out.sum(1, keepdims=True), 1e-9)


def _lift(surface, depth, members, group, rows, columns) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 3) of the depth map and their one-pixel steps (n, 2, 3); slopes only inside one limb
    group."""
    points = surface.lift(columns, rows, depth[rows, columns])
    steps = []
    for axis in (1, 0):
        slope = np.zeros_like(depth)
        middle = (slice(None), slice(1, -1)) if axis else (slice(1, -1), slice(None))
        after = (slice(None), slice(2, None)) if axis else (slice(2, None), slice(None))
        before = (slice(None), slice(None, -2)) if axis else (slice(None, -2), slice(None))
        same = members[after] & members[before] & (group[after] == group[before])
        slope[middle] = np.where(same, 0.5 * (depth[after] - depth[before]), 0)
        pixel = points[:, 2] / surface.focal
        step = np.zeros((len(rows), 3))
        step[:, 0 if axis else 1] = pixel
        step[:, 2] = np.clip(slope[rows, columns], -0.008, 0.008)
        steps.append(step)
    return points, np.stack(steps, 1)
