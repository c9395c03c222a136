"""Body stage (Eq. 8): shape, pose, hands and joint offsets of the whole, guided in 3D by the face and hand
fits.

    L_body = lambda_k L1(K_b, K_b^) + lambda_reg L_reg + lambda_smo L_smo(Z_b, theta_h, R, T)
           + lambda_3d L_3d(M_ehm, M_f(Z_f), M_h(Z_h)) + lambda_prior L_prior(Z_b)               (Eq. 8)

The camera stays where it is; the release's camera motion R, T is the root's rotation and the translation.
All parts are tracked in one crop, so the affine maps A_f, A_h of Eq. 8 are the identity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guava.body import Identity, Pose, Template
from guava.camera import Camera
from guava.rotation import axis_angle_to_matrix
from guava.tracking.config import BodyFitConfig
from guava.tracking.fit.chain import (
    PosedChain,
    Skeleton,
    finger_joints,
    pose_chain,
    rest_jacobian,
    rotation_jacobian,
)
from guava.tracking.fit.face import FaceFit, FaceLandmarkModel, project_with_jacobian
from guava.tracking.fit.hand import HandFit, add_pose_prior, relative_rotation
from guava.tracking.fit.offsets import body_offset, hand_offsets
from guava.tracking.fit.solver import NormalEquations, Smoothness, huber_cost, minimise, robust_weight
from guava.tracking.priors import (
    FINGERS,
    PosePrior,
    body_joint_ids,
    finger_joint_ids,
    hanging_arms,
    pose_prior,
)

SIDES = ("left", "right")
_SUB_BATCH = 24
_NO_OFFSET = ("left_eye_smplhf", "right_eye_smplhf", "jaw")


@dataclass(frozen=True)
class BodyObservation:
    """Body and hand points of T frames, crop pixels, float64.

    Attributes:
        joints: M template joint names that ``points`` belong to.
        points: (T, M, 2).
        confidence: (T, M).
        bones: D pairs of indices into ``joints``: from, to.
        directions: (T, D, 3) unit vectors of the bones in the world: learned, or the detector's own.
        direction_confidence: (T, D).
        direction_spread: (T, D, 3) standard deviations of ``directions``; 0 where they are not known.
        hand_points: (T, 2, 21, 2) left and right.
        hand_confidence: (T, 2, 21).
        hand_depth: (T, 2, 21) relative, or None.
        hand_depth_spread: (T, 2, 21) standard deviations of ``hand_depth``, pixels; 0 where not known.
    """

    joints: tuple[str, ...]
    points: Tensor
    confidence: Tensor
    bones: tuple[tuple[int, int], ...]
    directions: Tensor
    direction_confidence: Tensor
    direction_spread: Tensor
    hand_points: Tensor
    hand_confidence: Tensor
    hand_depth: Tensor | None
    hand_depth_spread: Tensor


@dataclass(frozen=True)
class BodyFit:
    """Result of the body stage: identity (B = 1), pose (B = T) and the posed points.

    Attributes:
        identity, pose: float32 parameters.
        hand_points: (T, 2, 21, 2) projected.
        body_points: (T, M, 2) projected, as in the observation.
    """

    identity: Identity
    pose: Pose
    hand_points: Tensor
    body_points: Tensor


class BodyPoints:
    """All points that the body stage looks at, linear in the shared values (shape, dJ, hand size)."""

    def __init__(
        self,
        template: Template,
        face: FaceFit,
        anchors: FaceLandmarkModel,
        chosen: list[int],
        joints: tuple[str, ...],
    ):
        body = template.body
        count = body.num_joints
        parents = body.parents.tolist()
        self.joint_count, self.shape_count = count, body.num_shape
        self.offset_joints = [j for j, name in enumerate(body.joint_names) if name not in _NO_OFFSET]
        self.shared = self.shape_count + 3 * len(self.offset_joints) + 1
        self.rest_joints = body.joints_template.double()
        self.joint_dirs = torch.zeros(count, 3, self.shared, dtype=torch.float64)
        self.joint_dirs[..., : self.shape_count] = body.joints_shape_dirs.double()
        for n, joint in enumerate(self.offset_joints):
            column = self.shape_count + 3 * n
            self.joint_dirs[joint, :, column : column + 3] = torch.eye(3, dtype=torch.float64)
        for side, name in enumerate(SIDES):
            fingers = finger_joint_ids(template, name)
            self.joint_dirs[fingers, :, -1] = self.rest_joints[fingers] - template.hand_centers[side].double()

        # The joints themselves, then the detector's body points, hand points, and the face stage's anchors.
        attached, points, dirs = list(range(count)), list(self.rest_joints), list(self.joint_dirs)
        for name in joints:
            joint = template.joint(name)
            attached.append(parents[joint])
            points.append(self.rest_joints[joint] + body_offset(name))
            dirs.append(self.joint_dirs[joint])
        for side, name in enumerate(SIDES):
            centre = template.hand_centers[side].double()
            offsets = hand_offsets(name)
            for n, joint in enumerate(finger_joints(template, name)):
                if joint >= 0:
                    attached.append(joint if n == 0 else parents[joint])
                    points.append(self.rest_joints[joint] + offsets[n])
                    dirs.append(self.joint_dirs[joint])
                    continue
                finger = FINGERS[(n - 1) // 4]
                tip = template.surface_points[f"{name}_{finger}_tip"]
                moved = torch.zeros(3, self.shared, dtype=torch.float64)
                moved[:, : self.shape_count] = body.shape_dirs[tip].double()
                moved[:, -1] = body.v_template[tip].double() - centre
                attached.append(template.joint(f"{name}_{finger}3"))
                points.append(body.v_template[tip].double() + offsets[n])
                dirs.append(moved)
        eyes = [template.joint("left_eye_smplhf"), template.joint("right_eye_smplhf")]
        own = (anchors.joints + anchors.joints_shape_dirs @ face.shape).mean(0)
        # e of Eq. 1: the head hangs at the body's eyes.
        local = (anchors.base + anchors.shape_dirs @ face.shape)[chosen] - own
        attached += [template.joint("head")] * len(chosen)
        points += list(local + self.rest_joints[eyes].mean(0))
        dirs += [self.joint_dirs[eyes].mean(0)] * len(chosen)

        self.skeleton = Skeleton.build(parents, attached)
        self.rest_points, self.point_dirs = torch.stack(points), torch.stack(dirs)
        first = count + len(joints)
        self.body = torch.arange(count, first)
        self.hands = torch.arange(first, first + 42).reshape(2, 21)
        self.anchors = torch.arange(first + 42, len(attached))

    def rest(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        return self.rest_joints + self.joint_dirs @ shared, self.rest_points + self.point_dirs @ shared


def fit_body(
    template: Template,
    camera: Camera,
    observation: BodyObservation,
    face: FaceFit,
    face_seen: Tensor,
    hands: tuple[HandFit, HandFit],
    links: Tensor,
    config: BodyFitConfig,
    shared_values: Tensor | None = None,
) -> tuple[BodyFit, Tensor]:
    """Body stage over T frames with one shared identity.

    Args:
        template: The template.
        camera: Unbatched camera of the crop.
        observation: Points.
        face: Result of the face stage: guides the head, gives its shape and expression.
        face_seen: (T,) bool.
        hands: Left and right hand fits: guide the hands.
        links: (T-1,) smoothness links.
        config: Settings.
        shared_values: Known identity values of an earlier call, then held fixed.

    Returns:
        The fit, and the shared values (to be handed on to the next chunk of the clip).
    """
    frames = observation.points.shape[0]
    anchors = FaceLandmarkModel(
        template, "mediapipe478" if "mediapipe478" in template.landmarks else "ibug68"
    )
    chosen = list(range(0, anchors.base.shape[0], 16))
    model = BodyPoints(template, face, anchors, chosen, observation.joints)
    body_joints = body_joint_ids(template)
    finger_ids = [finger_joint_ids(template, side) for side in SIDES]
    moving = torch.tensor(body_joints + finger_ids[0] + finger_ids[1])
    angles = 3 * len(moving)
    count = angles + 3
    fixed = shared_values is not None
    shared_count = 0 if fixed else model.shared
    known = shared_values.double() if fixed else torch.zeros(model.shared, dtype=torch.float64)
    unseen = _unseen_arms(observation)
    prior = hanging_arms(pose_prior(template, moving.tolist()), template, moving.tolist(), unseen)
    direction_confidence = _seen_directions(observation, unseen)
    direction_spread = torch.where(
        observation.direction_spread > 0,
        observation.direction_spread * config.lifted_direction_factor,
        config.direction_sigma,
    )
    targets = _face_targets(anchors, face, chosen)
    pixel = camera.width / 512
    columns = torch.tensor([template.joint(name) for name in observation.joints])
    slots = {int(joint): n for n, joint in enumerate(moving)}

    def posed_at(values: Tensor, shared: Tensor, rows: slice) -> tuple[PosedChain, Tensor]:
        full = torch.zeros(values[rows].shape[0], model.joint_count, 3, dtype=torch.float64)
        full[:, moving] = values[rows, :angles].reshape(-1, len(moving), 3)
        joints, points = model.rest(known if fixed else shared)
        return pose_chain(model.skeleton, full, values[rows, angles:], joints, points), full

    def build(values: Tensor, shared: Tensor) -> NormalEquations:
        equations = NormalEquations.zero(frames, count, shared_count)
        for first in range(0, frames, _SUB_BATCH):
            rows = slice(first, min(frames, first + _SUB_BATCH))
            posed, full = posed_at(values, shared, rows)
            size = posed.points.shape[0]
            jacobian = torch.zeros(size, posed.points.shape[1], 3, count, dtype=torch.float64)
            jacobian[..., :angles] = rotation_jacobian(model.skeleton, posed, full, moving)
            jacobian[..., angles:] = torch.eye(3, dtype=torch.float64)
            by_shared = None
            if not fixed:
                by_shared = rest_jacobian(model.skeleton, posed, model.joint_dirs, model.point_dirs)
            _add_terms(equations, rows, posed.points, jacobian, by_shared)
        add_pose_prior(equations, values[:, :angles], prior, slice(0, angles))
        if not fixed:
            _add_identity_prior(equations, shared)
        return equations

    def _add_terms(equations, rows, points, jacobian, by_shared) -> None:
        def add(residual, frame, shared, weight, spread, threshold=3.0):
            """Robust vectors (t, n, d) with Jacobians (t, n, d, P); weight (t, n)."""
            scaled = residual / spread
            distance = scaled.norm(dim=-1)
            factor = (weight * robust_weight(distance, threshold)).sqrt()
            wide = (factor[..., None] / spread)[..., None]  # spread: (), (d,) or (t, n, d)
            equations.add(
                (scaled * factor[..., None]).flatten(1),
                (frame * wide).flatten(1, 2),
                None if shared is None else (shared * wide).flatten(1, 2),
                rows=rows,
                cost=(weight * huber_cost(distance, threshold)).sum(),
            )

        def pick(which):
            return points[:, which], jacobian[:, which], None if by_shared is None else by_shared[:, which]

        # 2D points of body and hands: lambda_k of Eq. 8.
        at, frame, shared = pick(model.body)
        pixels, projection = project_with_jacobian(camera, at)
        spread = torch.tensor(config.point_sigma * pixel, dtype=torch.float64)
        add(
            pixels - observation.points[rows],
            projection @ frame,
            None if shared is None else projection @ shared,
            observation.confidence[rows],
            spread,
        )
        for side in (0, 1):
            at, frame, shared = pick(model.hands[side])
            weight = observation.hand_confidence[rows, side]
            pixels, projection = project_with_jacobian(camera, at)
            spread = torch.tensor(config.hand_sigma * pixel, dtype=torch.float64)
            add(
                pixels - observation.hand_points[rows, side],
                projection @ frame,
                None if shared is None else projection @ shared,
                weight,
                spread,
            )
            # 3D guidance by the hand fit, relative to the wrist: lambda_3d of Eq. 8.
            guide = hands[side].points[rows]
            spread = torch.tensor([0.004, 0.004, 0.008], dtype=torch.float64)
            add(
                (at - at[:, :1]) - (guide - guide[:, :1]),
                frame - frame[:, :1],
                None if shared is None else shared - shared[:, :1],
                weight * hands[side].seen[rows, None] * 0.5,
                spread,
            )
        # 3D guidance by the face fit.
        at, frame, shared = pick(model.anchors)
        spread = torch.tensor(
            [config.head_sigma, config.head_sigma, config.head_depth_sigma], dtype=torch.float64
        )
        weight = face_seen[rows, None].double().expand(-1, len(chosen))
        middle = at.mean(1, keepdim=True)
        add(
            (at - middle) - (targets[rows] - targets[rows].mean(1, keepdim=True)),
            frame - frame.mean(1, keepdim=True),
            None if shared is None else shared - shared.mean(1, keepdim=True),
            weight,
            spread,
        )
        spread = (
            torch.tensor([config.head_sigma, config.head_sigma, 0.05], dtype=torch.float64)
            / len(chosen) ** 0.5
        )
        add(
            middle - targets[rows].mean(1, keepdim=True),
            frame.mean(1, keepdim=True),
            None if shared is None else shared.mean(1, keepdim=True),
            weight[:, :1],
            spread,
            30.0,
        )
        # Bone directions in 3D.
        if observation.bones:
            a = columns[[pair[0] for pair in observation.bones]]
            b = columns[[pair[1] for pair in observation.bones]]
            bone = points[:, b] - points[:, a]
            length = bone.norm(dim=-1, keepdim=True).clamp(min=1e-4)
            unit = bone / length
            across = (torch.eye(3, dtype=torch.float64) - unit[..., None] * unit[..., None, :]) / length[
                ..., None
            ]
            add(
                unit - observation.directions[rows],
                across @ (jacobian[:, b] - jacobian[:, a]),
                None if by_shared is None else across @ (by_shared[:, b] - by_shared[:, a]),
                direction_confidence[rows],
                direction_spread[rows],
            )

    eyes = [template.joint("left_eye_smplhf"), template.joint("right_eye_smplhf")]
    head_eyes = anchors.joints + anchors.joints_shape_dirs @ face.shape
    head_span = head_eyes[0] - head_eyes[1]

    def _add_identity_prior(equations: NormalEquations, shared: Tensor) -> None:
        offsets = torch.full(
            (3 * len(model.offset_joints),), config.joint_offset_sigma**-2, dtype=torch.float64
        )
        for n, joint in enumerate(model.offset_joints):
            if joint in finger_ids[0] or joint in finger_ids[1]:
                offsets[3 * n : 3 * n + 3] = config.finger_offset_sigma**-2
        precision = torch.cat(
            [
                torch.full((model.shape_count,), config.shape_sigma**-2, dtype=torch.float64),
                offsets,
                torch.tensor([config.hand_size_sigma**-2], dtype=torch.float64),
            ]
        )
        equations.add_shared_prior(shared, precision, slice(0, model.shared))
        # The head's size and the body's are tied: the body's own eyes lie as far apart as the fitted head's.
        span = model.rest_joints[eyes[0]] - model.rest_joints[eyes[1]]
        slope = (model.joint_dirs[eyes[0]] - model.joint_dirs[eyes[1]])[0] / config.head_tie_sigma
        residual = (span - head_span)[0] / config.head_tie_sigma + slope @ shared
        equations.cost = equations.cost + 0.5 * residual.square()
        equations.shared_gradient += slope * residual
        equations.shared_hessian += slope[:, None] * slope[None]

    start = _initial_values(template, model, prior, moving, slots, face, targets, hands, finger_ids)
    step = config.smooth_translation
    rates = torch.full((count,), config.smooth_rotation**-2, dtype=torch.float64)
    rates[3 * len(body_joints) : angles] = config.smooth_fingers**-2
    rates[angles:] = torch.tensor([step**-2, step**-2, (5 * step) ** -2], dtype=torch.float64)
    smoothness = Smoothness(links.double(), rates)
    shared_start = torch.zeros(shared_count, dtype=torch.float64)
    values, shared = minimise(
        build, start, shared_start, iterations=config.iterations // 3, smoothness=smoothness
    )
    # With the arms in place the wrists can take the orientation that the hand fits saw.
    _, full = posed_at(values, shared, slice(None))
    posed, _ = posed_at(values, shared, slice(None))
    for side, name in enumerate(SIDES):
        parent = posed.rotations[:, template.joint(f"{name}_elbow")]
        slot = 3 * slots[template.joint(f"{name}_wrist")]
        turn = relative_rotation(parent, hands[side].orientation)
        values[:, slot : slot + 3] = torch.where(hands[side].seen[:, None], turn, values[:, slot : slot + 3])
        first = angles - 90 + 45 * side
        values[:, first : first + 45] = torch.where(
            hands[side].seen[:, None], hands[side].fingers.flatten(1), values[:, first : first + 45]
        )
    values, shared = minimise(build, values, shared, iterations=config.iterations, smoothness=smoothness)
    result = known if fixed else shared
    posed, full = posed_at(values, shared, slice(None))
    identity = _identity(template, model, result, face)
    pose = _pose(template, full, values[:, angles:], face)
    hand_points = torch.stack(
        [project_with_jacobian(camera, posed.points[:, model.hands[s]])[0] for s in (0, 1)], 1
    )
    body_points = project_with_jacobian(camera, posed.points[:, model.body])[0]
    return BodyFit(identity, pose, hand_points, body_points), result


def _unseen_arms(observation: BodyObservation) -> Tensor:
    """(T, 2, 2) bool: left and right; elbow and wrist out of sight."""
    rows = []
    for side, name in enumerate(SIDES):
        elbow, wrist = (
            observation.confidence[:, observation.joints.index(f"{name}_{part}")] > 0
            for part in ("elbow", "wrist")
        )
        wrist = wrist | (observation.hand_confidence[:, side] > 0).any(1)
        rows.append(torch.stack([~(elbow | wrist), ~wrist], 1))
    return torch.stack(rows, 1)


def _seen_directions(observation: BodyObservation, unseen: Tensor) -> Tensor:
    """(T, D) confidence of the bone directions, 0 where the bone's far end is out of sight: a guess then."""
    confidence = observation.direction_confidence.clone()
    for n, (_, far) in enumerate(observation.bones):
        side, _, part = observation.joints[far].partition("_")
        if part in ("elbow", "wrist"):
            confidence[unseen[:, SIDES.index(side), int(part == "wrist")], n] = 0
    return confidence


