"""Videos: orientation, rates, damage, and output that is there whole or not at all."""

import resource
import struct
import threading
from fractions import Fraction

import av
import numpy as np
import pytest

from guava.errors import InputError
from guava.photo import VideoReader, VideoWriter, read_video


def _frames(count=12, width=64, height=48):
    frames = np.full((count, height, width, 3), 60, np.uint8)
    for t in range(count):
        frames[t, :, : (t + 1) * width // count] = (200, 60, 40)
    return frames


def _write(path, frames, fps=25.0):
    with VideoWriter(path, fps, (frames.shape[2], frames.shape[1])) as writer:
        for frame in frames:
            writer.write(frame)


def _refused(path, *words):
    with pytest.raises(InputError) as caught:
        for _ in VideoReader(path):
            pass
    line = str(caught.value)
    assert "\n" not in line and path.name in line
    for word in words:
        assert word in line


def test_round_trip_keeps_frames_rate_and_colours(tmp_path):
    patches = [(230, 30, 30), (30, 200, 40), (40, 50, 220), (128, 128, 128), (240, 210, 190)]
    frame = np.repeat(np.array(patches, np.uint8), 16, 0)[None].repeat(64, 0)
    _write(tmp_path / "a.mp4", np.stack([frame] * 6), 30000 / 1001)
    reader = VideoReader(tmp_path / "a.mp4")
    assert len(reader) == 6 and reader.fps == pytest.approx(29.97, abs=0.01)
    got = list(reader)
    assert [f.index for f in got] == list(range(6))
    assert np.allclose([f.time for f in got], np.arange(6) * 1001 / 30000, atol=1e-3)
    for i, colour in enumerate(patches):
        assert np.abs(got[3].pixels[32, 16 * i + 8].astype(int) - colour).max() <= 4
    assert len(list(reader)) == 6  # a second iteration starts again
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        fields = (context.color_range, context.color_primaries, context.color_trc, context.colorspace)
        assert tuple(int(f) for f in fields) == (1, 1, 1, 1)
        assert context.name == "h264" and context.pix_fmt == "yuv420p"
        for frame in container.decode(video=0):
            names = ("color_range", "color_primaries", "color_trc", "colorspace")
            there = [int(getattr(frame, name)) for name in names if hasattr(frame, name)]
            assert len(there) >= 2 and set(there) == {1}


def test_odd_sizes_are_padded(tmp_path):
    frames = _frames(width=65, height=47)
    frames[:, -1], frames[:, :, -1] = (30, 200, 40), (40, 50, 220)
    _write(tmp_path / "odd.mp4", frames)
    reader = VideoReader(tmp_path / "odd.mp4")
    assert (reader.width, reader.height) == (66, 48)
    for frame in reader:
        # 4:2:0 halves the resolution of colours, not of brightness.
        assert np.abs(frame.pixels[:40, -1].astype(int).mean((0, 1)) - 103).max() < 20
        assert np.abs(frame.pixels[:40, -1].astype(int) - frame.pixels[:40, -2]).max() < 12
        assert np.abs(frame.pixels[-1, :60].astype(int) - frame.pixels[-2, :60]).max() < 12


def test_frames_are_drawn_into_the_encoders_memory_in_turn(tmp_path):
    drawn = _frames(count=30, width=50)  # rows of 150 bytes lie apart
    addresses = set()
    with VideoWriter(tmp_path / "a.mp4", 25, (50, 48)) as writer:
        for frame in drawn:
            buffer = writer.buffer()
            assert buffer is not None and buffer.shape == (48, 50, 3) and buffer.dtype == np.uint8
            assert writer.buffer().ctypes.data == buffer.ctypes.data  # asking twice is no second frame
            addresses.add(buffer.ctypes.data)
            buffer[...] = frame
            writer.submit()
        with pytest.raises(ValueError, match="buffer"):
            writer.submit()
    assert 1 < len(addresses) <= 3
    got = [f.pixels for f in VideoReader(tmp_path / "a.mp4")]
    assert len(got) == 30
    for wanted, frame in zip(drawn, got, strict=True):
        assert np.abs(wanted.astype(int) - frame).mean() < 4
    assert writer.seconds > 0 and writer.waited >= 0


@pytest.mark.parametrize("error", [RuntimeError("no idea"), OSError(28, "No space left on device")])
@pytest.mark.parametrize("frames", [1, 20])
def test_what_fails_on_the_encoders_thread_is_raised_on_the_writers(tmp_path, monkeypatch, error, frames):
    def broken(*_):
        raise error

    before = threading.active_count()
    with pytest.raises(RuntimeError if isinstance(error, RuntimeError) else InputError) as caught:
        with VideoWriter(tmp_path / "a.mp4", 25, (64, 48)) as writer:
            monkeypatch.setattr("guava.photo.video._FrameBuffer.converted", broken)
            for frame in _frames(frames):
                writer.write(frame)
    assert str(error.args[-1]) in str(caught.value)
    assert list(tmp_path.iterdir()) == [] and threading.active_count() == before


def test_a_symbolic_link_keeps_pointing_where_it_did(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "a.mp4").symlink_to(tmp_path / "videos" / "b.mp4")
    _write(tmp_path / "a.mp4", _frames())
    assert (tmp_path / "a.mp4").is_symlink() and len(VideoReader(tmp_path / "videos" / "b.mp4")) == 12


def test_writer_leaves_nothing_behind_on_errors(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with VideoWriter(tmp_path / "a.mp4", 25, (64, 48)) as writer:
            writer.write(_frames()[0])
            raise KeyboardInterrupt
    with pytest.raises(ValueError, match="shape"):
        with VideoWriter(tmp_path / "a.mp4", 25, (64, 48)) as writer:
            writer.write(np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(InputError, match="suffix"):
        VideoWriter(tmp_path / "a.avi", 25, (64, 48))
    with pytest.raises(InputError, match="Cannot write"):
        with VideoWriter(tmp_path / "no" / "a.mp4", 25, (64, 48)):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [1_000, 60_000])
def test_full_disk_is_one_clear_error(tmp_path, limit):
    # A limit on the size of files makes writing fail in the middle or at the end, as a full disk does.
    (tmp_path / "a.mp4").write_bytes(b"old")
    noise = np.random.default_rng(0).integers(0, 255, (30, 128, 128, 3), dtype=np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(InputError) as caught:
            _write(tmp_path / "a.mp4", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Cannot write" in str(caught.value) and "a.mp4" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"old"


def test_refuses_what_has_no_frames(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    _refused(tmp_path / "empty.mp4", "empty")
    (tmp_path / "text.mp4").write_bytes(b"no video at all " * 100)
    _refused(tmp_path / "text.mp4", "damaged, cut short or not a video")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    _refused(tmp_path / "sound.mp4", "only sound")
    with av.open(str(tmp_path / "none.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    _refused(tmp_path / "none.mkv")
    with pytest.raises(InputError, match="no file"):
        read_video(tmp_path / "missing.mp4")


def test_truncated_files(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 96, 128, 3), dtype=np.uint8)
    _write(tmp_path / "a.mp4", noise)
    data = (tmp_path / "a.mp4").read_bytes()
    # An mp4 whose index, at its end, is lost cannot be read at all ...
    (tmp_path / "b.mp4").write_bytes(data[: len(data) // 2])
    _refused(tmp_path / "b.mp4", "cut short")
    # ... a matroska file is read as far as it goes, and says so.
    _write(tmp_path / "c.mkv", noise)
    data = (tmp_path / "c.mkv").read_bytes()
    (tmp_path / "d.mkv").write_bytes(data[: int(0.6 * len(data))])
    reader = VideoReader(tmp_path / "d.mkv")
    count = sum(1 for _ in reader)
    assert 5 < count < 40
    assert any("ends early" in note or "cut short" in note for note in reader.notes)


def test_variable_frame_rate_keeps_time_stamps(tmp_path):
    times = [0, 40, 80, 120, 320, 360, 560, 600, 640, 680, 900, 940]
    with av.open(str(tmp_path / "vfr.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, pixels in zip(times, _frames(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reader = VideoReader(tmp_path / "vfr.mkv")
    got = list(reader)
    assert np.allclose([f.time for f in got], np.array(times) / 1000, atol=2e-3)
    assert any("variable frame rate" in note for note in reader.notes)


def test_reduces_large_frames(tmp_path):
    _write(tmp_path / "a.mp4", _frames(3, 256, 128))
    reader = VideoReader(tmp_path / "a.mp4", max_side=64)
    assert next(iter(reader)).pixels.shape == (32, 64, 3)
    assert "reduced to 64x32" in reader.notes[0]


@pytest.mark.parametrize(
    "matrix, turns",
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
    ids=["clockwise", "upside down", "counter-clockwise"],
)
def test_rotation_metadata_as_phones_write_it(tmp_path, matrix, turns):
    frame = np.full((48, 80, 3), 30, np.uint8)
    frame[:24, :40], frame[24:, :40] = (200, 40, 40), (40, 40, 200)
    _write(tmp_path / "a.mp4", np.stack([frame] * 4))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    # The display matrix (a b u c d v x y w, 16.16 fixed point) lies 40 bytes into the track header's body.
    start = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 65536 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(bytes(data))
    reader = VideoReader(tmp_path / "a.mp4")
    upright = np.rot90(frame, turns)
    assert (reader.height, reader.width) == upright.shape[:2]
    got = next(iter(reader)).pixels
    assert got.shape == upright.shape
    assert np.abs(got.astype(int) - upright).mean() < 6
