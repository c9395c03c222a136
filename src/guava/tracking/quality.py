"""How well the fit agrees with what was detected, and what it could not know."""

from __future__ import annotations

import torch
from torch import Tensor

from guava.body import EHM, Identity, Pose, Template
from guava.camera import Camera
from guava.tracking.fit.body import BodyFit
from guava.tracking.fit.face import FACE_LAYOUTS, FaceObservation, face_size
from guava.tracking.observations import Observations
from guava.tracking.sequence import FitQuality

_CHUNK = 64
POOR_FACE = 2.5
"""Face errors above this, in percent of the outer-eye distance, are worth a sentence."""


def landmark_pixels(
    template: Template, camera: Camera, identity: Identity, pose: Pose, embedding: str
) -> Tensor:
    """(T, L, 2) pixels of a landmark set on the posed mesh."""
    table = template.landmarks[embedding]
    corners = template.faces[table.faces]
    ids, inverse = torch.unique(corners, return_inverse=True)
    model = EHM(template, ids)
    out = []
    with torch.no_grad():
        for first in range(0, pose.joints.shape[0], _CHUNK):
            vertices = model(identity, pose[first : first + _CHUNK]).vertices
            points = (vertices[:, inverse] * table.barycentrics[..., None]).sum(2)
            out.append(camera.project(points)[0])
    return torch.cat(out)


def measure(
    template: Template,
    camera: Camera,
    observations: Observations,
    fit: BodyFit,
    masks: Tensor | None,
    notes: list[str],
) -> FitQuality:
    """Compare the fitted template with the detections.

    Args:
        template, camera: Of the fit.
        observations: What was detected.
        fit: The result.
        masks: (T, S, S) uint8 or None.
        notes: What is known already; more is added.
    """
    face, body = observations.face, observations.body
    to_512 = 512 / camera.width
    error = _face_error(template, camera, face, fit)
    hand = (fit.hand_points - body.hand_points).norm(dim=-1) * to_512
    hand = _mean(hand, body.hand_confidence > 0)
    points = _mean((fit.body_points - body.points).norm(dim=-1) * to_512, body.confidence > 0.5)
    overlap = torch.full((len(observations.valid),), torch.nan)
    if masks is not None:
        overlap = _mask_overlap(template, camera, fit, masks, observations.valid)
    poor = int((error > POOR_FACE).sum())
    if poor:
        where = "" if len(error) == 1 else f" in {poor} frames"
        notes = [
            *notes,
            f"The template's face fits poorly{where}: check the result (is it a human face in view?).",
        ]
    return FitQuality(
        error.float(), hand.float(), points.float(), overlap, tuple(notes + _notes(observations))
    )


def _mean(values: Tensor, which: Tensor) -> Tensor:
    total = (values * which).sum(-1) / which.sum(-1).clamp(min=1)
    return torch.where(which.any(-1), total, torch.nan)


def _face_error(template: Template, camera: Camera, face: FaceObservation, fit: BodyFit) -> Tensor:
    layout = FACE_LAYOUTS[face.layout]
    pixels = landmark_pixels(template, camera, fit.identity, fit.pose, layout.embedding)
    use = face.confidence > 0
    use[:, list(layout.right_iris + layout.left_iris)] = False
    use &= template.landmarks[layout.embedding].weights > 0
    return _mean((pixels - face.points).norm(dim=-1), use) / face_size(face) * 100


def _mask_overlap(template: Template, camera: Camera, fit: BodyFit, masks: Tensor, valid: Tensor) -> Tensor:
    from guava.rendering.mesh import rasterize_mesh

    model = EHM(template)
    out = torch.full((len(valid),), torch.nan)
    with torch.no_grad():
        for t in valid.nonzero()[:, 0].tolist():
            vertices = model(fit.identity, fit.pose[t : t + 1]).vertices[0]
            mesh = rasterize_mesh(vertices, template.faces, camera).mask
            person = masks[t] > 127
            out[t] = (mesh & person).sum() / (mesh | person).sum().clamp(min=1)
    return out


def _notes(observations: Observations) -> list[str]:
    notes = []
    body, valid = observations.body, observations.valid
    still = len(valid) == 1
    count = max(int(valid.sum()), 1)

    def share(seen: Tensor, missing: str, where: str) -> None:
        absent = int((valid & ~seen).sum())
        if absent == 0:
            return
        notes.append(
            missing + "." if still or absent == count else f"{missing} {where} {absent} of {count} frames."
        )

    share(observations.face.seen, "The face was not seen: expression and gaze are neutral", "in")
    for side, name in enumerate(("left", "right")):
        share(
            (body.hand_confidence[:, side] > 0).any(1),
            f"The {name} hand was not seen: its pose is a guess",
            "in",
        )
    hips = [body.joints.index(n) for n in ("left_hip", "right_hip")]
    share(
        (body.confidence[:, hips] > 0).all(1), "The hips are outside the picture: torso lean is a guess", "in"
    )
    return notes
