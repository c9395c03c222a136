"""The lite preset: budgets, where it starts, and that it can be trained."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from samples import standing_pose
from tiny_template import tiny_template
from torch import nn

from guava.avatar.posing import bind_to_triangles, pose_gaussians, triangle_frames
from guava.body import EHM, Identity, Pose, load_template
from guava.camera import Camera
from guava.errors import InputError
from guava.model.assemble import assemble
from guava.model.config import Ablation, preset
from guava.model.lite import (
    LiteNetwork,
    LiteRefiner,
    SurfaceView,
    avatar_prior,
    count_macs,
    count_parameters,
    lite_refiner,
    uv_tables,
)
from guava.model.lite.frames import smooth_frames
from guava.model.lite.tables import OFFSET_LIMITS
from guava.model.source import SourceBatch
from guava.rendering import rasterize_mesh, splat

SIZE, ATLAS = 64, 64


def _config(atlas=ATLAS):
    config = preset("lite")
    return replace(config, uv_branch=replace(config.uv_branch, size=atlas))


@lru_cache(maxsize=1)
def _network():
    torch.manual_seed(0)
    return LiteNetwork(_config(), load_template())


def _picture(size):
    """Smooth colours that say where a pixel is."""
    y, x = torch.meshgrid(*2 * [(torch.arange(size) + 0.5) / size], indexing="ij")
    return torch.stack([0.2 + 0.6 * x, 0.2 + 0.6 * y, 0.5 + 0.3 * torch.sin(9 * x)])


def _source(template, pose, size=SIZE, *, shape=0.0, shift=0.0):
    """One person before the frontal camera, cut out of :func:`_picture` along the body's outline."""
    identity = Identity.neutral(template)
    identity = replace(identity, body_shape=identity.body_shape + shape)
    pose = replace(pose, translation=pose.translation + torch.tensor([shift, 0.0, 0.0]))
    with torch.no_grad():
        ehm = EHM(template)
        posed, rest = ehm(identity, pose), ehm(identity, Pose.rest(template))
    camera = Camera.frontal(size)
    fine = rasterize_mesh(posed.vertices[0], template.faces, camera.resized(4 * size, 4 * size))
    mask = nn.functional.avg_pool2d(fine.mask.float()[None, None], 4)
    source = SourceBatch(_picture(size)[None] * mask, mask, posed.vertices, rest.rest_vertices, camera)
    return source, posed


def _both(a, b):
    def joined(name):
        return torch.cat([getattr(a, name), getattr(b, name)])

    names = ("image", "mask", "vertices", "rest_vertices")
    return SourceBatch(**{name: joined(name) for name in names}, camera=a.camera)


def _layers_close(a, b, atol):
    for one, other in zip(a.uv, b.uv, strict=True):
        for name in ("local_offsets", "rotations", "scales", "opacities", "features"):
            assert torch.allclose(getattr(one, name), getattr(other, name), atol=atol), name


# --- budgets


def test_it_fits_its_budget():
    refiner = lite_refiner(preset("lite"))
    assert count_parameters(_network(), refiner) <= 20_000_000
    meta = refiner.to("meta")
    features, alpha = (torch.zeros(1, c, 512, 512, device="meta") for c in (32, 1))
    assert 2e9 <= count_macs(meta, features, alpha)["total"] <= 3.5e9


def test_macs_are_counted_as_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.Flatten(), nn.Linear(5 * 4 * 4, 7))
    counts = count_macs(net, torch.zeros(2, 3, 8, 8))
    assert counts == {"0": 2 * 5 * 16 * 27, "2": 2 * 7 * 80, "total": 2 * 5 * 16 * 27 + 2 * 7 * 80}


def test_the_state_holds_weights_only():
    parameters = {name for name, _ in _network().named_parameters()}
    assert set(_network().state_dict()) == parameters


# --- the refiner


