"""Tracking (paper Sec. 3.1, B.5): from a picture or a video to template parameters."""
