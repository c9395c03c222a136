"""How Gaussians follow the body: Eq. 3 by definition, skinning by loops, rigid motion, both backends."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guava.avatar import (
    Animator,
    Avatar,
    Gaussians,
    Layer,
    Provenance,
    RefinerReference,
    SourceView,
    over,
)
from guava.avatar.animate import with_identity
from guava.avatar.gaussians import MAX_INFLUENCES, BindingKind
from guava.avatar.posing import (
    bind_to_skin,
    bind_to_triangles,
    bind_to_vertices,
    pose_gaussians,
    rig_to_triangles,
    triangle_frames,
)
from guava.body import EHM, EHMOutput, Identity, Pose, load_template
from guava.camera import Camera
from guava.errors import MissingAssetError, TemplateMismatchError
from guava.rotation import (
    axis_angle_to_matrix,
    matrix_to_quaternion,
    quaternion_multiply,
    quaternion_to_matrix,
)

RULES = ["mean_edge", "edge_and_height"]


@pytest.fixture(scope="module")
def template():
    return load_template()


@pytest.fixture(scope="module")
def rest(template) -> EHMOutput:
    return EHM(template)(Identity.neutral(template), Pose.rest(template))


def random_pose(template, seed: int = 0) -> Pose:
    generator = torch.Generator().manual_seed(seed)
    pose = Pose.rest(template)
    return replace(
        pose,
        joints=torch.randn(pose.joints.shape, generator=generator) * 0.3,
        expression=torch.rand(pose.expression.shape, generator=generator) * 0.5,
        translation=torch.randn(1, 3, generator=generator),
    )


def look(count: int, seed: int = 0, channels: int = 3) -> dict:
    """Rotations, scales, opacities and features at random."""
    generator = torch.Generator().manual_seed(seed)
    quaternions = torch.randn(count, 4, generator=generator)
    return {
        "rotations": torch.nn.functional.normalize(quaternions, dim=1),
        "scales": 0.001 + 0.01 * torch.rand(count, 3, generator=generator),
        "opacities": torch.rand(count, generator=generator),
        "features": torch.rand(count, channels, generator=generator),
    }


def mixed(template, rest, count: int = 300, sigma_rule: str = "mean_edge") -> Gaussians:
    """Gaussians of all three kinds, off the surface where they may be."""
    generator = torch.Generator().manual_seed(count)
    vertices, faces = rest.vertices[0], template.faces
    ids = torch.randint(len(faces), (count,), generator=generator)
    weights = torch.rand(count, 3, generator=generator)
    weights = weights / weights.sum(1, keepdim=True)
    positions = (vertices[faces[ids]] * weights[..., None]).sum(1)
    positions = positions + 0.02 * torch.randn(count, 3, generator=generator)
    return Gaussians.concatenate(
        bind_to_triangles(
            vertices, faces, ids, weights, positions=positions, sigma_rule=sigma_rule, **look(count, 1)
        ),
        bind_to_vertices(vertices, faces[ids, 0], **look(count, 2)),
        bind_to_skin(positions, template.body.weights[faces[ids, 0]], **look(count, 3)),
    )


def same_rotation(a, b, **tolerance):
    torch.testing.assert_close(quaternion_to_matrix(a), quaternion_to_matrix(b), **tolerance)


def test_triangle_frame_by_hand():
    vertices = torch.tensor([[1.0, 1, 1], [4, 1, 1], [2, 1, -3]])  # edges 3, sqrt(17), sqrt(20)
    faces = torch.tensor([[0, 1, 2]])
    frames = triangle_frames(vertices, faces, "mean_edge")
    torch.testing.assert_close(frames.rotation[0], torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]))
    assert frames.sigma.item() == pytest.approx((3 + math.sqrt(17) + math.sqrt(20)) / 3)
    height = triangle_frames(vertices, faces, "edge_and_height")
    assert height.sigma.item() == pytest.approx((3 + 4) / 2)
    with pytest.raises(ValueError, match="sigma rule"):
        triangle_frames(vertices, faces, "area")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_triangle_frames_are_rotations_and_turn_with_the_triangle(seed):
    generator = torch.Generator().manual_seed(seed)
    vertices = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2]])
    turn = axis_angle_to_matrix(torch.randn(3, generator=generator, dtype=torch.float64))
    for rule in RULES:
        frame = triangle_frames(vertices, faces, rule)
        eye = torch.eye(3, dtype=torch.float64)
        torch.testing.assert_close(frame.rotation[0].T @ frame.rotation[0], eye)
        assert torch.linalg.det(frame.rotation[0]).item() == pytest.approx(1)
        moved = triangle_frames(2.5 * vertices @ turn.T + 1, faces, rule)
        torch.testing.assert_close(moved.rotation[0], turn @ frame.rotation[0])
        torch.testing.assert_close(moved.sigma, 2.5 * frame.sigma)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_equation_3_by_definition_on_a_moved_triangle(rule, backend):
    """mu' = sigma R_t delta_mu + sum b v, s' = sigma s, q' = quat(R_t) q, on a triangle of another shape."""
    rest_corners = torch.tensor([[0.0, 0, 0], [0.03, 0, 0], [0.01, 0.02, 0.004]])
    posed_corners = torch.tensor([[0.5, 0.1, 0], [0.51, 0.15, 0.01], [0.46, 0.12, -0.02]])
    faces = torch.tensor([[0, 1, 2]])
    count = 7
    generator = torch.Generator().manual_seed(3)
    barycentrics = torch.rand(count, 3, generator=generator)
    barycentrics = barycentrics / barycentrics.sum(1, keepdim=True)
    offset, relative = torch.randn(count, 3, generator=generator), torch.rand(count, 3, generator=generator)
    values = {**look(count), "scales": relative}
    ids = torch.zeros(count, dtype=torch.long)
    gaussians = rig_to_triangles(
        rest_corners, faces, ids, barycentrics, local_offset=offset, sigma_rule=rule, **values
    )
    empty = torch.eye(4)[None, None]
    output = EHMOutput(
        posed_corners[None], posed_corners[None], empty.expand(1, 3, 4, 4), empty, rest_corners[None],
        rest_corners[None],
    )
    posed = pose_gaussians(gaussians, output, faces, sigma_rule=rule, backend=backend)

    frame = triangle_frames(posed_corners, faces, rule)
    sigma, r_t = frame.sigma[0], frame.rotation[0]
    for n in range(count):
        anchor = sum(barycentrics[n, k] * posed_corners[k] for k in range(3))
        torch.testing.assert_close(posed.means[n], sigma * (r_t @ offset[n]) + anchor)
        torch.testing.assert_close(posed.scales[n], sigma * relative[n])
        wanted = quaternion_multiply(matrix_to_quaternion(r_t), values["rotations"][n])
        same_rotation(posed.quaternions[n], wanted, atol=1e-5, rtol=0)
    assert torch.equal(posed.opacities, values["opacities"])
    assert torch.equal(posed.features, values["features"])


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("rule", RULES)
def test_the_rest_pose_gives_back_what_was_bound(template, rest, backend, rule):
    gaussians = mixed(template, rest, sigma_rule=rule)
    posed = pose_gaussians(gaussians, rest, template.faces, sigma_rule=rule, backend=backend)
    torch.testing.assert_close(posed.means, gaussians.positions, atol=2e-6, rtol=0)
    torch.testing.assert_close(posed.scales, gaussians.scales)
    same_rotation(posed.quaternions, gaussians.rotations, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_backends_agree(template, rest, rule):
    gaussians = mixed(template, rest, sigma_rule=rule)
    assert set(gaussians.binding.tolist()) == {int(kind) for kind in BindingKind}
    for seed in range(3):
        output = EHM(template)(Identity.neutral(template), random_pose(template, seed))
        fast, reference = (
            pose_gaussians(gaussians, output, template.faces, sigma_rule=rule, backend=backend)
            for backend in ("native", "torch")
        )
        torch.testing.assert_close(fast.means, reference.means, atol=1e-5, rtol=0)
        torch.testing.assert_close(fast.scales, reference.scales, atol=1e-7, rtol=1e-4)
        same_rotation(fast.quaternions, reference.quaternions, atol=2e-4, rtol=0)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_skin_and_vertex_by_explicit_loops(template, rest, backend):
    gaussians = mixed(template, rest, count=40)
    output = EHM(template)(Identity.neutral(template), random_pose(template))
    posed = pose_gaussians(gaussians, output, template.faces, backend=backend)
    joints = output.joint_transforms[0].double()
    for n in range(len(gaussians)):
        if gaussians.binding[n] == BindingKind.SKIN:
            blended = torch.zeros(4, 4, dtype=torch.float64)
            for slot in range(MAX_INFLUENCES):
                index = int(gaussians.skin_indices[n, slot])
                blended += float(gaussians.skin_weights[n, slot]) * joints[index]
            mean = blended[:3, :3] @ gaussians.positions[n].double() + blended[:3, 3]
        elif gaussians.binding[n] == BindingKind.VERTEX:
            blended = output.transforms[0, int(gaussians.anchor[n])].double()
            mean = output.vertices[0, int(gaussians.anchor[n])].double()
        else:
            continue
        turn = matrix_to_quaternion(blended[:3, :3])
        torch.testing.assert_close(posed.means[n].double(), mean, atol=1e-5, rtol=0)
        wanted = quaternion_multiply(turn, gaussians.rotations[n].double())
        same_rotation(posed.quaternions[n].double(), wanted, atol=1e-4, rtol=0)
        torch.testing.assert_close(posed.scales[n], gaussians.scales[n])


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_rigid_motion_of_the_body_moves_all_kinds_alike(template, rest, backend):
    gaussians = mixed(template, rest)
    axis_angle, shift = torch.tensor([0.4, -1.1, 0.7]), torch.tensor([0.3, -0.2, -9.0])
    pose = Pose.rest(template)
    pose.joints[0, 0], pose.translation[0] = axis_angle, shift
    posed = pose_gaussians(
        gaussians, EHM(template)(Identity.neutral(template), pose), template.faces, backend=backend
    )
    turn = axis_angle_to_matrix(axis_angle)
    root = rest.joints[0, 0]  # the body turns about its root joint
    wanted = (gaussians.positions - root) @ turn.T + root + shift
    # At 9 m float32 resolves 1e-6 m, a thousandth of the smallest triangles, so their frames wobble a little.
    torch.testing.assert_close(posed.means, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(posed.scales, gaussians.scales, atol=1e-7, rtol=2e-3)
    rotation = quaternion_multiply(matrix_to_quaternion(turn).expand(len(gaussians), 4), gaussians.rotations)
    same_rotation(posed.quaternions, rotation, atol=3e-3, rtol=0)


def test_gradients_reach_every_parameter(template, rest):
    gaussians = mixed(template, rest, count=20)
    names = ("positions", "rotations", "scales", "local_offset")
    leaves = {name: getattr(gaussians, name).clone().requires_grad_() for name in names}
    pose = random_pose(template)
    joints = pose.joints.clone().requires_grad_()
    output = EHM(template)(Identity.neutral(template), replace(pose, joints=joints))
    posed = pose_gaussians(replace(gaussians, **leaves), output, template.faces)
    (posed.means.sum() + posed.quaternions[:, 1].sum() + posed.scales.sum()).backward()
    for leaf in (*leaves.values(), joints):
        assert torch.isfinite(leaf.grad).all() and leaf.grad.abs().max() > 0


def test_own_weights_keep_the_largest_and_sum_to_one():
    weights = torch.tensor([[0.0, 0.3, 0.1, 0.05, 0.05, 0.2, 0.15, 0.15]])
    record = bind_to_skin(torch.zeros(1, 3), weights, **look(1))
    assert record.skin_indices[0, :2].tolist() == [1, 5]
    assert set(record.skin_indices[0, 2:4].tolist()) == {6, 7} and record.skin_indices[0, 4] == 2
    assert record.skin_weights.sum().item() == pytest.approx(1)
    assert record.skin_weights[0, 0].item() == pytest.approx(0.3 / 0.95)
    narrow = bind_to_skin(
        torch.zeros(1, 3), torch.tensor([[3.0, 1.0]]), joints=torch.tensor([[7, 2]]), **look(1)
    )
    assert narrow.skin_indices[0].tolist() == [7, 2, 0, 0, 0, 0]
    torch.testing.assert_close(narrow.skin_weights[0], torch.tensor([0.75, 0.25, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match="positive"):
        bind_to_skin(torch.zeros(1, 3), torch.zeros(1, 4), **look(1))


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_triangles_without_area_give_no_nan(template, backend):
    corners = torch.zeros(3, 3)
    faces = torch.tensor([[0, 1, 2]])
    gaussians = bind_to_triangles(
        corners, faces, torch.zeros(1, dtype=torch.long), torch.full((1, 3), 1 / 3),
        positions=torch.ones(1, 3), **look(1),
    )
    eye = torch.eye(4)[None, None]
    mesh = corners[None]
    output = EHMOutput(mesh, mesh, eye.expand(1, 3, 4, 4), eye, mesh, mesh)
    posed = pose_gaussians(gaussians, output, faces, backend=backend)
    for value in (posed.means, posed.quaternions, posed.scales):
        assert torch.isfinite(value).all()


def test_refuses_batches_and_unknown_backends(template, rest):
    gaussians = mixed(template, rest, count=5)
    two = EHM(template)(Identity.neutral(template), Pose.rest(template, 2))
    with pytest.raises(ValueError, match="one frame"):
        pose_gaussians(gaussians, two, template.faces)
    with pytest.raises(ValueError, match="backend"):
        pose_gaussians(gaussians, rest, template.faces, backend="opengl")


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("kind", list(BindingKind))
def test_bindings_to_what_is_not_there_are_refused(template, rest, kind, backend):
    """Such indices can come out of a file; they must not be read from memory."""
    gaussians = mixed(template, rest, count=5)
    chosen = gaussians.binding == kind
    for value in (10**8, -1):
        anchor = torch.where(chosen, value, gaussians.anchor)
        indices = torch.where(chosen[:, None], 200, gaussians.skin_indices).to(torch.uint8)
        broken = replace(gaussians, anchor=anchor.to(torch.int32), skin_indices=indices)
        with pytest.raises(ValueError, match="does not have"):
            pose_gaussians(broken, rest, template.faces, backend=backend)
    unknown = replace(gaussians, binding=torch.where(chosen, 9, gaussians.binding).to(torch.uint8))
    with pytest.raises(ValueError, match="does not have"):
        pose_gaussians(unknown, rest, template.faces, backend=backend)


def test_folding_the_identity_changes_nothing(template):
    generator = torch.Generator().manual_seed(2)
    neutral = Identity.neutral(template)
    identity = Identity(
        torch.randn(neutral.body_shape.shape, generator=generator),
        torch.randn(neutral.head_shape.shape, generator=generator),
        torch.randn(neutral.joint_offsets.shape, generator=generator) * 0.01,
        neutral.head_scale * 1.1, neutral.hand_scale * 0.85,
    )
    pose = random_pose(template, 5)
    whole = EHM(template)(identity, pose)
    folded_template, folded_identity = with_identity(template, identity)
    folded = EHM(folded_template)(folded_identity, pose)
    for name in ("vertices", "joints", "joint_transforms", "rest_vertices"):
        torch.testing.assert_close(getattr(folded, name), getattr(whole, name), atol=2e-6, rtol=0)


def make_avatar(template, rest, **changes) -> Avatar:
    camera = Camera.frontal(48)
    pose = Pose.rest(template)
    pose.translation[0] = torch.tensor([0.0, 0.0, -14.0]) - rest.joints[0, template.joint("head")]
    values = {
        "gaussians": mixed(template, rest, count=400), "identity": Identity.neutral(template),
        "template_hash": template.hash,
        "source": SourceView(pose, camera, torch.eye(3), 48, 48, "", "test"),
        "provenance": Provenance("test", {}, "test", "", 1.0),
    }
    return Avatar(**{**values, **changes})


def test_animator_draws_the_posed_gaussians(template, rest):
    avatar = make_avatar(template, rest)
    animator = Animator(avatar, template)
    pose = avatar.source.pose
    frame = animator.render(pose)
    assert frame.shape == (48, 48, 4) and frame.min() >= 0 and frame.max() <= 1
    # The head is where the camera projects it.
    output = EHM(template)(avatar.identity, pose)
    pixel = avatar.source.camera.project(output.joints[0, template.joint("head")][None])[0][0]
    torch.testing.assert_close(pixel, torch.tensor([24.0, 24.0]), atol=0.1, rtol=0)
    assert frame[20:28, 20:28, 3].mean() > 0.5 > frame[:8, :8, 3].mean()
    moved = animator.render(random_pose(template), avatar.source.camera.resized(20, 10))
    assert moved.shape == (10, 20, 4)
    assert animator.frames == 2 and set(animator.seconds) == {"body", "pose", "splat"}


def test_animator_uses_the_avatars_sigma_rule(template, rest):
    gaussians = mixed(template, rest, sigma_rule="edge_and_height")
    avatar = make_avatar(template, rest, gaussians=gaussians, sigma_rule="edge_and_height")
    pose = random_pose(template)
    posed = Animator(avatar, template).pose(pose)
    output = EHM(template)(avatar.identity, pose)
    wanted = pose_gaussians(gaussians, output, template.faces, sigma_rule="edge_and_height")
    torch.testing.assert_close(posed.scales, wanted.scales, atol=1e-7, rtol=1e-3)
    other = pose_gaussians(gaussians, output, template.faces, sigma_rule="mean_edge")
    assert (posed.scales - other.scales).abs().max() > 1e-4


def test_animator_refuses_other_templates_and_refiners(template, rest):
    with pytest.raises(TemplateMismatchError):
        Animator(make_avatar(template, rest, template_hash="0" * 64), template)
    avatar = make_avatar(template, rest, refiner=RefinerReference("nobody-has-these", "0" * 64))
    with pytest.raises(MissingAssetError, match="refiner.*nobody-has-these.*--weights.*--coarse"):
        Animator(avatar, template)
    assert Animator(avatar, template, coarse=True).refiner is None


def test_over_composes_once():
    rgba = torch.tensor([[[1.0, 0.0, 0.0, 0.5], [0.2, 0.2, 0.2, 0.0], [0.2, 0.4, 0.6, 1.0]]])
    assert over(rgba)[0].tolist() == [[255, 128, 128], [255, 255, 255], [51, 102, 153]]
    assert over(rgba, (0.0, 0.0, 1.0))[0, 0].tolist() == [128, 0, 128]
    picture = torch.zeros(1, 3, 3)
    assert over(rgba, picture)[0, 1].tolist() == [0, 0, 0]


def test_layers_and_observed_flags_are_kept(rest):
    ids, seen = torch.tensor([3, 4]), torch.tensor([True, False])
    record = bind_to_vertices(rest.vertices[0], ids, observed=seen, **look(2))
    assert record.observed.tolist() == [True, False] and set(record.layer.tolist()) == {int(Layer.TEMPLATE)}
    assert record.anchor.tolist() == [3, 4] and record.anchor.dtype == torch.int32
