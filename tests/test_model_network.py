"""The whole network: its data flow step by step, every option, the tables, and what the release counts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_template import VERTICES, tiny_template

from guava.body.template import Template, UVTable
from guava.camera import Camera
from guava.errors import InputError
from guava.model.config import (
    Ablation,
    EncoderConfig,
    GuavaConfig,
    RefinerConfig,
    TemplateBranchConfig,
    UVBranchConfig,
    official,
    paper,
    preset,
)
from guava.model.network import (
    GuavaNetwork,
    StyleUNetRefiner,
    build_network,
    build_refiner,
    to_channels_last,
)
from guava.model.sampling import (
    face_frames,
    inverse_texture_map,
    project_ndc,
    sample_features,
    source_fragments,
    visible_faces,
)
from guava.model.source import SourceBatch
from guava.model.texels import uv_texels
from guava.rendering import MeshFragments, rasterize_uv

OFFICIAL = json.loads((Path(__file__).parent / "data" / "official_blocks.json").read_text())
TEXELS = 32


def tiny_config(base: GuavaConfig | None = None, **changes) -> GuavaConfig:
    """The architecture of a preset with few channels and small maps."""
    base = base or official()
    small = replace(
        base,
        encoder=replace(
            base.encoder, image_size=28, map_size=24, global_channels=64, neck_channels=(3, 4, 5, 6), width=4,
            uv_channels=5, template_channels=6, pyramid=(0, 0, 1, 1, 2),
        ),
        template_branch=replace(base.template_branch, base_channels=3, global_channels=4),
        uv_branch=replace(
            base.uv_branch, size=TEXELS, base_channels=2, feature_channels=6, style_channels=8,
            channel_scale=64,
        ),
        refiner=replace(base.refiner, size=32, style_channels=8, channel_scale=64),
        channels=7,
    )  # fmt: skip
    return replace(small, **changes)


def build(config: GuavaConfig, template: Template | None = None) -> GuavaNetwork:
    pytest.importorskip("transformers")
    torch.manual_seed(5)
    return build_network(config, template or tiny_template())


def source_batch(batch: int = 2, seed: int = 0, size: int = 28) -> SourceBatch:
    generator = torch.Generator().manual_seed(seed)
    template = tiny_template()
    camera = Camera.frontal(size)
    turns = torch.linalg.qr(torch.eye(3) + 0.3 * torch.randn(batch, 3, 3, generator=generator))[0]
    w2c = camera.world_to_camera.repeat(batch, 1, 1)
    w2c[:, :3, :3] = w2c[:, :3, :3] @ turns
    w2c[:, 2, 3] = 21.0
    vertices = template.body.v_template + 0.1 * torch.randn(batch, VERTICES, 3, generator=generator)
    image = torch.rand(batch, 3, size, size, generator=generator)
    mask = torch.rand(batch, 1, size, size, generator=generator)
    camera = Camera(w2c, camera.intrinsics.repeat(batch, 1, 1), size, size)
    return SourceBatch(image, mask, vertices, vertices, camera)


def sample(source: SourceBatch, i: int) -> SourceBatch:
    return SourceBatch(
        source.image[i : i + 1], source.mask[i : i + 1], source.vertices[i : i + 1],
        source.rest_vertices[i : i + 1], source.camera[i : i + 1],
    )  # fmt: skip


def tensors(output) -> dict[str, torch.Tensor]:
    found = {} if output.texture is None else {"texture": output.texture}
    for name, part in (("template", output.template), *((f"uv{i}", p) for i, p in enumerate(output.uv))):
        if part is not None:
            found |= {f"{name}.{key}": value for key, value in vars(part).items()}
    return found


# --- data flow ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_data_flow_step_by_step():
    """Both branches from the network's blocks (each tested on its own), put together here once more."""
    network, source = build(tiny_config()), source_batch()
    template = tiny_template()
    output = network(source, noise="off")

    f_map1, f_map2, f_id = network.encoder(source.image)
    w2c = source.camera.world_to_camera
    direction = w2c[:, :3, :3] @ torch.tensor([0.0, 0, 1])
    angles = direction[:, :, None] * torch.tensor([1.0, 2, 4, 8])
    code = torch.cat([angles.sin().flatten(1), angles.cos().flatten(1), direction], 1)

    rows = []
    for b in range(2):
        identity = network.global_mapping(f_id[b])
        for v in range(VERTICES):
            point = w2c[b, :3, :3] @ source.vertices[b, v] + w2c[b, :3, 3]
            ndc = 24 * point[:2] / (point[2] + 1e-7)
            sampled = F.grid_sample(
                f_map2[b : b + 1], ndc[None, None, None], padding_mode="border", align_corners=False
            )
            rows.append(torch.cat([sampled.flatten(), network.vertex_base_feature[v], identity]))
    features = torch.stack(rows).unflatten(0, (2, VERTICES))
    expected = network.template_decoder(features, code)
    for name, value in vars(expected).items():
        assert torch.allclose(getattr(output.template, name), value, atol=1e-5), name

    rgb = F.interpolate(source.image, size=(24, 24), mode="bilinear", align_corners=False)
    screen = torch.cat([rgb, f_map1], 1)
    atlas = rasterize_uv(template, TEXELS)
    mapped = torch.zeros(2, 8, TEXELS, TEXELS)
    for b in range(2):
        seen = visible_faces(
            source_fragments(source.vertices[b : b + 1], template.faces, source.camera[b], 24)[0],
            len(template.faces),
        )
        for row, column in atlas.mask.nonzero().tolist():
            face = int(atlas.face_ids[row, column])
            if not seen[face]:
                continue
            anchor = atlas.barycentrics[row, column] @ source.vertices[b, template.faces[face]]
            point = w2c[b, :3, :3] @ anchor + w2c[b, :3, 3]
            ndc = 24 * point[:2] / point[2]
            mapped[b, :, row, column] = F.grid_sample(
                screen[b : b + 1], ndc[None, None, None], padding_mode="zeros", align_corners=False
            ).flatten()
    assert (mapped.abs().sum(1) > 0).any()
    painted = network.uv_styleunet(mapped, network.uv_style_mapping(f_id))
    assert torch.allclose(output.texture, 1 / (1 + torch.exp(-painted[:, :3])), atol=1e-4)
    base = network.uv_base_feature.repeat(2, 1, 1, 1)
    maps = network.uv_decoder(torch.cat([painted, base], 1), code)
    (layer,) = output.uv
    places = [(row, column) for row in range(TEXELS) for column in range(TEXELS) if atlas.mask[row, column]]
    assert layer.face_ids.tolist() == [int(atlas.face_ids[place]) for place in places]
    assert torch.equal(layer.barycentrics, torch.stack([atlas.barycentrics[place] for place in places]))
    for name, value in vars(maps).items():
        expected = torch.stack([value[:, :, row, column] for row, column in places], 1)
        assert torch.allclose(getattr(layer, name), expected, atol=1e-4), name


