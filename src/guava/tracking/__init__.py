"""Tracking (paper Sec. 3.1, B.5): from a picture or a video to template parameters."""

from guava.tracking.config import BodyFitConfig, FaceFitConfig, TrackingConfig
from guava.tracking.file import load_tracked, save_tracked
from guava.tracking.keypoints import fit_keypoints
from guava.tracking.sequence import FitQuality, Keypoints, SourceMedia, TrackedSequence
from guava.tracking.track import track_detections, track_image, track_video

__all__ = [
    "BodyFitConfig",
    "FaceFitConfig",
    "FitQuality",
    "Keypoints",
    "SourceMedia",
    "TrackedSequence",
    "TrackingConfig",
    "fit_keypoints",
    "load_tracked",
    "save_tracked",
    "track_detections",
    "track_image",
    "track_video",
]
