"""The restricted unpickler: plain data comes back whatever wrote it, programs do not run."""

from __future__ import annotations

import os
import pickle
import pickletools
from collections import OrderedDict
from decimal import Decimal

import numpy as np
import pytest
import torch
from release_data import pickled

from guava.errors import FileFormatError, InputError
from guava.unpickle import load_pickle, unpickle

PLAIN = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.float32(1.5),
    "flag": np.bool_(True),
    "objects": np.array([1, None, "x"], object),
    "none": np.zeros((0, 3)),
    "text": np.array(["ab", "c"]),
    "big_endian": np.arange(3, dtype=">i4"),
    "zero_d": np.array(3.0),
    "nested": (1, [2, {3}], frozenset([4])),
    "ordered": OrderedDict(a=1, b=[2.5, None, True]),
    "bytes": b"\xff\x00",
    "no_bytes": b"",
    "complex": 1 + 2j,
    "long": 10**30,
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_plain_data_comes_back(tmp_path, protocol, core):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickled(PLAIN, protocol, core))
    assert core.encode() + b"." in path.read_bytes() or core.encode() + b"\n" in path.read_bytes()
    found = load_pickle(path)
    assert set(found) == set(PLAIN)
    for name, wanted in PLAIN.items():
        if isinstance(wanted, np.ndarray):
            assert np.array_equal(found[name], wanted), name
            assert found[name].dtype == wanted.dtype.newbyteorder("=") and found[name].shape == wanted.shape
        else:
            assert found[name] == wanted and type(found[name]) is type(wanted), name


def test_python_2_text_and_arrays(tmp_path):
    # Python 2's str is neither text nor bytes; latin1 keeps every byte of it.
    data = (
        b"(dp0\nS'a'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\n"
        b"Rp7\n(I1\n(I2\ntp8\ncnumpy\ndtype\np9\n(S'i2'\nI0\nI1\ntp10\nRp11\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntp12\nb"
        b"I00\nS'\\x01\\x00\\xff\\x00'\ntp13\nbs."
    )
    path = tmp_path / "x.pkl"
    path.write_bytes(data)
    assert load_pickle(path)["a"].tolist() == [1, 255]


class _Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "make",
    [
        lambda harm: _Calls(os.system, f"touch {harm}"),
        lambda harm: _Calls(eval, f"open({harm!r}, 'w')"),
        lambda harm: _Calls(open, harm, "w"),
        lambda harm: _Calls(getattr, harm, "upper"),
        lambda harm: Decimal(1),
        lambda harm: _Calls(os.remove, harm),
    ],
)
def test_programs_do_not_run(tmp_path, make, protocol):
    harm, path = str(tmp_path / "harm"), tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"good": np.zeros(2), "bad": make(harm)}, protocol))
    with pytest.raises(FileFormatError, match="nothing of it was run"):
        load_pickle(path)
    assert not os.path.exists(harm)


def test_a_name_alone_is_a_stand_in(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps([np.dtype, np.ndarray]))
    found = load_pickle(path)
    assert found[0] is not np.dtype and found[1] is not np.ndarray


def _program(*steps: bytes) -> bytes:
    return b"\x80\x04" + b"".join(steps) + b"."