def test_shapes():
    output = build(tiny_config())(source_batch(3))
    texels = int(rasterize_uv(tiny_template(), TEXELS).mask.sum())
    assert {name: tuple(value.shape) for name, value in tensors(output).items()} == {
        "texture": (3, 3, TEXELS, TEXELS),
        "template.rotations": (3, VERTICES, 4),
        "template.scales": (3, VERTICES, 3),
        "template.opacities": (3, VERTICES, 1),
        "template.features": (3, VERTICES, 7),
        "uv0.face_ids": (texels,),
        "uv0.barycentrics": (texels, 3),
        "uv0.local_offsets": (3, texels, 3),
        "uv0.rotations": (3, texels, 4),
        "uv0.scales": (3, texels, 3),
        "uv0.opacities": (3, texels, 1),
        "uv0.features": (3, texels, 7),
    }


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch():
    network, source = build(tiny_config()), source_batch(3)
    together = tensors(network(source, noise="off"))
    for i in range(3):
        for name, alone in tensors(network(sample(source, i), noise="off")).items():
            whole = together[name]
            if whole.ndim > 2 or name == "texture":
                whole = whole[i : i + 1]
            assert torch.allclose(whole, alone, atol=1e-4), name


@torch.no_grad()
def test_one_camera_serves_a_batch():
    network, source = build(tiny_config()), source_batch(2)
    one = replace(source, camera=source.camera[0])
    same = replace(source, camera=source.camera[torch.tensor([0, 0])])
    for (name, a), b in zip(
        tensors(network(one, noise="off")).items(), tensors(network(same, noise="off")).values(), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6), name


