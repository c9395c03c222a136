"""Photo -> avatar by a network: the source that it sees, what is stored, and errors that help."""

from dataclasses import replace

import pytest
import torch
from tiny_network import CHANNELS, SIDE, Scene, scene, tiny_config

from guava.avatar import Animator, RefinerReference, load_avatar, save_avatar
from guava.avatar.gaussians import BindingKind
from guava.body import EHM, load_template
from guava.errors import GuavaError, InputError, MissingAssetError, NoPersonError, TemplateMismatchError
from guava.model import GENERATORS, Stages, build_refiner, reconstruct, sample_projected
from guava.model.generate import (
    STAGES,
    Generator,
    NetworkSettings,
    collapsed,
    find_weights,
    in_release_world,
    load_refiner,
    prepare,
    random_weights,
    source_batch,
    source_picture,
    source_view,
    unlike_the_release,
)
from guava.model.weights import load_weights, save_weights

pytestmark = pytest.mark.filterwarnings("ignore:Random weights")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def template():
    return load_template()


@pytest.fixture(scope="module")
def shot(template) -> Scene:
    return scene(template)


@pytest.fixture(scope="module")
def weights(template):
    """Weights of a tiny official network that look like learned ones: they have another name and a hash."""
    return replace(random_weights(tiny_config(), template, 1), name="tiny", hash="12" * 32, provenance={})


@pytest.fixture(scope="module")
def generator(weights, template):
    return Generator(weights, template)


@pytest.fixture(scope="module")
def avatar(generator, shot):
    return generator.avatar(shot.photo, shot.tracked, matting="tracker")


def test_release_networks_see_the_world_of_the_release(template, shot):
    view = source_view(shot.tracked, EHM(template))
    turned = in_release_world(view)
    # Its tracker's camera has its axes about the world's: R near the identity, so R (0, 0, 1) = (0, 0, 1).
    torch.testing.assert_close(turned.camera.world_to_camera[:3, :3], torch.eye(3))
    here, _ = view.camera.project(view.vertices)
    there, _ = turned.camera.project(turned.vertices)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-4)
    assert in_release_world(turned) is turned


def test_collapsed_texels_are_told_apart(avatar):
    g = avatar.gaussians
    rows = (g.binding == BindingKind.TRIANGLE).nonzero()[:3, 0]
    barycentrics = g.barycentrics.clone()
    barycentrics[rows] = 0
    assert collapsed(replace(g, barycentrics=barycentrics)).nonzero()[:, 0].equal(rows)
    assert not collapsed(g).any()


def test_source_is_the_person_on_black_before_the_bodys_own_frame(template, shot):
    view = source_view(shot.tracked, EHM(template))
    camera = shot.tracked.camera[0]
    # The same pixels, whether the person is moved or the camera.
    here, _ = view.camera.project(view.vertices)
    there, _ = camera.project(shot.body.vertices[0])
    assert (here - there).abs().max() < 0.02
    moved = shot.body.vertices[0] - shot.tracked.pose.translation[0]
    assert (view.vertices - moved).abs().max() < 2e-6

    for matting in ("closed_form", "tracker"):
        picture = source_picture(shot.photo, shot.tracked, template, 0, matting)
        source = source_batch(view, picture, 84)
        assert source.image.shape == (1, 3, 84, 84) and source.mask.shape == (1, 1, 84, 84)
        assert (source.camera.width, source.camera.height) == (84, 84)
        truth = shot.tracked.masks[0].float() / 255
        mask = torch.nn.functional.interpolate(source.mask, (128, 128), mode="bilinear")[0, 0]
        assert (mask - truth).abs().mean() < 0.02
        assert source.image[source.mask.expand(-1, 3, -1, -1) == 0].abs().max() == 0
        # What is sampled at a vertex that faces the camera is that vertex' colour.
        sampled = sample_projected(source.image, source.vertices, source.camera)[0]
        # Well inside the silhouette and in front: the chest.
        chest = view.rest_vertices[template.faces[template.part("torso")].unique()]
        front = (view.rest_vertices[:, None] == chest[chest[:, 2] > chest[:, 2].quantile(0.9)]).all(-1).any(1)
        front &= ((here > 4) & (here < 124)).all(1)
        assert front.sum() > 20
        assert (sampled[front] - shot.colors[front]).abs().mean() < 0.02


