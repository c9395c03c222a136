"""Clips of our own: idle, talk, wave. Computed from a seed whenever they are asked for.

Everything is periodic over the clip's length (sums of whole harmonics, circular windows and splines), so
that the clips loop without a seam, and at least twice differentiable, so that nothing jerks. Arms are
authored by goals (where the wrist is, where fingers and palm point) in the upper torso's frame and solved
on the template's neutral skeleton; speech is a row of mouth shapes that blend by dominance (Cohen and
Massaro 1993: each shape's influence rises and falls about its moment, and neighbours share the mouth by
the ratio of their influences).

The root, spine and head move *about* the rest pose: :func:`guava.motion.apply.apply_motion` lays that
movement over the photo's own pose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from guava.body import Pose, Template, load_template
from guava.body.controls import FULL_LOOK, expression_units, read_controls, write_controls
from guava.body.skeleton import rest_joints
from guava.body.transfer import put_units
from guava.errors import InputError
from guava.motion.motion import Motion
from guava.rotation import axis_angle_to_matrix, matrix_to_axis_angle, matrix_to_quaternion

FPS = 30.0
CLIP_NAMES = ("idle", "talk", "wave")

_FINGERS = ("index", "middle", "ring", "pinky")


def make_clip(name: str, template: Template | None = None, seed: int = 0) -> Motion:
    """One of our clips, for a template with SMPL-X's joints.

    Faces are authored in ARKit's units; where a template has none, its jaw and eye joints, its lids and its
    own coefficients show what they can of it.

    Args:
        name: "idle" (8 s: breathing, weight shifts, blinks, glances), "talk" (8 s: speech with gestures)
            or "wave" (4 s: the right hand beside the head).
        template: Default: the open one.
        seed: Other seeds give other takes.

    Raises:
        InputError: There is no such clip.
    """
    makers: dict[str, Callable[[_Take], None]] = {"idle": _idle, "talk": _talk, "wave": _wave}
    if name not in makers:
        raise InputError(f"There is no clip named '{name}'.", f"Clips: {', '.join(CLIP_NAMES)}.")
    template = template or load_template()
    take = _Take(template, {"idle": 8.0, "talk": 8.0, "wave": 4.0}[name], seed)
    makers[name](take)
    return take.motion(name)


# --- a take: time, periodic signals, and what they are written to -----------------------------------------


class _Take:
    """A clip under construction: T frames at :data:`FPS`, all signals periodic over ``seconds``."""

    def __init__(self, template: Template, seconds: float, seed: int):
        self.template = template
        self.seconds = seconds
        self.count = round(seconds * FPS)
        self.time = np.arange(self.count) / FPS
        self.random = np.random.default_rng(seed)
        self.joints = {name: np.zeros((self.count, 3)) for name in template.body.joint_names}
        # For templates without units, the open template's are translated at the end.
        self.names = expression_units(template) or load_template().expression_names
        self.units = {name: np.zeros(self.count) for name in self.names}
        self.translation = np.zeros((self.count, 3))

    def drift(self, rms: float, slowest: int = 1, fastest: int = 4) -> np.ndarray:
        """(T,) smooth noise of zero mean: whole harmonics of the clip's length, amplitudes falling with
        1/k.
        """
        k = np.arange(slowest, fastest + 1)[:, None]
        phase = self.random.uniform(0, 2 * np.pi, k.shape)
        waves = np.cos(2 * np.pi * k * self.time / self.seconds + phase) / k
        return rms * waves.sum(0) / np.sqrt((0.5 / k**2).sum())

    def since(self, moment: float) -> np.ndarray:
        """(T,) seconds since ``moment`` on the circle, in [-seconds / 2, seconds / 2)."""
        return (self.time - moment + self.seconds / 2) % self.seconds - self.seconds / 2

    def window(self, start: float, rise: float, hold: float, fall: float) -> np.ndarray:
        """(T,) 0, up to 1 within ``rise`` seconds from ``start``, 1 for ``hold``, back to 0 within
        ``fall``.
        """
        middle = start + (rise + hold + fall) / 2
        t = self.since(middle) + (rise + hold + fall) / 2
        return _smootherstep(t / rise) * (1 - _smootherstep((t - rise - hold) / fall))

    def smooth(self, values: np.ndarray, seconds: float) -> np.ndarray:
        """``values`` (T, ...) under a circular Gaussian of standard deviation ``seconds``."""
        frequency = np.fft.rfftfreq(self.count, 1 / FPS)
        gain = np.exp(-2 * (np.pi * frequency * seconds) ** 2)
        spectrum = np.fft.rfft(values, axis=0) * gain.reshape(-1, *[1] * (values.ndim - 1))
        return np.fft.irfft(spectrum, n=self.count, axis=0)

    def through(self, moments: np.ndarray, values: np.ndarray, soften: float = 0.06) -> np.ndarray:
        """(T, D) periodic, monotone between key values (K, D) at ``moments`` (K,), softened in time."""
        shifts = (-self.seconds, 0.0, self.seconds)
        knots = np.concatenate([moments + s for s in shifts])
        return self.smooth(PchipInterpolator(knots, np.tile(values, (3, 1)))(self.time), soften)

    def unit(self, name: str, values: np.ndarray) -> None:
        """Add to an expression unit, or to its Left and Right; a template without it goes without."""
        for full in (name, f"{name}Left", f"{name}Right"):
            if full in self.units:
                self.units[full] += values

    def motion(self, name: str) -> Motion:
        template = self.template
        joints = np.stack([self.joints[n] for n in template.body.joint_names], 1)
        units = torch.from_numpy(np.stack([self.units[n] for n in self.names], 1).clip(0, 1)).float()
        pose = replace(
            Pose.rest(template, self.count),
            joints=torch.from_numpy(joints).float(),
            translation=torch.from_numpy(self.translation - self.translation[:1]).float(),
        )
        if expression_units(template):
            pose = replace(pose, expression=template.bounded_expression(units))
        else:
            controls = read_controls(replace(pose, expression=units), self.names)
            pose, _ = write_controls(pose, template, controls)
            pose, _ = put_units(pose, template, units, self.names)
        return Motion(
            pose=pose, fps=FPS, timestamps=torch.from_numpy(self.time.copy()),
            valid=torch.ones(self.count, dtype=torch.bool), template_hash=template.hash,
            joint_names=template.body.joint_names, expression_names=template.expression_names, loop=True,
            name=name, template_name=template.name,
        )


def _smootherstep(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, with continuous second derivative."""
    x = np.clip(x, 0, 1)
    return x**3 * (x * (6 * x - 15) + 10)


