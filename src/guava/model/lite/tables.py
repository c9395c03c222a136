"""What the ``lite`` network knows about a template's surface before it sees anybody."""

from __future__ import annotations

import copy

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor, nn

from guava.body import EHM, Identity, Pose, Template
from guava.body.controls import FaceControls, write_controls
from guava.model.texels import uv_texels
from guava.rendering.mesh import vertex_normals

EYEBALLS = ("left_eyeball", "right_eyeball")
TEETH = ("lower_teeth", "upper_teeth")
INNER_COLORS = {
    **dict.fromkeys(EYEBALLS, (0.80, 0.78, 0.76)),
    **dict.fromkeys(TEETH, (0.70, 0.66, 0.60)),
    "tongue": (0.53, 0.29, 0.28),
    "mouth_cavity": (0.16, 0.06, 0.06),
    "eye_sockets": (0.16, 0.06, 0.06),
}
"""Parts behind lids and lips, and the colours that their prediction starts from."""

OFFSET_LIMITS = {
    "torso": (0.025, 0.07, 0.025),
    "legs": (0.025, 0.07, 0.025),
    "left_arm": (0.025, 0.05, 0.02),
    "right_arm": (0.025, 0.05, 0.02),
    "scalp": (0.01, 0.07, 0.02),
    "neck": (0.01, 0.015, 0.01),
    "face": (0.005, 0.005, 0.005),
    "left_hand": (0.004, 0.004, 0.004),
    "right_hand": (0.004, 0.004, 0.004),
}
"""Metres that a first-layer Gaussian may move inwards, outwards and along the surface."""

INNER_LIMIT = (0.001, 0.001, 0.001)
OTHER_LIMIT = (0.015, 0.015, 0.015)
"""For parts that the table above does not know (templates other than ours)."""

LIMIT_SLOPE = 2.0
"""Metres by which a limit may grow per metre of surface, so that parts do not tear apart where they meet."""

EYE_SPLIT = 4
"""Gaussians a texel's side on the front of the eyeballs: eyes are small and looked at first."""

LID_SPLIT = 3
"""The same on the lids, which open eyes fold away and shut ones stretch."""

LID_STRETCH = 1.4
"""Faces that shutting the eyes makes so many times larger are lids."""

SEAM_SIZE = 1.5
"""Discs beside a seam of the atlas are so much larger, or the seam would show."""

SECOND_STRIDE = 2
"""Texels a side for one Gaussian of the second layer."""

_GROUPS = ("torso", "left_arm", "right_arm", "left_hand", "right_hand", "scalp", "neck")
_GROUP_OF = {"legs": "torso"}


