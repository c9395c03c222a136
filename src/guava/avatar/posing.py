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

import numba
import numpy as np
import torch
from torch import Tensor

from guava.avatar.gaussians import MAX_INFLUENCES, BindingKind, Gaussians, Layer
from guava.body import EHMOutput
from guava.rendering.threads import KERNEL_LOCK
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
        backend: "cpu" (numba, multithreaded, float32, no gradients), "torch" (the readable reference, any
            device, differentiable), or "auto": "cpu" for CPU tensors unless a gradient is asked for, "torch"
            otherwise.

    Raises:
        ValueError: More than one frame, Gaussians bound to what the template does not have, or a backend that
            cannot do what is asked.
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
        backend = "cpu" if on_cpu and not needs_grad else "torch"
    if backend == "torch":
        return _pose_reference(gaussians, output, faces, sigma_rule)
    if backend != "cpu":
        raise ValueError(f"There is no posing backend '{backend}'; choose 'auto', 'cpu' or 'torch'.")
    if not on_cpu or needs_grad:
        raise ValueError("The posing backend 'cpu' needs CPU tensors and has no gradients; use 'torch'.")

    def array(tensor: Tensor, dtype=torch.float32) -> np.ndarray:
        return tensor.detach().to(dtype).contiguous().numpy()

    g = gaussians
    with KERNEL_LOCK:
        fits, means, quaternions, scales = _pose_kernel(
            array(g.positions), array(g.rotations), array(g.scales), array(g.binding, torch.uint8),
            array(g.anchor, torch.int32), array(g.barycentrics), array(g.local_offset), array(g.sigma),
            array(g.triangle_rotation), array(g.skin_indices, torch.uint8), array(g.skin_weights),
            array(output.joints[0, 0] - output.rest_joints[0, 0]), array(output.vertices[0]),
            array(output.transforms[0]), array(output.joint_transforms[0]),
            array(faces, torch.int64), sigma_rule == "mean_edge",
        )
    if not fits:
        raise ValueError(_MISFIT)
    return PosedGaussians(
        torch.from_numpy(means), torch.from_numpy(quaternions), torch.from_numpy(scales), g.opacities,
        g.features,
    )


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


# --- the kernel -------------------------------------------------------------------------------------------

_f = np.float32
_TRIANGLE, _VERTEX, _SKIN = (int(kind) for kind in BindingKind)


@numba.njit(cache=True)
def _quaternion(m00, m01, m02, m10, m11, m12, m20, m21, m22):
    """``matrix_to_quaternion`` of one matrix, not normalised; ties go to the same candidate."""
    one, two = _f(1.0), _f(2.0)
    trace = m00 + m11 + m22
    if trace > m00 and trace > m11 and trace > m22:
        return one + trace, m21 - m12, m02 - m20, m10 - m01
    if m00 >= m11 and m00 >= m22:
        return m21 - m12, one - trace + two * m00, m10 + m01, m02 + m20
    if m11 >= m22:
        return m02 - m20, m10 + m01, one - trace + two * m11, m21 + m12
    return m10 - m01, m02 + m20, m21 + m12, one - trace + two * m22


@numba.njit(cache=True)
def _product(aw, ax, ay, az, bw, bx, by, bz):
    return (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )


@numba.njit(cache=True)
def _length(x, y, z):
    return max(np.sqrt(x * x + y * y + z * z), _f(_TINY))


