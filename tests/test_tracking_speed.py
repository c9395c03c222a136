"""What makes tracking fast must not change what it finds: reading ahead, threads, going on after a break."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from guava.body import Identity, Pose, load_template
from guava.camera import Camera
from guava.container import read_container, write_container
from guava.errors import InputError
from guava.photo import VideoReader, VideoWriter
from guava.photo.ahead import read_ahead
from guava.synth.tracked import tracked_truth
from guava.tracking import load_tracked, save_tracked
from guava.tracking.detection import detect_video
from guava.tracking.detection_cache import DetectionCache, remove_detections
from guava.tracking.detectors import FrameDetections, PersonDetection, PointSet, create_detector
from guava.tracking.fit.solver import NormalEquations
from guava.tracking.shots import find_cuts, number_shots
from guava.tracking.stages import StageClock, stage_table
from guava.tracking.track import _nearest


def scene(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)


def clip(path, frames=12):
    """A person before a background that moves, and a cut to another one in the middle."""
    with VideoWriter(path, 25, (128, 128)) as writer:
        for t in range(frames):
            picture = np.roll(scene(t >= frames // 2), t, 1)
            picture[8:30, 36:92], picture[30:62, 36:92] = 50, (220, 170, 140)
            picture[70:, 30:100] = (40, 40, 160)
            writer.write(picture)
    return path


class Counting:
    """Finds the same person everywhere, slightly moved; breaks off when told to."""

    name = "counting"

    def __init__(self, stop_at=None):
        self.looked, self.stop_at = [], stop_at

    def detect(self, image, near=None, *, mask=True):
        if len(self.looked) == self.stop_at:
            raise KeyboardInterrupt
        self.looked.append(float(image.astype(float).sum()))
        face = np.random.default_rng(0).uniform(-20, 20, (478, 2)) + (64, 40 + image[0, 0, 0] / 1000)
        points = PointSet("mediapipe478", face, np.ones(478), np.zeros(478))
        hand = PointSet("hand21", face[:21], np.ones(21), np.zeros(21), np.ones((21, 3)))
        body = PointSet("mediapipe33", face[:33], np.ones(33)) if len(self.looked) % 2 else None
        person = PersonDetection(np.array([30.0, 10, 100, 128]), 0.5, points, body, hand, None)
        return FrameDetections(person, 1, np.ones(image.shape[:2], np.float32) if mask else None)

    def reset(self):
        pass


def same(a, b):
    for part in ("face", "body", "left_hand", "right_hand"):
        one, two = getattr(a.person, part), getattr(b.person, part)
        assert (one is None) == (two is None)
        if one is not None:
            assert one.layout == two.layout
            for name in ("points", "confidence", "depth", "world"):
                first, second = getattr(one, name), getattr(two, name)
                assert (first is None) == (second is None)
                assert first is None or np.array_equal(first, second)


def test_an_interrupted_job_goes_on_where_it_was(tmp_path):
    reader = VideoReader(clip(tmp_path / "c.mp4"))
    whole = detect_video(reader, Counting())
    folder = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        detect_video(reader, Counting(stop_at=7), cache=DetectionCache(folder, reader.sha256, "counting"))
    rest, steps = Counting(), []
    cache = DetectionCache(folder, reader.sha256, "counting")
    again = detect_video(reader, rest, lambda done, total: steps.append((done, total)), cache=cache)
    assert len(rest.looked) == 12 - 7, "what was looked at before is not looked at again"
    assert steps == [(n, 12) for n in range(1, 13)]
    assert again.shots.tolist() == whole.shots.tolist() == [0] * 6 + [1] * 6
    assert np.array_equal(again.timestamps, whole.timestamps) and again.notes == whole.notes
    for t in range(7):  # before the break; what the stand-in finds depends on how often it was asked
        same(again.frames[t], whole.frames[t])
    # All frames are there now: a third job looks at none.
    third = Counting(stop_at=0)
    detect_video(reader, third, cache=DetectionCache(folder, reader.sha256, "counting"))
    assert not third.looked


def test_detections_of_another_video_or_detector_or_damaged_ones_are_not_taken(tmp_path):
    reader = VideoReader(clip(tmp_path / "c.mp4"))
    folder = tmp_path / "kept"
    detect_video(reader, Counting(), cache=DetectionCache(folder, reader.sha256, "counting"))
    (chunk,) = folder.iterdir()
    whole = chunk.read_bytes()
    tensors, header = read_container(chunk, "detections", 1)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # the file itself is mapped
    for damaged in (whole[:200], whole[:-200] + whole[-200:][::-1], b""):
        chunk.write_bytes(damaged)
        assert DetectionCache(folder, reader.sha256, "counting").load() == [] and not folder.exists()
        folder.mkdir()
    # Whole files whose parts contradict each other.
    for name in ("person.box", "face.points", "shot", "look.values"):
        write_container(chunk, "detections", 1, {**tensors, name: tensors[name][:3]}, header)
        assert DetectionCache(folder, reader.sha256, "counting").load() == [] and not folder.exists()
        folder.mkdir()
    detect_video(reader, Counting(), cache=DetectionCache(folder, reader.sha256, "counting"))
    assert len(DetectionCache(folder, reader.sha256, "counting").load()) == 12
    for sha256, detector in (("another", "counting"), (reader.sha256, "counting 2")):
        folder.mkdir(exist_ok=True)
        chunk.write_bytes(whole)
        assert DetectionCache(folder, sha256, detector).load() == [] and not folder.exists()


def test_a_second_job_on_another_video_mixes_nothing_in(tmp_path):
    """Both write to the same folder: chunks are taken up to the first that is not this job's."""
    one, other = (
        VideoReader(clip(tmp_path / f"{n}.mp4", frames)) for n, frames in enumerate((12, 11))
    )
    folder = tmp_path / "kept"
    detect_video(one, Counting(), cache=DetectionCache(folder, one.sha256, "counting"))
    first = (folder / "000000.detections").read_bytes()
    detect_video(other, Counting(), cache=DetectionCache(folder, other.sha256, "counting"))
    (folder / "000000.detections").rename(folder / "000001.detections")
    (folder / "000000.detections").write_bytes(first)
    assert len(DetectionCache(folder, one.sha256, "counting").load()) == 12
    assert [path.name for path in folder.iterdir()] == ["000000.detections"]


