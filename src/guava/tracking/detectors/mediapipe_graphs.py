"""Running MediaPipe's graphs: which there are, starting them quietly, and how long each model took.

MediaPipe's "holistic" solution reads pose, face mesh and both hands in every frame, though face and hands are
read once more, and better, on enlarged crops. Its parts are therefore run one by one: the pose alone, and its
second-rate face and hands only where nothing else found them. They are the same subgraphs, with the same
results.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np

from guava.errors import GuavaError, MissingDependencyError

FACE_SCORE = 0.5
"""Least score of a detected face."""
POSE_HEAD = tuple(range(11))
"""Pose points from which MediaPipe's own pose -> face subgraph starts."""
POSE_HANDS = ((15, 17, 19), (16, 18, 20))
"""Wrist, pinky and index finger, left then right: from which its pose -> hand subgraph starts."""

_LANDMARKS = ("pose_landmarks", "multi_hand_landmarks", "multi_face_landmarks", "landmarks")
"""Outputs from which a graph goes on in the next frame."""

_STDERR_LOCK = threading.RLock()

_HAND_OF_POSE = """
input_stream: "IMAGE:image"
input_stream: "HAND_LANDMARKS_FROM_POSE:pose_points"
output_stream: "HAND_LANDMARKS:landmarks"
node {
  calculator: "HandLandmarksFromPoseCpu"
  input_stream: "IMAGE:image"
  input_stream: "HAND_LANDMARKS_FROM_POSE:pose_points"
  output_stream: "HAND_LANDMARKS:landmarks"
}
"""
_FACE_OF_POSE = """
input_stream: "IMAGE:image"
input_stream: "FACE_LANDMARKS_FROM_POSE:pose_points"
input_side_packet: "REFINE_LANDMARKS:refine_landmarks"
output_stream: "FACE_LANDMARKS:landmarks"
node {
  calculator: "FaceLandmarksFromPoseCpu"
  input_stream: "IMAGE:image"
  input_stream: "FACE_LANDMARKS_FROM_POSE:pose_points"
  input_side_packet: "REFINE_LANDMARKS:refine_landmarks"
  output_stream: "FACE_LANDMARKS:landmarks"
}
"""


class Graphs:
    """MediaPipe's graphs by key "kind/mode", built when first used.

    Graphs of the mode "clip" keep state between frames. Different keys may run in different threads at once;
    MediaPipe lets go of Python's lock while it works.

    Attributes:
        seconds: Wall time by kind so far; where graphs ran beside each other the sum exceeds the clock's.
        calls: Runs by kind.
        version: MediaPipe's.

    Raises:
        MissingDependencyError: mediapipe is not installed, or has no build for this Python.
        GuavaError: It is installed but cannot be used.
    """

    def __init__(self) -> None:
        self._solutions = import_mediapipe()
        self.version = sys.modules["mediapipe"].__version__
        self._graphs: dict[str, Any] = {}
        self._stale: set[str] = set()
        self._holding: set[str] = set()
        self._times_lock = threading.Lock()
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def run(self, key: str, image: np.ndarray, pose_points: list | None = None):
        """Run one graph.

        Args:
            key: "kind/mode".
            image: (H, W, 3) uint8.
            pose_points: Pose landmarks in the image; only for "hand_of_pose" and "face_of_pose".

        Returns:
            MediaPipe's result, with a field for every output.
        """
        start = time.perf_counter()
        if key in self._graphs and key not in self._stale:
            result = self._process(key, image, pose_points)
        else:
            # Graphs write to the C-level stderr whenever they start, from threads of their own; only
            # "process" waits for those, so the first run belongs in here too.
            with quiet_stderr():
                if key not in self._graphs:
                    self._graphs[key] = self._build(key)
                else:
                    self._graphs[key].reset()
                self._stale.discard(key)
                result = self._process(key, image, pose_points)
        kind = key.partition("/")[0]
        held = any(getattr(result, name, None) for name in _LANDMARKS)
        with self._times_lock:
            (self._holding.add if held else self._holding.discard)(key)
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - start
            self.calls[kind] = self.calls.get(kind, 0) + 1
        return result

    def _process(self, key: str, image: np.ndarray, pose_points: list | None):
        if pose_points is None:
            return self._graphs[key].process(image)
        from mediapipe.framework.formats import landmark_pb2

        points = landmark_pb2.NormalizedLandmarkList(landmark=pose_points)
        return self._graphs[key].process({"image": image, "pose_points": points})

    def restart(self, key: str) -> None:
        """Let a graph forget before its next run. Starting costs as much as several frames, and a graph that
        found nothing last has nothing to forget."""
        if key in self._holding:
            self._stale.add(key)

    def restart_clips(self) -> None:
        """Let all graphs with state forget."""
        for key in self._graphs:
            if key.endswith("/clip"):
                self.restart(key)

    def close(self) -> None:
        """Free the graphs; they are built again when used."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._stale.clear()
        self._holding.clear()

    def _build(self, key: str):
        kind, _, mode = key.partition("/")
        still = mode != "clip"
        s = self._solutions
        if kind == "faces":
            return s.face_detection.FaceDetection(min_detection_confidence=FACE_SCORE, model_selection=1)
        if kind == "close_faces":
            return s.face_detection.FaceDetection(min_detection_confidence=FACE_SCORE, model_selection=0)
        if kind in ("pose", "legs"):
            # model_complexity=2 would download a model.
            return s.pose.Pose(
                static_image_mode=still,
                model_complexity=1,
                smooth_landmarks=False,
                min_detection_confidence=0.15 if mode == "weak" else 0.5,
            )
        if kind == "mesh":
            return s.face_mesh.FaceMesh(
                static_image_mode=still, max_num_faces=1, refine_landmarks=True, min_detection_confidence=0.4
            )
        if kind in ("hands", "hand0", "hand1"):
            return s.hands.Hands(
                static_image_mode=still,
                max_num_hands=2 if kind == "hands" else 1,
                model_complexity=1,
                min_detection_confidence=0.4,
            )
        if kind == "selfie":
            return s.selfie_segmentation.SelfieSegmentation(model_selection=0)
        if kind in ("hand0_of_pose", "hand1_of_pose"):
            return self._own(_HAND_OF_POSE)
        if kind == "face_of_pose":
            return self._own(_FACE_OF_POSE, {"refine_landmarks": True})
        raise AssertionError(kind)

    def _own(self, text: str, side_inputs: dict[str, Any] | None = None):
        """A graph made of MediaPipe's own subgraphs, from its text."""
        from google.protobuf import text_format
        from mediapipe.framework import calculator_pb2
        from mediapipe.python.solution_base import SolutionBase

        graph = text_format.Parse(text, calculator_pb2.CalculatorGraphConfig())
        return SolutionBase(graph_config=graph, side_inputs=side_inputs)


