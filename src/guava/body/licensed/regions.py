"""Named regions and points of smplx-flame, found from skinning weights, shape and FLAME's masks."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

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

    def having(corners: int, mask: np.ndarray) -> np.ndarray:
        """Head faces with at least so many corners in a mask over FLAME's vertices."""
        return (on_head >= 0).all(1) & (mask[on_head].sum(1) >= corners)

    above_neck = parts == index("scalp")
    parts[above_neck & having(3, _face_mask(head, found))] = index("face")
    balls = [head.weights[:, joint] > 0.5 for joint in (3, 4)]
    sockets, cavity = _hollows(body, head, flame_ids, balls)
    parts[having(2, sockets)] = index("eye_sockets")
    parts[having(2, cavity)] = index("mouth_cavity")
    for side, ball in zip(("left", "right"), balls, strict=True):
        parts[having(3, ball)] = index(f"{side}_eyeball")
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


def _hollows(
    body: OwnerModel, head: OwnerModel, flame_ids: np.ndarray, balls: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(5023,) bool each: skin round the eyeballs and behind the lips that cannot be seen from anywhere."""
    v = head.v_template
    hidden = ~_seen(body.v_template, body.faces, flame_ids)[flame_ids] & ~(balls[0] | balls[1])
    inner = head.faces[hidden[head.faces].all(1)]
    pairs = np.concatenate([inner[:, [0, 1]], inner[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(v), len(v)))
    count, label = connected_components(graph, directed=False)
    label[~hidden] = count  # what can be seen is no part of a hollow

    def touching(near: np.ndarray) -> np.ndarray:
        return np.isin(label, np.setdiff1d(label[near & hidden], [count])) & hidden

    around = np.zeros(len(v), bool)
    for ball in balls:
        centre = v[ball].mean(0)
        radius = np.linalg.norm(v[ball] - centre, axis=1).mean()
        around |= np.linalg.norm(v - centre, axis=1) < 1.3 * radius
    upper, lower = v[list(teeth.UPPER_LIP)], v[list(teeth.LOWER_LIP)]
    lips = (upper + lower) / 2
    gap = np.linalg.norm(upper - lower, axis=1).mean()
    at_lips = np.linalg.norm(v[:, None] - lips[None], axis=2).min(1) < 1.5 * gap
    return touching(around), touching(at_lips)


def _seen(
    vertices: np.ndarray, faces: np.ndarray, around: np.ndarray, directions: int = 24, size: int = 384
) -> np.ndarray:
    """(V,) bool: vertices of which a camera sees at least a third of the faces from ``directions`` round the
    vertices ``around``. (One face of many may shine through a thin wall.)"""
    from guava.camera import Camera
    from guava.rendering.mesh import rasterize_mesh

    # Double precision, so that no machine's rounding shows in the result and thus in the template's hash.
    vertices = vertices.astype(np.float64)
    middle = (vertices[around].min(0) + vertices[around].max(0)) / 2
    centred = torch.from_numpy(vertices - middle)
    reach = float(centred[around].norm(dim=1).max()) * 1.02
    near = (centred.norm(dim=1) < 1.3 * reach).numpy()[faces].any(1)
    faces = faces[near]
    triangles = torch.from_numpy(faces)
    camera = Camera.frontal(size)
    away = torch.tensor([0, 0, -reach * 24.0], dtype=torch.float64)
    seen = np.zeros(len(faces), bool)
    for i in range(directions):  # evenly over the sphere, by the golden angle
        up = 1 - (2 * i + 1) / directions
        turn = i * 2.399963
        level = np.sqrt(1 - up**2)
        forward = torch.tensor([level * np.sin(turn), up, level * np.cos(turn)], dtype=torch.float64)
        right = torch.linalg.cross(torch.tensor([0, 1.0, 0], dtype=torch.float64), forward)
        right = right / right.norm()
        frame = torch.stack([right, torch.linalg.cross(forward, right), forward])
        turned = centred @ frame.T
        hit = rasterize_mesh(turned + away, triangles, camera)
        a, b, c = turned[triangles].unbind(1)
        outside = torch.linalg.cross(b - a, c - a)[:, 2] > 0
        ids = hit.face_ids[hit.mask].long().unique()
        seen[ids[outside[ids]].numpy()] = True
    total = np.bincount(faces.ravel(), minlength=len(vertices))
    return np.bincount(faces[seen].ravel(), minlength=len(vertices)) * 3 >= total.clip(1)


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
