"""How Gaussians follow the body (paper Sec. 3.2, Eq. 3, and Sec. 3.3).

A triangle (v0, v1, v2) carries the frame R_t with the columns ::

    a0 = unit(v1 - v0),    a1 = unit(a0 x (v2 - v0)) (its normal),    a2 = -unit(a1 x a0)

and the size sigma. The rig of Eq. 3 places a Gaussian at

    mu' = sigma R_t delta_mu + sum_k b_k v_k,    s' = sigma s,    q' = quat(R_t) q.

The release's barycentrics sum to a little less than one, and to zero on triangles that its UV table
collapsed: such an anchor is drawn towards the origin of the *release's* world, where the person stands
untranslated. Here the person is moved, so that the missing weight goes to the translation of the pose.

``Gaussians`` stores rotations and scales as they are in the rest pose, so posing multiplies by the ratio of
the two poses: q' = quat(R_t) quat(R_t,rest)^-1 q_rest and s' = s_rest sigma / sigma_rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from guava import native
from guava.avatar.gaussians import MAX_INFLUENCES, BindingKind, Gaussians, Layer
from guava.body import EHMOutput
from guava.native.animation import Posed, PoseScene, call, pointer
from guava.rotation import matrix_to_quaternion, quaternion_multiply

SigmaRule = Literal["mean_edge", "edge_and_height"]
"""Size of a triangle: the paper's mean edge length, or the mean of the edge v0v1 and the height over it,
which the authors' released weights were trained with."""

_TINY = 1e-10  # metres; lengths are sqrt(max(sum x^2, 1e-20)), as in the release
_MISFIT = "The Gaussians are bound to faces, vertices or joints the template does not have."


class TriangleFrames(NamedTuple):
    """Orientation and size of F triangles; unpacks as (rotation, sigma).

    Attributes:
        rotation: (*B, F, 3, 3) R_t, columns a0, a1, a2.
        sigma: (*B, F) metres.
    """

    rotation: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class PosedGaussians:
    """Gaussians in a pose, ready for :func:`guava.rendering.splat`.

    Attributes:
        means: (N, 3) world metres.
        quaternions: (N, 4) unit, (w, x, y, z).
        scales: (N, 3) metres.
        opacities: (N,).
        features: (N, C).
    """

    means: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor


def triangle_frames(vertices: Tensor, faces: Tensor, sigma_rule: SigmaRule) -> TriangleFrames:
    """Frames of the triangles ``faces`` (F, 3) of a mesh (*B, V, 3), metres: R_t and sigma of Eq. 3.

    A triangle without area has no orientation: its R_t holds zeros, never NaN.
    """
    _check_rule(sigma_rule)
    v0, v1, v2 = vertices[..., faces.long(), :].unbind(-2)
    edge, side = v1 - v0, v2 - v0
    a0 = _unit(edge)
    a1 = _unit(torch.linalg.cross(a0, side, dim=-1))
    a2 = -_unit(torch.linalg.cross(a1, a0, dim=-1))
    if sigma_rule == "mean_edge":
        sigma = (_norm(edge) + _norm(side) + _norm(v2 - v1)) / 3
    else:
        sigma = (_norm(edge) + (a2 * side).sum(-1).abs()) / 2
    return TriangleFrames(torch.stack([a0, a1, a2], -1), sigma)


def face_frames(
    vertices: Tensor, faces: Tensor, sigma_rule: SigmaRule = "edge_and_height"
) -> TriangleFrames:
    """:func:`triangle_frames` with the release's sigma: ``rotation, sigma = face_frames(vertices, faces)``.

    Args:
        vertices: (*B, V, 3) metres.
        faces: (F, 3) vertex indices.
        sigma_rule: "edge_and_height": sigma = (|v1 - v0| + |a2 . (v2 - v0)|) / 2; "mean_edge": the paper's.

    Returns:
        R_t (*B, F, 3, 3) with the columns a0, a1 (the normal), a2, and sigma (*B, F) metres.
    """
    return triangle_frames(vertices, faces, sigma_rule)


