"""MediaPipe 0.10.21, the last release whose wheel carries its models; nothing is ever downloaded.

The pose is read on a crop round one person, face mesh and hands on enlarged crops, since each of them shrinks
its input to about 200 pixels before it looks for anything. In a clip, models that do not need each other's
results run beside each other; what they find does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from guava.tracking.detectors.base import FrameDetections, PersonDetection, PointSet
from guava.tracking.detectors.mediapipe_graphs import FACE_SCORE, POSE_HANDS, POSE_HEAD, Graphs

# Indices of "mediapipe33".
_NOSE, _EYES, _EARS = 0, (2, 5), (7, 8)
_SHOULDERS, _WRISTS, _HIPS = (11, 12), (15, 16), (23, 24)
_LEGS = slice(25, 33)  # knees, ankles, heels, toes
_KNUCKLES = ((17, 19), (18, 20))  # pinky and index finger, left then right

_CLEAR_LEG = 0.5  # knees less sure than this were not found by the wider look
_POSE_ALONE_SCORE = 0.6  # a body without any face must be surer, or coats on hangers become people
_WRIST_LIMIT = 0.45  # of the body scale; a hand farther from the pose's wrist belongs to somebody else
_OUTSIDE = 0.25  # factor on the confidence of body points outside the picture, which are extrapolated
_PATIENCE, _RETRY = 3, 5  # what stayed hidden for 3 frames of a clip is searched for in every 5th
_MASK_EVERY = 4  # frames of a clip from one segmentation to the next where only the person's box needs it


@dataclass(frozen=True)
class _Crop:
    """A rectangle of the picture, resampled for a model. ``origin`` and ``size`` (2,) in image pixels."""

    pixels: np.ndarray
    origin: np.ndarray
    size: np.ndarray

    def to_image(self, landmarks) -> tuple[np.ndarray, np.ndarray]:
        """MediaPipe's normalised landmarks -> points (K, 2) and depth (K,) in image pixels."""
        raw = np.array([(p.x, p.y, p.z) for p in landmarks], dtype=np.float64)
        # Every solution scales z like x.
        return self.origin + raw[:, :2] * self.size, raw[:, 2] * self.size[0]


@dataclass(frozen=True)
class _Face:
    """A detected face: box (4,) and score."""

    box: np.ndarray
    score: float

    @property
    def center(self) -> np.ndarray:
        return (self.box[:2] + self.box[2:]) / 2

    @property
    def side(self) -> float:
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))


@dataclass(frozen=True)
class _Hand:
    """A candidate for one of the two hands; ``side`` 0 is the person's left, None unknown."""

    points: np.ndarray
    depth: np.ndarray
    world: np.ndarray | None
    side: int | None
    score: float


@dataclass(frozen=True)
class _Body:
    """A pose; and the crop and MediaPipe's own landmarks in it, for what else follows from them."""

    points: np.ndarray
    depth: np.ndarray
    visibility: np.ndarray
    world: np.ndarray
    crop: _Crop
    landmarks: Any


@dataclass
class _ClipState:
    """What is remembered from frame to frame of a clip.

    Attributes:
        face: (4,) box of the followed face.
        region, face_region, hand_regions: Boxes of the crops, which stay where they are while they fit.
        hand_misses, weak_misses, leg_misses: Searches in vain, in a row: for hands, for hands
            by the pose alone, legs.
        growth: (4,) by how much the mask widened the person's box when it was made last.
        frames: Since the last segmentation.
    """

    face: np.ndarray | None = None
    region: np.ndarray | None = None
    face_region: np.ndarray | None = None
    hand_regions: list[np.ndarray | None] = field(default_factory=lambda: [None, None])
    hand_misses: list[int] = field(default_factory=lambda: [0, 0])
    weak_misses: list[int] = field(default_factory=lambda: [0, 0])
    leg_misses: int = 0
    growth: np.ndarray | None = None
    frames: int = 0


