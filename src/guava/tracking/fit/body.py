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

from guava.body import Identity, Pose, Template
from guava.body.ehm import JAW, LEFT_EYE, RIGHT_EYE
from guava.camera import Camera
from guava.rotation import axis_angle_to_matrix
from guava.tracking.config import BodyFitConfig
from guava.tracking.fit.body_points import SIDES, BodyPoints, face_pose
from guava.tracking.fit.body_terms import BodyObservation, BodyTerms
from guava.tracking.fit.chain import pose_chain
from guava.tracking.fit.face import FaceFit, project_with_jacobian
from guava.tracking.fit.hand import HandFit, relative_rotation
from guava.tracking.fit.solver import Smoothness, minimise

_DAMPING, _DAMPING_ALONE, _PATIENCE = 1e-2, 1e-3, 5
_FORESHORTENED = 0.5
"""Thighs that point this much towards the camera, as their length in the picture says, are so started."""


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
    terms = BodyTerms(template, camera, observation, face, face_seen, hands, config, shared_values)
    start = _initial_values(template, terms, face)
    _start_legs(start, template, camera, terms.model, observation, terms.slots)
    step = config.smooth_translation
    rates = torch.full((terms.count,), config.smooth_rotation**-2, dtype=torch.float64)
    for side in (0, 1):
        rates[terms.fingers(side)] = config.smooth_fingers**-2
    rates[terms.angles :] = torch.tensor([step**-2, step**-2, (5 * step) ** -2], dtype=torch.float64)
    smoothness = Smoothness(links.double(), rates)
    average = torch.zeros(terms.model.shared, dtype=torch.float64)
    nothing = torch.zeros(0, dtype=torch.float64)
    shared = average if terms.known is None else nothing
    # The pose of a clip first: with the identity free, far-off poses bend it, and it does not come back. One
    # picture's pose and identity are found together.
    alone = terms.known is None and len(start) > 1
    posing = terms.with_identity(average) if alone else terms
    options = {"smoothness": smoothness, "damping": _DAMPING if len(start) > 1 else _DAMPING_ALONE}
    values, found = minimise(
        posing.equations, start, nothing if alone else shared, iterations=config.iterations // 3, **options
    )
    _orient_hands(values, found, template, posing, hands)
    shared = shared if alone else found
    values, shared = minimise(
        terms.equations, values, shared, iterations=config.iterations, patience=_PATIENCE, **options
    )
    result = shared if terms.known is None else terms.known
    posed, full = terms.posed(values, shared)
    model = terms.model
    hand_points = torch.stack(
        [project_with_jacobian(camera, posed.points[:, model.hands[s]])[0] for s in (0, 1)], 1
    )
    body_points = project_with_jacobian(camera, posed.points[:, model.body])[0]
    identity = _identity(template, model, result, face)
    pose = _pose(template, full, values[:, terms.angles :], face)
    return BodyFit(identity, pose, hand_points, body_points), result


def _orient_hands(
    values: Tensor, shared: Tensor, template: Template, terms: BodyTerms, hands: tuple[HandFit, HandFit]
) -> None:
    """Give wrists and fingers in ``values`` what the hand fits saw, now that the arms are in place."""
    posed, _ = terms.posed(values, shared)
    for side, name in enumerate(SIDES):
        seen = hands[side].seen[:, None]
        parent = posed.rotations[:, template.joint(f"{name}_elbow")]
        slot = 3 * terms.slots[template.joint(f"{name}_wrist")]
        turn = relative_rotation(parent, hands[side].orientation)
        values[:, slot : slot + 3] = torch.where(seen, turn, values[:, slot : slot + 3])
        fingers = terms.fingers(side)
        values[:, fingers] = torch.where(seen, hands[side].fingers.flatten(1), values[:, fingers])


def _initial_values(template: Template, terms: BodyTerms, face: FaceFit) -> Tensor:
    """Mean pose with the head turned and placed as the face stage says."""
    frames, model = len(terms.targets), terms.model
    values = torch.zeros(frames, terms.count, dtype=torch.float64)
    values[:, : terms.angles] = terms.prior.mean
    turn = face.rotation
    for name, share in (("pelvis", 0.3), ("neck", 0.35), ("head", 0.35)):
        slot = 3 * terms.slots[template.joint(name)]
        # Turning about the vertical is shared with the body, nodding and tilting are not.
        part = (
            share * turn if name != "pelvis" else turn * torch.tensor([0.0, share, 0.0], dtype=torch.float64)
        )
        values[:, slot : slot + 3] += part
    full = torch.zeros(frames, model.joint_count, 3, dtype=torch.float64)
    full[:, terms.moving] = values[:, : terms.angles].reshape(frames, -1, 3)
    posed = pose_chain(
        model.skeleton,
        full,
        torch.zeros(frames, 3, dtype=torch.float64),
        model.rest_joints,
        model.rest_points,
    )
    values[:, terms.angles :] = (terms.targets - posed.points[:, model.anchors]).mean(1)
    return values


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
    pose = face_pose(template, joints.float(), face, slice(None))
    return replace(pose, translation=translation.float())
