"""What the source picture shows of the surface: projections, visibility and colours (Eq. 6, B.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace

import torch
from torch import Tensor

from guava.avatar.posing import SigmaRule
from guava.camera import Camera
from guava.model.lite.frames import SmoothFrames, smooth_frames
from guava.model.lite.tables import UVTables
from guava.model.sampling import sample_features, surface_points
from guava.model.source import SourceBatch
from guava.rendering import rasterize_mesh
from guava.rendering.mesh import vertex_normals

VISIBILITY_SIZE = 512
"""Side of the z-buffer that decides what is hidden, whatever the picture's size."""

TOLERANCE, INNER_TOLERANCE = 6e-3, 1e-3
"""Metres behind the z-buffer at which a point counts as hidden; lids and lips lie close before eyes and
teeth."""

CLIFF = 0.05
"""Metres: pixels this close (3 pixels of 512) to something so much nearer may show that instead."""

FACING = 0.15
"""Cosine of the view below which a surface is seen too grazingly for its colour."""

RIM = 2
"""Pixels of 512 along the person's outline whose colours are mixed with the background's."""

BELOW_PICTURE = 0.06
"""Metres of torso and legs kept below the picture's lower edge."""


@dataclass(frozen=True)
class SurfaceView:
    """B source views at the M places of :class:`UVTables`. Nothing in it depends on a network's weights.

    Attributes:
        picture: (B, 5, S, S): RGB of the person on black, person mask, silhouette of the posed mesh.
        pixels: (B, M, 2) projections, in pixels of ``width`` x ``height``.
        width, height: Of the camera.
        visible: (B, M) bool: its colour can be taken from the picture.
        inside: (B, M) bool: within the picture, hidden or not.
        kept: (B, M) bool: not cut off by the picture's lower edge.
        colors: (B, M, 3) RGB at the projections, not premultiplied.
        person: (B, M, 1) person mask at the projections.
        mirrored: (B, M) bool: the mirrored place is seen.
        mirror_colors: (B, M, 3) its colours, under the light of this side.
        filled: (B, M, 3) what the prediction of colours starts from: those seen in the neighbourhood, and
            fixed ones behind lids and lips.
        normals: (B, M, 3) unit, in camera axes.
        facing: (B, M, 1) cosine between normal and the direction to the camera.
        frames: Smooth frames of the people's rest meshes.
    """

    picture: Tensor
    pixels: Tensor
    width: int
    height: int
    visible: Tensor
    inside: Tensor
    kept: Tensor
    colors: Tensor
    person: Tensor
    mirrored: Tensor
    mirror_colors: Tensor
    filled: Tensor
    normals: Tensor
    facing: Tensor
    frames: SmoothFrames

    def to(self, device) -> SurfaceView:
        """The same views on another device."""
        return _each([self], lambda values: values[0].to(device))

    @staticmethod
    def concatenate(views: list[SurfaceView]) -> SurfaceView:
        """Views of one picture size, by the same tables, as one batch."""
        if len({(view.width, view.height) for view in views}) != 1:
            raise ValueError("Views of a batch need one picture size.")
        return _each(views, torch.cat)


def _each(items: list, change: Callable[[list[Tensor]], Tensor]):
    """Dataclasses of tensors, numbers and such dataclasses -> one, tensor by tensor."""
    values = {}
    for f in fields(items[0]):
        mine = [getattr(item, f.name) for item in items]
        if isinstance(mine[0], Tensor):
            values[f.name] = change(mine)
        else:
            values[f.name] = _each(mine, change) if is_dataclass(mine[0]) else mine[0]
    return replace(items[0], **values)


@torch.no_grad()
def look(source: SourceBatch, tables: UVTables, sigma_rule: SigmaRule = "mean_edge") -> SurfaceView:
    """Project the surface into the source pictures. May run in a data worker; see :class:`SurfaceView`."""
    # Pixels and depths need single precision, whatever the network runs in.
    with torch.autocast(source.image.device.type, enabled=False):
        return _look(source, tables, sigma_rule)


