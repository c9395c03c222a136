"""From predictions to the avatar's record: against the rig's formulas applied to the predictions directly."""

import math
from dataclasses import replace

import pytest
import torch
from samples import standing_pose
from torch.nn.functional import normalize

from guava.avatar.gaussians import BindingKind, Layer
from guava.avatar.posing import pose_gaussians
from guava.body import EHM, Identity, Pose, load_template
from guava.camera import Camera
from guava.model.assemble import assemble, seen_in_source
from guava.model.outputs import NetworkOutput, TemplateGaussians, UVGaussians

RULES = ["mean_edge", "edge_and_height"]
CHANNELS, TEXELS, COLLAPSED = 7, 400, 5


@pytest.fixture(scope="module")
def template():
    return load_template()


def predicted(template, batch: int = 2, seed: int = 0, layers: int = 1) -> NetworkOutput:
    """Random predictions; the first texels of every layer have all-zero barycentrics."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    def layer():
        weights = torch.rand(TEXELS, 3, generator=g)
        weights = weights / weights.sum(1, keepdim=True)
        weights[:COLLAPSED] = 0
        return UVGaussians(
            torch.randint(len(template.faces), (TEXELS,), generator=g),
            weights,
            normal(batch, TEXELS, 3),
            normalize(normal(batch, TEXELS, 4), dim=-1),
            (0.3 * normal(batch, TEXELS, 3)).exp(),
            torch.rand(batch, TEXELS, 1, generator=g),
            normal(batch, TEXELS, CHANNELS),
        )

    count = template.body.num_vertices
    return NetworkOutput(
        TemplateGaussians(
            normal(batch, count, 4) * 0.01,  # not unit, as the release's decoder gives them
            0.05 * torch.rand(batch, count, 3, generator=g),
            torch.rand(batch, count, 1, generator=g) * 0.01,
            normal(batch, count, CHANNELS),
        ),
        tuple(layer() for _ in range(layers)),
    )


def moved(template, seed: int = 1) -> Pose:
    g = torch.Generator().manual_seed(seed)
    pose = Pose.rest(template)
    return replace(
        pose,
        joints=0.3 * torch.randn(pose.joints.shape, generator=g),
        expression=0.5 * torch.rand(pose.expression.shape, generator=g),
    )


def rest_mesh(template) -> torch.Tensor:
    identity = Identity.neutral(template, 2)
    identity = replace(identity, body_shape=0.5 * torch.ones_like(identity.body_shape[:, :5]))
    with torch.no_grad():
        return EHM(template)(identity, Pose.rest(template, 2)).vertices


# Plain restatements of the formulas, one vector at a time where that is bearable.


def by_scipy(matrix: torch.Tensor) -> torch.Tensor:
    """(..., 3, 3) rotations -> quaternions w, x, y, z by another library."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = torch.from_numpy(Rotation.from_matrix(matrix.double().numpy()).as_quat()).unbind(-1)
    return torch.stack([w, x, y, z], -1)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Hamilton's product by scalar and vector parts."""
    wa, va, wb, vb = a[..., :1], a[..., 1:], b[..., :1], b[..., 1:]
    w = wa * wb - (va * vb).sum(-1, keepdim=True)
    return torch.cat([w, wa * vb + wb * va + torch.linalg.cross(va, vb, dim=-1)], -1)


def frame_of(v0, v1, v2, rule: str):
    edge = v1 - v0
    a0 = edge / edge.norm()
    normal = torch.linalg.cross(a0, v2 - v0)
    a1 = normal / normal.norm()
    a2 = -torch.linalg.cross(a1, a0)
    if rule == "mean_edge":
        size = ((v1 - v0).norm() + (v2 - v1).norm() + (v0 - v2).norm()) / 3
    else:
        size = 0.5 * (edge.norm() + (a2 @ (v2 - v0)).abs())
    return torch.stack([a0, a1, a2], 1), size