class MediaPipeDetector:
    """Face mesh with irises (478), pose (33), both hands (21 each) and a person mask.

    Without ``near`` a frame is looked at with the still-image graphs. With ``near`` it belongs to a clip and
    the tracking graphs are used, which derive each region from the previous frame's points and so jitter
    less; ``reset`` makes them forget.

    Confidences: body points carry MediaPipe's visibility, times 0.25 outside the picture; face points the
    score of the face, less on the side that is turned away; hand points the certainty of the hand. Points of
    face and hands outside the picture have 0.

    One detector must not be used by two threads at once.

    Args:
        mask: Whether to segment the person.
        threads: How many models may run at once; torch's number of threads if left out.

    Raises:
        MissingDependencyError: mediapipe is not installed, or has no build for this Python.
        GuavaError: mediapipe is installed but cannot be used (libGL, numpy 2, a release without models).
    """

    name = "mediapipe"

    def __init__(self, mask: bool = True, threads: int | None = None):
        self.graphs = Graphs()
        self.version = f"{self.graphs.version}{'' if mask else ' without mask'}"
        self._mask = mask
        self._threads = torch.get_num_threads() if threads is None else threads
        self._pool: ThreadPoolExecutor | None = None
        self._state = _ClipState()

    def reset(self) -> None:
        """Forget the previous frames."""
        self._state = _ClipState()
        self.graphs.restart_clips()

    def close(self) -> None:
        """Free graphs and threads; the detector can be used again."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self.graphs.close()

    def detect(
        self, image: np.ndarray, near: np.ndarray | None = None, *, mask: bool = True
    ) -> FrameDetections:
        """See :class:`guava.tracking.detectors.base.Detector`."""
        image = np.ascontiguousarray(image)
        clip = near is not None
        # The crop for the pose nearly always stays the same; should it move, its graph starts anew anyway.
        held, ahead = self._state.region, None
        if clip and held is not None:
            ahead = self._later(lambda: self._landmarks(image, held, [], "pose/clip"))
        faces = self._faces(image, thorough=not clip)
        face = self._choose(faces, near)
        others = [f for f in faces if f is not face]
        body = self._body(image, face, others, near, clip, ahead)
        if face is None and body is not None:
            face = self._face_of_body(image, body)
        if clip:
            held_hands = self._held_hands(image, face, body)
            mesh, *seen = self._together([lambda: self._mesh(image, face, body, clip), *held_hands])
            candidates = [hand for hands in seen for hand in hands]
        else:
            mesh, candidates = self._mesh(image, face, body, clip), []
        if mesh is None and body is None:
            return FrameDetections(None, len(faces), None)
        if mesh is None and face is not None and face.score < FACE_SCORE:
            face = None
        hands = self._hands(image, face, body, clip, candidates)
        person = _assemble(image, face, body, mesh, hands)
        found = None
        if self._mask:
            found, box = self._masked(image, person, clip, mask)
            person = replace(person, box=box)
        if face is not None:
            # Kept while the face is turned away, so that nobody else's in the box is taken for it.
            self._state.face = face.box
        return FrameDetections(person, max(len(faces), 1), found)

    # Models beside each other

    def _later(self, job: Callable[[], Any]) -> Future | None:
        """Begin a job in another thread; None if there is only one."""
        if self._threads < 2:
            return None
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads - 1, "guava-detector")
        return self._pool.submit(job)

    def _together(self, jobs: list[Callable[[], Any]]) -> list[Any]:
        """The results of jobs that use different graphs."""
        futures = [self._later(job) for job in jobs[1:]]
        results = [jobs[0]()]
        for job, future in zip(jobs[1:], futures, strict=True):
            # What no thread has begun yet is done here.
            results.append(job() if future is None or future.cancel() else future.result())
        return results

    # People

    def _faces(self, image: np.ndarray, thorough: bool) -> list[_Face]:
        """All faces, without doubles. ``thorough`` also looks with the close-range model and in quarters."""
        height, width = image.shape[:2]
        whole = np.array([0.0, 0.0, width, height])
        found = self._faces_in(image, whole, "faces")
        if thorough:
            found += self._faces_in(image, whole, "close_faces")
            if not found and max(width, height) >= 600:
                for y in (0.0, 0.4):
                    for x in (0.0, 0.4):
                        quarter = np.array([x * width, y * height, (x + 0.6) * width, (y + 0.6) * height])
                        found += self._faces_in(image, quarter, "faces")
        found.sort(key=lambda f: -f.score)
        kept: list[_Face] = []
        for face in found:
            apart = [np.abs(face.center - k.center).max() > 0.5 * max(face.side, k.side) for k in kept]
            if all(apart):
                kept.append(face)
        return kept

    def _faces_in(self, image: np.ndarray, region: np.ndarray, graph: str) -> list[_Face]:
        crop = _crop(image, region, 640)
        faces = []
        for found in self.graphs.run(graph, crop.pixels).detections or ():
            box = found.location_data.relative_bounding_box
            corner = crop.origin + np.array([box.xmin, box.ymin]) * crop.size
            size = np.array([box.width, box.height]) * crop.size
            faces.append(_Face(np.concatenate([corner, corner + size]), float(found.score[0])))
        return faces

    def _choose(self, faces: list[_Face], near: np.ndarray | None) -> _Face | None:
        """The face to follow: the one of the previous frame, or in the box, or else the largest."""
        if not faces:
            return None
        if near is None:
            return max(faces, key=lambda f: f.side)
        if self._state.face is not None:
            before = _Face(self._state.face, 1.0)
            face = min(faces, key=lambda f: np.linalg.norm(f.center - before.center))
            close = np.linalg.norm(face.center - before.center) < before.side
            return face if close and 0.5 < face.side / before.side < 2.0 else None
        margin = 0.1 * (near[2:] - near[:2])
        inside = [
            f for f in faces if np.all(f.center > near[:2] - margin) and np.all(f.center < near[2:] + margin)
        ]
        return max(inside, key=lambda f: f.side) if inside else None

    # Body

    def _body(
        self, image, face: _Face | None, others: list[_Face], near, clip: bool, ahead: Future | None
    ) -> _Body | None:
        height, width = image.shape[:2]
        whole = np.array([0.0, 0.0, width, height])
        if face is not None:
            x, y, s = *face.center, face.side
            wanted = _clip_box(np.array([x - 3.6 * s, y - 2.0 * s, x + 3.6 * s, y + 6.5 * s]), whole)
        elif near is not None:
            margin = 0.15 * (near[2:] - near[:2])
            wanted = _clip_box(np.concatenate([near[:2] - margin, near[2:] + margin]), whole)
        else:
            wanted = whole
        if not others and _area(wanted) > 0.45 * _area(whole):
            wanted = whole
        if clip:
            # The tracking graph remembers positions in the crop, so the crop stays where it is while it
            # still fits.
            region = self._state.region
            if region is None or _iou(region, wanted) < 0.6:
                if ahead is not None:
                    ahead.result()
                if region is not None:
                    self.graphs.restart("pose/clip")
                self._state.region, ahead = wanted, None
            wanted = self._state.region
        if ahead is None:
            body = self._pose(image, wanted, [], "pose/clip" if clip else "pose/still", face)
        else:
            body = _as_body(*ahead.result(), face)
        if body is None and others:
            body = self._pose(image, wanted, others, "pose/still", face)
        if body is None and face is not None:
            x, y, s = *face.center, face.side
            tight = _clip_box(np.array([x - 2.0 * s, y - 1.5 * s, x + 2.0 * s, y + 4.0 * s]), whole)
            body = self._pose(image, tight, others, "pose/still", face)
            if body is None and not clip:
                # Paintings and costumes: a weak pose counts if its head is where the face is.
                body = self._pose(image, wanted, others, "pose/weak", face)
        if body is not None and face is not None and self._goes_on_below(body, face, wanted, height):
            misses = self._state.leg_misses
            self._state.leg_misses += 1
            if not clip or misses <= _PATIENCE or misses % _RETRY == 0:
                body = self._with_legs(image, body, face, others, whole)
                if (body.visibility[_LEGS][:2] >= _CLEAR_LEG).any():
                    self._state.leg_misses = 0
        return body

    def _goes_on_below(self, body: _Body, face: _Face, region: np.ndarray, height: int) -> bool:
        """Whether the picture shows more of the legs than the region in which the upper body was read."""
        if region[3] > height - 0.5 * face.side or (body.visibility[list(_HIPS)] < 0.5).any():
            return False
        return body.points[_LEGS][:2, 1].min() < height and body.points[list(_HIPS), 1].max() < region[3]

    def _with_legs(self, image, body: _Body, face: _Face, others: list[_Face], whole: np.ndarray) -> _Body:
        """The body with knees, ankles and feet of a wider look; what is above was read closer by."""
        x, y, s = *face.center, face.side
        wide = _clip_box(np.array([x - 5.5 * s, y - 2.0 * s, x + 5.5 * s, y + 12.0 * s]), whole)
        hips = list(_HIPS)
        torso = np.linalg.norm(body.points[list(_SHOULDERS)].mean(0) - body.points[hips].mean(0))
        for hide in [[], others] if others else [[]]:
            wider = self._pose(image, wide, hide, "legs/still", face)
            if wider is None:
                continue
            if np.linalg.norm(wider.points[hips].mean(0) - body.points[hips].mean(0)) < 0.35 * torso:
                merged = {}
                for name in ("points", "depth", "visibility", "world"):
                    merged[name] = getattr(body, name).copy()
                    merged[name][_LEGS] = getattr(wider, name)[_LEGS]
                return replace(body, **merged)
        return body

    def _pose(self, image, region, hide: list[_Face], graph: str, face: _Face | None) -> _Body | None:
        """Pose in a region; None if there is none or it is another person's. ``hide`` blanks other faces."""
        return _as_body(*self._landmarks(image, region, hide, graph), face)

    def _landmarks(self, image, region, hide: list[_Face], graph: str) -> tuple[_Crop, Any]:
        """The crop of a region and MediaPipe's result in it."""
        crop = _crop(image, region, 640)
        if hide:
            pixels = crop.pixels.copy()
            for other in hide:
                scale = np.array(pixels.shape[1::-1]) / crop.size
                x0, y0 = np.maximum((other.box[:2] - crop.origin) * scale, 0).astype(int)
                x1, y1 = np.maximum((other.box[2:] - crop.origin) * scale, 0).astype(int)
                pixels[y0:y1, x0:x1] = 127
            crop = replace(crop, pixels=pixels)
        return crop, self.graphs.run(graph, crop.pixels)

    def _face_of_body(self, image, body: _Body) -> _Face | None:
        """Look for the face where the pose has its head."""
        if body.visibility[_NOSE] < 0.5:
            return None
        spread = np.ptp(body.points[[_NOSE, *_EYES, *_EARS]], axis=0).max()
        side = max(1.2 * spread, 0.25 * np.linalg.norm(np.diff(body.points[list(_SHOULDERS)], axis=0)), 8.0)
        center = body.points[[_NOSE, *_EYES, *_EARS]].mean(0)
        region = np.concatenate([center - 1.5 * side, center + 1.5 * side])
        found = self._faces_in(image, region, "faces") + self._faces_in(image, region, "close_faces")
        found = [f for f in found if np.abs(f.center - center).max() < side]
        if found:
            return max(found, key=lambda f: f.score)
        return _Face(np.concatenate([center - side / 2, center + side / 2]), 0.4)

    # Face

    def _mesh(self, image, face: _Face | None, body: _Body | None, clip: bool):
        """Points (478, 2) and depth of the chosen face."""
        if face is None:
            return None
        region = np.concatenate([face.center - 1.1 * face.side, face.center + 1.1 * face.side])
        attempts = [(region, "mesh/still")]
        if clip:
            # A wider crop that stays while the face moves in it; after a jump the graph searches again.
            held = self._state.face_region
            if held is None or _iou(held, region) < 0.35:
                held = np.concatenate([face.center - 1.6 * face.side, face.center + 1.6 * face.side])
                self._state.face_region = held
            attempts.insert(0, (held, "mesh/clip"))
        for factor in (0.8, 1.8):
            half = factor * face.side
            attempts.append((np.concatenate([face.center - half, face.center + half]), "mesh/still"))
        for where, graph in attempts:
            crop = _crop(image, where, 448 if graph == "mesh/still" else 640, enlarge=True)
            result = self.graphs.run(graph, crop.pixels)
            if result.multi_face_landmarks:
                points, depth = crop.to_image(result.multi_face_landmarks[0].landmark)
                if np.abs(points.mean(0) - face.center).max() < 0.6 * face.side:
                    return points, depth
        if body is not None:
            head = [body.landmarks[i] for i in POSE_HEAD]
            found = self.graphs.run("face_of_pose", body.crop.pixels, head).landmarks
            if found:
                points, depth = body.crop.to_image(found.landmark)
                if len(points) == 478 and np.abs(points.mean(0) - face.center).max() < 0.6 * face.side:
                    return points, depth
        return None

    # Hands

    def _held_hands(self, image, face: _Face | None, body: _Body | None) -> list[Callable]:
        """Jobs that read the hands of a clip's frame, one tracking graph a hand, on crops that stay while the
        hands move in them: once a graph holds its hand, it no longer searches for palms."""
        if body is None:
            return []
        jobs = []
        scale = _body_scale(body, face)
        for side in (0, 1):
            center = _hand_center(body, side, scale, *image.shape[1::-1])
            if center is None:
                continue
            region = np.concatenate([center - 0.7 * scale, center + 0.7 * scale])
            held = self._state.hand_regions[side]
            if held is None or _iou(held, region) < 0.4:
                self._state.hand_regions[side] = held = region
                self.graphs.restart(f"hand{side}/clip")
            jobs.append(lambda held=held, side=side: self._hands_in(image, held, f"hand{side}/clip"))
        return jobs

    def _hands(
        self, image, face: _Face | None, body: _Body | None, clip: bool, candidates: list[_Hand]
    ) -> list[_Hand | None]:
        """Left and right hand of the person, each None if not found; ``candidates`` are known already."""
        height, width = image.shape[:2]
        if body is None:
            return [None, None]
        scale = _body_scale(body, face)
        centers = [_hand_center(body, side, scale, width, height) for side in (0, 1)]
        found = _assign_hands(candidates, body, scale)
        misses = self._state.hand_misses
        for side, center in enumerate(centers):
            if center is None or found[side] is not None:
                misses[side] = 0
                continue
            misses[side] += 1
            if clip and misses[side] > _PATIENCE and misses[side] % _RETRY:
                continue  # a hand that stays hidden is not searched for at full cost in every frame
            self.graphs.restart(f"hand{side}/clip")
            for half in (0.65,) if clip else (0.65, 0.45, 0.95):
                candidates += self._hands_in(
                    image, np.concatenate([center - half * scale, center + half * scale])
                )
                found = _assign_hands(candidates, body, scale)
                if found[side] is not None and found[side].side == side:
                    break
        # What follows from the pose alone is less exact: only where nothing else was found near the wrist.
        weak = []
        for side in (0, 1):
            if _doubtful(found[side], side, body, scale):
                weak += self._hand_of_pose(body, side, clip)
        return _assign_hands([*candidates, *weak], body, scale) if weak else found

    def _hand_of_pose(self, body: _Body, side: int, clip: bool) -> list[_Hand]:
        """The hand that MediaPipe finds from the pose's wrist and knuckles, if any."""
        key = f"hand{side}_of_pose/clip"
        misses = self._state.weak_misses
        misses[side] += 1
        if not clip:
            self.graphs.restart(key)
        elif misses[side] > _PATIENCE and misses[side] % _RETRY:
            return []
        points = [body.landmarks[i] for i in POSE_HANDS[side]]
        found = self.graphs.run(key, body.crop.pixels, points).landmarks
        if not found:
            return []
        misses[side] = 0
        return [_Hand(*body.crop.to_image(found.landmark), None, side, 0.25)]

    def _hands_in(self, image, region, graph: str = "hands/still") -> list[_Hand]:
        crop = _crop(image, region, 320, enlarge=True)
        result = self.graphs.run(graph, crop.pixels)
        hands = []
        for i, landmarks in enumerate(result.multi_hand_landmarks or ()):
            points, depth = crop.to_image(landmarks.landmark)
            world = np.array([(p.x, p.y, p.z) for p in result.multi_hand_world_landmarks[i].landmark])
            label = result.multi_handedness[i].classification[0]
            # MediaPipe's label assumes a mirrored (selfie) picture: its "Right" is the person's left.
            hands.append(_Hand(points, depth, world, 0 if label.label == "Right" else 1, float(label.score)))
        return hands

    # Mask

    def _masked(
        self, image, person: PersonDetection, clip: bool, wanted: bool
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """The mask if it is ``wanted``, and the person's box grown to it. Between the frames of a clip that
        growth hardly changes."""
        state = self._state
        if clip and not wanted and state.growth is not None and state.frames < _MASK_EVERY:
            state.frames += 1
            limits = np.array([0.0, 0.0, *image.shape[1::-1]])
            return None, _clip_box(person.box + state.growth, limits)
        mask, box = self._segment(image, person, wanted)
        state.growth, state.frames = box - person.box, 1
        return mask, box

    def _segment(self, image, person: PersonDetection, wanted: bool) -> tuple[np.ndarray | None, np.ndarray]:
        """Mask at image size from a crop round the person, and the person's box grown to the mask."""
        height, width = image.shape[:2]
        whole = np.array([0.0, 0.0, width, height])
        size = person.box[2:] - person.box[:2]
        margin = np.maximum(0.2 * size, 0.15 * size.max())
        low, high = person.box[:2] - margin, person.box[2:] + margin
        if person.face is not None:
            # Hips, or the whole body, may be hidden from the pose: down to about the knees is the person's.
            first, last = person.face.points.min(0), person.face.points.max(0)
            center, side = (first + last) / 2, (last - first).max()
            low = np.minimum(low, center - (1.8 * side, 1.2 * side))
            high = np.maximum(high, center + (1.8 * side, 5.0 * side))
        region = _clip_box(np.concatenate([low, high]), whole)
        if _area(region) > 0.6 * _area(whole):
            region = whole
        x0, y0, x1, y1 = np.round(region).astype(int)
        crop = _crop(image, np.array([x0, y0, x1, y1], dtype=float), 512)
        small = self.graphs.run("selfie", crop.pixels).segmentation_mask.astype(np.float32)
        small = _own_parts(small, crop, person)
        mask = None
        if wanted:
            enlarged = Image.fromarray(small).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
            mask = np.zeros((height, width), dtype=np.float32)
            mask[y0:y1, x0:x1] = np.clip(np.asarray(enlarged), 0, 1)
        rows, columns = np.nonzero(small.max(1) > 0.5)[0], np.nonzero(small.max(0) > 0.5)[0]
        box = person.box
        if len(rows) and len(columns):
            step = np.array([x1 - x0, y1 - y0]) / np.array(small.shape[1::-1])
            low = np.array([x0, y0]) + np.array([columns[0], rows[0]]) * step
            high = np.array([x0, y0]) + np.array([columns[-1] + 1, rows[-1] + 1]) * step
            box = np.concatenate([np.minimum(box[:2], low), np.maximum(box[2:], high)])
        return mask, _clip_box(box, whole)


def _as_body(crop: _Crop, result: Any, face: _Face | None) -> _Body | None:
    """MediaPipe's pose in image pixels; None if there is none, or if it is not the face's body."""
    if not result.pose_landmarks:
        return None
    landmarks = result.pose_landmarks.landmark
    points, depth = crop.to_image(landmarks)
    visibility = np.array([p.visibility for p in landmarks])
    head = points[[_NOSE, *_EYES]].mean(0)
    if face is not None:
        if np.abs(head - face.center).max() > 0.75 * face.side:
            return None
    elif visibility[[_NOSE, *_SHOULDERS]].mean() < _POSE_ALONE_SCORE:
        return None
    world = np.array([(p.x, p.y, p.z) for p in result.pose_world_landmarks.landmark], dtype=np.float64)
    return _Body(points, depth, visibility, world, crop, landmarks)


def _doubtful(hand: _Hand | None, side: int, body: _Body, scale: float) -> bool:
    """Whether a hand is missing, has the wrong label, or lies off the pose's wrist."""
    if hand is None:
        return body.visibility[_WRISTS[side]] >= 0.05
    off = np.linalg.norm(hand.points[0] - body.points[_WRISTS[side]])
    return hand.side != side or off > 0.5 * _WRIST_LIMIT * scale


def _crop(image: np.ndarray, region: np.ndarray, longest: int, enlarge: bool = False) -> _Crop:
    """Cut a region (x0, y0, x1, y1; black outside); its longer side becomes at most ``longest`` pixels."""
    height, width = image.shape[:2]
    x0, y0 = np.floor(region[:2]).astype(int)
    x1, y1 = np.maximum(np.ceil(region[2:]).astype(int), (x0 + 2, y0 + 2))
    inside = image[max(y0, 0) : max(min(y1, height), 0), max(x0, 0) : max(min(x1, width), 0)]
    size = np.array([x1 - x0, y1 - y0])
    scale = longest / size.max()
    if scale > 1 and not enlarge:
        scale = 1.0
    target = np.maximum(np.round(size * scale).astype(int), 2)
    pixels = np.zeros((target[1], target[0], 3), dtype=np.uint8)
    if inside.size:
        # Only the part that lies in the picture is resampled, then placed to the pixel.
        left, top = np.round(np.maximum([-x0, -y0], 0) * target / size).astype(int)
        part = np.round(np.array(inside.shape[1::-1]) * target / size).astype(int)
        part = np.clip(part, 1, target - (left, top))
        resized = Image.fromarray(np.ascontiguousarray(inside)).resize(tuple(part), Image.Resampling.BILINEAR)
        pixels[top : top + part[1], left : left + part[0]] = np.asarray(resized)
    return _Crop(pixels, np.array([x0, y0], dtype=np.float64), size.astype(np.float64))


def _body_scale(body: _Body, face: _Face | None) -> float:
    """About the distance of the shoulders seen from the front, image pixels."""
    shoulders = float(np.linalg.norm(body.points[_SHOULDERS[0]] - body.points[_SHOULDERS[1]]))
    return max(shoulders, 1.8 * face.side if face is not None else 0.0, 8.0)


def _hand_center(body: _Body, side: int, scale: float, width: int, height: int) -> np.ndarray | None:
    """Where to look for a hand: beyond the wrist towards the knuckles; None if hidden or off the picture."""
    wrist = body.points[_WRISTS[side]]
    if body.visibility[_WRISTS[side]] < 0.05:
        return None
    reach = body.points[list(_KNUCKLES[side])].mean(0) - wrist
    length = float(np.linalg.norm(reach))
    center = wrist + reach / max(length, 1e-6) * min(1.3 * length, 0.3 * scale)
    limit = 0.3 * scale
    if np.any(center < -limit) or np.any(center > np.array([width, height]) + limit):
        return None
    return center


def _assign_hands(candidates: list[_Hand], body: _Body, scale: float) -> list[_Hand | None]:
    """Left and right hand: each candidate once at most, by distance to the wrists and by handedness."""
    candidates = sorted(candidates, key=lambda h: -h.score)
    kept: list[_Hand] = []
    for hand in candidates:
        if all(np.linalg.norm(hand.points - k.points, axis=1).mean() > 0.15 * scale for k in kept):
            kept.append(hand)
    best, choice = 0.0, [None, None]
    slots = [None, *range(len(kept))]
    for pair in permutations([*slots, None], 2):
        total = 0.0
        for side, index in enumerate(pair):
            if index is None:
                continue
            hand = kept[index]
            distance = np.linalg.norm(hand.points[0] - body.points[_WRISTS[side]]) / scale
            limit = _WRIST_LIMIT if hand.side == side else 0.6 * _WRIST_LIMIT
            # Every hand within its limit is worth having; distance and a wrong label make it less so.
            gain = 1.0 - 0.6 * distance / limit - (0.35 * hand.score if hand.side != side else 0.0)
            total += gain if distance < limit else -1.0
        if total > best:
            best, choice = total, [None if i is None else kept[i] for i in pair]
    return choice


def _assemble(
    image, face: _Face | None, body: _Body | None, mesh, hands: list[_Hand | None]
) -> PersonDetection:
    height, width = image.shape[:2]

    def inside(points: np.ndarray) -> np.ndarray:
        return ((points >= 0) & (points <= (width, height))).all(1)

    face_set = body_set = None
    shown = []
    if mesh is not None:
        points, depth = mesh
        confidence = max(face.score, 0.3) * _facing(points, depth) * inside(points)
        face_set = PointSet("mediapipe478", points, confidence, depth)
        shown.append(points)
    elif face is not None:
        shown.append(face.box.reshape(2, 2))
    if body is not None:
        confidence = np.clip(body.visibility, 0, 1) * np.where(inside(body.points), 1.0, _OUTSIDE)
        body_set = PointSet("mediapipe33", body.points, confidence, body.depth, body.world)
        shown.append(body.points[confidence > 0.5])
    sets = []
    for hand in hands:
        if hand is None:
            sets.append(None)
            continue
        confidence = np.full(21, 0.4 + 0.6 * min(hand.score, 1.0)) * inside(hand.points)
        sets.append(PointSet("hand21", hand.points, confidence, hand.depth, hand.world))
        shown.append(hand.points)
    everything = np.concatenate([s for s in shown if len(s)] or [np.array([[0.0, 0.0], [width, height]])])
    box = np.concatenate([everything.min(0), everything.max(0)])
    score = face.score if face is not None else float(np.mean(body.visibility[list(_SHOULDERS)]))
    box = _clip_box(box, np.array([0.0, 0.0, width, height]))
    return PersonDetection(box, float(np.clip(score, 0, 1)), face_set, body_set, *sets)


def _own_parts(small: np.ndarray, crop: _Crop, person: PersonDetection) -> np.ndarray:
    """The mask (h, w) of a crop without connected parts on which no sure point of the person lies."""
    parts, count = ndimage.label(small > 0.3)
    if count < 2:
        return small
    shape = np.array(small.shape[1::-1])
    own: set[int] = set()
    for points in (person.face, person.body, person.left_hand, person.right_hand):
        if points is not None:
            at = ((points.points[points.confidence > 0.5] - crop.origin) / crop.size * shape).astype(int)
            at = at[((at >= 0) & (at < shape)).all(1)]
            own.update(parts[at[:, 1], at[:, 0]].tolist())
    own.discard(0)
    if not own:
        return small
    return np.where((parts > 0) & ~np.isin(parts, list(own)), 0.0, small).astype(np.float32)


def _facing(points: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """(478,) 1 for face points turned to the camera, falling to 0.2 for those turned away."""
    # Points 234 and 454 lie in front of the ears; between them is about the head's axis.
    solid = np.concatenate([points, depth[:, None]], axis=1)
    out = solid - solid[[234, 454]].mean(0)
    towards = -out[:, 2] / np.maximum(np.linalg.norm(out, axis=1), 1e-9)
    return np.clip(0.2 + (towards + 0.35) / 0.5, 0.2, 1.0)


def _area(box: np.ndarray) -> float:
    return float(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))


def _clip_box(box: np.ndarray, limits: np.ndarray) -> np.ndarray:
    low = np.clip(box[:2], limits[:2], limits[2:] - 1)
    high = np.clip(box[2:], low + 1, limits[2:])
    return np.concatenate([low, high])


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    both = np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])])
    shared = _area(both) if np.all(both[2:] > both[:2]) else 0.0
    return shared / max(_area(a) + _area(b) - shared, 1e-9)
