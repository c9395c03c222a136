"""The file container: lossless, atomic, and clear about what it refuses."""

import errno
import os

import pytest
import torch

from guava.container import read_container, write_container
from guava.errors import FileFormatError, InputError


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "a.guava"
    tensors = {"x": torch.randn(5, 3), "empty": torch.zeros(0, 4), "i": torch.arange(7, dtype=torch.int16)}
    write_container(path, "avatar", 2, tensors, {"name": "é", "nested": {"a": [1, 2.5, None]}})
    return path, tensors


def test_round_trip(written):
    path, tensors = written
    read, header = read_container(path, "avatar", 2)
    assert header["name"] == "é" and header["nested"] == {"a": [1, 2.5, None]}
    for name, value in tensors.items():
        assert torch.equal(read[name], value) and read[name].dtype == value.dtype


def test_tensors_may_share_memory_and_need_not_be_contiguous(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "same": whole, "part": whole[1:], "turned": whole.T, "one": whole[0, :1]}
    tensors["repeated"] = whole[0, 0].expand(5)
    write_container(tmp_path / "a", "motion", 1, tensors, {})
    read, _ = read_container(tmp_path / "a", "motion", 1)
    for name, value in tensors.items():
        assert torch.equal(read[name], value), name


def test_every_flipped_byte_is_noticed(written, tmp_path):
    path, _ = written
    data = path.read_bytes()
    for place in range(0, len(data), 3):
        damaged = tmp_path / "damaged"
        damaged.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(FileFormatError):
            read_container(damaged, "avatar", 2)


def test_refusals(written, tmp_path):
    path, _ = written
    with pytest.raises(FileFormatError, match="avatar file; a motion file is needed"):
        read_container(path, "motion", 2)
    with pytest.raises(FileFormatError, match="reads up to 1"):
        read_container(path, "avatar", 1)
    with pytest.raises(InputError, match="no file"):
        read_container(tmp_path / "absent", "avatar", 2)
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"\x89PNG not this")
    with pytest.raises(FileFormatError):
        read_container(foreign, "avatar", 2)


def test_truncation_anywhere_is_noticed(written, tmp_path):
    path, _ = written
    data = path.read_bytes()
    for keep in (0, 1, 7, 8, 20, len(data) // 2, len(data) - 1):
        cut = tmp_path / "cut"
        cut.write_bytes(data[:keep])
        with pytest.raises(FileFormatError):
            read_container(cut, "avatar", 2)


def test_full_disk_leaves_the_old_file(written, monkeypatch):
    path, tensors = written
    before = path.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_container(path, "avatar", 2, tensors, {})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.guava"]
