"""The authors' checkpoint in and out, on files of its layout; the file itself was not available."""

import argparse
import os
import pickle
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from guava.container import read_container
from guava.errors import FileFormatError, InputError, TemplateMismatchError

pytest.importorskip("transformers", reason="the image encoder needs the extra 'network'")

from official_checkpoint import TINY_VERTICES, checkpoint, random, save, tiny_config  # noqa: E402

from guava.model.backbone import to_layout  # noqa: E402
from guava.model.checkpoint import (  # noqa: E402
    export_official,
    import_official,
    left_out,
    network_from_official,
    network_to_official,
    official_names,
    write_official,
)
from guava.model.config import official, preset  # noqa: E402
from guava.model.network import build_network, build_refiner  # noqa: E402
from guava.model.official_keys import sized_template  # noqa: E402
from guava.model.torch_file import read_torch_file  # noqa: E402
from guava.model.weights import load_into, load_weights, save_weights  # noqa: E402


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("GUAVA_HOME", str(tmp_path / "home"))


def tiny(**options):
    return checkpoint(tiny_config(), TINY_VERTICES, **options)


def take(path, **options):
    return import_official(path, config=tiny_config(), vertices=TINY_VERTICES, **options)


def kept(model):
    return {key: value for key, value in model.items() if left_out(key) is None}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], value) for key, value in other.items())


# --- in and out ---


@pytest.mark.parametrize("body", [True, False], ids=["with body arrays", "stripped"])
def test_imports_strictly_and_exports_equal(tmp_path, body):
    document = tiny(body=body)
    told = []
    weights = take(save(tmp_path / "official.pt", document), progress=lambda *step: told.append(step))
    assert weights.config == tiny_config() and weights.template_name == "smplx-flame"
    assert weights.name == "official" and weights.template_hash is None
    out = export_official(weights)
    assert_equal(out["model"], kept(document["model"]))
    assert_equal(out["render_model"], document["render_model"])
    assert out["global_iter"] == document["global_iter"] and out["meta_cfg"] == document["meta_cfg"]
    for section in ("model", "render_model"):
        assert any("noises" in key for key in out[section])
    assert {stage for stage, *_ in told} == {"checksums", "keys", "fingerprint"}
    assert all(0 <= done <= total for _, done, total in told)
    assert weights.provenance["notes"] == []
    assert weights.provenance["iteration"] == 190_000

    dropped = {entry["keys"]: entry for entry in weights.provenance["left_out"]}
    if not body:
        assert not dropped
        return
    assert set(dropped) == {
        "xy_image_coord", "v_template", "laplacian_matrix", "ehm.*", "smplx.*", "mesh_renderer.*",
    }  # fmt: skip
    assert all("licensed" in dropped[key]["reason"] for key in ("v_template", "ehm.*", "mesh_renderer.*"))
    assert dropped["laplacian_matrix"]["bytes"] == 4 * TINY_VERTICES**2
    assert sum(entry["count"] for entry in dropped.values()) == len(document["model"]) - len(out["model"])


def test_what_a_network_computes_with_survives_the_way(tmp_path):
    """Our network -> their file -> our file -> another of our networks."""
    template = sized_template(TINY_VERTICES)
    source, refiner = build_network(tiny_config(), template), build_refiner(tiny_config())
    document = tiny(body=True)
    document["model"] |= network_to_official(source.state_dict())
    document["render_model"] = {f"nerual_refiner.{k}": v for k, v in refiner.state_dict().items()}
    save_weights(take(save(tmp_path / "official.pt", document)))
    weights = load_weights("official")
    other, other_refiner = build_network(weights.config, template), build_refiner(weights.config)
    load_into(other, other_refiner, weights)
    assert_equal(other.state_dict(), source.state_dict())
    assert_equal(other_refiner.state_dict(), refiner.state_dict())
    write_official(weights, tmp_path / "again.pt")
    again = read_torch_file(tmp_path / "again.pt")
    assert_equal(again["model"], kept(document["model"]))
    assert_equal(again["render_model"], document["render_model"])
    assert not any(left_out(key) for key in again["model"])


