"""From the base mesh's relaxed stance and 163 bones to a T pose with 55 SMPL-X-named joints.

The T pose is made by linear blend skinning with rotations that are fixed per bone, hence linear in the
vertices: shape directions stay exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.build_open_template.source import BaseMesh

FINGERS = {"index": 2, "middle": 3, "pinky": 5, "ring": 4, "thumb": 1}
SIDES = {"left": "L", "right": "R"}
_ROOTS = {
    "pelvis": "spine05",
    "spine1": "spine04",
    "spine2": "spine03",
    "spine3": "spine01",
    "neck": "neck01",
    "head": "head",
    "jaw": "jaw",
}
_LIMBS = {
    "hip": "upperleg01",
    "knee": "lowerleg01",
    "ankle": "foot",
    "foot": "toe2-1",
    "collar": "clavicle",
    "shoulder": "upperarm01",
    "elbow": "lowerarm01",
    "wrist": "wrist",
    "eye_smplhf": "eye",
}
# Bones that join the named joint rather than their parent's.
_MERGED = {
    "root": "pelvis",
    "pelvis.L": "pelvis",
    "pelvis.R": "pelvis",
    "spine02": "spine2",
    "breast.L": "spine3",
    "breast.R": "spine3",
    "neck02": "neck",
    "neck03": "neck",
}


def _joint_table() -> tuple[tuple[str, ...], tuple[int, ...]]:
    names = [
        "pelvis",
        "left_hip",
        "right_hip",
        "spine1",
        "left_knee",
        "right_knee",
        "spine2",
        "left_ankle",
        "right_ankle",
        "spine3",
        "left_foot",
        "right_foot",
        "neck",
        "left_collar",
        "right_collar",
        "head",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "jaw",
        "left_eye_smplhf",
        "right_eye_smplhf",
    ]
    parents = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
    for side in SIDES:
        for finger in FINGERS:
            for k in (1, 2, 3):
                parents.append(names.index(f"{side}_wrist") if k == 1 else len(names) - 1)
                names.append(f"{side}_{finger}{k}")
    return tuple(names), tuple(parents)


JOINTS, PARENTS = _joint_table()


def bone_of_joint(joint: str) -> str:
    """The bone whose head is the joint."""
    side, _, rest = joint.partition("_")
    if side not in SIDES:
        return _ROOTS[joint]
    if rest in _LIMBS:
        return f"{_LIMBS[rest]}.{SIDES[side]}"
    return f"finger{FINGERS[rest[:-1]]}-{rest[-1]}.{SIDES[side]}"


def joint_of_bones(mesh: BaseMesh) -> tuple[str, ...]:
    """For each bone the joint that takes over its skinning weight."""
    named = {bone_of_joint(joint): joint for joint in JOINTS}
    owner: list[str] = []
    for bone, parent in zip(mesh.bones, mesh.parents, strict=True):
        if bone in named:
            owner.append(named[bone])
        elif bone in _MERGED:
            owner.append(_MERGED[bone])
        elif bone.startswith("toe"):
            owner.append(("left" if bone.endswith("L") else "right") + "_foot")
        else:
            owner.append(owner[parent])
    return tuple(owner)


@dataclass(frozen=True)
class TPose:
    """Fixed rotations per bone (bones, 3, 3), and blended per kept vertex (V, 3, 3)."""

    mesh: BaseMesh
    rotations: np.ndarray
    blended: np.ndarray

    def apply(self, vertices: np.ndarray, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, V, 3) kept vertices and (N, bones, 3) bone heads into the T pose."""
        posed = heads.copy()
        for bone, parent in enumerate(self.mesh.parents):
            if parent >= 0:
                posed[:, bone] = (
                    posed[:, parent] + (heads[:, bone] - heads[:, parent]) @ self.rotations[parent].T
                )
        shift = posed - np.einsum("bij,nbj->nbi", self.rotations, heads)
        out = np.einsum("vij,nvj->nvi", self.blended, vertices, optimize=True)
        out += np.einsum("vb,nbd->nvd", self.mesh.weights, shift, optimize=True)
        return out, posed

    def apply_offsets(self, offsets: np.ndarray) -> np.ndarray:
        """(N, V, 3) offsets of vertices whose bones do not move."""
        return np.einsum("vij,nvj->nvi", self.blended, offsets, optimize=True)


def t_pose(mesh: BaseMesh, heads: np.ndarray) -> TPose:
    """Raise the arms to the horizontal, straighten the forearms and turn the palms down.

    Args:
        heads: (bones, 3) bone heads of an average adult.
    """
    row = {name: i for i, name in enumerate(mesh.bones)}
    rotations = np.tile(np.eye(3), (len(mesh.bones), 1, 1))
    for side, sign in (("L", 1.0), ("R", -1.0)):

        def head(name: str, side: str = side) -> np.ndarray:
            return heads[row[f"{name}.{side}"]].astype(float)

        outward = np.array([sign, 0, 0])
        upper = _turn(head("lowerarm01") - head("upperarm01"), outward)
        fore = _turn(head("wrist") - head("lowerarm01"), outward)
        axis = np.array([upper[2, 1] - upper[1, 2], upper[0, 2] - upper[2, 0], upper[1, 0] - upper[0, 1]])
        wrist = head("wrist")
        palm = fore @ np.cross(head("finger2-1") - wrist, head("finger5-1") - wrist)
        palm -= outward * (palm @ outward)
        palm /= np.linalg.norm(palm)
        down = np.array([0, -sign, 0])
        twist = np.arctan2(np.cross(palm, down) @ outward, palm @ down)
        if abs(twist) > np.radians(100):
            twist -= np.sign(twist) * np.pi
        for i, name in enumerate(mesh.bones):
            if not name.endswith(f".{side}"):
                continue
            bone = name[:-2]
            # Collar bone and shoulder blade take part of the raise; the forearm's twist spreads along it.
            if bone == "clavicle":
                rotations[i] = _rotation(axis, np.radians(8))
            elif bone == "shoulder01":
                rotations[i] = _rotation(axis, np.radians(16))
            elif bone in ("upperarm01", "upperarm02"):
                rotations[i] = upper
            elif bone == "lowerarm01":
                rotations[i] = _rotation(outward, 0.25 * twist) @ fore
            elif bone == "lowerarm02":
                rotations[i] = _rotation(outward, 0.7 * twist) @ fore
            elif bone == "wrist" or bone.startswith(("finger", "metacarpal")):
                rotations[i] = _rotation(outward, twist) @ fore
    rotations = rotations.astype(np.float32)
    return TPose(mesh, rotations, np.einsum("vb,bij->vij", mesh.weights, rotations))


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = axis / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def _turn(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The shortest rotation that takes the direction of a to that of b."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return _rotation(np.cross(a, b), np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b))
