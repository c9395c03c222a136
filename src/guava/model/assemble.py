"""Predicted Gaussians become the avatar's record (Sec. 3.2): the one place where colours are activated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guava.avatar.gaussians import Gaussians, Layer
from guava.avatar.posing import SigmaRule, bind_to_vertices, rig_to_triangles
from guava.camera import Camera
from guava.model.outputs import NetworkOutput, UVGaussians
from guava.model.sampling import surface_points, visible_points
from guava.rendering import rasterize_mesh

TOLERANCE = 4e-3
"""Metres by which an anchor may lie behind the nearest surface of its pixel and still count as seen."""


@dataclass(frozen=True)
class Seen:
    """Which anchors the source picture shows.

    Attributes:
        template: (V,) bool, by vertex.
        uv: (M,) bool for every UV layer, by texel.
    """

    template: Tensor
    uv: tuple[Tensor, ...]


def activate_colors(features: Tensor) -> Tensor:
    """(..., C) raw features -> the same with RGB in [0, 1] in the first three channels; the latents stay."""
    return torch.cat([torch.sigmoid(features[..., :3]), features[..., 3:]], -1)


def assemble(
    output: NetworkOutput,
    rest_vertices: Tensor,
    faces: Tensor,
    *,
    element: int = 0,
    sigma_rule: SigmaRule = "mean_edge",
    opacity_threshold: float | None = None,
    seen: Seen | None = None,
) -> Gaussians:
    """One batch element of a network's output as canonical Gaussians, differentiable in the output.

    The order is the release's: template Gaussians first, then the UV layers in their order. Opacities and
    scales come activated from the decoders, latents stay raw, and RGB gets its sigmoid here, once.

    Args:
        output: Of a network of :func:`guava.model.build_network`.
        rest_vertices: (V, 3) or (B, V, 3), the people's own rest meshes (``SourceBatch.rest_vertices``).
        faces: (F, 3) of the template.
        element: Which person of the batch.
        sigma_rule: Size of a triangle in Eq. 3, ``GuavaConfig.sigma_rule``.
        opacity_threshold: UV Gaussians at or below it are left out; template Gaussians always stay. None
            keeps all of them, which training needs.
        seen: What the source showed (:func:`seen_in_source`); without it everything counts as inferred.

    Raises:
        ValueError: Nothing is predicted, or the template branch was made for another number of vertices.
    """
    vertices = rest_vertices if rest_vertices.ndim == 2 else rest_vertices[element]
    parts: list[Gaussians] = []
    if output.template is not None:
        count = output.template.features.shape[1]
        if count != vertices.shape[0]:
            raise ValueError(f"{count} template Gaussians cannot sit on {vertices.shape[0]} vertices.")
        parts.append(
            bind_to_vertices(
                vertices,
                torch.arange(count, device=vertices.device),
                rotations=output.template.rotations[element],
                scales=output.template.scales[element],
                opacities=output.template.opacities[element, :, 0],
                features=activate_colors(output.template.features[element].float()),
                observed=False if seen is None else seen.template,
            )
        )
    for number, layer in enumerate(output.uv):
        opacities = layer.opacities[element, :, 0].float()
        kept = slice(None)
        if opacity_threshold is not None:
            kept = (opacities > opacity_threshold).nonzero()[:, 0]
        parts.append(
            rig_to_triangles(
                vertices,
                faces,
                layer.face_ids[kept],
                layer.barycentrics[kept],
                local_offset=layer.local_offsets[element][kept].float(),
                rotations=layer.rotations[element][kept].float(),
                scales=layer.scales[element][kept].float(),
                opacities=opacities[kept],
                features=activate_colors(layer.features[element][kept].float()),
                layer=Layer.UV,
                observed=False if seen is None else seen.uv[number][kept],
                sigma_rule=sigma_rule,
            )
        )
    if not parts:
        raise ValueError("The network predicts no Gaussians: neither a template nor a UV branch.")
    return parts[0] if len(parts) == 1 else Gaussians.concatenate(*parts)


def seen_in_source(
    output: NetworkOutput,
    vertices: Tensor,
    faces: Tensor,
    camera: Camera,
    *,
    person: Tensor | None = None,
    guessed: Tensor | None = None,
) -> Seen:
    """Which vertices and texels the source picture shows: in front of the posed mesh's z-buffer, inside the
    picture and on the person.

    Args:
        output: What the network predicted; only the anchors are read.
        vertices: (V, 3) the posed source mesh, world metres.
        faces: (F, 3).
        camera: The source camera (no batch) at the resolution to decide at.
        person: (H, W) bool at the camera's size: pixels that show the person; all without it.
        guessed: (F,) bool: faces whose place is a guess (hands that were not found). They hide nothing and
            count as not seen.
    """
    device, faces = vertices.device, faces.long()
    guessed = torch.zeros(len(faces), dtype=torch.bool) if guessed is None else guessed
    # One z-buffer serves all anchors; it is made on the CPU, where it is fast and the same for every device.
    vertices, faces = vertices.detach().float().cpu(), faces.cpu()
    camera, guessed = camera.to("cpu", torch.float32), guessed.cpu()
    fragments = rasterize_mesh(vertices, faces[~guessed], camera)

    def shown(points: Tensor) -> Tensor:
        out = visible_points(points, camera, fragments, tolerance=TOLERANCE)
        if person is not None:
            pixels, _ = camera.project(points)
            column = pixels[:, 0].floor().long().clamp(0, camera.width - 1)
            row = pixels[:, 1].floor().long().clamp(0, camera.height - 1)
            out = out & person.cpu()[row, column]
        return out

    def texels(layer: UVGaussians) -> Tensor:
        ids, weights = layer.face_ids.cpu().long(), layer.barycentrics.detach().cpu().float()
        points = surface_points(vertices, faces, ids, weights)
        # Texels of triangles that rounding collapsed have no place on the body ([Q] of the UV table).
        return shown(points) & ~guessed[ids] & (weights.sum(-1) > 0.5)

    sure = torch.ones(len(vertices), dtype=torch.bool)
    sure[faces[guessed].unique()] = False
    return Seen((shown(vertices) & sure).to(device), tuple(texels(layer).to(device) for layer in output.uv))