# --- what everybody does ----------------------------------------------------------------------------------


def _live(take: _Take, breaths: int, sway: float) -> None:
    """Breathing and weight shifts: ``breaths`` in the clip, ``sway`` in metres of the hips."""
    phase = 2 * np.pi * breaths * take.time / take.seconds
    # In is quicker than out.
    breath = np.sin(phase + 0.35 * np.sin(phase))
    take.joints["spine3"][:, 0] -= 0.012 * breath
    take.joints["spine2"][:, 0] += 0.004 * breath
    take.joints["neck"][:, 0] += 0.006 * breath
    for side, sign in (("left", 1), ("right", -1)):
        take.joints[f"{side}_collar"][:, 2] += sign * 0.014 * breath
    shift = take.drift(1.0, 1, 2)
    take.translation[:, 0] += sway * shift
    take.translation[:, 2] += 0.4 * sway * take.drift(1.0, 1, 2)
    lean = 0.9 * sway * shift
    take.joints["pelvis"][:, 2] -= lean
    take.joints["spine1"][:, 2] += 0.8 * lean
    take.joints["spine3"][:, 2] += 0.5 * lean
    take.joints["spine2"][:, 1] += 0.6 * sway * take.drift(1.0, 1, 3)


def _look(take: _Take, yaw: np.ndarray, pitch: np.ndarray) -> None:
    """Turn the eyes: radians to the person's left and up.

    ARKit's units turn the eyeballs and take the lids along; a template with other units turns its eye joints.
    """
    if "eyeLookOutLeft" not in take.units:
        for eye in ("left_eye_smplhf", "right_eye_smplhf"):
            take.joints[eye][:, 1] += yaw
            take.joints[eye][:, 0] -= pitch
        return
    for side, other in (("Left", yaw), ("Right", -yaw)):
        take.unit(f"eyeLookOut{side}", np.maximum(other, 0) / FULL_LOOK)
        take.unit(f"eyeLookIn{side}", np.maximum(-other, 0) / FULL_LOOK)
    take.unit("eyeLookDown", np.maximum(-pitch, 0) / FULL_LOOK)
    take.unit("eyeLookUp", np.maximum(pitch, 0) / FULL_LOOK)