def test_an_untrained_refiner_shows_the_coarse_picture():
    torch.manual_seed(0)
    refiner = lite_refiner(preset("lite"))
    features, alpha = torch.rand(2, 32, 32, 48), torch.rand(2, 1, 32, 48)
    assert torch.equal(refiner(features, alpha), features[:, :3])
    nn.init.normal_(refiner.last.weight)
    changed = refiner(features, alpha)
    assert changed.min() >= 0 and changed.max() <= 1
    assert not torch.allclose(changed, features[:, :3], atol=0.05)


def _trained_refiner() -> LiteRefiner:
    """A refiner in which every parameter matters."""
    torch.manual_seed(5)
    refiner = lite_refiner(preset("lite"))
    for parameter in refiner.parameters():
        if parameter.ndim < 4 or parameter is refiner.last.weight:
            nn.init.normal_(parameter, std=0.4)
    return refiner


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_folded_refiner_is_the_same_function(layout):
    refiner = _trained_refiner()
    folded = refiner.for_inference()
    features = torch.rand(2, 32, 36, 28).contiguous(memory_format=layout)
    alpha = torch.rand(2, 1, 36, 28)
    before = features.clone(), alpha.clone()
    with torch.no_grad():
        wanted = refiner(features, alpha)
    assert (wanted - features[:, :3]).abs().mean() > 0.05, "a refiner that does nothing shows nothing"
    got = folded(features, alpha)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert not got.requires_grad
    assert torch.equal(features, before[0]) and torch.equal(alpha, before[1]), "it works in place on inputs"


def test_the_folded_refiner_keeps_its_weights_and_its_precision():
    refiner = _trained_refiner()
    features, alpha = torch.rand(1, 32, 16, 16), torch.rand(1, 1, 16, 16)
    wanted = refiner.for_inference()(features, alpha)
    low = refiner.for_inference(torch.bfloat16)
    assert low.dtype == torch.bfloat16 and refiner.squeeze.weight.dtype == torch.float32
    assert (low(features.bfloat16(), alpha.bfloat16()).float() - wanted).abs().max() < 0.1
    folded = refiner.for_inference()
    nn.init.zeros_(refiner.last.weight)
    assert torch.equal(folded(features, alpha), wanted)


def test_the_refiner_learns_from_both_sides_of_its_bounds():
    refiner = lite_refiner(preset("lite"))
    features = torch.zeros(1, 32, 8, 8)
    features[:, 0], features[:, 1] = -0.5, 1.5
    features.requires_grad_()
    for wish, moved in ((0.5, (True, True)), (None, (False, False))):
        picture = refiner(features, torch.ones(1, 1, 8, 8))
        # Towards the middle, or further out.
        loss = (picture[:, :2] - 0.5).square().sum() if wish else (picture[:, 0] - picture[:, 1]).sum()
        (gradient,) = torch.autograd.grad(loss, features)
        assert (bool((gradient[:, 0] != 0).all()), bool((gradient[:, 1] != 0).all())) == moved


# --- where it starts


def test_it_starts_with_the_pictures_own_colors():
    template = load_template()
    source, _ = _source(template, standing_pose(template))
    network = _network()
    with torch.no_grad():
        view = network.look(source)
        layer = network(source, view=view).uv[0]
    seen = view.visible[0]
    assert seen.float().mean() > 0.2
    corners = source.vertices[0][template.faces[layer.face_ids]]
    pixels, _ = source.camera.project((corners * layer.barycentrics[..., None]).sum(1))
    x, y = (pixels / SIZE).unbind(-1)
    expected = torch.stack([0.2 + 0.6 * x, 0.2 + 0.6 * y, 0.5 + 0.3 * torch.sin(9 * x)], -1)
    # The rest lies on the outline, where pixels are mixed.
    error = (torch.sigmoid(layer.features[0, :, :3]) - expected)[seen].abs()
    assert error.quantile(0.98) < 0.01
    assert torch.allclose(layer.opacities[0][view.kept[0]], torch.tensor(0.953), atol=0.01)


