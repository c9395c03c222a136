"""From pictures and videos to one person's detected points, frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch

from guava.errors import NoPersonError
from guava.photo import Photo, VideoFrame, VideoReader
from guava.photo.ahead import read_ahead
from guava.tracking.detection_cache import DetectionCache, SeenFrame
from guava.tracking.detectors.base import Detector, FrameDetections, PersonDetection
from guava.tracking.sequence import SourceMedia
from guava.tracking.shots import number_shots
from guava.tracking.stages import StageClock

_SAME_PERSON = 0.27  # largest appearance distance at which two shots show the same person
_MIN_CONFIDENCE = 0.3
_LOST = 15  # frames without the person after which the whole frame is searched again


@dataclass(frozen=True)
class DetectedClip:
    """One person's detections in every frame of a clip; frames are never dropped.

    Attributes:
        frames: T detections; ``person`` is None where the followed person is absent.
        shots: (T,) int64, counts up at every cut.
        fps: Nominal frames a second.
        timestamps: (T,) float64 seconds from the first frame.
        frame_indices: (T,) int64 numbers in the file.
        media: The file.
        detector: Name of the detector.
        notes: Sentences: who was followed, where the person is absent, what the file's reader noted.
    """

    frames: tuple[FrameDetections, ...]
    shots: np.ndarray
    fps: float
    timestamps: np.ndarray
    frame_indices: np.ndarray
    media: SourceMedia
    detector: str
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def present(self) -> np.ndarray:
        """(T,) bool: the followed person was found."""
        return np.array([frame.person is not None for frame in self.frames], dtype=bool)


def detect_photo(photo: Photo, detector: Detector) -> FrameDetections:
    """The largest person of a photo.

    Args:
        photo: The picture.
        detector: What finds people; its state is reset.

    Raises:
        NoPersonError: Nobody is there, or no face can be seen. One line that says what to do.
    """
    detector.reset()
    found = detector.detect(photo.pixels)
    if found.person is None:
        raise NoPersonError(
            f"No person was found in '{photo.name}'.",
            "Use a sharp picture of one person, face to the camera, head and shoulders or more.",
        )
    if found.person.face is None:
        raise NoPersonError(
            f"A body but no face was found in '{photo.name}'.",
            "Use a picture in which the face is visible and turned to the camera.",
        )
    return found


def photo_notes(photo: Photo, found: FrameDetections) -> tuple[str, ...]:
    """Sentences about what was detected in a photo and what was not seen."""
    notes = list(photo.notes)
    person = found.person
    if found.people > 1:
        notes.append(f"{found.people} people are in '{photo.name}'; the largest was used.")
    if person is None:
        return tuple(notes)
    missing = [
        name
        for name, points in (("left hand", person.left_hand), ("right hand", person.right_hand))
        if points is None or points.confidence.max() < _MIN_CONFIDENCE
    ]
    if person.body is None:
        notes.append("Only the face was found; the body and hands are guessed.")
    elif missing:
        notes.append(f"Not seen: {' and '.join(missing)} (the pose is guessed there).")
    return tuple(notes)


def detect_video(
    reader: VideoReader,
    detector: Detector,
    progress: Callable[[int, int], None] | None = None,
    *,
    keep_masks: bool = False,
    cache: DetectionCache | None = None,
    clock: StageClock | None = None,
) -> DetectedClip:
    """Follow one person through a clip: the largest of the first shot that shows one.

    Inside a shot the person is followed by position. After a cut, or when the person was lost for a while,
    the detector starts afresh, and whom it finds counts as the same person if face, hair and clothes have
    similar colours; otherwise the followed person is absent there.

    Args:
        reader: The video; read once, a few frames ahead and in a thread of its own if torch may use several.
        detector: What finds people; its state is reset.
        progress: Called with (frames done, frames in all, as the file states them).
        keep_masks: Keep each frame's mask (4 bytes a pixel).
        cache: Where detections are kept until the result is there; frames that are in it are not looked at
            again. Where an earlier job broke off the detector starts afresh, so that the next few frames may
            differ by a trace from an uninterrupted job's. Cannot keep masks.
        clock: Told how long decoding and detecting took.

    Raises:
        NoPersonError: The clip shows nobody, or nobody's face.
        InputError: The video cannot be read.
    """
    if keep_masks and cache is not None:
        raise ValueError("detections with masks cannot be kept")
    clock = clock or StageClock()
    known = [] if cache is None else cache.load()
    follower = _Follower(detector, keep_masks)
    detector.reset()
    models = _model_times(detector)
    frames = clock.each("detect/decode", number_shots(reader, lambda frame: frame.pixels))
    if torch.get_num_threads() > 1:
        frames = read_ahead(frames)
    with ExitStack() as at_the_end:
        if cache is not None:
            at_the_end.callback(cache.flush)
        at_the_end.callback(frames.close)
        for t, (frame, shot) in enumerate(frames):
            if t < len(known) and (known[t].index, known[t].shot) == (frame.index, shot):
                follower.recall(known[t])
            else:
                seen = follower.look_at(frame, shot, clock)
                if cache is not None:
                    cache.add(seen)
            if progress is not None:
                progress(t + 1, max(t + 1, len(reader)))
    for name, seconds in _model_times(detector).items():
        clock.add(f"detect/models/{name}", seconds - models.get(name, 0.0))
    detector.reset()
    if follower.reference_shot < 0:
        seen_any = any(f.found.person is not None for f in follower.frames)
        raise NoPersonError(
            f"{'A body but no face' if seen_any else 'No person'} was found in '{reader.name}'.",
            "Use a clip in which one person's face is visible and turned to the camera.",
        )
    shots = np.array([f.shot for f in follower.frames], dtype=np.int64)
    kept, others = _keep_followed(
        [f.found for f in follower.frames], [f.look for f in follower.frames], shots,
        follower.reference, follower.reference_shot,
    )  # fmt: skip
    media = SourceMedia(reader.name, reader.sha256, reader.width, reader.height)
    notes = (*reader.notes, *_clip_notes(kept, shots, others))
    times = np.array([f.time for f in follower.frames], dtype=np.float64)
    indices = np.array([f.index for f in follower.frames], dtype=np.int64)
    return DetectedClip(tuple(kept), shots, reader.fps, times, indices, media, detector.name, notes)


def _model_times(detector: Detector) -> dict[str, float]:
    """Seconds by model so far, of detectors that count them."""
    return dict(getattr(getattr(detector, "graphs", None), "seconds", {}))


class _Follower:
    """Follows one person from frame to frame.

    Attributes:
        frames: What was seen so far.
        reference: Looks of the followed person; reference_shot: the shot that they are from, or -1.
    """

    def __init__(self, detector: Detector, keep_masks: bool):
        self._detector, self._keep_masks = detector, keep_masks
        self.frames: list[SeenFrame] = []
        self.reference: list[np.ndarray] = []
        self.reference_shot = -1
        self._reference_box: np.ndarray | None = None
        self._box: np.ndarray | None = None
        self._lost, self._shot = 0, -1

    def recall(self, seen: SeenFrame) -> None:
        """Take a frame that was looked at before."""
        if self._begins_afresh(seen.shot):
            self._box, self._lost, self._shot = None, 0, seen.shot
        self._take(seen)

    def look_at(self, frame: VideoFrame, shot: int, clock: StageClock) -> SeenFrame:
        """Detect people in the next frame, and tell whether the followed person is there."""
        if self._begins_afresh(shot):
            self._detector.reset()
            self._box, self._lost, self._shot = None, 0, shot
        with clock("detect/models"):
            found = self._detector.detect(frame.pixels, self._box, mask=self._keep_masks)
        look = _appearance(frame.pixels, found.person)
        if (
            self._box is None and self.reference and found.person is not None
            and not _alike(look, self.reference)
        ):  # fmt: skip
            # Somebody larger may have come while the followed person stands where they stood.
            if found.people > 1:
                with clock("detect/models"):
                    other = self._detector.detect(frame.pixels, self._reference_box, mask=self._keep_masks)
                other_look = _appearance(frame.pixels, other.person)
                if _alike(other_look, self.reference):
                    found, look = other, other_look
            # After a cut the whole shot decides; within one, whoever else turns up is not followed.
            if self.frames and shot == self.frames[-1].shot and not _alike(look, self.reference):
                found, look = FrameDetections(None, found.people, None), None
        if not self._keep_masks:
            found = replace(found, mask=None)
        seen = SeenFrame(found, look, shot, frame.index, frame.time)
        self._take(seen)
        return seen

    def _begins_afresh(self, shot: int) -> bool:
        return shot != self._shot or self._lost >= _LOST

    def _take(self, seen: SeenFrame) -> None:
        person = seen.found.person
        if person is not None:
            self._box, self._lost = person.box, 0
        else:
            self._lost += 1
        if seen.look is not None and self.reference_shot in (-1, seen.shot):
            self.reference_shot, self._reference_box = seen.shot, person.box
            self.reference.append(seen.look)
        self.frames.append(seen)


def _keep_followed(frames, looks, shots, reference, reference_shot):
    """Blank the frames of shots that show somebody else. Returns the frames and those shots' numbers."""
    others = []
    out = list(frames)
    for shot in range(int(shots[-1]) + 1):
        members = np.nonzero(shots == shot)[0]
        seen = [looks[t] for t in members if looks[t] is not None]
        found = any(frames[t].person is not None for t in members)
        if shot == reference_shot or not found:
            continue
        # A shot without a single usable face cannot be told to be the same person's.
        far = np.median([_distance(look, reference) for look in seen]) if seen else np.inf
        rare = len(seen) < 0.2 * len(members)
        if far > _SAME_PERSON or rare:
            others.append(shot)
            for t in members:
                out[t] = FrameDetections(None, frames[t].people, None)
    return out, others