def _glances(take: _Take, moments: list[float], reach: float) -> None:
    """Look elsewhere for a moment: eyes jump (about 60 ms), the head follows later and less."""
    yaw, pitch = np.zeros(take.count), np.zeros(take.count)
    for start in moments:
        hold = take.random.uniform(0.5, 1.0)
        aside = reach * take.random.choice([-1, 1]) * take.random.uniform(0.7, 1.0)
        upward = reach * take.random.uniform(-0.6, 0.3)
        jump = take.window(start, 0.1, hold, 0.1)
        yaw += aside * jump
        pitch += upward * jump
        follow = take.window(start + 0.08, 0.45, hold * 0.6, 0.6)
        take.joints["head"][:, 1] += 0.35 * aside * follow
        take.joints["head"][:, 0] -= 0.25 * upward * follow
    # Fixation is never quite still.
    yaw += take.drift(0.004, 2, 12)
    pitch += take.drift(0.003, 2, 12)
    _look(take, take.smooth(yaw, 0.02), take.smooth(pitch, 0.02))


def _blinks(take: _Take, moments: list[float]) -> None:
    """Close within 0.1 s, open within 0.2 s; brows and cheeks take a little part."""
    closed = np.zeros(take.count)
    for start in moments:
        closed = np.maximum(closed, take.window(start, 0.11, 0.03, 0.22))
    take.unit("eyeBlink", closed)
    take.unit("eyeSquint", 0.12 * closed)
    take.unit("browDown", 0.05 * closed)


# --- arms by goals ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArmGoal:
    """Where an arm is to be, in the upper torso's frame at the template's size, for the *left* arm.

    Attributes:
        wrist: (..., 3) metres from the neutral template's origin.
        elbow: (..., 3) the direction in which the elbow points.
        fingers: (..., 3) direction from wrist to knuckles.
        palm: (..., 3) direction that the palm faces.
        curl: (...,) 0 a flat hand, 1 a fist.
        lift: (...,) radians that the collar bone rises.
    """

    wrist: np.ndarray
    elbow: np.ndarray
    fingers: np.ndarray
    palm: np.ndarray
    curl: np.ndarray
    lift: np.ndarray


def _goal(wrist, elbow, fingers, palm, curl, lift=0.0) -> np.ndarray:
    """(14,) the numbers of an :class:`ArmGoal` in a row, to be interpolated."""
    return np.array([*wrist, *elbow, *fingers, *palm, curl, lift], float)


def _as_goal(rows: np.ndarray) -> ArmGoal:
    return ArmGoal(rows[:, :3], rows[:, 3:6], rows[:, 6:9], rows[:, 9:12], rows[:, 12], rows[:, 13])


_HANGING = _goal((0.265, 0.015, 0.05), (0.45, -0.1, -1), (0.02, -1, 0.12), (-1, 0, -0.25), 0.42)
_BELLY = _goal((0.125, 0.165, 0.235), (0.45, -0.7, -0.6), (-0.75, 0.12, 0.62), (-0.35, -0.55, -0.6), 0.40)
_OPEN = _goal((0.205, 0.235, 0.285), (0.35, -0.9, -0.5), (-0.12, 0.30, 0.95), (-0.70, 0.65, 0.1), 0.26, 0.02)
_OFFER = _goal((0.240, 0.265, 0.275), (0.35, -0.9, -0.45), (0.18, 0.32, 0.92), (-0.45, 0.85, 0.1), 0.22, 0.03)
_POINT = _goal((0.15, 0.31, 0.27), (0.45, -0.85, -0.4), (-0.30, 0.70, 0.62), (-0.85, 0, -0.45), 0.36, 0.03)
_RAISED = _goal((0.335, 0.600, 0.165), (0.55, -0.8, -0.15), (0.10, 0.99, 0.05), (-0.12, 0.0, 1), 0.16, 0.14)
_LIFTING = _goal((0.31, 0.30, 0.27), (0.6, -0.7, -0.4), (0.05, 0.75, 0.65), (-0.55, -0.35, 0.5), 0.34, 0.05)


