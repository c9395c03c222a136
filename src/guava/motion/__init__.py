"""Motions: clips, files, conversion from keypoints."""

from guava.motion.motion import Motion

__all__ = ["Motion"]