def test_no_view_drags_its_file_along(tmp_path):
    save_weights(take(save(tmp_path / "official.pt", tiny(fill=random))))
    weights = load_weights("official")
    write_official(weights, tmp_path / "out.pt")
    numbers = sum(t.numel() for t in (*weights.network.values(), *weights.refiner.values()))
    assert os.path.getsize(tmp_path / "out.pt") < 1.2 * 4 * numbers + 400_000


def test_every_name_of_a_network_has_one_there():
    state = build_network(tiny_config(), sized_template(TINY_VERTICES)).state_dict()
    names = official_names(state)
    assert list(names) == list(state)
    assert set(names.values()) == set(network_to_official(state))
    assert names["encoder.backbone.encoder.layer.1.attention.k_proj.bias"] == (
        "dino_encoder.dino_model.blocks.1.attn.qkv.bias"
    )
    assert names["uv_styleunet.final_linear.bias"] == "uv_feature_decoder.final_linear.bias"
    assert_equal(network_from_official(network_to_official(state)), state)


def test_networks_of_older_transformers_take_the_same_weights(tmp_path):
    weights = take(save(tmp_path / "official.pt", tiny()))
    prefix = "encoder.backbone."
    own = {k[len(prefix) :]: v for k, v in weights.network.items() if k.startswith(prefix)}
    old = {prefix + key: value for key, value in to_layout(own, "transformers4").items()}
    old |= {key: value for key, value in weights.network.items() if not key.startswith(prefix)}

    class Old(torch.nn.Module):
        given = None

        def state_dict(self):
            return {key: torch.zeros_like(value) for key, value in old.items()}

        def load_state_dict(self, state, strict, assign):
            self.given = state

    module = Old()
    load_into(module, None, weights)
    assert_equal(module.given, old)


def test_half_precision_checkpoints_become_single(tmp_path):
    document = tiny()
    for section in ("model", "render_model"):
        document[section] = {
            key: value.half() if value.is_floating_point() else value
            for key, value in document[section].items()
        }
    save_weights(take(save(tmp_path / "half.pt", document)))
    stored, _ = read_container(tmp_path / "home" / "weights" / "official.weights", "weights", 1)
    assert {value.dtype for value in stored.values()} == {torch.float32}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_told(tmp_path):
    weights = take(save(tmp_path / "official.pt", tiny(body=False)))
    with pytest.raises(InputError, match="Cannot write '/dev/full'"):
        write_official(weights, "/dev/full")
    with pytest.raises(InputError, match="Cannot write.*nowhere"):
        write_official(weights, tmp_path / "nowhere" / "out.pt")


def test_only_the_release_s_architecture_is_exported(tmp_path):
    weights = take(save(tmp_path / "official.pt", tiny()))
    for wrong in (
        replace(weights, refiner=None),
        replace(weights, config=preset("lite")),
        replace(weights, network={"vertex_base_feature": torch.zeros(TINY_VERTICES, 5)}),
    ):
        with pytest.raises(InputError, match="authors' architecture"):
            export_official(wrong)


# --- what its own config says ---


def test_sizes_come_from_its_config(tmp_path):
    document = tiny()
    document["meta_cfg"]["MODEL"]["opacity_threshold"] = 0.5
    document["meta_cfg"]["paths"] = {"data": "somewhere", "steps": (1, 2), "none": None, "nan": float("nan")}
    weights = take(save(tmp_path / "a.pt", document))
    assert weights.config.opacity_threshold == 0.5
    assert weights.provenance["meta_cfg"]["paths"] == {
        "data": "somewhere", "steps": [1, 2], "none": None, "nan": "nan",
    }  # fmt: skip
    save_weights(weights)
    assert load_weights("official").config.opacity_threshold == 0.5

    document["meta_cfg"] = None
    assert take(save(tmp_path / "b.pt", document)).config == tiny_config()


