"""Named regions and points of smplx-flame, found from skinning weights, shape and FLAME's masks."""

from __future__ import annotations

import numpy as np

from guava.body.licensed import smplx, teeth
from guava.body.licensed.arrays import OwnerModel

PART_NAMES = (
    "torso", "left_arm", "right_arm", "left_hand", "right_hand", "neck", "face", "scalp", "legs",
    "left_eyeball", "right_eyeball", "lower_teeth", "upper_teeth", "tongue", "mouth_cavity", "eye_sockets",
)  # fmt: skip
"""As the open template's. There is no tongue."""

_FINGERS = ("index", "middle", "pinky", "ring", "thumb")
_IBUG_POINTS = {
    "chin": 8, "nose_tip": 30, "right_eye_outer": 36, "right_eye_inner": 39, "left_eye_inner": 42,
    "left_eye_outer": 45, "right_mouth_corner": 48, "left_mouth_corner": 54,
}  # fmt: skip


def _part_of_joint(name: str) -> str:
    side = name.split("_")[0]
    if any(finger in name for finger in _FINGERS) or name.endswith("wrist"):
        return f"{side}_hand"
    if name.endswith(("shoulder", "elbow")):
        return f"{side}_arm"
    if name.endswith(("hip", "knee", "ankle", "foot")):
        return "legs"
    if name == "neck":
        return "neck"
    if name in ("head", "jaw", "left_eye_smplhf", "right_eye_smplhf"):
        return "scalp"
    return "torso"


def face_parts(body: OwnerModel, head: OwnerModel, found: dict, faces: np.ndarray) -> np.ndarray:
    """(F,) index into ``PART_NAMES`` of every face, the teeth's 168 last."""
    index = PART_NAMES.index
    count = body.v_template.shape[0]
    flame_ids = found["flame_ids"]["flame_ids"]
    share = np.zeros((count, len(PART_NAMES)))
    for joint, name in enumerate(smplx.JOINT_NAMES):
        share[:, index(_part_of_joint(name))] += body.weights[:, joint]
    for side in ("left", "right"):
        share[found["hands"][f"{side}_hand_ids"]] = np.eye(len(PART_NAMES))[index(f"{side}_hand")]
    of_skin = faces[: len(body.faces)]
    parts = share[of_skin].sum(1).argmax(1)

    slot = np.full(count, -1)
    slot[flame_ids] = np.arange(len(flame_ids))
    on_head = slot[of_skin]

    def all_of(mask: np.ndarray) -> np.ndarray:
        """Faces whose corners are all in a mask over FLAME's vertices."""
        return (on_head >= 0).all(1) & mask[on_head].all(1)

    above_neck = parts == index("scalp")
    parts[above_neck & all_of(_face_mask(head, found))] = index("face")
    balls = [head.weights[:, joint] > 0.5 for joint in (3, 4)]
    parts[all_of(_sockets(head, balls))] = index("eye_sockets")
    parts[all_of(_cavity(head))] = index("mouth_cavity")
    for side, ball in zip(("left", "right"), balls, strict=True):
        parts[all_of(ball)] = index(f"{side}_eyeball")
    upper = np.full(teeth.UPPER_FACES, index("upper_teeth"))
    lower = np.full(len(faces) - len(of_skin) - teeth.UPPER_FACES, index("lower_teeth"))
    return np.concatenate([parts, upper, lower]).astype(np.int64)


def _face_mask(head: OwnerModel, found: dict) -> np.ndarray:
    """(5023,) bool: FLAME's own mask, or what the expressions move."""
    mask = np.zeros(len(head.v_template), bool)
    if "masks" in found:
        mask[found["masks"]["mask_face"]] = True
        return mask
    moved = np.linalg.norm(head.expression_dirs, axis=1).max(1)
    front = head.v_template[:, 2] > np.median(head.v_template[:, 2])
    return (moved > 0.05 * moved.max()) & front


def _sockets(head: OwnerModel, balls: list[np.ndarray]) -> np.ndarray:
    """(5023,) bool: skin beside and behind an eyeball."""
    v = head.v_template
    out = np.zeros(len(v), bool)
    for ball in balls:
        centre = v[ball].mean(0)
        radius = np.linalg.norm(v[ball] - centre, axis=1).mean()
        off = v - centre
        out |= (np.linalg.norm(off, axis=1) < 1.25 * radius) & (off[:, 2] < 0.5 * radius)
    return out & ~(balls[0] | balls[1])


def _cavity(head: OwnerModel) -> np.ndarray:
    """(5023,) bool: skin behind the lips."""
    v = head.v_template
    upper, lower = v[list(teeth.UPPER_LIP)], v[list(teeth.LOWER_LIP)]
    lips = (upper + lower) / 2
    gap = np.linalg.norm(upper - lower, axis=1).mean()
    order = lips[:, 0].argsort()
    front = np.interp(v[:, 0], lips[order, 0], lips[order, 2])
    behind = front - v[:, 2]
    off = np.abs(v[:, 1] - lips[:, 1].mean())
    between = (v[:, 0] > lips[:, 0].min()) & (v[:, 0] < lips[:, 0].max())
    # The skin below the lower lip lies behind the lips too, but not as deep as it is low.
    deep = behind > gap + (off - 1.2 * gap).clip(min=0)
    return (off < 4 * gap) & between & deep & (behind < 12 * gap)


def surface_points(
    body: OwnerModel, head: OwnerModel, found: dict, flame_ids: np.ndarray
) -> dict[str, int]:
    """Named vertices: fingertips, toes, heels, ears, and corners of the face."""
    v, names = body.v_template, smplx.JOINT_NAMES
    joints = body.joint_regressor @ v
    out: dict[str, int] = {}

    def farthest(mask: np.ndarray, direction: np.ndarray) -> int:
        ids = np.nonzero(mask)[0]
        return int(ids[(v[ids] @ direction).argmax()])

    for sign, side in ((1, "left"), (-1, "right")):
        for finger in _FINGERS:
            last = names.index(f"{side}_{finger}3")
            out[f"{side}_{finger}_tip"] = farthest(
                body.weights.argmax(1) == last, joints[last] - joints[last - 1]
            )
        foot = np.isin(body.weights.argmax(1), [names.index(f"{side}_{n}") for n in ("ankle", "foot")])
        out[f"{side}_toe"] = farthest(foot, np.array([0, 0, 1.0]))
        out[f"{side}_heel"] = farthest(foot, np.array([0, -0.5, -1.0]))
        out[f"{side}_ear"] = int(flame_ids[_ear(head, found, side, sign)])
    out["head_top"] = int(flame_ids[head.v_template[:, 1].argmax()])
    full = found["landmarks"]
    for name, landmark in _IBUG_POINTS.items():
        corners = head.faces[full["full_faces"][landmark]]
        out[name] = int(flame_ids[corners[full["full_barycentrics"][landmark].argmax()]])
    return dict(sorted(out.items()))


def _ear(head: OwnerModel, found: dict, side: str, sign: int) -> int:
    """FLAME vertex that stands out farthest at the side of the head."""
    v = head.v_template
    if "masks" in found and len(found["masks"][f"mask_{side}_ear"]):
        ids = found["masks"][f"mask_{side}_ear"]
    else:
        eyes = head.joint_regressor[3:] @ v
        ids = np.nonzero(np.abs(v[:, 1] - eyes[:, 1].mean()) < 0.04)[0]
    return int(ids[(sign * v[ids, 0]).argmax()])
