"""The owners' pickles and numpy files are read without running anything that is in them."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix, csr_matrix
from synthetic_models import Ch, Python2Pickle

from guava.body.licensed.unpickle import Chumpy, read_arrays, unpickle
from guava.errors import FileFormatError, InputError


class Evil:
    """Makes a file when it is unpickled by Python."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def evil_calls(target):
    command = f"touch {target}"
    return [
        Evil(os.system, command),
        Evil(os.popen, command),
        Evil(eval, f"open({str(target)!r}, 'w')"),
        Evil(exec, f"open({str(target)!r}, 'w')"),
        Evil(open, str(target), "w"),
        Evil(getattr, "text", "format"),
        Evil(np.load, str(target)),
        Evil(torch.load, str(target)),
        Evil(torch.hub.load, "a/b", "c"),
    ]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_nothing_in_a_pickle_is_run(tmp_path, protocol):
    target = tmp_path / "was-here"
    for evil in evil_calls(target):
        data = pickle.dumps({"v_template": evil, "f": np.zeros(3)}, protocol=protocol)
        with pytest.raises(FileFormatError, match="model.pkl"):
            unpickle(data, "model.pkl")
        path = tmp_path / "model.pkl"
        path.write_bytes(data)
        with pytest.raises(FileFormatError):
            read_arrays(path)
        np.savez(tmp_path / "model.npz", v_template=np.array(evil, dtype=object))
        with pytest.raises(FileFormatError):
            read_arrays(tmp_path / "model.npz")["v_template"]
        np.save(tmp_path / "model.npy", np.array(evil, dtype=object), allow_pickle=True)
        with pytest.raises(FileFormatError):
            read_arrays(tmp_path / "model.npy")
    assert not target.exists()


def test_a_torch_array_may_not_bring_code_along(tmp_path):
    target = tmp_path / "was-here"
    inner = io.BytesIO()
    torch.save(Evil(os.system, f"touch {target}"), inner)
    load = b"ctorch.storage\n_load_from_bytes\n"
    raw = inner.getvalue()
    data = b"\x80\x03" + load + b"B" + len(raw).to_bytes(4, "little") + raw + b"\x85R."
    with pytest.raises(FileFormatError, match="torch"):
        unpickle(data, "x")
    assert not target.exists()


def test_stand_ins_cannot_be_changed_by_a_file():
    # GLOBAL, then BUILD on the class or function itself with a state of attributes.
    state = b"N}(U\x08argumentK\x01u\x86b."
    names = (
        b"ccopy_reg\n_reconstructor\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"cchumpy.ch\nCh\n",
        b"c__builtin__\nobject\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
    )
    for name in names:
        with pytest.raises(FileFormatError):
            unpickle(b"\x80\x02" + name + state, "x")
    assert not hasattr(Chumpy, "argument")


def test_memory_and_time_are_bounded():
    with pytest.raises(FileFormatError):  # a memo of a billion entries
        unpickle(b"\x80\x02Nr\xff\xff\xff\x7f.", "x")
    nested = [0]
    for _ in range(60):  # 2 ** 60 leaves, 60 objects
        nested = [nested, nested]
    assert len(unpickle(pickle.dumps(nested), "x")) == 2
    array = pickle.dumps(np.zeros(4), protocol=2)
    with pytest.raises(FileFormatError):
        unpickle(array.replace(b"K\x04\x85", b"K\x7f\x85"), "x")  # more elements than bytes
    with pytest.raises(FileFormatError):
        unpickle(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "x")


def test_plain_files_come_through(tmp_path):
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.array([1, 2], np.uint32),
        "c": np.asfortranarray(np.eye(3)),
    }
    for protocol in (2, 3, 4, 5):
        back = unpickle(pickle.dumps({**arrays, "text": "x", "s": {1, 2}}, protocol=protocol), "x")
        assert all(np.array_equal(back[k], v) for k, v in arrays.items()) and back["text"] == "x"
    np.savez_compressed(tmp_path / "a.npz", **arrays, d=np.array({"part": 3}))
    found = read_arrays(tmp_path / "a.npz")
    assert set(found) == {"a", "b", "c", "d"} and found["d"] == {"part": 3}
    assert all(np.array_equal(found[k], v) and found[k].dtype == v.dtype for k, v in arrays.items())
    np.save(tmp_path / "a.npy", arrays["a"])
    assert np.array_equal(read_arrays(tmp_path / "a.npy"), arrays["a"])


