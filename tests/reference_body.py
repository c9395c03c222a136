"""The release's EHM and its teeth a second time, vertex by vertex in float64.

Written from the description of the released model alone, without looking at ``guava.body``; takes the owners'
arrays as they are in their files. Nothing outside the tests may use it.
"""

from __future__ import annotations

import numpy as np

UPPER_LIP = [1713, 1715, 1716, 1735, 1696, 1694, 1657, 3543, 2774, 2811, 2813, 2850, 2833, 2832, 2830]
LOWER_LIP = [1576, 1577, 1773, 1774, 1795, 1802, 1865, 3503, 2948, 2905, 2898, 2881, 2880, 2713, 2712]

SLOT_OF_GROUP = {0: 0, 15: 30, 30: 60, 45: 75, 60: 15, 75: 45, 90: 90, 105: 105}
"""SMPL-X slot that each FLAME group of 15 teeth lands in, by offset."""


def teeth(v_template: np.ndarray) -> np.ndarray:
    """(120, 3) FLAME teeth in their natural order."""
    upper, lower = v_template[UPPER_LIP], v_template[LOWER_LIP]
    d = np.mean([np.linalg.norm(u - w) for u, w in zip(upper, lower, strict=True)])
    middle = (upper + lower) / 2
    middle[:, 1] = middle[:, 1].mean()
    middle[:, 2] -= 1.5 * d
    upper_edge = middle + [0, 0.1 * d, 0]
    upper_root = upper_edge + [0, 2 * d, 0]
    lower_edge = middle + [0, -0.1 * d, -0.4 * d]
    lower_root = lower_edge - [0, 2 * d, 0]
    back = np.array([0, 0, -1.0 * d])
    groups = [
        upper_root, lower_root, upper_edge, lower_edge,
        upper_root + back, upper_edge + back, lower_root + back, lower_edge + back,
    ]
    return np.concatenate(groups)


def teeth_shape_dirs(shape_dirs: np.ndarray) -> np.ndarray:
    """(120, 3, S): the mean of the paired lips' directions, the same for every group."""
    mean = (shape_dirs[UPPER_LIP] + shape_dirs[LOWER_LIP]) / 2
    return np.concatenate([mean] * 8)


