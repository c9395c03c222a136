"""Which triangle, and where on it, every pixel of a UV map belongs to (B.4)."""

from __future__ import annotations

import torch

from guava.body import Template
from guava.rendering import MeshFragments, rasterize_uv


def uv_texels(template: Template, size: int) -> MeshFragments:
    """Face and barycentrics at every texel; row = v, column = u.

    A template that carries a table of this size (``Template.uv_table``; "smplx-flame" has the release's, with
    texels that rounding collapsed: their barycentrics are all 0) is read from it; otherwise its atlas is
    rasterised at the texels' centres.

    Args:
        template: Any.
        size: Side of the square map.

    Returns:
        On the CPU; ``face_ids`` (size, size) int32, -1 where there is no triangle.
    """
    table = template.uv_table
    if table is None or table.face_ids.shape != (size, size):
        with torch.device("cpu"):
            return rasterize_uv(template, size)
    face_ids = table.face_ids.to("cpu", torch.int32)
    depth = torch.where(face_ids >= 0, 1.0, torch.inf)
    return MeshFragments(face_ids, table.barycentrics.to("cpu", torch.float32), depth)