def test_the_first_avatar_has_no_holes_and_looks_like_the_picture():
    template = load_template()
    source, posed = _source(template, standing_pose(template), 128)
    torch.manual_seed(1)
    network = LiteNetwork(_config(256), template)
    with torch.no_grad():
        g = assemble(network(source), source.rest_vertices, template.faces, opacity_threshold=0.001)
        p = pose_gaussians(g, posed, template.faces)
        out = splat(p.means, p.quaternions, p.scales, p.opacities, p.features, source.camera)
    inside = nn.functional.avg_pool2d(source.mask, 5, 1, 2)[0, 0] > 0.999
    assert out.alpha[inside].min() > 0.97
    outside = nn.functional.max_pool2d(source.mask, 5, 1, 2)[0, 0] == 0
    assert outside.float().mean() > 0.3 and out.alpha[outside].max() < 0.1
    error = (out.features[..., :3] - source.image[0].permute(1, 2, 0))[inside].square().mean()
    assert -10 * torch.log10(error) > 33


def test_the_second_layer_starts_faint_but_above_the_splatters_smallest_alpha():
    template = load_template()
    source, _ = _source(template, standing_pose(template))
    with torch.no_grad():
        layers = _network()(source).uv
    assert len(layers) == 2 and len(layers[1].face_ids) < len(layers[0].face_ids) / 4
    assert 2 / 255 < layers[1].opacities.min() and layers[1].opacities.max() < 0.05
    parts = {template.part_names[i] for i in template.face_parts[layers[1].face_ids].unique()}
    assert parts == {"scalp", "neck", "torso", "left_arm", "right_arm"}


def test_what_lies_far_below_the_picture_is_left_out():
    template = load_template()
    source, _ = _source(template, standing_pose(template))
    with torch.no_grad():
        view, layer = _network().look(source), _network()(source).uv[0]
    low = (source.rest_vertices[0][template.faces[layer.face_ids]].mean(1))[:, 1] < -0.6
    assert low.sum() > 20 and bool((layer.opacities[0, low] == 0).all())
    assert bool((layer.opacities[0, view.inside[0]] > 0.9).all())


def test_guessed_faces_hide_nothing_and_show_nothing():
    template = load_template()
    pose = standing_pose(template)
    joints = pose.joints.clone()
    joints[0, template.joint("left_elbow"), 1] = -2.2  # the hand before the body
    source, _ = _source(template, replace(pose, joints=joints), 128)
    network = _network()
    hand = template.part("left_hand")
    believed = network.look(source).visible
    doubted = network.look(replace(source, guessed_faces=hand[None])).visible
    on_hand = hand[network.tables.face_ids]
    assert believed[0, on_hand].any() and not doubted[0, on_hand].any()
    assert (doubted & ~believed)[0, ~on_hand].any() and not (believed & ~doubted)[0, ~on_hand].any()


# --- geometry


def test_predictions_come_out_in_metres_of_the_smooth_frame():
    """Offsets, discs and turns, through Eq. 3, against the smooth frame itself."""
    template = load_template()
    source, _ = _source(template, standing_pose(template), shape=0.5)
    network = LiteNetwork(_config(), template)
    nn.init.normal_(network.head.last.weight, std=0.3)
    with torch.no_grad():
        view, output = network.look(source), network(source)
        g = assemble(output, source.rest_vertices, template.faces)
        frames = smooth_frames(source.rest_vertices, network.tables)
    count = len(network.tables)
    corners = source.rest_vertices[0][template.faces[output.uv[0].face_ids]]
    anchors = (corners * output.uv[0].barycentrics[..., None]).sum(1)
    arm = torch.einsum("nij,ni->nj", frames.rotation[0], g.positions[:count] - anchors)
    limits = network.tables.limits
    assert arm.abs().max() > 0.005
    assert bool((arm[:, 2] <= limits[:, 1] + 1e-5).all()) and bool((arm[:, 2] >= -limits[:, 0] - 1e-5).all())
    assert bool((arm[:, :2].abs() <= limits[:, 2:] + 1e-5).all())
    ratio = g.scales[:count, :2] / view.frames.spacing[0]
    assert ratio.min() > 0.62 * 0.2 and ratio.max() < 0.62 * 4.6