@torch.no_grad()
def test_noise_follows_the_config_the_argument_and_the_generator():
    source = source_batch(1)
    network = build(tiny_config())
    for name, parameter in network.named_parameters():
        if name.endswith("weight") and parameter.numel() == 1:
            parameter.fill_(0.5)  # noise strengths start at 0

    def texture(seed=None, **options):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return network(source, generator=generator, **options).texture

    assert not torch.equal(texture(), texture())  # the release draws anew, in evaluation too
    assert torch.equal(texture(3), texture(3))
    assert not torch.equal(texture(3), texture(4))
    assert torch.equal(texture(noise="off"), texture(noise="off"))
    generator = torch.Generator().manual_seed(3)
    maps = [torch.randn(1, 1, h, w, generator=generator) for h, w in network.uv_styleunet.noise_shapes]
    assert torch.equal(texture(noise=maps), texture(noise=maps))
    assert not torch.equal(texture(noise=maps), texture(noise="off"))
    network.config = replace(network.config, uv_branch=replace(network.config.uv_branch, noise="off"))
    assert torch.equal(texture(), texture(noise="off"))


def test_gradients_reach_every_trainable_parameter_that_is_used():
    network, source = build(tiny_config()), source_batch(1)
    output = network(source, noise="random")
    total = 0
    for value in tensors(output).values():
        if value.requires_grad:
            total = total + (value * torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape)).sum()
    total.backward()
    idle = {name for name, p in network.named_parameters() if p.requires_grad and p.grad is None}
    assert {name.rsplit(".", 2)[0] for name in idle} == {"encoder.neck.refinenet.0.resConfUnit1"}
    assert not [p for p in network.encoder.backbone.parameters() if p.grad is not None]


def test_gradients_of_the_template_branch():
    network, source = build(tiny_config()).double(), source_batch(1)
    w2c, k = source.camera.world_to_camera.double(), source.camera.intrinsics.double()
    source = replace(source, vertices=source.vertices.double(), camera=Camera(w2c, k, 28, 28))
    f_map2 = torch.rand(1, 6, 3, 3, dtype=torch.float64, requires_grad=True)
    f_id = torch.rand(1, 64, dtype=torch.float64, requires_grad=True)
    code = torch.rand(1, 27, dtype=torch.float64)

    def call(f_map2, f_id):
        out = network.template_gaussians(source, f_map2, f_id, code)
        return out.rotations, out.scales, out.opacities, out.features

    assert torch.autograd.gradcheck(call, (f_map2, f_id), fast_mode=True)


def test_a_picture_of_another_size_is_refused():
    network = build(tiny_config())
    with pytest.raises(ValueError, match="28 x 28"):
        network(source_batch(1, size=42))


# --- options ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_without_inverse_mapping_the_screen_goes_in_directly():
    network = build(tiny_config(ablation=Ablation(inverse_mapping=False)))
    source = source_batch()
    f_map1 = network.encoder(source.image)[0]
    rgb = F.interpolate(source.image, size=(24, 24), mode="bilinear", align_corners=False)
    expected = F.interpolate(torch.cat([rgb, f_map1], 1), size=(TEXELS, TEXELS), mode="bilinear")
    assert torch.allclose(network.uv_features(source, f_map1, None), expected, atol=1e-6)
    moved = replace(source, vertices=source.vertices + 0.2)
    for a, b in zip(vars(network(source, noise="off").uv[0]).values(),
                    vars(network(moved, noise="off").uv[0]).values(), strict=True):  # fmt: skip
        assert torch.equal(a, b)


def test_without_uv_gaussians_their_branch_is_not_built():
    network = build(tiny_config(ablation=Ablation(uv_gaussians=False)))
    output = network(source_batch())
    assert output.uv == () and output.texture is None and output.template is not None
    assert not [key for key in network.state_dict() if key.startswith("uv_")]


