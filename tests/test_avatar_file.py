"""Avatar files: nothing is lost, and nothing wrong is taken for right."""

from dataclasses import fields, replace

import pytest
import torch
from samples import random_gaussians, small_avatar

from guava.avatar import RefinerReference, load_avatar, save_avatar
from guava.body import load_template
from guava.container import read_container, write_container
from guava.errors import FileFormatError, InputError, TemplateMismatchError
from guava.motion import make_clip, save_motion


@pytest.fixture(scope="module")
def avatar():
    gaussians = random_gaussians(channels=7)
    gaussians.features[:, 3:] = gaussians.features[:, 3:].half().float()  # what files keep
    return replace(
        small_avatar(),
        gaussians=gaussians,
        refiner=RefinerReference("lite", "cd" * 32),
        sigma_rule="edge_and_height",
        splat_conventions="3dgs",
    )


@pytest.fixture
def written(avatar, tmp_path):
    path = tmp_path / "a.guava"
    save_avatar(avatar, path)
    return path


def same(a, b) -> bool:
    """Equality of nested records, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return a == b


def test_round_trip_loses_nothing(avatar, written):
    read = load_avatar(written, load_template())
    for f in fields(avatar):
        assert same(getattr(avatar, f.name), getattr(read, f.name)), f.name


def test_avatars_without_latents_stay_readable_for_older_programs(tmp_path):
    path, plain = tmp_path / "plain.guava", small_avatar()
    save_avatar(plain, path)
    tensors, header = read_container(path, "avatar", 1)
    assert header["version"] == 1 and header["refiner"] is None and "gaussians.latents" not in tensors
    # As version 1 was written before there were splat conventions.
    content = {k: v for k, v in header.items() if k not in ("kind", "version", "checksum")}
    del content["splat_conventions"]
    write_container(path, "avatar", 1, tensors, content)
    read = load_avatar(path, load_template())
    for f in fields(plain):
        assert same(getattr(plain, f.name), getattr(read, f.name)), f.name


def test_latents_are_rounded_to_half_precision_unless_they_cannot_be(avatar, tmp_path):
    path = tmp_path / "latents.guava"
    g = torch.Generator().manual_seed(0)
    latents = 10 * torch.randn(len(avatar.gaussians), 4, generator=g)
    colors = avatar.gaussians.features[:, :3]

    def stored(latents, **options):
        gaussians = replace(avatar.gaussians, features=torch.cat([colors, latents], 1))
        save_avatar(replace(avatar, gaussians=gaussians), path, **options)
        return load_avatar(path).gaussians.features

    read = stored(latents)
    assert torch.equal(read[:, :3], colors) and not torch.equal(read[:, 3:], latents)
    assert ((read[:, 3:] - latents).abs() <= latents.abs() * 2**-11 + 2**-25).all()
    assert torch.equal(stored(latents, exact=True)[:, 3:], latents)
    assert torch.equal(stored(latents * 1e5)[:, 3:], latents * 1e5)
    assert stored(latents[:, :0]).shape[1] == 3


def test_header_explains_itself(written):
    _, header = read_container(written, "avatar", 2)
    assert header["conventions"]["binding"] == {"TRIANGLE": 0, "VERTEX": 1, "SKIN": 2}
    assert header["refiner"] == {"weights": "lite", "hash": "cd" * 32} and header["channels"] == 7
    assert header["splat_conventions"] == "3dgs"
    assert header["provenance"]["synthetic_media"] is True
    assert header["provenance"]["subject_consent"] == "it is made up"
    assert header["software"].startswith("guava-avatar ")


def test_truncation_is_noticed_everywhere(written, tmp_path):
    data = written.read_bytes()
    cut = tmp_path / "cut.guava"
    steps = sorted({0, 1, 8, 9, 100, 1000, len(data) - 1, *range(0, len(data), max(1, len(data) // 60))})
    for keep in steps:
        cut.write_bytes(data[:keep])
        with pytest.raises(FileFormatError):
            load_avatar(cut)


def test_flipped_bytes_are_noticed_everywhere(written, tmp_path):
    data = written.read_bytes()
    bad = tmp_path / "bad.guava"
    for place in range(0, len(data), max(1, len(data) // 400)):
        changed = bytearray(data)
        changed[place] ^= 0x41
        bad.write_bytes(changed)
        with pytest.raises(FileFormatError):
            load_avatar(bad)


def test_other_files_are_refused(tmp_path):
    motion = tmp_path / "m.motion"
    save_motion(make_clip("wave"), motion)
    with pytest.raises(FileFormatError, match="motion file"):
        load_avatar(motion)
    picture = tmp_path / "p.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    with pytest.raises(FileFormatError):
        load_avatar(picture)
    with pytest.raises(InputError, match="no file"):
        load_avatar(tmp_path / "absent.guava")


def test_newer_and_incomplete_files_are_refused(written, tmp_path):
    tensors, header = read_container(written, "avatar", 2)
    content = {k: v for k, v in header.items() if k not in ("kind", "version", "checksum")}
    newer = tmp_path / "newer.guava"
    write_container(newer, "avatar", 3, tensors, content)
    with pytest.raises(FileFormatError, match="format 3.*Update"):
        load_avatar(newer)
    for missing in ("gaussians.scales", "identity.head_scale", "source.pose.joints"):
        write_container(newer, "avatar", 2, {k: v for k, v in tensors.items() if k != missing}, content)
        with pytest.raises(FileFormatError, match=missing):
            load_avatar(newer)
    write_container(
        newer, "avatar", 2, tensors | {"gaussians.anchor": tensors["gaussians.anchor"][:-1]}, content
    )
    with pytest.raises(FileFormatError, match="anchor"):
        load_avatar(newer)
    write_container(newer, "avatar", 2, tensors, {k: v for k, v in content.items() if k != "source"})
    with pytest.raises(FileFormatError, match="source"):
        load_avatar(newer)


def test_values_that_cannot_be_shown_are_refused(written, tmp_path):
    tensors, header = read_container(written, "avatar", 2)
    content = {k: v for k, v in header.items() if k not in ("kind", "version", "checksum")}
    path = tmp_path / "wrong.guava"
    write_container(path, "avatar", 2, tensors, content | {"sigma_rule": "largest_edge"})
    with pytest.raises(FileFormatError, match="largest_edge.*Update"):
        load_avatar(path)
    write_container(path, "avatar", 2, tensors, content | {"splat_conventions": "voxels"})
    with pytest.raises(FileFormatError, match="voxels.*Update"):
        load_avatar(path)
    for latents in (tensors["gaussians.latents"][:-1], tensors["gaussians.latents"] / 0):
        write_container(path, "avatar", 2, tensors | {"gaussians.latents": latents}, content)
        with pytest.raises(FileFormatError):
            load_avatar(path)
    for name, value in (("scales", float("nan")), ("binding", 9), ("layer", 9)):
        wrong = tensors[f"gaussians.{name}"].clone()
        wrong.view(-1)[0] = value
        write_container(path, "avatar", 2, tensors | {f"gaussians.{name}": wrong}, content)
        with pytest.raises(FileFormatError, match=f"'{name}'"):
            load_avatar(path)
    short = tensors["source.pose.expression"][:, :-1].contiguous()
    write_container(path, "avatar", 2, tensors | {"source.pose.expression": short}, content)
    with pytest.raises(FileFormatError, match="expression"):
        load_avatar(path, load_template())


def test_another_template_is_refused(avatar, tmp_path):
    path = tmp_path / "other.guava"
    save_avatar(replace(avatar, template_hash="0" * 64), path)
    assert load_avatar(path).template_hash == "0" * 64
    with pytest.raises(TemplateMismatchError, match="another body template.*guava reconstruct"):
        load_avatar(path, load_template())


def test_wrong_arrays_are_not_written(avatar, tmp_path):
    wrong = replace(avatar, gaussians=replace(avatar.gaussians, anchor=avatar.gaussians.anchor.long()))
    with pytest.raises(ValueError, match="anchor"):
        save_avatar(wrong, tmp_path / "wrong.guava")
    with pytest.raises(ValueError, match="voxels"):
        save_avatar(replace(avatar, splat_conventions="voxels"), tmp_path / "wrong.guava")
    assert not list(tmp_path.glob("*wrong*"))
