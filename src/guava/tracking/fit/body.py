"""Body stage (Eq. 8): shape, pose, hands and joint offsets of the whole, guided in 3D by the face and hand
fits.

    L_body = lambda_k L1(K_b, K_b^) + lambda_reg L_reg + lambda_smo L_smo(Z_b, theta_h, R, T)
           + lambda_3d L_3d(M_ehm, M_f(Z_f), M_h(Z_h)) + lambda_prior L_prior(Z_b)               (Eq. 8)

The camera stays where it is; the release's camera motion R, T is the root's rotation and the translation.
All parts are tracked in one crop, so the affine maps A_f, A_h of Eq. 8 are the identity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guava.body import EHM, Identity, Pose, Template
from guava.body.ehm import JAW, LEFT_EYE, RIGHT_EYE
from guava.body.skeleton import rest_joints
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
from guava.tracking.fit.offsets import body_offset, hand_offsets, offsets_known
from guava.tracking.fit.solver import (
    NormalEquations,
    Smoothness,
    add_shared_limits,
    extent_slopes,
    huber_cost,
    minimise,
    robust_weight,
)
from guava.tracking.priors import (
    FINGERS,
    PosePrior,
    body_joint_ids,
    finger_joint_ids,
    hanging_arms,
    pose_prior,
    resting_legs,
)

SIDES = ("left", "right")
_SUB_BATCH = 24
_FORESHORTENED = 0.5
"""Thighs that point this much towards the camera, as their length in the picture says, are so started."""
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
    """All points that the body stage looks at, linear in the shared values (shape, dJ, hand size).

    Where joints are regressed from the edited mesh, they depend on the frame's expression as well, which the
    face stage has found: rest positions are then (T, ..., 3), else (..., 3). What is left out is second order
    (hand size times shape).
    """

    def __init__(
        self,
        template: Template,
        face: FaceFit,
        anchors: FaceLandmarkModel,
        chosen: list[int],
        joints: tuple[str, ...],
        components: int,
    ):
        body = template.body
        count = body.num_joints
        parents = body.parents.tolist()
        self.joint_count, self.shape_count = count, min(body.num_shape, components)
        shape = slice(0, self.shape_count)
        self.offset_joints = [j for j, name in enumerate(body.joint_names) if name not in _NO_OFFSET]
        self.shared = self.shape_count + 3 * len(self.offset_joints) + 1
        own_joints, own_dirs, _ = rest_joints(template, body)
        self.rest_joints = own_joints
        self.joint_dirs = torch.zeros(count, 3, self.shared, dtype=torch.float64)
        self.joint_dirs[..., shape] = own_dirs[..., shape]
        for n, joint in enumerate(self.offset_joints):
            column = self.shape_count + 3 * n
            self.joint_dirs[joint, :, column : column + 3] = torch.eye(3, dtype=torch.float64)
        # The body's own eyes, at which the head hangs (e of Eq. 1).
        eyes = [template.joint("left_eye_smplhf"), template.joint("right_eye_smplhf")]
        self.eyes, self.eye_dirs = own_joints[eyes], self.joint_dirs[eyes]
        if template.regress_joints:
            self.rest_joints, by_shape, by_growth = _regressed(template, face, own_dirs[eyes].mean(0))
            self.joint_dirs[..., shape] = by_shape[..., shape]
            self.joint_dirs[..., -1] = by_growth
        else:
            for side, name in enumerate(SIDES):
                fingers = finger_joint_ids(template, name)
                centre = template.hand_centers[side].double()
                self.joint_dirs[fingers, :, -1] = self.rest_joints[fingers] - centre

        # The joints themselves, then the detector's body points, hand points, and the face stage's anchors.
        attached = list(range(count))
        points, dirs = list(self.rest_joints.unbind(-2)), list(self.joint_dirs)
        measured = offsets_known(template)
        nowhere = torch.zeros(21, 3, dtype=torch.float64)
        for name in joints:
            joint = template.joint(name)
            attached.append(parents[joint])
            points.append(points[joint] + (body_offset(name) if measured else nowhere[0]))
            dirs.append(self.joint_dirs[joint])
        for side, name in enumerate(SIDES):
            centre = template.hand_centers[side].double()
            offsets = hand_offsets(name) if measured else nowhere
            for n, joint in enumerate(finger_joints(template, name)):
                if joint >= 0:
                    attached.append(joint if n == 0 else parents[joint])
                    points.append(points[joint] + offsets[n])
                    dirs.append(self.joint_dirs[joint])
                    continue
                finger = FINGERS[(n - 1) // 4]
                tip = template.surface_points[f"{name}_{finger}_tip"]
                moved = torch.zeros(3, self.shared, dtype=torch.float64)
                moved[:, shape] = body.shape_dirs[tip, :, shape].double()
                moved[:, -1] = body.v_template[tip].double() - centre
                attached.append(template.joint(f"{name}_{finger}3"))
                points.append(body.v_template[tip].double() + offsets[n])
                dirs.append(moved)
        attached += [template.joint("head")] * len(chosen)
        if anchors.plain:
            points += list(anchors.base[chosen] + self.eyes.mean(0))
            moved = self.eye_dirs.mean(0).expand(len(chosen), -1, -1).clone()
            moved[..., shape] += anchors.shape_dirs[chosen][..., shape]
            dirs += list(moved)
        else:
            own = anchors.joints + anchors.joints_shape_dirs @ face.shape
            if template.regress_joints:
                own = own + torch.einsum("jce,te->tjc", anchors.joints_expression_dirs, face.expression)
            local = (anchors.base + anchors.shape_dirs @ face.shape)[chosen]
            hung = local - own.mean(-2, keepdim=True) + self.eyes.mean(0)
            points += list(hung.unbind(-2))
            dirs += [self.eye_dirs.mean(0)] * len(chosen)

        self.skeleton = Skeleton.build(parents, attached)
        self.rest_points = torch.stack(torch.broadcast_tensors(*points), -2)
        self.point_dirs = torch.stack(dirs)
        first = count + len(joints)
        self.body = torch.arange(count, first)
        self.hands = torch.arange(first, first + 42).reshape(2, 21)
        self.anchors = torch.arange(first + 42, len(attached))

    def rest(self, shared: Tensor, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Rest joints and points of some frames."""
        joints, points = (
            values if values.ndim == 2 else values[rows] for values in (self.rest_joints, self.rest_points)
        )
        return joints + self.joint_dirs @ shared, points + self.point_dirs @ shared


