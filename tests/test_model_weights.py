"""Weights files: lossless, found by name, clear about damage, and strict about the network they go into."""

import copy
import dataclasses
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from guava.container import read_container, write_container
from guava.errors import FileFormatError, InputError, MissingAssetError, TemplateMismatchError
from guava.model import weights as room
from guava.model.config import PRESETS, GuavaConfig, preset
from guava.model.weights import (
    Weights,
    check_template,
    compare_keys,
    config_from_json,
    config_to_json,
    list_weights,
    load_into,
    load_weights,
    remove_weights,
    save_weights,
    weights_info,
)


class Network(nn.Module):
    def __init__(self, vertices=5):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.vertex_base_feature = nn.Parameter(torch.randn(vertices, 2))
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("table", torch.arange(3.0), persistent=False)


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("GUAVA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(room, "EMBEDDED", tmp_path / "embedded")
    return tmp_path / "home"


def made(name="mine", **changes):
    weights = Weights(
        name=name,
        config=preset("lite"),
        template_name="open",
        template_hash="ab" * 32,
        network=Network().state_dict(),
        refiner=nn.Linear(2, 2).state_dict(),
        provenance={"recipe": "é", "steps": 3},
    )
    return replace(weights, **changes)


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one
    )


# --- config ---


@pytest.mark.parametrize("name", PRESETS)
def test_configs_survive_json(name):
    config = preset(name)
    document = json.loads(json.dumps(config_to_json(config)))
    assert config_from_json(document) == config
    assert isinstance(config_from_json(document).encoder.pyramid, tuple)


def places(document, path=()):
    for key, value in document.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def test_every_missing_setting_is_named():
    for path in places(config_to_json(GuavaConfig())):
        document = config_to_json(GuavaConfig())
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        with pytest.raises(FileFormatError, match=path[-1]):
            config_from_json(document)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(novelty=1), "unknown setting novelty"),
        (lambda d: d["uv_branch"].update(third_layer=True), r"uv_branch has the unknown setting third_layer"),
        (lambda d: d["encoder"].update(kind="resnet"), r"encoder.kind is 'resnet'"),
        (lambda d: d["encoder"].update(width="64"), r"encoder.width is '64', not int"),
        (lambda d: d["encoder"].update(width=True), r"encoder.width is True, not int"),
        (lambda d: d["encoder"].update(pyramid=[1, 2]), r"encoder.pyramid is \[1, 2\], not 5"),
        (lambda d: d["encoder"].update(pyramid=[1, 2, 3, 4, "x"]), r"encoder.pyramid\[4\]"),
        (lambda d: d.update(ablation=None), "ablation is not a group"),
        (lambda d: d.update(template_branch=3), "template_branch is not a group"),
    ],
)
def test_foreign_settings_are_refused(change, told):
    document = config_to_json(GuavaConfig())
    change(document)
    with pytest.raises(FileFormatError, match=told):
        config_from_json(document)


def test_a_whole_number_is_a_real_one():
    document = config_to_json(GuavaConfig()) | {"opacity_threshold": 1}
    assert config_from_json(document).opacity_threshold == 1.0


# --- files ---


def test_round_trip(home):
    stored = save_weights(made())
    assert (home / "weights" / "mine.weights").is_file()
    read = load_weights("mine")
    assert equal(read.network, made(network=stored.network).network)
    for field in dataclasses.fields(Weights):
        if field.name not in ("network", "refiner"):
            assert getattr(read, field.name) == getattr(stored, field.name), field.name
    assert equal(read.network, stored.network) and equal(read.refiner, stored.refiner)
    assert load_weights(read.reference).hash == read.hash


def test_half_precision_rounds_and_reads_as_single(home):
    source = made()
    stored = save_weights(source, precision="float16")
    read = load_weights("mine")
    assert read.precision == "float16" and read.hash == stored.hash
    assert equal(read.network, stored.network)
    for key, value in source.network.items():
        rounded = value.half().float() if value.is_floating_point() else value
        assert torch.equal(read.network[key], rounded) and read.network[key].dtype == value.dtype
    big = made(network={"layer.weight": torch.tensor([1e6])})
    with pytest.raises(InputError, match="layer.weight.*half precision"):
        save_weights(big, precision="float16")


def test_parts_are_read_alone(home):
    stored = save_weights(made())
    refiner = load_weights("mine", parts=("refiner",))
    assert refiner.network == {} and equal(refiner.refiner, stored.refiner) and refiner.hash == stored.hash
    with pytest.raises(ValueError, match="Only"):
        save_weights(refiner)
    none = save_weights(made("none", refiner=None))
    assert none.refiner is None and load_weights("none").refiner is None


