"""Pictures of meshes and of Gaussians."""

from guava.rendering.mesh import (
    MeshFragments,
    rasterize_mesh,
    rasterize_uv,
    sample_texture,
    shade_mesh,
    vertex_normals,
)
from guava.rendering.splatting import GSPLAT, SplatConventions, SplatOutput, splat

__all__ = [
    "GSPLAT",
    "MeshFragments",
    "SplatConventions",
    "SplatOutput",
    "rasterize_mesh",
    "rasterize_uv",
    "sample_texture",
    "shade_mesh",
    "splat",
    "vertex_normals",
]
