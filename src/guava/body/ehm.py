"""The EHM forward pass (paper Sec. 3.1, Eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from guava.body.template import LinearModel, Template
from guava.rotation import axis_angle_to_matrix

BODY_EYES = ("left_eye_smplhf", "right_eye_smplhf")
WRISTS = ("left_wrist", "right_wrist")
HEAD_JAW, HEAD_LEFT_EYE, HEAD_RIGHT_EYE = 2, 3, 4
JAW, LEFT_EYE, RIGHT_EYE = 22, 23, 24
"""Rows of ``Pose.joints`` that drive the head model; the body's own jaw and eye joints stay at rest."""


class _Batched:
    """Frozen dataclasses of tensors that share their leading dimensions."""

    def to(self, device=None, dtype=None):
        """Every tensor on another device or in another dtype."""
        return replace(
            self, **{f.name: getattr(self, f.name).to(device=device, dtype=dtype) for f in fields(self)}
        )

    def detach(self):
        """Every tensor cut off from the graph."""
        return replace(self, **{f.name: getattr(self, f.name).detach() for f in fields(self)})

    def __getitem__(self, index):
        """Index the leading dimension of every tensor."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True)
class Identity(_Batched):
    """What stays the same while a person moves. Leading dimension B is 1 or the batch's size.

    Attributes:
        body_shape: (B, S_body) beta_b, unit variance.
        head_shape: (B, S_head) beta_f, unit variance.
        joint_offsets: (B, J, 3) Delta J of Eq. 1, metres.
        head_scale: (B, 3) per-axis factors about the head model's origin.
        hand_scale: (B, 3) per-axis factors about the template's hand centres, which move with the wrists
            unless joints are regressed from the mesh.
    """

    body_shape: Tensor
    head_shape: Tensor
    joint_offsets: Tensor
    head_scale: Tensor
    hand_scale: Tensor

    @staticmethod
    def neutral(template: Template, batch: int = 1) -> Identity:
        """The template's mean person."""
        return Identity(
            torch.zeros(batch, template.body.num_shape),
            torch.zeros(batch, template.head.num_shape),
            torch.zeros(batch, template.body.num_joints, 3),
            torch.ones(batch, 3),
            torch.ones(batch, 3),
        )


@dataclass(frozen=True)
class Pose(_Batched):
    """What changes from frame to frame. Leading dimension B.

    Attributes:
        joints: (B, J, 3) axis-angle relative to the parent, in SMPL-X order; row 0 is the root orientation,
            rows 22-24 (jaw, left eye, right eye) drive the head model.
        expression: (B, E) head expression, by ``Template.expression_names``.
        body_expression: (B, E_body) expression of the body model itself; E_body is 0 for the open template.
        eyelids: (B, L) factors of ``Template.eyelid_dirs``; L is 0 for the open template (its units have
            lids).
        translation: (B, 3) metres, added after skinning.
    """

    joints: Tensor
    expression: Tensor
    body_expression: Tensor
    eyelids: Tensor
    translation: Tensor

    @staticmethod
    def rest(template: Template, batch: int = 1) -> Pose:
        """The T pose with a neutral face at the origin."""
        return Pose(
            torch.zeros(batch, template.body.num_joints, 3),
            torch.zeros(batch, template.head.num_expression),
            torch.zeros(batch, template.body.num_expression),
            torch.zeros(batch, template.eyelid_dirs.shape[-1]),
            torch.zeros(batch, 3),
        )


@dataclass(frozen=True)
class EHMOutput:
    """A posed EHM.

    Attributes:
        vertices: (B, V, 3) posed.
        joints: (B, J, 3) posed.
        transforms: (B, V, 4, 4) blended skinning transforms: posed = transforms @ rest (translation included,
            pose correctives excluded). Their rotation part is a blend, not orthonormal.
        joint_transforms: (B, J, 4, 4) the same for every joint, before blending.
        rest_vertices: (B, V, 3) the mesh before body skinning, with the expressive head in place.
        rest_joints: (B, J, 3).
    """

    vertices: Tensor
    joints: Tensor
    transforms: Tensor
    joint_transforms: Tensor
    rest_vertices: Tensor
    rest_joints: Tensor