def _face_targets(anchors: FaceLandmarkModel, face: FaceFit, chosen: list[int]) -> Tensor:
    """(T, n, 3) where the face stage put the neutral face's anchor points."""
    local = (anchors.base + anchors.shape_dirs @ face.shape)[chosen]
    return local @ axis_angle_to_matrix(face.rotation).transpose(1, 2) + face.translation[:, None]


def _initial_values(
    template: Template,
    model: BodyPoints,
    prior: PosePrior,
    moving: Tensor,
    slots: dict[int, int],
    face: FaceFit,
    targets: Tensor,
    hands: tuple[HandFit, HandFit],
    finger_ids: list[list[int]],
) -> Tensor:
    """Mean pose with the head turned and placed as the face stage says."""
    frames = targets.shape[0]
    angles = 3 * len(moving)
    values = torch.zeros(frames, angles + 3, dtype=torch.float64)
    values[:, :angles] = prior.mean
    turn = face.rotation
    for name, share in (("pelvis", 0.3), ("neck", 0.35), ("head", 0.35)):
        slot = 3 * slots[template.joint(name)]
        # Turning about the vertical is shared with the body, nodding and tilting are not.
        part = (
            share * turn if name != "pelvis" else turn * torch.tensor([0.0, share, 0.0], dtype=torch.float64)
        )
        values[:, slot : slot + 3] += part
    full = torch.zeros(frames, model.joint_count, 3, dtype=torch.float64)
    full[:, moving] = values[:, :angles].reshape(frames, -1, 3)
    posed = pose_chain(
        model.skeleton,
        full,
        torch.zeros(frames, 3, dtype=torch.float64),
        model.rest_joints,
        model.rest_points,
    )
    values[:, angles:] = (targets - posed.points[:, model.anchors]).mean(1)
    return values


def _identity(template: Template, model: BodyPoints, shared: Tensor, face: FaceFit) -> Identity:
    offsets = torch.zeros(model.joint_count, 3, dtype=torch.float64)
    span = shared[model.shape_count : -1].reshape(-1, 3)
    offsets[model.offset_joints] = span
    grow = shared[-1]
    offsets += model.joint_dirs[..., -1] * grow
    return Identity(
        shared[None, : model.shape_count].float(),
        face.shape[None].float(),
        offsets[None].float(),
        torch.ones(1, 3),
        torch.full((1, 3), 1 + float(grow)),
    )


def _pose(template: Template, full: Tensor, translation: Tensor, face: FaceFit) -> Pose:
    joints = full.clone()
    joints[:, 23:25] = face.eyes
    rest = Pose.rest(template, full.shape[0])
    return Pose(
        joints.float(), face.expression.float(), rest.body_expression, rest.eyelids, translation.float()
    )
