"""Videos in and out (PyAV: one wheel with its own ffmpeg)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import perf_counter

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from guava.container import publish
from guava.errors import InputError
from guava.photo.image import MIN_SIDE, file_digest, to_eight_bits

MAX_VIDEO_SIDE = 1920
"""Longer frames are reduced to this side while reading."""

_BT709 = 1  # as ITU-T H.273 numbers primaries, transfer and matrix
_BUFFERS = 3  # one being drawn, one waiting, one being encoded
_TURNS = {90: 1, 180: 2, 270: 3}


@dataclass(frozen=True)
class VideoFrame:
    """One frame.

    Attributes:
        index: Number in the file, from 0.
        time: Seconds from the first frame.
        pixels: (H, W, 3) uint8 sRGB, upright.
    """

    index: int
    time: float
    pixels: np.ndarray


class VideoReader:
    """Frames of a video file, upright and in RGB. May be iterated several times.

    Args:
        path: The file.
        max_side: Longer frames are reduced to this side, in pixels.

    Attributes:
        name: File name without folder.
        sha256: Hexadecimal digest of the file's bytes.
        fps: Nominal frames a second (the average for a variable rate).
        width, height: Of the frames handed out.
        notes: Sentences; complete after an iteration (variable rate, damaged end).

    Raises:
        InputError: One line: missing, empty, damaged, no video stream, no frames.
    """

    def __init__(self, path: str | os.PathLike, max_side: int = MAX_VIDEO_SIDE):
        self.path = Path(path)
        self.name = self.path.name
        self.sha256, _ = file_digest(self.path)
        self._notes: list[str] = []
        container = self._open()
        with container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate or stream.base_rate
            self.fps = float(rate) if rate and 0 < rate < 1000 else 25.0
            if not rate:
                self._note(f"'{self.name}' states no frame rate; 25 frames/s were assumed.")
            # Some containers (matroska, webm) state only a duration.
            self._stated = stream.frames
            if not self._stated:
                seconds = (
                    float(stream.duration * stream.time_base)
                    if stream.duration and stream.time_base
                    else (container.duration or 0) / av.time_base
                )
                self._stated = max(0, round(seconds * self.fps))
            first = self._first(container)
            turned = _rotation(first, stream) in (90, 270)
            width, height = _display_size(first, stream.sample_aspect_ratio, max_side)
        self._size = width, height
        self.width, self.height = (height, width) if turned else (width, height)
        if min(width, height) < MIN_SIDE:
            raise InputError(
                f"The frames of '{path}' have only {width}x{height} pixels; at least {MIN_SIDE} are needed.",
                "Use a video in which the person can be seen.",
            )
        if not hasattr(first, "rotation"):
            self._note("This PyAV is too old to read rotation; update it if frames lie on their side.")
        if max(first.width, first.height) > max_side:
            self._note(f"The frames of '{self.name}' were reduced to {self.width}x{self.height}.")

    def __len__(self) -> int:
        """Number of frames, as the file states it; an estimate for progress bars."""
        return self._stated

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about the file."""
        return tuple(self._notes)

    def __iter__(self) -> Iterator[VideoFrame]:
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            start, last, index, steps = None, -1.0, 0, []
            frames = container.decode(stream)
            while True:
                try:
                    frame = next(frames)
                    pixels = self._pixels(frame, stream)
                except StopIteration:
                    break
                except (av.error.FFmpegError, ValueError) as error:
                    if index == 0:
                        raise self._unreadable(error) from error
                    self._note(
                        f"'{self.name}' is damaged or cut short: it was read up to frame {index - 1}"
                        + (f" of about {self._stated}." if self._stated else ".")
                    )
                    return
                if frame.time is None:
                    time = index / self.fps if start is None else last + 1 / self.fps
                else:
                    start = frame.time if start is None else start
                    time = frame.time - start
                if index and time <= last:
                    # Damaged time stamps; the order of decoding is the order of showing.
                    time = last + 1 / self.fps
                if index:
                    steps.append(time - last)
                yield VideoFrame(index, time, pixels)
                last, index = time, index + 1
        if index == 0:
            raise self._unreadable(None)
        if self._stated and index < 0.9 * self._stated:
            self._note(f"'{self.name}' ends early: {index} of about {self._stated} frames could be read.")
        if len(steps) > 2 and np.ptp(np.percentile(steps, [2, 98])) > 0.2 / self.fps:
            self._note(f"'{self.name}' has a variable frame rate; the time stamps of its frames are kept.")

    def _note(self, sentence: str) -> None:
        if sentence not in self._notes:
            self._notes.append(sentence)

    def _open(self):
        try:
            container = av.open(str(self.path))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise self._unreadable(error) from error
        if not container.streams.video:
            kind = "only sound" if container.streams.audio else "no pictures"
            container.close()
            raise InputError(f"'{self.path}' contains {kind}.", "Use a video file that shows the person.")
        return container

    def _first(self, container) -> av.VideoFrame:
        try:
            for frame in container.decode(video=0):
                return frame
        except (av.error.FFmpegError, ValueError) as error:
            raise self._unreadable(error) from error
        raise InputError(f"'{self.path}' contains no frames.", "Export or download it again.")

    def _unreadable(self, error: Exception | None) -> InputError:
        reason = f" ({error.strerror})" if getattr(error, "strerror", None) else ""
        return InputError(
            f"'{self.path}' is damaged, cut short or not a video{reason}.",
            "Use an MP4, MOV, MKV or WebM file, or export it again.",
        )

    def _pixels(self, frame: av.VideoFrame, stream) -> np.ndarray:
        # Untagged files: high definition means BT.709, everything smaller BT.601.
        space = Colorspace.ITU709 if frame.colorspace == _BT709 else Colorspace.ITU601
        if frame.colorspace == 2 and frame.height >= 720:
            space = Colorspace.ITU709
        reduced = (frame.width, frame.height) != self._size
        rgb = frame.reformat(
            *self._size,
            format="rgb24",
            src_colorspace=space,
            interpolation="AREA" if reduced else "BICUBIC",
        )
        quarter_turns = _TURNS.get(_rotation(frame, stream), 0)
        pixels = rgb.to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels


