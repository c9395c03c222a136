"""Posed joints and points of a skeleton, with exact derivatives.

Joints, fingertips and the points of the face are rigidly attached to one joint each, so their positions and
all derivatives follow from the kinematic chain alone; the mesh is not needed while fitting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guava.body import Template
from guava.rotation import axis_angle_to_matrix


def skew(vector: Tensor) -> Tensor:
    """(*B, 3) -> (*B, 3, 3) with ``skew(a) @ b = a x b``."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*vector.shape, 3)


def right_jacobian(axis_angle: Tensor) -> Tensor:
    """(*B, 3) -> (*B, 3, 3): R(v + d) = R(v) exp(skew(J d)) to first order (the right Jacobian of SO(3))."""
    squared = axis_angle.square().sum(-1)[..., None, None]
    small = squared < 1e-8
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    first = torch.where(small, 0.5 - squared / 24, (1 - torch.cos(angle)) / angle.square())
    second = torch.where(small, 1 / 6 - squared / 120, (angle - torch.sin(angle)) / angle.pow(3))
    k = skew(axis_angle)
    return torch.eye(3, dtype=axis_angle.dtype) - first * k + second * (k @ k)


@dataclass(frozen=True)
class Skeleton:
    """A kinematic tree with points attached to it.

    Attributes:
        parents: K parents, -1 at the root; parents precede children.
        attached: (N,) int64 joint that carries each point. A joint's own position is a point with zero
            offset.
        ancestry: (N, K) 1 where joint k is the carrier of point n or above it.
    """

    parents: tuple[int, ...]
    attached: Tensor
    ancestry: Tensor

    @staticmethod
    def build(parents: list[int], attached: list[int]) -> Skeleton:
        ancestry = torch.zeros(len(attached), len(parents), dtype=torch.float64)
        for n, joint in enumerate(attached):
            while joint >= 0:
                ancestry[n, joint] = 1
                joint = parents[joint]
        return Skeleton(tuple(parents), torch.tensor(attached), ancestry)


@dataclass(frozen=True)
class PosedChain:
    """A posed skeleton.

    Attributes:
        rotations: (T, K, 3, 3) of every joint in the world.
        joints: (T, K, 3).
        points: (T, N, 3).
    """

    rotations: Tensor
    joints: Tensor
    points: Tensor


def pose_chain(
    skeleton: Skeleton, axis_angle: Tensor, translation: Tensor, rest_joints: Tensor, rest_points: Tensor
) -> PosedChain:
    """Forward kinematics.

    Args:
        skeleton: K joints, N points.
        axis_angle: (T, K, 3).
        translation: (T, 3).
        rest_joints: (K, 3), or (T, K, 3) where they differ from frame to frame.
        rest_points: (N, 3) or (T, N, 3).
    """
    local = axis_angle_to_matrix(axis_angle)
    rotations, joints = [local[:, 0]], [rest_joints[..., 0, :] + translation]
    for k in range(1, len(skeleton.parents)):
        parent = skeleton.parents[k]
        rotations.append(rotations[parent] @ local[:, k])
        bone = rest_joints[..., k, :] - rest_joints[..., parent, :]
        joints.append(joints[parent] + (rotations[parent] @ bone[..., None])[..., 0])
    world, posed = torch.stack(rotations, 1), torch.stack(joints, 1)
    carrier = skeleton.attached
    offset = rest_points - rest_joints[..., carrier, :]
    points = posed[:, carrier] + (world[:, carrier] @ offset[..., None])[..., 0]
    return PosedChain(world, posed, points)


def joint_motions(posed: PosedChain, axis_angle: Tensor, moving: Tensor) -> Tensor:
    """(T, 6, 3 n) how everything below the joints ``moving`` moves with their axis-angle: angular velocity
    w, then the velocity m of the point at the world's origin, so that a point p moves by w x p + m."""
    axes = posed.rotations[:, moving] @ right_jacobian(axis_angle[:, moving])  # columns: angular velocities
    moments = torch.linalg.cross(posed.joints[:, moving, :, None], axes, dim=2)  # -w x joint
    frames = axes.shape[0]
    return torch.cat([part.permute(0, 2, 1, 3).reshape(frames, 3, -1) for part in (axes, moments)], 1)


def point_jacobian(
    skeleton: Skeleton, posed: PosedChain, motions: Tensor, moving: Tensor, points: Tensor
) -> Tensor:
    """Derivative (T, m, 3, 3 n) of some points (their indices, (m,)) by the axis-angle of the joints
    ``moving``, whose ``motions`` are known. One matrix product a frame, however many joints there are."""
    at = posed.points[:, points]
    frames, count = at.shape[:2]
    eye = torch.eye(3, dtype=at.dtype).expand(frames, count, 3, 3)
    by_motion = torch.cat([-skew(at), eye], -1)
    moved = (by_motion.reshape(frames, 3 * count, 6) @ motions).reshape(frames, count, 3, -1)
    below = skeleton.ancestry[points][:, moving].repeat_interleave(3, 1)
    return moved.mul_(below[:, None])


def rotation_jacobian(skeleton: Skeleton, posed: PosedChain, axis_angle: Tensor, moving: Tensor) -> Tensor:
    """Derivative (T, N, 3, 3 n) of all points by the axis-angle of the n joints ``moving``."""
    motions = joint_motions(posed, axis_angle, moving)
    return point_jacobian(skeleton, posed, motions, moving, torch.arange(posed.points.shape[1]))


def rest_jacobian(skeleton: Skeleton, posed: PosedChain, joint_dirs: Tensor, point_dirs: Tensor) -> Tensor:
    """Derivative (T, N, 3, S) of the points by values that move the rest pose linearly.

    Args:
        skeleton: K joints, N points.
        posed: The posed skeleton.
        joint_dirs: (K, 3, S).
        point_dirs: (N, 3, S).
    """
    every = torch.arange(posed.points.shape[1])
    return carried_jacobian(skeleton, posed, joints_rest_jacobian(skeleton, posed, joint_dirs),
                            joint_dirs, point_dirs, every)  # fmt: skip


def joints_rest_jacobian(skeleton: Skeleton, posed: PosedChain, joint_dirs: Tensor) -> Tensor:
    """Derivative (T, K, 3, S) of the joints by values that move the rest pose linearly."""
    moved = [joint_dirs[0].expand(posed.rotations.shape[0], -1, -1)]
    for k in range(1, len(skeleton.parents)):
        parent = skeleton.parents[k]
        moved.append(moved[parent] + posed.rotations[:, parent] @ (joint_dirs[k] - joint_dirs[parent]))
    return torch.stack(moved, 1)


def carried_jacobian(
    skeleton: Skeleton, posed: PosedChain, joints_moved: Tensor, joint_dirs: Tensor, point_dirs: Tensor,
    points: Tensor,
) -> Tensor:  # fmt: skip
    """Derivative (T, m, 3, S) of some points (their indices, (m,)), given that of all joints."""
    carrier = skeleton.attached[points]
    own = point_dirs[points] - joint_dirs[carrier]
    return joints_moved[:, carrier] + posed.rotations[:, carrier] @ own


def finger_joints(template: Template, side: str) -> list[int]:
    """Joint index of the 21 hand points' order (wrist, then thumb to little finger), -1 where it is a
    fingertip."""
    order = [template.joint(f"{side}_wrist")]
    for finger in ("thumb", "index", "middle", "ring", "pinky"):
        order += [template.joint(f"{side}_{finger}{i}") for i in (1, 2, 3)] + [-1]
    return order
