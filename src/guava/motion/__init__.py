"""Motions: clips, files, conversion from keypoints, and driving an avatar with them."""

from guava.motion.apply import Performance, apply_motion, eased
from guava.motion.clips import CLIP_NAMES, make_clip
from guava.motion.file import for_template, load_motion, save_motion
from guava.motion.keypoints import motion_of, read_keypoints, track_keypoints
from guava.motion.motion import Motion
from guava.motion.reenactment import Reenactment, reenact
from guava.motion.sampling import held, resample

__all__ = [
    "CLIP_NAMES", "Motion", "Performance", "Reenactment", "apply_motion", "eased", "for_template", "held",
    "load_motion", "make_clip", "motion_of", "read_keypoints", "reenact", "resample", "save_motion",
    "track_keypoints",
]