def test_a_larger_architecture_by_its_config(tmp_path):
    config = replace(tiny_config(), uv_branch=replace(tiny_config().uv_branch, size=32), channels=16)
    document = checkpoint(config, TINY_VERTICES)
    assert take(save(tmp_path / "a.pt", document)).config == config
    document["meta_cfg"] = {"unknown": 1}
    with pytest.raises(FileFormatError) as error:
        take(save(tmp_path / "a.pt", document))
    assert "vertex_gs_decoder.color_layers.2.weight is 16x128 instead of 32x128" in str(error.value)
    assert "uv_base_feature is 3x32x32 instead of 3x16x16" in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("uvmap_size", 32, "contradict its tensors"),
        ("image_size", 300, "contradict its tensors"),
        ("image_size", 0, "contradict its tensors"),
        ("color_dim", -3, "contradict its tensors"),
        ("feature_img_size", 30, "contradict its tensors"),
        ("prj_out_dim", 6.5, "which was not used"),
        ("color_dim", "many", "color_dim = 'many', which was not used"),
        ("color_dim", [32, 32], "which was not used"),
        ("opacity_threshold", float("nan"), "which was not used"),
        ("add_teeth", False, "add_teeth = False; this network always has True"),
        ("sh_degree", 3, "sh_degree = 3; this network always has 0"),
        ("invtanfov", [24, 12.5], "invtanfov = \\[24, 12.5\\]"),
    ],
)
def test_what_its_config_says_besides_becomes_a_note(tmp_path, name, value, told):
    document = tiny()
    document["meta_cfg"]["MODEL"][name] = value
    weights = take(save(tmp_path / "a.pt", document))
    assert weights.config == tiny_config()
    (note,) = weights.provenance["notes"]
    assert re.search(told, note)


def test_a_setting_stated_twice_must_agree(tmp_path):
    document = tiny()
    document["meta_cfg"]["DATASET"] = {"opacity_threshold": 0.001, "invtanfov": [24.0, 24]}
    assert take(save(tmp_path / "a.pt", document)).provenance["notes"] == []
    document["meta_cfg"]["DATASET"]["opacity_threshold"] = 0.7
    weights = take(save(tmp_path / "a.pt", document))
    assert weights.config == tiny_config() and "0.001, 0.7" in weights.provenance["notes"][0]


# --- strictness ---


def test_every_difference_is_listed(tmp_path):
    document = tiny()
    model = document["model"]
    del model["uv_base_feature"], model["dino_encoder.dino_model.blocks.1.attn.qkv.bias"]
    model["dino_encoder.surprise.weight"] = torch.zeros(2)
    model["global_feature_mapping.0.bias"] = torch.zeros(3)
    with pytest.raises(FileFormatError) as error:
        take(save(tmp_path / "a.pt", document))
    for told in (
        "section 'model'",
        "2 missing",
        "uv_base_feature",
        "blocks.1.attn.qkv.bias",
        "1 unexpected (dino_encoder.surprise.weight)",
        "global_feature_mapping.0.bias is 3 instead of 7",
    ):
        assert told in str(error.value)
    document = tiny()
    document["render_model"]["nerual_refiner.final_linear.bias"] = torch.zeros(1)
    with pytest.raises(FileFormatError, match="'render_model': 1 of.*nerual_refiner.final_linear.bias is 1"):
        take(save(tmp_path / "a.pt", document))
    document = tiny()
    document["model"]["uv_base_feature"] = document["model"]["uv_base_feature"].int()
    with pytest.raises(FileFormatError, match="int32, not real"):
        take(save(tmp_path / "a.pt", document))


