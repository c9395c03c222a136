"""Face stage (Eq. 7): head shape, expression, rotation and translation from face landmarks; then the eyes.

    L_face = lambda_k L1(K_f, K_f^) + lambda_smo L_smo(Z_f, R, T) + lambda_reg L_reg(Z_f)        (Eq. 7)

One landmark set is used (MediaPipe 478 or iBUG 68) instead of three, with a Huber instead of an L1 cost;
lid and lip gaps are compared as differences of points, because they carry the expression and errors of the
whole face cancel in them. Where the template has eyeLook units and a landmark response was measured, the
gaze is in those units (they move the lids as well) and is fitted with the face; elsewhere it is in the eye
joints, in a stage of its own. L_reg pulls the expression towards what the expression regressor reads (see
:mod:`guava.tracking.expression`), not towards zero.

Where no unit opens the jaw (FLAME's expression directions), the jaw joint and the lids' own directions are
fitted with the expression. A template with a plain head is fitted in the same way: its body is the model
then, with the body's own shape, expression, jaw and eyes.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from guava.body import Template
from guava.body.controls import jaw_by_joint
from guava.body.ehm import HEAD_JAW, HEAD_LEFT_EYE, HEAD_RIGHT_EYE, JAW, LEFT_EYE, RIGHT_EYE
from guava.body.skeleton import rest_joints
from guava.camera import Camera
from guava.rotation import axis_angle_to_matrix, matrix_to_axis_angle
from guava.tracking.config import FaceFitConfig
from guava.tracking.fit.chain import right_jacobian, skew
from guava.tracking.fit.solver import (
    Bounds,
    NormalEquations,
    Smoothness,
    add_shared_limits,
    extent_slopes,
    huber_cost,
    minimise,
    robust_weight,
)

_SUB_BATCH = 32


@dataclass(frozen=True)
class FaceLayout:
    """Which landmarks of a set are what. Left and right are the person's own.

    Attributes:
        embedding: Name in ``Template.landmarks``.
        eye_corners: Outer corners, right and left: their distance is the unit of length.
        right_eye, left_eye: Lid outlines.
        lips: All points of the lips.
        contour: The outline of the face, which slides.
        right_iris, left_iris: Iris points, the centre first; empty where the set has none.
        right_lids, left_lids: (upper, lower) pairs.
        lip_gaps: (upper, lower) pairs of the inner lips.
    """

    embedding: str
    eye_corners: tuple[int, int]
    right_eye: tuple[int, ...]
    left_eye: tuple[int, ...]
    lips: tuple[int, ...]
    contour: tuple[int, ...]
    right_iris: tuple[int, ...]
    left_iris: tuple[int, ...]
    right_lids: tuple[tuple[int, int], ...]
    left_lids: tuple[tuple[int, int], ...]
    lip_gaps: tuple[tuple[int, int], ...]


FACE_LAYOUTS = {
    "mediapipe478": FaceLayout(
        embedding="mediapipe478",
        eye_corners=(33, 263),
        right_eye=(33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
        left_eye=(263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
        lips=(
            61,
            146,
            91,
            181,
            84,
            17,
            314,
            405,
            321,
            375,
            291,
            409,
            270,
            269,
            267,
            0,
            37,
            39,
            40,
            185,
            78,
            95,
            88,
            178,
            87,
            14,
            317,
            402,
            318,
            324,
            308,
            415,
            310,
            311,
            312,
            13,
            82,
            81,
            80,
            191,
        ),
        contour=(
            10,
            338,
            297,
            332,
            284,
            251,
            389,
            356,
            454,
            323,
            361,
            288,
            397,
            365,
            379,
            378,
            400,
            377,
            152,
            148,
            176,
            149,
            150,
            136,
            172,
            58,
            132,
            93,
            234,
            127,
            162,
            21,
            54,
            103,
            67,
            109,
        ),
        right_iris=(468, 469, 470, 471, 472),
        left_iris=(473, 474, 475, 476, 477),
        right_lids=((159, 145), (158, 153), (160, 144)),
        left_lids=((386, 374), (385, 380), (387, 373)),
        lip_gaps=((13, 14), (82, 87), (312, 317), (81, 178), (311, 402)),
    ),
    "ibug68": FaceLayout(
        embedding="ibug68",
        eye_corners=(36, 45),
        right_eye=tuple(range(36, 42)),
        left_eye=tuple(range(42, 48)),
        lips=tuple(range(48, 68)),
        contour=tuple(range(17)),
        right_iris=(),
        left_iris=(),
        right_lids=((37, 41), (38, 40)),
        left_lids=((43, 47), (44, 46)),
        lip_gaps=((61, 67), (62, 66), (63, 65)),
    ),
}


@dataclass(frozen=True)
class FaceObservation:
    """Face landmarks of T frames.

    Attributes:
        layout: Key of ``FACE_LAYOUTS``.
        points: (T, L, 2) float64 crop pixels.
        confidence: (T, L); a frame without a face has zeros.
        depth: (T, L) relative, pixels, larger is farther; None if the detector gives none.
    """

    layout: str
    points: Tensor
    confidence: Tensor
    depth: Tensor | None

    @property
    def seen(self) -> Tensor:
        """(T,) bool: frames with a face."""
        return (self.confidence > 0).any(1)


@dataclass(frozen=True)
class ExpressionPrior:
    """What is believed about the expression before fitting: ARKit's units, or coefficients.

    Attributes:
        mean: (T, E).
        precision: (T, E) inverse squared spread.
        sparsity: (E,) linear cost, only with ``lower`` = 0.
        lower: (E,) bounds.
        upper: (E,) bounds; 0 pins a unit that the landmarks cannot show.
        change: (E,) spread of the change from frame to frame.
    """

    mean: Tensor
    precision: Tensor
    sparsity: Tensor
    lower: Tensor
    upper: Tensor
    change: Tensor


@dataclass(frozen=True)
class FaceFit:
    """Result of the face and eye stages.

    Attributes:
        shape: (S,) beta_f; of a plain head beta_b as the face alone shows it.
        expression: (T, E) psi_f; of a plain head the body's own expression.
        eyes: (T, 2, 3) axis-angle of the left and right eye.
        rotation: (T, 3) axis-angle of the head in the world.
        translation: (T, 3) of the head model's origin.
        error: (T,) mean landmark distance, percent of the outer-eye distance; NaN without a face.
        jaw: (T, 3) axis-angle of the jaw; 0 where units open it.
        eyelids: (T, L) factors of ``Template.eyelid_dirs``.
    """

    shape: Tensor
    expression: Tensor
    eyes: Tensor
    rotation: Tensor
    translation: Tensor
    error: Tensor
    jaw: Tensor
    eyelids: Tensor


class FaceLandmarkModel:
    """The landmarks of the neutral-pose head (float64): linear in shape, expression and lids; the jaw turns.

    ``jaw_share (R - I)(x - J)`` is what the jaw's rotation R about its joint J adds to a vertex x, as in
    :meth:`guava.body.EHM.head`; over a landmark's triangle it is summed exactly, which needs the vertices'
    positions weighted with their jaw shares (``hinged_*``).

    Attributes:
        base: (L, 3), shape_dirs: (L, 3, S), expression_dirs: (L, 3, E), weights: (L,) trust in each
            embedding.
        eyelid_dirs: (L, 3, K).
        joints: (2, 3) eye joints, left and right; joints_shape_dirs: (2, 3, S), joints_expression_dirs:
            (2, 3, E).
        eye_weights: (2, L) how far each landmark follows the left and the right eyeball.
        jaw_moves: Whether the jaw joint is a parameter: no unit opens the mouth.
        plain: Whether the head is the body's own. Its frame's origin is then between the eyes, whatever the
            body's shape.
    """

    def __init__(self, template: Template, embedding: str):
        self.plain = not template.expressive_head
        head = template.body if self.plain else template.head
        jaw, *eyes = (
            (JAW, LEFT_EYE, RIGHT_EYE) if self.plain else (HEAD_JAW, HEAD_LEFT_EYE, HEAD_RIGHT_EYE)
        )
        table = template.landmarks[embedding]
        slot = torch.full((template.body.num_vertices,), -1)
        rows = torch.arange(template.body.num_vertices) if self.plain else template.head_vertex_ids
        slot[rows] = torch.arange(len(rows))
        corners = slot[template.faces[table.faces]]
        if bool((corners[table.weights > 0] < 0).any()):
            raise ValueError(f"The embedding '{embedding}' leaves the head model.")
        corners = corners.clamp(min=0)
        weights = table.barycentrics.double()

        def at(values: Tensor) -> Tensor:
            return torch.einsum("lc,lc...->l...", weights, values[corners].double())

        self.base, self.shape_dirs = at(head.v_template), at(head.shape_dirs)
        self.expression_dirs, self.weights = at(head.expression_dirs), table.weights.double()
        lids = template.eyelid_dirs.new_zeros(len(rows), 3, 0) if self.plain else template.eyelid_dirs
        self.eyelid_dirs = at(lids)
        all_joints, shape_dirs, expression_dirs = rest_joints(template, head)
        self.joints, self.joints_shape_dirs = all_joints[eyes], shape_dirs[eyes]
        self.joints_expression_dirs = expression_dirs[eyes]
        if self.plain:
            middle = [values[eyes].mean(0) for values in (all_joints, shape_dirs, expression_dirs)]
            self.base, self.joints = self.base - middle[0], self.joints - middle[0]
            self.shape_dirs = self.shape_dirs - middle[1]
            self.joints_shape_dirs = self.joints_shape_dirs - middle[1]
            self.expression_dirs = self.expression_dirs - middle[2]
            self.joints_expression_dirs = self.joints_expression_dirs - middle[2]
        self.eye_weights = at(head.weights)[:, eyes].T
        share = head.weights[:, jaw]
        self.jaw_share = at(share)
        self.jaw_moves = jaw_by_joint(template) and bool((self.jaw_share > 0).any())
        if self.jaw_moves:
            self.jaw_joint = all_joints[jaw]
            self.jaw_shape_dirs, self.jaw_expression_dirs = shape_dirs[jaw], expression_dirs[jaw]
            self.hinged_base = at(share[:, None] * head.v_template)
            self.hinged_shape_dirs = at(share[:, None, None] * head.shape_dirs)
            self.hinged_expression_dirs = at(share[:, None, None] * head.expression_dirs)
            # Columns of the jaw's rotation among the pose correctives; there may be none at all.
            columns = slice(9 * (jaw - 1), 9 * jaw)
            self.pose_dirs = at(head.pose_dirs[..., columns])
            self.hinged_pose_dirs = at(share[:, None, None] * head.pose_dirs[..., columns])

    def of(self, kept: list[int]) -> FaceLandmarkModel:
        """The same model of fewer landmarks."""
        out = copy(self)
        per_landmark = ("base", "shape_dirs", "expression_dirs", "weights", "eyelid_dirs", "jaw_share")
        hinged = ("base", "shape_dirs", "expression_dirs", "pose_dirs")
        if self.jaw_moves:
            per_landmark += ("pose_dirs", *(f"hinged_{name}" for name in hinged))
        for name in per_landmark:
            setattr(out, name, getattr(self, name)[kept])
        out.eye_weights = self.eye_weights[:, kept]
        return out

    def points(
        self, shape: Tensor, expression: Tensor, jaw: Tensor | None = None, eyelids: Tensor | None = None
    ) -> Tensor:
        """(S,), (T, E), (T, 3), (T, K) -> (T, L, 3) in the head model's frame, eyes at rest."""
        out = (
            self.base
            + self.shape_dirs @ shape
            + torch.einsum("lce,te->tlc", self.expression_dirs, expression)
        )
        if jaw is not None and self.jaw_moves:
            arm, swing = self._jaw(shape, expression, jaw)
            out = out + arm @ swing.transpose(1, 2)
            if self.pose_dirs.shape[-1]:
                out = out + torch.einsum("lck,tk->tlc", self.pose_dirs, swing.flatten(1))
        if eyelids is not None and eyelids.shape[-1]:
            out = out + torch.einsum("lck,tk->tlc", self.eyelid_dirs, eyelids)
        return out

    def _jaw(self, shape: Tensor, expression: Tensor, jaw: Tensor) -> tuple[Tensor, Tensor]:
        """Arms (T, L, 3) from the jaw joint, times the jaw's share; and R - I (T, 3, 3)."""
        swing = axis_angle_to_matrix(jaw) - torch.eye(3, dtype=torch.float64)
        joint = self.jaw_joint + self.jaw_shape_dirs @ shape + expression @ self.jaw_expression_dirs.T
        arm = (
            self.hinged_base
            + self.hinged_shape_dirs @ shape
            + torch.einsum("lce,te->tlc", self.hinged_expression_dirs, expression)
        )
        if self.hinged_pose_dirs.shape[-1]:
            arm = arm + torch.einsum("lck,tk->tlc", self.hinged_pose_dirs, swing.flatten(1))
        return arm - self.jaw_share[:, None] * joint[:, None], swing

    def shape_jacobian(self, jaw: Tensor) -> Tensor:
        """Derivative of the points by the shape, (T, L, 3, S), or (L, 3, S) where it is the same in all
        frames."""
        direct = self.shape_dirs
        if not self.jaw_moves:
            return direct
        return direct + self._swung(self.hinged_shape_dirs, self.jaw_shape_dirs, jaw)

    def expression_jacobian(self, jaw: Tensor) -> Tensor:
        """Derivative of the points by the expression, (T, L, 3, E), or (L, 3, E) where it is the same in all
        frames."""
        direct = self.expression_dirs
        if not self.jaw_moves:
            return direct
        return direct + self._swung(self.hinged_expression_dirs, self.jaw_expression_dirs, jaw)

    def _swung(self, hinged: Tensor, joint: Tensor, jaw: Tensor) -> Tensor:
        swing = axis_angle_to_matrix(jaw) - torch.eye(3, dtype=torch.float64)
        return torch.einsum("tij,lje->tlie", swing, hinged - self.jaw_share[:, None, None] * joint)

    def jaw_jacobian(self, shape: Tensor, expression: Tensor, jaw: Tensor) -> Tensor:
        """Derivative of the points by the jaw's axis-angle, (T, L, 3, 3)."""
        arm, swing = self._jaw(shape, expression, jaw)
        turned = right_jacobian(jaw)
        matrix = swing + torch.eye(3, dtype=torch.float64)
        out = -(matrix[:, None] @ skew(arm)) @ turned[:, None]
        if self.pose_dirs.shape[-1]:
            # d(R)/d(v_k), row-major, as columns: (T, 9, 3).
            by_axis = (matrix[:, None] @ skew(turned.transpose(1, 2))).flatten(2).transpose(1, 2)
            out = out + torch.einsum("lck,tkv->tlcv", self.pose_dirs, by_axis)
            hinged = torch.einsum("lck,tkv->tlcv", self.hinged_pose_dirs, by_axis)
            out = out + swing[:, None] @ hinged
        return out


