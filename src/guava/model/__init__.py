"""Reconstruction (paper Sec. 3.2): from a tracked picture to the canonical avatar."""
