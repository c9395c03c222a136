"""Keys, shapes and kinds of the release's checkpoint, computed from our network."""

import hashlib
import json
import os
import runpy
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the image encoder needs the extra 'network'")

from guava.model.official_keys import official_document  # noqa: E402

SHARED = Path(os.environ.get("GUAVA_SHARED", Path(__file__).parents[2] / "shared"))
DUMP = SHARED / "reference" / "official-state-dict.json"
SECTIONS = ("model", "render_model")

# Of the dump's entries that Guava's network has: how many, and the SHA-256 of their lines as `digest` writes
# them.
COUNT = 826
DIGEST = "8455fdca53b1d9f2e42527591c2b93d22315115f5b537cad9fc650d089f4d64e"


def digest(document):
    lines = [
        f"{section} {key} {shape} {dtype} {kind} {trainable}"
        for section in SECTIONS
        for key, (shape, dtype, kind, trainable) in document[section].items()
    ]
    return len(lines), hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def test_the_network_has_the_release_s_keys():
    assert digest(official_document()) == (COUNT, DIGEST)


@pytest.mark.skipif(not DUMP.is_file(), reason=f"there is no {DUMP} (GUAVA_SHARED)")
def test_no_difference_to_the_dump_except_what_is_listed():
    ours, theirs = official_document(), json.loads(DUMP.read_text())
    assert ours["format"] == theirs["format"]
    parameters, buffers = ours["left_out"]["parameters"], ours["left_out"]["buffers"]
    assert len(parameters) == 11
    for section in SECTIONS:
        rest = {key: entry for key, entry in theirs[section].items() if key not in ours[section]}
        assert {key: theirs[section].get(key) for key in ours[section]} == ours[section]
        for key, entry in rest.items():
            if entry[2] == "param":
                assert parameters[key]["entry"] == entry, key
            else:
                assert key.startswith(tuple(name.removesuffix("*") for name in buffers)), key
        if section == "model":
            assert parameters.keys() == {key for key, entry in rest.items() if entry[2] == "param"}
    assert ours["counts"]["trainable_parameters_total"] == theirs["counts"]["trainable_parameters_total"]
    kept = {section: {k: theirs[section][k] for k in ours[section]} for section in SECTIONS}
    assert digest(kept) == (COUNT, DIGEST)


def test_every_left_out_entry_has_a_reason():
    left_out = official_document()["left_out"]
    reasons = [entry["reason"] for entry in left_out["parameters"].values()] + [*left_out["buffers"].values()]
    assert len(reasons) == 13 and all(len(reason) > 20 for reason in reasons)


def test_the_module_prints_the_document(capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that the module was imported before
        runpy.run_module("guava.model.official_keys", run_name="__main__")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads(json.dumps(official_document()))
    assert max(map(len, printed.splitlines())) < 400

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit) as stop, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        runpy.run_module("guava.model.official_keys", run_name="__main__")
    assert stop.value.code == 2
    assert 'pip install "guava-avatar[network]"' in capsys.readouterr().err