def project_with_jacobian(camera: Camera, points: Tensor) -> tuple[Tensor, Tensor]:
    """World points (*B, 3) -> pixels (*B, 2) and their derivative (*B, 2, 3), for one unbatched camera."""
    w2c = camera.world_to_camera.double()
    k = camera.intrinsics.double()
    cam = points @ w2c[:3, :3].T + w2c[:3, 3]
    depth = cam[..., 2].clamp(min=1e-3)
    pixels = torch.stack(
        [k[0, 0] * cam[..., 0] / depth + k[0, 2], k[1, 1] * cam[..., 1] / depth + k[1, 2]], -1
    )
    zero = torch.zeros_like(depth)
    by_cam = torch.stack(
        [
            torch.stack([k[0, 0] / depth, zero, -k[0, 0] * cam[..., 0] / depth.square()], -1),
            torch.stack([zero, k[1, 1] / depth, -k[1, 1] * cam[..., 1] / depth.square()], -1),
        ],
        -2,
    )
    return pixels, by_cam @ w2c[:3, :3]


def _through(slope: Tensor, dirs: Tensor) -> Tensor:
    """Derivative (T, L, 2, n) of pixels by values that move landmarks along ``dirs``, (L, 3, n) or
    (T, L, 3, n), given that by the landmarks, (T, L, 2, 3). In single precision, which is ample for a step's
    direction and twice as fast."""
    kind = "tlij,ljn->tlin" if dirs.ndim == 3 else "tlij,tljn->tlin"
    return torch.einsum(kind, slope.float(), dirs.float())