def test_the_hash_is_of_what_was_learned():
    hashes = {save_weights(made()).hash}
    same = Weights(**{f.name: getattr(load_weights("mine"), f.name) for f in dataclasses.fields(Weights)})
    assert save_weights(replace(same, name="other", provenance={"another": 1})).hash in hashes
    network = {**same.network, "layer.bias": same.network["layer.bias"] + 1}
    for change in (
        {"network": network},
        {"refiner": None},
        {"config": preset("lite", opacity_threshold=0.5)},
        {"template_name": "smplx-flame"},
        {"template_hash": None},
    ):
        hashes.add(save_weights(replace(same, **change)).hash)
    hashes.add(save_weights(same, precision="float16").hash)
    assert len(hashes) == 7


@pytest.mark.parametrize("parts", [("network", "refiner"), ("refiner",)])
def test_every_flipped_byte_is_noticed(home, tmp_path, parts):
    stored = save_weights(made())
    data = (home / "weights" / "mine.weights").read_bytes()
    network = stored.network["layer.weight"].numpy().tobytes()
    damaged = tmp_path / "damaged.weights"
    for place in range(8, len(data), 7):
        damaged.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            read = load_weights(damaged, parts)
        except FileFormatError:
            continue
        assert len(parts) == 1 and equal(read.refiner, stored.refiner)
        assert (read.hash, read.provenance, read.config) == (stored.hash, stored.provenance, stored.config)
    place = data.index(network) + 5
    damaged.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    if len(parts) == 1:
        assert equal(load_weights(damaged, parts).refiner, stored.refiner)


