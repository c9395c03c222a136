"""Posing as the release does it: written out once more with numpy, one Gaussian at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from guava.avatar.gaussians import BindingKind, Gaussians
from guava.avatar.posing import (
    bind_to_skin,
    bind_to_vertices,
    face_frames,
    pose_gaussians,
    rig_to_triangles,
)
from guava.body import EHMOutput
from guava.rotation import axis_angle_to_matrix, matrix_to_quaternion, quaternion_to_matrix

RULES = ["mean_edge", "edge_and_height"]


def quat(m):
    """Largest of (m00, m11, m22, trace), the first of equal ones; (w, x, y, z)."""
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    choice = int(np.argmax([m[0, 0], m[1, 1], m[2, 2], trace]))
    if choice == 3:
        q = [1 + trace, m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]]
    else:
        i, j, k = choice, (choice + 1) % 3, (choice + 2) % 3
        q = [0.0] * 4
        q[1 + i] = 1 - trace + 2 * m[i, i]
        q[1 + j] = m[j, i] + m[i, j]
        q[1 + k] = m[k, i] + m[i, k]
        q[0] = m[k, j] - m[j, k]
    return np.array(q) / np.linalg.norm(q)


def product(a, b):
    w = a[0] * b[0] - a[1:] @ b[1:]
    return np.array([w, *(a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:]))])


def norm(x):
    return np.sqrt(max((x * x).sum(), 1e-20))


def frame(v0, v1, v2, rule):
    a0 = (v1 - v0) / norm(v1 - v0)
    a1 = np.cross(a0, v2 - v0)
    a1 = a1 / norm(a1)
    a2 = np.cross(a1, a0)
    a2 = -a2 / norm(a2)
    if rule == "edge_and_height":
        sigma = 0.5 * (norm(v1 - v0) + abs(a2 @ (v2 - v0)))
    else:
        sigma = (norm(v1 - v0) + norm(v2 - v0) + norm(v2 - v1)) / 3
    return np.stack([a0, a1, a2], 1), sigma


def matrices(count, seed=0):
    """Blends of rotations, far from orthonormal, some with a small trace."""
    generator = torch.Generator().manual_seed(seed)
    turns = axis_angle_to_matrix(2.0 * torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))
    weights = torch.rand(count, 3, generator=generator, dtype=torch.float64) ** 3
    return (turns * (weights / weights.sum(1, keepdim=True))[..., None, None]).sum(1)


def test_quat_of_blends_is_not_orthonormalised_first():
    blends = matrices(200)
    ours = matrix_to_quaternion(blends).numpy()
    chosen = set()
    for m, q in zip(blends.numpy(), ours, strict=True):
        np.testing.assert_allclose(q, quat(m), atol=1e-12)
        chosen.add(int(np.argmax([m[0, 0], m[1, 1], m[2, 2], np.trace(m)])))
    assert chosen == {0, 1, 2, 3}
    u, _, vh = np.linalg.svd(blends.numpy())
    nearest = np.stack([quat(r) for r in u @ vh])
    assert np.abs(np.abs((nearest * ours).sum(1)) - 1).max() > 0.01


def test_quat_of_ties():
    """Only matrices that are no rotations notice which of equal entries is taken."""
    ties = np.stack([
        np.zeros((3, 3)), np.diag([1.0, 0, 0]), np.diag([0, 1.0, 0]), np.diag([0.5, 0.5, 0]),
        np.array([[0.6, 0, 0], [0.8, 0, 0], [0, 0, 0]]), np.ones((3, 3)) * 0.5 - np.eye(3) * 0.5,
    ])
    ours = matrix_to_quaternion(torch.from_numpy(ties)).numpy()
    np.testing.assert_allclose(ours, [quat(m) for m in ties], atol=1e-12)


def one_frame(vertices, transforms, joints, translation):
    """An EHM output whose root joint is at the template's origin."""
    place = translation[None, None]
    return EHMOutput(
        vertices[None] + place, place, transforms[None], joints[None], vertices[None], torch.zeros(1, 1, 3)
    )