def bind_to_triangles(
    vertices: Tensor,
    faces: Tensor,
    face_ids: Tensor,
    barycentrics: Tensor,
    *,
    rotations: Tensor,
    scales: Tensor,
    opacities: Tensor,
    features: Tensor,
    positions: Tensor | None = None,
    layer: Layer = Layer.UV,
    observed: Tensor | bool = True,
    sigma_rule: SigmaRule = "mean_edge",
) -> Gaussians:
    """Rig Gaussians, given as they are in the rest pose, to triangles (Eq. 3).

    Args:
        vertices: (V, 3) the identity's rest mesh.
        faces: (F, 3).
        face_ids: (N,) triangle of every Gaussian.
        barycentrics: (N, 3) anchor point on it.
        rotations: (N, 4) rest-pose quaternions.
        scales: (N, 3) metres.
        opacities: (N,).
        features: (N, C).
        positions: (N, 3) rest-pose positions; the anchor points themselves without it.
        layer: Which generator made them.
        observed: (N,) bool or one for all.
        sigma_rule: Must be that of the avatar (``Avatar.sigma_rule``).
    """
    ids = face_ids.long()
    frames = triangle_frames(vertices, faces, sigma_rule)  # many Gaussians share a triangle
    anchors = (vertices[faces[ids].long()] * barycentrics[..., None]).sum(-2)
    sigma = frames.sigma[ids].clamp(min=_TINY)
    if positions is None:
        positions, offset = anchors, torch.zeros_like(anchors)
    else:
        arm = (positions - anchors)[:, None]
        offset = (arm @ frames.rotation[ids])[:, 0] / sigma[:, None]  # R_t^T (mu' - t) / sigma
    return _record(
        BindingKind.TRIANGLE, positions, rotations, scales, opacities, features, layer, observed,
        anchor=face_ids, barycentrics=barycentrics, local_offset=offset, sigma=sigma,
        triangle_rotation=matrix_to_quaternion(frames.rotation)[ids],
    )


def rig_to_triangles(
    vertices: Tensor,
    faces: Tensor,
    face_ids: Tensor,
    barycentrics: Tensor,
    *,
    local_offset: Tensor,
    rotations: Tensor,
    scales: Tensor,
    opacities: Tensor,
    features: Tensor,
    layer: Layer = Layer.UV,
    observed: Tensor | bool = True,
    sigma_rule: SigmaRule = "mean_edge",
) -> Gaussians:
    """The same from the parameters of Eq. 3 themselves, as a network predicts them.

    Args:
        vertices, faces, face_ids, barycentrics, opacities, features, layer, observed, sigma_rule: As in
            :func:`bind_to_triangles`.
        local_offset: (N, 3) delta mu, in units of sigma and in the triangle's frame.
        rotations: (N, 4) q, relative to the triangle's frame.
        scales: (N, 3) s, in units of sigma.
    """
    ids = face_ids.long()
    frames = triangle_frames(vertices, faces, sigma_rule)  # many Gaussians share a triangle
    anchors = (vertices[faces[ids].long()] * barycentrics[..., None]).sum(-2)
    turned = (frames.rotation[ids] @ local_offset[..., None]).squeeze(-1)
    sigma = frames.sigma[ids].clamp(min=_TINY)
    triangle = matrix_to_quaternion(frames.rotation)[ids]
    return _record(
        BindingKind.TRIANGLE, anchors + sigma[:, None] * turned, quaternion_multiply(triangle, rotations),
        sigma[:, None] * scales, opacities, features, layer, observed,
        anchor=face_ids, barycentrics=barycentrics, local_offset=local_offset, sigma=sigma,
        triangle_rotation=triangle,
    )


def bind_to_vertices(
    vertices: Tensor,
    vertex_ids: Tensor,
    *,
    rotations: Tensor,
    scales: Tensor,
    opacities: Tensor,
    features: Tensor,
    layer: Layer = Layer.TEMPLATE,
    observed: Tensor | bool = True,
) -> Gaussians:
    """Template Gaussians: on the vertices ``vertex_ids`` (N,) of the rest mesh (V, 3), turning with them."""
    return _record(
        BindingKind.VERTEX, vertices[vertex_ids.long()], rotations, scales, opacities, features, layer,
        observed, anchor=vertex_ids,
    )