def same_rotation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of two sets of quaternions, whose sign means nothing."""
    a, b = a.double(), b.double()
    return float(torch.minimum((a - b).abs().amax(-1), (a + b).abs().amax(-1)).max())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("element", [0, 1])
def test_posed_gaussians_are_those_of_the_formulas(template, rule, element):
    output = predicted(template)
    rest = rest_mesh(template)
    gaussians = assemble(output, rest, template.faces, element=element, sigma_rule=rule)
    identity = Identity.neutral(template)
    identity = replace(identity, body_shape=0.5 * torch.ones_like(identity.body_shape[:, :5]))
    with torch.no_grad():
        body = EHM(template)(identity, moved(template))
    for backend in ("native", "torch"):
        posed = pose_gaussians(gaussians, body, template.faces, sigma_rule=rule, backend=backend)
        vertices, count = body.vertices[0], template.body.num_vertices

        # Sec. 3.3: on the vertex, turned by the quaternion of the blended transform.
        assert torch.equal(posed.means[:count], vertices)
        assert torch.equal(posed.scales[:count], output.template.scales[element])
        turn = by_scipy(rotation_of_blend(body.transforms[0, :, :3, :3]))
        wanted = normalize(product(turn, output.template.rotations[element].double()), dim=-1)
        assert same_rotation(posed.quaternions[:count], wanted) < 1e-5

        # Eq. 3, triangle by triangle, from the predictions themselves.
        layer = output.uv[0]
        for i in range(TEXELS):
            corners = vertices[template.faces[layer.face_ids[i]]].double()
            rotation, sigma = frame_of(*corners, rule)
            anchor = (layer.barycentrics[i].double()[:, None] * corners).sum(0)
            mean = sigma * rotation @ layer.local_offsets[element, i].double() + anchor
            got = count + i
            assert (posed.means[got] - mean).abs().max() < 1e-5
            assert (posed.scales[got] - sigma * layer.scales[element, i]).abs().max() < 1e-5
            wanted = product(by_scipy(rotation), layer.rotations[element, i].double())
            assert same_rotation(posed.quaternions[got], wanted) < 1e-5
            if i < COLLAPSED:  # [Q] anchored at the origin of the body's own frame
                assert (posed.means[got] - sigma * rotation @ layer.local_offsets[element, i].double()).abs(
                ).max() < 1e-6


def rotation_of_blend(blend: torch.Tensor) -> torch.Tensor:
    """The rotation of the release's quaternion of a blend: the largest of diagonal and trace decides, and
    nothing is orthonormalised first (which SciPy would do)."""
    m = blend.double()
    trace = m.diagonal(dim1=-2, dim2=-1).sum(-1)
    choice = torch.cat([m.diagonal(dim1=-2, dim2=-1), trace[..., None]], -1).argmax(-1)
    out = torch.zeros(len(m), 4, dtype=torch.float64)  # x, y, z, w
    for n in range(len(m)):
        c = int(choice[n])
        if c == 3:
            a = m[n]
            out[n] = torch.stack([a[2, 1] - a[1, 2], a[0, 2] - a[2, 0], a[1, 0] - a[0, 1], 1 + trace[n]])
        else:
            i, j, k = c, (c + 1) % 3, (c + 2) % 3
            out[n, i] = 1 - trace[n] + 2 * m[n, i, i]
            out[n, j] = m[n, j, i] + m[n, i, j]
            out[n, k] = m[n, k, i] + m[n, i, k]
            out[n, 3] = m[n, k, j] - m[n, j, k]
    from scipy.spatial.transform import Rotation

    return torch.from_numpy(Rotation.from_quat(out.numpy()).as_matrix())


def test_colours_are_activated_once_and_latents_stay_raw(template):
    output = predicted(template, layers=2)
    gaussians = assemble(output, rest_mesh(template), template.faces, element=1)
    raw = torch.cat([output.template.features[1], *(layer.features[1] for layer in output.uv)])
    assert torch.allclose(gaussians.features[:, :3], 1 / (1 + (-raw[:, :3]).exp()), atol=1e-6)
    assert torch.equal(gaussians.features[:, 3:], raw[:, 3:])
    count = template.body.num_vertices
    assert (gaussians.binding[:count] == BindingKind.VERTEX).all()
    assert (gaussians.binding[count:] == BindingKind.TRIANGLE).all()
    assert (gaussians.layer[:count] == Layer.TEMPLATE).all() and (gaussians.layer[count:] == Layer.UV).all()
    assert len(gaussians) == count + 2 * TEXELS


def test_only_uv_gaussians_are_pruned_and_the_threshold_itself_goes(template):
    output = predicted(template, batch=1)
    opacities = torch.full((1, TEXELS, 1), 0.5)
    opacities[0, 10], opacities[0, 20], opacities[0, 30] = 0.001, 0.0, math.nextafter(0.001, 1) + 1e-7
    output = replace(
        output,
        template=replace(output.template, opacities=torch.zeros_like(output.template.opacities)),
        uv=(replace(output.uv[0], opacities=opacities),),
    )
    gaussians = assemble(output, rest_mesh(template)[0], template.faces, opacity_threshold=0.001)
    count = template.body.num_vertices
    assert len(gaussians) == count + TEXELS - 2
    kept = [i for i in range(TEXELS) if i not in (10, 20)]
    assert gaussians.anchor[count:].tolist() == output.uv[0].face_ids[kept].tolist()


def test_gradients_reach_every_prediction(template):
    output = predicted(template, batch=1)
    leaves = []

    def leaf(tensor):
        leaves.append(tensor.clone().requires_grad_())
        return leaves[-1]

    branch = ("rotations", "scales", "opacities", "features")
    output = NetworkOutput(
        replace(output.template, **{n: leaf(getattr(output.template, n)) for n in branch}),
        (replace(output.uv[0], **{n: leaf(getattr(output.uv[0], n)) for n in (*branch, "local_offsets")}),),
    )
    rest = rest_mesh(template)
    with torch.no_grad():
        body = EHM(template)(Identity.neutral(template), moved(template))
    posed = pose_gaussians(assemble(output, rest, template.faces), body, template.faces)
    g = torch.Generator().manual_seed(5)
    total = sum(
        (value * torch.randn(value.shape, generator=g)).sum()
        for value in (posed.means, posed.quaternions, posed.scales, posed.opacities, posed.features)
    )
    total.backward()
    for tensor in leaves:
        assert torch.isfinite(tensor.grad).all() and (tensor.grad != 0).float().mean() > 0.9


def test_predictions_for_another_mesh_are_refused(template):
    with pytest.raises(ValueError, match="vertices"):
        assemble(predicted(template), rest_mesh(template)[:, :-1], template.faces)
    with pytest.raises(ValueError, match="no Gaussians"):
        assemble(NetworkOutput(None, ()), rest_mesh(template), template.faces)


def test_seen_is_what_faces_the_camera_inside_the_picture(template):
    output = predicted(template, batch=1)
    with torch.no_grad():
        body = EHM(template)(Identity.neutral(template), standing_pose(template))
    camera = Camera.frontal(256)
    vertices, faces = body.vertices[0], template.faces
    seen = seen_in_source(output, vertices, faces, camera)
    pixels, _ = camera.project(vertices)
    outside = ((pixels < 0) | (pixels >= 256)).any(1)
    assert outside.any() and not seen.template[outside].any()
    back = vertices[:, 2] < body.joints[0, template.joint("neck"), 2] - 0.06
    assert not seen.template[back & ~outside].any()
    assert seen.template.sum() > 1000
    assert seen.template[template.surface_points["nose_tip"]]
    assert not seen.uv[0][:COLLAPSED].any() and seen.uv[0].any()

    left_half = torch.zeros(256, 256, dtype=torch.bool)
    left_half[:, :128] = True
    halved = seen_in_source(output, vertices, faces, camera, person=left_half)
    assert torch.equal(halved.template, seen.template & (pixels[:, 0] < 128))

    guessed = template.part("left_hand")
    without = seen_in_source(output, vertices, faces, camera, guessed=guessed)
    hand = faces[guessed].unique()
    assert not without.template[hand].any()
    texel_on_hand = guessed[output.uv[0].face_ids]
    assert not without.uv[0][texel_on_hand].any()