class EHM(nn.Module):
    """The expressive human model of Eq. 1, batched and differentiable.

        M_ehm = LBS( U( M_b(beta_b), M_f(beta_f, psi_f, theta_jaw) + e ), theta_b, theta_h, J_b(beta_b) + dJ )

    The body's head vertices are replaced by the neutral-pose head model (``U``), shifted by the displacement
    ``e`` between the two models' eye joints, and the whole is posed by linear blend skinning. A template
    without ``expressive_head`` (the ablation "w/o EHM") skips ``U``: head shape, head scale, eyelids and head
    expression then do nothing, and jaw, eyes and ``body_expression`` move the body's own head.

    Args:
        template: The two models and how they join.
        vertex_ids: (n,) Compute only these vertices (fitting needs about a thousand of them). The joints are
            those of the whole mesh all the same.

    Raises:
        ValueError: Joints are to be regressed from the mesh, but a model has no regressor, or a vertex is
            both head and hand.
    """

    def __init__(self, template: Template, vertex_ids: Tensor | None = None):
        super().__init__()
        self.template = template
        body, head = template.body, template.head
        ids = torch.arange(body.num_vertices) if vertex_ids is None else vertex_ids.long()
        self.register_buffer("vertex_ids", ids, persistent=False)
        slot = torch.full((body.num_vertices,), -1, dtype=torch.long)
        if template.expressive_head:
            slot[template.head_vertex_ids] = torch.arange(len(template.head_vertex_ids))
        here = slot[ids]
        rows = (here >= 0).nonzero()[:, 0]  # positions in `ids` that belong to the head
        picked = here[rows]
        self.register_buffer("head_rows", rows, persistent=False)

        def keep(name: str, value: Tensor) -> None:
            self.register_buffer(name, value.clone(), persistent=False)

        keep("v_template", body.v_template[ids])
        keep("shape_dirs", body.shape_dirs[ids])
        keep("body_expression_dirs", body.expression_dirs[ids])
        keep("pose_dirs", body.pose_dirs[ids])
        keep("weights", body.weights[ids])
        keep("joints_template", body.joints_template)
        keep("joints_shape_dirs", body.joints_shape_dirs)
        keep("head_v_template", head.v_template[picked])
        keep("head_shape_dirs", head.shape_dirs[picked])
        keep("head_expression_dirs", head.expression_dirs[picked])
        keep("head_pose_dirs", head.pose_dirs[picked])
        keep("head_weights", head.weights[picked])
        keep("head_joints_template", head.joints_template)
        keep("head_joints_shape_dirs", head.joints_shape_dirs)
        keep("head_blend", template.head_blend[picked])
        keep("eyelid_dirs", template.eyelid_dirs[picked])
        keep("hand_centers", template.hand_centers)
        vertex_share, joint_share = _hand_shares(template)
        keep("hand_vertex_share", vertex_share[:, ids])
        keep("hand_joint_share", joint_share)
        self.wrists = [template.joint(name) for name in WRISTS]
        if template.regress_joints:
            for name, value in _regressed(template).items():
                keep(name, value)
        self.parents = body.parents.tolist()
        self.body_eyes = [template.joint(name) for name in BODY_EYES]
        self._levels = _tree_levels(self.parents)

    def head(self, identity: Identity, pose: Pose) -> tuple[Tensor, Tensor]:
        """The expressive head in its neutral pose, M_f of Eq. 1.

        Returns:
            Vertices (B, n_head, 3) and joints (B, 5, 3), in the head model's own frame (origin between the
            eyes for the open template), before ``head_scale``.
        """
        vertices = (
            self.head_v_template
            + _apply(self.head_shape_dirs, identity.head_shape)
            + _apply(self.head_expression_dirs, pose.expression)
        )
        joints = self._head_joints(identity, pose)
        rotations = axis_angle_to_matrix(pose.joints[:, [JAW, LEFT_EYE, RIGHT_EYE]])
        if self.head_pose_dirs.shape[-1]:
            vertices = vertices + _apply(self.head_pose_dirs, _head_pose_feature(rotations))
        # Neck and head are at rest here, so jaw and eyes turn about their own joints: v += w (R - I)(v - J).
        moved = vertices
        for row, joint in enumerate((HEAD_JAW, HEAD_LEFT_EYE, HEAD_RIGHT_EYE)):
            arm = vertices - joints[:, joint : joint + 1]
            moved = moved + self.head_weights[:, joint : joint + 1] * (
                arm @ rotations[:, row].transpose(-1, -2) - arm
            )
        if self.eyelid_dirs.shape[-1]:
            moved = moved + _apply(self.eyelid_dirs, pose.eyelids)
        return moved, joints

    def _head_joints(self, identity: Identity, pose: Pose) -> Tensor:
        """(B, 5, 3) joints of the head in its neutral pose."""
        if self.template.regress_joints:
            return (
                self.head_regressed_template
                + _apply(self.head_regressed_shape_dirs, identity.head_shape)
                + _apply(self.head_regressed_expression_dirs, pose.expression)
            )
        return self.head_joints_template + _apply(self.head_joints_shape_dirs, identity.head_shape)

    def rest(self, identity: Identity, pose: Pose) -> tuple[Tensor, Tensor]:
        """The rest-pose mesh with its head replaced, U(M_b, M_f + e) of Eq. 1, and the rest joints (with dJ).

        Returns:
            Vertices (B, n, 3) and joints (B, J, 3).
        """
        vertices = self.v_template + _apply(self.shape_dirs, identity.body_shape)
        if self.body_expression_dirs.shape[-1]:
            vertices = vertices + _apply(self.body_expression_dirs, pose.body_expression)
        if not self.template.expressive_head:
            return self._plain_rest(identity, pose, vertices)
        parts = None
        if self.template.regress_joints:
            parts = self._regressed_parts(identity, pose)
            joints = parts.sum(1)
        else:
            joints = self.joints_template + _apply(self.joints_shape_dirs, identity.body_shape)
        joints = joints + identity.joint_offsets

        head, head_joints = self.head(identity, pose)
        head = head * identity.head_scale[:, None]
        # e of Eq. 1. The head's eye joints are taken before head_scale, as in the release.
        shift = joints[:, self.body_eyes].mean(1) - head_joints[:, [HEAD_LEFT_EYE, HEAD_RIGHT_EYE]].mean(1)
        batch = max(vertices.shape[0], head.shape[0])
        vertices, joints = vertices.expand(batch, -1, -1), joints.expand(batch, -1, -1)
        body_part = vertices[:, self.head_rows]
        replaced = body_part + self.head_blend[:, None] * (head + shift[:, None] - body_part)
        vertices = vertices.index_copy(1, self.head_rows, replaced)
        if parts is None:
            # The head's jaw and eyes replace the body's, as regressed joints would; the eyes' middle stays.
            placed = head_joints[:, HEAD_JAW:] * identity.head_scale[:, None]
            placed = (
                placed - placed[:, 1:].mean(1, keepdim=True) + joints[:, self.body_eyes].mean(1, keepdim=True)
            )
            joints = torch.cat([joints[:, :JAW], placed.expand(batch, -1, -1), joints[:, RIGHT_EYE + 1 :]], 1)
        vertices, joints = self._scaled_hands(identity, vertices, joints)
        if parts is not None:
            head_sum = self._regressed_head(identity, pose, head_joints) * identity.head_scale[:, None]
            joints = self._regressed_edit(identity, parts)
            joints = joints + head_sum + self.regressed_head_share[:, None] * shift[:, None]
        return vertices, joints

    def _plain_rest(self, identity: Identity, pose: Pose, vertices: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`rest` of a body that keeps its own head."""
        if self.template.regress_joints:
            joints = self._regressed_edit(identity, self._regressed_parts(identity, pose))
            return self._scaled_hands(identity, vertices, joints)[0], joints
        joints = self.joints_template + _apply(self.joints_shape_dirs, identity.body_shape)
        return self._scaled_hands(identity, vertices, joints + identity.joint_offsets)

    def _scaled_hands(self, identity: Identity, vertices: Tensor, joints: Tensor) -> tuple[Tensor, Tensor]:
        for side, wrist in enumerate(self.wrists):
            centre = self.hand_centers[side][None]
            if not self.template.regress_joints:
                centre = centre + joints[:, wrist] - self.joints_template[wrist]
            growth = (identity.hand_scale - 1)[:, None]
            vertices = vertices + self.hand_vertex_share[side, :, None] * growth * (
                vertices - centre[:, None]
            )
            joints = joints + self.hand_joint_share[side, :, None] * growth * (joints - centre[:, None])
        return vertices, joints

    def _regressed_parts(self, identity: Identity, pose: Pose) -> Tensor:
        """(B, 4, J, 3): what left hand, right hand, the rest, the replaced head add to the body's joints."""
        parts = self.regressed_template + _apply(self.regressed_shape_dirs, identity.body_shape)
        if self.regressed_expression_dirs.shape[-1]:
            parts = parts + _apply(self.regressed_expression_dirs, pose.body_expression)
        return parts.unflatten(1, (4, -1))

    def _regressed_edit(self, identity: Identity, parts: Tensor) -> Tensor:
        """(B, J, 3) joints regressed from the mesh with its hands scaled and without the replaced head, and
        dJ."""
        scale = identity.hand_scale[:, None]
        joints = parts[:, 2] + identity.joint_offsets
        for side in range(2):
            share = self.regressed_hand_share[side, :, None]
            joints = joints + scale * parts[:, side] + (1 - scale) * share * self.hand_centers[side]
        return joints

    def _regressed_head(self, identity: Identity, pose: Pose, head_joints: Tensor) -> Tensor:
        """(B, J, 3) what the expressive head, unscaled and in its own frame, adds to the body's joints.

        The same as regressing from :meth:`head`'s vertices, which need not all be there: skinning is linear
        in the vertices, so the regressor is applied to the directions, once for every joint's weights.
        """
        sums = self.head_sums_template + _apply(self.head_sums_shape_dirs, identity.head_shape)
        sums = sums + _apply(self.head_sums_expression_dirs, pose.expression)
        rotations = axis_angle_to_matrix(pose.joints[:, [JAW, LEFT_EYE, RIGHT_EYE]])
        if self.head_sums_pose_dirs.shape[-1]:
            sums = sums + _apply(self.head_sums_pose_dirs, _head_pose_feature(rotations))
        sums = sums.unflatten(1, (4, -1))
        total = sums[:, 0]
        for row, joint in enumerate((HEAD_JAW, HEAD_LEFT_EYE, HEAD_RIGHT_EYE)):
            arm = sums[:, 1 + row] - self.head_sums_weights[row, :, None] * head_joints[:, joint : joint + 1]
            total = total + arm @ rotations[:, row].transpose(-1, -2) - arm
        if self.head_sums_eyelid_dirs.shape[-1]:
            total = total + _apply(self.head_sums_eyelid_dirs, pose.eyelids)
        joints = total.new_zeros(total.shape[0], len(self.parents), 3)
        return joints.index_copy(1, self.head_sums_rows, total)

    def forward(self, identity: Identity, pose: Pose) -> EHMOutput:
        """Pose the model.

        Args:
            identity: B = 1 (shared by all frames) or the batch's size.
            pose: B frames, or one for B identities.
        """
        vertices, joints = self.rest(identity, pose)
        batch = max(vertices.shape[0], pose.joints.shape[0])
        vertices, joints = vertices.expand(batch, -1, -1), joints.expand(batch, -1, -1)
        rotations = axis_angle_to_matrix(pose.joints).expand(batch, -1, -1, -1)
        eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
        if self.template.expressive_head:
            # Jaw and eyes have moved the head already.
            rotations = torch.cat(
                [rotations[:, :JAW], eye.expand(batch, 3, 3, 3), rotations[:, RIGHT_EYE + 1 :]], 1
            )
        if self.pose_dirs.shape[-1]:
            skinned = vertices + pose_correctives(self.pose_dirs, rotations)
        else:
            skinned = vertices
        translation = pose.translation.expand(batch, -1)
        joint_transforms, posed_joints = self._kinematics(rotations, joints, translation)
        blended = torch.einsum("vj,bjrc->bvrc", self.weights, joint_transforms)
        posed = (blended[..., :3, :3] @ skinned[..., None]).squeeze(-1) + blended[..., :3, 3]
        return EHMOutput(posed, posed_joints, blended, joint_transforms, vertices, joints)

    def _kinematics(self, rotations: Tensor, joints: Tensor, translation: Tensor) -> tuple[Tensor, Tensor]:
        """Relative joint transforms (B, J, 4, 4) and posed joints (B, J, 3), one tree level at a time."""
        batch, count = joints.shape[:2]
        world_r: list[Tensor] = [None] * count  # type: ignore[list-item]
        world_t: list[Tensor] = [None] * count  # type: ignore[list-item]
        world_r[0], world_t[0] = rotations[:, 0], joints[:, 0]
        for children, parents in self._levels:
            parent_r = torch.stack([world_r[p] for p in parents], 1)
            parent_t = torch.stack([world_t[p] for p in parents], 1)
            offset = (joints[:, children] - joints[:, parents])[..., None]
            level_r = parent_r @ rotations[:, children]
            level_t = parent_t + (parent_r @ offset).squeeze(-1)
            for i, child in enumerate(children):
                world_r[child], world_t[child] = level_r[:, i], level_t[:, i]
        rotation = torch.stack(world_r, 1)
        posed = torch.stack(world_t, 1)
        shift = posed - (rotation @ joints[..., None]).squeeze(-1) + translation[:, None]
        bottom = torch.tensor([0.0, 0, 0, 1], dtype=joints.dtype, device=joints.device).expand(
            batch, count, 1, 4
        )
        transforms = torch.cat([torch.cat([rotation, shift[..., None]], -1), bottom], -2)
        return transforms, posed + translation[:, None]


def canonical_vertices(template: Template) -> Tensor:
    """(V, 3) the neutral person's rest mesh with the neutral head in place: canonical positions for exports.

    With the release's models this is the ``v_template`` of its checkpoint.
    """
    body, head = template.body, template.head
    out = body.v_template.clone()
    if template.expressive_head:
        eyes = body.joints_template[[LEFT_EYE, RIGHT_EYE]].mean(0)
        shift = eyes - head.joints_template[[HEAD_LEFT_EYE, HEAD_RIGHT_EYE]].mean(0)
        ids, blend = template.head_vertex_ids, template.head_blend[:, None]
        out[ids] = (1 - blend) * out[ids] + blend * (head.v_template + shift)
    return out


def _apply(directions: Tensor, coefficients: Tensor) -> Tensor:
    """(V, 3, K) x (B, k) -> (B, V, 3); k may be smaller than K (the rest are zero)."""
    flat = directions.reshape(-1, directions.shape[-1])[:, : coefficients.shape[-1]]
    return (coefficients @ flat.T).reshape(coefficients.shape[0], directions.shape[0], 3)


def pose_correctives(directions: Tensor, rotations: Tensor) -> Tensor:
    """What joints turned by ``rotations`` (B, J, 3, 3) add to the vertices (V, 3, 9 (J - 1)): (B, V, 3)."""
    eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    return _apply(directions, (rotations[:, 1:] - eye).flatten(1))


def _head_pose_feature(rotations: Tensor) -> Tensor:
    """(B, 3, 3, 3) jaw, left and right eye -> (B, 36): entries of R - I, the head's first turning joint (the
    neck) at rest."""
    eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    turned = (rotations - eye).flatten(1)
    return torch.cat([turned.new_zeros(turned.shape[0], 9), turned], 1)


def _regressed(template: Template) -> dict[str, Tensor]:
    """The regressors of both models applied to everything that moves vertices, so that joints regressed from
    the edited mesh need no mesh.

    Returns:
        ``head_regressed_*``: the head's own joints (5, 3[, K]). ``regressed_*``: the body's joints from four
        parts of its mesh (4 J, 3[, K]): left hand, right hand, the rest, and what the head replaces.
        ``head_sums_*``: what the head's vertices add to the h body joints ``head_sums_rows`` that they touch:
        (4 h, 3[, K]), plain and once for the skinning weights of jaw, left and right eye; and shares.
    """
    body, head = template.body, template.head
    if body.joint_regressor is None or (template.expressive_head and head.joint_regressor is None):
        raise ValueError(f"The template '{template.name}' regresses joints but has no joint regressor.")
    out: dict[str, Tensor] = {}

    def regress(name: str, rows: Tensor, model: LinearModel, tables: tuple[str, ...]) -> None:
        used = (rows != 0).any(0)  # regressors are sparse
        for table in tables:
            value = model.v_template if table == "template" else getattr(model, table)
            flat = rows[:, used] @ value[used].double().flatten(1)
            out[f"{name}_{table}"] = flat.reshape(len(rows), *value.shape[1:]).to(value.dtype)

    regressor = body.joint_regressor.double()
    parts = regressor.repeat(4, 1, 1)
    everything = torch.zeros(4, body.num_vertices, dtype=torch.float64)
    for side in range(2):
        everything[side, template.hand_vertex_ids[side]] = 1
    ids = template.head_vertex_ids
    if template.expressive_head:
        everything[3, ids] = template.head_blend.double()
    if bool((everything[:2].sum(0) * (1 + everything[3]) > 1).any()):
        raise ValueError("With regressed joints no vertex may belong to two hands, or to hand and head.")
    everything[2] = 1 - everything.sum(0)
    parts = parts * everything[:, None]
    regress("regressed", parts.flatten(0, 1), body, ("template", "shape_dirs", "expression_dirs"))
    out["regressed_hand_share"] = parts[:2].sum(2).to(body.v_template.dtype)
    if not template.expressive_head:
        return out

    rows = head.joint_regressor.double()
    regress("head_regressed", rows, head, ("template", "shape_dirs", "expression_dirs"))
    over = parts[3][:, ids]
    out["regressed_head_share"] = over.sum(1).to(body.v_template.dtype)
    touched = (over != 0).any(1).nonzero()[:, 0]
    out["head_sums_rows"] = touched
    weights = head.weights[:, [HEAD_JAW, HEAD_LEFT_EYE, HEAD_RIGHT_EYE]].double().T
    weighted = torch.cat([over[touched][None], over[touched] * weights[:, None]])
    out["head_sums_weights"] = weighted[1:].sum(2).to(head.v_template.dtype)
    sums = weighted.flatten(0, 1)
    regress("head_sums", sums, head, ("template", "shape_dirs", "expression_dirs", "pose_dirs"))
    lids = template.eyelid_dirs
    flat = over[touched] @ lids.double().reshape(lids.shape[0], -1)
    out["head_sums_eyelid_dirs"] = flat.reshape(len(touched), *lids.shape[1:]).to(lids.dtype)
    return out


def _hand_shares(template: Template) -> tuple[Tensor, Tensor]:
    """How much of ``Identity.hand_scale`` each vertex (2, V) and each joint (2, J) of either hand takes.

    With regressed joints the listed vertices scale as one block, as in the release, and the joints follow
    them. Else a vertex takes its skinning weight to the hand, so that the wrist stays smooth, and the finger
    joints scale along.
    """
    body = template.body
    vertices = torch.zeros(2, body.num_vertices)
    joints = torch.zeros(2, body.num_joints)
    for side, name in enumerate(WRISTS):
        if template.regress_joints:
            vertices[side, template.hand_vertex_ids[side]] = 1
            continue
        wrist = template.joint(name)
        hand = {wrist}
        for joint, parent in enumerate(body.parents.tolist()):
            if parent in hand:
                hand.add(joint)
                joints[side, joint] = 1
        vertices[side] = body.weights[:, sorted(hand)].sum(1)
    return vertices, joints


def _tree_levels(parents: list[int]) -> list[tuple[list[int], list[int]]]:
    """Joints grouped by depth, root left out: [(children, their parents), ...]."""
    depth = [0] * len(parents)
    for joint in range(1, len(parents)):
        depth[joint] = depth[parents[joint]] + 1
    levels = []
    for level in range(1, max(depth) + 1):
        children = [j for j in range(len(parents)) if depth[j] == level]
        levels.append((children, [parents[j] for j in children]))
    return levels
