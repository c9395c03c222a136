"""Guava: one photo in, an expressive, animatable upper-body avatar of 3D Gaussians out.

The packages follow the data's way::

    photo -> tracking -> body -> model -> avatar -> rendering
                                   motion ----^
                                   synth (renders of the template with known truth)

Conventions, everywhere:

* World: metres, right-handed, +y up, the template in its rest pose looks along +z.
* Cameras: OpenCV axes (x right, y down, z forward), column vectors, ``X_cam = R @ X + t``.
* Pixels: x right, y down; the centre of the top-left pixel is (0.5, 0.5).
* Rotations: axis-angle in radians for joints; unit quaternions are (w, x, y, z).
* Colours: RGB in [0, 1] as displayed (sRGB), not premultiplied, unless a docstring says so.
"""

__version__ = "0.1.0"
