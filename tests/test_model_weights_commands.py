"""``guava weights``, as its user sees it."""

import functools
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers", reason="the image encoder needs the extra 'network'")

from official_checkpoint import TINY_VERTICES, checkpoint, save, tiny_config  # noqa: E402

from guava.commands import doctor  # noqa: E402
from guava.commands.main import main  # noqa: E402
from guava.model import checkpoint as room  # noqa: E402
from guava.model.config import preset  # noqa: E402
from guava.model.torch_file import read_torch_file  # noqa: E402
from guava.model.weights import Weights, load_weights, save_weights  # noqa: E402


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A user's empty folder, and the release's architecture at a size that takes no time."""
    monkeypatch.setenv("GUAVA_HOME", str(tmp_path / "home"))
    tiny = functools.partial(room.import_official, config=tiny_config(), vertices=TINY_VERTICES)
    monkeypatch.setattr(room, "import_official", tiny)
    return tmp_path / "home"


@pytest.fixture
def run(capsys):
    def call(*arguments):
        status = main(["weights", *map(str, arguments)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture
def checkpoint_file(tmp_path):
    return save(tmp_path / "best.pt", checkpoint(tiny_config(), TINY_VERTICES))


def test_the_whole_way(home, run, checkpoint_file, tmp_path):
    status, out, _ = run("list")
    assert status == 0 and "no weights are installed" in out and "guava weights import" in out

    status, out, err = run("import", checkpoint_file)
    assert status == 0
    assert "best.pt ->" in out and str(home) in out
    for told in ("laplacian_matrix", "ehm.*", "smplx.*", "licensed", "files that the user adds"):
        assert told in out
    for told in ("name        official", "preset      official", "smplx-flame", "step        190000"):
        assert told in out
    assert "note: " in err and "guava assets add" in err
    hash_ = load_weights("official").hash
    assert hash_ in out

    status, out, _ = run("list")
    assert status == 0 and "official" in out and hash_[:16] in out and "float32" in out

    status, _, err = run("import", checkpoint_file)
    assert status == 2 and "already" in err and "--replace" in err
    assert run("import", checkpoint_file, "--replace", "--half")[0] == 0
    assert load_weights("official").precision == "float16"
    assert run("import", checkpoint_file, "--name", "second")[0] == 0
    assert load_weights("second").hash == hash_

    status, out, _ = run("export", "second", "-o", tmp_path / "out.pt")
    assert status == 0 and "without body arrays" in out
    theirs, ours = read_torch_file(checkpoint_file), read_torch_file(tmp_path / "out.pt")
    assert all(torch.equal(theirs["model"][key], value) for key, value in ours["model"].items())
    assert ours["render_model"].keys() == theirs["render_model"].keys()

    status, out, _ = run("remove", "second")
    assert status == 0 and not (home / "weights" / "second.weights").exists()
    assert (home / "weights" / "official.weights").exists()


def test_what_went_wrong_is_one_line_and_leaves_nothing(home, run, checkpoint_file, tmp_path):
    document = checkpoint(tiny_config(), TINY_VERTICES, body=False)
    del document["model"]["uv_base_feature"]
    document["model"]["extra"] = torch.zeros(1)
    incomplete = save(tmp_path / "incomplete.pt", document)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint_file.read_bytes()[:-200])
    for arguments, told in (
        (("import", incomplete), "1 missing (uv_base_feature); 1 unexpected (extra)"),
        (("import", cut), "cut off"),
        (("import", tmp_path / "absent.pt"), "There is no file"),
        (("import", checkpoint_file, "--name", "a/b"), "cannot be the name"),
        (("info", "official"), "guava weights import"),
        (("export", "official", "-o", tmp_path / "x.pt"), "guava weights import"),
        (("export", "official", "-o", tmp_path / "x.zip"), "must end in .pt"),
        (("export", "official", "-o", tmp_path / "nowhere" / "x.pt"), "no folder"),
        (("remove", "official"), "no weights named"),
        (("remove", checkpoint_file), "is a torch file"),
        (("remove", "../mine.weights"), "not the name of weights of yours"),
    ):
        status, _, err = run(*arguments)
        last = err.strip().splitlines()[-1]
        assert status == 2 and last.startswith("error: ") and told in last, (arguments, err)
    assert not (home / "weights").exists() or not list((home / "weights").iterdir())
    assert checkpoint_file.exists()


def test_lenient_import_says_what_it_left_out(home, run, tmp_path):
    document = checkpoint(tiny_config(), TINY_VERTICES, body=False)
    document["model"]["extra"] = torch.zeros(1)
    status, out, err = run("import", save(tmp_path / "more.pt", document), "--lenient")
    assert status == 0 and "extra" in out and "holds no body arrays" in out
    assert "note        Left out" in run("info", "official")[1]


def test_info_names_settings_that_differ_from_the_preset(home, run, tmp_path):
    config = preset("lite", opacity_threshold=0.5)
    weights = Weights("mine", config, "open", "ab" * 32, {"a": torch.zeros(3)}, None)
    save_weights(weights)
    status, out, _ = run("info", "mine")
    assert status == 0 and "preset 'lite' with opacity_threshold = 0.5" in out and "no refiner" in out
    assert "hash abab" in out
    save_weights(replace(weights, name="strange", config=replace(config, preset="strange")))
    assert "a preset that this version does not have" in run("info", "strange")[1]
    (home / "weights" / "broken.weights").write_bytes(b"no")
    status, out, _ = run("list")
    assert status == 0 and "broken" in out and "unusable" in out
    assert run("info", "broken")[0] == 2


def test_the_doctor_says_what_weights_lack(home, monkeypatch):
    def told():
        return [(f.mark, f.text, f.advice) for f in doctor.examine() if f.name == "weights"]

    monkeypatch.setattr(doctor, "CHECKS", (doctor._weights,))
    assert told() == []
    refiner = {"a": torch.zeros(3)}
    save_weights(Weights("mine", preset("lite"), "open", "ab" * 32, {"a": torch.zeros(3)}, refiner))
    ((mark, text, _),) = told()
    assert mark == "ok" and "'mine' for --model lite" in text
    save_weights(Weights("mine", preset("official"), "smplx-flame", None, {"a": torch.zeros(3)}, refiner))
    ((mark, text, advice),) = told()
    assert mark == "--" and "smplx-flame" in text and "guava assets add" in advice
    save_weights(Weights("mine", preset("paper"), "open", None, {"a": torch.zeros(3)}, refiner))
    assert told()[0][0] == "ok"
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    ((mark, text, advice),) = told()
    assert mark == "--" and "transformers" in text and "[network]" in advice
    (home / "weights" / "mine.weights").write_bytes(b"no")
    ((mark, text, advice),) = told()
    assert mark == "--" and "damaged" in text and advice == "guava weights remove mine"