def test_lenient_forgives_what_the_network_never_uses(tmp_path):
    document = tiny()
    noise = "uv_feature_decoder.stylegan_decoder.noises.noise0"
    mask = "dino_encoder.dino_model.mask_token"
    del document["model"][noise], document["model"][mask]
    document["render_model"]["nerual_refiner.stylegan_decoder.noises.noise1"] = torch.zeros(1, 1, 3, 3)
    document["model"]["loss.weight"] = torch.zeros(2)
    path = save(tmp_path / "a.pt", document)
    with pytest.raises(FileFormatError, match="2 missing"):
        take(path)
    weights = take(path, strict=False)
    notes = " ".join(weights.provenance["notes"])
    for told in ("loss.weight", noise, mask, "nerual_refiner.stylegan_decoder.noises.noise1"):
        assert told in notes
    assert export_official(weights)["model"].keys() == kept(tiny()["model"]).keys()
    del document["model"]["uv_base_feature"]
    with pytest.raises(FileFormatError, match="uv_base_feature"):
        take(save(tmp_path / "a.pt", document), strict=False)


def test_differences_that_do_not_matter_name_the_way_out(tmp_path):
    document = tiny()
    document["model"]["loss.weight"] = torch.zeros(2)
    del document["model"]["dino_encoder.dino_model.mask_token"]
    with pytest.raises(FileFormatError, match="1 missing.*1 unexpected.*--lenient"):
        take(save(tmp_path / "a.pt", document))
    del document["model"]["uv_base_feature"]
    with pytest.raises(FileFormatError) as error:
        take(save(tmp_path / "a.pt", document))
    assert "--lenient" not in str(error.value)


def test_wrapped_keys_are_unwrapped_with_a_note(tmp_path):
    document = tiny()
    plain = kept(document["model"])
    document["model"] = {f"module.{key}": value for key, value in document["model"].items()}
    weights = take(save(tmp_path / "a.pt", document))
    assert_equal(export_official(weights)["model"], plain)
    assert "'module.'" in weights.provenance["notes"][0] and len(weights.provenance["notes"]) == 1


def test_sizes_of_another_template_are_told(tmp_path):
    path = save(tmp_path / "a.pt", checkpoint(tiny_config(), TINY_VERTICES + 1, body=False))
    with pytest.raises(FileFormatError, match="vertex_base_feature is 61x5 instead of 60x5"):
        take(path)
    weights = import_official(path, config=tiny_config(), vertices=TINY_VERTICES + 1)
    with pytest.raises(TemplateMismatchError, match="smplx-flame"):
        load_into(build_network(tiny_config(), sized_template(TINY_VERTICES)), None, weights)


# --- the body models in it ---


class Body:
    """What is compared of a template."""

    def __init__(self, model, head, uv=None):
        self.faces = model["ehm.smplx.faces_tensor"].clone()
        self.body = argparse.Namespace(v_template=model["ehm.smplx.v_template"].clone())
        self.head = argparse.Namespace(v_template=head.clone())
        self.uv_table = uv


def test_the_users_body_is_compared_with_the_checkpoints(tmp_path):
    document = tiny()
    model = document["model"]
    path = save(tmp_path / "a.pt", document)
    table = argparse.Namespace(face_ids=model["smplx.uvmap_f_idx"].clone())
    template = Body(model, model["ehm.flame.v_template"], table)
    (note,) = take(path, template=template).provenance["notes"]
    assert "agree" in note and all(what in note for what in ("triangles", "SMPL-X", "FLAME", "UV table"))

    template.body.v_template[3, 1] += 0.01
    template.faces[5] = 0
    template.head.v_template = template.head.v_template[:-1]
    table.face_ids[7, 7] = -1
    notes = " ".join(take(path, template=template).provenance["notes"])
    for told in (
        "The SMPL-X rest mesh of your files differs from the checkpoint's by up to 0.01 m",
        "The list of triangles of your files differs from the checkpoint's in",
        "The FLAME rest mesh of your files has another size (5142 x 3)",
        "The UV table of your files differs from the checkpoint's in 1 of 262,144",
        "may cost quality",
    ):
        assert told in notes

    stripped = save(tmp_path / "b.pt", tiny(body=False))
    (note,) = take(stripped, template=template).provenance["notes"]
    assert note.startswith("Not in the checkpoint")


# --- files that are something else ---


class Code:
    def __reduce__(self):
        return os.mkdir, (os.environ["GUAVA_HOME"] + "-was-run",)


