"""Gaussian splatting by the native library: CPU, float32, differentiable. See native/include/guava_native.h.

A call costs no pass over the Gaussians in Python: the kernels check their values and name the first bad row.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import dataclass, fields, replace
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from guava import native
from guava.camera import Camera
from guava.rendering.splatting import (
    SplatConventions,
    SplatOutput,
    normalized_frustum,
    not_finite,
    opacity_outside,
    zero_quaternion,
)

# --- the header's structs -----------------------------------------------------------------------------------

_NORMALIZE_QUATERNIONS, _EXCLUSIVE_LIMITS, _RADIUS_EXTENT, _STRAIGHT_THROUGH, _INVERSE_DEPTH = 1, 2, 4, 8, 16
_NOT_FINITE, _ZERO_QUATERNION, _OPACITY = 0, 1, 2


class Scene(Structure):
    """guava_splat_scene"""

    _fields_ = [
        ("count", c_int64), ("channels", c_int32), ("width", c_int32), ("height", c_int32),
        ("flags", c_int32),
        ("means", c_void_p), ("quaternions", c_void_p), ("scales", c_void_p), ("opacities", c_void_p),
        ("features", c_void_p), ("background", c_void_p),
        ("view", c_float * 12), ("intrinsics", c_float * 6), ("frustum", c_float * 4),
        ("eps2d", c_float), ("alpha_max", c_float), ("alpha_min", c_float), ("transmittance_min", c_float),
        ("near_plane", c_float),
    ]


class Picture(Structure):
    """guava_splat_picture"""

    _fields_ = [("features", c_void_p), ("alpha", c_void_p), ("depth", c_void_p)]


class Problem(Structure):
    """guava_splat_problem"""

    _fields_ = [("array", c_int32), ("kind", c_int32), ("row", c_int64)]


class Stats(Structure):
    """guava_splat_stats"""

    _fields_ = [
        ("project_ms", c_double), ("sort_ms", c_double), ("bin_ms", c_double), ("blend_ms", c_double),
        ("blend_backward_ms", c_double), ("project_backward_ms", c_double),
        ("visible", c_int64), ("pairs", c_int64), ("evaluations", c_int64), ("weights", c_int64),
    ]


class Gradients(Structure):
    """guava_splat_gradients"""

    _fields_ = [
        ("out_features", c_void_p), ("out_alpha", c_void_p), ("out_depth", c_void_p),
        ("means", c_void_p), ("quaternions", c_void_p), ("scales", c_void_p), ("opacities", c_void_p),
        ("features", c_void_p), ("background", c_void_p), ("view", c_void_p), ("intrinsics", c_void_p),
    ]


_ARRAYS = ("means", "quaternions", "scales", "opacities", "features", "background")  # as Problem counts them


_TYPES = {
    "guava_splat_state_create": (c_void_p, []),
    "guava_splat_state_destroy": (None, [c_void_p]),
    "guava_splat_state_bytes": (c_size_t, [c_void_p]),
    "guava_splat_forward": (c_int32, [c_void_p, Scene, Picture, c_void_p, Problem, Stats]),
    "guava_splat_count": (c_int32, [c_void_p, Scene, Stats]),
    "guava_splat_backward": (c_int32, [c_void_p, Scene, c_void_p, Gradients, Stats]),
}


@cache
def _function(library: ctypes.CDLL, name: str) -> Callable:
    """A function of the library with its types set."""
    function = getattr(library, name)
    function.restype, arguments = _TYPES[name]
    function.argtypes = [POINTER(t) if issubclass(t, Structure) else t for t in arguments]
    return function


# --- what a backward pass needs of its forward pass ---------------------------------------------------------

_KEPT_STATES = 4
_KEPT_STATE_BYTES = 1 << 26
_free_states: list[tuple[ctypes.CDLL, int]] = []


class _State:
    """A guava_splat_state, lent from a free-list for as long as somebody holds this object: the graph does.

    States have no threads, so that a forked child may go on with those that it inherits.
    """

    def __init__(self, library: ctypes.CDLL):
        self.library, self.pointer = library, None
        # Whatever is in the list was made by this library, but for tests that load a second one.
        while self.pointer is None:
            try:
                maker, pointer = _free_states.pop()
            except IndexError:  # also where another thread was faster
                break
            if maker is library:
                self.pointer = pointer
            else:
                _function(maker, "guava_splat_state_destroy")(pointer)
        if self.pointer is None:
            self.pointer = _function(library, "guava_splat_state_create")()
        if self.pointer is None:
            raise MemoryError("There is no memory for splatting with gradients.")

    def __del__(self):
        if self.pointer is None:
            return
        size = _function(self.library, "guava_splat_state_bytes")(self.pointer)
        if size > _KEPT_STATE_BYTES or len(_free_states) >= _KEPT_STATES:
            _function(self.library, "guava_splat_state_destroy")(self.pointer)
        else:
            _free_states.append((self.library, self.pointer))


# --- the public function's backend --------------------------------------------------------------------------


def splat_native(
    means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, camera: Camera,
    background: Tensor | None, conventions: SplatConventions, out: SplatOutput | None = None,
) -> SplatOutput:
    """See :func:`guava.rendering.splat`. Shapes, devices and ``out`` must have been checked.

    Raises:
        ValueError: Values that cannot be drawn; the array and its first such row are named.
        NativeUnavailable: The library cannot load.
    """
    arrays = [_single(t) for t in (means, quaternions, scales, opacities, features)]
    arrays += [None if background is None else _single(background)]
    arrays += [_single(camera.world_to_camera), _single(camera.intrinsics)]
    scene = _scene(arrays, camera, conventions)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arrays):
        drawn, alpha, depth = _Splat.apply(scene, *arrays)
    else:
        if out is None:
            out = SplatOutput.empty(camera.width, camera.height, scene.channels, conventions)
        depth = out.inverse_depth if conventions.inverse_depth else out.depth
        _forward(scene, arrays, out.features, out.alpha, depth, None)
        return out
    return SplatOutput(drawn, alpha, *((None, depth) if conventions.inverse_depth else (depth, None)))


class _Splat(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scene, *arrays):
        height, width = scene.height, scene.width
        shapes = (height, width, scene.channels), (height, width), (height, width)
        # Whatever torch's default dtype and device are.
        drawn, alpha, depth = (torch.empty(s, dtype=torch.float32, device="cpu") for s in shapes)
        ctx.state = _State(native.library())
        _forward(scene, arrays, drawn, alpha, depth, ctx.state)
        ctx.scene = scene  # with the camera's numbers in it
        ctx.save_for_backward(*arrays[:6])
        ctx.set_materialize_grads(False)
        return drawn, alpha, depth

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream):
        arrays = ctx.saved_tensors
        upstream = [None if g is None else g.contiguous() for g in upstream]
        wanted = [
            torch.empty_like(array) if needed else None
            for array, needed in zip(arrays, ctx.needs_input_grad[1:7], strict=True)
        ]
        # Their last rows are constants.
        wanted += [
            torch.zeros(n, n, dtype=torch.float32, device="cpu") if ctx.needs_input_grad[1 + k] else None
            for k, n in ((6, 4), (7, 3))
        ]
        gradients = Gradients(*(_pointer(t) for t in (*upstream, *wanted)))
        # A copy: another thread may be at the same graph, and hooks on saved tensors may have moved them.
        scene = _pointing(Scene.from_buffer_copy(ctx.scene), arrays)
        stats = Stats()
        with native.context() as context:
            context.check(_function(ctx.state.library, "guava_splat_backward")(
                context.handle, byref(scene), ctx.state.pointer, byref(gradients), byref(stats)
            ))
        _record(stats)
        return None, *wanted


def _single(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32).contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _scene(arrays: list[Tensor | None], camera: Camera, conventions: SplatConventions) -> Scene:
    flags = (
        conventions.normalize_quaternions * _NORMALIZE_QUATERNIONS
        | conventions.exclusive_limits * _EXCLUSIVE_LIMITS
        | (conventions.extent == "radius") * _RADIUS_EXTENT
        | conventions.straight_through * _STRAIGHT_THROUGH
        | conventions.inverse_depth * _INVERSE_DEPTH
    )
    scene = Scene(
        count=len(arrays[0]), channels=arrays[4].shape[1], width=camera.width, height=camera.height,
        flags=flags, frustum=normalized_frustum(camera, conventions.frustum_margin), eps2d=conventions.eps2d,
        alpha_max=conventions.alpha_max, alpha_min=conventions.alpha_min,
        transmittance_min=conventions.transmittance_min, near_plane=conventions.near,
    )
    # The first rows of (4, 4) and (3, 3).
    ctypes.memmove(scene.view, arrays[6].data_ptr(), ctypes.sizeof(scene.view))
    ctypes.memmove(scene.intrinsics, arrays[7].data_ptr(), ctypes.sizeof(scene.intrinsics))
    return _pointing(scene, arrays)


def _pointing(scene: Scene, arrays) -> Scene:
    for name, array in zip(_ARRAYS, arrays, strict=False):
        setattr(scene, name, _pointer(array))
    return scene


def _forward(
    scene: Scene, arrays, drawn: Tensor, alpha: Tensor, depth: Tensor | None, state: _State | None
) -> None:
    picture = Picture(_pointer(drawn), _pointer(alpha), _pointer(depth))
    problem, stats = Problem(), Stats()
    library = native.library() if state is None else state.library
    with native.context() as context:
        code = _function(library, "guava_splat_forward")(
            context.handle, byref(scene), byref(picture), None if state is None else state.pointer,
            byref(problem), byref(stats),
        )
        if code == native.INVALID_VALUE:
            raise _error(problem, arrays)
        context.check(code)
    _record(stats)


def _error(problem: Problem, arrays) -> ValueError:
    if problem.kind == _ZERO_QUATERNION:
        return zero_quaternion(problem.row)
    if problem.kind == _OPACITY:
        return opacity_outside(problem.row, float(arrays[3][problem.row]))
    assert problem.kind == _NOT_FINITE
    return not_finite((*_ARRAYS, "camera")[problem.array], problem.row)


# --- measurements -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplatStats:
    """What one native call did.

    Attributes:
        project_ms, sort_ms, bin_ms, blend_ms: Wall time of the forward pass' stages; 0 in a backward pass.
        blend_backward_ms, project_backward_ms: Those of the backward pass.
        visible: Gaussians that are drawn.
        pairs: Pairs of a Gaussian and a tile.
        evaluations: Exponents evaluated at (Gaussian, pixel), masked lanes included; :func:`count_work` only.
        weights: Weights multiplied with features, likewise.
    """

    project_ms: float = 0.0
    sort_ms: float = 0.0
    bin_ms: float = 0.0
    blend_ms: float = 0.0
    blend_backward_ms: float = 0.0
    project_backward_ms: float = 0.0
    visible: int = 0
    pairs: int = 0
    evaluations: int = 0
    weights: int = 0


_recording = threading.local()


@contextmanager
def recorded_stats() -> Iterator[list[SplatStats]]:
    """Within it, every native pass, forward or backward, of this thread appends its measurements."""
    outer, _recording.stats = getattr(_recording, "stats", None), []
    try:
        yield _recording.stats
    finally:
        _recording.stats = outer


def _record(stats: Stats) -> None:
    kept = getattr(_recording, "stats", None)
    if kept is not None:
        kept.append(SplatStats(**{f.name: getattr(stats, f.name) for f in fields(SplatStats)}))


def count_work(
    means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, camera: Camera,
    *, conventions: SplatConventions,
) -> SplatStats:
    """How much a forward pass of :func:`guava.rendering.splat` evaluates and multiplies; its times are 0."""
    arrays = [_single(t.detach()) for t in (means, quaternions, scales, opacities, features)]
    arrays += [None, _single(camera.world_to_camera.detach()), _single(camera.intrinsics.detach())]
    scene, stats = _scene(arrays, camera, conventions), Stats()
    with native.context() as context:
        context.check(_function(native.library(), "guava_splat_count")(
            context.handle, byref(scene), byref(stats)
        ))
    counts = ("visible", "pairs", "evaluations", "weights")
    return replace(SplatStats(), **{name: getattr(stats, name) for name in counts})