def landmark_weights(layout: FaceLayout, count: int, config: FaceFitConfig) -> Tensor:
    """(L,) trust by region; irises 0 (they belong to the eye stage)."""
    weights = torch.ones(count, dtype=torch.float64)
    weights[list(layout.right_eye + layout.left_eye + layout.lips)] = config.detail_weight
    weights[list(layout.contour)] = config.contour_weight
    weights[list(layout.right_iris + layout.left_iris)] = 0
    return weights


def fit_face(
    template: Template,
    camera: Camera,
    observation: FaceObservation,
    prior: ExpressionPrior,
    links: Tensor,
    config: FaceFitConfig,
    shape: Tensor | None = None,
) -> FaceFit:
    """Face stage and eye stage over T frames with one shared shape.

    Args:
        template: Its landmarks must hold the observation's layout.
        camera: Unbatched camera of the crop.
        observation: Frames without a face are carried along by smoothness and the prior only.
        prior: Of the expression.
        links: (T-1,) 1 where neighbouring frames may be smoothed.
        config: Settings.
        shape: (S,) a known head shape, then held fixed.
    """
    layout = FACE_LAYOUTS[observation.layout]
    model = FaceLandmarkModel(template, layout.embedding)
    size, seen = face_size(observation), observation.seen
    model, layout, observation = _placed_only(model, layout, observation)
    frames, units = observation.points.shape[0], model.expression_dirs.shape[-1]
    jaws, lids = (3 if model.jaw_moves else 0), model.eyelid_dirs.shape[-1]
    jaw_columns = slice(6 + units, 6 + units + jaws)
    lid_columns = slice(jaw_columns.stop, jaw_columns.stop + lids)
    count = lid_columns.stop
    points = observation.points
    rotation, translation = _initial_pose(model, camera, observation, layout, size)
    weights = landmark_weights(layout, points.shape[1], config) * model.weights
    weights = weights * observation.confidence  # (T, L)
    # Gaze has one home: the eyeLook units where the prior frees them (they move the lids too), else the eye
    # joints.
    gaze_units = [i for i, name in enumerate(template.expression_names) if name.startswith("eyeLook")]
    by_units = not model.plain and bool(gaze_units) and float(prior.upper[gaze_units].max()) > 0
    if by_units:
        for iris, pairs in ((layout.left_iris, layout.left_lids), (layout.right_iris, layout.right_lids)):
            seen_iris = observation.confidence[:, list(iris)] * _openness(observation, pairs, size)[:, None]
            weights[:, list(iris)] = config.detail_weight * seen_iris
    weights = weights.sqrt()
    upper, lower = _gap_indices(layout)
    gap_weight = (observation.confidence[:, upper] * observation.confidence[:, lower]).sqrt()
    gap_spread = _gap_spread(observation, layout, size, config)

    every_shape = model.shape_dirs.shape[-1]
    count_shape = min(every_shape, config.shape_components)
    fixed_shape = shape is not None
    shared = 0 if fixed_shape else count_shape

    def padded(values: Tensor) -> Tensor:
        """The fitted shape coefficients, and zeros for those that landmarks cannot tell."""
        return torch.nn.functional.pad(values, (0, every_shape - len(values)))

    size_slopes = extent_slopes(model.base, model.shape_dirs)[None, :count_shape]
    sigma = config.landmark_sigma * size

    def build(values: Tensor, shared_values: Tensor) -> NormalEquations:
        equations = NormalEquations.zero(frames, count, shared)
        beta = shape.double() if fixed_shape else padded(shared_values)
        for first in range(0, frames, _SUB_BATCH):
            rows = slice(first, min(frames, first + _SUB_BATCH))
            turn, shift, psi = values[rows, :3], values[rows, 3:6], values[rows, 6 : 6 + units]
            jaw = values[rows, jaw_columns] if jaws else turn.new_zeros(len(turn), 3)
            matrix = axis_angle_to_matrix(turn)
            local = model.points(beta, psi, jaw, values[rows, lid_columns])
            turned = local @ matrix.transpose(1, 2)
            pixels, jacobian = project_with_jacobian(camera, turned + shift[:, None])
            by_turn = -skew(turned) @ (matrix @ right_jacobian(turn))[:, None]
            by_local = jacobian @ matrix[:, None]
            parts = [(jacobian @ by_turn).float(), jacobian.float()]
            parts.append(_through(by_local, model.expression_jacobian(jaw)))
            if jaws:
                parts.append(_through(by_local, model.jaw_jacobian(beta, psi, jaw)))
            if lids:
                parts.append(_through(by_local, model.eyelid_dirs))
            frame_jacobian = torch.cat(parts, -1)
            shared_jacobian = None
            if not fixed_shape:
                shared_jacobian = _through(by_local, model.shape_jacobian(jaw)[..., :count_shape])
            difference = (pixels - points[rows]) / sigma[rows, None, None]
            distance = difference.norm(dim=-1)
            scale = weights[rows] / sigma[rows, None]
            robust = robust_weight(distance, 2.0).sqrt()
            _add(
                equations,
                rows,
                difference * (weights[rows] * robust)[..., None],
                frame_jacobian * (scale * robust).float()[..., None, None],
                None
                if shared_jacobian is None
                else shared_jacobian * (scale * robust).float()[..., None, None],
                (weights[rows].square() * huber_cost(distance, 2.0)).sum(),
            )
            if upper:
                gap = (pixels[:, upper] - pixels[:, lower]) - (
                    points[rows][:, upper] - points[rows][:, lower]
                )
                gap = gap / gap_spread[rows, :, None]
                distance = gap.norm(dim=-1)
                robust = robust_weight(distance, 3.0).sqrt() * gap_weight[rows]
                scale = (robust / gap_spread[rows]).float()
                _add(
                    equations,
                    rows,
                    gap * robust[..., None],
                    (frame_jacobian[:, upper] - frame_jacobian[:, lower]) * scale[..., None, None],
                    None
                    if shared_jacobian is None
                    else (shared_jacobian[:, upper] - shared_jacobian[:, lower]) * scale[..., None, None],
                    (gap_weight[rows].square() * huber_cost(distance, 3.0)).sum(),
                )
        psi = values[:, 6 : 6 + units]
        equations.add_prior(psi, prior.mean, prior.precision, slice(6, 6 + units))
        equations.cost = equations.cost + (prior.sparsity * psi).sum()
        equations.frame_gradient[:, 6 : 6 + units] += prior.sparsity
        if jaws:
            spread = torch.tensor(config.jaw_sigma, dtype=torch.float64)
            equations.add_prior(values[:, jaw_columns], torch.zeros(3).double(), spread**-2, jaw_columns)
        if lids:
            spread = torch.full((lids,), config.eyelid_sigma, dtype=torch.float64)
            equations.add_prior(values[:, lid_columns], torch.zeros(lids).double(), spread**-2, lid_columns)
        if not fixed_shape:
            precision = torch.full((shared,), config.shape_sigma**-2, dtype=torch.float64)
            equations.add_shared_prior(shared_values, precision, slice(0, shared))
            add_shared_limits(
                equations, shared_values, size_slopes, config.size_limits, config.size_limit_sigma
            )
        return equations

    infinite = torch.full((6,), float("inf"), dtype=torch.float64)
    jaw_low, jaw_high = torch.tensor(config.jaw_limits, dtype=torch.float64)[:, :jaws]
    shut = torch.ones(lids, dtype=torch.float64)
    bounds = Bounds(
        torch.cat([-infinite, prior.lower.double(), jaw_low, 0 * shut]),
        torch.cat([infinite, prior.upper.double(), jaw_high, shut]),
    )
    step = config.smooth_translation
    change = torch.tensor(
        [config.smooth_rotation] * 3 + [step, step, 10 * step], dtype=torch.float64
    )
    rest = torch.tensor([config.smooth_jaw] * jaws + [config.smooth_eyelids] * lids, dtype=torch.float64)
    smoothness = Smoothness(links.double(), torch.cat([change, prior.change.double(), rest]) ** -2)
    start_psi = torch.minimum(torch.maximum(prior.mean, prior.lower), prior.upper)
    start = torch.cat([rotation, translation, start_psi, rotation.new_zeros(frames, jaws + lids)], 1)
    values, shared_values = minimise(
        build,
        start,
        torch.zeros(shared, dtype=torch.float64),
        iterations=config.iterations,
        smoothness=smoothness,
        bounds=bounds,
    )
    beta = shape.double() if fixed_shape else padded(shared_values)
    turn, shift, psi = values[:, :3], values[:, 3:6], values[:, 6 : 6 + units]
    jaw = values[:, jaw_columns] if jaws else torch.zeros(frames, 3, dtype=torch.float64)
    local = model.points(beta, psi, jaw, values[:, lid_columns])
    eyes = torch.zeros(frames, 2, 3, dtype=torch.float64)
    if not by_units:
        joints = model.joints + model.joints_shape_dirs @ beta
        eyes = _fit_eyes(model, local, joints, camera, observation, layout, turn, shift, size, links, config)
    posed = local @ axis_angle_to_matrix(turn).transpose(1, 2) + shift[:, None]
    pixels, _ = project_with_jacobian(camera, posed)
    compared = (observation.confidence > 0) & (weights > 0)
    error = (pixels - points).norm(dim=-1)
    error = (error * compared).sum(1) / compared.sum(1).clamp(min=1) / size * 100
    error = torch.where(seen, error, float("nan"))
    eyelids = values[:, lid_columns]
    if model.plain:
        eyelids = torch.zeros(frames, template.eyelid_dirs.shape[-1], dtype=torch.float64)
    return FaceFit(beta, psi, eyes, turn, shift, error, jaw, eyelids)


