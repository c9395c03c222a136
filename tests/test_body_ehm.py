"""EHM (Eq. 1) against explicit loops, and what it promises about batches, subsets and gradients."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_template import tiny_template

from guava.body import EHM, Identity, Pose, plain_head
from guava.body.ehm import JAW, LEFT_EYE, RIGHT_EYE

SWITCHES = ("regress_joints", "eyelids", "pose_dirs", "hard_blend")
VARIANTS = [dict(zip(SWITCHES, bits, strict=True)) for bits in itertools.product((False, True), repeat=4)]


def random_person(template, batch: int, seed: int = 0) -> tuple[Identity, Pose]:
    g = torch.Generator().manual_seed(seed)

    def like(value, scale):
        return value + scale * torch.randn(value.shape, generator=g, dtype=value.dtype)

    i, p = Identity.neutral(template, batch), Pose.rest(template, batch)
    identity = Identity(
        like(i.body_shape, 1),
        like(i.head_shape, 1),
        like(i.joint_offsets, 0.01),
        like(i.head_scale, 0.1),
        like(i.hand_scale, 0.1),
    )
    pose = Pose(
        like(p.joints, 0.5),
        like(p.expression, 1),
        like(p.body_expression, 1),
        like(p.eyelids, 1),
        like(p.translation, 0.3),
    )
    return identity, pose


def rotation(axis_angle: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(axis_angle)
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = axis_angle / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def by_hand(template, identity: Identity, pose: Pose):
    """Eq. 1 for one person with a loop over every vertex and joint. Returns vertices, joints."""
    plain = not template.expressive_head
    n = {f: getattr(identity, f)[0].double().numpy() for f in identity.__dataclass_fields__}
    n |= {f: getattr(pose, f)[0].double().numpy() for f in pose.__dataclass_fields__}
    body, head = template.body, template.head

    def a(t):
        return t.double().numpy()

    def linear(base, *terms):
        out = a(base).copy()
        for v in range(len(out)):
            for directions, coefficients in terms:
                out[v] += a(directions[v]) @ coefficients
        return out

    v = linear(
        body.v_template, (body.shape_dirs, n["body_shape"]), (body.expression_dirs, n["body_expression"])
    )
    if template.regress_joints:
        joints = a(body.joint_regressor) @ v
    else:
        joints = linear(body.joints_template, (body.joints_shape_dirs, n["body_shape"]))
    joints = joints + n["joint_offsets"]

    shaped = linear(
        head.v_template, (head.shape_dirs, n["head_shape"]), (head.expression_dirs, n["expression"])
    )
    if template.regress_joints:
        head_joints = a(head.joint_regressor) @ shaped
    else:
        head_joints = linear(head.joints_template, (head.joints_shape_dirs, n["head_shape"]))
    rotations = [np.eye(3), np.eye(3)] + [rotation(n["joints"][j]) for j in (JAW, LEFT_EYE, RIGHT_EYE)]
    if head.pose_dirs.shape[-1]:
        shaped = linear(
            torch.tensor(shaped),
            (head.pose_dirs, np.concatenate([(r - np.eye(3)).ravel() for r in rotations[1:]])),
        )
    w = a(head.weights)
    moved = np.zeros_like(shaped)
    for i in range(len(shaped)):
        for j in range(5):
            moved[i] += w[i, j] * (rotations[j] @ (shaped[i] - head_joints[j]) + head_joints[j])
        moved[i] += a(template.eyelid_dirs[i]) @ n["eyelids"]
    moved = moved * n["head_scale"]
    shift = 0.5 * (joints[LEFT_EYE] + joints[RIGHT_EYE]) - 0.5 * (head_joints[3] + head_joints[4])
    eyes = 0.5 * (joints[LEFT_EYE] + joints[RIGHT_EYE])
    for i, target in enumerate([] if plain else template.head_vertex_ids.tolist()):
        blend = float(template.head_blend[i])
        v[target] = (1 - blend) * v[target] + blend * (moved[i] + shift)
    if not template.regress_joints and not plain:
        scaled = head_joints[2:] * n["head_scale"]
        joints[[JAW, LEFT_EYE, RIGHT_EYE]] = scaled - scaled[1:].mean(0) + eyes

    for side, prefix in enumerate(("left", "right")):
        wrist = body.joint_names.index(f"{prefix}_wrist")
        centre = a(template.hand_centers[side])
        fingers = range(25 + 15 * side, 40 + 15 * side)
        if template.regress_joints:
            share = np.isin(np.arange(len(v)), template.hand_vertex_ids[side].numpy()).astype(float)
        else:
            centre = centre + joints[wrist] - a(body.joints_template[wrist])
            share = a(body.weights)[:, [wrist, *fingers]].sum(1)
            for j in fingers:
                joints[j] = centre + n["hand_scale"] * (joints[j] - centre)
        for i in range(len(v)):
            v[i] = v[i] + share[i] * (n["hand_scale"] - 1) * (v[i] - centre)
    if template.regress_joints:
        joints = a(body.joint_regressor) @ v + n["joint_offsets"]

    still = () if plain else (JAW, LEFT_EYE, RIGHT_EYE)
    local = [np.eye(3) if j in still else rotation(n["joints"][j]) for j in range(len(joints))]
    if body.pose_dirs.shape[-1]:
        v = linear(
            torch.tensor(v), (body.pose_dirs, np.concatenate([(r - np.eye(3)).ravel() for r in local[1:]]))
        )
    world = [np.eye(4)] * len(joints)
    for j, parent in enumerate(body.parents.tolist()):
        step = np.eye(4)
        step[:3, :3] = local[j]
        step[:3, 3] = joints[j] - (joints[parent] if parent >= 0 else 0)
        world[j] = step if parent < 0 else world[parent] @ step
    posed = np.zeros_like(v)
    for i in range(len(v)):
        for j in range(len(joints)):
            rest = np.append(v[i] - joints[j], 1)
            posed[i] += a(body.weights)[i, j] * (world[j] @ rest)[:3]
    return posed + n["translation"], np.stack([m[:3, 3] for m in world]) + n["translation"]


def written_out(switches: dict[str, bool]) -> str:
    return "+".join(k for k, on in switches.items() if on) or "none"


@pytest.mark.parametrize("switches", VARIANTS, ids=written_out)
def test_matches_explicit_loops(switches):
    compare_with_loops(tiny_template(**switches))


FEW = [v for v in VARIANTS if v["eyelids"] and v["hard_blend"]]


@pytest.mark.parametrize("switches", FEW, ids=written_out)
def test_plain_head_matches_explicit_loops(switches):
    compare_with_loops(plain_head(tiny_template(**switches)))


def compare_with_loops(template):
    identity, pose = random_person(template, 1)
    identity, pose = identity.to(dtype=torch.float64), pose.to(dtype=torch.float64)
    out = EHM(template).double()(identity, pose)
    vertices, joints = by_hand(template, identity, pose)
    # The template's weights and regressors are float32: their rows sum to one only within 1e-7.
    assert np.abs(out.vertices[0].numpy() - vertices).max() < 1e-6
    assert np.abs(out.joints[0].numpy() - joints).max() < 1e-6


@pytest.mark.parametrize("regress", [False, True])
def test_batch_members_are_independent(regress):
    template = tiny_template(regress_joints=regress, eyelids=True, pose_dirs=True)
    identity, pose = random_person(template, 3)
    model = EHM(template)
    together = model(identity, pose)
    for i in range(3):
        alone = model(identity[i : i + 1], pose[i : i + 1])
        assert torch.allclose(together.vertices[i], alone.vertices[0], atol=1e-5)
        assert torch.allclose(together.joints[i], alone.joints[0], atol=1e-5)
    shared = model(identity[:1], pose)
    assert torch.allclose(shared.vertices[0], together.vertices[0], atol=1e-5)
    many = model(identity, pose[:1])
    assert many.vertices.shape[0] == 3 and torch.allclose(many.vertices[0], together.vertices[0], atol=1e-5)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("regress", [False, True])
def test_a_subset_of_vertices_equals_the_rows_of_the_whole(regress, plain):
    template = tiny_template(regress_joints=regress, eyelids=True, pose_dirs=True)
    template = plain_head(template) if plain else template
    identity, pose = random_person(template, 2)
    ids = torch.tensor([58, 3, 41, 7, 20])
    whole, part = EHM(template)(identity, pose), EHM(template, ids)(identity, pose)
    assert torch.allclose(part.vertices, whole.vertices[:, ids], atol=1e-5)
    assert torch.allclose(part.joints, whole.joints, atol=1e-5)


def test_a_plain_head_is_the_bodys_own():
    template = tiny_template(eyelids=True)
    plain = plain_head(template)
    assert plain.name == "tiny-plain-head" and plain.hash != template.hash and not plain.expressive_head
    assert plain_head(template).hash == plain.hash
    model = EHM(plain)
    identity, pose = Identity.neutral(plain), Pose.rest(plain)
    assert torch.allclose(model(identity, pose).vertices[0], template.body.v_template, atol=1e-6)
    other = replace(
        identity, head_shape=torch.ones_like(identity.head_shape), head_scale=torch.full((1, 3), 2.0)
    )
    unused = replace(pose, expression=torch.ones_like(pose.expression), eyelids=torch.ones_like(pose.eyelids))
    assert torch.equal(model(other, unused).vertices, model(identity, pose).vertices)
    joints = pose.joints.clone()
    joints[0, JAW, 0] = 0.5
    jaw_open = model(identity, replace(pose, joints=joints)).vertices
    assert (jaw_open - template.body.v_template).abs().max() > 0.01
    many = model(identity, Pose.rest(plain, 3))
    assert many.vertices.shape[0] == 3
    with pytest.raises(ValueError, match="plain"):
        plain_head(plain)


def test_transforms_carry_rest_vertices_to_posed_ones():
    template = tiny_template(eyelids=True)
    out = EHM(template)(*random_person(template, 2))
    moved = (out.transforms[..., :3, :3] @ out.rest_vertices[..., None]).squeeze(-1) + out.transforms[
        ..., :3, 3
    ]
    assert torch.allclose(moved, out.vertices, atol=1e-5)


def test_eyes_of_head_and_body_are_aligned():
    template = tiny_template(hard_blend=True)
    identity, _ = random_person(template, 1)
    identity = replace(identity, head_scale=torch.ones(1, 3), hand_scale=torch.ones(1, 3))
    model = EHM(template)
    vertices, joints = model.rest(identity, Pose.rest(template))
    head, head_joints = model.head(identity, Pose.rest(template))
    displacement = vertices[0, template.head_vertex_ids] - head[0]
    eyes = joints[0, [LEFT_EYE, RIGHT_EYE]]
    assert torch.allclose(displacement, displacement[:1].expand_as(displacement), atol=1e-6)
    assert torch.allclose(eyes - head_joints[0, 3:], displacement[:1].expand(2, 3), atol=1e-6)


def test_joint_offsets_move_joints_but_not_the_rest_mesh():
    template = tiny_template()
    offsets = torch.zeros(1, 55, 3)
    offsets[0, 18] = torch.tensor([0.02, -0.01, 0.03])
    moved = replace(Identity.neutral(template), joint_offsets=offsets)
    model = EHM(template)
    pose = Pose.rest(template)
    a, b = model(Identity.neutral(template), pose), model(moved, pose)
    assert torch.allclose(b.rest_joints - a.rest_joints, offsets, atol=1e-6)
    assert torch.allclose(b.vertices, a.vertices, atol=1e-6)


@pytest.mark.parametrize("regress", [False, True])
def test_gradients_are_right(regress):
    template = tiny_template(regress_joints=regress, eyelids=True, pose_dirs=True)
    model = EHM(template).double()
    identity, pose = random_person(template, 1)
    values = [getattr(identity, f).double().requires_grad_() for f in identity.__dataclass_fields__]
    values += [getattr(pose, f).double().requires_grad_() for f in pose.__dataclass_fields__]

    def outcome(*x):
        out = model(Identity(*x[:5]), Pose(*x[5:]))
        return out.vertices[:, ::7], out.joints[:, ::9]

    assert torch.autograd.gradcheck(outcome, values, eps=1e-6, atol=1e-6, fast_mode=True)


def test_gradient_at_rest_is_finite():
    template = tiny_template()
    pose = Pose.rest(template)
    joints = pose.joints.clone().requires_grad_()
    EHM(template)(Identity.neutral(template), replace(pose, joints=joints)).vertices.square().sum().backward()
    assert joints.grad.isfinite().all() and joints.grad.abs().sum() > 0
