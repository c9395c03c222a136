"""A photo or a clip -> a tracked sequence (paper Sec. 3.1 and B.5)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from guava.body import Identity, Pose, Template, load_template
from guava.camera import Camera
from guava.errors import NoPersonError
from guava.tracking.config import TrackingConfig
from guava.tracking.crop import crop_image, person_extent, points_box, square_crop
from guava.tracking.detectors.base import Detector, FrameDetections
from guava.tracking.expression import expression_prior
from guava.tracking.fit.body import BodyFit, fit_body
from guava.tracking.fit.face import fit_face
from guava.tracking.fit.hand import fit_hand
from guava.tracking.observations import Observations, gather
from guava.tracking.quality import measure
from guava.tracking.sequence import SourceMedia, TrackedSequence

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


def frame_links(valid: Tensor, shots: Tensor) -> Tensor:
    """(T-1,) float64: 1 where two neighbouring frames are both valid and of one shot."""
    return (valid[1:] & valid[:-1] & (shots[1:] == shots[:-1])).double()


def fit_observations(
    observations: Observations, camera: Camera, shots: Tensor, template: Template, config: TrackingConfig
) -> BodyFit:
    """Both stages (Eq. 7, then Eq. 8) over one chunk of frames.

    Args:
        observations: Crop pixels.
        camera: Unbatched camera of the crop.
        shots: (T,) numbers that change at cuts.
        template: The template.
        config: Settings.
    """
    links = frame_links(observations.valid, shots) * config.smoothness
    face_prior = expression_prior(template, observations.face, config.face)
    face = fit_face(template, camera, observations.face, face_prior, links, config.face)
    person_depth = -face.translation[:, 2]
    hands = tuple(
        fit_hand(
            template,
            camera,
            name,
            observations.body.hand_points[:, side],
            observations.body.hand_confidence[:, side],
            None if observations.body.hand_depth is None else observations.body.hand_depth[:, side],
            person_depth,
            links,
            config.body,
        )
        for side, name in enumerate(("left", "right"))
    )
    fit, _ = fit_body(
        template, camera, observations.body, face, observations.face.seen, hands, links, config.body
    )
    return fit


def track_detections(
    detections: Sequence[FrameDetections],
    image_sizes: Sequence[tuple[int, int]],
    *,
    media: SourceMedia,
    detector: str,
    fps: float = 0.0,
    timestamps: Tensor | None = None,
    shots: Tensor | None = None,
    template: Template | None = None,
    config: TrackingConfig | None = None,
    notes: Sequence[str] = (),
    keep_masks: bool = True,
) -> TrackedSequence:
    """Fit the template to detections that were made earlier.

    Args:
        detections: One a frame; frames without a person stay in the sequence, flagged.
        image_sizes: (width, height) of every frame.
        media: Where the frames came from.
        detector: Name of the detector.
        fps: Frames a second, 0 for a still.
        timestamps: (T,) seconds; counted from ``fps`` if left out.
        shots: (T,) int64; one shot if left out.
        template: The open template if left out.
        config: Settings.
        notes: Put before the report's own notes.
        keep_masks: Keep the person masks (S x S bytes a frame).

    Raises:
        NoPersonError: No frame shows a person with a face.
    """
    template = template or load_template()
    config = config or TrackingConfig()
    frames = len(detections)
    shots = torch.zeros(frames, dtype=torch.int64) if shots is None else shots
    if not any(d.person is not None and d.person.face is not None for d in detections):
        if any(d.person is not None for d in detections):
            raise NoPersonError(
                f"No face was found in '{media.name}'.",
                "The face must be in view, not covered, not from behind.",
            )
        raise NoPersonError(
            f"No person was found in '{media.name}'.", "Use a picture of one person, face in view."
        )
    crops = _crops(detections, image_sizes, shots, config)
    observations = gather(detections, crops, image_sizes)
    camera = Camera.frontal(config.crop_size)
    with torch.no_grad():
        fit = fit_observations(observations, camera, shots, template, config)
        pose = _hold_invalid(fit.pose, observations.valid)
        fit = replace(fit, pose=pose)
        masks = _crop_masks(detections, crops, config.crop_size) if keep_masks else None
        quality = measure(template, camera, observations, fit, masks, list(notes))
    hands = [observations.keypoints[name] for name in ("left_hand", "right_hand")]
    face_points = observations.keypoints["face"]
    return TrackedSequence(
        identity=fit.identity,
        pose=pose,
        camera=Camera(
            camera.world_to_camera.expand(frames, 4, 4).clone(),
            camera.intrinsics.expand(frames, 3, 3).clone(),
            camera.width,
            camera.height,
        ),
        fps=fps,
        timestamps=_timestamps(frames, fps) if timestamps is None else timestamps.double(),
        frame_indices=torch.arange(frames),
        valid=observations.valid,
        shots=shots,
        crop_from_image=torch.from_numpy(crops).float(),
        face_boxes=points_box(face_points.points, face_points.confidence, 1.3).float(),
        hand_boxes=torch.stack([points_box(h.points, h.confidence, 1.3) for h in hands], 1).float(),
        keypoints={
            name: replace(k, points=k.points.float(), confidence=k.confidence.float(), depth=k.depth.float())
            for name, k in observations.keypoints.items()
        },
        quality=quality,
        media=media,
        template_hash=template.hash,
        expression_names=template.expression_names,
        detector=detector,
        masks=masks,
    )


def _timestamps(frames: int, fps: float) -> Tensor:
    return torch.arange(frames, dtype=torch.float64) / (fps if fps > 0 else 1.0)


def _crops(
    detections: Sequence[FrameDetections],
    sizes: Sequence[tuple[int, int]],
    shots: Tensor,
    config: TrackingConfig,
) -> np.ndarray:
    """(T, 3, 3): one crop for each shot, so that the crop itself does not shake."""
    crops = np.zeros((len(detections), 3, 3))
    known: np.ndarray | None = None
    pending: list[np.ndarray] = []
    for shot in torch.unique(shots).tolist():
        index = (shots == shot).nonzero()[:, 0].tolist()
        boxes = [
            person_extent(detections[t].person, *sizes[t]) for t in index if detections[t].person is not None
        ]
        if boxes:
            stacked = np.stack(boxes)
            # A few wild boxes must not spoil the crop of a long shot.
            box = np.concatenate([np.percentile(stacked[:, :2], 2, 0), np.percentile(stacked[:, 2:], 98, 0)])
            known = square_crop(box, config.crop_margin, config.crop_size)
            crops[index] = known
            if pending:
                crops[np.concatenate(pending)] = known
                pending = []
        elif known is not None:
            crops[index] = known
        else:
            pending.append(np.array(index))
    return crops


def _crop_masks(detections: Sequence[FrameDetections], crops: np.ndarray, size: int) -> Tensor | None:
    if not any(d.mask is not None for d in detections):
        return None
    masks = torch.zeros(len(detections), size, size, dtype=torch.uint8)
    for t, detection in enumerate(detections):
        if detection.mask is not None:
            sampled = crop_image(
                torch.from_numpy(np.asarray(detection.mask)), torch.from_numpy(crops[t]), size
            )
            masks[t] = (sampled * 255).round().clamp(0, 255).to(torch.uint8)
    return masks


def _hold_invalid(pose: Pose, valid: Tensor) -> Pose:
    """Invalid frames take the nearest valid frame's pose."""
    known = valid.nonzero()[:, 0]
    nearest = known[(torch.arange(len(valid))[:, None] - known[None]).abs().argmin(1)]
    return pose[nearest]