def test_offsets_stay_within_their_regions():
    template = load_template()
    tables = uv_tables(template, 128)
    part = template.face_parts[tables.face_ids]
    for name, limit in OFFSET_LIMITS.items():
        mine = tables.limits[part == template.part_names.index(name)]
        assert bool((mine <= torch.tensor(limit) + 1e-6).all()), name
        # Most of a region reaches its limit; beside a tighter one it does not.
        assert (mine[:, 1] > 0.9 * limit[1]).float().mean() > 0.25, name
    # Nothing tears: the limit grows by 2 m a metre at most along the rows of the atlas.
    step = (tables.texel[1:] - tables.texel[:-1] == 1) & (tables.disc[1:] >= 1) & (tables.disc[:-1] >= 1)
    change = (tables.limits[1:] - tables.limits[:-1]).abs().amax(1)
    away = (tables.position[1:] - tables.position[:-1]).norm(dim=-1)
    near = step & (away < 0.03)
    assert near.sum() > 3000
    assert (change[near] <= 2.5 * away[near] + 1e-4).float().mean() > 0.98


def test_frames_are_rotations_along_the_atlas_and_smoother_than_triangles():
    template = load_template()
    tables = uv_tables(template, 128)
    with torch.no_grad():
        vertices = EHM(template)(Identity.neutral(template), Pose.rest(template)).vertices
    frames = smooth_frames(vertices, tables)
    rotation = frames.rotation[0]
    eye = torch.eye(3).expand_as(rotation)
    assert torch.allclose(rotation.transpose(1, 2) @ rotation, eye, atol=1e-4)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(len(rotation)), atol=1e-4)
    beside = (tables.texel[1:] - tables.texel[:-1] == 1) & (tables.disc[1:] >= 1) & (tables.disc[:-1] >= 1)
    step = tables.position[1:] - tables.position[:-1]
    beside &= step.norm(dim=-1) < 0.02
    along = nn.functional.cosine_similarity(step[beside], rotation[:-1][beside][..., 0], dim=-1)
    assert along.median() > 0.98

    def jump(frame):
        trace = (frame[1:].transpose(1, 2) @ frame[:-1])[beside].diagonal(dim1=1, dim2=2).sum(1)
        return torch.arccos(((trace - 1) / 2).clamp(-1, 1))

    triangles = triangle_frames(vertices, template.faces, "mean_edge").rotation[0, tables.face_ids]
    assert jump(rotation).quantile(0.9) < 0.3 * jump(triangles).quantile(0.9)


def test_mirrored_places_lie_on_the_other_side():
    template = load_template()
    tables = uv_tables(template, 128)
    assert tables.mirrored.float().mean() > 0.96
    here, there = tables.position[tables.mirrored], tables.position[tables.mirror[tables.mirrored]]
    assert (here * torch.tensor([-1.0, 1, 1]) - there).norm(dim=-1).max() < 0.01
    part = template.face_parts[tables.face_ids]
    left = (part == template.part_names.index("left_hand")) & tables.mirrored
    other = part[tables.mirror[left]]
    assert (other == template.part_names.index("right_hand")).float().mean() > 0.97


# --- as a network


def test_people_of_a_batch_do_not_see_each_other():
    template = load_template()
    a, _ = _source(template, standing_pose(template))
    b, _ = _source(template, standing_pose(template), shape=0.7, shift=0.05)
    network = _network()
    with torch.no_grad():
        together = network(_both(a, b))
        prepared = SurfaceView.concatenate([network.look(a), network.look(b)]).to("cpu")
        _layers_close(together, network(_both(a, b), view=prepared), 1e-4)
        for number, one in enumerate((a, b)):
            alone = network(one)
            mine = replace(
                together,
                uv=tuple(
                    replace(
                        layer,
                        **{
                            name: getattr(layer, name)[number : number + 1]
                            for name in ("local_offsets", "rotations", "scales", "opacities", "features")
                        },
                    )
                    for layer in together.uv
                ),
            )
            _layers_close(alone, mine, 1e-4)