@pytest.fixture(scope="module")
def scene():
    """A crumpled mesh with degenerate faces, blended transforms, and all that hangs on it."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    vertices = normal(14, 3) * 0.05
    vertices[11] = vertices[10]  # face 6: no edge v0 v1
    vertices[13] = 2 * vertices[12] - vertices[9]  # face 7: on a line
    faces = torch.tensor(
        [[0, 1, 2], [2, 1, 3], [4, 5, 6], [5, 7, 6], [8, 9, 0], [3, 8, 7], [10, 11, 2], [9, 12, 13]]
    )
    count = 48
    ids = torch.arange(count) % len(faces)
    weights = torch.rand(count, 3, generator=generator)
    weights = weights / (weights.sum(1, keepdim=True) + 1e-6)
    weights[8:16] = 0  # texels of collapsed triangles
    values = {
        "rotations": torch.nn.functional.normalize(normal(count, 4), dim=1), "scales": normal(count, 3).exp(),
        "opacities": torch.rand(count, generator=generator), "features": normal(count, 2),
    }
    transforms = torch.eye(4).repeat(14, 1, 1)
    transforms[:, :3, :3] = matrices(14, 3).float()
    return vertices, faces, ids, weights, normal(count, 3), values, transforms


@pytest.mark.parametrize("rule", RULES)
def test_face_frames_by_definition(scene, rule):
    vertices, faces = scene[0].double(), scene[1]
    rotation, sigma = face_frames(vertices, faces, rule)
    assert rotation.shape == (8, 3, 3) and sigma.shape == (8,)
    for f, (i, j, k) in enumerate(faces.tolist()):
        wanted = frame(*vertices[[i, j, k]].numpy(), rule)
        np.testing.assert_allclose(rotation[f], wanted[0], atol=1e-9)
        np.testing.assert_allclose(sigma[f], wanted[1], rtol=1e-12)
    # Right-handed with the normal in the middle: for a triangle in the x-z plane seen from above.
    flat = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, -1]])
    columns, _ = face_frames(flat, torch.tensor([[0, 1, 2]]), rule)
    torch.testing.assert_close(columns[0], torch.eye(3))
    batch = torch.stack([vertices, 2 * vertices, vertices.flip(0)])
    many, sizes = face_frames(batch, faces, rule)
    assert many.shape == (3, 8, 3, 3)
    torch.testing.assert_close(many[2], face_frames(batch[2], faces, rule)[0])
    torch.testing.assert_close(sizes[1], 2 * sizes[0])
    if rule == "edge_and_height":
        torch.testing.assert_close(face_frames(vertices, faces)[1], sigma)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("rule", RULES)
def test_uv_and_template_gaussians(scene, rule, backend):
    vertices, faces, ids, weights, offset, values, transforms = scene
    uv = rig_to_triangles(
        vertices, faces, ids, weights, local_offset=offset, sigma_rule=rule, **values
    )
    raw = 0.3 * values["rotations"][:14]  # as the template decoder gives them: not unit
    on_vertices = bind_to_vertices(
        vertices, torch.arange(14), **{n: v[:14] for n, v in values.items()} | {"rotations": raw}
    )
    generator = torch.Generator().manual_seed(8)
    moved = 0.8 * vertices + 0.02 * torch.randn(14, 3, generator=generator)
    moved[11], moved[13] = moved[10], 2 * moved[12] - moved[9]
    shift = torch.tensor([0.5, -0.4, -2.0])
    joints = torch.eye(4)[None]
    posed = pose_gaussians(
        Gaussians.concatenate(uv, on_vertices), one_frame(moved, transforms, joints, shift), faces,
        sigma_rule=rule, backend=backend,
    )
    corners = moved.double().numpy()
    assert posed.means.isfinite().all()
    for n in range(len(uv)):
        if ids[n] == 7:  # on a line up to rounding: which way it faces is anybody's guess
            continue
        face = faces[ids[n]].tolist()
        turn, sigma = frame(*corners[face], rule)
        b, delta = weights[n].double().numpy(), offset[n].double().numpy()
        # In the release's world, where nobody is translated; then as seen by the tracker.
        anchor = b @ corners[face]
        np.testing.assert_allclose(
            posed.means[n], sigma * turn @ delta + anchor + shift.numpy(), atol=2e-6
        )
        np.testing.assert_allclose(posed.scales[n], sigma * values["scales"][n].numpy(), rtol=2e-5)
        if ids[n] < 6:
            wanted = product(quat(turn), values["rotations"][n].double().numpy())
            close = abs(wanted @ posed.quaternions[n].double().numpy())
            assert close == pytest.approx(1, abs=1e-5)
    for v in range(14):
        n = len(uv) + v
        np.testing.assert_allclose(posed.means[n], corners[v] + shift.numpy(), atol=1e-6)
        wanted = product(quat(transforms[v, :3, :3].double().numpy()), raw[v].double().numpy())
        wanted = wanted / np.linalg.norm(wanted)
        assert abs(wanted @ posed.quaternions[n].double().numpy()) == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(posed.scales[n], values["scales"][v])
    torch.testing.assert_close(posed.quaternions.norm(dim=1), torch.ones(len(uv) + 14))


def test_collapsed_texels_hang_at_the_person_not_at_the_camera(scene):
    """In the release the world's origin is the person's; here the person stands in front of the camera."""
    vertices, faces, ids, weights, offset, values, transforms = scene
    uv = rig_to_triangles(vertices, faces, ids, weights, local_offset=0 * offset, **values)
    shift = torch.tensor([0.5, -0.4, -20.0])
    for backend in ("native", "torch"):
        posed = pose_gaussians(
            uv, one_frame(vertices, transforms, torch.eye(4)[None], shift), faces, backend=backend
        )
        torch.testing.assert_close(posed.means[8:16], shift.expand(8, 3))


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_the_reference(scene, rule):
    """For training through posing: what the networks predict and the body itself, all bindings at once."""
    vertices, faces, ids, weights, offset, values, transforms = scene
    sound = (ids < 6) & (torch.arange(len(ids)) < 10)
    ids, faces = ids[sound], faces[:6]
    parts = {n: v[sound].double() for n, v in values.items()}
    blends = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    blends[:, :3, :3] = matrices(3, 11)
    skin = torch.rand(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def run(mesh, rest, turns, joints, delta, rotations, scales):
        uv = rig_to_triangles(
            rest, faces, ids, weights[sound].double(), local_offset=delta, rotations=rotations, scales=scales,
            opacities=parts["opacities"], features=parts["features"], sigma_rule=rule,
        )
        few = {"opacities": parts["opacities"][:4], "features": parts["features"][:4]}
        on_vertices = bind_to_vertices(
            rest, torch.tensor([0, 5, 7, 9]), rotations=rotations[:4], scales=scales[:4], **few
        )
        own = bind_to_skin(rest[:4], skin, rotations=rotations[4:8], scales=scales[4:8], **few)
        both = Gaussians.concatenate(uv, on_vertices, own)
        assert set(both.binding.tolist()) == {int(k) for k in BindingKind}
        assert both.positions.dtype == torch.float64
        output = EHMOutput(
            mesh[None], mesh[None, :1], turns[None], joints[None], rest[None], rest[None, :1]
        )
        posed = pose_gaussians(both, output, faces, sigma_rule=rule)
        return posed.means, quaternion_to_matrix(posed.quaternions), posed.scales

    generator = torch.Generator().manual_seed(1)
    mesh = vertices.double() * 1.2 + 0.02 * torch.randn(14, 3, generator=generator, dtype=torch.float64)
    inputs = (
        mesh * 20, vertices.double() * 20, transforms.double(), blends, offset[sound].double(),
        parts["rotations"], parts["scales"],
    )
    leaves = [t.clone().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(run, leaves, atol=1e-5, fast_mode=True)


def test_a_loop_over_frames_trains(scene):
    """Batches of training are loops: gradients of two frames add up in the same leaves."""
    vertices, faces, ids, weights, offset, values, transforms = scene
    delta = offset.clone().requires_grad_()
    uv = rig_to_triangles(vertices, faces, ids, weights, local_offset=delta, **values)
    total = 0.0
    for k in range(2):
        output = one_frame((1 + k) * vertices, transforms, torch.eye(4)[None], torch.zeros(3))
        total = total + pose_gaussians(uv, output, faces).means.sum()
    total.backward()
    alone = []
    for k in range(2):
        leaf = offset.clone().requires_grad_()
        again = rig_to_triangles(vertices, faces, ids, weights, local_offset=leaf, **values)
        output = one_frame((1 + k) * vertices, transforms, torch.eye(4)[None], torch.zeros(3))
        pose_gaussians(again, output, faces).means.sum().backward()
        alone.append(leaf.grad)
    torch.testing.assert_close(delta.grad, alone[0] + alone[1])
    assert delta.grad[ids < 6].abs().min() > 0
    detached = replace(uv, local_offset=uv.local_offset.detach())
    assert not pose_gaussians(detached, output, faces).means.requires_grad