def test_without_a_template_branch():
    network = build(tiny_config(template_branch=None))
    output = network(source_batch())
    assert output.template is None and len(output.uv) == 1
    assert not [k for k in network.state_dict() if k.startswith(("vertex", "template", "global"))]
    with pytest.raises(InputError, match="nothing is left"):
        build(tiny_config(template_branch=None, ablation=Ablation(uv_gaussians=False)))


def test_refiner_kinds_and_the_ablation_without_it():
    assert build_refiner(tiny_config(ablation=Ablation(refiner=False))) is None
    refiner = build_refiner(tiny_config())
    features, alpha = torch.randn(2, 7, 32, 32), torch.rand(2, 1, 32, 32)
    picture = refiner(features, alpha, noise="off")
    assert picture.shape == (2, 3, 32, 32)
    assert 0 <= picture.min() and picture.max() <= 1
    assert torch.equal(picture, refiner(features, noise="off"))
    with torch.no_grad():
        for layer in (refiner.stylegan_decoder.style_conv1, *refiner.stylegan_decoder.style_convs):
            layer.weight.fill_(0.5)
    assert not torch.equal(refiner(features), refiner(features))
    quiet = build_refiner(tiny_config(refiner=replace(tiny_config().refiner, noise="off")))
    assert torch.equal(quiet(features), quiet(features))


@torch.no_grad()
def test_hidden_texels_can_be_sampled_with_their_visibility_beside():
    plain = build(tiny_config())
    config = tiny_config(uv_branch=replace(tiny_config().uv_branch, sample_hidden=True))
    network, source = build(config), source_batch()
    assert network.uv_styleunet.in_channels == plain.uv_styleunet.in_channels + 1
    f_map1, _, _, visible = plain.encode(source)
    hidden_too, masked = (n.uv_features(source, f_map1, visible) for n in (network, plain))
    seen = hidden_too[:, -1:]
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(hidden_too[:, :-1] * seen, masked, atol=1e-6)
    assert (hidden_too[:, :-1] * (1 - seen)).abs().sum() > 0
    assert network(source).uv[0].features.isfinite().all()


@torch.no_grad()
def test_the_silhouette_is_that_of_the_posed_mesh():
    config = tiny_config(encoder=replace(tiny_config().encoder, silhouette=True))
    network, source = build(config), source_batch()
    shapes = {}
    network.encoder.register_forward_pre_hook(lambda module, given: shapes.update(given=given[1]))
    network(source)
    body, mask = shapes["given"].unbind(1)
    assert torch.equal(mask, source.mask[:, 0])
    for b in range(2):
        fragments = source_fragments(source.vertices[b : b + 1], network.faces, source.camera[b], 24)[0]
        small = F.interpolate(fragments.mask[None, None].float(), size=(28, 28), mode="bilinear")
        assert torch.allclose(body[b], small[0, 0])
        assert 0 < body[b].mean() < 1


def _with_collapsed(template, size):
    atlas = rasterize_uv(template, size)
    barycentrics = atlas.barycentrics.clone()
    row, column = atlas.mask.nonzero()[5].tolist()
    barycentrics[row, column] = 0
    return MeshFragments(atlas.face_ids, barycentrics, atlas.depth)


def test_collapsed_texels_hang_at_the_origin_or_are_dropped(monkeypatch):
    import guava.model.network as module

    monkeypatch.setattr(module, "uv_texels", _with_collapsed)
    kept, dropped = (
        build(tiny_config(uv_branch=replace(tiny_config().uv_branch, collapsed_texels=choice)))
        for choice in ("origin", "drop")
    )
    assert len(kept.texel_index) == len(dropped.texel_index) + 1
    source = source_batch(1)
    layer = kept(source).uv[0]
    assert not layer.barycentrics[5].any()
    assert (dropped(source).uv[0].barycentrics.sum(1) > 0.99).all()
    # Its feature is that of the world's origin: at 21 m in front of the camera, the picture's middle.
    f_map1 = torch.rand(1, 5, 24, 24)
    visible = torch.ones(1, len(kept.faces), dtype=torch.bool)
    mapped = kept.uv_features(source, f_map1, visible).flatten(2)[0, :, kept.texel_index[5]]
    assert torch.allclose(mapped[3:], f_map1[0, :, 11:13, 11:13].mean((1, 2)), atol=1e-4)