def _placed_only(
    model: FaceLandmarkModel, layout: FaceLayout, observation: FaceObservation
) -> tuple[FaceLandmarkModel, FaceLayout, FaceObservation]:
    """The same without landmarks that have no place on the template (FLAME: three quarters of 478).

    Raises:
        ValueError: The outer eye corners, which give the scale, are among them.
    """
    kept = (model.weights > 0).nonzero()[:, 0].tolist()
    if len(kept) == len(model.weights):
        return model, layout, observation
    new = {old: i for i, old in enumerate(kept)}
    if not all(corner in new for corner in layout.eye_corners):
        raise ValueError(f"The landmarks '{layout.embedding}' have no outer eye corners on this template.")

    def renumbered(value):
        if isinstance(value[0], tuple):
            return tuple((new[a], new[b]) for a, b in value if a in new and b in new)
        return tuple(new[i] for i in value if i in new)

    indices = {f.name: getattr(layout, f.name) for f in fields(layout) if f.name != "embedding"}
    layout = replace(layout, **{name: renumbered(v) if v else v for name, v in indices.items()})
    observation = replace(
        observation,
        points=observation.points[:, kept],
        confidence=observation.confidence[:, kept],
        depth=None if observation.depth is None else observation.depth[:, kept],
    )
    return model.of(kept), layout, observation