def _clip_notes(frames: list[FrameDetections], shots: np.ndarray, others: list[int]) -> list[str]:
    notes = []
    cuts = np.nonzero(np.diff(shots))[0] + 1
    if len(cuts):
        notes.append(f"{len(cuts)} cut(s), at frame {_listed(cuts)}.")
    crowd = np.array([frame.people for frame in frames])
    for first, last in _runs(crowd > 1, shots):
        if frames[first].person is None and frames[last].person is None:
            continue
        # Single frames in which a stray face was counted are not worth a sentence.
        if last - first >= 2:
            most = int(crowd[first : last + 1].max())
            notes.append(f"{most} people in frames {first}-{last}; the same one was followed.")
    present = np.array([frame.person is not None for frame in frames])
    for first, last in _runs(~present, shots):
        span = f"frame {first}" if first == last else f"frames {first}-{last}"
        why = "somebody else is shown" if shots[first] in others else "not found"
        notes.append(f"The followed person is absent in {span} ({why}).")
    return notes


def _listed(numbers: np.ndarray) -> str:
    return ", ".join(str(int(n)) for n in numbers)


def _runs(flags: np.ndarray, shots: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each run of True that stays in one shot."""
    runs: list[tuple[int, int]] = []
    for t in np.nonzero(flags)[0]:
        if runs and runs[-1][1] == t - 1 and shots[t] == shots[t - 1]:
            runs[-1] = (runs[-1][0], int(t))
        else:
            runs.append((int(t), int(t)))
    return runs


def _appearance(image: np.ndarray, person: PersonDetection | None) -> np.ndarray | None:
    """Colours of face, hair and clothes relative to the face's brightness, (3, 24); None without a face."""
    if person is None or person.face is None or person.face.confidence.max() < _MIN_CONFIDENCE:
        return None
    low, high = person.face.points.min(0), person.face.points.max(0)
    center, side = (low + high) / 2, max((high - low).max(), 2.0)
    regions = (
        (center - 0.30 * side, center + 0.30 * side),
        (center - (0.45 * side, 0.85 * side), center + (0.45 * side, -0.50 * side)),
        (center + (-0.8 * side, 0.9 * side), center + (0.8 * side, 1.9 * side)),
    )
    parts = []
    for first, last in regions:
        x0, y0 = np.maximum(np.floor(first), 0).astype(int)
        x1, y1 = np.maximum(np.ceil(last), 0).astype(int)
        parts.append(image[y0:y1:2, x0:x1:2].reshape(-1, 3).astype(np.float64) + 4.0)
    if len(parts[0]) < 8:
        return None
    light = np.median(parts[0].sum(1))
    rows = []
    for part in parts:
        if len(part) < 8:
            rows.append(np.full(24, np.nan))
            continue
        total = part.sum(1)
        values = (
            np.log2(total / light) / 5.0 + 0.7,  # about 3.5 stops darker to 1.5 brighter than the face
            part[:, 0] / total / 0.6 - 0.1,
            part[:, 2] / total / 0.6 - 0.1,
        )
        rows.append(np.concatenate([_soft_histogram(v) for v in values]))
    return np.stack(rows)


def _soft_histogram(values: np.ndarray, bins: int = 8) -> np.ndarray:
    values = np.clip(values, 0, 1) * (bins - 1)
    low = np.minimum(values.astype(int), bins - 2)
    part = values - low
    counts = np.bincount(low, 1 - part, minlength=bins) + np.bincount(low + 1, part, minlength=bins)
    return counts / len(values)


def _alike(look: np.ndarray | None, reference: list[np.ndarray]) -> bool:
    return look is not None and _distance(look, reference) <= _SAME_PERSON


def _distance(look: np.ndarray, reference: list[np.ndarray]) -> float:
    """0 for equal looks, 1 for unrelated; a low percentile: the reference has many poses, and strays."""
    some = reference[:: 1 + len(reference) // 32]
    return float(np.percentile([np.nanmean(np.abs(look - other).sum(1) / 6.0) for other in some], 20))