def test_cut_files_and_foreign_files(home, tmp_path):
    save_weights(made())
    data = (home / "weights" / "mine.weights").read_bytes()
    for length in (0, 4, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.weights").write_bytes(data[:length])
        with pytest.raises(FileFormatError):
            load_weights(tmp_path / "cut.weights")
    write_container(tmp_path / "a.weights", "avatar", 1, {}, {})
    with pytest.raises(FileFormatError, match="avatar file; a weights file is needed"):
        load_weights(tmp_path / "a.weights")
    with pytest.raises(InputError, match="no file"):
        load_weights(tmp_path / "absent.weights")
    tensors, header = read_container(home / "weights" / "mine.weights", "weights", 1)
    own = {"kind", "version", "software", "checksum"}
    for missing in header.keys() - own - {"preset"}:
        rest = {key: value for key, value in header.items() if key not in own | {missing}}
        write_container(tmp_path / "a.weights", "weights", 1, tensors, rest)
        parts = ("refiner",) if missing in ("sections", "seal") else ("network", "refiner")
        with pytest.raises(FileFormatError, match=f"not a complete weights file.*{missing}"):
            load_weights(tmp_path / "a.weights", parts)
    rest = {key: value for key, value in header.items() if key not in own}
    for wrong in (
        {"name": 3}, {"name": "a\x1b[31m"}, {"preset": None}, {"hash": None}, {"hash": "ab" * 32},
        {"provenance": []}, {"template": {"name": "open", "hash": 7}}, {"precision": "float16"},
    ):  # fmt: skip
        write_container(tmp_path / "a.weights", "weights", 1, tensors, rest | wrong)
        assert "not a complete weights file" in weights_info(tmp_path / "a.weights").problem
        with pytest.raises(FileFormatError, match="not a complete weights file"):
            load_weights(tmp_path / "a.weights")
    write_container(tmp_path / "a.weights", "weights", 2, tensors, {})
    with pytest.raises(FileFormatError, match="reads up to 1"):
        load_weights(tmp_path / "a.weights")


def test_names(home):
    for name in ("", "../x", "a/b", ".x", "a b", "x" * 65):
        with pytest.raises(InputError, match="cannot be the name"):
            save_weights(made(name))
    with pytest.raises(MissingAssetError, match="no weights named 'nobody'.*Installed: none"):
        load_weights("nobody")
    save_weights(made())
    with pytest.raises(MissingAssetError, match="Installed: mine.*guava weights import"):
        load_weights("official")
    with pytest.raises(InputError, match="'folder/best.pt' is a torch file.*guava weights import"):
        load_weights("folder/best.pt")
    with pytest.raises(MissingAssetError, match="are others"):
        load_weights("mine:0123")


def test_list_tells_own_embedded_and_damaged(home):
    assert list_weights() == []
    room.EMBEDDED.mkdir()
    embedded = save_weights(made("lite-1"), room.EMBEDDED / "lite-1.weights", precision="float16")
    save_weights(made())
    (home / "weights" / "broken.weights").write_bytes(b"no")
    found = {info.name: info for info in list_weights()}
    assert list(found) == ["broken", "mine", "lite-1"]
    assert found["lite-1"].embedded and found["lite-1"].precision == "float16"
    assert found["lite-1"].hash == embedded.hash and found["lite-1"].reference == embedded.reference
    assert found["mine"].preset == "lite" and found["mine"].has_refiner and not found["mine"].embedded
    assert found["mine"].size == found["mine"].path.stat().st_size
    assert "damaged" in found["broken"].problem and not found["mine"].problem
    assert weights_info("lite-1") == found["lite-1"]
    assert load_weights("lite-1").hash == embedded.hash

    with pytest.raises(InputError, match="came with Guava"):
        remove_weights("lite-1")
    assert remove_weights("mine") == found["mine"].path and not found["mine"].path.exists()
    with pytest.raises(MissingAssetError):
        remove_weights("mine")


def test_same_name_twice_is_told_apart_by_hash(home):
    room.EMBEDDED.mkdir()
    embedded = save_weights(made(), room.EMBEDDED / "mine.weights")
    own = save_weights(made(template_name="other"))
    assert load_weights("mine").hash == own.hash != embedded.hash
    assert load_weights(embedded.reference).hash == embedded.hash


# --- into modules ---


def test_load_into_copies_all_and_keeps_the_modules_tables():
    weights = save_weights(made())
    network, refiner = Network(), nn.Linear(2, 2)
    load_into(network, refiner, weights)
    assert equal(network.state_dict(), weights.network) and equal(refiner.state_dict(), weights.refiner)
    assert torch.equal(network.table, torch.arange(3.0))
    with torch.no_grad():
        network.layer.weight += 1
    assert not torch.equal(network.layer.weight, weights.network["layer.weight"])


def test_modules_without_numbers_take_the_tensors_over():
    weights = save_weights(made())
    with torch.device("meta"):
        refiner = nn.Linear(2, 2).requires_grad_(False)
        network = Network()
    load_into(None, refiner, weights)
    assert equal(refiner.state_dict(), weights.refiner)
    assert refiner.weight.data_ptr() == weights.refiner["weight"].data_ptr()
    assert not refiner.weight.requires_grad
    with pytest.raises(ValueError, match="table"):
        load_into(network, None, weights)


def test_every_difference_is_named_and_nothing_is_copied():
    weights = made()
    state = {key: value for key, value in weights.network.items() if key != "steps"}
    state |= {"extra": torch.zeros(1), "layer.bias": torch.zeros(9)}
    network, refiner = Network(), nn.Linear(2, 2)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(FileFormatError) as error:
        load_into(network, refiner, replace(weights, network=state))
    for told in ("1 missing (steps)", "1 unexpected (extra)", "layer.bias is 9 instead of 4", "'mine'"):
        assert told in str(error.value)
    assert equal(network.state_dict(), before)
    before = copy.deepcopy(refiner.state_dict())
    with pytest.raises(FileFormatError, match="the network"):
        load_into(Network(), refiner, replace(weights, network={}))
    assert equal(refiner.state_dict(), before)
    with pytest.raises(FileFormatError, match="have no refiner"):
        load_into(None, refiner, replace(weights, refiner=None))


def test_another_template_is_explained():
    weights = made(template_name="smplx-flame")
    with pytest.raises(TemplateMismatchError, match="'smplx-flame' with 5 vertices; .* 8"):
        load_into(Network(8), None, weights)

    class Body:
        name, hash = "open", "cd" * 32

    with pytest.raises(TemplateMismatchError, match="belong to the template 'smplx-flame', not to 'open'"):
        check_template(weights, Body)
    with pytest.raises(TemplateMismatchError, match="another version of the template 'open'"):
        check_template(made(), Body)
    check_template(made(template_hash=None), Body)
    check_template(made(template_hash=Body.hash), Body)


def test_reports():
    assert not compare_keys({"a": torch.zeros(2)}, {"a": (2,)})
    state = {f"k.{i}.w": torch.zeros(1) for i in range(9)} | {c: torch.zeros(1) for c in "abcd"}
    report = compare_keys(state, {"a": (1,), "b": (2, 3), "k.0.w": (3,), "k.1.w": (3,), "z": ()})
    assert report.describe(2) == (
        "1 missing (z); 9 unexpected (k.*.w, 7 times; c; and 1 more); "
        "3 of another shape (k.*.w is 1 instead of 3, 2 times; b is 1 instead of 2x3)"
    )
    assert "k.2" not in report.describe() and report.describe().count("; d") == 1