def test_code_is_refused_and_not_run(tmp_path):
    document = tiny(body=False) | {"meta_cfg": Code()}
    path = save(tmp_path / "a.pt", document)
    with pytest.raises(FileFormatError, match="mkdir.*refused; nothing of it was run"):
        take(path)
    torch.save(document, path, _use_new_zipfile_serialization=False)
    with pytest.raises(FileFormatError, match="mkdir.*refused"):
        take(path)
    assert not os.path.exists(os.environ["GUAVA_HOME"] + "-was-run")
    with pytest.raises(FileFormatError, match="argparse.Namespace.*refused"):
        take(save(path, {"meta_cfg": argparse.Namespace()}))


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "a.pt"
    whole = save(path, tiny(body=False)).read_bytes()
    told = {
        b"": "is empty",
        whole[: len(whole) // 2]: "cut off",
        b"<!DOCTYPE html><html>": "web page",
        b"version https://git-lfs.github.com/spec/v1\noid": "git-lfs",
        (64).to_bytes(8, "little") + b'{"a":': "safetensors",
        b"\x89PNG\r\n" + bytes(100): "no torch file",
        pickle.dumps([1, 2]): "no torch|sections",
    }
    for data, message in told.items():
        path.write_bytes(data)
        with pytest.raises(FileFormatError, match=message):
            take(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(FileFormatError, match="no torch checkpoint"):
        take(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("a/constants.pkl", b"")
    with pytest.raises(FileFormatError, match="TorchScript"):
        take(path)
    with pytest.raises(InputError, match="is a folder"):
        take(tmp_path)
    with pytest.raises(InputError, match="no file"):
        take(tmp_path / "absent.pt")
    for document, message in (
        (torch.zeros(3), "one tensor"),
        ({"state_dict": {}}, "no section 'model' .it has: state_dict"),
        ({"model": {}}, "no section 'render_model'"),
        ({"model": [1], "render_model": {}}, "not a table of tensors"),
        ({"model": {}, "render_model": {}}, "missing"),
    ):
        with pytest.raises(FileFormatError, match=message):
            take(save(path, document))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.full((TINY_VERTICES, 5), float("nan")), "not finite"),
        (torch.full((TINY_VERTICES, 5), 1e300, dtype=torch.float64), "not finite in single"),
        (torch.zeros(TINY_VERTICES, 5, dtype=torch.complex64), "complex64, not real"),
        (torch.zeros(TINY_VERTICES, 5).to_sparse(), "no ordinary tensor"),
        (torch.zeros(TINY_VERTICES, 5, device="meta"), "no ordinary tensor"),
    ],
    ids=["nan", "too large", "complex", "sparse", "meta"],
)
def test_tensors_that_hold_no_numbers_are_refused(tmp_path, value, told):
    document = tiny(body=False)
    document["model"]["vertex_base_feature"] = value
    for strict in (True, False):
        with pytest.raises(FileFormatError, match=f"'vertex_base_feature'.*{told}"):
            take(save(tmp_path / "a.pt", document), strict=strict)


def test_names_that_a_terminal_would_obey_are_refused(tmp_path):
    document = tiny(body=False)
    document["model"]["a\x1b[31m"] = torch.zeros(1)
    with pytest.raises(FileFormatError, match="not a table of tensors"):
        take(save(tmp_path / "a.pt", document), strict=False)


@pytest.mark.parametrize(
    ("stated", "kept"),
    [
        (torch.tensor(7), 7),
        (torch.tensor([[7.0]]), 7),
        (7.0, 7),
        (None, None),
        ("many", None),
        (7.5, None),
        (float("nan"), None),
        (torch.zeros(3), None),
        (10**500, None),
    ],
    ids=["tensor", "shaped tensor", "float", "none", "text", "fraction", "nan", "several", "huge"],
)
def test_the_iteration_is_a_number_or_unknown(tmp_path, stated, kept):
    weights = take(save(tmp_path / "a.pt", tiny(body=False) | {"global_iter": stated}))
    assert weights.provenance["iteration"] == kept
    save_weights(weights)
    assert load_weights("official").provenance["iteration"] == kept


