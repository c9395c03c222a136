"""Poses and faces that people really make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from guava.body import Pose, Template, load_template
from guava.body.controls import expression_units, num_expression, with_units
from guava.synth.surface import FINGERS, SIDES, surface_of

POSE_KINDS = ("arms_down", "one_hand", "two_hands", "head")
"""What ``sample_pose`` knows: arms hanging, one or both hands raised before the chest, a close view of the
head (arms hanging, expression richer)."""

HAND_SHAPES = ("relaxed", "open", "spread", "point", "fist", "pinch", "victory")

_EXPRESSIONS = ("neutral", "smile", "laugh", "talk", "surprise", "angry", "sad", "disgust", "pout", "sparse")
_EXPRESSION_ODDS = (0.08, 0.15, 0.08, 0.22, 0.09, 0.09, 0.08, 0.05, 0.08, 0.08)


def sample_face(rng: np.random.Generator, template: Template, kind: str | None = None) -> Pose:
    """The rest pose (B = 1) with a face that somebody could make, on any template.

    One without units opens its jaw, blinks and looks as the open template's face does, with moderate
    expression coefficients of its own.
    """
    pose = Pose.rest(template)
    if expression_units(template):
        return replace(pose, expression=sample_expression(rng, template, kind)[None])
    open_template = load_template()
    values = sample_expression(rng, open_template, kind)
    pose = with_units(pose, template, dict(zip(open_template.expression_names, values.tolist(), strict=True)))
    count = num_expression(template)
    own = torch.from_numpy(np.clip(rng.normal(0, 0.6, (1, count)), -1.5, 1.5)).float()
    return replace(pose, **{"expression" if template.expressive_head else "body_expression": own})


def sample_expression(rng: np.random.Generator, template: Template, kind: str | None = None) -> torch.Tensor:
    """ARKit units of a face that somebody could make: few are active, left and right go together.

    Args:
        rng: Source of randomness.
        template: One with ARKit's units.
        kind: One of neutral, smile, laugh, talk, surprise, angry, sad, disgust, pout, sparse; drawn if None.

    Returns:
        (E,) in [0, 1], obeying ``template.expression_bounds``.
    """
    values = dict.fromkeys(template.expression_names, 0.0)
    kind = kind or str(rng.choice(_EXPRESSIONS, p=_EXPRESSION_ODDS))

    def both(name: str, low: float, high: float, odds: float = 1.0) -> None:
        if rng.random() < odds:
            level = rng.uniform(low, high)
            for side in ("Left", "Right"):
                values[name + side] = level * rng.uniform(0.85, 1.15)

    def one(name: str, low: float, high: float, odds: float = 1.0) -> None:
        if rng.random() < odds:
            values[name] = rng.uniform(low, high)

    if kind == "smile":
        both("mouthSmile", 0.35, 1.0)
        both("cheekSquint", 0.1, 0.6, 0.7)
        both("mouthDimple", 0.1, 0.5, 0.3)
        both("eyeSquint", 0.1, 0.5, 0.4)
        one("jawOpen", 0.02, 0.15, 0.3)
    elif kind == "laugh":
        both("mouthSmile", 0.6, 1.0)
        one("jawOpen", 0.2, 0.6)
        both("mouthUpperUp", 0.1, 0.5, 0.6)
        both("cheekSquint", 0.3, 0.9)
        both("eyeSquint", 0.2, 0.8, 0.7)
    elif kind == "talk":
        one("jawOpen", 0.05, 0.55)
        one(str(rng.choice(["mouthFunnel", "mouthPucker"])), 0.2, 0.8, 0.45)
        both("mouthLowerDown", 0.1, 0.6, 0.35)
        both("mouthUpperUp", 0.1, 0.4, 0.25)
        both("mouthStretch", 0.1, 0.6, 0.25)
        one(
            str(rng.choice(["mouthRollLower", "mouthRollUpper", "mouthClose", "mouthShrugLower"])),
            0.1,
            0.5,
            0.3,
        )
        one("browInnerUp", 0.1, 0.6, 0.25)
        both("mouthSmile", 0.1, 0.4, 0.25)
    elif kind == "surprise":
        one("browInnerUp", 0.4, 1.0)
        both("browOuterUp", 0.4, 1.0)
        both("eyeWide", 0.2, 1.0)
        one("jawOpen", 0.1, 0.7, 0.7)
    elif kind == "angry":
        both("browDown", 0.4, 1.0)
        both("eyeSquint", 0.1, 0.6, 0.6)
        both("noseSneer", 0.1, 0.6, 0.4)
        both("mouthPress", 0.2, 0.9, 0.5)
        both("mouthFrown", 0.2, 0.7, 0.4)
        one("jawForward", 0.1, 0.6, 0.25)
    elif kind == "sad":
        one("browInnerUp", 0.3, 1.0)
        both("mouthFrown", 0.35, 1.0)
        one("mouthShrugLower", 0.2, 0.8, 0.5)
    elif kind == "disgust":
        both("noseSneer", 0.4, 1.0)
        both("mouthUpperUp", 0.2, 0.8)
        both("browDown", 0.2, 0.7, 0.7)
    elif kind == "pout":
        one(str(rng.choice(["mouthPucker", "mouthFunnel"])), 0.4, 1.0)
        one("cheekPuff", 0.3, 1.0, 0.3)
        one(str(rng.choice(["mouthLeft", "mouthRight"])), 0.2, 0.8, 0.3)
    elif kind == "sparse":
        free = [
            n for n in template.expression_names if not n.startswith(("eyeLook", "eyeBlink", "mouthClose"))
        ]
        free.remove("tongueOut")
        for name in rng.choice(free, size=int(rng.integers(1, 4)), replace=False):
            values[str(name)] = rng.uniform(0.3, 1.0)
            mirrored = _mirror(str(name))
            if mirrored != name and rng.random() < 0.6:
                values[mirrored] = values[str(name)] * rng.uniform(0.8, 1.2)
    if rng.random() < 0.12:
        one(str(rng.choice(["jawLeft", "jawRight"])), 0.2, 0.7)

    blink = rng.random()
    if blink < 0.12:
        both("eyeBlink", 0.9, 1.0)
    elif blink < 0.17:
        one(str(rng.choice(["eyeBlinkLeft", "eyeBlinkRight"])), 0.7, 1.0)
    elif blink < 0.3:
        both("eyeBlink", 0.1, 0.6)
    if max(values["eyeBlinkLeft"], values["eyeBlinkRight"]) > 0.3:
        values["eyeWideLeft"] = values["eyeWideRight"] = 0.0
    if rng.random() < 0.55:
        yaw, pitch = rng.normal(0, 0.35), rng.normal(0, 0.25)
        sideways, vertical = min(abs(yaw), 1.0), min(abs(pitch), 1.0)
        inward, outward = (
            ("Left", "Right") if yaw < 0 else ("Right", "Left")
        )  # yaw > 0: towards the person's left
        values["eyeLookOut" + outward] = values["eyeLookIn" + inward] = sideways
        look = "eyeLookUp" if pitch > 0 else "eyeLookDown"
        values[look + "Left"] = values[look + "Right"] = vertical
    out = torch.tensor(
        [min(max(values[n], 0.0), 1.0) for n in template.expression_names], dtype=torch.float32
    )
    return template.bounded_expression(out)


def _mirror(name: str) -> str:
    if name.endswith("Left"):
        return name[:-4] + "Right"
    return name[:-5] + "Left" if name.endswith("Right") else name


def sample_pose(
    rng: np.random.Generator,
    template: Template,
    kind: str | None = None,
    *,
    expression: str | None = None,
    face_camera: bool = True,
) -> Pose:
    """An upper body as it sits or stands before a camera. The legs keep the rest pose.

    Args:
        rng: Source of randomness.
        template: The template.
        kind: One of ``POSE_KINDS``; drawn if None.
        expression: Handed to :func:`sample_expression`.
        face_camera: The body turns at most about 20 degrees; otherwise up to 45.

    Returns:
        One pose (B = 1) with zero translation; ``frame_person`` places it before a camera.
    """
    surface = surface_of(template)
    kind = kind or str(rng.choice(POSE_KINDS, p=(0.25, 0.3, 0.3, 0.15)))
    joints = torch.zeros(1, template.body.num_joints, 3)

    def put(name: str, rotation: Rotation) -> None:
        joints[0, template.joint(name)] = torch.from_numpy(rotation.as_rotvec()).float()

    def normal(*spread_degrees: float) -> Rotation:
        angles = np.radians(rng.normal(0, spread_degrees))
        return Rotation.from_euler("YXZ", np.clip(angles, *(np.radians(spread_degrees) * [[-2.2], [2.2]])))

    yaw = rng.normal(0, 9) if face_camera else rng.uniform(-45, 45)
    root = Rotation.from_euler(
        "YXZ", np.radians([np.clip(yaw, -45, 45), rng.normal(0, 2), rng.normal(0, 1.5)])
    )
    put("pelvis", root)
    for name, spread in (("spine1", (2, 3, 2)), ("spine2", (2, 3, 2)), ("spine3", (2, 2, 1.5))):
        turn = normal(*spread)
        put(name, turn)
    wide = 1.0 if kind != "head" else 1.5
    turn = Rotation.from_euler(
        "YXZ",
        np.radians(
            [
                np.clip(rng.normal(0, 10 * wide), -40, 40) - 0.4 * np.clip(yaw, -45, 45),
                np.clip(rng.normal(0, 6 * wide), -20, 22),
                np.clip(rng.normal(0, 4.5 * wide), -16, 16),
            ]
        ),
    )
    put("neck", Rotation.from_rotvec(0.45 * turn.as_rotvec()))
    put("head", Rotation.from_rotvec(0.55 * turn.as_rotvec()))

    raised = {"arms_down": (), "head": (), "two_hands": SIDES, "one_hand": (str(rng.choice(SIDES)),)}[kind]
    similar = kind == "two_hands" and rng.random() < 0.5
    memory: dict = {}
    for s, side in enumerate(SIDES):
        _pose_arm(rng, template, side, side in raised, memory if similar else {}, put)
        shape = str(rng.choice(HAND_SHAPES if side in raised else ("relaxed", "relaxed", "open", "fist")))
        for name, rotation in _hand(rng, surface, s, side, shape).items():
            put(name, rotation)
    face = sample_face(rng, template, expression)
    return replace(face, joints=joints + face.joints)


LEG_KINDS = ("stand", "step", "lift", "sit")
"""What ``sample_legs`` knows: both feet under the body, one before the other, one knee raised, a chair."""


def sample_legs(rng: np.random.Generator, template: Template, pose: Pose, kind: str | None = None) -> Pose:
    """The pose (B = 1) with legs that stand, step or sit; nothing else changes.

    Args:
        rng: Source of randomness.
        template: The template.
        pose: A pose with resting legs.
        kind: One of ``LEG_KINDS``; drawn if None.
    """
    kind = kind or str(rng.choice(LEG_KINDS, p=(0.4, 0.3, 0.2, 0.1)))
    joints = pose.joints.clone()
    leading = str(rng.choice(SIDES))
    for side in SIDES:
        sign = 1.0 if side == "left" else -1.0
        lead = side == leading
        flexion = {
            "stand": rng.normal(3, 3),
            "step": rng.normal(18, 6) if lead else rng.normal(-10, 4),
            "lift": rng.normal(55, 15) if lead else rng.normal(2, 3),
            "sit": rng.normal(80, 6),
        }[kind]
        bend = {
            "stand": rng.gamma(2, 2.5),
            "step": rng.uniform(3, 20) if lead else rng.uniform(5, 30),
            "lift": rng.uniform(40, 100) if lead else rng.gamma(2, 2.5),
            "sit": rng.normal(85, 8),
        }[kind]
        hip = Rotation.from_euler(
            "ZXY", np.radians([sign * rng.normal(-2, 4), -flexion, sign * rng.normal(6, 6)])
        )
        ankle = np.radians([np.clip(flexion - bend + rng.normal(0, 3), -25, 25), sign * rng.normal(0, 4), 0])
        for name, turn in (("hip", hip.as_rotvec()), ("knee", [np.radians(bend), 0, 0]), ("ankle", ankle)):
            joints[0, template.joint(f"{side}_{name}")] = torch.tensor(np.asarray(turn)).float()
    return replace(pose, joints=joints)


def _pose_arm(rng, template, side, raised, memory, put) -> None:
    """One arm, collar to wrist; the hand is put at a target by two-bone inverse kinematics."""
    sign = 1.0 if side == "left" else -1.0
    rest = surface_of(template).joints
    shoulder, elbow, wrist = (
        rest[template.joint(f"{side}_{n}")].astype(float) for n in ("shoulder", "elbow", "wrist")
    )
    collar = Rotation.from_euler("YXZ", np.radians([0, 0, sign * rng.normal(-13 if not raised else -8, 2.5)]))
    put(f"{side}_collar", collar)
    upper, lower = np.linalg.norm(elbow - shoulder), np.linalg.norm(wrist - elbow)
    if raised:
        if "target" in memory:
            target, palm, fingers = (m * [sign, 1, 1] for m in memory["target"])
            target = target + rng.normal(0, 0.025, 3)
        else:
            # Relative to the shoulder in the chest's frame: x outward, y up, z forward.
            target = np.array([rng.uniform(-0.17, 0.12), rng.uniform(-0.27, 0.02), rng.uniform(0.2, 0.4)])
            palm, fingers = _hand_direction(rng)
            memory["target"] = (target.copy(), palm.copy(), fingers.copy())
            target, palm, fingers = (m * [sign, 1, 1] for m in (target, palm, fingers))
        pole = np.array([sign * rng.uniform(0.2, 1.0), -1.0, rng.uniform(-0.5, 0.1)])
    else:
        reach = rng.uniform(0.88, 0.985) * (upper + lower)
        down = np.array([sign * rng.uniform(0.1, 0.3), -1.0, rng.uniform(-0.02, 0.25)])
        target = reach * down / np.linalg.norm(down)
        palm, fingers = np.array([-sign * 0.9, 0.0, rng.uniform(-0.6, 0.2)]), np.array([0.0, -1.0, 0.15])
        pole = np.array([sign * 0.6, 0.0, -1.0])
    # The target is meant in the chest's frame; the collar moved, so it is expressed in the collar's.
    target, pole, palm, fingers = (collar.inv().apply(x) for x in (target, pole, palm, fingers))
    length = np.clip(np.linalg.norm(target), 0.35 * (upper + lower), 0.985 * (upper + lower))
    aim = target / np.linalg.norm(target)
    along = (upper**2 - lower**2 + length**2) / (2 * length)
    side_dir = pole - aim * (pole @ aim)
    side_dir /= np.linalg.norm(side_dir)
    elbow_at = aim * along + side_dir * np.sqrt(max(upper**2 - along**2, 1e-8))
    upper_dir = elbow_at / upper
    lower_dir = (aim * length - elbow_at) / lower
    # The elbow is a hinge about y in the T pose: the upper arm turns until the forearm lies in its x-z plane.
    x = sign * upper_dir
    z = lower_dir - upper_dir * (lower_dir @ upper_dir)
    z /= np.linalg.norm(z)
    shoulder_turn = Rotation.from_matrix(np.stack([x, np.cross(z, x), z], 1))
    flexion = Rotation.from_rotvec([0, -sign * np.arccos(np.clip(upper_dir @ lower_dir, -1, 1)), 0])
    fore = shoulder_turn * flexion
    # Hand frame of the T pose: fingers along sign * x, palm along -y.
    fingers = fingers - palm * (fingers @ palm) / (palm @ palm)
    hx, hy = sign * fingers / np.linalg.norm(fingers), -palm / np.linalg.norm(palm)
    hand = fore.inv() * Rotation.from_matrix(np.stack([hx, hy, np.cross(hx, hy)], 1))
    q = hand.as_quat()  # x, y, z, w
    twist = 2 * np.arctan2(q[0], q[3])
    twist = (twist + np.pi) % (2 * np.pi) - np.pi
    swing = (hand * Rotation.from_rotvec([-twist, 0, 0])).as_rotvec()
    twist = np.clip(twist, np.radians(-95), np.radians(95))
    angle = np.linalg.norm(swing)
    swing = swing * min(1.0, np.radians(50) / max(angle, 1e-9))
    put(f"{side}_shoulder", shoulder_turn)
    put(f"{side}_elbow", flexion * Rotation.from_rotvec([0.5 * twist, 0, 0]))
    put(
        f"{side}_wrist",
        Rotation.from_rotvec([-0.5 * twist, 0, 0])
        * Rotation.from_rotvec(swing)
        * Rotation.from_rotvec([twist, 0, 0]),
    )


def _hand_direction(rng) -> tuple[np.ndarray, np.ndarray]:
    """Palm normal and finger direction of a left hand, chest frame (x outward, y up, z forward)."""
    kind = rng.choice(4, p=(0.35, 0.2, 0.25, 0.2))
    if kind == 0:  # palm to the camera, fingers up
        palm, fingers = np.array([0.0, 0.0, 1.0]), np.array([-0.1, 1.0, 0.0])
    elif kind == 1:  # back of the hand to the camera, fingers up and inward
        palm, fingers = np.array([-0.2, -0.1, -1.0]), np.array([-0.7, 0.8, 0.2])
    elif kind == 2:  # palms towards each other, as when explaining
        palm, fingers = np.array([-1.0, 0.2, 0.35]), np.array([-0.1, 0.75, 0.5])
    else:  # palm up and out
        palm, fingers = np.array([-0.2, 0.75, 0.7]), np.array([0.25, 0.6, 0.6])
    palm, fingers = palm + rng.normal(0, 0.2, 3), fingers + rng.normal(0, 0.2, 3)
    return palm / np.linalg.norm(palm), fingers / np.linalg.norm(fingers)


def _hand(rng, surface, s: int, side: str, shape: str) -> dict[str, Rotation]:
    """Finger rotations: curl per finger and a little spread."""
    base = {
        "relaxed": (18, 22, 26, 30, 34),
        "open": (4, 4, 4, 5, 6),
        "spread": (0, 0, 0, 0, 0),
        "point": (35, 3, 70, 75, 75),
        "fist": (38, 72, 78, 78, 76),
        "pinch": (30, 48, 30, 24, 20),
        "victory": (40, 2, 2, 72, 74),
    }[shape]
    spread = {"spread": 11, "victory": 9, "open": 5}.get(shape, 2)
    out = {}
    for f, finger in enumerate(FINGERS):
        level = max(-5.0, base[f] * rng.uniform(0.8, 1.15) + rng.normal(0, 3))
        fan = 0.0 if finger == "thumb" else (2.4 - f) / 1.5 * spread + rng.normal(0, 1)
        for k in range(3):
            share = (0.5, 0.7, 0.8)[k] if finger == "thumb" else (0.95, 1.15, 0.7)[k]
            turn = Rotation.from_rotvec(np.radians(level * share) * surface.finger_axes[s, f, k])
            if k == 0 and fan:
                # Positive fan moves the finger towards the thumb's side.
                turn = (
                    Rotation.from_rotvec(np.radians(-fan if side == "left" else fan) * np.array([0, 1.0, 0]))
                    * turn
                )
            out[f"{side}_{finger}{k + 1}"] = turn
    return out
