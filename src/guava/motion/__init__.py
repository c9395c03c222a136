"""Motions: clips, files, conversion from keypoints."""

from guava.motion.file import for_template, load_motion, save_motion
from guava.motion.motion import Motion

__all__ = ["Motion", "for_template", "load_motion", "save_motion"]
