"""Pictures that show how the template was fitted."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from guava.body import EHM, Identity, Pose, Template, template_for
from guava.camera import Camera
from guava.rendering.mesh import shade_mesh
from guava.tracking import TrackedSequence

_PART_COLORS = {
    "face": (0.98, 0.80, 0.65),
    "scalp": (0.75, 0.62, 0.85),
    "neck": (0.95, 0.72, 0.55),
    "torso": (0.45, 0.70, 0.95),
    "left_arm": (0.45, 0.90, 0.55),
    "right_arm": (0.98, 0.62, 0.40),
    "left_hand": (0.20, 0.75, 0.35),
    "right_hand": (0.95, 0.40, 0.20),
}


@lru_cache(maxsize=2)
def _model(template_hash: str) -> tuple[Template, EHM, torch.Tensor]:
    template = template_for(template_hash, what="The fitted body")
    other = (0.80, 0.80, 0.80)
    palette = torch.tensor([_PART_COLORS.get(name, other) for name in template.part_names])
    return template, EHM(template), palette[template.face_parts]


def mesh_over(
    pixels: np.ndarray,
    identity: Identity,
    pose: Pose,
    camera: Camera,
    template_hash: str,
    strength: float = 0.55,
) -> np.ndarray:
    """The posed template over a picture.

    Args:
        pixels: (H, W, 3) uint8.
        identity, pose: B = 1.
        camera: The picture's camera.
        template_hash: Whose parameters these are; that template must be installed.
        strength: Opacity of the mesh.

    Returns:
        (H, W, 3) uint8.
    """
    template, ehm, colors = _model(template_hash)
    with torch.no_grad():
        vertices = ehm(identity, pose).vertices[0]
        drawn = shade_mesh(vertices, template.faces, camera, face_colors=colors, supersample=1).numpy()
    alpha = strength * drawn[..., 3:]
    mixed = pixels.astype(np.float32) / 255 * (1 - alpha) + drawn[..., :3] * alpha
    return np.clip(mixed * 255 + 0.5, 0, 255).astype(np.uint8)


def fit_overlay(pixels: np.ndarray, tracked: TrackedSequence, frame: int) -> np.ndarray:
    """The fitted template and the detector's points over frame ``frame``; frames without a person
    unchanged.

    Args:
        pixels: (H, W, 3) uint8, the frame at ``tracked.media``'s size.
    """
    if not bool(tracked.valid[frame]):
        return pixels
    height, width = pixels.shape[:2]
    image_from_crop = torch.linalg.inv(tracked.crop_from_image[frame].float())
    camera = tracked.camera[frame].through(image_from_crop, width, height)
    out = mesh_over(
        pixels, tracked.identity, tracked.pose[frame : frame + 1], camera, tracked.template_hash
    )
    for keypoints in tracked.keypoints.values():
        points = keypoints.points[frame] @ image_from_crop[:2, :2].T + image_from_crop[:2, 2]
        points = points[keypoints.confidence[frame] > 0.3].numpy()
        radius = 1 if len(points) > 60 else max(1, round(max(width, height) / 400))
        for x, y in points[np.isfinite(points).all(1)].astype(int):
            if 0 <= x < width and 0 <= y < height:
                out[max(0, y - radius) : y + radius, max(0, x - radius) : x + radius] = (255, 230, 0)
    return out