def test_quirks_of_the_presets():
    source = source_batch(1)
    release, text = build(tiny_config()), build(tiny_config(paper()))
    norms = release(source).template.rotations.square()
    assert torch.allclose(norms.sum(1), torch.ones(1, 4), atol=1e-5)
    assert not torch.allclose(norms.sum(2), torch.ones(1, VERTICES), atol=1e-2)
    unit = text(source).template.rotations.square().sum(2)
    assert torch.allclose(unit, torch.ones(1, VERTICES), atol=1e-5)
    assert torch.allclose(release.camera_code(source)[0, -3:], source.camera.world_to_camera[0, :3, 2])
    assert torch.allclose(text.camera_code(source)[0, -3:], source.camera.world_to_camera[0, 2, :3])


def test_parts_that_do_not_go_together_are_refused():
    config = tiny_config()
    with pytest.raises(InputError, match="does not go with"):
        build_network(replace(config, uv_branch=replace(config.uv_branch, kind="residual")), tiny_template())
    with pytest.raises(InputError, match="hidden"):
        build(replace(config, uv_branch=replace(config.uv_branch, collapsed_texels="hidden")))
    with pytest.raises(InputError, match="prior"):
        build(replace(config, uv_branch=replace(config.uv_branch, prior="baseline")))
    with pytest.raises(InputError, match="second UV layer"):
        build(replace(config, uv_branch=replace(config.uv_branch, second_layer=True)))


# --- the release's names and numbers ------------------------------------------------------------------------


def test_full_size_names_shapes_and_counts():
    pytest.importorskip("transformers")
    template = tiny_template()
    with torch.device("meta"):
        network, refiner = build_network(official(), template), build_refiner(official())
    assert isinstance(refiner, StyleUNetRefiner)
    state = {key: list(value.shape) for key, value in network.state_dict().items()}
    expected = {"vertex_base_feature": [VERTICES, 128], "uv_base_feature": [32, 512, 512]}
    blocks = {
        "encoder.neck": "EncoderNeck", "global_mapping": "global_mapping", "uv_styleunet": "StyleUNet",
        "uv_style_mapping": "uv_style_mapping", "template_decoder": "TemplateDecoder",
        "uv_decoder": "UVDecoder",
    }  # fmt: skip
    for name, block in blocks.items():
        expected |= {f"{name}.{key}": shape for key, shape in OFFICIAL[block].items()}
    backbone = {key for key in state if key.startswith("encoder.backbone.")}
    assert {key: state[key] for key in state.keys() - backbone} == expected
    assert {key: list(value.shape) for key, value in refiner.state_dict().items()} == OFFICIAL["Refiner"]
    trained = sum(p.numel() for m in (network, refiner) for p in m.parameters() if p.requires_grad)
    assert trained + (10595 - VERTICES) * 128 == 86_840_082
    counts = {name: sum(p.numel() for p in getattr(network, name).parameters())
              for name in ("global_mapping", "uv_style_mapping")}  # fmt: skip
    assert counts == {"global_mapping": 328_448, "uv_style_mapping": 919_040}


def test_base_features_start_as_normal_noise():
    network = build(tiny_config())
    for feature in (network.vertex_base_feature, network.uv_base_feature):
        assert float(feature.detach().mean()) == pytest.approx(0, abs=0.2)
        assert float(feature.detach().std()) == pytest.approx(1, rel=0.15)


def test_tables_follow_the_device_and_are_no_weights():
    network = build(tiny_config())
    tables = {name for name, _ in network.named_buffers() if "." not in name}
    assert tables == {"faces", "texel_faces", "texel_barycentrics", "texel_index"}
    assert not tables & network.state_dict().keys()