@pytest.mark.parametrize("make", [csc_matrix, csr_matrix])
def test_sparse_matrices_come_back_dense(make):
    g = np.random.default_rng(0)
    dense = g.normal(size=(5, 40)) * (g.random((5, 40)) < 0.2)
    for protocol in (2, 4):
        assert np.array_equal(unpickle(pickle.dumps(make(dense), protocol=protocol), "x"), dense)
    wrong = make(dense)
    wrong.indices = wrong.indices + 1000
    with pytest.raises(FileFormatError, match="outside"):
        unpickle(pickle.dumps(wrong, protocol=2), "x")


def test_python_2_and_chumpy():
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    sparse = csc_matrix(np.eye(3))
    content = {"v": Ch(values), "f": np.arange(3, dtype=np.uint32), "J": sparse, "style": "lbs", "n": 300}
    back = unpickle(Python2Pickle().dump(content), "x")
    assert (
        np.array_equal(back["v"], values) and np.array_equal(back["J"], np.eye(3)) and back["style"] == "lbs"
    )
    assert back["f"].dtype == np.uint32 and back["n"] == 300

    class Select:
        a, idxs, preferred_shape = Ch(values), np.array([5, 1]), (2, 1)

    writer = Python2Pickle()
    writer.instance(
        "chumpy.reordering", "Select", {k: getattr(Select, k) for k in ("a", "idxs", "preferred_shape")}
    )
    assert unpickle(writer.out.getvalue() + b".", "x").tolist() == [[5], [1]]
    writer = Python2Pickle()
    writer.instance("chumpy.ch", "MatVecMult", {"mtx": None})
    assert isinstance(unpickle(writer.out.getvalue() + b".", "x"), Chumpy)


def test_old_style_objects_of_python_2():
    # copy_reg._reconstructor(chumpy.ch.Ch, object, None), then its state.
    array = Python2Pickle()
    array.array(np.arange(3.0))
    body = array.out.getvalue()[2:]
    data = (
        b"\x80\x02ccopy_reg\n_reconstructor\ncchumpy.ch\nCh\nc__builtin__\nobject\nN\x87R}(U\x01x"
        + body
        + b"ub."
    )
    assert np.array_equal(unpickle(data, "x"), np.arange(3.0))


def test_torch_tensors_come_back_as_arrays():
    whole = torch.arange(24).reshape(4, 6)
    content = OrderedDict(a=whole, b=whole[1:3, ::2].t(), c=torch.ones(2, 2, dtype=torch.float64))
    for protocol in (2, 4):
        back = unpickle(pickle.dumps(content, protocol=protocol), "x")
        assert all(np.array_equal(back[k], v.numpy()) for k, v in content.items())


@pytest.mark.parametrize("suffix", [".pkl", ".npy", ".npz"])
def test_damaged_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"a": np.zeros(1000)}, protocol=2))
    elif suffix == ".npy":
        np.save(path, np.zeros(1000))
    else:
        np.savez(path, a=np.zeros(1000))
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:12], b"", b"\x00" * 50):
        path.write_bytes(part)
        with pytest.raises(FileFormatError, match=f"a{suffix}"):
            found = read_arrays(path)
            found["a"]  # noqa: B018 - members are read when they are asked for
    with pytest.raises(InputError):
        read_arrays(tmp_path / "missing.pkl")


def test_a_member_with_a_bad_checksum_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(1000))
    raw = bytearray(path.read_bytes())
    raw[600] ^= 0xFF
    path.write_bytes(bytes(raw))
    with pytest.raises(FileFormatError):
        read_arrays(path)["a"]
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("a.npy", "no array")
    with pytest.raises(FileFormatError):
        read_arrays(tmp_path / "b.npz")["a"]
