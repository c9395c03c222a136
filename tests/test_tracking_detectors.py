"""Detectors: MediaPipe on real and pasted pictures, SimCC on a model whose answers are known."""

import builtins
import os
import sys
import threading
import time
import types

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from guava.avatar import over
from guava.body import EHM, Identity, Pose, load_template
from guava.camera import Camera
from guava.errors import GuavaError, InputError, MissingDependencyError, NoPersonError
from guava.photo import Photo, VideoReader, VideoWriter, resize_area
from guava.rendering import shade_mesh
from guava.synth import TEST_SEEDS, accuracy_set
from guava.tracking.detection import detect_photo, detect_video, photo_notes
from guava.tracking.detectors import available_detectors, create_detector
from guava.tracking.detectors.mediapipe_graphs import import_mediapipe, quiet_stderr


def _photo(pixels):
    return Photo(np.ascontiguousarray(pixels), None, "", "picture.png")


@pytest.fixture(scope="module")
def astronaut():
    data = pytest.importorskip("skimage.data")
    return data.astronaut()


@pytest.fixture(scope="module")
def mediapipe():
    pytest.importorskip("mediapipe")
    detector = create_detector("mediapipe")
    yield detector
    detector.close()


# Places in the 512 x 512 astronaut, read off the picture.
_LEFT_EYE, _RIGHT_EYE = np.array([247.0, 103.5]), np.array([203.0, 101.0])


def _check_astronaut(person, scale=1.0, shift=(0.0, 0.0)):
    assert person.face.layout == "mediapipe478" and person.face.points.shape == (478, 2)
    # 468 and 473 are the irises of the right and the left eye.
    for index, place in ((468, _RIGHT_EYE), (473, _LEFT_EYE)):
        assert np.linalg.norm((person.face.points[index] - shift) / scale - place) < 3
    assert person.face.confidence.min() >= 0 and person.face.confidence.max() <= 1
    # The tip of the nose is nearer than the cheek's edge.
    assert person.face.depth[1] < person.face.depth[234]
    body = person.body
    assert body.layout == "mediapipe33" and body.world.shape == (33, 3)
    # The person's left shoulder (11) is on the picture's right; the shoulders lie below the eyes.
    assert body.points[11, 0] > body.points[12, 0]
    assert body.points[[11, 12], 1].min() > person.face.points[:, 1].mean()


def test_astronaut(mediapipe, astronaut):
    found = detect_photo(_photo(astronaut), mediapipe)
    _check_astronaut(found.person)
    assert found.people == 1
    assert found.mask.shape == (512, 512) and found.mask.dtype == np.float32
    assert found.mask[300, 200] > 0.8 and found.mask[150, 480] < 0.2
    x0, y0, x1, y1 = found.person.box
    assert 0 <= x0 < 150 and y0 < 60 and 300 < x1 <= 512 and y1 > 450


def test_small_person_in_a_large_picture(mediapipe, astronaut):
    small = resize_area(astronaut[:, 60:400], (170, 256))
    canvas = np.full((900, 1400, 3), 120, np.uint8)
    canvas[560:816, 1000:1170] = small
    found = detect_photo(_photo(canvas), mediapipe)
    _check_astronaut(found.person, 0.5, (1000 - 30, 560))
    # The mask is made on a crop round the person and is empty elsewhere.
    assert found.mask[:, :700].max() == 0 and found.mask[700:800, 1050:1100].mean() > 0.8


def test_hands_are_on_the_right_side_and_a_mirrored_picture_swaps_them(mediapipe):
    template = load_template()
    samples = accuracy_set(TEST_SEEDS.start + 60_000, 8, template, size=512)
    view = next(sample.view for sample in samples if all(sample.view.hands_visible))
    mediapipe.reset()
    plain, mirrored = mediapipe.detect(view.rgb).person, mediapipe.detect(view.rgb[:, ::-1]).person
    for side, other in (("left", "right"), ("right", "left")):
        knuckle = torch.from_numpy(view.joints3d[[template.joint(f"{side}_middle1")]])
        place = view.camera.project(knuckle)[0][0].numpy()
        for hand, truth in (
            (getattr(plain, f"{side}_hand"), place),
            (getattr(mirrored, f"{other}_hand"), place * (-1, 1) + (512, 0)),
        ):
            assert np.linalg.norm(hand.points[9] - truth) < 25
            assert hand.confidence.min() > 0.4 and hand.points.shape == (21, 2)
    assert mirrored.body.points[11, 0] > mirrored.body.points[12, 0]