def _rotation(frame: av.VideoFrame, stream) -> int:
    """Counter-clockwise degrees (0, 90, 180, 270) by which the picture must be turned to be upright."""
    angle = getattr(frame, "rotation", 0)
    if not angle and "rotate" in stream.metadata:
        try:
            angle = -int(stream.metadata["rotate"])
        except ValueError:
            angle = 0
    return round(angle / 90) * 90 % 360


def _display_size(frame: av.VideoFrame, aspect: Fraction | None, max_side: int) -> tuple[int, int]:
    """Width and height in square pixels, before rotation, at most ``max_side``."""
    width, height = float(frame.width), float(frame.height)
    if aspect and aspect > 0:
        width *= float(aspect)
    scale = min(1.0, max_side / max(width, height, 1.0))
    return max(1, round(width * scale)), max(1, round(height * scale))


def read_video(path: str | os.PathLike, max_side: int = MAX_VIDEO_SIDE) -> Iterator[VideoFrame]:
    """Frames of a video file, one after the other; see :class:`VideoReader`."""
    return iter(VideoReader(path, max_side))


class _RecordingFile:
    """A file for the muxer that remembers the first error: libav's close does not report a full disk."""

    def __init__(self, handle):
        self._handle = handle
        self.error: OSError | None = None

    def _try(self, operation, *arguments):
        try:
            return operation(*arguments)
        except OSError as error:
            self.error = self.error or error
            raise

    def write(self, data) -> int:
        return self._try(self._handle.write, data)

    def seek(self, *arguments) -> int:
        return self._try(self._handle.seek, *arguments)

    def tell(self) -> int:
        return self._handle.tell()


class _FrameBuffer:
    """A picture that is drawn in RGB and encoded in YUV, over and over.

    Attributes:
        pixels: (H, W, 3) uint8, the frame's own memory.
    """

    def __init__(self, width: int, height: int):
        self._rgb = av.VideoFrame(width, height, "rgb24")
        plane = self._rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
        self.pixels = rows[:, : 3 * width].reshape(height, width, 3)

    def converted(self) -> av.VideoFrame:
        """The picture as the encoder takes it, with all its colour fields."""
        frame = self._rgb.reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        frame.color_range = int(ColorRange.MPEG)
        frame.colorspace = _BT709
        if hasattr(frame, "color_trc"):  # older versions of PyAV leave frames' primaries to the stream
            frame.color_primaries = frame.color_trc = _BT709
        return frame