def track_image(
    photo: str | os.PathLike | np.ndarray | object,
    *,
    config: TrackingConfig | None = None,
    template: Template | None = None,
    detector: Detector | None = None,
) -> TrackedSequence:
    """Track the person in one photo.

    Args:
        photo: A path, a :class:`guava.photo.Photo`, or (H, W, 3) uint8 RGB.
        config: Settings.
        template: The open template if left out.
        detector: A detector to reuse; by default the one that ``config`` names is made.

    Returns:
        A sequence of length 1.

    Raises:
        NoPersonError: No person or no face was found.
        InputError: The picture cannot be used.
        MissingDependencyError: The detector is not installed.
    """
    from guava.photo import load_photo

    config = config or TrackingConfig()
    if isinstance(photo, (str, os.PathLike)):
        photo = load_photo(photo)
    if isinstance(photo, np.ndarray):
        pixels, media = photo, SourceMedia("picture", "", photo.shape[1], photo.shape[0])
    else:
        pixels = photo.pixels
        media = SourceMedia(photo.name, photo.sha256, pixels.shape[1], pixels.shape[0])
    if detector is None:
        from guava.tracking.detectors import create_detector

        detector = create_detector(config.detector)
    detector.reset()
    found = detector.detect(pixels)
    notes = []
    if found.people > 1:
        notes.append(f"{found.people} people are in the picture; the largest one was tracked.")
    return track_detections(
        [found],
        [(pixels.shape[1], pixels.shape[0])],
        media=media,
        detector=detector.name,
        template=template,
        config=config,
        notes=notes,
    )


__all__ = [
    "Identity",
    "Progress",
    "fit_observations",
    "frame_links",
    "track_detections",
    "track_image",
]