def test_two_people_the_larger_is_taken(mediapipe, astronaut):
    person = astronaut[:, 60:400]
    canvas = np.full((512, 900, 3), 90, np.uint8)
    canvas[172:, 20:246] = resize_area(person, (226, 340))
    canvas[:, 500:840] = person
    found = detect_photo(_photo(canvas), mediapipe)
    assert found.people == 2
    _check_astronaut(found.person, 1.0, (440, 0))
    assert found.person.box[0] > 400
    assert "2 people" in photo_notes(_photo(canvas), found)[0]
    mediapipe.reset()
    near = mediapipe.detect(canvas, np.array([20.0, 180.0, 246.0, 512.0]))
    _check_astronaut(near.person, 226 / 340, (20 - 60 * 226 / 340, 172))


def test_no_person(mediapipe, astronaut):
    data = pytest.importorskip("skimage.data")
    noise = np.random.default_rng(0).integers(0, 255, (400, 600, 3), dtype=np.uint8)
    # The suit without the face is no usable person either.
    for pixels in (data.coffee(), noise, np.zeros((64, 64, 3), np.uint8), astronaut[330:, 300:]):
        with pytest.raises(NoPersonError) as caught:
            detect_photo(_photo(pixels), mediapipe)
        assert "picture.png" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("turn", [-1.0, 0.0, 1.0])
def test_only_a_hand(mediapipe, turn):
    template = load_template()
    body = EHM(template)(Identity.neutral(template), Pose.rest(template))
    wrist = Rotation.from_euler("zx", [np.pi / 2, turn * np.pi / 2])  # fingers up; palm, edge or back in view
    knuckle = body.joints[0, template.joint("left_middle1")]
    vertices = (body.vertices[0] - knuckle) @ torch.from_numpy(wrist.as_matrix()).float().T
    skin = torch.tensor([0.85, 0.65, 0.55]).expand(len(template.faces), 3)
    camera = Camera.frontal(512)
    vertices = vertices + torch.tensor([0, 0.02, -4.0])
    rgba = shade_mesh(vertices, template.faces, camera, face_colors=skin, ambient=0.5)
    picture = over(rgba, (0.35, 0.4, 0.45)).numpy()
    assert len(mediapipe._hands_in(picture, np.array([0.0, 0, 512, 512]))) == 1
    with pytest.raises(NoPersonError, match="picture.png"):
        detect_photo(_photo(picture), mediapipe)


def test_only_a_face(mediapipe, astronaut):
    found = detect_photo(_photo(astronaut[45:175, 160:300]), mediapipe)
    assert np.linalg.norm(found.person.face.points[473] + (160, 45) - _LEFT_EYE) < 3
    assert found.person.left_hand is None and found.person.right_hand is None


def test_clip_is_followed_across_cuts(mediapipe, astronaut, tmp_path):
    rng = np.random.default_rng(0)
    other = np.ascontiguousarray(resize_area(pytest.importorskip("skimage.data").coffee(), (512, 512)))
    frames = []
    for t in range(22):
        if t < 8:
            canvas = np.roll(astronaut, 3 * t, 1)
        elif t < 14:
            canvas = other
        else:
            canvas = np.full((512, 512, 3), (30, 60, 90), np.uint8)
            canvas[100:484, 40 + 4 * t : 295 + 4 * t] = resize_area(astronaut[:, 60:400], (255, 384))
        frames.append(np.clip(canvas + rng.normal(0, 2, canvas.shape), 0, 255).astype(np.uint8))
    with VideoWriter(tmp_path / "clip.mp4", 25, (512, 512)) as writer:
        for frame in frames:
            writer.write(frame)
    steps = []
    clip = detect_video(VideoReader(tmp_path / "clip.mp4"), mediapipe, lambda done, total: steps.append(done))
    assert len(clip) == 22 and clip.frame_indices.tolist() == list(range(22))
    assert clip.shots.tolist() == [0] * 8 + [1] * 6 + [2] * 8
    assert clip.present.tolist() == [True] * 8 + [False] * 6 + [True] * 8
    assert steps == list(range(1, 23))
    assert any("frames 8-13" in note for note in clip.notes)
    for t in (2, 7):
        _check_astronaut(clip.frames[t].person, 1.0, (3 * t, 0))
    _check_astronaut(clip.frames[20].person, 0.75, (40 + 80 - 45, 100))
    assert clip.media.width == 512 and clip.fps == 25 and clip.detector == "mediapipe"


