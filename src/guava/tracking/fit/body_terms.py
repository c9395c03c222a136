"""The terms of the body stage (Eq. 8) as residuals and derivatives.

Points are taken in groups that few joints move: no finger moves the face, and neither hand the other one.
Their normal equations are small, and are added into the whole's.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guava.body import Template
from guava.camera import Camera
from guava.rotation import axis_angle_to_matrix
from guava.tracking.config import BodyFitConfig
from guava.tracking.fit.body_points import SIDES, BodyPoints
from guava.tracking.fit.chain import (
    PosedChain,
    carried_jacobian,
    joint_motions,
    joints_rest_jacobian,
    point_jacobian,
    pose_chain,
)
from guava.tracking.fit.face import FaceFit, FaceLandmarkModel, project_with_jacobian
from guava.tracking.fit.hand import HandFit, add_pose_prior
from guava.tracking.fit.solver import (
    NormalEquations,
    add_shared_limits,
    extent_slopes,
    huber_cost,
    robust_weight,
)
from guava.tracking.priors import (
    PosePrior,
    body_joint_ids,
    finger_joint_ids,
    hanging_arms,
    pose_prior,
    resting_legs,
)

_FRAMES = 48  # whose derivatives are in memory at once
_HUBER = 3.0
_HUBER_HEAD = 30.0
_HAND_GUIDE_SIGMA = (0.004, 0.004, 0.008)
_HAND_GUIDE_WEIGHT = 0.5
_HEAD_PLACE_DEPTH_SIGMA = 0.05


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
class _Group:
    """Points that the same joints move.

    Attributes:
        points: (m,) their indices in :class:`BodyPoints`.
        moving: (n,) joints above any of them.
        angles: (3 n,) their axis-angles among those of all joints; columns: runs of them and the translation
            among the frame values.
    """

    points: Tensor
    moving: Tensor
    angles: Tensor
    columns: tuple[slice, ...]


@dataclass(frozen=True)
class _Moved:
    """A group's points in some frames, (t, m, 3), and their derivatives (single precision) by the group's
    columns, (t, m, 3, C), and by the shared values, (t, m, 3, S) or None."""

    points: Tensor
    by_frame: Tensor
    by_shared: Tensor | None

    def __getitem__(self, which: slice | Tensor) -> _Moved:
        shared = None if self.by_shared is None else self.by_shared[:, which]
        return _Moved(self.points[:, which], self.by_frame[:, which], shared)

    def __sub__(self, other: _Moved) -> _Moved:
        shared = None if self.by_shared is None else self.by_shared - other.by_shared
        return _Moved(self.points - other.points, self.by_frame - other.by_frame, shared)

    def mean(self) -> _Moved:
        shared = None if self.by_shared is None else self.by_shared.mean(1, keepdim=True)
        return _Moved(self.points.mean(1, keepdim=True), self.by_frame.mean(1, keepdim=True), shared)

    def through(self, values: Tensor, slope: Tensor) -> _Moved:
        """What becomes of the points under a map with these ``values`` and this ``slope`` (t, m, d, 3)."""
        slope = slope.float()
        shared = None if self.by_shared is None else slope @ self.by_shared
        return _Moved(values, slope @ self.by_frame, shared)


class BodyTerms:
    """Cost of the body stage and its normal equations over T frames.

    The frame values are the axis-angles of the joints ``moving`` and the translation, (T, 3 n + 3); the
    shared values shape, dJ and hand size (S,), or none where they are known from elsewhere.

    Args:
        template: The template.
        camera: Unbatched camera of the crop.
        observation: Points.
        face: Result of the face stage.
        face_seen: (T,) bool.
        hands: Left and right hand fits.
        config: Settings.
        known: (S,) shared values that are held fixed; None to fit them.

    Attributes:
        model: The points.
        moving: (n,) joints; slots: joint -> position in it; finger_ids: joints of left and right fingers.
        angles: 3 n; count: 3 n + 3; shared_count: S or 0.
        prior: Of the axis-angles.
        targets: (T, a, 3) where the face stage put the anchors.
    """

    def __init__(
        self,
        template: Template,
        camera: Camera,
        observation: BodyObservation,
        face: FaceFit,
        face_seen: Tensor,
        hands: tuple[HandFit, HandFit],
        config: BodyFitConfig,
        known: Tensor | None = None,
    ):
        self._camera, self._config = camera, config
        self._observation, self._hands = observation, hands
        anchors = FaceLandmarkModel(
            template, "mediapipe478" if "mediapipe478" in template.landmarks else "ibug68"
        )
        placed = (anchors.weights > 0).nonzero()[:, 0].tolist()
        chosen = placed[:: max(1, len(placed) // 30 + (len(placed) > 30))]
        self.model = BodyPoints(template, face, anchors, chosen, observation.joints, config.shape_components)
        skeleton = self.model.skeleton
        self._skeleton = replace(skeleton, ancestry=skeleton.ancestry.float())
        self._dirs = self.model.joint_dirs.float(), self.model.point_dirs.float()
        self.finger_ids = [finger_joint_ids(template, side) for side in SIDES]
        self.body_joints = body_joint_ids(template, legs="left_knee" in observation.joints)
        # The joints of each arm and hand follow each other, so that groups are few runs of columns.
        arms = [[j for j in self.body_joints if _of_arm(template, j, side)] for side in SIDES]
        trunk = [j for j in self.body_joints if j not in arms[0] and j not in arms[1]]
        moving = [*trunk, *arms[0], *self.finger_ids[0], *arms[1], *self.finger_ids[1]]
        self.moving = torch.tensor(moving)
        self.slots = {joint: n for n, joint in enumerate(moving)}
        self.angles, self.count = 3 * len(moving), 3 * len(moving) + 3
        self.known = None if known is None else known.double()
        self.shared_count = self.model.shared if known is None else 0
        unseen = _unseen_arms(observation)
        prior = hanging_arms(pose_prior(template, moving), template, moving, unseen)
        self.prior: PosePrior = resting_legs(prior, template, moving, _unseen_legs(observation))
        self.targets = _face_targets(anchors, face, chosen)
        self._face_weight = face_seen[:, None].double()
        self._directed = _seen_directions(observation, unseen)
        self._direction_spread = torch.where(
            observation.direction_spread > 0,
            observation.direction_spread * config.lifted_direction_factor,
            config.direction_sigma,
        )
        columns = torch.tensor([template.joint(name) for name in observation.joints])
        pairs = torch.tensor(observation.bones, dtype=torch.int64).reshape(-1, 2)
        # Joints are the first points.
        bone_ends, self._bone_ends = torch.unique(columns[pairs], return_inverse=True)
        self._limbs = self._group(torch.cat([self.model.body, bone_ends]))
        self._palms = [self._group(self.model.hands[side]) for side in (0, 1)]
        self._head = self._group(self.model.anchors)
        self._set_identity_terms(template, anchors, face)

    def with_identity(self, known: Tensor) -> BodyTerms:
        """The same terms with the shared values held fixed."""
        out = copy(self)
        out.known, out.shared_count = known, 0
        return out

    def fingers(self, side: int) -> slice:
        """Where the axis-angles of a hand's fingers are among the frame values."""
        first = 3 * self.slots[self.finger_ids[side][0]]
        return slice(first, first + 3 * len(self.finger_ids[side]))

    def _group(self, points: Tensor) -> _Group:
        above = self.model.skeleton.ancestry[points][:, self.moving].amax(0) > 0
        slots = above.nonzero()[:, 0]
        angles = (3 * slots[:, None] + torch.arange(3)).flatten()
        columns = torch.cat([angles, self.angles + torch.arange(3)])
        return _Group(points, self.moving[slots], angles, _runs(columns.tolist()))

    def _set_identity_terms(self, template: Template, anchors: FaceLandmarkModel, face: FaceFit) -> None:
        config, model = self._config, self.model
        offsets = torch.full(
            (3 * len(model.offset_joints),), config.joint_offset_sigma**-2, dtype=torch.float64
        )
        for n, joint in enumerate(model.offset_joints):
            if joint in self.finger_ids[0] or joint in self.finger_ids[1]:
                offsets[3 * n : 3 * n + 3] = config.finger_offset_sigma**-2
        shape = torch.full((model.shape_count,), config.shape_sigma**-2, dtype=torch.float64)
        size = torch.tensor([config.hand_size_sigma**-2], dtype=torch.float64)
        self._shared_precision = torch.cat([shape, offsets, size])
        self._size_slopes, self._bone_slopes = _size_slopes(template, model)
        # The head's size and the body's are tied: the body's own eyes lie as far apart as the fitted head's.
        self._head_tie = None
        if not anchors.plain:
            head_eyes = anchors.joints + anchors.joints_shape_dirs @ face.shape
            span = (model.eyes[0] - model.eyes[1]) - (head_eyes[0] - head_eyes[1])
            slope = (model.eye_dirs[0] - model.eye_dirs[1])[0]
            self._head_tie = span[0] / config.head_tie_sigma, slope / config.head_tie_sigma

    def posed(self, values: Tensor, shared: Tensor, rows: slice = slice(None)) -> tuple[PosedChain, Tensor]:
        """The skeleton of some frames, and the axis-angles (t, J, 3) of all its joints."""
        full = torch.zeros(values[rows].shape[0], self.model.joint_count, 3, dtype=torch.float64)
        full[:, self.moving] = values[rows, : self.angles].reshape(-1, len(self.moving), 3)
        joints, points = self.model.rest(shared if self.known is None else self.known, rows)
        return pose_chain(self.model.skeleton, full, values[rows, self.angles :], joints, points), full

    def equations(self, values: Tensor, shared: Tensor) -> NormalEquations:
        """The normal equations at frame values (T, P) and shared values (S,)."""
        frames = values.shape[0]
        equations = NormalEquations.zero(frames, self.count, self.shared_count)
        for first in range(0, frames, _FRAMES):
            self._add_frames(equations, values, shared, slice(first, min(frames, first + _FRAMES)))
        add_pose_prior(equations, values[:, : self.angles], self.prior, slice(0, self.angles))
        if self.known is None:
            self._add_identity(equations, shared)
        return equations

    def _add_frames(self, equations: NormalEquations, values: Tensor, shared: Tensor, rows: slice) -> None:
        exact, full = self.posed(values, shared, rows)
        skeleton = self._skeleton
        # Derivatives give a step's direction: single precision is ample, and twice as fast.
        posed = PosedChain(exact.rotations.float(), exact.joints.float(), exact.points.float())
        motions = joint_motions(posed, full.float(), self.moving)
        by_shared = None
        if self.known is None:
            by_shared = joints_rest_jacobian(skeleton, posed, self._dirs[0])

        def moved(group: _Group) -> _Moved:
            own = motions[..., group.angles]
            turned = point_jacobian(skeleton, posed, own, group.moving, group.points)
            shifted = torch.eye(3).expand(*turned.shape[:2], 3, 3)
            shaped = None
            if by_shared is not None:
                shaped = carried_jacobian(skeleton, posed, by_shared, *self._dirs, group.points)
            return _Moved(exact.points[:, group.points], torch.cat([turned, shifted], -1), shaped)

        _Sum(self._limb_terms(moved(self._limbs), rows)).add_to(equations, rows, self._limbs.columns)
        _Sum(self._head_terms(moved(self._head), rows)).add_to(equations, rows, self._head.columns)
        for side, group in enumerate(self._palms):
            if bool((self._observation.hand_confidence[rows, side] > 0).any()):
                _Sum(self._hand_terms(moved(group), side, rows)).add_to(equations, rows, group.columns)

    def _seen(self, at: _Moved) -> _Moved:
        pixels, projection = project_with_jacobian(self._camera, at.points)
        return at.through(pixels, projection)

    def _spread(self, sigma: float) -> Tensor:
        return torch.tensor(sigma * self._camera.width / 512, dtype=torch.float64)

    def _limb_terms(self, at: _Moved, rows: slice) -> list[_Residual]:
        """2D points of the body (lambda_k of Eq. 8) and bone directions in 3D."""
        observation, count = self._observation, len(self.model.body)
        seen = self._seen(at[:count])
        terms = [
            _Residual(
                seen, observation.points[rows], observation.confidence[rows],
                self._spread(self._config.point_sigma),
            )
        ]  # fmt: skip
        if observation.bones:
            ends = at[count:]
            bone = ends[self._bone_ends[:, 1]] - ends[self._bone_ends[:, 0]]
            length = bone.points.norm(dim=-1, keepdim=True).clamp(min=1e-4)
            unit = bone.points / length
            eye = torch.eye(3, dtype=torch.float64)
            across = (eye - unit[..., None] * unit[..., None, :]) / length[..., None]
            terms.append(
                _Residual(
                    bone.through(unit, across), observation.directions[rows], self._directed[rows],
                    self._direction_spread[rows],
                )
            )  # fmt: skip
        return terms

    def _hand_terms(self, at: _Moved, side: int, rows: slice) -> list[_Residual]:
        """2D points of a hand, and 3D guidance by its own fit relative to the wrist (lambda_3d of Eq. 8)."""
        weight = self._observation.hand_confidence[rows, side]
        guide = self._hands[side].points[rows]
        guided = weight * self._hands[side].seen[rows, None] * _HAND_GUIDE_WEIGHT
        spread = torch.tensor(_HAND_GUIDE_SIGMA, dtype=torch.float64)
        return [
            _Residual(
                self._seen(at), self._observation.hand_points[rows, side], weight,
                self._spread(self._config.hand_sigma),
            ),
            _Residual(at - at[:1], guide - guide[:, :1], guided, spread),
        ]  # fmt: skip

    def _head_terms(self, at: _Moved, rows: slice) -> list[_Residual]:
        """3D guidance by the face fit: how the anchors lie to each other, and where."""
        config, targets = self._config, self.targets[rows]
        across, depth = config.head_sigma, config.head_depth_sigma
        middle, target = at.mean(), targets.mean(1, keepdim=True)
        weight = self._face_weight[rows]
        turned = torch.tensor([across, across, depth], dtype=torch.float64)
        placed = torch.tensor([across, across, _HEAD_PLACE_DEPTH_SIGMA], dtype=torch.float64)
        count = targets.shape[1]
        return [
            _Residual(at - middle, targets - target, weight.expand(-1, count), turned),
            _Residual(middle, target, weight, placed / count**0.5, _HUBER_HEAD),
        ]

    def _add_identity(self, equations: NormalEquations, shared: Tensor) -> None:
        config = self._config
        equations.add_shared_prior(shared, self._shared_precision, slice(0, self.model.shared))
        spread = config.size_limit_sigma
        add_shared_limits(equations, shared, self._size_slopes, config.size_limits, spread)
        add_shared_limits(equations, shared, self._bone_slopes, config.bone_limits, spread)
        if self._head_tie is not None:
            span, slope = self._head_tie
            residual = span + slope @ shared
            equations.cost = equations.cost + 0.5 * residual.square()
            equations.shared_gradient += slope * residual
            equations.shared_hessian += slope[:, None] * slope[None]


