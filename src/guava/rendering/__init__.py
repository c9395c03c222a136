"""Rendering (paper Sec. 3.3): Gaussian splatting of any number of channels, and the mesh z-buffer."""