def test_somebody_else_after_a_cut_is_not_followed(tmp_path):
    # A detector that finds a face in every frame: only the colours tell that the second shot shows another.
    from guava.tracking.detectors import FrameDetections, PersonDetection, PointSet

    rng = np.random.default_rng(0)
    face = rng.uniform(-20, 20, (478, 2)) + (64, 40)

    class Everywhere:
        name = "fake"

        def detect(self, image, near=None, *, mask=True):
            points = PointSet("mediapipe478", face, np.ones(478))
            person = PersonDetection(np.array([30.0, 10, 100, 128]), 1.0, points, None, None, None)
            return FrameDetections(person, 1, None)

        def reset(self):
            pass

    def scene(skin, hair, shirt, background):
        picture = np.full((128, 128, 3), background, np.uint8)
        picture[10:30, 40:90], picture[30:62, 44:84], picture[70:, 30:100] = hair, skin, shirt
        return picture

    first = scene((220, 170, 140), (60, 40, 30), (40, 40, 160), (90, 120, 90))
    second = scene((120, 80, 60), (10, 10, 10), (200, 200, 40), (20, 20, 20))
    darker = (first * 0.75).astype(np.uint8)
    darker[:, :25] = darker[:, 105:] = (90, 20, 120)
    with VideoWriter(tmp_path / "c.mp4", 25, (128, 128)) as writer:
        for picture in [first] * 8 + [second] * 8 + [darker] * 8:
            writer.write(picture)
    clip = detect_video(VideoReader(tmp_path / "c.mp4"), Everywhere())
    assert clip.shots.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert clip.present.tolist() == [True] * 8 + [False] * 8 + [True] * 8
    assert any("frames 8-15 (somebody else is shown)" in note for note in clip.notes)


def test_somebody_else_in_the_same_shot_is_not_followed(tmp_path):
    """One comes, goes, and another comes; then the first one returns. There is no cut."""
    from guava.tracking.detectors import FrameDetections, PersonDetection, PointSet

    rng = np.random.default_rng(0)
    face = rng.uniform(-9, 9, (478, 2)) + (64, 40)
    background = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)

    class Somebody:
        name = "fake"

        def detect(self, image, near=None, *, mask=True):
            if np.abs(image[36:44, 66:72].astype(int) - background[40, 68]).mean() < 20:
                return FrameDetections(None, 0, None)
            points = PointSet("mediapipe478", face, np.ones(478))
            person = PersonDetection(np.array([50.0, 25, 80, 90]), 1.0, points, None, None, None)
            return FrameDetections(person, 1, None)

        def reset(self):
            pass

    def scene(skin, hair, shirt):
        picture = background.copy()
        picture[25:36, 54:74], picture[32:50, 55:73], picture[54:80, 50:78] = hair, skin, shirt
        return picture

    first = scene((220, 170, 140), (60, 40, 30), (40, 40, 160))
    second = scene((120, 80, 60), (10, 10, 10), (200, 200, 40))
    with VideoWriter(tmp_path / "c.mp4", 25, (128, 128)) as writer:
        for picture in [first] * 8 + [background] * 20 + [second] * 8 + [background] * 4 + [first] * 8:
            writer.write(picture)
    clip = detect_video(VideoReader(tmp_path / "c.mp4"), Somebody())
    assert clip.shots.max() == 0
    assert clip.present.tolist() == [True] * 8 + [False] * 32 + [True] * 8


def test_clip_without_anybody(mediapipe, tmp_path):
    with VideoWriter(tmp_path / "empty.mp4", 25, (128, 96)) as writer:
        for _ in range(3):
            writer.write(np.full((96, 128, 3), 80, np.uint8))
    with pytest.raises(NoPersonError, match="empty.mp4"):
        detect_video(VideoReader(tmp_path / "empty.mp4"), mediapipe)