def face_size(observation: FaceObservation) -> Tensor:
    """(T,) the outer-eye distance in crop pixels as it would be seen from the front.

    Turned faces are foreshortened, so the distance is taken in three dimensions where the detector gives
    depth. Frames without a face get the clip's median.
    """
    a, b = FACE_LAYOUTS[observation.layout].eye_corners
    across = observation.points[:, a] - observation.points[:, b]
    if observation.depth is not None:
        across = torch.cat([across, (observation.depth[:, a] - observation.depth[:, b])[:, None]], 1)
    size = across.norm(dim=1)
    seen = observation.seen
    if not bool(seen.any()):
        return torch.full_like(size, 50.0)
    return torch.where(seen, size, size[seen].median()).clamp(min=4.0)


def _add(
    equations: NormalEquations,
    rows: slice,
    residual: Tensor,
    frame: Tensor,
    shared: Tensor | None,
    cost: Tensor,
) -> None:
    count = residual.shape[0]
    equations.add(
        residual.reshape(count, -1),
        frame.reshape(count, -1, frame.shape[-1]),
        None if shared is None else shared.reshape(count, -1, shared.shape[-1]),
        rows=rows,
        cost=cost,
    )


def _gap_indices(layout: FaceLayout) -> tuple[list[int], list[int]]:
    pairs = layout.right_lids + layout.left_lids + layout.lip_gaps
    return [a for a, _ in pairs], [b for _, b in pairs]


