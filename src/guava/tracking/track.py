"""A photo or a clip -> a tracked sequence (paper Sec. 3.1 and B.5)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from guava.body import Pose, Template, load_template
from guava.body.template import PLAIN_HEAD
from guava.camera import Camera
from guava.errors import NoPersonError
from guava.tracking.config import TrackingConfig
from guava.tracking.crop import crop_image, person_extent, points_box, square_crop
from guava.tracking.detectors.base import Detector, FrameDetections
from guava.tracking.expression import expression_prior, load_response
from guava.tracking.fit.body import BodyFit, fit_body
from guava.tracking.fit.face import fit_face
from guava.tracking.fit.hand import fit_hand
from guava.tracking.fit.offsets import offsets_known
from guava.tracking.lifting import load_networks
from guava.tracking.observations import Observations, gather, select_frames
from guava.tracking.quality import measure
from guava.tracking.sequence import SourceMedia, TrackedSequence
from guava.tracking.smoothness import frame_links
from guava.tracking.stages import StageClock

if TYPE_CHECKING:
    from guava.photo import Photo
    from guava.tracking.detection import DetectedClip

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


@dataclass(frozen=True)
class SharedIdentity:
    """What all chunks of a clip have in common.

    Attributes:
        head_shape: (S_head,) beta_f.
        body: The body stage's shared values (shape, dJ, hand size).
    """

    head_shape: Tensor
    body: Tensor


def fit_observations(
    observations: Observations,
    camera: Camera,
    links: Tensor,
    template: Template,
    config: TrackingConfig,
    identity: SharedIdentity | None = None,
    clock: StageClock | None = None,
) -> tuple[BodyFit, SharedIdentity]:
    """Both stages (Eq. 7, then Eq. 8) over frames that are solved together.

    Args:
        observations: Crop pixels.
        camera: Unbatched camera of the crop.
        links: (T-1,) smoothness weights of neighbouring frames.
        template: The template.
        config: Settings.
        identity: Known from other frames, then held fixed.
        clock: Told how long the stages took.
    """
    clock = clock or StageClock()
    with clock("fit/face"):
        face_prior = expression_prior(template, observations.face, config.face)
        face = fit_face(
            template,
            camera,
            observations.face,
            face_prior,
            links,
            config.face,
            None if identity is None else identity.head_shape,
        )
    person_depth = -face.translation[:, 2]
    body = observations.body
    with clock("fit/hands"):
        hands = tuple(
            fit_hand(
                template,
                camera,
                name,
                body.hand_points[:, side],
                body.hand_confidence[:, side],
                None if body.hand_depth is None else body.hand_depth[:, side],
                body.hand_depth_spread[:, side],
                person_depth,
                links,
                config.body,
            )
            for side, name in enumerate(("left", "right"))
        )
    with clock("fit/body"):
        fit, shared = fit_body(
            template,
            camera,
            body,
            face,
            observations.face.seen,
            hands,
            links,
            config.body,
            None if identity is None else identity.body,
        )
    return fit, SharedIdentity(face.shape, shared)


def fit_clip(
    observations: Observations,
    camera: Camera,
    links: Tensor,
    template: Template,
    config: TrackingConfig,
    progress: Progress | None = None,
    clock: StageClock | None = None,
) -> BodyFit:
    """Fit any number of frames in bounded memory.

    Only frames with a person are fitted. Short clips are solved at once. Of longer ones the identity is found
    first, from frames spread over the clip; then chunks of ``config.chunk`` frames are solved with it,
    overlapping by ``config.overlap``.

    Args:
        observations: All frames, T, at least one of them valid.
        camera: Unbatched camera of the crop.
        links: (T-1,) smoothness weights.
        template: The template.
        config: Settings.
        progress: Called with ("fit", frames done, frames in all).
        clock: Told how long the stages took.

    Returns:
        All T frames; the others have the pose of the nearest valid one, and points that mean nothing.
    """
    frames = len(observations.valid)
    clock = clock or StageClock()
    known = observations.valid.nonzero()[:, 0]
    # What no neighbour links is fitted as before: weights across a gap are 0 anyway.
    together = (known[1:] == known[:-1] + 1) if len(known) > 1 else torch.zeros(0, dtype=torch.bool)
    own_links = torch.where(together, links[known[:-1]], 0.0) if len(known) > 1 else links[:0]
    fit = _fit_valid(select_frames(observations, known), camera, own_links, template, config, progress, clock)
    nearest = _nearest(known, frames)
    return BodyFit(fit.identity, fit.pose[nearest], fit.hand_points[nearest], fit.body_points[nearest])


def _fit_valid(
    observations: Observations,
    camera: Camera,
    links: Tensor,
    template: Template,
    config: TrackingConfig,
    progress: Progress | None,
    clock: StageClock,
) -> BodyFit:
    """:func:`fit_clip` where every frame shows the person."""
    frames = len(observations.valid)
    if progress is not None:
        progress("fit", 0, frames)
    if frames <= config.identity_frames:
        fit, _ = fit_observations(observations, camera, links, template, config, clock=clock)
        if progress is not None:
            progress("fit", frames, frames)
        return fit
    chosen = _identity_frames(observations, config.identity_frames)
    with clock("fit/identity"):
        _, identity = fit_observations(
            select_frames(observations, chosen),
            camera,
            torch.zeros(len(chosen) - 1, dtype=torch.float64),
            template,
            config,
        )
    parts = []
    stride = max(1, config.chunk - config.overlap)
    for first in range(0, max(1, frames - config.overlap), stride):
        index = torch.arange(first, min(frames, first + config.chunk))
        fit, _ = fit_observations(
            select_frames(observations, index),
            camera,
            links[first : first + len(index) - 1],
            template,
            config,
            identity,
            clock,
        )
        # Of an overlap each side keeps the half that lies deeper inside its own chunk.
        low = 0 if first == 0 else config.overlap // 2
        last = first + config.chunk >= frames
        high = len(index) if last else len(index) - (config.overlap - config.overlap // 2)
        parts.append((fit, slice(low, high)))
        if progress is not None:
            progress("fit", first + high, frames)
    poses = [fit.pose[rows] for fit, rows in parts]
    pose = Pose(*(torch.cat([getattr(p, f.name) for p in poses]) for f in fields(Pose)))
    return BodyFit(
        parts[0][0].identity,
        pose,
        torch.cat([fit.hand_points[rows] for fit, rows in parts]),
        torch.cat([fit.body_points[rows] for fit, rows in parts]),
    )


def _nearest(known: Tensor, frames: int) -> Tensor:
    """(frames,) position of the nearest of the rising numbers ``known`` (n,); the earlier one of two."""
    every = torch.arange(frames)
    after = torch.searchsorted(known, every).clamp(max=len(known) - 1)
    before = (after - 1).clamp(min=0)
    return torch.where((every - known[before]).abs() <= (known[after] - every).abs(), before, after)


def _identity_frames(observations: Observations, count: int) -> Tensor:
    """Frames with a face, spread evenly over those that show the most."""
    body = observations.body
    seen = observations.face.seen & observations.valid
    shown = observations.face.confidence.mean(1) + body.confidence.mean(1) + body.hand_confidence.mean((1, 2))
    known = seen.nonzero()[:, 0]
    if len(known) <= count:
        return known
    # The best frame of each of ``count`` equal stretches.
    edges = torch.linspace(0, len(known), count + 1).round().long()
    return torch.stack(
        [known[a:b][shown[known[a:b]].argmax()] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    )


def track_detections(
    detections: Sequence[FrameDetections],
    image_sizes: Sequence[tuple[int, int]],
    *,
    media: SourceMedia,
    detector: str,
    fps: float = 0.0,
    timestamps: Tensor | None = None,
    frame_indices: Tensor | None = None,
    shots: Tensor | None = None,
    template: Template | None = None,
    config: TrackingConfig | None = None,
    notes: Sequence[str] = (),
    keep_masks: bool = True,
    progress: Progress | None = None,
    clock: StageClock | None = None,
) -> TrackedSequence:
    """Fit the template to detections that were made earlier.

    Args:
        detections: One a frame; frames without a person stay in the sequence, flagged.
        image_sizes: (width, height) of every frame.
        media: Where the frames came from.
        detector: Name of the detector.
        fps: Frames a second, 0 for a still.
        timestamps: (T,) seconds; counted from ``fps`` if left out.
        frame_indices: (T,) numbers in the source; counted from 0 if left out.
        shots: (T,) int64; one shot if left out.
        template: The open template if left out.
        config: Settings.
        notes: Put before the report's own notes.
        keep_masks: Keep the person masks (S x S bytes a frame).
        progress: Called as the fit goes on.
        clock: Told how long the stages took; the result holds what it knows then.

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
    clock = clock or StageClock()
    with clock("crops"):
        crops = _crops(detections, image_sizes, shots, config)
    # The networks know MediaPipe's errors; another detector's points mean something else to them. They see
    # the body, which is the same under either head.
    body_hash = load_template().hash if template.name == "open" + PLAIN_HEAD else template.hash
    lifting = load_networks(body_hash) if detector == "mediapipe" else None
    notes = [*notes, *_unmeasured(template, detector)]
    with clock("gather"):
        observations = gather(detections, crops, image_sizes, lifting)
    camera = Camera.frontal(config.crop_size)
    with torch.no_grad():
        stamps = _timestamps(frames, fps) if timestamps is None else timestamps.double()
        links = frame_links(observations.valid, shots, stamps) * config.smoothness
        with clock("fit"):
            fit = fit_clip(observations, camera, links, template, config, progress, clock)
        with clock("masks"):
            masks = _crop_masks(detections, crops, config.crop_size) if keep_masks else None
        with clock("quality"):
            quality = measure(template, camera, observations, fit, masks, list(notes))
    hands = [observations.keypoints[name] for name in ("left_hand", "right_hand")]
    face_points = observations.keypoints["face"]
    return TrackedSequence(
        identity=fit.identity,
        pose=fit.pose,
        camera=Camera(
            camera.world_to_camera.expand(frames, 4, 4).clone(),
            camera.intrinsics.expand(frames, 3, 3).clone(),
            camera.width,
            camera.height,
        ),
        fps=fps,
        timestamps=stamps,
        frame_indices=torch.arange(frames) if frame_indices is None else frame_indices.long(),
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
        template_name=template.name,
        expression_names=template.expression_names,
        detector=detector,
        masks=masks,
        stages=clock.record(),
    )