def import_mediapipe():
    """The ``mediapipe.solutions`` module, or an error that says what to do.

    Raises:
        MissingDependencyError: Not installed, or no build for this Python.
        GuavaError: Installed, but it cannot be imported, or it is a release without the models.
    """
    for name, level in (("GLOG_minloglevel", "3"), ("TF_CPP_MIN_LOG_LEVEL", "3")):
        os.environ.setdefault(name, level)
    try:
        with quiet_stderr():
            import mediapipe
    except ModuleNotFoundError as error:
        if error.name != "mediapipe":
            raise _broken(error, 'Install it again with: pip install "guava-avatar[track]"') from error
        missing = MissingDependencyError("mediapipe", "track", "The detector 'mediapipe'")
        missing.hint = _too_new_python() or missing.hint
        raise missing from error
    except ImportError as error:
        if "cannot open shared object file" in str(error):
            hint = "Install the system libraries: apt-get install libgl1 libglib2.0-0"
        else:
            hint = 'Install it again with: pip install "guava-avatar[track]"'
        raise _broken(error, hint) from error
    except Exception as error:  # noqa: BLE001 - numpy 2 or protobuf make its import raise anything
        raise _broken(error, 'It needs numpy < 2: pip install "guava-avatar[track]"') from error
    if not hasattr(mediapipe, "solutions"):
        version = getattr(mediapipe, "__version__", "of unknown version")
        raise GuavaError(
            f"The package 'mediapipe' is installed, but {version} carries no models.",
            _too_new_python() or "Install the last release that does: pip install mediapipe==0.10.21",
        )
    return mediapipe.solutions


def _too_new_python() -> str:
    if sys.version_info < (3, 13):
        return ""
    version = ".".join(str(n) for n in sys.version_info[:2])
    return f"mediapipe 0.10.21 has no build for Python {version}; use Python 3.10, 3.11 or 3.12."


def _broken(error: Exception, hint: str) -> GuavaError:
    return GuavaError(f"The package 'mediapipe' is installed but cannot be imported ({error}).", hint)


@contextlib.contextmanager
def quiet_stderr():
    """Hold back what C++ libraries write to stderr; shown only if something fails.

    File descriptor 2 is the whole process's, so one thread at a time may exchange it.
    """
    with _STDERR_LOCK:
        try:
            sys.stderr.flush()
            saved = os.dup(2)
        except (OSError, AttributeError, ValueError):
            yield
            return
        with tempfile.TemporaryFile() as held:
            os.dup2(held.fileno(), 2)
            try:
                yield
            except Exception:  # noqa: BLE001 - raised again, once what was held back is shown
                held.seek(0)
                os.write(saved, held.read())
                raise
            finally:
                os.dup2(saved, 2)
                os.close(saved)