def _gap_spread(
    observation: FaceObservation, layout: FaceLayout, size: Tensor, config: FaceFitConfig
) -> Tensor:
    """(T, pairs) spread of lid and lip gaps, pixels. Open lids are held closely: they make a face's look.
    Nearly shut ones are left to the landmark response, for the detector hardly ever shuts its lids fully."""
    sides = []
    for pairs in (layout.right_lids, layout.left_lids):
        open_ = _openness(observation, pairs, size)[:, None]
        spread = config.lid_gap_sigma * open_ + config.gap_sigma * (1 - open_)
        sides.append(spread.expand(-1, len(pairs)))
    lips = torch.full((len(size), len(layout.lip_gaps)), config.gap_sigma, dtype=torch.float64)
    return torch.cat([*sides, lips], 1) * size[:, None]


def _initial_pose(
    model: FaceLandmarkModel, camera: Camera, observation: FaceObservation, layout: FaceLayout, size: Tensor
) -> tuple[Tensor, Tensor]:
    """Head rotation (T, 3) and translation (T, 3) from the landmarks, by the orthogonal Procrustes
    problem."""
    frames = observation.points.shape[0]
    stiff = [i for i in range(model.base.shape[0]) if i not in set(layout.lips + layout.contour)]
    stiff = [i for i in stiff if float(model.weights[i]) > 0]
    source = model.base[stiff] - model.base[stiff].mean(0)
    rotation = torch.zeros(frames, 3, dtype=torch.float64)
    centre = observation.points[:, stiff].mean(1)
    if observation.depth is not None:
        target = torch.cat([observation.points[:, stiff], observation.depth[:, stiff, None]], -1)
        target = (target - target.mean(1, keepdim=True)) * torch.tensor(
            [1.0, -1.0, -1.0], dtype=torch.float64
        )
        u, _, vt = torch.linalg.svd(target.transpose(1, 2) @ source)
        flip = torch.eye(3, dtype=torch.float64).expand(frames, 3, 3).clone()
        flip[:, 2, 2] = torch.sign(torch.linalg.det(u @ vt))
        rotation = matrix_to_axis_angle(u @ flip @ vt)
    a, b = layout.eye_corners
    k = camera.intrinsics.double()
    depth = k[0, 0] * (model.base[a] - model.base[b]).norm() / size
    shift = torch.stack(
        [(centre[:, 0] - k[0, 2]) / k[0, 0] * depth, -(centre[:, 1] - k[1, 2]) / k[1, 1] * depth, -depth], 1
    )
    shift = shift - (axis_angle_to_matrix(rotation) @ model.base[stiff].mean(0)[:, None])[..., 0]
    return _fill_unseen(rotation, observation.seen), _fill_unseen(shift, observation.seen)