def test_nothing_else_in_the_folder_is_deleted(tmp_path):
    mine = tmp_path / "photos" / "me.jpg"
    mine.parent.mkdir()
    mine.write_bytes(b"precious")
    (mine.parent / "000000.detections").write_bytes(b"damaged")
    (mine.parent / ".000001.detections.k1ll3d").write_bytes(b"")
    assert DetectionCache(mine.parent, "a", "b").load() == []
    assert list(mine.parent.iterdir()) == [mine]
    remove_detections(mine.parent)
    remove_detections(tmp_path / "never made")
    assert mine.read_bytes() == b"precious"


def test_detections_cannot_be_kept_where_nothing_can_be_written(tmp_path):
    reader = VideoReader(clip(tmp_path / "c.mp4"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="Cannot keep detections"):
        detect_video(reader, Counting(), cache=DetectionCache(tmp_path / "file", "a", "b"))
    assert not any(thread.name == "guava-read-ahead" for thread in threading.enumerate())


def test_detections_with_masks_are_not_kept(tmp_path):
    reader, folder = VideoReader(clip(tmp_path / "c.mp4")), tmp_path / "kept"
    with pytest.raises(ValueError, match="masks"):
        detect_video(reader, Counting(), keep_masks=True, cache=DetectionCache(folder, "x", "y"))


def test_a_clip_holds_no_masks_unless_asked_to(tmp_path):
    reader = VideoReader(clip(tmp_path / "c.mp4"))
    assert all(f.mask is None for f in detect_video(reader, Counting()).frames)
    assert all(f.mask is not None for f in detect_video(reader, Counting(), keep_masks=True).frames)


def test_few_frames_are_read_ahead():
    """Memory: a long clip's frames are never together in memory."""
    made, taken, furthest = [0], [0], [0]

    def frames():
        for t in range(60):
            made[0] += 1
            furthest[0] = max(furthest[0], made[0] - taken[0])
            yield scene(t // 20)

    for _ in read_ahead(number_shots(frames(), lambda frame: frame)):
        taken[0] += 1
    assert taken[0] == made[0] == 60 and furthest[0] <= 16


def test_cuts_are_the_same_in_a_stream():
    frames = [np.roll(scene(k), t, 1) for k, n in enumerate((5, 9, 12)) for t in range(n)]
    numbers = [shot for _, shot in number_shots(iter(frames), lambda frame: frame)]
    assert numbers == find_cuts(frames).tolist() == [0] * 5 + [1] * 9 + [2] * 12
    streamed = [frame for frame, _ in number_shots(frames, lambda frame: frame)]
    assert all(a is b for a, b in zip(streamed, frames, strict=True))
    assert list(number_shots([], lambda frame: frame)) == []


def test_reading_ahead_hands_on_errors_and_ends_its_thread():
    closed = []

    def items():
        try:
            yield 1
            yield 2
            raise OSError("torn off")
        finally:
            closed.append(True)

    seen = []
    with pytest.raises(OSError, match="torn off"):
        for item in read_ahead(items()):
            seen.append(item)
    assert seen == [1, 2] and closed == [True]
    endless = read_ahead(iter(int, 1))
    next(endless)
    endless.close()
    assert not any(thread.name == "guava-read-ahead" for thread in threading.enumerate())


def test_models_beside_each_other_find_the_same():
    pytest.importorskip("mediapipe")
    astronaut = pytest.importorskip("skimage.data").astronaut()
    found = []
    for threads in (1, 3):
        detector = create_detector("mediapipe", threads=threads)
        box = detector.detect(astronaut).person.box
        found.append([detector.detect(np.roll(astronaut, 4 * t, 1), box, mask=False) for t in range(4)])
        assert detector.graphs.calls["pose"] >= 5
        detector.close()
    for a, b in zip(*found, strict=True):
        same(a, b)
        assert a.mask is None and np.array_equal(a.person.box, b.person.box)


def test_normal_equations_of_a_few_columns_are_those_of_all():
    g = torch.Generator().manual_seed(0)
    residual, frame = torch.randn(3, 7, generator=g).double(), torch.zeros(3, 7, 9).double()
    runs = (slice(1, 3), slice(5, 6), slice(7, 9))
    few = torch.randn(3, 7, 5, generator=g).double()
    for run, part in zip(runs, (slice(0, 2), slice(2, 3), slice(3, 5)), strict=True):
        frame[..., run] = few[..., part]
    shared = torch.randn(3, 7, 4, generator=g).double()
    whole, parts = NormalEquations.zero(3, 9, 4), NormalEquations.zero(3, 9, 4)
    whole.add(residual, frame, shared)
    parts.add(residual, few, shared, columns=runs)
    for name in ("cost", *(f"{of}_{what}" for of in ("frame", "shared") for what in ("gradient", "hessian"))):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    torch.testing.assert_close(parts.cross_hessian, whole.cross_hessian)


def test_frames_without_a_person_take_the_nearest_pose():
    known = torch.tensor([2, 3, 7])
    assert _nearest(known, 9).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_stage_times_add_up_and_contain_each_other():
    clock = StageClock()
    with clock("fit"), clock("fit/face"):
        pass
    assert list(clock.each("read", [1, 2])) == [1, 2]
    clock.add("fit/face", 1.5, 0.5)
    record = clock.record()
    assert list(record) == ["fit", "fit/face", "read"] and record["fit/face"][0] >= 1.5
    table = stage_table(record, 10).splitlines()
    assert table[2].startswith("  face") and table[2].split()[-1] == "150.0"


def test_stage_times_are_kept_in_the_file(tmp_path):
    template = load_template()
    person, pose = Identity.neutral(template), Pose.rest(template)
    tracked = tracked_truth(template, person, pose, Camera.frontal(512), torch.ones(512, 512))
    tracked = replace(tracked, stages={"fit": [1.0, 2.0]})
    save_tracked(tracked, tmp_path / "t.motion", template=template)
    assert load_tracked(tmp_path / "t.motion").stages == {"fit": [1.0, 2.0]}
