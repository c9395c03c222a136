"""A render's truth in the form that tracking gives, so that reconstruction can be measured apart from
tracking."""

from __future__ import annotations

import torch
from torch import Tensor

from guava.body import Identity, Pose, Template
from guava.camera import Camera
from guava.tracking.sequence import FitQuality, SourceMedia, TrackedSequence


def tracked_truth(
    template: Template,
    identity: Identity,
    pose: Pose,
    camera: Camera,
    alpha: Tensor,
    *,
    picture_size: int | None = None,
) -> TrackedSequence:
    """One frame with true parameters and the true mask.

    Args:
        template: The template of the parameters.
        identity, pose: B = 1.
        camera: One square camera; it becomes the crop's.
        alpha: (S, S) float in [0, 1], coverage by the person, S = ``camera.width``.
        picture_size: Side of the square picture that was rendered of the same view; the crop's without it.
    """
    size = picture_size or camera.width
    zoom = camera.width / size
    unknown = torch.full((1,), torch.nan)
    return TrackedSequence(
        identity=identity,
        pose=pose,
        camera=Camera(camera.world_to_camera[None], camera.intrinsics[None], camera.width, camera.height),
        fps=0.0,
        timestamps=torch.zeros(1, dtype=torch.float64),
        frame_indices=torch.zeros(1, dtype=torch.int64),
        valid=torch.ones(1, dtype=torch.bool),
        shots=torch.zeros(1, dtype=torch.int64),
        crop_from_image=torch.diag(torch.tensor([zoom, zoom, 1.0]))[None],
        face_boxes=torch.full((1, 4), torch.nan),
        hand_boxes=torch.full((1, 2, 4), torch.nan),
        keypoints={},
        quality=FitQuality(unknown, torch.full((1, 2), torch.nan), unknown, unknown),
        media=SourceMedia("synthetic", "", size, size),
        template_hash=template.hash,
        template_name=template.name,
        expression_names=template.expression_names,
        detector="truth",
        masks=(alpha * 255).round().clamp(0, 255).to(torch.uint8)[None],
    )
