"""The animation section of native/include/guava_native.h, for ctypes: structs, and one way to call.

What the functions do is said where they are used: guava.body.person, guava.avatar.posing,
guava.rendering.frame.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from guava import native

MAX_JOINTS = 256


class Body(Structure):
    """guava_body"""

    _fields_ = [
        ("vertices", c_int32), ("joints", c_int32), ("influences", c_int32),
        ("parents", c_void_p), ("rest_vertices", c_void_p), ("rest_joints", c_void_p),
        ("rotations", c_void_p), ("indices", c_void_p), ("weights", c_void_p),
        ("translation", c_float * 3),
    ]


class BodyPose(Structure):
    """guava_body_pose"""

    _fields_ = [(name, c_void_p) for name in ("joints", "joint_transforms", "vertices", "transforms")]


class PoseScene(Structure):
    """guava_pose_scene"""

    _fields_ = [
        ("count", c_int64),
        *((name, c_int32) for name in ("vertices", "faces", "joints", "influences", "mean_edge")),
        *(
            (name, c_void_p)
            for name in (
                "positions", "rotations", "scales", "barycentrics", "local_offset", "sigma",
                "triangle_rotation", "skin_weights", "skin_indices", "binding", "anchor", "triangles", "mesh",
                "transforms", "joint_transforms",
            )
        ),
        ("origin", c_float * 3),
    ]


class Posed(Structure):
    """guava_posed"""

    _fields_ = [(name, c_void_p) for name in ("means", "quaternions", "scales")]


class Frame(Structure):
    """guava_frame"""

    _fields_ = [
        *((name, c_int32) for name in ("width", "height", "samples", "channels", "glowing")),
        ("features", c_void_p), ("alpha", c_void_p), ("behind", c_void_p),
        ("background", c_float * 3),
        ("row_bytes", c_int64),
        ("rgb", c_void_p),
    ]


@cache
def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library, once the types of the functions that are called here are set."""
    for name, structs in (
        ("guava_pose_body", (Body, BodyPose)),
        ("guava_pose_gaussians", (PoseScene, Posed)),
        ("guava_frame_rgb8", (Frame,)),
    ):
        function = getattr(library, name)
        function.restype = c_int32
        function.argtypes = [c_void_p, *(POINTER(struct) for struct in structs)]
    return library


def call(name: str, *structs: Structure, misfit: str | None = None) -> None:
    """Call a function on a lent context; what it returns becomes an exception.

    Args:
        name: Of the function.
        structs: Its arguments, after the context.
        misfit: What is said of values that do not fit.

    Raises:
        NativeUnavailable: There is no library.
        ValueError: Values that do not fit.
        KeyboardInterrupt: It was cancelled.
        MemoryError: There was not enough.
    """
    function = getattr(_declared(native.library()), name)
    with native.context() as context:
        code = function(context.handle, *(byref(struct) for struct in structs))
        if code == native.INVALID_VALUE and misfit is not None:
            raise ValueError(misfit)
        context.check(code)


def pointer(tensor: Tensor, dtype: torch.dtype, *shape: int) -> int:
    """The address of a contiguous CPU tensor of this type and shape (-1: any length); an empty one's may be
    0.

    Raises:
        ValueError: It is another.
    """
    fits = len(tensor.shape) == len(shape) and all(
        wanted in (-1, there) for wanted, there in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(
            f"A native function needs a contiguous {dtype} CPU tensor {shape}, got {tensor.dtype} "
            f"{tuple(tensor.shape)} on '{tensor.device}'."
        )
    return tensor.data_ptr()


__all__ = ["MAX_JOINTS", "Body", "BodyPose", "Frame", "PoseScene", "Posed", "call", "pointer"]