@numba.njit(cache=True, parallel=True)
def _pose_kernel(
    positions, rotations, rest_scales, binding, anchor, barycentrics, local_offset, sigma, triangle_rotation,
    skin_indices, skin_weights, origin, vertices, transforms, joints, faces, mean_edge,
):
    count = positions.shape[0]
    means = np.empty((count, 3), np.float32)
    quaternions = np.empty((count, 4), np.float32)
    scales = np.empty((count, 3), np.float32)
    misfits = 0
    for n in numba.prange(count):
        ratio = _f(1.0)
        # An avatar file may hold any kind and index, and numba does not check them.
        fits = binding[n] == _SKIN
        if binding[n] == _TRIANGLE:
            fits = 0 <= anchor[n] < len(faces)
        elif binding[n] == _VERTEX:
            fits = 0 <= anchor[n] < len(vertices)
        else:
            for slot in range(skin_indices.shape[1]):
                fits = fits and skin_indices[n, slot] < len(joints)
        if not fits:
            misfits += 1
            continue
        if binding[n] == _TRIANGLE:
            i, j, k = faces[anchor[n], 0], faces[anchor[n], 1], faces[anchor[n], 2]
            x, y, z = vertices[i, 0], vertices[i, 1], vertices[i, 2]
            ex, ey, ez = vertices[j, 0] - x, vertices[j, 1] - y, vertices[j, 2] - z
            sx, sy, sz = vertices[k, 0] - x, vertices[k, 1] - y, vertices[k, 2] - z
            edge = _length(ex, ey, ez)
            ax, ay, az = ex / edge, ey / edge, ez / edge
            nx, ny, nz = ay * sz - az * sy, az * sx - ax * sz, ax * sy - ay * sx
            length = _length(nx, ny, nz)
            nx, ny, nz = nx / length, ny / length, nz / length
            cx, cy, cz = ay * nz - az * ny, az * nx - ax * nz, ax * ny - ay * nx
            length = _length(cx, cy, cz)
            cx, cy, cz = cx / length, cy / length, cz / length
            if mean_edge:
                size = (edge + _length(sx, sy, sz) + _length(sx - ex, sy - ey, sz - ez)) / _f(3.0)
            else:
                size = (edge + abs(cx * sx + cy * sy + cz * sz)) / _f(2.0)
            ratio = size / sigma[n]
            ox, oy, oz = local_offset[n, 0] * size, local_offset[n, 1] * size, local_offset[n, 2] * size
            b0, b1, b2 = barycentrics[n, 0], barycentrics[n, 1], barycentrics[n, 2]
            missing = _f(1.0) - (b0 + b1 + b2)
            frame = (ax, nx, cx, ay, ny, cy, az, nz, cz)
            for d in range(3):
                means[n, d] = (
                    b0 * vertices[i, d] + b1 * vertices[j, d] + b2 * vertices[k, d]
                    + missing * origin[d] + frame[3 * d] * ox + frame[3 * d + 1] * oy + frame[3 * d + 2] * oz
                )
            qw, qx, qy, qz = _quaternion(ax, nx, cx, ay, ny, cy, az, nz, cz)
            qw, qx, qy, qz = _product(
                qw, qx, qy, qz, triangle_rotation[n, 0], -triangle_rotation[n, 1], -triangle_rotation[n, 2],
                -triangle_rotation[n, 3],
            )
        elif binding[n] == _VERTEX:
            i = anchor[n]
            for d in range(3):
                means[n, d] = vertices[i, d]
            qw, qx, qy, qz = _quaternion(
                transforms[i, 0, 0], transforms[i, 0, 1], transforms[i, 0, 2],
                transforms[i, 1, 0], transforms[i, 1, 1], transforms[i, 1, 2],
                transforms[i, 2, 0], transforms[i, 2, 1], transforms[i, 2, 2],
            )
        else:
            m00 = m01 = m02 = m03 = m10 = m11 = m12 = m13 = m20 = m21 = m22 = m23 = _f(0.0)
            for slot in range(skin_weights.shape[1]):
                w = skin_weights[n, slot]
                if w == 0:
                    continue
                i = skin_indices[n, slot]
                m00 += w * joints[i, 0, 0]
                m01 += w * joints[i, 0, 1]
                m02 += w * joints[i, 0, 2]
                m03 += w * joints[i, 0, 3]
                m10 += w * joints[i, 1, 0]
                m11 += w * joints[i, 1, 1]
                m12 += w * joints[i, 1, 2]
                m13 += w * joints[i, 1, 3]
                m20 += w * joints[i, 2, 0]
                m21 += w * joints[i, 2, 1]
                m22 += w * joints[i, 2, 2]
                m23 += w * joints[i, 2, 3]
            x, y, z = positions[n, 0], positions[n, 1], positions[n, 2]
            means[n, 0] = m00 * x + m01 * y + m02 * z + m03
            means[n, 1] = m10 * x + m11 * y + m12 * z + m13
            means[n, 2] = m20 * x + m21 * y + m22 * z + m23
            qw, qx, qy, qz = _quaternion(m00, m01, m02, m10, m11, m12, m20, m21, m22)
        qw, qx, qy, qz = _product(
            qw, qx, qy, qz, rotations[n, 0], rotations[n, 1], rotations[n, 2], rotations[n, 3]
        )
        norm = max(np.sqrt(qw * qw + qx * qx + qy * qy + qz * qz), _f(_TINY))
        quaternions[n, 0], quaternions[n, 1] = qw / norm, qx / norm
        quaternions[n, 2], quaternions[n, 3] = qy / norm, qz / norm
        for d in range(3):
            scales[n, d] = rest_scales[n, d] * ratio
    return misfits == 0, means, quaternions, scales