class UVTables(nn.Module):
    """Static tables of one template at one atlas size: M Gaussians on K texels, M >= K.

    All are buffers that move with the network and stay out of its state, so that weights do not depend on
    the atlas size.

    Attributes:
        size: Side of the atlas.
        faces: (F, 3), uv_faces: (F, 3), uv_count: number T of UV vertices.
        jacobian: (F, 2, 3) d(barycentric) by one texel to the right and one down.
        face_ids, barycentrics: (M,), (M, 3) where the Gaussians sit.
        texel: (M,) flat index row * size + column of the texel whose prediction a Gaussian takes.
        first: (K,) the Gaussian that stands for a texel in the UV network's input; its texel is texel[first].
        split: (M,) so many Gaussians a side share the texel.
        disc: (M,) side of what a Gaussian stands for, in texels (larger beside seams).
        position: (M, 3) on the neutral template in the T pose, metres.
        mirror, mirrored: (M,) the Gaussian at the left-right mirrored place, and whether there is one.
        limits: (M, 3) metres inwards, outwards and along the surface (:data:`OFFSET_LIMITS`).
        inner: (M,) bool: eyeballs, teeth, tongue, mouth and sockets.
        lids: (F,) by how much shutting the eyes enlarges a face; 1 where it is not a lid.
        inner_colors: (M, 3) the colours that those start from, 0 elsewhere.
        trunk: (M,) bool: torso and legs, which a photo's lower edge may cut off.
        group: (M,) regions that colours are filled within: torso, arms, hands, scalp, neck,
            and last the face.
        second: (M2,) the Gaussians of layer 1 that carry one of layer 2.
        second_texel: (M2,) flat index of their texels in the atlas of half the size.
    """

    def __init__(self, template: Template, size: int):
        super().__init__()
        self.size = size
        self.uv_count = len(template.uv)
        self.group_count = len(_GROUPS) + 1
        names = template.part_names
        faces = template.faces.long()
        with torch.no_grad():
            rest = EHM(template)(Identity.neutral(template), Pose.rest(template)).rest_vertices[0]
        jacobian = _texel_jacobian(template, size)

        atlas = uv_texels(template, size)
        corners = rest[faces]
        normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], dim=-1)
        # Triangles without area have no frame to hang a Gaussian on.
        solid = normal.norm(dim=-1) > 1e-12
        mask = atlas.mask & solid[atlas.face_ids.long().clamp(min=0)]
        rows, columns = mask.nonzero(as_tuple=True)
        face_ids, barycentrics = atlas.face_ids[mask].long(), atlas.barycentrics[mask].float()
        # The owner's table marks collapsed texels by barycentrics that are not a point.
        fine = (barycentrics.sum(-1) - 1).abs() < 1e-3
        rows, columns, face_ids, barycentrics = rows[fine], columns[fine], face_ids[fine], barycentrics[fine]
        filled = torch.zeros(size, size, dtype=torch.bool)
        filled[rows, columns] = True
        border = ~torch.from_numpy(ndimage.binary_erosion(filled.numpy(), np.ones((3, 3))))[rows, columns]
        texel = rows * size + columns
        disc = torch.where(border, SEAM_SIZE, 1.0)

        lids = _lids(template, rest)
        count = torch.ones(len(face_ids), dtype=torch.long)
        count[_eye_fronts(template, rest, face_ids, barycentrics)] = EYE_SPLIT
        count[lids[face_ids] > 1] = LID_SPLIT
        sides = [int(n) for n in count.unique()]
        parts = [_split(n, count == n, face_ids, barycentrics, texel, disc, jacobian) for n in sides]
        start = torch.tensor([0, *(len(part[0]) for part in parts)]).cumsum(0)
        first = torch.cat([torch.arange(*start[i : i + 2], n * n) for i, n in enumerate(sides)])
        split = torch.cat([torch.full((len(p[0]),), n) for n, p in zip(sides, parts, strict=True)])
        face_ids, barycentrics, texel, disc = (torch.cat(column) for column in zip(*parts, strict=True))
        # Lids are sized for shut eyes.
        disc = disc * lids[face_ids].sqrt()

        corners = faces[face_ids]
        position = (rest[corners] * barycentrics[..., None]).sum(1)
        normal = (vertex_normals(rest, faces)[corners] * barycentrics[..., None]).sum(1)
        mirror, mirrored = _mirror(position, normal)
        part = template.face_parts[face_ids]
        inner = torch.tensor([name in INNER_COLORS for name in names])
        colors = torch.tensor([INNER_COLORS.get(name, (0.0, 0.0, 0.0)) for name in names])
        group = torch.tensor([_group(name) for name in names])
        limits = _vertex_limits(template, rest)
        second = _second_layer(template, position, part, texel, disc, size)

        buffers = {
            "faces": faces,
            "uv_faces": template.uv_faces.long(),
            "jacobian": jacobian,
            "face_ids": face_ids,
            "barycentrics": barycentrics,
            "texel": texel,
            "first": first,
            "split": split,
            "disc": disc,
            "position": position,
            "mirror": mirror,
            "mirrored": mirrored,
            "limits": (limits[corners] * barycentrics[..., None]).sum(1).clamp(min=1e-4),
            "inner": inner[part],
            "lids": lids,
            "inner_colors": colors[part],
            "trunk": torch.tensor([name in ("torso", "legs") for name in names])[part],
            "group": group[part],
            "second": second,
            "second_texel": texel[second] // size // SECOND_STRIDE * (size // SECOND_STRIDE)
            + texel[second] % size // SECOND_STRIDE,
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.clone(), persistent=False)

    def __len__(self) -> int:
        return len(self.face_ids)


def _texel_jacobian(template: Template, size: int) -> Tensor:
    """(F, 2, 3): how the barycentrics change by one texel to the right and one texel down."""
    corners = (template.uv.double() * size)[template.uv_faces.long()]
    e1, e2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    det = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
    det = torch.where(det.abs() < 1e-9, 1e-9, det)
    # (b1, b2) = inverse([e1 e2]) @ (column, row); b0 = 1 - b1 - b2.
    b1 = torch.stack([e2[:, 1], -e2[:, 0]], 1) / det[:, None]
    b2 = torch.stack([-e1[:, 1], e1[:, 0]], 1) / det[:, None]
    return torch.stack([-b1 - b2, b1, b2], -1).float()


def _split(
    n: int,
    chosen: Tensor,
    face_ids: Tensor,
    barycentrics: Tensor,
    texel: Tensor,
    disc: Tensor,
    jacobian: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``n`` x ``n`` samples for each of the chosen texels, those of one texel in a row; they may
    lie a little outside the face. The middle one stands for the texel where there is one."""
    steps = (torch.arange(n) + 0.5) / n - 0.5
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    steps = torch.stack([right.ravel(), down.ravel()], 1)
    steps = steps[steps.abs().sum(1).argsort(stable=True)]
    moved = barycentrics[chosen][:, None] + torch.einsum("ks,nsb->nkb", steps, jacobian[face_ids[chosen]])
    return (
        face_ids[chosen].repeat_interleave(n * n),
        moved.reshape(-1, 3),
        texel[chosen].repeat_interleave(n * n),
        disc[chosen].repeat_interleave(n * n) / n,
    )


def _lids(template: Template, rest: Tensor) -> Tensor:
    """(F,) how many times larger shut eyes make a face's area, where that is much; else 1."""
    asleep = FaceControls(torch.zeros(1, 3), torch.ones(1, 2), torch.zeros(1, 2, 2))
    shut, _ = write_controls(Pose.rest(template), template, asleep)
    with torch.no_grad():
        closed = EHM(template)(Identity.neutral(template), shut).vertices[0]
    faces = template.faces.long()

    def area(vertices: Tensor) -> Tensor:
        edges = vertices[faces]
        return torch.linalg.cross(edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0], dim=-1).norm(dim=-1)

    ratio = area(closed) / area(rest).clamp(min=1e-12)
    skin = torch.tensor([name == "face" for name in template.part_names])[template.face_parts]
    return torch.where(skin & (ratio > LID_STRETCH), ratio.clamp(max=9.0), 1.0)