def _fill_unseen(values: Tensor, seen: Tensor) -> Tensor:
    """Unseen frames take the nearest seen frame's value."""
    if bool(seen.all()) or not bool(seen.any()):
        return values
    known = seen.nonzero()[:, 0]
    nearest = known[(torch.arange(len(seen))[:, None] - known[None]).abs().argmin(1)]
    return values[nearest]


def _fit_eyes(
    model: FaceLandmarkModel,
    local: Tensor,
    joints: Tensor,
    camera: Camera,
    observation: FaceObservation,
    layout: FaceLayout,
    turn: Tensor,
    shift: Tensor,
    size: Tensor,
    links: Tensor,
    config: FaceFitConfig,
) -> Tensor:
    """Eye stage: pitch and yaw (T, 2, 3) of both eyes from the irises, all else fixed: landmarks ``local``
    (T, L, 3) and eye ``joints`` (2, 3) of the neutral-pose head."""
    frames = local.shape[0]
    eyes = torch.zeros(frames, 2, 3, dtype=torch.float64)
    if not layout.left_iris or not layout.right_iris:
        return eyes
    matrix = axis_angle_to_matrix(turn)
    sides = (layout.left_iris, layout.right_iris)
    open_weight = torch.stack(
        [_openness(observation, pairs, size) for pairs in (layout.left_lids, layout.right_lids)], 1
    )
    sigma = 0.02 * size

    def build(values: Tensor, shared_values: Tensor) -> NormalEquations:
        equations = NormalEquations.zero(frames, 4, 0)
        for side, iris in enumerate(sides):
            index = list(iris)
            gaze = torch.cat(
                [values[:, 2 * side : 2 * side + 2], torch.zeros(frames, 1, dtype=torch.float64)], 1
            )
            spin = axis_angle_to_matrix(gaze)
            arm = (local[:, index] - joints[side]) @ spin.transpose(1, 2)
            posed = (arm + joints[side]) @ matrix.transpose(1, 2) + shift[:, None]
            pixels, jacobian = project_with_jacobian(camera, posed)
            by_gaze = (matrix[:, None] @ -skew(arm)) @ (spin @ right_jacobian(gaze))[:, None]
            frame_jacobian = torch.zeros(frames, len(index), 2, 4, dtype=torch.float64)
            frame_jacobian[..., 2 * side : 2 * side + 2] = (jacobian @ by_gaze)[..., :2]
            weight = (observation.confidence[:, index] * open_weight[:, side : side + 1]).sqrt()
            weight = weight / sigma[:, None]
            residual = (pixels - observation.points[:, index]) * weight[..., None]
            _add(
                equations,
                slice(None),
                residual,
                frame_jacobian * weight[..., None, None],
                None,
                0.5 * residual.square().sum(),
            )
        equations.add_prior(values, torch.zeros(4).double(), torch.full((4,), 0.35**-2).double(), slice(0, 4))
        # Both eyes look at the same thing: pitch alike, yaw nearly so.
        tie = torch.tensor([[1.0, 0, -1, 0], [0, 1.0, 0, -1]], dtype=torch.float64)
        tie = tie / torch.tensor([[0.02], [0.06]], dtype=torch.float64)
        equations.add((values @ tie.T), tie.expand(frames, -1, -1))
        return equations

    limit = torch.tensor([0.6, 0.75, 0.6, 0.75], dtype=torch.float64)
    smoothness = Smoothness(links.double(), torch.full((4,), 0.12**-2, dtype=torch.float64))
    values, _ = minimise(
        build,
        torch.zeros(frames, 4, dtype=torch.float64),
        torch.zeros(0, dtype=torch.float64),
        iterations=config.eye_iterations,
        smoothness=smoothness,
        bounds=Bounds(-limit, limit),
    )
    eyes[:, :, :2] = values.reshape(frames, 2, 2)
    return eyes


def _openness(observation: FaceObservation, pairs: tuple[tuple[int, int], ...], size: Tensor) -> Tensor:
    """(T,) 0 where the lids are shut (the iris is a guess then) to 1 where they are clearly open; 1 if no
    pair of lid points is known."""
    if not pairs:
        return torch.ones_like(size)
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    gap = (observation.points[:, a] - observation.points[:, b]).norm(dim=-1).mean(1) / size
    return ((gap - 0.03) / 0.04).clamp(0, 1)