def bind_to_skin(
    positions: Tensor,
    weights: Tensor,
    *,
    rotations: Tensor,
    scales: Tensor,
    opacities: Tensor,
    features: Tensor,
    joints: Tensor | None = None,
    layer: Layer = Layer.SHELL,
    observed: Tensor | bool = True,
) -> Gaussians:
    """Gaussians with skinning weights of their own.

    Args:
        positions: (N, 3) rest pose, metres.
        weights: (N, J) over all joints, or (N, K) for the joints in ``joints``. The ``MAX_INFLUENCES``
            largest are kept and scaled to sum to 1.
        rotations, scales, opacities, features: Rest pose, as in :class:`Gaussians`.
        joints: (N, K) joint indices of ``weights``.
        layer: Which generator made them.
        observed: (N,) bool or one for all.

    Raises:
        ValueError: A Gaussian has no positive weight.
    """
    kept = min(MAX_INFLUENCES, weights.shape[1])
    top, column = weights.topk(kept, dim=1)
    index = column if joints is None else torch.gather(joints.long(), 1, column)
    top = top.clamp(min=0)
    total = top.sum(1, keepdim=True)
    if not bool((total > 0).all()):
        raise ValueError("bind_to_skin got Gaussians without a positive skinning weight.")
    index = torch.where(top > 0, index, 0)
    pad = (0, MAX_INFLUENCES - kept)
    return _record(
        BindingKind.SKIN, positions, rotations, scales, opacities, features, layer, observed,
        skin_indices=torch.nn.functional.pad(index, pad),
        skin_weights=torch.nn.functional.pad(top / total, pad),
    )


def pose_gaussians(
    gaussians: Gaussians,
    output: EHMOutput,
    faces: Tensor,
    *,
    sigma_rule: SigmaRule = "mean_edge",
    backend: str = "auto",
    out: PosedGaussians | None = None,
) -> PosedGaussians:
    """Move an avatar's Gaussians into a pose (Sec. 3.3).

    * TRIANGLE: Eq. 3 on the posed mesh.
    * VERTEX: mean = posed vertex, rotation = quat(R_lbs) q.
    * SKIN: mean and rotation by the Gaussian's own blend of the joints' transforms. Expression and jaw belong
      to the head model and do not move it.

    R_lbs is a blend of rotations; quat(.) is that of ``matrix_to_quaternion``, without orthonormalising
    first, as in the authors' release.

    Args:
        gaussians: In the identity's rest pose.
        output: The EHM of one frame (B = 1) of the same identity.
        faces: (F, 3) of the template.
        sigma_rule: The rule that the triangles' sigma was made with (``Avatar.sigma_rule``).
        backend: "native" (the compiled library: CPU, multithreaded, float32, no gradients), "torch" (the
            readable reference, any device, differentiable), or "auto": "native" for CPU tensors where the
            library loads, unless a gradient is asked for; "torch" otherwise.
        out: Means, quaternions and scales to overwrite, float32 (an animation's earlier frame); the native
            backend only.

    Raises:
        ValueError: More than one frame, Gaussians bound to what the template does not have, or a backend that
            cannot do what is asked.
        NativeUnavailable: "native" is asked for and cannot load.
    """
    _check_rule(sigma_rule)
    if output.vertices.shape[0] != 1:
        raise ValueError(f"pose_gaussians poses one frame at a time, got {output.vertices.shape[0]}.")
    on_cpu = gaussians.positions.device.type == "cpu" and output.vertices.device.type == "cpu"
    names = ("positions", "rotations", "scales", "local_offset", "skin_weights")
    inputs = [getattr(gaussians, name) for name in names]
    inputs += [output.vertices, output.transforms, output.joint_transforms]
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    if backend == "auto":
        backend = "native" if on_cpu and not needs_grad and native.available() else "torch"
    if backend == "torch":
        return _pose_reference(gaussians, output, faces, sigma_rule)
    if backend != "native":
        raise ValueError(f"There is no posing backend '{backend}'; choose 'auto', 'native' or 'torch'.")
    if not on_cpu or needs_grad:
        raise ValueError("The posing backend 'native' needs CPU tensors and has no gradients; use 'torch'.")
    return _pose_native(gaussians, output, faces, sigma_rule, out)


