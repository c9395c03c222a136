"""The two linear models: sampled people -> mean, a gender direction, then principal components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from scripts.build_open_template import people
from scripts.build_open_template.rest_pose import (
    JOINTS,
    PARENTS,
    TPose,
    bone_of_joint,
    joint_of_bones,
    t_pose,
)
from scripts.build_open_template.source import BaseMesh, Wheel, read_face_units

SEED, PEOPLE = 20260, 2500
BODY_SHAPE, HEAD_SHAPE = 50, 150
HEAD_JOINTS = ("neck", "head", "jaw", "left_eye", "right_eye")
HEAD_PARENTS = (-1, 0, 1, 1, 1)
_HEAD_BONES = ("neck01", "head", "jaw", "eye.L", "eye.R")
BODY_INFLUENCES, HEAD_INFLUENCES = 6, 5


@dataclass(frozen=True)
class Model:
    """Arrays of one ``guava.body.LinearModel``, in numpy, and how well its components reproduce the samples
    (mm)."""

    v_template: np.ndarray
    shape_dirs: np.ndarray
    weights: np.ndarray
    joints_template: np.ndarray
    joints_shape_dirs: np.ndarray
    scores: np.ndarray
    errors: dict[str, float]


@dataclass(frozen=True)
class Models:
    """Body and head, and what ties them.

    Attributes:
        head_vertex_ids: (H,) body vertices of the head; head_blend: (H,).
        expression_dirs: (H, 3, 52); expression_names.
        head_from_body: (S_head, S_body) expected head shape of a person with a given body shape: both models
            are sampled from the same people, so gender, size and age of head and body go together.
        mirror: (V,) the vertex on the other side of the body.
    """

    body: Model
    head: Model
    head_vertex_ids: np.ndarray
    head_blend: np.ndarray
    expression_names: tuple[str, ...]
    expression_dirs: np.ndarray
    head_from_body: np.ndarray
    mirror: np.ndarray


def build_models(wheel: Wheel, mesh: BaseMesh) -> Models:
    """Sample people and fit both models."""
    count = len(mesh.vertices)
    targets = people.read_targets(wheel, count)
    rng = np.random.default_rng(SEED)
    average = people.coefficients(targets, people.adult(), None, None)[0]
    pose = t_pose(mesh, mesh.bone_heads(mesh.vertices + np.tensordot(average, targets.offsets, 1)))
    sliders = people.sample_phenotypes(PEOPLE, rng)
    gender = (sliders["gender"] - sliders["gender"].mean()) / sliders["gender"].std()
    mirror = _mirror(mesh.vertices[mesh.used])

    weights = np.zeros((len(mesh.used), len(JOINTS)), np.float32)
    for bone, joint in enumerate(joint_of_bones(mesh)):
        weights[:, JOINTS.index(joint)] += mesh.weights[:, bone]
    weights = _largest(weights, BODY_INFLUENCES)

    # The head begins where the upper two neck bones do; its blend rises smoothly along the neck.
    column = [i for i, b in enumerate(mesh.bones) if b in ("neck02", "neck03")]
    above = [JOINTS.index(n) for n in ("head", "jaw", "left_eye_smplhf", "right_eye_smplhf")]
    share = mesh.weights[:, column].sum(1) + weights[:, above].sum(1)
    head_ids = np.where(share > 0.02)[0]
    blend = ((share[head_ids] - 0.15) / 0.7).clip(0, 1)
    blend = blend * blend * (3 - 2 * blend)

    vertices, heads = _people(mesh, targets, people.coefficients(targets, sliders, False, rng), pose)
    joints = heads[:, [mesh.bones.index(bone_of_joint(j)) for j in JOINTS]]
    pelvis = joints[:, :1].copy()
    vertices -= pelvis
    swap = np.array([JOINTS.index(_other_side(name)) for name in JOINTS])
    body = _fit(vertices, joints - pelvis, gender, BODY_SHAPE, weights, mirror, swap)
    del vertices

    vertices, heads = _people(mesh, targets, people.coefficients(targets, sliders, True, rng), pose)
    joints = heads[:, [mesh.bones.index(b) for b in _HEAD_BONES]]
    middle = joints[:, 3:].mean(1, keepdims=True)
    vertices = vertices[:, head_ids] - middle
    slot = np.full(len(mesh.used), -1)
    slot[head_ids] = np.arange(len(head_ids))
    head_mirror = slot[mirror[head_ids]]
    head_mirror[head_mirror < 0] = np.where(head_mirror < 0)[0]
    columns = [JOINTS.index(n) for n in ("head", "jaw", "left_eye_smplhf", "right_eye_smplhf")]
    head_weights = np.concatenate(
        [1 - weights[head_ids][:, columns].sum(1, keepdims=True), weights[head_ids][:, columns]], 1
    )
    head_weights = _largest(head_weights.clip(0), HEAD_INFLUENCES)
    head = _fit(
        vertices, joints - middle, gender, HEAD_SHAPE, head_weights, head_mirror, np.array([0, 1, 2, 4, 3])
    )
    del vertices

    names, offsets = read_face_units(wheel, count)
    expression = pose.apply_offsets(offsets[:, mesh.used])[:, head_ids].transpose(1, 2, 0)
    tie = head.scores.T @ body.scores / PEOPLE
    tie[np.abs(tie) < 3 / np.sqrt(PEOPLE)] = 0  # what is left is more than the samples' chance correlation
    return Models(
        body, head, head_ids, blend, names, expression.astype(np.float32), tie.astype(np.float32), mirror
    )


def _people(mesh: BaseMesh, targets: people.Targets, coefficients: np.ndarray, pose: TPose):
    """T-posed kept vertices (N, V, 3) and bone heads (N, bones, 3)."""
    kept = targets.offsets[:, mesh.used].reshape(len(targets.offsets), -1)
    bone_offsets = mesh.bone_heads(targets.offsets)
    bones = mesh.bone_heads(mesh.vertices)
    vertices = np.empty((len(coefficients), len(mesh.used), 3), np.float32)
    heads = np.empty((len(coefficients), len(mesh.bones), 3), np.float32)
    for start in range(0, len(coefficients), 250):
        chunk = slice(start, start + 250)
        v = (coefficients[chunk] @ kept).reshape(-1, len(mesh.used), 3) + mesh.vertices[mesh.used]
        h = np.tensordot(coefficients[chunk], bone_offsets, 1) + bones
        vertices[chunk], heads[chunk] = pose.apply(v, h)
    return vertices, heads


def _fit(vertices, joints, gender, components, weights, mirror, joint_mirror) -> Model:
    """Mean (symmetrised), gender direction by regression, principal components of the rest, all of unit
    variance."""
    count = len(vertices)
    mean, joint_mean = vertices.mean(0), joints.mean(0)
    flip = np.array([-1, 1, 1], np.float32)
    centred = (vertices - mean).reshape(count, -1)
    g = gender.astype(np.float32)
    first = g @ centred / count
    rest = centred - g[:, None] * first
    values, vectors = np.linalg.eigh((rest @ rest.T / count).astype(np.float64))
    order = np.argsort(-values)[: components - 1]
    directions = rest.T @ vectors[:, order].astype(np.float32) / np.sqrt(count)
    scores = np.sqrt(count) * vectors[:, order]
    # Sign convention: a component's positive end is its larger person.
    spread = np.einsum("vk,v->k", directions, mean.reshape(-1))
    sign = np.where(spread < 0, -1.0, 1.0)
    directions = np.concatenate([first[:, None], directions * sign.astype(np.float32)], 1)
    scores = np.concatenate([g[:, None], scores * sign], 1)
    errors = {}
    for k in (10, 20, components):
        miss = (centred[:300] - scores[:300, :k].astype(np.float32) @ directions[:, :k].T).reshape(300, -1, 3)
        distance = 1000 * np.linalg.norm(miss, axis=-1)
        errors[str(k)] = [round(float(distance.mean()), 2), round(float(np.percentile(distance, 95)), 2)]
    moved = (joints - joint_mean).reshape(count, -1)
    joint_dirs = (scores.T @ moved / count).reshape(components, -1, 3).transpose(1, 2, 0)
    return Model(
        v_template=(0.5 * (mean + mean[mirror] * flip)).astype(np.float32),
        shape_dirs=directions.reshape(len(mean), 3, components),
        weights=weights,
        joints_template=(0.5 * (joint_mean + joint_mean[joint_mirror] * flip)).astype(np.float32),
        joints_shape_dirs=joint_dirs.astype(np.float32),
        scores=scores,
        errors=errors,
    )


def _largest(weights: np.ndarray, count: int) -> np.ndarray:
    order = np.argsort(-weights, 1, kind="stable")[:, :count]
    out = np.zeros_like(weights)
    np.put_along_axis(out, order, np.take_along_axis(weights, order, 1), 1)
    out[out < 1e-4] = 0
    return out / out.sum(1, keepdims=True)


def _mirror(vertices: np.ndarray) -> np.ndarray:
    """(V,) index of the mirrored vertex; a pair points at each other, what finds no partner at itself."""
    partner = cKDTree(vertices).query(vertices * [-1, 1, 1])[1]
    lonely = partner[partner] != np.arange(len(vertices))
    partner[lonely] = np.where(lonely)[0]
    return partner


def _other_side(name: str) -> str:
    if name.startswith("left_"):
        return "right_" + name[5:]
    return "left_" + name[6:] if name.startswith("right_") else name


__all__ = ["HEAD_JOINTS", "HEAD_PARENTS", "JOINTS", "PARENTS", "Model", "Models", "build_models"]