def rodrigues(r: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(r + 1e-8)
    x, y, z = r / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def chain(rotations, joints, parents):
    """Relative 4x4 transforms and posed joints."""
    world = []
    for j, parent in enumerate(parents):
        local = np.eye(4)
        local[:3, :3] = rotations[j]
        local[:3, 3] = joints[j] - (joints[parent] if j else 0)
        world.append(local if j == 0 else world[parent] @ local)
    posed = np.array([w[:3, 3] for w in world])
    relative = []
    for w, joint in zip(world, joints, strict=True):
        a = w.copy()
        a[:3, 3] = w[:3, 3] - w[:3, :3] @ joint
        relative.append(a)
    return np.array(relative), posed


def skin(vertices, weights, transforms):
    blended, out = [], []
    for v, w in zip(vertices, weights, strict=True):
        t = sum(wj * a for wj, a in zip(w, transforms, strict=True) if wj != 0)
        blended.append(t)
        out.append(t[:3, :3] @ v + t[:3, 3])
    return np.array(out), np.array(blended)


def flame(model: dict, shape, expression, jaw, eyes, lids, left_lid, right_lid):
    """Head vertices (5143, 3) and posed joints (5, 3); ``model`` holds the owner's arrays."""
    base = np.concatenate([model["v_template"], teeth(model["v_template"])])
    shape_dirs = model["shapedirs"][..., :300]
    shape_dirs = np.concatenate([shape_dirs, teeth_shape_dirs(shape_dirs)])
    none = np.zeros((120, 3, 1))
    expression_dirs = np.concatenate([model["shapedirs"][..., 300:350], none.repeat(50, 2)])
    pose_dirs = np.concatenate([model["posedirs"], none.repeat(36, 2)])
    regressor = np.concatenate([model["J_regressor"], np.zeros((5, 120))], 1)
    tooth_weights = np.zeros((120, 5))
    upper = np.r_[0:15, 30:45, 60:90]
    tooth_weights[:, 2] = 1
    tooth_weights[upper] = [0, 1, 0, 0, 0]
    weights = np.concatenate([model["weights"], tooth_weights])

    shaped = base + shape_dirs @ shape + expression_dirs @ expression
    joints = regressor @ shaped
    rotations = [np.eye(3), np.eye(3), rodrigues(jaw), rodrigues(eyes[:3]), rodrigues(eyes[3:])]
    feature = np.concatenate([(r - np.eye(3)).reshape(-1) for r in rotations[1:]])
    transforms, posed = chain(rotations, joints, [-1, 0, 1, 1, 1])
    vertices, _ = skin(shaped + pose_dirs @ feature, weights, transforms)
    vertices[:5023] += right_lid * lids[1] + left_lid * lids[0]
    return vertices, posed


def ehm(smplx: dict, flame_model: dict, head_ids, hands, body: dict, head: dict, left_lid, right_lid):
    """Posed EHM.

    Args:
        smplx, flame_model: The owners' arrays.
        head_ids: (5023,) SMPL-X vertex of each FLAME vertex.
        hands: Left and right lists of SMPL-X vertices.
        body: shape (S,), exp (50,), joints (55, 3) axis-angle with rows 22-24 ignored, joints_offset (55, 3),
            head_scale (3,), hand_scale (3,).
        head: shape (300,), exp (50,), jaw (3,), eyes (6,), lids (2,).
    """
    count = 10475
    slots = np.concatenate([[SLOT_OF_GROUP[g] + i for i in range(15)] for g in sorted(SLOT_OF_GROUP)])
    rows = np.concatenate([head_ids, count + slots])

    shape = np.zeros(300)
    shape[: len(body["shape"])] = body["shape"]
    rest = smplx["v_template"] + smplx["shapedirs"][..., :300] @ shape
    rest = rest + smplx["shapedirs"][..., 300:350] @ body["exp"]
    rest = np.concatenate([rest, np.zeros((120, 3))])
    regressor = np.concatenate([smplx["J_regressor"], np.zeros((55, 120))], 1)
    joints = regressor @ rest + body["joints_offset"]

    vertices, head_joints = flame(
        flame_model, head["shape"], head["exp"], head["jaw"], head["eyes"], head["lids"], left_lid, right_lid
    )
    vertices = vertices * body["head_scale"]
    vertices = vertices + joints[[23, 24]].mean(0) - head_joints[[3, 4]].mean(0)
    rest[rows] = vertices
    for ids in hands:
        centre = smplx["v_template"][ids].mean(0)
        rest[ids] = rest[ids] * body["hand_scale"] + (1 - body["hand_scale"]) * centre

    joints = regressor @ rest + body["joints_offset"]
    rotations = np.array([rodrigues(r) for r in body["joints"]])
    rotations[22:25] = np.eye(3)
    feature = np.concatenate([(r - np.eye(3)).reshape(-1) for r in rotations[1:]])
    pose_dirs = np.concatenate([smplx["posedirs"], np.zeros((120, 3, 486))])
    weights = np.zeros((count + 120, 55))
    weights[:count] = smplx["weights"]
    # Skinning belongs to the slot: upper groups hang on joint 12 (neck), lower ones on 22 (jaw).
    weights[count:, 22] = 1
    weights[count + np.r_[0:15, 30:45, 60:90]] = np.eye(55)[12]
    transforms, posed_joints = chain(rotations, joints, [int(p) for p in smplx["kintree_table"][0]])
    posed, blended = skin(rest + pose_dirs @ feature, weights, transforms)
    return posed, blended, transforms, joints, posed_joints