def solve_arm(template: Template, goal: ArmGoal) -> dict[str, Tensor]:
    """Rotations of the left arm that reach a goal: two bones in closed form, twist shared by elbow and
    wrist.

    Goals are authored on the open template; on others they are placed about the shoulder, in proportion to
    the arm. Wrists out of reach are brought within it.

    Args:
        template: Its neutral skeleton is used.
        goal: T goals.

    Returns:
        (T, 3) axis-angle by joint name, continuous in time: collar, shoulder, elbow, wrist.
    """
    rest = _left_arm(template)
    wanted = {n: torch.from_numpy(np.asarray(getattr(goal, n))).double() for n in (
        "wrist", "elbow", "fingers", "palm", "lift")}
    authored = _left_arm(load_template())
    size = _reach(rest) / _reach(authored)
    wanted["wrist"] = rest["shoulder"] + size * (wanted["wrist"] - authored["shoulder"])
    count = wanted["wrist"].shape[0]
    lift = torch.zeros(count, 3, dtype=torch.float64)
    lift[:, 2] = wanted["lift"]
    collar = axis_angle_to_matrix(lift)
    shoulder = rest["collar"] + (collar @ (rest["shoulder"] - rest["collar"]))

    upper_bone, fore_bone = rest["elbow"] - rest["shoulder"], rest["wrist"] - rest["elbow"]
    upper, fore = upper_bone.norm(), fore_bone.norm()
    to_wrist = wanted["wrist"] - shoulder
    reach = to_wrist.norm(dim=-1, keepdim=True)
    line = to_wrist / reach
    reach = reach.clamp(min=float(abs(upper - fore)) * 1.05, max=float(upper + fore) * 0.985)
    out = _unit(wanted["elbow"] - (wanted["elbow"] * line).sum(-1, keepdim=True) * line)
    along = (upper**2 - fore**2 + reach**2) / (2 * reach)
    elbow = along * line + (upper**2 - along**2).clamp(min=0).sqrt() * out
    hinge = _cross(out, line)

    # The elbow's hinge at rest: bending turns the forearm forwards (+z).
    forward = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    upper_world = _turn(upper_bone, _cross(upper_bone, forward), elbow, hinge)
    fore_world = _turn(fore_bone, _cross(fore_bone, forward), reach * line - elbow, hinge)
    hand_bone = rest["middle1"] - rest["wrist"]
    down = torch.tensor([0.0, -1, 0], dtype=torch.float64)
    hand_world = _turn(hand_bone, down, wanted["fingers"], wanted["palm"])

    # Share the twist about the forearm's axis, so that the skin does not wring at the wrist.
    axis = _unit(fore_bone)
    relative = matrix_to_quaternion(fore_world.transpose(-1, -2) @ hand_world)
    twist = 2 * torch.atan2((relative[:, 1:] * axis).sum(-1), relative[:, 0])
    twist = torch.atan2(torch.sin(twist), torch.cos(twist))
    fore_world = fore_world @ axis_angle_to_matrix(0.6 * twist[:, None] * axis)

    local = {
        "left_collar": collar,
        "left_shoulder": collar.transpose(-1, -2) @ upper_world,
        "left_elbow": upper_world.transpose(-1, -2) @ fore_world,
        "left_wrist": fore_world.transpose(-1, -2) @ hand_world,
    }
    return {name: _continuous(matrix_to_axis_angle(matrix)) for name, matrix in local.items()}


def _left_arm(template: Template) -> dict[str, Tensor]:
    joints = rest_joints(template, template.body)[0]
    names = ("collar", "shoulder", "elbow", "wrist", "middle1")
    return {name: joints[template.joint(f"left_{name}")] for name in names}