def _look(source: SourceBatch, tables: UVTables, sigma_rule: SigmaRule) -> SurfaceView:
    batch, _, size, _ = source.image.shape
    vertices = source.vertices.float()
    camera = source.camera.to(vertices.device, torch.float32)
    points = surface_points(vertices, tables.faces, tables.face_ids, tables.barycentrics)
    pixels, depth = camera.project(points)
    extent = pixels.new_tensor([camera.width, camera.height])
    inside = ((pixels >= 0) & (pixels < extent)).all(-1) & (depth > 0)

    corners = tables.faces[tables.face_ids]
    normals = (vertex_normals(vertices, tables.faces)[:, corners] * tables.barycentrics[..., None]).sum(2)
    rotation = camera.world_to_camera[..., :3, :3]
    normals = torch.nn.functional.normalize(normals @ rotation.transpose(-1, -2), dim=-1)
    direction = torch.nn.functional.normalize(camera.transform(points), dim=-1)
    facing = -(normals * direction).sum(-1, keepdim=True)

    hidden, silhouettes = [], []
    for element in range(batch):
        one = camera if camera.world_to_camera.ndim == 2 else camera[element]
        guessed = None if source.guessed_faces is None else source.guessed_faces[element]
        behind, covered = _hidden(vertices[element], pixels[element], depth[element], one, guessed, tables)
        hidden.append(behind)
        silhouettes.append(torch.nn.functional.adaptive_avg_pool2d(covered[None], size)[0])
    image, mask = source.image.float(), source.mask.float()
    sampled = sample_features(torch.cat([image, mask], 1), pixels, camera.width, camera.height)
    person = sampled[..., 3:]
    # The picture is colour times mask; dividing gives the colour back.
    colors = (sampled[..., :3] / person.clamp(min=0.05)).clamp(0, 1)
    radius = round(RIM * size / 512)
    solid = -torch.nn.functional.max_pool2d(-mask, 2 * radius + 1, 1, radius)
    on_person = sample_features(solid, pixels, camera.width, camera.height)[..., 0] > 0.5
    visible = inside & ~torch.stack(hidden) & (facing[..., 0] > FACING) & on_person
    visible &= ~_folded(vertices, source.rest_vertices.float(), tables)
    if source.guessed_faces is not None:
        visible &= ~source.guessed_faces[:, tables.face_ids]

    mirrored = visible[:, tables.mirror] & tables.mirrored
    mirror_colors = colors[:, tables.mirror]
    # Both sides seldom have the same light: the difference, where both are seen, goes with the colours.
    both = (visible & mirrored & ~tables.inner).float()
    light = _spread(colors - mirror_colors, both, tables) * both.any(1)[:, None, None]
    mirror_colors = (mirror_colors + light).clamp(0, 1)
    known = (visible + 0.25 * (mirrored & ~visible)) * ~tables.inner
    filled = _spread(torch.where(visible[..., None], colors, mirror_colors), known, tables)
    filled = torch.where(tables.inner[:, None], tables.inner_colors, filled)
    return SurfaceView(
        picture=torch.cat([image, mask, torch.stack(silhouettes)], 1),
        pixels=pixels, width=camera.width, height=camera.height,
        visible=visible, inside=inside, kept=_kept(inside, tables), colors=colors, person=person,
        mirrored=mirrored, mirror_colors=mirror_colors, filled=filled, normals=normals, facing=facing,
        frames=smooth_frames(source.rest_vertices.float(), tables, sigma_rule),
    )


def _hidden(
    vertices: Tensor, pixels: Tensor, depth: Tensor, camera: Camera, guessed: Tensor | None, tables: UVTables
) -> tuple[Tensor, Tensor]:
    """(M,) bool: behind something, or beside a cliff; and the silhouette (1, Z, Z) in [0, 1]."""
    faces = tables.faces
    if guessed is not None:
        # Face numbers must stay: a face of one corner has no area.
        faces = torch.where(guessed[:, None], faces[:, :1], faces)
    buffer = rasterize_mesh(vertices, faces, camera.resized(VISIBILITY_SIZE, VISIBILITY_SIZE))
    far = 1e3
    nearest = buffer.depth.clamp(max=far)
    around = -torch.nn.functional.max_pool2d(-nearest[None], 7, 1, 3)[0]
    cliff = (around < nearest - CLIFF) & (nearest < far)
    cell = pixels * pixels.new_tensor([VISIBILITY_SIZE / camera.width, VISIBILITY_SIZE / camera.height])
    column, row = cell.floor().long().clamp(0, VISIBILITY_SIZE - 1).unbind(-1)
    slack = torch.where(tables.inner, INNER_TOLERANCE, TOLERANCE)
    hidden = depth > nearest[row, column] + slack
    hidden |= cliff[row, column] & ~tables.inner
    return hidden, (nearest < far).float()[None]


