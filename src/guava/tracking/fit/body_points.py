"""The points that the body stage looks at, where the template's rest pose has them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from guava.body import EHM, Identity, Pose, Template
from guava.body.ehm import JAW, LEFT_EYE, RIGHT_EYE
from guava.body.skeleton import rest_joints
from guava.tracking.fit.chain import Skeleton, finger_joints
from guava.tracking.fit.face import FaceFit, FaceLandmarkModel
from guava.tracking.fit.offsets import body_offset, hand_offsets, offsets_known
from guava.tracking.priors import FINGERS, finger_joint_ids

SIDES = ("left", "right")
_FRAMES = 24  # in one forward pass of the mesh
_NO_OFFSET = ("left_eye_smplhf", "right_eye_smplhf", "jaw")


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
    for first in range(0, len(turns), _FRAMES):
        rows = slice(first, first + _FRAMES)
        pose = face_pose(template, turns[rows], face, rows)
        joints.append(model.rest(identity, pose)[1].double())
    return (
        torch.cat(joints),
        torch.einsum("jv,vcs->jcs", regressor, dirs),
        regressor @ growth,
    )


def face_pose(template: Template, joints: Tensor, face: FaceFit, rows: slice) -> Pose:
    """A pose with these joints (T, J, 3) and the fitted face's expression and lids."""
    rest = Pose.rest(template, len(joints))
    expression = face.expression[rows].float()
    if not template.expressive_head:
        return replace(rest, joints=joints, body_expression=expression)
    return replace(rest, joints=joints, expression=expression, eyelids=face.eyelids[rows].float())