def _eye_fronts(template: Template, rest: Tensor, face_ids: Tensor, barycentrics: Tensor) -> Tensor:
    """(n,) bool: texels on the front quarter of an eyeball."""
    front = torch.zeros(len(face_ids), dtype=torch.bool)
    depth = (rest[template.faces.long()[face_ids], 2] * barycentrics).sum(1)
    for name in EYEBALLS:
        if name in template.part_names:
            ball = template.part(name)[face_ids]
            if ball.any():
                low, high = depth[ball].min(), depth[ball].max()
                front |= ball & (depth > low + 0.75 * (high - low))
    return front


def _mirror(position: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest place on the other side, (M,); and whether it is one: within 1 cm and facing the same way."""
    flip = torch.tensor([-1.0, 1, 1])
    normal = torch.nn.functional.normalize(normal, dim=-1)
    # Direction counts, too, or the inner lip would take the colours of the outer one.
    reach = 0.02
    here = torch.cat([position, reach * normal], 1).double().numpy()
    there = torch.cat([position * flip, reach * normal * flip], 1).double().numpy()
    _, index = cKDTree(here).query(there, workers=-1)
    mirror = torch.from_numpy(index).long()
    near = (position[mirror] - position * flip).norm(dim=-1) < 0.01
    return mirror, near & ((normal[mirror] * normal * flip).sum(-1) > 0.3)


def _group(part: str) -> int:
    name = _GROUP_OF.get(part, part)
    return _GROUPS.index(name) if name in _GROUPS else len(_GROUPS)


def _vertex_limits(template: Template, rest: Tensor) -> Tensor:
    """(V, 3): the smallest limits of a vertex's parts, growing by LIMIT_SLOPE at most over the surface."""
    table = torch.tensor(
        [INNER_LIMIT if n in INNER_COLORS else OFFSET_LIMITS.get(n, OTHER_LIMIT) for n in template.part_names]
    )
    faces = template.faces.numpy()
    limits = np.full((len(rest), 3), np.inf, np.float32)
    for corner in range(3):
        np.minimum.at(limits, faces[:, corner], table[template.face_parts].numpy())
    limits[~np.isfinite(limits)] = INNER_LIMIT[0]
    start, end = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).T
    grow = LIMIT_SLOPE * (rest[start] - rest[end]).norm(dim=-1, keepdim=True).numpy()
    while True:
        before = limits.copy()
        np.minimum.at(limits, start, limits[end] + grow)
        np.minimum.at(limits, end, limits[start] + grow)
        if np.array_equal(before, limits):
            return torch.from_numpy(limits)


def _second_layer(
    template: Template, position: Tensor, part: Tensor, texel: Tensor, disc: Tensor, size: int
) -> Tensor:
    """Which Gaussians carry one of the second layer: every SECOND_STRIDE-th texel a side of scalp, neck,
    torso above the waist and arms down to the elbow."""
    names = template.part_names

    def of(*chosen: str) -> Tensor:
        return torch.tensor([name in chosen for name in names])[part]

    joints = template.body.joints_template
    waist = joints[template.joint("spine1"), 1]
    elbow = joints[[template.joint("left_elbow"), template.joint("right_elbow")], 0].abs().mean()
    region = of("scalp", "neck")
    region |= of("torso") & (position[:, 1] > waist)
    region |= of("left_arm", "right_arm") & (position[:, 0].abs() < elbow)
    row, column = texel // size, texel % size
    region &= (row % SECOND_STRIDE == 0) & (column % SECOND_STRIDE == 0) & (disc >= 1)
    return region.nonzero()[:, 0]


_TABLES: dict[tuple[str, int], UVTables] = {}


def uv_tables(template: Template, size: int) -> UVTables:
    """A template's tables; the last few are kept, because they take a second to make."""
    key = (template.hash, size)
    if key not in _TABLES:
        while len(_TABLES) >= 4:
            _TABLES.pop(next(iter(_TABLES)))
        _TABLES[key] = UVTables(template, size)
    # A copy: a module moves with the network that owns it.
    return copy.deepcopy(_TABLES[key])
