"""Depth of arms and hands, learned from renders of the template.

A picture shows a bone's direction only up to its depth. MediaPipe guesses depth, but on people whose truth is
known its bones are off by a fifth of their length. Small networks that see all of its numbers at once (both
of its depths of body and hand, the pose around the bone) guess better; they were trained on renders of the
template with known joints (``scripts/train_depth_lifting.py``). What they say guides Eq. 8 in 3D; across the
view the fit follows the detected points alone.

Everything is computed for a left arm or hand; the right one is mirrored into a left one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from guava.tracking.detectors.base import PersonDetection

DEPTH_LIFTING = Path(__file__).parent / "data" / "depth_lifting.safetensors"

_BODY = (0, 7, 8, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24)
"""MediaPipe body points that the arm network sees: nose, ears, shoulders, elbows, wrists, hands, hips."""
_MIRRORED = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
"""The same points of the mirrored person, as positions in ``_BODY``."""
_SCALE = (0, 1, 2, 3, 4, 5, 6, 7, 8)
_FLIP = np.array([-1.0, 1.0, 1.0])
_AXES = np.array([1.0, -1.0, -1.0])
"""Camera axes (x right, y down, z away) -> world axes (x right, y up, z towards the camera)."""


@dataclass(frozen=True)
class Networks:
    """An ensemble of small networks; arrays lead with the ensemble's K members.

    Attributes:
        mean, spread: (F,) of the inputs.
        weights, biases: Per layer (K, out, in) and (K, out).
        sigma: (O,) standard deviation of the outputs' errors on people that were not trained on.
    """

    mean: np.ndarray
    spread: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    sigma: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(F,) -> (O,): the members' mean."""
        x = np.clip((features - self.mean) / self.spread, -4, 4)[None, :, None]
        for n, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = weight @ x + bias[..., None]
            if n + 1 < len(self.weights):
                x = np.tanh(x)
        return x[..., 0].mean(0)


@lru_cache(maxsize=2)
def load_networks(template_hash: str) -> dict[str, Networks] | None:
    """ "arm" and "hand" networks trained with this template, or None if there are none."""
    if not DEPTH_LIFTING.is_file():
        return None
    tensors = load_file(DEPTH_LIFTING)
    if bytes(tensors["template_hash"].tolist()).decode() != template_hash:
        return None
    out = {}
    for part in ("arm", "hand"):
        own = {
            k.partition(".")[2]: v.astype(np.float64) for k, v in tensors.items() if k.startswith(f"{part}.")
        }
        layers = range(sum(k.startswith("weight") for k in own))
        out[part] = Networks(
            own["mean"],
            own["spread"],
            tuple(own[f"weight{n}"] for n in layers),
            tuple(own[f"bias{n}"] for n in layers),
            own["sigma"],
        )
    return out


def arm_features(person: PersonDetection, side: int) -> np.ndarray | None:
    """What the arm network sees (F,), free of the person's size and place in the picture.

    Args:
        person: One person of one frame.
        side: 0 left, 1 right (the person's own).

    Returns:
        None where the detector gives no body in three dimensions.
    """
    body = person.body
    if body is None or body.layout != "mediapipe33" or body.world is None:
        return None
    index = np.array(_BODY)
    flat = np.concatenate([body.points, np.zeros((33, 1)) if body.depth is None else body.depth[:, None]], 1)
    image, world, sure = flat[index] * _AXES, body.world[index] * _AXES, body.confidence[index]
    hands = [person.left_hand, person.right_hand]
    if side == 1:
        order = np.array(_MIRRORED)
        image, world, sure = image[order] * _FLIP, world[order] * _FLIP, sure[order]
        hands = hands[::-1]
    middle = image[3:5].mean(0)
    image, world = image - middle, world - world[3:5].mean(0)
    chosen = list(_SCALE)
    scale = np.sqrt((image[chosen, :2] ** 2).sum() / max((world[chosen, :2] ** 2).sum(), 1e-9))
    image = image / max(scale, 1e-9)
    rows = [image.ravel(), world.ravel(), sure]
    for hand in hands:
        known = np.zeros(10)
        if hand is not None and hand.confidence.max() > 0:
            points = hand.points[[0, 9]] * _AXES[:2] * (_FLIP[:2] if side == 1 else 1)
            known[:4] = ((points - middle[:2]) / scale).ravel()
            if hand.world is not None:
                turned = hand.world * _AXES * (_FLIP if side == 1 else 1)
                along, across = turned[9] - turned[0], turned[5] - turned[17]
                known[4:7] = along / max(np.linalg.norm(along), 1e-9)
                known[7:] = across / max(np.linalg.norm(across), 1e-9)
        rows.append(known)
    return np.concatenate(rows)


def hand_features(person: PersonDetection, side: int) -> tuple[np.ndarray, float] | None:
    """What the hand network sees (F,), and the hand's size in image pixels.

    Args:
        person: One person of one frame.
        side: 0 left, 1 right.
    """
    hand = person.left_hand if side == 0 else person.right_hand
    if hand is None or hand.layout != "hand21" or hand.world is None or hand.depth is None:
        return None
    mirror = _FLIP if side == 1 else np.ones(3)
    image = np.concatenate([hand.points, hand.depth[:, None]], 1) * _AXES * mirror
    image = image - image[0]
    world = hand.world * _AXES * mirror
    world = world - world[0]
    size = float(np.sqrt((image**2).sum(1).mean()))
    if size < 1e-6:
        return None
    forearm = np.zeros(6)
    if person.body is not None and person.body.layout == "mediapipe33" and person.body.world is not None:
        elbow, wrist = (13, 15) if side == 0 else (14, 16)
        across = (hand.points[0] - person.body.points[elbow]) * _AXES[:2] * mirror[:2] / size
        along = (person.body.world[wrist] - person.body.world[elbow]) * _AXES * mirror
        sure = person.body.confidence[elbow]
        forearm[:2], forearm[2:5] = across / 4 * sure, along / max(np.linalg.norm(along), 1e-9) * sure
        forearm[5] = sure
    spread = np.sqrt((world**2).sum(1).mean())
    return np.concatenate([(image / size).ravel(), (world / max(spread, 1e-9)).ravel(), forearm]), size


def lift_arms(
    network: Networks, person: PersonDetection
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] | None:
    """Unit directions of the arms' bones and of the shoulder line, and their standard deviations, world axes.

    Returns:
        By (from, to) joint name; None where the detector gives no body in three dimensions.
    """
    out, lines = {}, []
    sigma = np.maximum(network.sigma.reshape(3, 3), 0.02)
    for side, name in enumerate(("left", "right")):
        features = arm_features(person, side)
        if features is None:
            return None
        upper, fore, line = network(features).reshape(3, 3) * (_FLIP if side == 1 else 1)
        out[f"{name}_shoulder", f"{name}_elbow"] = _unit(upper), sigma[0]
        out[f"{name}_elbow", f"{name}_wrist"] = _unit(fore), sigma[1]
        lines.append(line if side == 0 else -line)
    out["right_shoulder", "left_shoulder"] = _unit(lines[0] + lines[1]), sigma[2]
    return out


def lift_hand(network: Networks, person: PersonDetection, side: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Depth (21,) of a hand's points relative to its root, image pixels, larger is farther; and its standard
    deviation (21,). None where the hand was not found."""
    found = hand_features(person, side)
    if found is None:
        return None
    features, size = found
    return -network(features) * size, np.maximum(network.sigma, 0.03) * size


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(np.linalg.norm(vector), 1e-9)