def test_it_is_deterministic_and_has_no_noise():
    template = load_template()
    source, _ = _source(template, standing_pose(template))
    with torch.no_grad():
        _layers_close(_network()(source), _network()(source, noise="random"), 0)
    with pytest.raises(ValueError, match="no noise"):
        _network()(source, noise=[torch.zeros(1)])


def test_the_same_weights_run_at_another_size():
    template = load_template()
    source, _ = _source(template, standing_pose(template))
    larger = LiteNetwork(_config(96), template)
    larger.load_state_dict(_network().state_dict())
    with torch.no_grad():
        fine = larger(source)
        larger.set_atlas_size(ATLAS)
        _layers_close(larger(source), _network()(source), 0)
    ratio = len(fine.uv[0].face_ids) / len(_network().tables)
    assert 1.8 < ratio < 2.6
    assert fine.texture.shape == (1, 3, 96, 96)


def test_gradients_reach_every_parameter():
    template = load_template()
    source, posed = _source(template, standing_pose(template))
    torch.manual_seed(0)
    network, refiner = LiteNetwork(_config(), template), lite_refiner(preset("lite"))
    g = assemble(network(source), source.rest_vertices, template.faces)
    # Every attribute counts, as in a picture; the splatter itself has tests of its own.
    p = pose_gaussians(g, posed, template.faces)
    generator = torch.Generator().manual_seed(3)
    parts = (p.means, p.scales, p.quaternions, p.opacities, p.features)
    loss = sum((part * torch.randn(part.shape, generator=generator)).sum() for part in parts)
    nn.init.normal_(refiner.last.weight)
    loss = loss + refiner(torch.rand(1, 32, 16, 16), torch.rand(1, 1, 16, 16)).square().sum()
    loss.backward()
    dead = [
        name
        for module in (network, refiner)
        for name, parameter in module.named_parameters()
        if parameter.grad is None or not bool((parameter.grad != 0).any())
    ]
    assert dead == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters())


def test_mixed_precision_runs():
    template = load_template()
    source, _ = _source(template, standing_pose(template))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = _network()(source)
    with torch.no_grad():
        full = _network()(source)
    assert half.uv[0].features.dtype == torch.float32
    error = torch.sigmoid(half.uv[0].features[..., :3]) - torch.sigmoid(full.uv[0].features[..., :3])
    assert error.abs().max() < 0.01


def test_it_can_start_from_another_avatar():
    """Untrained, it shows the avatar whose maps it is given: places, sizes, turns and colours."""
    template = load_template()
    source, _ = _source(template, standing_pose(template))
    config = _config()
    network = LiteNetwork(replace(config, uv_branch=replace(config.uv_branch, prior="baseline")), template)
    tables, rest = network.tables, source.rest_vertices[0]
    generator = torch.Generator().manual_seed(4)
    whole = (tables.split == 1).nonzero()[:, 0]
    count = len(whole)
    corners = rest[template.faces[tables.face_ids[whole]]]
    anchors = (corners * tables.barycentrics[whole, :, None]).sum(1)
    given = bind_to_triangles(
        rest,
        template.faces,
        tables.face_ids[whole],
        tables.barycentrics[whole],
        positions=anchors + 0.02 * torch.randn(count, 3, generator=generator),
        rotations=nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1),
        scales=0.001 + 0.01 * torch.rand(count, 3, generator=generator),
        opacities=torch.ones(count),
        features=0.1 + 0.8 * torch.rand(count, 3, generator=generator),
    )
    maps = avatar_prior(given, rest, template.uv, tables)
    with pytest.raises(ValueError, match="prior"):
        network(source)
    with torch.no_grad():
        g = assemble(network(replace(source, prior=maps)), rest, template.faces)[whole]
        half = LiteNetwork(network.config, template)
        half.set_atlas_size(32)
        assert half(replace(source, prior=maps)).uv[0].features.isfinite().all()
    assert (g.positions - given.positions).abs().quantile(0.99) < 1e-3
    assert torch.allclose(g.scales[:, :2], given.scales[:, :2], rtol=0.05)
    assert torch.allclose(g.features[:, :3], given.features, atol=0.02)
    assert (g.rotations * given.rotations).sum(-1).abs().quantile(0.01) > 0.999