def _folded(vertices: Tensor, rest: Tensor, tables: UVTables) -> Tensor:
    """(B, M) bool: lids that are less than half shut. What the picture shows there is lashes and creases."""

    def area(mesh: Tensor) -> Tensor:
        edges = mesh[:, tables.faces]
        first, second = edges[:, :, 1] - edges[:, :, 0], edges[:, :, 2] - edges[:, :, 0]
        return torch.linalg.cross(first, second, dim=-1).norm(dim=-1).clamp(min=1e-12)

    half = 0.5 * (1 + tables.lids)
    open_lid = (tables.lids > 1) & (area(vertices) / area(rest) < half)
    return open_lid[:, tables.face_ids]


def _kept(inside: Tensor, tables: UVTables) -> Tensor:
    """(B, M) bool: all but the body far below what the picture shows of it."""
    height = tables.position[:, 1]
    shown = inside & tables.trunk
    anything = torch.where(shown.any(1, keepdim=True), shown, inside)
    lowest = torch.where(anything, height, torch.inf).amin(1, keepdim=True) - BELOW_PICTURE
    return ~tables.trunk | (height >= lowest) | ~inside.any(1, keepdim=True)


def _spread(values: Tensor, weight: Tensor, tables: UVTables) -> Tensor:
    """Carry values over the atlas within regions of the body (:attr:`UVTables.group`).

    Args:
        values: (B, M, 3).
        weight: (B, M) in [0, 1]: how far each is known.
        tables: Of M Gaussians.

    Returns:
        (B, M, 3) smooth values everywhere, near the known ones where those are.
    """
    batch, side, groups = len(values), tables.size // 2, tables.group_count
    row, column = tables.texel // tables.size // 2, tables.texel % tables.size // 2
    flat = (tables.group * side + row) * side + column
    atlas = values.new_zeros(batch, groups * side * side, 4)
    atlas = atlas.index_add(1, flat, torch.cat([values * weight[..., None], weight[..., None]], -1))
    atlas = atlas.view(batch * groups, side, side, 4).permute(0, 3, 1, 2)
    filled = _pull_push(atlas / atlas[:, 3:].clamp(min=1), batch, groups)
    return filled.permute(0, 2, 3, 1).reshape(batch, groups * side * side, 3)[:, flat]


def _pull_push(atlas: Tensor, batch: int, groups: int) -> Tensor:
    """(B G, 4, H, W) premultiplied colours and weights -> (B G, 3, H, W) without holes, from ever coarser
    averages; a region of which nothing was seen takes the mean of the face, or else of all."""
    levels = [atlas]
    while min(levels[-1].shape[-2:]) > 1:
        # Four texels weigh as much as what was seen of them, up to a full one.
        total = 4 * torch.nn.functional.avg_pool2d(levels[-1], 2, ceil_mode=True)
        levels.append(total / total[:, 3:].clamp(min=1))
    total = levels[-1].view(batch, groups, 4)
    everything = total.sum(1, keepdim=True)
    # Hands that are not seen look like the face, the last group (without the neck, which may wear a collar).
    # People of whom nothing was seen are grey.
    total = torch.where(total[:, -1:, 3:] > 0, total[:, -1:], everything)
    mean = (total[..., :3] + 5e-7) / (total[..., 3:] + 1e-6)
    out = mean.expand(batch, groups, 3).reshape(batch * groups, 3, 1, 1)
    for level in reversed(levels):
        height, width = level.shape[-2:]
        if out.shape[-2:] != level.shape[-2:]:
            out = torch.nn.functional.interpolate(
                out, size=(height, width), mode="bilinear", align_corners=False
            )
        trust = level[:, 3:].clamp(max=1)
        out = level[:, :3] / level[:, 3:].clamp(min=1e-6) * trust + out * (1 - trust)
    return out