@torch.no_grad()
def test_channels_last_changes_the_layout_and_not_the_result():
    network, refiner, source = build(tiny_config()), build_refiner(tiny_config()), source_batch()
    features = torch.randn(2, 7, 32, 32)
    before, picture = tensors(network(source, noise="off")), refiner(features, noise="off")
    assert to_channels_last(network) is network
    weight = network.uv_decoder.feature_conv[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    for name, value in tensors(network(source, noise="off")).items():
        assert torch.allclose(value, before[name], atol=1e-4), name
    again = to_channels_last(refiner)(features.contiguous(memory_format=torch.channels_last), noise="off")
    assert torch.allclose(again, picture, atol=1e-5)


def test_presets_are_what_they_are_called():
    assert preset("official") == GuavaConfig()
    assert preset("official").encoder == EncoderConfig()
    assert preset("official").template_branch == TemplateBranchConfig()
    assert preset("official").uv_branch == UVBranchConfig()
    assert preset("official").refiner == RefinerConfig()
    with pytest.raises(InputError, match="large"):
        preset("large")


# --- texels, visibility, inverse mapping --------------------------------------------------------------------


def test_texels_come_from_the_templates_own_table_where_it_has_one_of_that_size():
    table = UVTable(torch.tensor([[-1, 3], [4, 4]]), torch.rand(2, 2, 3))
    template = replace(tiny_template(), uv_table=table)
    texels = uv_texels(template, 2)
    assert texels.face_ids.tolist() == [[-1, 3], [4, 4]]
    assert texels.mask.tolist() == [[False, True], [True, True]]
    assert torch.equal(texels.barycentrics, table.barycentrics)
    drawn = uv_texels(template, 8)
    assert torch.equal(drawn.face_ids, rasterize_uv(template, 8).face_ids)


def _bumpy_mesh():
    """A folded sheet before a flat one, seen obliquely: some faces hide others, some look away."""
    generator = np.random.default_rng(2)
    n = 7
    grid = np.stack(np.meshgrid(np.linspace(-0.5, 0.5, n), np.linspace(-0.5, 0.5, n)), -1).reshape(-1, 2)
    shaken = 0.01 * generator.random((2, n * n, 2))  # no edge runs through pixel centres
    near = np.c_[grid * 0.6 + 0.1 + shaken[0], 2.0 + 0.35 * generator.random(n * n)]
    far = np.c_[grid * 1.4 + shaken[1], np.full(n * n, 2.8)]
    quads = np.array([[r * n + c, r * n + c + 1, r * n + c + n, r * n + c + n + 1]
                      for r in range(n - 1) for c in range(n - 1)])  # fmt: skip
    sheet = np.concatenate([quads[:, [0, 1, 2]], quads[:, [3, 1, 2]]])
    return np.concatenate([near, far]), np.concatenate([sheet, sheet + n * n])


def _nearest_face(direction, corners):
    """Index of the first triangle that the ray from the origin meets (both sides count), or -1."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    normal = np.cross(b - a, c - a)
    distance = (normal * a).sum(1) / (normal @ direction)
    point = distance[:, None] * direction
    inside = distance > 0
    for p, q in ((a, b), (b, c), (c, a)):
        inside &= (np.cross(q - p, point - p) * normal).sum(1) >= 0
    return int(np.where(inside, distance, np.inf).argmin()) if inside.any() else -1


def test_inverse_mapping_against_brute_force_ray_casting():
    vertices, faces = _bumpy_mesh()
    corners = vertices[faces]
    size, focal = 24, 26.0
    owners = {
        _nearest_face(np.array([(x + 0.5 - size / 2) / focal, (y + 0.5 - size / 2) / focal, 1.0]), corners)
        for x in range(size)
        for y in range(size)
    } - {-1}
    assert 20 < len(owners) < len(faces) - 20  # both kinds occur

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(-1, len(faces), (12, 10), generator=generator, dtype=torch.int32)
    weights = torch.rand(12, 10, 3, generator=generator)
    weights = weights / weights.sum(-1, keepdim=True)
    texels = MeshFragments(ids, weights, torch.zeros(12, 10))
    features = torch.rand(2, 4, size, size, generator=generator)
    k = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    camera = Camera(torch.eye(4), k, size, size)
    mesh = torch.tensor(vertices, dtype=torch.float32)
    mesh = torch.stack([mesh, mesh + torch.tensor([0.05, 0, 0])])
    fragments = source_fragments(mesh, torch.tensor(faces), camera, size)
    visible = torch.stack([visible_faces(one, len(faces)) for one in fragments])
    assert set(visible[0].nonzero()[:, 0].tolist()) == owners

    out, kept = inverse_texture_map(features, mesh, torch.tensor(faces), texels, camera, visible=visible)
    for row in range(12):
        for column in range(10):
            face = int(ids[row, column])
            value = out[0, :, row, column]
            assert bool(kept[0, row, column]) == (face in owners)
            if face not in owners:
                assert not value.any()
                continue
            x, y, z = weights[row, column].double().numpy() @ corners[face]
            x, y = focal * x / z + size / 2 - 0.5, focal * y / z + size / 2 - 0.5
            expected = torch.zeros(4, dtype=torch.float64)
            for j in (int(np.floor(y)), int(np.floor(y)) + 1):
                for i in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if 0 <= i < size and 0 <= j < size:  # zero padding
                        expected += (1 - abs(x - i)) * (1 - abs(y - j)) * features[0, :, j, i].double()
            assert torch.allclose(value.double(), expected, atol=1e-4)


def test_projection_is_the_releases_to_the_last_bit():
    source = source_batch(3, size=518)
    seen = source.camera.transform(source.vertices)
    expected = 24 * seen[..., :2] / (seen[..., 2:] + 1e-7)
    assert torch.equal(project_ndc(source.vertices, source.camera), expected)
    assert torch.equal(project_ndc(source.vertices, source.camera.resized(512, 512)), expected)


def test_projection_of_any_camera():
    k = torch.tensor([[50.0, 3, 20], [0, 60, 9], [0, 0, 1]], dtype=torch.float64)
    camera = Camera(torch.eye(4, dtype=torch.float64), k, 40, 30)
    points = torch.rand(2, 9, 3, dtype=torch.float64) + torch.tensor([-0.5, -0.5, 1])
    pixels, _ = camera.project(points)
    expected = 2 * pixels / torch.tensor([40.0, 30]) - 1
    assert torch.allclose(project_ndc(points, camera), expected, atol=1e-12)


def test_back_faces_are_visible_too():
    triangle = torch.tensor([[[-0.5, -0.5, 2.0], [0.5, -0.5, 2.0], [0.0, 0.5, 2.0]]])
    k = torch.tensor([[8.0, 0, 4], [0, 8, 4], [0, 0, 1]])
    for order in ([0, 1, 2], [2, 1, 0]):
        fragments = source_fragments(triangle, torch.tensor([order]), Camera(torch.eye(4), k, 8, 8), 8)
        assert visible_faces(fragments[0], 1).all()


def test_inverse_mapping_gradients():
    vertices, faces = (torch.tensor(part) for part in _bumpy_mesh())
    ids = torch.tensor([[0, 50, -1], [7, 90, 100]], dtype=torch.int32)
    texels = MeshFragments(ids, torch.full((2, 3, 3), 1 / 3, dtype=torch.float64), torch.zeros(2, 3))
    k = torch.tensor([[6.0, 0, 3], [0, 6, 3], [0, 0, 1]], dtype=torch.float64)
    camera = Camera(torch.eye(4, dtype=torch.float64), k, 6, 6)
    visible = torch.ones(1, len(faces), dtype=torch.bool)
    visible[0, 7] = False
    features = torch.rand(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda f: inverse_texture_map(f, vertices[None], faces, texels, camera, visible=visible)[0], features
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sampling_half_precision_features_keeps_the_place_exact(dtype):
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    pixels = torch.tensor([[[40.5, 8.5], [41.5, 8.5], [43.5, 9.5]]])
    assert sample_features(ramp.to(dtype), pixels, 64, 64)[0, :, 0].tolist() == [40, 41, 43]


def test_face_frames_by_definition():
    vertices = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    faces = torch.arange(9).reshape(3, 3)
    frames = face_frames(vertices, faces, "edge_and_height")
    for f in range(3):
        v0, v1, v2 = vertices[faces[f]].numpy()
        a0 = (v1 - v0) / np.linalg.norm(v1 - v0)
        a1 = np.cross(a0, v2 - v0)
        a1 /= np.linalg.norm(a1)
        a2 = np.cross(a1, a0)
        a2 = -a2 / np.linalg.norm(a2)
        assert np.allclose(frames.rotation[f].numpy(), np.stack([a0, a1, a2], 1))
        height = abs(a2 @ (v2 - v0))
        assert float(frames.sigma[f]) == pytest.approx((np.linalg.norm(v1 - v0) + height) / 2)
