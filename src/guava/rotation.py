"""Rotations: axis-angle, matrices, unit quaternions (w, x, y, z). Batched, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """(*B, 3) radians -> (*B, 3, 3), by Rodrigues' formula; smooth at zero."""
    squared = axis_angle.square().sum(-1)[..., None, None]
    small = squared < 1e-8
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    # sin(a)/a and (1-cos(a))/a^2 with their Taylor series near zero keep values and gradients finite.
    first = torch.where(small, 1 - squared / 6, torch.sin(angle) / angle)
    second = torch.where(small, 0.5 - squared / 24, (1 - torch.cos(angle)) / angle.square())
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return eye + first * skew + second * (skew @ skew)


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """(*B, 3, 3) -> (*B, 4) unit quaternions by the largest-of-(diagonal, trace) method.

    The input is not orthonormalised first; a blend of rotations gives the quaternion of a nearby rotation.
    """
    m = matrix
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    trace = m00 + m11 + m22
    candidates = torch.stack(
        [
            torch.stack(
                [
                    1 + trace,
                    m[..., 2, 1] - m[..., 1, 2],
                    m[..., 0, 2] - m[..., 2, 0],
                    m[..., 1, 0] - m[..., 0, 1],
                ],
                -1,
            ),
            torch.stack(
                [
                    m[..., 2, 1] - m[..., 1, 2],
                    1 - trace + 2 * m00,
                    m[..., 1, 0] + m[..., 0, 1],
                    m[..., 2, 0] + m[..., 0, 2],
                ],
                -1,
            ),
            torch.stack(
                [
                    m[..., 0, 2] - m[..., 2, 0],
                    m[..., 1, 0] + m[..., 0, 1],
                    1 - trace + 2 * m11,
                    m[..., 2, 1] + m[..., 1, 2],
                ],
                -1,
            ),
            torch.stack(
                [
                    m[..., 1, 0] - m[..., 0, 1],
                    m[..., 2, 0] + m[..., 0, 2],
                    m[..., 2, 1] + m[..., 1, 2],
                    1 - trace + 2 * m22,
                ],
                -1,
            ),
        ],
        -2,
    )
    # Of equal ones the diagonal's first wins, as in SciPy: only what is no rotation notices.
    largest = torch.maximum(torch.maximum(m00, m11), m22)
    row = torch.where(m00 == largest, 1, torch.where(m11 == largest, 2, 3))
    choice = torch.where(trace > largest, 0, row)
    picked = torch.gather(candidates, -2, choice[..., None, None].expand(*choice.shape, 1, 4)).squeeze(-2)
    return torch.nn.functional.normalize(picked, dim=-1)


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """(*B, 4) quaternions, normalised here -> (*B, 3, 3)."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z),
            2 * (x * y - w * z),
            2 * (x * z + w * y),
            2 * (x * y + w * z),
            1 - 2 * (x * x + z * z),
            2 * (y * z - w * x),
            2 * (x * z - w * y),
            2 * (y * z + w * x),
            1 - 2 * (x * x + y * y),
        ],
        -1,
    ).reshape(*w.shape, 3, 3)


def quaternion_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product (*B, 4) x (*B, 4) -> (*B, 4): the rotation ``b`` followed by ``a``."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """(*B, 3, 3) rotations -> (*B, 3) axis-angle with an angle in [0, pi]."""
    quaternion = matrix_to_quaternion(matrix)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    norm = quaternion[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(norm, quaternion[..., :1])
    return quaternion[..., 1:] * torch.where(
        norm < 1e-7, torch.full_like(norm, 2.0), angle / norm.clamp(min=1e-12)
    )
