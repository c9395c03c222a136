"""Maps of another generator's avatar, for a network that starts from it (``uv_branch.prior``)."""

from __future__ import annotations

import torch
from torch import Tensor

from guava.avatar.gaussians import BindingKind, Gaussians, Layer
from guava.model.lite.frames import smooth_frames
from guava.model.lite.tables import UVTables
from guava.model.source import SurfacePrior
from guava.rotation import matrix_to_quaternion, quaternion_multiply


@torch.no_grad()
def avatar_prior(gaussians: Gaussians, rest_vertices: Tensor, uv: Tensor, tables: UVTables) -> SurfacePrior:
    """The UV layer of an avatar (the ``baseline``'s, say) as maps; its shell, which has no place on the
    surface, is left out.

    Args:
        gaussians: With RGB in the first three channels.
        rest_vertices: (V, 3) the rest mesh of the avatar's identity.
        uv: (T, 2) of the template, v down.
        tables: Of the template, at the size of the maps.

    Returns:
        B = 1; of several Gaussians on a texel, their mean (of turns, one).
    """
    mine = (gaussians.binding == BindingKind.TRIANGLE) & (gaussians.layer == Layer.UV)
    g = gaussians[mine]
    size = tables.size
    faces, weights = g.anchor.long(), g.barycentrics[..., None]
    places = (uv[tables.uv_faces[faces]] * weights).sum(1) * size
    column, row = places.floor().long().clamp(0, size - 1).unbind(-1)
    texel = row * size + column
    anchors = (rest_vertices[tables.faces[faces]] * weights).sum(1)

    # Frames at the texels' own Gaussians; what lies on no texel of this atlas is left out.
    at = torch.full((size * size,), -1)
    at[tables.texel[tables.first]] = tables.first
    on = at[texel] >= 0
    g, texel, anchors = g[on], texel[on], anchors[on]
    frames = smooth_frames(rest_vertices[None], tables).rotation[0, at[texel]]
    arm = ((g.positions - anchors)[:, None] @ frames)[:, 0]
    values = torch.cat([g.features[:, :3], g.observed[:, None].float(), arm, g.scales[:, :2]], 1)
    total = values.new_zeros(size * size, 10)
    total.index_add_(0, texel, torch.cat([values, torch.ones(len(values), 1)], 1))
    count = total[:, 9:]
    mean = total[:, :9] / count.clamp(min=1)
    turns = torch.tensor([1.0, 0, 0, 0]).repeat(size * size, 1)
    away = matrix_to_quaternion(frames) * torch.tensor([1.0, -1, -1, -1])
    turns[texel] = quaternion_multiply(away, g.rotations)

    def image(columns: Tensor) -> Tensor:
        return columns.T.reshape(1, -1, size, size)

    return SurfacePrior(
        texture=image(mean[:, :3]), observed=image(mean[:, 3:4]), offsets=image(mean[:, 4:7]),
        turns=image(turns), scales=image(mean[:, 7:] * count.sqrt()), known=image((count > 0).float()),
    )


def read_prior(prior: SurfacePrior, tables: UVTables) -> SurfacePrior:
    """The maps at the Gaussians of ``tables``: the same fields as (B, M, channels)."""
    size = prior.known.shape[-1]
    row, column = tables.texel // tables.size, tables.texel % tables.size
    index = (row * size // tables.size) * size + column * size // tables.size

    def read(values: Tensor) -> Tensor:
        return values.float().flatten(2)[:, :, index].transpose(1, 2)

    known = read(prior.known)
    # Metres of a texel of the maps -> of what a Gaussian here stands for.
    share = (size / tables.size) / tables.split[:, None]
    return SurfacePrior(
        texture=read(prior.texture).clamp(0, 1), observed=read(prior.observed),
        offsets=read(prior.offsets) * known, turns=read(prior.turns), scales=read(prior.scales) * share,
        known=known,
    )
