"""One person's body, frame by frame: the EHM forward pass for animation, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from guava import native
from guava.body.ehm import EHM, JAW, RIGHT_EYE, EHMOutput, Identity, Pose, pose_correctives
from guava.body.template import Template
from guava.native.animation import MAX_JOINTS, Body, BodyPose, call, pointer
from guava.rotation import axis_angle_to_matrix


class PersonEHM:
    """``EHM(template)(identity, pose)`` for one identity and one pose at a time.

    On the CPU the native library does kinematics and skinning, and only what a pose can move before them is
    computed anew: the head, or everything where the body has correctives or an expression of its own. Without
    the library, and on other devices, the plain EHM runs.

    Args:
        template: The body.
        identity: B = 1; shape costs nothing if it is folded into the template
            (:func:`guava.avatar.animate.with_identity`).
        device: Where the body is wanted.
        use_native: None: if the library loads and the device is the CPU.

    Raises:
        NativeUnavailable: ``use_native`` is true and the library cannot load.
    """

    def __init__(
        self,
        template: Template,
        identity: Identity,
        device: str | torch.device = "cpu",
        use_native: bool | None = None,
    ):
        self.device = torch.device(device)
        self.identity = identity.detach().to(self.device)
        whole = EHM(template).to(self.device)
        joints = template.body.num_joints
        if use_native is None:
            use_native = self.device.type == "cpu" and joints <= MAX_JOINTS and native.available()
        elif use_native:
            native.library()
        self._whole = None if use_native else whole
        if not use_native:
            return
        everything = template.body.num_expression > 0 or not template.expressive_head
        rows = torch.arange(template.body.num_vertices) if everything else template.head_vertex_ids
        self._rows = None if everything else rows
        self._moving = EHM(template, rows)
        with torch.no_grad():
            rest, _ = whole.rest(self.identity, Pose.rest(template))
        self._rest = rest.expand(1, -1, -1).contiguous()
        self._pose_dirs = whole.pose_dirs if whole.pose_dirs.shape[-1] else None
        self._parents = template.body.parents.to(torch.int32).contiguous()
        # As few columns as the vertex with the most joints needs; zeros fill up.
        influences = max(1, int((template.body.weights != 0).sum(1).max()))
        weights, indices = template.body.weights.float().topk(influences, 1)
        self._weights, self._indices = weights.contiguous(), indices.to(torch.uint8).contiguous()
        count = template.body.num_vertices
        self._out = (
            torch.empty(1, joints, 3), torch.empty(1, joints, 4, 4), torch.empty(1, count, 3),
            torch.empty(1, count, 4, 4),
        )

    @torch.no_grad()
    def __call__(self, pose: Pose) -> EHMOutput:
        """Pose the person.

        Args:
            pose: B = 1.

        Returns:
            B = 1. The next call may overwrite it.
        """
        if pose.joints.shape[0] != 1:
            raise ValueError(f"PersonEHM poses one frame at a time, got {pose.joints.shape[0]}.")
        pose = pose.to(self.device)
        if self._whole is not None:
            return self._whole(self.identity, pose)
        moved, joints = self._moving.rest(self.identity, pose)
        if self._rows is None:
            rest = moved
        else:
            rest = self._rest.index_copy_(1, self._rows, moved)
        rotations = axis_angle_to_matrix(pose.joints)
        if self._moving.template.expressive_head:
            # Jaw and eyes have moved the head already.
            rotations[:, JAW : RIGHT_EYE + 1] = torch.eye(3)
        skinned = rest
        if self._pose_dirs is not None:
            skinned = rest + pose_correctives(self._pose_dirs, rotations)
        posed_joints, joint_transforms, vertices, transforms = self._out
        self._skin(skinned, joints.contiguous(), rotations, pose.translation)
        return EHMOutput(vertices, posed_joints, transforms, joint_transforms, rest, joints)

    def _skin(self, rest: Tensor, joints: Tensor, rotations: Tensor, translation: Tensor) -> None:
        real, (count, joint_count) = torch.float32, (rest.shape[1], joints.shape[1])
        influences = self._weights.shape[1]
        body = Body(
            vertices=count, joints=joint_count, influences=influences,
            parents=pointer(self._parents, torch.int32, joint_count),
            rest_vertices=pointer(rest, real, 1, count, 3),
            rest_joints=pointer(joints, real, 1, joint_count, 3),
            rotations=pointer(rotations, real, 1, joint_count, 3, 3),
            indices=pointer(self._indices, torch.uint8, count, influences),
            weights=pointer(self._weights, real, count, influences),
            translation=tuple(translation[0].tolist()),
        )
        call("guava_pose_body", body, BodyPose(*(out.data_ptr() for out in self._out)))