def test_quiet(astronaut, capfd):
    pytest.importorskip("mediapipe")
    detector = create_detector("mediapipe")
    box = detector.detect(astronaut).person.box
    detector.detect(astronaut, box)
    detector.reset()
    detector.detect(astronaut, box)
    detector.close()
    captured = capfd.readouterr()
    assert captured.err == "" and captured.out == ""


def _without(monkeypatch, error, package="mediapipe"):
    real = builtins.__import__

    def fail(name, *arguments, **options):
        if name == package or name.startswith(package + "."):
            raise error
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", fail)


def test_import_errors_say_what_to_do(monkeypatch):
    _without(monkeypatch, ModuleNotFoundError("No module named 'mediapipe'", name="mediapipe"))
    with pytest.raises(MissingDependencyError, match="guava-avatar|no build for Python"):
        import_mediapipe()
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    with pytest.raises(MissingDependencyError, match="no build for Python 3.13"):
        import_mediapipe()
    listed = {info.name: info for info in available_detectors()}
    assert not listed["mediapipe"].usable and "3.13" in listed["mediapipe"].reason


@pytest.mark.parametrize(
    "error, hint",
    [
        (ImportError("libGL.so.1: cannot open shared object file"), "apt-get install libgl1"),
        (ImportError("libEGL.so.1: cannot open shared object file"), "apt-get install libgl1"),
        (ModuleNotFoundError("No module named 'cv2'", name="cv2"), "Install it again"),
        (AttributeError("_ARRAY_API not found"), "numpy < 2"),
    ],
)
def test_broken_installations_say_what_to_do(monkeypatch, error, hint):
    _without(monkeypatch, error)
    with pytest.raises(GuavaError, match=hint) as caught:
        import_mediapipe()
    assert "\n" not in str(caught.value)


def test_a_release_without_models_says_what_to_do(monkeypatch):
    newer = types.ModuleType("mediapipe")
    newer.__version__ = "0.10.99"
    monkeypatch.setitem(sys.modules, "mediapipe", newer)
    with pytest.raises(GuavaError, match="0.10.99 carries no models.*mediapipe==0.10.21|use Python 3"):
        import_mediapipe()
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    with pytest.raises(GuavaError, match="no build for Python 3.14"):
        import_mediapipe()


