"""Each hand alone: what a separate hand network gives in the paper (M_h of Eq. 8), found here by
optimisation.

A hand is the wrist and 15 finger joints, free in space; its 21 points are fitted in the picture, with the
detector's relative depth to tell towards from away. The result guides the body stage in 3D.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guava.body import Template
from guava.body.skeleton import rest_joints
from guava.camera import Camera
from guava.rotation import axis_angle_to_matrix, matrix_to_axis_angle
from guava.tracking.config import BodyFitConfig
from guava.tracking.fit.chain import Skeleton, finger_joints, pose_chain, rest_jacobian, rotation_jacobian
from guava.tracking.fit.face import project_with_jacobian
from guava.tracking.fit.offsets import hand_offsets, offsets_known
from guava.tracking.fit.solver import NormalEquations, Smoothness, huber_cost, minimise, robust_weight
from guava.tracking.priors import FINGERS, finger_joint_ids, pose_prior

PALM = (0, 1, 5, 9, 13, 17)
"""Hand points that move rigidly with the wrist."""


@dataclass(frozen=True)
class HandFit:
    """One side's hand in T frames.

    Attributes:
        orientation: (T, 3, 3) of the wrist joint in the world.
        fingers: (T, 15, 3) axis-angle, in the order of :func:`guava.tracking.priors.finger_joint_ids`.
        points: (T, 21, 3) fitted, world.
        seen: (T,) bool.
    """

    orientation: Tensor
    fingers: Tensor
    points: Tensor
    seen: Tensor


class HandModel:
    """Rest points of one hand, from the template's mean person."""

    def __init__(self, template: Template, side: str):
        order = finger_joints(template, side)
        wrist = template.joint(f"{side}_wrist")
        self.joint_ids = [wrist, *finger_joint_ids(template, side)]
        local = {joint: i for i, joint in enumerate(self.joint_ids)}
        joints = rest_joints(template, template.body)[0]
        parents = [-1] + [local[int(template.body.parents[j])] for j in self.joint_ids[1:]]
        attached, points = [], []
        for n, joint in enumerate(order):
            if joint >= 0:
                # A joint's point hangs at its parent: offsets are measured in the parent's frame.
                attached.append(max(parents[local[joint]], 0))
                points.append(joints[joint])
            else:
                finger = FINGERS[(n - 1) // 4]
                attached.append(local[template.joint(f"{side}_{finger}3")])
                tip = template.surface_points[f"{side}_{finger}_tip"]
                points.append(template.body.v_template[tip].double())
        self.skeleton = Skeleton.build(parents, attached)
        self.rest_joints = joints[self.joint_ids] - joints[wrist]
        self.rest_points = torch.stack(points) - joints[wrist]
        if offsets_known(template):
            self.rest_points = self.rest_points + hand_offsets(side)


def fit_hand(
    template: Template,
    camera: Camera,
    side: str,
    points: Tensor,
    confidence: Tensor,
    depth: Tensor | None,
    depth_spread: Tensor,
    person_depth: Tensor,
    links: Tensor,
    config: BodyFitConfig,
) -> HandFit:
    """Fit one side's hand in all frames.

    Args:
        template: For the hand's bones.
        camera: Unbatched camera of the crop.
        side: "left" or "right", the person's own.
        points: (T, 21, 2) crop pixels.
        confidence: (T, 21); zeros where the hand was not found.
        depth: (T, 21) relative depth in crop pixels or None.
        depth_spread: (T, 21) standard deviation of ``depth``, 0 where it is not known.
        person_depth: (T,) distance of the person from the camera, metres.
        links: (T-1,) smoothness links.
        config: Settings.
    """
    model = HandModel(template, side)
    frames = points.shape[0]
    seen = (confidence > 0).sum(1) >= 6
    focal = float(camera.intrinsics[0, 0])
    pixels_per_metre = focal / person_depth
    prior = pose_prior(template, model.joint_ids[1:])
    orientation = _palm_orientation(model, points, depth, pixels_per_metre, seen)
    centre = camera.intrinsics[:2, 2].double()
    wrist = torch.cat([(points[:, 0] - centre) / pixels_per_metre[:, None], person_depth[:, None]], 1)
    wrist = wrist * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    count = 3 + 45 + 3
    start = torch.zeros(frames, count, dtype=torch.float64)
    start[:, :3], start[:, 3:48], start[:, 48:] = matrix_to_axis_angle(orientation), prior.mean, wrist
    moving = torch.arange(16)
    sigma = config.hand_sigma * camera.width / 512
    depth_sigma = torch.where(depth_spread > 0, depth_spread * config.lifted_depth_factor, 8 * sigma)
    # One shared value: the hand's size relative to the template's.
    size_dirs = (model.rest_joints[..., None], model.rest_points[..., None])

    def build(values: Tensor, shared: Tensor) -> NormalEquations:
        equations = NormalEquations.zero(frames, count, 1)
        angles = values[:, :48].reshape(frames, 16, 3)
        grow = 1 + shared[0]
        posed = pose_chain(
            model.skeleton, angles, values[:, 48:], model.rest_joints * grow, model.rest_points * grow
        )
        jacobian = torch.zeros(frames, 21, 3, count, dtype=torch.float64)
        jacobian[..., :48] = rotation_jacobian(model.skeleton, posed, angles, moving)
        jacobian[..., 48:] = torch.eye(3, dtype=torch.float64)
        by_size = rest_jacobian(model.skeleton, posed, *size_dirs)
        pixels, projection = project_with_jacobian(camera, posed.points)
        difference = (pixels - points) / sigma
        distance = difference.norm(dim=-1)
        weight = (confidence * robust_weight(distance, 3.0)).sqrt()
        scale = (weight / sigma)[..., None, None]
        equations.add(
            (difference * weight[..., None]).flatten(1),
            (projection @ jacobian * scale).flatten(1, 2),
            (projection @ by_size * scale).flatten(1, 2),
            cost=(confidence * huber_cost(distance, 3.0)).sum(),
        )
        if depth is not None:
            scale_px = pixels_per_metre[:, None]
            ahead = -(posed.points[..., 2] - posed.points[:, :1, 2]) * scale_px
            difference = (ahead - (depth - depth[:, :1])) / depth_sigma
            weight = (confidence * robust_weight(difference.abs(), 2.0)).sqrt()
            scale = (weight * scale_px / depth_sigma)[..., None]
            along = -(jacobian[:, :, 2] - jacobian[:, :1, 2])
            along_size = -(by_size[:, :, 2] - by_size[:, :1, 2])
            equations.add(
                difference * weight,
                along * scale,
                along_size * scale,
                cost=(confidence * huber_cost(difference.abs(), 2.0)).sum(),
            )
        add_pose_prior(equations, values[:, 3:48], prior, slice(3, 48))
        equations.add_prior(
            values[:, 50:51], -person_depth[:, None], torch.tensor([0.3**-2]).double(), slice(50, 51)
        )
        equations.add_shared_prior(shared, torch.tensor([config.hand_size_sigma**-2]).double(), slice(0, 1))
        return equations

    precision = torch.tensor(
        [0.2**-2] * 3 + [config.smooth_fingers**-2] * 45 + [0.02**-2] * 2 + [0.05**-2], dtype=torch.float64
    )
    values, shared = minimise(
        build,
        start,
        torch.zeros(1, dtype=torch.float64),
        iterations=config.hand_iterations,
        smoothness=Smoothness(links.double(), precision),
    )
    angles = values[:, :48].reshape(frames, 16, 3)
    grow = 1 + shared[0]
    posed = pose_chain(
        model.skeleton, angles, values[:, 48:], model.rest_joints * grow, model.rest_points * grow
    )
    return HandFit(posed.rotations[:, 0], angles[:, 1:], posed.points, seen)


def add_pose_prior(equations: NormalEquations, values: Tensor, prior, columns: slice) -> None:
    """Gaussian prior and soft limits on axis-angles (T, 3 n) in ``columns``."""
    equations.add_prior(values, prior.mean, prior.precision, columns)
    beyond = torch.where(values > prior.high, values - prior.high, (values - prior.low).clamp(max=0))
    outside = (beyond != 0).double() * prior.limit_precision
    equations.add_prior(beyond, torch.zeros(1).double(), outside, columns)


def _palm_orientation(
    model: HandModel, points: Tensor, depth: Tensor | None, pixels_per_metre: Tensor, seen: Tensor
) -> Tensor:
    """(T, 3, 3) rotation that takes the rest palm to the detected one (orthogonal Procrustes on six
    points)."""
    frames = points.shape[0]
    palm = list(PALM)
    z = torch.zeros_like(points[..., 0]) if depth is None else depth - depth[:, :1]
    target = torch.stack([points[..., 0], -points[..., 1], -z], -1)[:, palm] / pixels_per_metre[:, None, None]
    target = target - target.mean(1, keepdim=True)
    source = model.rest_points[palm] - model.rest_points[palm].mean(0)
    u, _, vt = torch.linalg.svd(target.transpose(1, 2) @ source)
    fix = torch.eye(3, dtype=torch.float64).expand(frames, 3, 3).clone()
    fix[:, 2, 2] = torch.sign(torch.linalg.det(u @ vt))
    rotation = u @ fix @ vt
    rotation[~seen] = torch.eye(3, dtype=torch.float64)
    return rotation


def relative_rotation(parent: Tensor, child: Tensor) -> Tensor:
    """World rotations (*B, 3, 3) -> the child's axis-angle (*B, 3) relative to its parent."""
    return matrix_to_axis_angle(parent.transpose(-1, -2) @ child)


__all__ = ["HandFit", "HandModel", "add_pose_prior", "axis_angle_to_matrix", "fit_hand", "relative_rotation"]
