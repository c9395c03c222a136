"""Any COCO-WholeBody SimCC model in ONNX form that the user points to (DWPose, RTMW).

SimCC models classify each coordinate over bins, ``split`` bins a pixel of the model's input: one
distribution over x and one over y for each point. They are top-down and have no person detector of their own.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from guava.errors import GuavaError, InputError, MissingDependencyError
from guava.photo.image import warp_affine
from guava.tracking.detectors.base import FrameDetections, PersonDetection, PointSet

POINTS = 133
_PADDING = 1.25  # the models were trained on boxes grown by this factor
_MEAN = np.array([123.675, 116.28, 103.53])  # ImageNet, RGB, 0..255
_STD = np.array([58.395, 57.12, 57.375])
_PARTS = {  # COCO-WholeBody's order
    "body": (slice(0, 17), "coco17"),
    "face": (slice(23, 91), "ibug68"),
    "left_hand": (slice(91, 112), "hand21"),
    "right_hand": (slice(112, 133), "hand21"),
}


class SimCCDetector:
    """One person's 133 points from a SimCC model: body "coco17", face "ibug68", hands "hand21".

    The person is looked for in the ``near`` box, or in the whole picture. There is no depth, no mask, and
    ``people`` is 0 or 1.

    A point's confidence is the smaller of its two peaks, clipped to [0, 1] (the customary models put out
    peaks that behave like probabilities; the larger would be sure of a point of which only one coordinate is
    known).

    Args:
        model: Path of the ONNX file. One input (1 or N, 3, H, W), RGB; two outputs (N, 133, W * split) for x
            and (N, 133, H * split) for y, told apart by their lengths or, for square inputs, taken in this
            order.
        threshold: Parts whose mean confidence is below it count as absent.
        threads: Of onnxruntime.

    Raises:
        InputError: There is no such file, or it is no COCO-WholeBody SimCC model.
        MissingDependencyError: onnxruntime is not installed.
        GuavaError: onnxruntime is installed but cannot be imported.
    """

    name = "simcc"

    def __init__(self, model: str | os.PathLike, threshold: float = 0.3, threads: int = 2):
        path = Path(model)
        if not path.is_file():
            raise InputError(
                f"There is no model file '{path}'.", "Point to a COCO-WholeBody SimCC model (DWPose, RTMW)."
            )
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise MissingDependencyError("onnxruntime", "onnx", "The detector 'simcc'") from error
        except Exception as error:  # noqa: BLE001 - a build for another numpy raises anything
            raise GuavaError(
                f"The package 'onnxruntime' is installed but cannot be imported ({error}).",
                'Install it again with: pip install -U "guava-avatar[onnx]"',
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # noqa: BLE001 - onnxruntime's error classes are private
            line = " ".join(str(error).split())[:160]
            raise InputError(f"'{path}' cannot be loaded as an ONNX model ({line}).") from error
        self._threshold = threshold
        file = path.stat()
        self.version = f"{path.name} {file.st_size} {file.st_mtime_ns} {threshold}"
        self._input, self._width, self._height = self._input_size(path)
        self._split = self._check_outputs(path)

    def _input_size(self, path: Path) -> tuple[str, int, int]:
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else None
        good = shape and len(shape) == 4 and shape[1] == 3 and all(isinstance(n, int) for n in shape[2:])
        if not good:
            raise InputError(
                f"'{path}' is no SimCC model: it needs one input (N, 3, height, width) of fixed size.",
                "Export it with a fixed input size.",
            )
        return inputs[0].name, int(shape[3]), int(shape[2])

    def _check_outputs(self, path: Path) -> tuple[float, float]:
        """Bins a pixel of x and y, read off a trial run (output shapes may be left open in the file)."""
        x, y = self._raw(np.zeros((1, 3, self._height, self._width), np.float32), path)
        split = x.shape[1] / self._width, y.shape[1] / self._height
        if abs(split[0] - split[1]) > 1e-6 or split[0] < 1:
            raise InputError(
                f"'{path}' is no SimCC model: {x.shape[1]} and {y.shape[1]} bins do not fit its input of "
                f"{self._width}x{self._height}."
            )
        return split

    def _raw(self, batch: np.ndarray, path: Path | str = "the model") -> tuple[np.ndarray, np.ndarray]:
        outputs = [np.asarray(o) for o in self._session.run(None, {self._input: batch})]
        if len(outputs) != 2 or any(o.ndim != 3 or o.shape[1] != POINTS for o in outputs):
            shapes = [o.shape for o in outputs]
            raise InputError(
                f"'{path}' is no COCO-WholeBody SimCC model: it gives {shapes}, not 2 x (N, {POINTS}, bins).",
                "Use DWPose or RTMW with 133 points.",
            )
        x, y = outputs[0][0], outputs[1][0]
        if x.shape[1] * self._height != y.shape[1] * self._width and (
            y.shape[1] * self._height == x.shape[1] * self._width
        ):
            x, y = y, x
        return x, y

    def reset(self) -> None:
        """Nothing is kept between frames."""

    def detect(
        self, image: np.ndarray, near: np.ndarray | None = None, *, mask: bool = True
    ) -> FrameDetections:
        """See :class:`guava.tracking.detectors.base.Detector`."""
        height, width = image.shape[:2]
        box = np.array([0.0, 0.0, width, height]) if near is None else np.asarray(near, dtype=np.float64)
        to_input = self.crop_matrix(box)
        crop = warp_affine(image, to_input, (self._width, self._height))
        batch = ((crop - _MEAN) / _STD).transpose(2, 0, 1)[None].astype(np.float32)
        points, confidence = self.decode(*self._raw(batch))
        inverse = np.linalg.inv(to_input)
        points = points @ inverse[:2, :2].T + inverse[:2, 2]
        confidence = confidence * ((points >= 0) & (points <= (width, height))).all(1)
        sets: dict[str, PointSet | None] = {}
        for part, (where, layout) in _PARTS.items():
            # Half bodies lack legs: the five surest body points decide.
            deciding = np.sort(confidence[where])[-5:] if part == "body" else confidence[where]
            sure = deciding.mean() >= self._threshold
            sets[part] = PointSet(layout, points[where], confidence[where]) if sure else None
        if sets["face"] is None and sets["body"] is None:
            return FrameDetections(None, 0, None)
        shown = points[confidence >= self._threshold]
        if len(shown) == 0:
            return FrameDetections(None, 0, None)
        tight = np.concatenate([shown.min(0), shown.max(0)])
        score = float(np.mean(confidence[confidence >= self._threshold]))
        return FrameDetections(PersonDetection(tight, score, **sets), 1, None)

    def crop_matrix(self, box: np.ndarray) -> np.ndarray:
        """(3, 3) map of image pixels to the model's input: the box, padded by 1.25, fits into it."""
        center = (box[:2] + box[2:]) / 2
        size = np.maximum(box[2:] - box[:2], 1.0)
        scale = 1.0 / (_PADDING * max(size[0] / self._width, size[1] / self._height))
        shift = np.array([self._width, self._height]) / 2 - scale * center
        return np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1.0]])

    def decode(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distributions (133, bins) -> points (133, 2) in the model's input pixels and confidence (133,).

        Bin b stands for the coordinate b / split in the trainers' convention, in which the centre of the
        first pixel is 0; half a pixel is added for ours.
        """
        points = np.stack([x.argmax(1) / self._split[0], y.argmax(1) / self._split[1]], axis=1) + 0.5
        confidence = np.clip(np.minimum(x.max(1), y.max(1)), 0.0, 1.0)
        return points.astype(np.float64), confidence.astype(np.float64)