def _reach(arm: dict[str, Tensor]) -> Tensor:
    return (arm["elbow"] - arm["shoulder"]).norm() + (arm["wrist"] - arm["elbow"]).norm()


def _pose_arm(take: _Take, side: str, goal: ArmGoal) -> None:
    """Write an arm and its fingers; the right arm is the left one's mirror image."""
    mirror = np.array([1.0, 1, 1]) if side == "left" else np.array([1.0, -1, -1])
    for name, rotation in solve_arm(take.template, goal).items():
        take.joints[name.replace("left", side)] += mirror * rotation.numpy()
    for place, finger in enumerate(_FINGERS):
        # Relaxed fingers bend more towards the little one, and not all at once.
        bend = goal.curl * (0.8 + 0.16 * place) + take.drift(0.02, 1, 5)
        for knuckle, share in zip((1, 2, 3), (0.75, 1.05, 0.6), strict=True):
            take.joints[f"{side}_{finger}{knuckle}"] += mirror * np.outer(bend * share, [0, 0, -1])
        spread = (0.05, 0.0, -0.04, -0.09)[place] * (1 - goal.curl)
        take.joints[f"{side}_{finger}1"] += mirror * np.outer(spread, [0, -1, 0])
    for knuckle, share in zip((1, 2, 3), (0.2, 0.3, 0.4), strict=True):
        take.joints[f"{side}_thumb{knuckle}"] += mirror * np.outer(goal.curl * share, [0, 0.6, -0.8])