def _regressed(template: Template, face: FaceFit, shift_dirs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Joints regressed from the edited mesh of the mean body with the fitted face.

    Args:
        template: Regresses joints.
        face: Its shape, expression, jaw, lids and eyes make the head.
        shift_dirs: (3, S) how the head is carried by the body's shape (its eyes).

    Returns:
        (T, J, 3) joints; (J, 3, S) their directions by body shape; (J, 3) by the hands' relative growth.
    """
    body = template.body
    used = (body.joint_regressor != 0).any(0)  # a few hundred vertices
    regressor = body.joint_regressor[:, used].double()
    dirs = body.shape_dirs[used].double()
    if template.expressive_head:
        blend = torch.zeros(body.num_vertices, dtype=torch.float64)
        blend[template.head_vertex_ids] = template.head_blend.double()
        dirs = dirs + blend[used, None, None] * (shift_dirs - dirs)
    growth = torch.zeros(body.num_vertices, 3, dtype=torch.float64)
    for ids, centre in zip(template.hand_vertex_ids, template.hand_centers.double(), strict=True):
        growth[ids] += body.v_template[ids].double() - centre
    growth = growth[used]
    model = EHM(template, torch.zeros(1, dtype=torch.long)).requires_grad_(False)
    identity, joints = Identity.neutral(template), []
    if template.expressive_head:
        identity = replace(identity, head_shape=face.shape[None].float())
    turns = torch.zeros(len(face.jaw), body.num_joints, 3)
    turns[:, JAW], turns[:, LEFT_EYE : RIGHT_EYE + 1] = face.jaw.float(), face.eyes.float()
    for first in range(0, len(turns), _SUB_BATCH):
        rows = slice(first, first + _SUB_BATCH)
        pose = _face_pose(template, turns[rows], face, rows)
        joints.append(model.rest(identity, pose)[1].double())
    return (
        torch.cat(joints),
        torch.einsum("jv,vcs->jcs", regressor, dirs),
        regressor @ growth,
    )


def _face_pose(template: Template, joints: Tensor, face: FaceFit, rows: slice) -> Pose:
    """A pose with these joints (T, J, 3) and the fitted face's expression and lids."""
    rest = Pose.rest(template, len(joints))
    expression = face.expression[rows].float()
    if not template.expressive_head:
        return replace(rest, joints=joints, body_expression=expression)
    return replace(rest, joints=joints, expression=expression, eyelids=face.eyelids[rows].float())


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
    placed = (anchors.weights > 0).nonzero()[:, 0].tolist()
    chosen = placed[:: max(1, len(placed) // 30 + (len(placed) > 30))]
    model = BodyPoints(template, face, anchors, chosen, observation.joints, config.shape_components)
    body_joints = body_joint_ids(template, legs="left_knee" in observation.joints)
    finger_ids = [finger_joint_ids(template, side) for side in SIDES]
    moving = torch.tensor(body_joints + finger_ids[0] + finger_ids[1])
    angles = 3 * len(moving)
    count = angles + 3
    fixed = shared_values is not None
    shared_count = 0 if fixed else model.shared
    known = shared_values.double() if fixed else torch.zeros(model.shared, dtype=torch.float64)
    unseen = _unseen_arms(observation)
    prior = hanging_arms(pose_prior(template, moving.tolist()), template, moving.tolist(), unseen)
    prior = resting_legs(prior, template, moving.tolist(), _unseen_legs(observation))
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
        joints, points = model.rest(known if fixed else shared, rows)
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

    size_slopes, bone_slopes = _size_slopes(template, model)
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
        spread = config.size_limit_sigma
        add_shared_limits(equations, shared, size_slopes, config.size_limits, spread)
        add_shared_limits(equations, shared, bone_slopes, config.bone_limits, spread)
        if anchors.plain:
            return
        # The head's size and the body's are tied: the body's own eyes lie as far apart as the fitted head's.
        span = model.eyes[0] - model.eyes[1]
        slope = (model.eye_dirs[0] - model.eye_dirs[1])[0] / config.head_tie_sigma
        residual = (span - head_span)[0] / config.head_tie_sigma + slope @ shared
        equations.cost = equations.cost + 0.5 * residual.square()
        equations.shared_gradient += slope * residual
        equations.shared_hessian += slope[:, None] * slope[None]

    start = _initial_values(template, model, prior, moving, slots, face, targets, hands, finger_ids)
    _start_legs(start, template, camera, model, observation, slots)
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


def _unseen_legs(observation: BodyObservation) -> Tensor:
    """(T, 2, 3) bool: left and right; knee, ankle and foot out of sight."""
    unseen = torch.ones(len(observation.points), 2, 3, dtype=torch.bool)
    for s, side in enumerate(SIDES):
        for p, part in enumerate(("knee", "ankle", "foot")):
            if f"{side}_{part}" in observation.joints:
                column = observation.joints.index(f"{side}_{part}")
                unseen[:, s, p] = observation.confidence[:, column] == 0
    return unseen


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


def _size_slopes(template: Template, model: BodyPoints) -> tuple[Tensor, Tensor]:
    """(1, S) of the whole body and (n, S) of the bones of torso and limbs: how their relative sizes change
    with the shared values."""
    joints = model.rest_joints if model.rest_joints.ndim == 2 else model.rest_joints.mean(0)
    core = body_joint_ids(template, legs=True)
    parents = template.body.parents.tolist()
    ends = torch.tensor([joint for joint in core if parents[joint] >= 0])
    starts = torch.tensor([parents[joint] for joint in ends.tolist()])
    bones = joints[ends] - joints[starts]
    moved = model.joint_dirs[ends] - model.joint_dirs[starts]
    along = torch.einsum("nc,ncs->ns", bones, moved) / bones.square().sum(1, keepdim=True)
    return extent_slopes(joints[core], model.joint_dirs[core])[None], along


def _start_legs(
    start: Tensor,
    template: Template,
    camera: Camera,
    model: BodyPoints,
    observation: BodyObservation,
    slots: dict[int, int],
) -> None:
    """Turn hips and bend knees in ``start`` as the seen bones' directions say, and no less forwards than
    foreshortened thighs point: from straight legs a raised knee would be found behind the body."""
    rest = model.rest_joints if model.rest_joints.ndim == 2 else model.rest_joints[0]
    bones = {
        (observation.joints[a], observation.joints[b]): n for n, (a, b) in enumerate(observation.bones)
    }
    pelvis = 3 * slots[template.joint("pelvis")]
    upright = axis_angle_to_matrix(start[:, pelvis : pelvis + 3])
    pixels_per_metre = float(camera.intrinsics[0, 0]) / -start[:, -1].clamp(max=-0.1)
    for side in SIDES:
        hip, knee, ankle = (template.joint(f"{side}_{part}") for part in ("hip", "knee", "ankle"))
        thigh = bones.get((f"{side}_hip", f"{side}_knee"))
        shin = bones.get((f"{side}_knee", f"{side}_ankle"))
        if thigh is None or hip not in slots:
            continue
        seen = observation.direction_confidence[:, thigh] > 0
        directed = observation.directions[:, thigh].clone()
        ends = [observation.joints.index(f"{side}_{part}") for part in ("hip", "knee")]
        across = (observation.points[:, ends[1]] - observation.points[:, ends[0]]) / pixels_per_metre[:, None]
        across = across * across.new_tensor([1.0, -1.0]) / (rest[knee] - rest[hip]).norm()
        towards = (1 - across.square().sum(1)).clamp(min=0).sqrt()
        short = (towards > _FORESHORTENED) & (directed[:, 2] < towards)
        directed[short] = torch.cat([across, towards[:, None]], 1)[short]
        straight = torch.nn.functional.normalize(rest[knee] - rest[hip], dim=0)
        along = (upright.transpose(1, 2) @ directed[..., None])[..., 0]
        axis = torch.linalg.cross(straight.expand_as(along), along)
        sine, cosine = axis.norm(dim=1, keepdim=True), (along @ straight)[:, None]
        turn = axis / sine.clamp(min=1e-9) * torch.atan2(sine, cosine)
        slot = 3 * slots[hip]
        start[seen, slot : slot + 3] = turn[seen]
        if shin is None:
            continue
        seen = seen & (observation.direction_confidence[:, shin] > 0)
        bend = (directed * observation.directions[:, shin]).sum(1).clamp(-1, 1).acos()
        start[seen, 3 * slots[knee]] = bend[seen]


def _identity(template: Template, model: BodyPoints, shared: Tensor, face: FaceFit) -> Identity:
    neutral = Identity.neutral(template)
    offsets, shape = neutral.joint_offsets, neutral.body_shape
    offsets[0, model.offset_joints] = shared[model.shape_count : -1].reshape(-1, 3).float()
    shape[0, : model.shape_count] = shared[: model.shape_count].float()
    head_shape = face.shape[None].float() if template.expressive_head else neutral.head_shape
    growth = 1 + float(shared[-1])
    return replace(
        neutral,
        body_shape=shape,
        head_shape=head_shape,
        joint_offsets=offsets,
        hand_scale=torch.full((1, 3), growth),
    )


def _pose(template: Template, full: Tensor, translation: Tensor, face: FaceFit) -> Pose:
    joints = full.clone()
    joints[:, JAW], joints[:, LEFT_EYE : RIGHT_EYE + 1] = face.jaw, face.eyes
    pose = _face_pose(template, joints.float(), face, slice(None))
    return replace(pose, translation=translation.float())
