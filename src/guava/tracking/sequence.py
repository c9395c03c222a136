"""What tracking hands on: one record for a photo (T = 1) or a clip."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from guava.body import Identity, Pose
from guava.camera import Camera


@dataclass(frozen=True)
class Keypoints:
    """Detected points of one kind in crop pixels.

    Attributes:
        points: (T, K, 2); where ``confidence`` is 0 the coordinates mean nothing.
        confidence: (T, K) in [0, 1].
        depth: (T, K) relative depth in crop pixels, larger is farther from the camera; zeros if not given.
    """

    points: Tensor
    confidence: Tensor
    depth: Tensor


@dataclass(frozen=True)
class FitQuality:
    """How well the fitted template agrees with what was detected. NaN where there was nothing to compare.

    Attributes:
        face_error: (T,) mean distance of face landmarks, percent of the outer-eye distance.
        hand_error: (T, 2) mean distance of hand points, left and right, crop pixels at 512.
        body_error: (T,) mean distance of shoulders, elbows, wrists and hips, crop pixels at 512.
        mask_overlap: (T,) IoU of the mesh's silhouette with the person mask.
        notes: Sentences for people: what was not seen, who was followed, what was flagged.
    """

    face_error: Tensor
    hand_error: Tensor
    body_error: Tensor
    mask_overlap: Tensor
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceMedia:
    """The file that was tracked.

    Attributes:
        name: File name without folder.
        sha256: Of the file's bytes; "" when the frames did not come from a file.
        width, height: Pixels, orientation applied.
    """

    name: str
    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class TrackedSequence:
    """T tracked frames of one person. Frames are never dropped: where ``valid`` is False nobody was seen.

    All pixel quantities are in the square crop of ``camera.width`` pixels; ``crop_from_image`` maps to it.

    Attributes:
        identity: B = 1, shared by all frames.
        pose: B = T. At invalid frames the nearest valid frame's pose, for want of better.
        camera: Batched (T, ...).
        fps: Frames a second (nominal for variable rates); 0 for a still.
        timestamps: (T,) float64 seconds from the start.
        frame_indices: (T,) int64, the frame's number in the source file.
        valid: (T,) bool.
        shots: (T,) int64, counts up at every cut; smoothness never crosses one.
        crop_from_image: (T, 3, 3) image pixels -> crop pixels.
        face_boxes: (T, 4) x0, y0, x1, y1; NaN where absent.
        hand_boxes: (T, 2, 4) left and right hand of the person; NaN where absent.
        keypoints: By name: "face" (478 MediaPipe or 68 iBUG), "body", "left_hand", "right_hand" (21).
        quality: The report.
        media: What was tracked.
        template_hash: The template that the parameters belong to.
        expression_names: Unit names of ``pose.expression``.
        detector: Name of the detector used.
        masks: (T, S, S) uint8 person probability x 255 in the crop (S = ``camera.width``), as the detector
            gave it (not refined), 0 outside the image; None where the detector has no segmentation or a clip
            did not keep it. Reconstruction needs it for the frame it reconstructs from.
        template_name: The template's name; "" in older files.
        stages: [wall, CPU] seconds by stage of the tracking; empty in older files.
    """

    identity: Identity
    pose: Pose
    camera: Camera
    fps: float
    timestamps: Tensor
    frame_indices: Tensor
    valid: Tensor
    shots: Tensor
    crop_from_image: Tensor
    face_boxes: Tensor
    hand_boxes: Tensor
    keypoints: dict[str, Keypoints]
    quality: FitQuality
    media: SourceMedia
    template_hash: str
    expression_names: tuple[str, ...]
    detector: str
    masks: Tensor | None = None
    template_name: str = ""
    stages: dict[str, list[float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.pose.joints.shape[0]