def _unit(v: Tensor) -> Tensor:
    return torch.nn.functional.normalize(v, dim=-1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.cross(*torch.broadcast_tensors(a, b))


def _turn(first: Tensor, second: Tensor, to_first: Tensor, to_second: Tensor) -> Tensor:
    """(..., 3, 3) rotation that takes ``first`` to ``to_first`` and ``second`` as near as it can to
    ``to_second``.
    """

    def frame(a: Tensor, b: Tensor) -> Tensor:
        x = _unit(a)
        z = _unit(_cross(x, b))
        return torch.stack([x, _cross(z, x), z], -1)

    return frame(to_first, to_second) @ frame(first, second).transpose(-1, -2)


def _continuous(axis_angle: Tensor) -> Tensor:
    """The same rotations (T, 3) with angles that may pass pi instead of jumping there."""
    out = axis_angle.clone()
    for t in range(1, out.shape[0]):
        angle = out[t].norm()
        if angle > 1e-6:
            other = out[t] * (1 - 2 * np.pi / angle)
            if (other - out[t - 1]).norm() < (out[t] - out[t - 1]).norm():
                out[t] = other
    return out


# --- the clips --------------------------------------------------------------------------------------------


def _idle(take: _Take) -> None:
    _live(take, breaths=2, sway=0.008)
    for name, rms in (("neck", 0.010), ("head", 0.016)):
        for axis in range(3):
            take.joints[name][:, axis] += take.drift(rms, 1, 4)
    _blinks(take, [0.9, 3.7, 4.25, 6.9])
    _glances(take, [2.1, 5.4], reach=0.16)
    take.unit("mouthSmile", 0.10 + take.drift(0.03, 1, 3))
    take.unit("browInnerUp", 0.04 + take.drift(0.02, 1, 3))
    take.unit("mouthPress", np.maximum(take.drift(0.04, 1, 4), 0) ** 1.5)
    for side in ("left", "right"):
        rows = np.tile(_HANGING, (take.count, 1))
        for column, rms in ((0, 0.004), (2, 0.006), (12, 0.02)):
            rows[:, column] += take.drift(rms, 1, 3)
        _pose_arm(take, side, _as_goal(rows))


# Mouth shapes: units, how firmly they hold against their neighbours, half-width in seconds. "closed" is
# the share of the jaw's opening that the lips close again (mouthClose = closed * jawOpen, hence never
# above it).
_SHAPES: dict[str, tuple[dict[str, float], float, float]] = {
    "a": ({"jawOpen": 0.42, "mouthLowerDown": 0.26, "mouthUpperUp": 0.14}, 1.0, 0.085),
    "e": ({"jawOpen": 0.26, "mouthSmile": 0.14, "mouthStretch": 0.15, "mouthLowerDown": 0.2,
           "mouthUpperUp": 0.14}, 1.0, 0.08),
    "i": ({"jawOpen": 0.13, "mouthSmile": 0.22, "mouthStretch": 0.22, "mouthLowerDown": 0.16}, 1.0, 0.08),
    "o": ({"jawOpen": 0.30, "mouthFunnel": 0.42, "mouthPucker": 0.25}, 1.1, 0.09),
    "u": ({"jawOpen": 0.15, "mouthPucker": 0.55, "mouthFunnel": 0.22}, 1.1, 0.09),
    "m": ({"jawOpen": 0.13, "closed": 0.95, "mouthPress": 0.25, "mouthRollLower": 0.10}, 1.9, 0.06),
    "f": ({"jawOpen": 0.10, "mouthRollLower": 0.30, "mouthUpperUp": 0.22}, 1.6, 0.055),
    "s": ({"jawOpen": 0.08, "mouthLowerDown": 0.20, "mouthStretch": 0.08, "mouthUpperUp": 0.10}, 1.1, 0.055),
    "l": ({"jawOpen": 0.20, "mouthLowerDown": 0.14}, 0.9, 0.05),
    "k": ({"jawOpen": 0.17, "mouthUpperUp": 0.06}, 0.6, 0.05),
    "sh": ({"jawOpen": 0.10, "mouthFunnel": 0.45, "mouthPucker": 0.12}, 1.3, 0.06),
}
_CONSONANTS, _VOWELS = ("m", "f", "s", "l", "k", "sh", "s", "m", "l"), ("a", "e", "i", "o", "u", "a", "e")


def _speak(take: _Take, phrases: list[tuple[float, float]]) -> list[float]:
    """Syllables at about 4.6 a second within each phrase; returns the moments of the stressed ones."""
    said: list[tuple[str, float, float]] = []
    stressed: list[float] = []
    for start, end in phrases:
        moment, number = start, 0
        while moment < end - 0.1:
            length = take.random.uniform(0.18, 0.25)
            stress = 1.0
            if number % 3 == 1:
                length, stress = length * 1.15, 1.25
                stressed.append(moment + 0.55 * length)
            last = moment + length >= end - 0.1
            if take.random.uniform() < 0.85:
                said.append((str(take.random.choice(_CONSONANTS)), moment + 0.08 * length, 1.0))
            said.append((str(take.random.choice(_VOWELS)), moment + 0.55 * length, 0.8 if last else stress))
            moment += length
            number += 1
    total = np.full(take.count, 0.12)
    sums: dict[str, np.ndarray] = {}
    for shape, moment, stress in said:
        targets, firmness, width = _SHAPES[shape]
        dominance = firmness * np.exp(-((take.since(moment) / width) ** 2))
        total += dominance
        for unit, value in targets.items():
            sums.setdefault(unit, np.zeros(take.count))
            sums[unit] += dominance * value * (stress if unit == "jawOpen" else 1.0)
    values = {unit: take.smooth(value / total, 0.018) for unit, value in sums.items()}
    closed = values.pop("closed")
    for unit, value in values.items():
        take.unit(unit, value)
    take.unit("mouthClose", np.clip(closed, 0, 0.95) * np.clip(values["jawOpen"], 0, 1))
    return stressed


def _talk(take: _Take) -> None:
    _live(take, breaths=2, sway=0.007)
    stressed = _speak(take, [(0.35, 2.65), (3.05, 5.25), (5.65, 7.45)])

    nod = np.zeros(take.count)
    brows = np.zeros(take.count)
    for number, moment in enumerate(stressed):
        strength = take.random.uniform(0.6, 1.0)
        nod += strength * take.window(moment - 0.16, 0.18, 0.0, 0.32)
        if number % 2 == 0:
            brows += strength * take.window(moment - 0.2, 0.18, 0.15, 0.4)
    take.joints["head"][:, 0] += 0.045 * nod + take.drift(0.020, 1, 5)
    take.joints["head"][:, 1] += take.drift(0.045, 1, 4)
    take.joints["head"][:, 2] += take.drift(0.030, 1, 4)
    for axis, rms in enumerate((0.010, 0.018, 0.012)):
        take.joints["neck"][:, axis] += take.drift(rms, 1, 4)
    take.joints["spine3"][:, 1] += take.drift(0.012, 1, 3)
    take.unit("browInnerUp", 0.30 * brows)
    take.unit("browOuterUp", 0.32 * brows)
    take.unit("eyeWide", 0.10 * brows)
    take.unit("mouthSmile", 0.12 + take.drift(0.03, 1, 3) + 0.16 * take.window(7.3, 0.4, 0.3, 0.6))
    take.unit("cheekSquint", 0.12 * take.window(7.3, 0.4, 0.3, 0.6))
    _blinks(take, [0.15, 2.75, 5.32, 7.62])
    _glances(take, [1.5, 4.6], reach=0.12)

    moments = np.array([0.05, 0.75, 1.55, 2.35, 3.0, 3.75, 4.55, 5.2, 5.95, 6.75, 7.4])
    left = np.stack([_BELLY, _OPEN, _OPEN, _BELLY, _BELLY, _BELLY, _POINT, _BELLY, _OFFER, _OFFER, _BELLY])
    right = np.stack([_BELLY, _OPEN, _OFFER, _BELLY, _POINT, _POINT, _POINT, _BELLY, _OFFER, _OPEN, _BELLY])
    for side, keys in (("left", left), ("right", right)):
        rows = take.through(moments + take.random.uniform(-0.04, 0.04), keys, soften=0.09)
        beat = np.zeros(take.count)
        for moment in stressed:
            beat += take.random.uniform(0.5, 1.0) * take.window(moment - 0.14, 0.16, 0.0, 0.26)
        rows[:, 1] += take.smooth(-0.022 * beat, 0.03)
        rows[:, 2] += take.smooth(0.012 * beat, 0.03)
        rows[:, 12] -= 0.04 * take.smooth(beat, 0.05)
        for column, rms in ((0, 0.005), (1, 0.004), (2, 0.005), (6, 0.03), (10, 0.03)):
            rows[:, column] += take.drift(rms, 1, 5)
        _pose_arm(take, side, _as_goal(rows))


def _wave(take: _Take) -> None:
    _live(take, breaths=1, sway=0.005)
    _blinks(take, [0.35, 3.2])
    _look(take, take.drift(0.004, 1, 8), take.drift(0.003, 1, 8))
    up = take.window(0.3, 0.85, 1.75, 0.95)
    take.unit("mouthSmile", 0.08 + 0.50 * up)
    take.unit("cheekSquint", 0.28 * up)
    take.unit("mouthUpperUp", 0.10 * up)
    take.unit("mouthLowerDown", 0.06 * up)
    take.unit("browOuterUp", 0.22 * take.window(0.4, 0.35, 0.3, 0.6))
    take.unit("browInnerUp", 0.15 * take.window(0.4, 0.35, 0.3, 0.6))
    take.joints["head"][:, 2] += -0.07 * up + take.drift(0.010, 1, 3)
    take.joints["head"][:, 0] += 0.03 * take.window(0.5, 0.3, 0.1, 0.5) + take.drift(0.008, 1, 3)
    take.joints["spine2"][:, 2] += 0.025 * up

    moments = np.array([0.0, 0.30, 0.82, 1.35, 2.70, 3.22, 3.75])
    keys = np.stack([_HANGING, _HANGING, _LIFTING, _RAISED, _RAISED, _LIFTING, _HANGING])
    rows = take.through(moments, keys, soften=0.07)
    swing = take.window(1.2, 0.4, 0.95, 0.45)
    phase = 2 * np.pi * 2.25 * (take.time - 1.0)
    rows[:, 0] += 0.055 * swing * np.sin(phase)
    # The hand lags behind the forearm, the fingers behind the hand.
    rows[:, 6] += 0.38 * swing * np.sin(phase - 0.55)
    rows[:, 12] += 0.07 * swing * np.sin(phase - 1.2)
    _pose_arm(take, "right", _as_goal(rows))
    rows = np.tile(_HANGING, (take.count, 1))
    rows[:, 2] += take.drift(0.005, 1, 2)
    _pose_arm(take, "left", _as_goal(rows))
