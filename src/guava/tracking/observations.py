"""Detections of a clip as batched observations in crop pixels, whatever the detector's layouts are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from guava.errors import InputError
from guava.tracking.crop import map_points
from guava.tracking.detectors.base import FrameDetections, PointSet
from guava.tracking.fit.body_terms import BodyObservation
from guava.tracking.fit.face import FACE_LAYOUTS, FaceObservation
from guava.tracking.lifting import Networks, lift_arms, lift_hand
from guava.tracking.sequence import Keypoints

BODY_POINTS = {
    "mediapipe33": {
        "left_shoulder": 11,
        "right_shoulder": 12,
        "left_elbow": 13,
        "right_elbow": 14,
        "left_wrist": 15,
        "right_wrist": 16,
        "left_hip": 23,
        "right_hip": 24,
        "left_knee": 25,
        "right_knee": 26,
        "left_ankle": 27,
        "right_ankle": 28,
        "left_foot": 31,
        "right_foot": 32,
    },
    "coco17": {
        "left_shoulder": 5,
        "right_shoulder": 6,
        "left_elbow": 7,
        "right_elbow": 8,
        "left_wrist": 9,
        "right_wrist": 10,
        "left_hip": 11,
        "right_hip": 12,
        "left_knee": 13,
        "right_knee": 14,
        "left_ankle": 15,
        "right_ankle": 16,
    },
    "openpose18": {
        "left_shoulder": 5,
        "right_shoulder": 2,
        "left_elbow": 6,
        "right_elbow": 3,
        "left_wrist": 7,
        "right_wrist": 4,
        "left_hip": 11,
        "right_hip": 8,
        "left_knee": 12,
        "right_knee": 9,
        "left_ankle": 13,
        "right_ankle": 10,
    },
}
"""Which point of a layout belongs to which template joint."""

BONES = (
    ("left_shoulder", "left_elbow"),
    ("right_shoulder", "right_elbow"),
    ("left_elbow", "left_wrist"),
    ("right_elbow", "right_wrist"),
    ("right_shoulder", "left_shoulder"),
)
LEG_BONES = (
    ("left_hip", "left_knee"),
    ("right_hip", "right_knee"),
    ("left_knee", "left_ankle"),
    ("right_knee", "right_ankle"),
)
LEG_PARTS = ("knee", "ankle", "foot")
LEG_SPREAD = {"knee": (0.4, 0.4, 0.35), "ankle": (0.4, 0.4, 0.5)}
"""Spread of the detector's own direction of the bone that ends there: twice what was measured, as both err
together; across the view its points say more."""
SHIN_LEAN = 0.15
"""MediaPipe's shins lean away from the camera by this share of their length, measured as the spreads were:
on 20 renders of whole bodies of ``guava.synth.dataset.TUNING_SEEDS``."""
TRUSTED = 0.3
"""Body points less sure than this are not used."""
TRUSTED_LEG = 0.5
"""The same for legs: behind a desk the detector imagines them."""
FOOT_TRUST = 0.3
"""Factor on the confidence of feet: detectors and shoes disagree about where toes are."""
HAND_REACH = 0.35
"""A hand whose root lies farther than this share of the shoulder width from the body's wrist is another's."""


@dataclass(frozen=True)
class Observations:
    """What the fit sees.

    Attributes:
        face, body: Batched observations.
        keypoints: The same as they are kept in the tracked sequence.
        valid: (T,) bool: frames with a person.
    """

    face: FaceObservation
    body: BodyObservation
    keypoints: dict[str, Keypoints]
    valid: torch.Tensor


def gather(
    detections: Sequence[FrameDetections],
    crops: np.ndarray,
    image_sizes: Sequence[tuple[int, int]],
    lifting: dict[str, Networks] | None = None,
) -> Observations:
    """Batch the detections of T frames.

    Args:
        detections: One a frame.
        crops: (T, 3, 3) image pixels -> crop pixels.
        image_sizes: (width, height) of every frame; points outside the picture are the detector's guesses
            and are not used.
        lifting: Learned depth of arms and hands; without it the detector's own depth is used.
    """
    frames = len(detections)
    people = [d.person for d in detections]
    face_layout = _layout([p.face for p in people if p is not None], "mediapipe478", FACE_LAYOUTS)
    body_layout = _layout([p.body for p in people if p is not None], "mediapipe33", BODY_POINTS)
    face = _batch([p.face if p else None for p in people], crops, _count(face_layout))
    body = _batch([p.body if p else None for p in people], crops, _count(body_layout))
    left = _batch([p.left_hand if p else None for p in people], crops, 21)
    right = _batch([p.right_hand if p else None for p in people], crops, 21)

    names = tuple(BODY_POINTS[body_layout])
    index = list(BODY_POINTS[body_layout].values())
    first_leg = [name.partition("_")[2] in LEG_PARTS for name in names].index(True)
    points, confidence = body.points[:, index], body.confidence[:, index].clone()
    for t, (width, height) in enumerate(image_sizes):
        raw = map_points(np.linalg.inv(crops[t]), points[t].numpy())
        inside = (raw > 0).all(1) & (raw[:, 0] < width) & (raw[:, 1] < height)
        confidence[t, torch.from_numpy(~inside)] = 0
    confidence = torch.where(confidence < TRUSTED, 0.0, confidence)
    _trust_legs(names, confidence)
    if not bool((confidence[:, first_leg:] > 0).any()):  # no legs: the fit leaves them at rest
        names, points, confidence = names[:first_leg], points[:, :first_leg], confidence[:, :first_leg]

    hand_points = torch.stack([left.points, right.points], 1)
    hand_confidence = torch.stack([left.confidence, right.confidence], 1)
    shoulders = (points[:, 0] - points[:, 1]).norm(dim=-1)
    for side, name in enumerate(("left_wrist", "right_wrist")):
        wrist = names.index(name)
        far = (hand_points[:, side, 0] - points[:, wrist]).norm(dim=-1) > HAND_REACH * shoulders.clamp(min=40)
        far &= confidence[:, wrist] > 0.5
        hand_confidence[far, side] = 0
        # Where the hand itself was found its root says where the wrist is.
        found = (hand_confidence[:, side] > 0).any(1)
        confidence[:, wrist] = torch.where(found, 0.0, confidence[:, wrist])
    directions, direction_confidence, direction_spread, bones = _directions(
        people, names, confidence, body_layout, lifting
    )
    depth = torch.stack([left.depth, right.depth], 1)
    depth_spread = torch.zeros_like(depth)
    if lifting is not None:
        _lift_hands(people, crops, lifting["hand"], depth, depth_spread)
    observation = BodyObservation(
        names,
        points,
        confidence,
        bones,
        directions,
        direction_confidence,
        direction_spread,
        hand_points,
        hand_confidence,
        depth if bool((depth != 0).any()) else None,
        depth_spread,
    )
    face_depth = face.depth if bool((face.depth != 0).any()) else None
    return Observations(
        FaceObservation(face_layout, face.points, face.confidence, face_depth),
        observation,
        {"face": face, "body": body, "left_hand": left, "right_hand": right},
        torch.tensor([p is not None for p in people], dtype=torch.bool).reshape(frames),
    )


def select_frames(observations: Observations, index: torch.Tensor) -> Observations:
    """Only the frames ``index`` (n,)."""
    face, body = observations.face, observations.body
    return Observations(
        replace(
            face,
            points=face.points[index],
            confidence=face.confidence[index],
            depth=None if face.depth is None else face.depth[index],
        ),
        replace(
            body,
            points=body.points[index],
            confidence=body.confidence[index],
            directions=body.directions[index],
            direction_confidence=body.direction_confidence[index],
            direction_spread=body.direction_spread[index],
            hand_points=body.hand_points[index],
            hand_confidence=body.hand_confidence[index],
            hand_depth=None if body.hand_depth is None else body.hand_depth[index],
            hand_depth_spread=body.hand_depth_spread[index],
        ),
        {
            name: Keypoints(k.points[index], k.confidence[index], k.depth[index])
            for name, k in observations.keypoints.items()
        },
        observations.valid[index],
    )


_COUNTS = {"mediapipe478": 478, "ibug68": 68, "mediapipe33": 33, "coco17": 17, "openpose18": 18}


def _count(layout: str) -> int:
    return _COUNTS[layout]


def _layout(sets: list[PointSet | None], default: str, known: dict) -> str:
    layouts = {s.layout for s in sets if s is not None}
    if len(layouts) > 1:
        raise InputError(f"The detector mixes point layouts: {', '.join(sorted(layouts))}.")
    layout = layouts.pop() if layouts else default
    if layout not in known:
        raise InputError(f"The tracker does not know the point layout '{layout}'.")
    return layout


def _batch(sets: list[PointSet | None], crops: np.ndarray, count: int) -> Keypoints:
    frames = len(sets)
    points = np.zeros((frames, count, 2))
    confidence, depth = np.zeros((frames, count)), np.zeros((frames, count))
    for t, item in enumerate(sets):
        if item is None:
            continue
        points[t] = map_points(crops[t], item.points)
        confidence[t] = item.confidence
        if item.depth is not None:
            depth[t] = item.depth * crops[t, 0, 0]
        if item.layout == "hand21" and item.world is not None and item.depth is not None:
            depth[t] = (depth[t] - depth[t, 0] + _world_depth(points[t], item.world)) / 2
    points[confidence == 0] = 0
    return Keypoints(torch.from_numpy(points), torch.from_numpy(confidence), torch.from_numpy(depth))


def _world_depth(points: np.ndarray, world: np.ndarray) -> np.ndarray:
    """(K,) depth in crop pixels relative to the first point, from a detector's metric points (K, 3).

    MediaPipe's two depths of a hand err independently enough that their mean is better than either.
    """
    flat, pixels = world[:, :2] - world[:, :2].mean(0), points - points.mean(0)
    scale = np.sqrt((pixels**2).sum() / max((flat**2).sum(), 1e-12))
    return scale * (world[:, 2] - world[0, 2])


def _trust_legs(names: tuple[str, ...], confidence: torch.Tensor) -> None:
    """Clear knees that are unsure, ankles below unseen knees and feet below unseen ankles, in ``confidence``
    (T, M)."""
    for side in ("left", "right"):
        above = None
        for part in LEG_PARTS:
            if f"{side}_{part}" not in names:
                continue
            column = confidence[:, names.index(f"{side}_{part}")]
            column[column < TRUSTED_LEG] = 0
            if above is not None:
                column[above == 0] = 0
            above = column
            if part == "foot":
                column *= FOOT_TRUST


def _directions(
    people: list,
    names: tuple[str, ...],
    used: torch.Tensor,
    layout: str,
    lifting: dict[str, Networks] | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[tuple[int, int], ...]]:
    """3D bone directions (T, D, 3) in world axes (x right, y up, z towards the camera), their confidence
    (T, D), their spread (T, D, 3), 0 where not known, and the bones. Legs count where their points are
    ``used`` (T, M)."""
    frames = len(people)
    wanted = BONES + (LEG_BONES if "left_knee" in names else ())
    directions, spread = np.zeros((frames, len(wanted), 3)), np.zeros((frames, len(wanted), 3))
    confidence = np.zeros((frames, len(wanted)))
    index = BODY_POINTS[layout]
    for t, person in enumerate(people):
        if person is None or person.body is None or person.body.world is None:
            continue
        lifted = None if lifting is None else lift_arms(lifting["arm"], person)
        for n, (a, b) in enumerate(wanted):
            if lifted is None or n >= len(BONES):
                bone = (person.body.world[index[b]] - person.body.world[index[a]]) * [1, -1, -1]
            else:
                bone, spread[t, n] = lifted[a, b]
            part = b.partition("_")[2]
            if part in LEG_SPREAD:
                spread[t, n] = LEG_SPREAD[part]
                if part == "ankle" and layout == "mediapipe33":
                    bone = bone + np.array([0, 0, SHIN_LEAN]) * np.linalg.norm(bone)
            length = np.linalg.norm(bone)
            sure = min(person.body.confidence[index[a]], person.body.confidence[index[b]])
            if n >= len(BONES) and used[t, names.index(b)] == 0:
                continue
            if length > 1e-6 and sure > TRUSTED:
                directions[t, n], confidence[t, n] = bone / length, sure
    bones = tuple((names.index(a), names.index(b)) for a, b in wanted) if confidence.any() else ()
    count = len(bones)
    return (
        torch.from_numpy(directions[:, :count]),
        torch.from_numpy(confidence[:, :count]),
        torch.from_numpy(spread[:, :count]),
        bones,
    )


def _lift_hands(
    people: list, crops: np.ndarray, network: Networks, depth: torch.Tensor, spread: torch.Tensor
) -> None:
    """Put learned depths and their spreads, crop pixels, into ``depth`` and ``spread`` (T, 2, 21)."""
    for t, person in enumerate(people):
        for side in (0, 1):
            lifted = None if person is None else lift_hand(network, person, side)
            if lifted is not None:
                depth[t, side] = torch.from_numpy(lifted[0] * crops[t, 0, 0])
                spread[t, side] = torch.from_numpy(lifted[1] * crops[t, 0, 0])