def test_it_builds_on_any_template():
    template = tiny_template()
    network = LiteNetwork(_config(), template)
    network.load_state_dict(_network().state_dict())
    pose = replace(Pose.rest(template), translation=torch.tensor([[0.0, 0.0, -12.0]]))
    source, _ = _source(template, pose)
    with torch.no_grad():
        output = network(source)
    assert output.uv[0].features.shape[-1] == 32 and len(output.uv[1].face_ids) == 0
    for layer in output.uv:
        assert bool(torch.isfinite(layer.local_offsets).all())


def test_it_says_what_it_cannot_be():
    template = load_template()
    config = _config()
    for wrong in (
        preset("paper"),
        replace(config, ablation=Ablation(uv_gaussians=False)),
        replace(config, ablation=Ablation(inverse_mapping=False)),
        _config(100),
    ):
        with pytest.raises(InputError):
            LiteNetwork(wrong, template)
    with pytest.raises(InputError):
        lite_refiner(preset("paper"))


@pytest.mark.slow
def test_it_learns():
    """Twenty steps on one view of a person whose clothes stand off the body lower the error in another."""
    import numpy as np

    from guava.synth import frame_person, render_person, sample_light, sample_person, sample_pose

    template = load_template()
    person, rng, size = sample_person(12, template), np.random.default_rng(12), 64
    light, ehm = sample_light(rng), EHM(template)
    pose = sample_pose(rng, template, "arms_down")
    camera = Camera.frontal(size)
    pose = frame_person(rng, person, pose, template, kind="upper_body", camera=camera)
    with torch.no_grad():
        posed = ehm(person.identity, pose)
        rest = ehm(person.identity, Pose.rest(template)).rest_vertices
    pivot = posed.vertices[0].mean(0)
    truths = []
    for yaw in (0.0, 0.4, 0.2):
        view = camera.orbit(yaw, 0.0, pivot)
        picture = render_person(person, pose, view, template, background=(0.0, 0.0, 0.0), light=light)
        truths.append((view, torch.from_numpy(picture.rgb).float() / 255, torch.from_numpy(picture.alpha)))
    _, image, alpha = truths[0]
    source = SourceBatch(image.permute(2, 0, 1)[None], alpha[None, None], posed.vertices, rest, camera)

    torch.manual_seed(0)
    network, refiner = LiteNetwork(_config(), template), lite_refiner(preset("lite"))
    view = network.look(source)

    def error(which):
        to, truth, _ = truths[which]
        g = assemble(network(source, view=view), rest, template.faces)
        p = pose_gaussians(g, posed, template.faces)
        out = splat(p.means, p.quaternions, p.scales, p.opacities, p.features, to)
        picture = refiner(out.features.permute(2, 0, 1)[None], out.alpha[None, None])
        return (picture[0].permute(1, 2, 0) - truth).abs().mean()

    with torch.no_grad():
        before = float(error(2))
    parameters = [*network.parameters(), *refiner.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3, betas=(0.9, 0.99))
    for _ in range(20):
        optimizer.zero_grad()
        error(1).backward()
        # Faint as it is, the second layer hears of the picture.
        assert bool((network.second_head.last.weight.grad != 0).any())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    with torch.no_grad():
        after = float(error(2))
    assert after < 0.85 * before


@pytest.mark.slow
def test_it_runs_on_the_authors_body_model():
    from synthetic_models import synthetic_template

    template = synthetic_template()
    network = LiteNetwork(_config(128), template)
    source, posed = _source(template, standing_pose(template), 128)
    with torch.no_grad():
        g = assemble(network(source), source.rest_vertices, template.faces, opacity_threshold=0.001)
        p = pose_gaussians(g, posed, template.faces)
        out = splat(p.means, p.quaternions, p.scales, p.opacities, p.features, source.camera)
    inside = nn.functional.avg_pool2d(source.mask, 5, 1, 2)[0, 0] > 0.999
    assert out.alpha[inside].quantile(0.02) > 0.9