def test_stderr_comes_back_after_threads_held_it_at_once(capfd):
    def hold(k):
        for _ in range(20):
            with quiet_stderr():
                os.write(2, b"held back")
                time.sleep(0.0005 * k)

    threads = [threading.Thread(target=hold, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"shown")
    assert capfd.readouterr().err == "shown"


def test_missing_and_broken_onnxruntime_say_what_to_do(monkeypatch, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    _without(monkeypatch, ModuleNotFoundError("No module named 'onnxruntime'"), "onnxruntime")
    with pytest.raises(MissingDependencyError, match="onnx"):
        create_detector("simcc", model=tmp_path / "model.onnx")
    _without(monkeypatch, ImportError("numpy.core.multiarray failed to import"), "onnxruntime")
    with pytest.raises(GuavaError, match="cannot be imported"):
        create_detector("simcc", model=tmp_path / "model.onnx")


def test_unknown_detector_and_options():
    with pytest.raises(InputError, match="no detector 'openpose'"):
        create_detector("openpose")
    with pytest.raises(InputError, match="simcc"):
        create_detector("simcc")
    assert [info.name for info in available_detectors()] == ["mediapipe", "simcc"]


# SimCC

_WIDTH, _HEIGHT, _SPLIT = 48, 64, 2


def _peaks():
    """Bins of the 133 points: (133,) x in [0, 96), (133,) y in [0, 128)."""
    k = np.arange(133)
    return (7 + 5 * k) % (_WIDTH * _SPLIT), (3 + 11 * k) % (_HEIGHT * _SPLIT)


@pytest.fixture(scope="module")
def simcc_model(tmp_path_factory):
    """An ONNX file that puts out fixed distributions, plus 1e-9 times the input's mean so that it is read."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    x_bins, y_bins = _peaks()
    x = np.full((1, 133, _WIDTH * _SPLIT), 0.01, np.float32)
    y = np.full((1, 133, _HEIGHT * _SPLIT), 0.01, np.float32)
    x[0, np.arange(133), x_bins] = 0.9
    y[0, np.arange(133), y_bins] = 0.8
    x[0, 112:133] = 0.01  # the right hand is not seen: y is sure, x is not
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "tiny"], ["little"]),
        helper.make_node("Add", ["x0", "little"], ["simcc_x"]),
        helper.make_node("Add", ["y0", "little"], ["simcc_y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "simcc",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, _HEIGHT, _WIDTH])],
        [
            helper.make_tensor_value_info("simcc_x", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("simcc_y", TensorProto.FLOAT, None),
        ],
        [
            numpy_helper.from_array(x, "x0"),
            numpy_helper.from_array(y, "y0"),
            numpy_helper.from_array(np.float32([1e-9]), "tiny"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    path = tmp_path_factory.mktemp("simcc") / "model.onnx"
    onnx.save(model, path)
    return path


def test_simcc_points_by_hand(simcc_model):
    detector = create_detector("simcc", model=simcc_model)
    image = np.zeros((400, 300, 3), np.uint8)
    # Box 120 x 80 at (100, 200): the input is 48 x 64, so the width rules: 120 * 1.25 / 48 = 3.125 image
    # pixels an input pixel; the input's centre (24, 32) is the box's centre (160, 240).
    found = detector.detect(image, np.array([100.0, 200.0, 220.0, 280.0]))
    x_bins, y_bins = _peaks()
    expected = np.stack(
        [160 + (x_bins / 2 + 0.5 - 24) * 3.125, 240 + (y_bins / 2 + 0.5 - 32) * 3.125], axis=1
    )
    person = found.person
    assert np.allclose(person.body.points, expected[:17], atol=1e-6)
    assert np.allclose(person.face.points, expected[23:91], atol=1e-6)
    assert np.allclose(person.left_hand.points, expected[91:112], atol=1e-6)
    # Point 0 with plain numbers: bins (7, 3) -> input (4, 2) -> image (160 - 62.5, 240 - 93.75).
    assert np.allclose(person.body.points[0], [97.5, 146.25])
    assert (person.body.layout, person.face.layout, person.left_hand.layout) == ("coco17", "ibug68", "hand21")
    assert person.right_hand is None
    assert person.face.confidence.max() == pytest.approx(0.8, abs=1e-5)
    assert found.people == 1 and found.mask is None and person.body.depth is None


def test_simcc_whole_picture_and_outside_points(simcc_model):
    detector = create_detector("simcc", model=simcc_model)
    found = detector.detect(np.zeros((128, 96, 3), np.uint8))
    # The padded picture is 1.25 * 96 wide: 2.5 image pixels an input pixel. Points outside it are not sure.
    x_bins, y_bins = _peaks()
    x, y = 48 + (x_bins / 2 + 0.5 - 24) * 2.5, 64 + (y_bins / 2 + 0.5 - 32) * 2.5
    inside = (x >= 0) & (x <= 96) & (y >= 0) & (y <= 128)
    assert not inside[23:91].all() and inside[23:91].any()
    assert np.array_equal(found.person.face.confidence > 0, inside[23:91])


def test_simcc_normalisation_reaches_the_model(simcc_model):
    detector = create_detector("simcc", model=simcc_model)
    seen = []
    run = detector._raw
    detector._raw = lambda batch, *rest: (seen.append(batch), run(batch, *rest))[1]
    detector.detect(np.full((64, 48, 3), (255, 0, 128), np.uint8))
    middle = seen[0][0, :, 32, 24]
    assert np.allclose(
        middle, [(255 - 123.675) / 58.395, -116.28 / 57.12, (128 - 103.53) / 57.375], atol=1e-5
    )
    assert seen[0].shape == (1, 3, 64, 48) and seen[0].dtype == np.float32


def test_simcc_refuses_other_models(tmp_path, simcc_model):
    with pytest.raises(InputError, match="no model file"):
        create_detector("simcc", model=tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no onnx")
    with pytest.raises(InputError, match="cannot be loaded"):
        create_detector("simcc", model=tmp_path / "bad.onnx")
    onnx = pytest.importorskip("onnx")
    model = onnx.load(simcc_model)
    del model.graph.output[1]
    onnx.save(model, tmp_path / "one.onnx")
    with pytest.raises(InputError, match="SimCC"):
        create_detector("simcc", model=tmp_path / "one.onnx")