def _unmeasured(template: Template, detector: str) -> list[str]:
    """What was measured on renders of the open template, and this fit does without."""
    missing = []
    if detector == "mediapipe" and load_response(template.hash, "mediapipe478") is None:
        missing.append("how face landmarks answer to expressions")
    if not offsets_known(template):
        missing.append("where joints lie under the detector's points")
        missing += ["depth of arms and hands"] * (detector == "mediapipe")
    if not missing:
        return []
    told = ", ".join(missing[:-1]) + " and " * (len(missing) > 1) + missing[-1]
    return [f"Measured for the open template only, and not used with '{template.name}': {told}."]


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


def _close(detector: Detector) -> None:
    """Free a detector that was made here; its graphs hold hundreds of megabytes."""
    close = getattr(detector, "close", None)
    if close is not None:
        close()


def track_image(
    photo: str | os.PathLike | np.ndarray | Photo,
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
    from guava.photo import Photo, load_photo
    from guava.tracking.detection import detect_photo, photo_notes
    from guava.tracking.detectors import create_detector

    config = config or TrackingConfig()
    if isinstance(photo, (str, os.PathLike)):
        photo = load_photo(photo)
    elif isinstance(photo, np.ndarray):
        photo = Photo(photo, None, "", "picture")
    clock = StageClock()
    own = detector is None
    if own:
        with clock("load detector"):
            detector = create_detector(config.detector)
    try:
        with clock("detect"):
            found = detect_photo(photo, detector)
    finally:
        if own:
            _close(detector)
    return track_detections(
        [found],
        [(photo.width, photo.height)],
        media=SourceMedia(photo.name, photo.sha256, photo.width, photo.height),
        detector=detector.name,
        template=template,
        config=config,
        notes=[n for n in photo_notes(photo, found) if not n.startswith("Not seen")],
        clock=clock,
    )


def track_video(
    video: str | os.PathLike | DetectedClip,
    *,
    config: TrackingConfig | None = None,
    template: Template | None = None,
    detector: Detector | None = None,
    progress: Progress | None = None,
    cache: str | os.PathLike | None = None,
) -> TrackedSequence:
    """Track one person through a clip: the largest of the first shot that shows one.

    Args:
        video: A path, or what :func:`guava.tracking.detection.detect_video` found in one (to fit again with
            other settings without detecting again).
        config: Settings.
        template: The open template if left out.
        detector: A detector to reuse; by default the one that ``config`` names is made.
        progress: Called with ("detect" or "fit", frames done, frames in all).
        cache: A folder in which detections are kept, so that the same call goes on where it was interrupted.
            It is the caller's to delete once the result is safe
            (:func:`guava.tracking.detection_cache.remove_detections`).

    Returns:
        One entry for every frame of the clip; ``valid`` is False where the person is absent.

    Raises:
        NoPersonError: No person or no face was found in any frame.
        InputError: The video cannot be used.
        MissingDependencyError: The detector is not installed.
    """
    from guava.photo import VideoReader
    from guava.tracking.detection import DetectedClip, detect_video
    from guava.tracking.detection_cache import DetectionCache
    from guava.tracking.detectors import create_detector

    config = config or TrackingConfig()
    clock = StageClock()
    if isinstance(video, DetectedClip):
        clip = video
    else:
        own = detector is None
        if own:
            detector = create_detector(config.detector)
        report = None if progress is None else lambda done, total: progress("detect", done, total)
        try:
            with clock("detect"):
                reader = VideoReader(video)
                kept = None
                if cache is not None and not config.keep_clip_masks:
                    made_by = f"{detector.name} {getattr(detector, 'version', '')}"
                    kept = DetectionCache(cache, reader.sha256, made_by)
                clip = detect_video(
                    reader, detector, report, keep_masks=config.keep_clip_masks, cache=kept, clock=clock
                )
        finally:
            if own:
                _close(detector)
    return track_detections(
        clip.frames,
        [(clip.media.width, clip.media.height)] * len(clip),
        media=clip.media,
        detector=clip.detector,
        fps=clip.fps,
        timestamps=torch.from_numpy(clip.timestamps),
        frame_indices=torch.from_numpy(clip.frame_indices),
        shots=torch.from_numpy(clip.shots),
        template=template,
        config=config,
        notes=clip.notes,
        keep_masks=config.keep_clip_masks,
        progress=progress,
        clock=clock,
    )