def _text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def _name(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + b"\x93"


def _int(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


_DTYPE = _name("numpy", "dtype") + _text("f8") + b"\x85R"
_EMPTY = _name("numpy.core.multiarray", "_reconstruct") + _name("numpy", "ndarray")
_EMPTY += _int(0) + b"\x85" + _text("b") + b"\x87R"


@pytest.mark.parametrize(
    "program",
    [
        # a dotted name that would climb out of an allowed module
        _program(_text("numpy"), _text("dtype.__class__"), b"\x93"),
        _program(_name("numpy.core.multiarray", "os"), _text("x"), b"\x85R"),
        # an array of a million numbers with eight bytes
        _program(_EMPTY, b"(", _int(1), _int(10**6), b"\x85", _DTYPE, b"\x89", b"C\x08" + b"\0" * 8, b"tb"),
        # negative and huge sides, objects out of bytes, records
        _program(_EMPTY, b"(", _int(1), _int(-1), b"\x85", _DTYPE, b"\x89", b"C\x00", b"tb"),
        _program(
            _EMPTY, b"(", _int(1), _int(1), b"\x85", _name("numpy", "dtype"), _text("O8"), b"\x85R", b"\x89",
            b"C\x08" + b"A" * 8, b"tb",
        ),
        _program(_name("numpy", "dtype"), _text("f8,i4"), b"\x85R"),
        _program(
            _name("numpy", "dtype"), _text("V8"), b"\x85R", b"(", _int(3), _text("|"), b"N",
            _text("a") + b"\x85", b"}", b"tb",
        ),
        # made or filled without their constructor
        _program(_name("numpy", "ndarray"), _int(10**6) + b"\x85", b"\x85R"),
        _program(_name("numpy", "ndarray"), b")\x81"),
        # a terabyte of zeros
        _program(_name("builtins", "bytearray"), b"\x8a\x06" + (10**12).to_bytes(6, "little"), b"\x85R"),
        _program(_name("builtins", "bytes"), b"\x8a\x06" + (10**12).to_bytes(6, "little"), b"\x85R"),
        _program(_name("_codecs", "encode"), _text("x"), _text("rot13"), b"\x86R"),
        # attributes set on a class of ours
        _program(_name("numpy", "dtype"), b"}", _text("plain"), _int(1), b"s", b"b"),
        _program(_name("numpy", "dtype"), b"N}", _text("plain"), _int(1), b"s\x86b"),
        _program(_name("_codecs", "encode"), b"N}", _text("__defaults__"), b"N", b"s\x86b"),
        _program(_name("numpy.core.multiarray", "scalar"), b"}", _text("note"), b"N", b"sb"),
        _program(_name("numpy", "ndarray"), b"N}", _text("__call__"), b"N", b"s\x86b"),
        _program(_name("collections", "OrderedDict"), b"N}", _text("keys"), b"N", b"s\x86b"),
        b"", b"\x80", b"hello", b"\x80\x04K\x01", pickle.dumps(list(range(100)))[:40],
        _program(_int(0), b"Q"),
    ],
)  # fmt: skip
def test_hostile_and_broken_programs_are_one_clear_error(tmp_path, program):
    path = tmp_path / "x.pkl"
    path.write_bytes(program)
    with pytest.raises(FileFormatError):
        load_pickle(path)


def test_the_hand_made_programs_are_what_they_claim(tmp_path):
    """The same steps with honest content load, so that the refusals above are about their content."""
    path = tmp_path / "x.pkl"
    honest = _program(_EMPTY, b"(", _int(1), _int(1), b"\x85", _DTYPE, b"\x89", b"C\x08" + b"\0" * 8, b"tb")
    path.write_bytes(honest)
    assert load_pickle(path).tolist() == [0.0]
    assert any(operation.name == "BUILD" for operation, _, _ in pickletools.genops(honest))


def test_torch_tensors_say_what_to_do(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"t": torch.zeros(2)}))
    with pytest.raises(FileFormatError, match="torch tensors.*numpy"):
        load_pickle(path)


def test_stand_ins_hold_what_the_owner_asks_for(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(Decimal("1.5")))
    stand_ins = {("decimal", "Decimal"): lambda text: ("decimal", text)}
    assert load_pickle(path, extra=lambda *name: stand_ins.get(name)) == ("decimal", "1.5")


def test_short_programs_that_would_fill_the_memory(tmp_path):
    memo_bomb = _program(_int(0), b"r" + (2**31).to_bytes(4, "little"))
    with pytest.raises(FileFormatError, match="out of order"):
        unpickle(memo_bomb, "it", most_steps=1000)
    with pytest.raises(FileFormatError, match="too many steps"):
        unpickle(pickle.dumps(list(range(100))), "it", most_steps=50)
    assert unpickle(pickle.dumps([1, 2]), "it", most_steps=50) == [1, 2]


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        load_pickle(tmp_path / "x.pkl")