class VideoWriter:
    """Writes an H.264 video that browsers and editors show in the right colours. Use it as a context manager.

    Conversion to YUV and encoding run on a thread of their own. Frames are drawn straight into the encoder's
    memory, a few buffers in turn: ``writer.buffer()[...] = pixels; writer.submit()``, or at once
    ``writer.write(pixels)``.

    The file appears under its name only when the block ends without an error; otherwise nothing is left
    behind. Odd sizes are padded to even ones by repeating the last row or column (4:2:0 needs even sizes).
    All four colour fields, of the stream and of every frame, are tagged BT.709: players guess where one is
    missing.

    Args:
        path: .mp4, .mov or .mkv.
        fps: Frames a second.
        size: (width, height) of the frames.
        quality: x264's constant rate factor; smaller is better and larger.

    Attributes:
        notes: Sentences, for instance that no H.264 encoder was there and MPEG-4 was written.
        seconds: Spent encoding so far.
        waited: Seconds that :meth:`buffer` had to wait for the encoder.

    Raises:
        InputError: Unknown suffix, no such folder, or the disk is full; of what fails on the thread, the next
            call or the end of the block tells.
    """

    def __init__(self, path: str | os.PathLike, fps: float, size: tuple[int, int], quality: int = 18):
        self.path = Path(path)
        self._target = Path(os.path.realpath(path))  # a symbolic link stays one
        self.notes: tuple[str, ...] = ()
        self.seconds = self.waited = 0.0
        self._size = size
        self._fps, self._quality = fps, quality
        self._container = self._handle = self._temporary = self._thread = None
        if self.path.suffix.lower() not in (".mp4", ".mov", ".mkv"):
            raise InputError(f"Cannot write '{path}': unknown suffix '{self.path.suffix}'.", "Use .mp4.")
        if not fps > 0 or min(size) < 1:
            raise ValueError(f"bad frame rate or size: {fps}, {size}")

    def __enter__(self) -> VideoWriter:
        try:
            self._handle = tempfile.NamedTemporaryFile(
                dir=self._target.parent, prefix=f".{self._target.name}.", delete=False, buffering=0
            )
        except OSError as error:
            raise self._failed(error) from error
        self._temporary = Path(self._handle.name)
        try:
            self._start()
        except BaseException:
            self._discard()
            raise
        return self

    def _start(self) -> None:
        self._file = _RecordingFile(self._handle)
        formats = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
        self._container = av.open(self._file, "w", format=formats[self.path.suffix.lower()])
        codec, options = "libx264", {"crf": str(self._quality), "preset": "fast"}
        if codec not in av.codecs_available:
            codec, options = "mpeg4", {"qscale": "3"}
            self.notes = (
                "This PyAV has no H.264 encoder (libx264); MPEG-4 Part 2 was written; few browsers play it.",
            )
        rate = Fraction(self._fps).limit_denominator(100_000)
        stream = self._container.add_stream(codec, rate=rate, options=options)
        width, height = (n + n % 2 for n in self._size)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_range = int(ColorRange.MPEG)
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        self._stream = stream
        self._buffers = [_FrameBuffer(width, height) for _ in range(_BUFFERS)]
        self._free, self._filled = SimpleQueue(), SimpleQueue()
        for buffer in self._buffers:
            self._free.put(buffer)
        self._current: _FrameBuffer | None = None
        self._error: BaseException | None = None
        self._thread = Thread(target=self._encode_all, name="guava-encoder", daemon=True)
        self._thread.start()

    def buffer(self) -> np.ndarray:
        """Where to draw the next frame: (H, W, 3) uint8, whose rows may lie apart. Call :meth:`submit` then.

        It holds an older frame, not always the last one.
        """
        if self._container is None:
            raise ValueError("VideoWriter must be used in a 'with' block")
        start = perf_counter()
        while self._current is None:
            self._raise_failure()
            try:
                self._current = self._free.get(timeout=0.2)  # a wait that lets Ctrl-C through everywhere
            except Empty:
                continue
        self.waited += perf_counter() - start
        width, height = self._size
        return self._current.pixels[:height, :width]

    def submit(self) -> None:
        """Append what was drawn into :meth:`buffer`."""
        if self._current is None:
            raise ValueError("VideoWriter.submit() without buffer()")
        width, height = self._size
        pixels = self._current.pixels
        pixels[height:] = pixels[height - 1 : height]
        pixels[:, width:] = pixels[:, width - 1 : width]
        self._filled.put(self._current)
        self._current = None

    def write(self, pixels: np.ndarray) -> None:
        """Append one frame.

        Args:
            pixels: (H, W, 3), uint8 or floats in [0, 1], sRGB.
        """
        if pixels.shape != (self._size[1], self._size[0], 3):
            raise ValueError(f"frame of shape {pixels.shape} in a video of {self._size} pixels")
        self.buffer()[...] = to_eight_bits(pixels)
        self.submit()

    def _encode_all(self) -> None:
        """The encoder's thread: until the first None, or an error, which the main thread raises."""
        try:
            while (buffer := self._filled.get()) is not None:
                start = perf_counter()
                self._container.mux(self._stream.encode(buffer.converted()))
                self.seconds += perf_counter() - start
                self._free.put(buffer)
        except BaseException as error:
            self._error = error

    def _raise_failure(self) -> None:
        error = self._error
        if isinstance(error, (av.error.FFmpegError, OSError)):
            raise self._failed(self._file.error or error) from error
        if error is not None:
            raise error

    def _stop_encoding(self) -> None:
        """Let the thread encode what was submitted, and end it."""
        if self._thread is not None:
            self._filled.put(None)
            while self._thread.is_alive():
                self._thread.join(0.2)
            self._thread = None

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._stop_encoding()
            self._raise_failure()
            start = perf_counter()
            try:
                self._container.mux(self._stream.encode(None))
                self._container.close()
                self._container = None
                if self._file.error is not None:
                    raise self._file.error
                os.fsync(self._handle.fileno())
                self._handle.close()
                publish(self._temporary, self._target)
                self._temporary = None
            except (av.error.FFmpegError, OSError) as problem:
                raise self._failed(self._file.error or problem) from problem
            self.seconds += perf_counter() - start
        finally:
            self._discard()

    def _failed(self, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or str(error)
        return InputError(f"Cannot write '{self.path}': {reason}.", "Check the folder and the free space.")

    def _discard(self) -> None:
        self._stop_encoding()
        if self._container is not None:
            try:
                self._container.close()
            except (av.error.FFmpegError, OSError):
                pass  # the file is thrown away
            self._container = None
        if self._handle is not None and not self._handle.closed:
            self._handle.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None