def test_antialiased_resize_of_colour_times_matte(template, shot):
    picture = source_picture(shot.photo, shot.tracked, template, 0, "tracker")
    side = picture.image.shape[-1]
    view = source_view(shot.tracked, EHM(template))
    small = source_batch(view, picture, side // 8).image
    # A triangle filter of 8 pixels' half width, by its definition.
    position = (torch.arange(side // 8) + 0.5) * 8
    weights = (1 - ((torch.arange(side) + 0.5)[None] - position[:, None]).abs() / 8).clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True)
    wanted = torch.einsum("yh,bchw,xw->bcyx", weights, picture.image, weights)
    assert (small - wanted).abs().max() < 1e-5


def test_a_body_unlike_the_release_s_is_told(template, weights):
    theirs = {"teeth_order": "scrambled", "upper_teeth_joint": "neck"}
    texels = {"valid": 199_008, "release": 199_008}
    same = replace(template, provenance={"options": theirs, "texels": texels})
    free = replace(weights, template_hash=None)
    assert unlike_the_release(free, same) == ()
    other = {"options": {**theirs, "upper_teeth_joint": "head"}, "texels": {**texels, "valid": 152_205}}
    changed = replace(template, provenance=other)
    teeth, layout = unlike_the_release(free, changed)
    assert "guava assets teeth release" in teeth and "152,205" in layout
    assert unlike_the_release(weights, changed) == ()  # compared by the hash
    assert teeth in Generator(free, changed).notes()


def test_avatar_holds_what_the_network_predicted(generator, template, shot, avatar):
    g = avatar.gaussians
    vertices = template.body.num_vertices
    assert g.features.shape[1] == CHANNELS and len(g) > vertices + 500
    assert (g.binding[:vertices] == BindingKind.VERTEX).all()
    assert (g.binding[vertices:] == BindingKind.TRIANGLE).all()
    assert avatar.sigma_rule == "edge_and_height" and avatar.splat_conventions == "3dgs"
    assert avatar.refiner == RefinerReference("tiny", "12" * 32)
    assert avatar.template_hash == template.hash
    stated = avatar.provenance
    assert stated.generator == "official" and stated.settings["weights"]["name"] == "tiny"
    assert stated.settings["network"]["encoder"]["image_size"] == 56
    assert 0.05 < stated.observed_fraction < 0.8 and not any("RANDOM" in note for note in stated.notes)

    # The same numbers by hand.
    view = in_release_world(source_view(shot.tracked, EHM(template)))
    source = source_batch(view, source_picture(shot.photo, shot.tracked, template, 0, "tracker"), 56)
    with torch.no_grad():
        output = generator.network(source, noise="off")
    kept = output.uv[0].opacities[0, :, 0] > generator.config.opacity_threshold
    torch.testing.assert_close(g.opacities[vertices:], output.uv[0].opacities[0, kept, 0])
    torch.testing.assert_close(g.features[vertices:, 3:], output.uv[0].features[0, kept, 3:])
    torch.testing.assert_close(g.local_offset[vertices:], output.uv[0].local_offsets[0, kept])


@pytest.fixture(scope="module")
def source(template, shot):
    view = source_view(shot.tracked, EHM(template))
    return source_batch(view, source_picture(shot.photo, shot.tracked, template, 0, "tracker"), 56)


def test_equal_photos_give_equal_avatars_and_noise_is_seeded(generator, source):
    def features(noise=None):
        return generator.predict(source, noise=noise).uv[0].features

    strengths = [m.weight for m in generator.network.modules() if type(m).__name__ == "StyledConv"]
    quiet = features()
    with torch.no_grad():
        for strength in strengths:
            strength.fill_(0.5)
        noisy, again, other, off = features(3), features(3), features(4), features()
        for strength in strengths:
            strength.zero_()
    assert torch.equal(off, quiet)
    assert torch.equal(noisy, again) and not torch.equal(noisy, quiet) and not torch.equal(noisy, other)


def test_half_precision_changes_little(generator, weights, template, source):
    exact = generator.predict(source).uv[0]
    half = Generator(weights, template, precision="bf16").predict(source).uv[0]
    assert not torch.equal(exact.features, half.features.float())
    spread = exact.features.std(1).mean()
    assert (exact.features - half.features.float()).abs().mean() < 0.15 * spread
    assert (exact.local_offsets - half.local_offsets.float()).abs().max() < 0.02


def test_generators_by_name_and_their_settings(weights, shot):
    assert {"baseline", "official", "paper", "lite"} <= set(GENERATORS)
    stages = Stages(STAGES)
    made = reconstruct(shot.photo, shot.tracked, model="official", weights=weights, stages=stages)
    assert made.provenance.generator == "official" and set(stages.seconds) == {*STAGES} - {"prior"}
    with pytest.raises(InputError, match="no setting 'colour'.*weights"):
        reconstruct(shot.photo, shot.tracked, model="official", colour=3)
    with pytest.raises(InputError, match="twice"):
        reconstruct(shot.photo, shot.tracked, model="lite", config=NetworkSettings(), weights="x")
    with pytest.raises(InputError, match="no model"):
        reconstruct(shot.photo, shot.tracked, model="magic")


@pytest.mark.parametrize("name", ["paper", "lite"])
def test_other_presets_run_the_same_way(name, template, shot):
    made = reconstruct(
        shot.photo,
        shot.tracked,
        model=name,
        weights="random:0",
        network=tiny_config(name),
        matting="tracker",
    )
    assert made.provenance.generator == name and made.refiner.weights == "random:0"
    assert made.splat_conventions == "gsplat" and made.sigma_rule == "mean_edge"
    assert any("RANDOM" in note for note in made.provenance.notes)
    if name == "lite":  # it starts from the photo's own colours
        seen = made.gaussians.observed & (made.gaussians.opacities > 0.5)
        rest = made.gaussians.positions[seen]
        colors = 0.5 + 0.35 * torch.sin(rest * torch.tensor([9.0, 7, 5]) + torch.tensor([0.0, 1, 2]))
        assert (made.gaussians.features[seen, :3] - colors).abs().mean() < 0.06


def test_a_network_may_start_from_the_baselines_avatar(template, shot):
    config = tiny_config("lite")
    config = replace(config, uv_branch=replace(config.uv_branch, prior="baseline"))
    stages = Stages(STAGES)
    generator = Generator(random_weights(config, template, 0), template)
    made = generator.avatar(shot.photo, shot.tracked, matting="tracker", stages=stages)
    assert set(stages.seconds) == {*STAGES} - {"weights"}
    # The back, which the photo does not show, has the baseline's colours instead of grey ones.
    baseline = reconstruct(shot.photo, shot.tracked)
    back = made.gaussians.positions[:, 2] < made.gaussians.positions[:, 2].quantile(0.1)
    behind = baseline.gaussians.positions[:, 2] < baseline.gaussians.positions[:, 2].quantile(0.1)
    ours, theirs = made.gaussians.features[back, :3], baseline.gaussians.features[behind, :3]
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.08


def test_without_weights_it_says_how_to_get_them(shot, tmp_path, monkeypatch):
    monkeypatch.setenv("GUAVA_HOME", str(tmp_path))
    with pytest.raises(MissingAssetError, match="guava weights import"):
        reconstruct(shot.photo, shot.tracked, model="official")
    for name in ("paper", "lite"):
        with pytest.raises(MissingAssetError, match="--weights FILE.*baseline"):
            find_weights(name, NetworkSettings())
    with pytest.raises(GuavaError, match="nothing-here"):
        find_weights("official", NetworkSettings(weights="nothing-here"))


def test_random_weights_only_when_asked_for_and_loudly(template, shot):
    config = tiny_config()
    with pytest.warns(RuntimeWarning, match="Random weights"):
        made = reconstruct(
            shot.photo, shot.tracked, model="official", weights="random:7", network=config, matting="tracker"
        )
    assert any("RANDOM NUMBERS" in note for note in made.provenance.notes)
    # The refiner comes out of the seed again, and of no other.
    refiner = load_refiner(made)
    x = torch.rand(1, CHANNELS, SIDE, SIDE)
    again = random_weights(config, template, 7)
    expected = build_refiner(config)
    expected.load_state_dict(again.refiner)
    assert torch.equal(refiner(x, None, noise="off"), expected(x, None, noise="off"))
    altered = replace(made, refiner=replace(made.refiner, hash="0" * 64))
    with pytest.raises(MissingAssetError, match="comes out differently"):
        load_refiner(altered)
    for wrong in ("random:", "random:x", "random:-1"):
        with pytest.raises(InputError, match="random:SEED"):
            find_weights("official", NetworkSettings(weights=wrong), template)
    with pytest.raises(InputError, match="bring their own network"):
        find_weights("official", NetworkSettings(weights="official", network=config))


def test_weights_file_to_avatar_file_and_its_refiner(weights, template, shot, tmp_path, monkeypatch):
    monkeypatch.setenv("GUAVA_HOME", str(tmp_path / "home"))
    path = tmp_path / "elsewhere.weights"
    stored = save_weights(replace(weights, name="mine"), path)
    made = reconstruct(shot.photo, shot.tracked, model="official", weights=path, matting="tracker")
    assert made.refiner == RefinerReference("mine", stored.hash)
    file = tmp_path / "a.guava"
    save_avatar(made, file)
    read = load_avatar(file, template)
    assert read.refiner == made.refiner and read.splat_conventions == "3dgs"
    half = made.gaussians.features[:, 3:].half().float()
    assert torch.equal(read.gaussians.features[:, 3:], half)
    # Not installed: it says so, and takes the file.
    with pytest.raises(MissingAssetError, match="mine.*guava weights import.*--weights.*--coarse"):
        load_refiner(read)
    from_file = load_refiner(read, path)
    save_weights(replace(weights, name="mine"))
    installed = load_refiner(read)
    x = torch.rand(1, CHANNELS, SIDE, SIDE)
    assert torch.equal(installed(x, None, noise="off"), from_file(x, None, noise="off"))
    # Others of the same name are refused.
    save_weights(replace(weights, name="mine", refiner={k: v + 1 for k, v in weights.refiner.items()}))
    with pytest.raises(MissingAssetError, match="not installed"):
        load_refiner(read)
    with pytest.raises(InputError, match="not with 'mine'"):
        load_refiner(read, "mine")
    assert load_weights("mine").name == "mine"


def test_weights_of_another_preset_or_template_are_refused(weights, template, shot, tmp_path):
    with pytest.raises(InputError, match="belong to the model 'official'.*--model official"):
        reconstruct(shot.photo, shot.tracked, model="paper", weights=weights)
    other = replace(weights, template_name="smplx-flame", template_hash=None)
    with pytest.raises(TemplateMismatchError, match="--template smplx-flame"):
        reconstruct(shot.photo, shot.tracked, model="official", weights=other, template=template)


def test_the_weights_template_is_asked_for_before_any_work(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("GUAVA_HOME", str(tmp_path))
    other = replace(weights, template_name="smplx-flame", template_hash=None)
    with pytest.raises(MissingAssetError, match="'tiny' need the template 'smplx-flame'.*guava assets"):
        prepare("official", NetworkSettings(weights=other))
    with pytest.raises(TemplateMismatchError, match="--template smplx-flame"):
        prepare("official", NetworkSettings(weights=other), "open")
    settings, chosen = prepare("official", NetworkSettings(weights=weights))
    assert chosen.name == "open" and settings.weights is weights


def test_wrong_inputs(generator, weights, template, shot):
    with pytest.raises(NoPersonError):
        generator.avatar(shot.photo, replace(shot.tracked, valid=torch.tensor([False])))
    with pytest.raises(InputError, match="no person mask"):
        generator.avatar(shot.photo, replace(shot.tracked, masks=None))
    with pytest.raises(TemplateMismatchError):
        generator.avatar(shot.photo, replace(shot.tracked, template_hash="0" * 64))
    with pytest.raises(InputError, match="matting"):
        generator.avatar(shot.photo, shot.tracked, matting="scissors")
    for options, said in (
        ({"precision": "fp8"}, "fp32, bf16, fp16"),
        ({"device": "abacus"}, "no device 'abacus'"),
        ({"ablate": ("nose",)}, "inverse-mapping"),
    ):
        with pytest.raises(InputError, match=said):
            Generator(weights, template, **options)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="CUDA.*--device cpu"):
            Generator(weights, template, device="cuda")


def test_a_whole_body_needs_no_crop(template):
    far = scene(template, whole=True)
    pixels, _ = far.tracked.camera[0].project(far.body.vertices[0])
    assert ((pixels > 2) & (pixels < 126)).all(), "head to feet are in the picture"
    made = reconstruct(
        far.photo,
        far.tracked,
        model="lite",
        weights="random:0",
        network=tiny_config("lite"),
        matting="tracker",
    )
    legs = template.part("legs")[made.gaussians.anchor.long()]
    assert legs.sum() > 50 and made.gaussians.observed[legs].float().mean() > 0.25
    assert (made.gaussians.opacities[legs] > 0.5).float().mean() > 0.4

    # It stands where the picture has it, and lifts a leg.
    animator = Animator(made, template, coarse=True)
    pose = made.source.pose
    standing, photo = animator.render(pose), torch.from_numpy(far.photo.pixels).float() / 255
    small = torch.nn.functional.avg_pool2d(photo.permute(2, 0, 1), 2).permute(1, 2, 0)
    solid = standing[..., 3] > 0.9
    assert (standing[..., :3] - small)[solid].abs().mean() < 0.08
    lifted = replace(pose, joints=pose.joints.clone())
    lifted.joints[0, template.joint("left_hip"), 2] = 0.7
    moved = (animator.render(lifted)[..., 3] - standing[..., 3]).abs()
    rows = moved.amax(1) > 0.5
    hips = far.tracked.camera[0].project(far.body.joints[0, :1])[0][0, 1]
    assert rows.any() and int(rows.nonzero()[0, 0]) > hips - 5


@pytest.mark.slow
def test_official_on_smplx_flame():
    """Synthetic body files of full size: head swap, teeth, the release's UV table, its collapsed texels."""
    from synthetic_models import synthetic_template

    full = synthetic_template()
    shot = scene(full)
    config = tiny_config()
    config = replace(config, uv_branch=replace(config.uv_branch, size=512))
    weights = random_weights(config, full, 0)
    # As the authors' checkpoint is imported: their body's hash is not ours to know.
    weights = replace(weights, name="theirs", hash="56" * 32, template_hash=None)
    generator = Generator(weights, full)
    made = generator.avatar(shot.photo, shot.tracked, matting="tracker")
    kind = made.gaussians.binding
    assert (kind == BindingKind.VERTEX).sum() == 10_595 and (kind == BindingKind.TRIANGLE).sum() > 140_000
    texels = generator.network.texel_barycentrics.flatten(0, 1)[generator.network.texel_index]
    count = int((texels == 0).all(1).sum())
    assert count > 0 and any(note.startswith(f"{count} Gaussians") for note in made.provenance.notes)
    assert not collapsed(made.gaussians).any() and made.template_name == "smplx-flame"
    teeth = made.gaussians.anchor[(kind == BindingKind.TRIANGLE)] >= 20_908
    assert teeth.sum() > 500

    drawn = Animator(made, full, coarse=True).render(made.source.pose)[..., 3]
    truth = shot.tracked.masks[0] > 128
    assert (drawn > 0.5)[truth].float().mean() > 0.97, "the body's silhouette is covered"
    with pytest.raises(TemplateMismatchError, match="--template smplx-flame"):
        Generator(weights, load_template())


# --- ablations (Tab. 4) ---


def test_parts_can_be_left_out_of_a_network_that_was_trained_with_them(weights, template, shot, avatar):
    vertices = template.body.num_vertices

    def made(*parts):
        return Generator(weights, template, ablate=parts).avatar(shot.photo, shot.tracked, matting="tracker")

    coarse = made("refiner")
    assert coarse.refiner is None and torch.equal(coarse.gaussians.features, avatar.gaussians.features)
    template_only = made("uv-gaussians")
    assert len(template_only.gaussians) == vertices
    assert torch.equal(template_only.gaussians.features, avatar.gaussians.features[:vertices])
    direct = made("inverse-mapping")
    assert torch.equal(direct.gaussians.features[:vertices], avatar.gaussians.features[:vertices])
    assert not torch.equal(direct.gaussians.features[vertices:], avatar.gaussians.features[vertices:])
    for one, name in ((coarse, "refiner"), (template_only, "uv-gaussians"), (direct, "inverse-mapping")):
        assert any(name in note and "Tab. 4" in note for note in one.provenance.notes)
        assert one.provenance.settings["ablate"] == [name]
    assert avatar.provenance.settings["ablate"] == []


def test_weights_trained_without_a_part_need_no_warning(template, shot):
    config = tiny_config()
    config = replace(config, ablation=replace(config.ablation, uv_gaussians=False, refiner=False))
    weights = replace(random_weights(config, template, 2), name="tiny", hash="34" * 32)
    made = Generator(weights, template, ablate=("uv-gaussians",)).avatar(
        shot.photo, shot.tracked, matting="tracker"
    )
    assert made.refiner is None and not any("Tab. 4" in note for note in made.provenance.notes)


def test_what_lite_consists_of_cannot_be_left_out():
    """Said before a photo is tracked."""
    for part in ("uv-gaussians", "inverse-mapping"):
        with pytest.raises(InputError, match=f"cannot leave out {part}"):
            prepare("lite", NetworkSettings(weights="random:0", ablate=(part,)))


def test_without_the_expressive_head_the_plain_template_is_needed(weights, template, shot):
    plain = load_template("open-plain-head")
    with pytest.raises(TemplateMismatchError, match="open-plain-head"):
        Generator(weights, template, ablate=("ehm",))
    settings, chosen = prepare("official", NetworkSettings(weights=weights, ablate=("ehm",)))
    assert chosen.name == "open-plain-head" == plain.name
    tracked = replace(scene_of_plain(plain, shot), template_hash=plain.hash)
    made = Generator(weights, plain, ablate=("ehm",)).avatar(shot.photo, tracked, matting="tracker")
    assert made.template_hash == plain.hash and any("ehm" in note for note in made.provenance.notes)
    with pytest.raises(TemplateMismatchError):
        Generator(weights, plain)


def scene_of_plain(plain, shot: Scene):
    """The truth in a plain head's parameters."""
    from guava.body import Identity, Pose

    rest = Pose.rest(plain)
    pose = replace(rest, joints=shot.tracked.pose.joints, translation=shot.tracked.pose.translation)
    return replace(shot.tracked, identity=Identity.neutral(plain), pose=pose)