@dataclass(frozen=True)
class _Residual:
    """Robust vectors: ``moved`` (t, m, d) should be ``target``, with ``weight`` (t, m) and ``spread``, which
    broadcasts to (t, m, d)."""

    moved: _Moved
    target: Tensor
    weight: Tensor
    spread: Tensor
    threshold: float = _HUBER


class _Sum:
    """Several terms of one group: one product with the derivatives of all of them."""

    def __init__(self, terms: list[_Residual]):
        residuals, by_frame, by_shared = [], [], []
        self.cost = torch.zeros((), dtype=torch.float64)
        for term in terms:
            scaled = (term.moved.points - term.target) / term.spread
            distance = scaled.norm(dim=-1)
            factor = (term.weight * robust_weight(distance, term.threshold)).sqrt()[..., None]
            wide = (factor / term.spread)[..., None].float()
            residuals.append((scaled * factor).flatten(1))
            by_frame.append((term.moved.by_frame * wide).flatten(1, 2))
            if term.moved.by_shared is not None:
                by_shared.append((term.moved.by_shared * wide).flatten(1, 2))
            self.cost = self.cost + (term.weight * huber_cost(distance, term.threshold)).sum()
        self.residual, self.by_frame = torch.cat(residuals, 1), torch.cat(by_frame, 1)
        self.by_shared = torch.cat(by_shared, 1) if by_shared else None

    def add_to(self, equations: NormalEquations, rows: slice, columns: tuple[slice, ...]) -> None:
        equations.add(
            self.residual, self.by_frame, self.by_shared, rows=rows, columns=columns, cost=self.cost
        )


def _of_arm(template: Template, joint: int, side: str) -> bool:
    own, _, part = template.body.joint_names[joint].partition("_")
    return own == side and part in ("collar", "shoulder", "elbow", "wrist")


def _runs(columns: list[int]) -> tuple[slice, ...]:
    """Rising numbers as runs of neighbours."""
    breaks = [n for n in range(1, len(columns)) if columns[n] != columns[n - 1] + 1]
    starts, stops = [0, *breaks], [*breaks, len(columns)]
    return tuple(slice(columns[a], columns[b - 1] + 1) for a, b in zip(starts, stops, strict=True))


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