def test_a_config_without_end_and_numbers_without_end(tmp_path):
    deep = {}
    for _ in range(100):
        deep = {"a": deep}
    stated = {"deep": deep, "smplx_fea_dim": 10**30, "uv_out_dim": 10**500, "color_dim": 10**15}
    weights = take(save(tmp_path / "a.pt", tiny(body=False) | {"meta_cfg": stated}))
    assert weights.config == tiny_config()
    assert len([note for note in weights.provenance["notes"] if "not used" in note]) == 3
    save_weights(weights)
    assert load_weights("official").provenance["meta_cfg"]["smplx_fea_dim"] == "a number of 100 bits"


@pytest.mark.parametrize("archive", [True, False])
def test_damage_anywhere_is_one_error(tmp_path, archive):
    path = tmp_path / "a.pt"
    document = {"model": {"a": torch.zeros(3, 8)}, "meta_cfg": {"x": 1, "y": [1, 2.5, "s"]}}
    torch.save(document, path, _use_new_zipfile_serialization=archive)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for place in generator.integers(2, len(data), generator.integers(1, 6)):
            data[place] = generator.integers(256)
        path.write_bytes(data[: generator.integers(4, len(data))] if generator.random() < 0.2 else data)
        try:
            read_torch_file(path)
        except FileFormatError:
            refused += 1
    assert 50 < refused < 400


def test_the_format_before_torch_1_6_is_read(tmp_path):
    document = tiny(body=False)
    torch.save(document, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert_equal(export_official(take(tmp_path / "a.pt"))["model"], document["model"])


def test_a_flipped_bit_is_noticed(tmp_path):
    path = save(tmp_path / "a.pt", tiny(body=False, fill=random))
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda m: m.file_size)
        place = member.header_offset + member.file_size // 2
    data = bytearray(path.read_bytes())
    data[place] ^= 64
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match="damaged"):
        take(path)
    (note,) = take(path, strict=False).provenance["notes"]
    assert "checksum" in note


# --- full size ---


def test_full_size_keys_import_strictly_and_export_equal(tmp_path):
    """All keys and sizes of the release; one number a row, so that it takes no room."""
    document = checkpoint()
    weights = import_official(save(tmp_path / "official.pt", document))
    assert weights.config == official()
    out = export_official(weights)
    assert_equal(out["model"], kept(document["model"]))
    assert_equal(out["render_model"], document["render_model"])


def peak_memory():
    """Peak resident memory of this process since the counter was last reset, in bytes; None elsewhere than
    on Linux."""
    try:
        with open("/proc/self/status") as handle:
            return next(int(line.split()[1]) * 1024 for line in handle if line.startswith("VmHWM"))
    except OSError:
        return None


@pytest.mark.slow
def test_a_full_size_file_there_and_back(tmp_path):
    """0.7 GB of random numbers through both files, with little more memory than one of them."""
    document = checkpoint(fill=random)
    assert document["model"]["laplacian_matrix"].shape == (10_595, 10_595)
    path = save(tmp_path / "official.pt", document)
    sums = {
        f"{section} {key}": value.double().sum().item()
        for section in ("model", "render_model")
        for key, value in document[section].items()
        if left_out(key) is None
    }
    del document
    size = os.path.getsize(path)
    assert size > 690e6
    if os.path.exists("/proc/self/clear_refs"):
        with open("/proc/self/clear_refs", "w") as handle:
            handle.write("5")
    before = peak_memory()
    stored = save_weights(import_official(path))
    assert before is None or peak_memory() - before < 1.2 * size
    del stored
    path.unlink()
    weights = load_weights("official")
    write_official(weights, tmp_path / "again.pt")
    del weights
    again = read_torch_file(tmp_path / "again.pt")
    found = {
        f"{section} {key}": value.double().sum().item()
        for section in ("model", "render_model")
        for key, value in again[section].items()
    }
    assert found == sums