def _pose_native(
    g: Gaussians, output: EHMOutput, faces: Tensor, sigma_rule: SigmaRule, out: PosedGaussians | None
) -> PosedGaussians:
    count, vertices = len(g), output.vertices.shape[1]
    joints, influences = output.joint_transforms.shape[1], g.skin_indices.shape[1]
    kept: list[Tensor] = []  # converted copies must live until the call is over

    def address(tensor: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> int:
        kept.append(tensor.detach().to(dtype).contiguous())
        return pointer(kept[-1], dtype, *shape)

    if out is None:
        out = PosedGaussians(
            torch.empty(count, 3), torch.empty(count, 4), torch.empty(count, 3), g.opacities, g.features
        )
    posed = Posed(
        pointer(out.means, torch.float32, count, 3),
        pointer(out.quaternions, torch.float32, count, 4),
        pointer(out.scales, torch.float32, count, 3),
    )
    scene = PoseScene(
        count=count, vertices=vertices, faces=len(faces), joints=joints, influences=influences,
        mean_edge=sigma_rule == "mean_edge",
        positions=address(g.positions, count, 3),
        rotations=address(g.rotations, count, 4),
        scales=address(g.scales, count, 3),
        barycentrics=address(g.barycentrics, count, 3),
        local_offset=address(g.local_offset, count, 3),
        sigma=address(g.sigma, count),
        triangle_rotation=address(g.triangle_rotation, count, 4),
        skin_weights=address(g.skin_weights, count, influences),
        skin_indices=address(g.skin_indices, count, influences, dtype=torch.uint8),
        binding=address(g.binding, count, dtype=torch.uint8),
        anchor=address(g.anchor, count, dtype=torch.int32),
        triangles=address(faces, len(faces), 3, dtype=torch.int32),
        mesh=address(output.vertices[0], vertices, 3),
        transforms=address(output.transforms[0], vertices, 4, 4),
        joint_transforms=address(output.joint_transforms[0], joints, 4, 4),
        origin=tuple((output.joints[0, 0] - output.rest_joints[0, 0]).tolist()),
    )
    call("guava_pose_gaussians", scene, posed, misfit=_MISFIT)
    return PosedGaussians(out.means, out.quaternions, out.scales, g.opacities, g.features)


# --- the readable reference -------------------------------------------------------------------------------


def _pose_reference(
    gaussians: Gaussians, output: EHMOutput, faces: Tensor, sigma_rule: SigmaRule
) -> PosedGaussians:
    vertices, transforms, joints = output.vertices[0], output.transforms[0], output.joint_transforms[0]
    if not _fits(gaussians, len(faces), len(vertices), len(joints)):
        raise ValueError(_MISFIT)
    means = torch.zeros_like(gaussians.positions)
    quaternions, scales = torch.zeros_like(gaussians.rotations), gaussians.scales.clone()

    rows = (gaussians.binding == BindingKind.TRIANGLE).nonzero()[:, 0]
    if len(rows):
        g = gaussians[rows]
        corners = faces.long()[g.anchor.long()]
        frames = triangle_frames(vertices, corners, sigma_rule)
        origin = output.joints[0, 0] - output.rest_joints[0, 0]  # the translation: the root turns in place
        missing = 1 - g.barycentrics.sum(-1, keepdim=True)
        anchors = (vertices[corners] * g.barycentrics[..., None]).sum(-2) + missing * origin
        offset = (frames.rotation @ g.local_offset[..., None]).squeeze(-1)
        turn = quaternion_multiply(matrix_to_quaternion(frames.rotation), _conjugate(g.triangle_rotation))
        means = means.index_copy(0, rows, anchors + frames.sigma[:, None] * offset)  # Eq. 3
        quaternions = quaternions.index_copy(0, rows, quaternion_multiply(turn, g.rotations))
        scales = scales.index_copy(0, rows, g.scales * (frames.sigma / g.sigma)[:, None])

    rows = (gaussians.binding == BindingKind.VERTEX).nonzero()[:, 0]
    if len(rows):
        g = gaussians[rows]
        anchor = g.anchor.long()
        turn = matrix_to_quaternion(transforms[anchor, :3, :3])
        means = means.index_copy(0, rows, vertices[anchor])
        quaternions = quaternions.index_copy(0, rows, quaternion_multiply(turn, g.rotations))

    rows = (gaussians.binding == BindingKind.SKIN).nonzero()[:, 0]
    if len(rows):
        g = gaussians[rows]
        blended = torch.einsum("nk,nkrc->nrc", g.skin_weights, joints[g.skin_indices.long()])
        turn = matrix_to_quaternion(blended[:, :3, :3])
        moved = (blended[:, :3, :3] @ g.positions[..., None]).squeeze(-1) + blended[:, :3, 3]
        means = means.index_copy(0, rows, moved)
        quaternions = quaternions.index_copy(0, rows, quaternion_multiply(turn, g.rotations))

    quaternions = torch.nn.functional.normalize(quaternions, dim=-1)
    return PosedGaussians(means, quaternions, scales, gaussians.opacities, gaussians.features)


def _fits(gaussians: Gaussians, faces: int, vertices: int, joints: int) -> bool:
    """Whether every binding is of a known kind and refers to what is there."""
    kind, anchor = gaussians.binding, gaussians.anchor
    fits = (kind == BindingKind.TRIANGLE) & (anchor >= 0) & (anchor < faces)
    fits |= (kind == BindingKind.VERTEX) & (anchor >= 0) & (anchor < vertices)
    fits |= (kind == BindingKind.SKIN) & (gaussians.skin_indices < joints).all(1)
    return bool(fits.all())


def _check_rule(sigma_rule: str) -> None:
    if sigma_rule not in ("mean_edge", "edge_and_height"):
        raise ValueError(f"There is no sigma rule '{sigma_rule}'; choose 'mean_edge' or 'edge_and_height'.")


def _norm(v: Tensor) -> Tensor:
    return v.square().sum(-1).clamp(min=_TINY**2).sqrt()


def _unit(v: Tensor) -> Tensor:
    return v / _norm(v)[..., None]


def _conjugate(quaternion: Tensor) -> Tensor:
    return quaternion * torch.tensor([1.0, -1, -1, -1]).to(quaternion)


def _record(kind, positions, rotations, scales, opacities, features, layer, observed, **binding) -> Gaussians:
    """A full record of one kind, with the documented dtypes (float64 stays); what ``binding`` leaves out is
    empty."""
    count, device = positions.shape[0], positions.device
    empty = {
        "anchor": torch.full((count,), -1, device=device),
        "barycentrics": torch.zeros(count, 3, device=device),
        "local_offset": torch.zeros(count, 3, device=device),
        "sigma": torch.ones(count, device=device),
        "triangle_rotation": torch.tensor([1.0, 0, 0, 0], device=device).repeat(count, 1),
        "skin_indices": torch.zeros(count, MAX_INFLUENCES, device=device),
        "skin_weights": torch.zeros(count, MAX_INFLUENCES, device=device),
    }
    values = {**empty, **binding}
    real = torch.promote_types(positions.dtype, torch.float32)
    seen = torch.as_tensor(observed, dtype=torch.bool, device=device).expand(count).clone()
    return Gaussians(
        positions=positions.to(real),
        rotations=torch.nn.functional.normalize(rotations.to(real), dim=-1),
        scales=scales.to(real),
        opacities=opacities.to(real),
        features=features.to(real),
        binding=torch.full((count,), int(kind), dtype=torch.uint8, device=device),
        anchor=values["anchor"].to(torch.int32),
        barycentrics=values["barycentrics"].to(real),
        local_offset=values["local_offset"].to(real),
        sigma=values["sigma"].to(real),
        triangle_rotation=values["triangle_rotation"].to(real),
        skin_indices=values["skin_indices"].to(torch.uint8),
        skin_weights=values["skin_weights"].to(real),
        layer=torch.full((count,), int(layer), dtype=torch.uint8, device=device),
        observed=seen,
    )
