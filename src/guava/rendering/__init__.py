"""Pictures of meshes and of Gaussians."""

from guava.rendering.mesh import (
    MeshFragments,
    rasterize_mesh,
    rasterize_uv,
    sample_texture,
    shade_mesh,
    vertex_normals,
)
from guava.rendering.splatting import (
    CONVENTIONS,
    GSPLAT,
    THREE_DGS,
    SplatConventions,
    SplatOutput,
    conventions_by_name,
    splat,
)

__all__ = [
    "CONVENTIONS",
    "GSPLAT",
    "MeshFragments",
    "SplatConventions",
    "SplatOutput",
    "THREE_DGS",
    "conventions_by_name",
    "rasterize_mesh",
    "rasterize_uv",
    "sample_texture",
    "shade_mesh",
    "splat",
    "vertex_normals",
]
