"""Gaussian splatting on the CPU where the native library cannot load: numba kernels, float32, no gradients.

Project all Gaussians, sort the visible ones by depth once, drop them into 8x8-pixel tiles in that order, and
composite every tile front to back. Rows of eight pixels go through straight-line code without branches, which
LLVM turns into vector instructions.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from guava.camera import Camera
from guava.rendering.splatting import SplatConventions, SplatOutput, normalized_frustum
from guava.rendering.threads import KERNEL_LOCK

_TILE = 8
_f = np.float32
# exp(-p) = q(p / 16)^16 for 0 <= p <= 6, where q is the degree-5 minimax polynomial of exp(-x) on [0, 0.375];
# the relative error of the power is below 2e-6 in float32.
_MAX_EXPONENT = 6.0
_Q0, _Q1, _Q2 = _f(0.9999999983921255), _f(-0.9999996910536287), _f(0.4999903506041252)
_Q3, _Q4, _Q5 = _f(-0.16655598477551195), _f(0.041088569315207844), _f(-0.006917255022483338)
# No NaN (inputs are checked); infinity keeps its meaning and sums keep their order.
_MATH = {"contract", "nsz", "nnan"}


def splat_numba(
    means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, camera: Camera,
    background: Tensor | None, conventions: SplatConventions,
) -> SplatOutput:
    """See :func:`guava.rendering.splat`.

    Raises:
        ValueError: ``conventions.alpha_min`` is below exp(-6) = 0.0025, where the fast exponential ends.
    """
    if -math.log(conventions.alpha_min) > _MAX_EXPONENT:
        raise ValueError(f"The splat backend 'numba' needs alpha_min >= 0.0025, got {conventions.alpha_min}.")

    def array(tensor: Tensor) -> np.ndarray:
        return tensor.detach().to("cpu", torch.float32).contiguous().numpy()

    view = array(camera.world_to_camera)
    intrinsics = array(camera.intrinsics)
    limits = np.array(normalized_frustum(camera, conventions.frustum_margin), np.float32)
    channels = features.shape[1]
    behind = array(background) if background is not None else np.zeros(channels, np.float32)
    values = np.zeros((len(means), -(-(channels + 1) // 4) * 4), np.float32)
    values[:, :channels] = array(features)
    # The kernels draw at `near` and stop at the least transmittance; the next float says the opposite.
    near, transmittance_min = _f(conventions.near), _f(conventions.transmittance_min)
    if conventions.exclusive_limits:
        near = np.nextafter(near, _f(np.inf))
        transmittance_min = np.nextafter(transmittance_min, _f(0))
    with KERNEL_LOCK:
        threads = numba.get_num_threads()
        records, boxes = _project(
            array(means), array(quaternions), array(scales), array(opacities), view, intrinsics, limits,
            camera.width, camera.height, _f(conventions.eps2d), _f(conventions.alpha_min),
            near, conventions.normalize_quaternions, conventions.extent == "radius",
        )
        if conventions.inverse_depth:
            with np.errstate(divide="ignore"):  # of what is not drawn
                values[:, channels] = 1 / records[:, 6]
        else:
            values[:, channels] = records[:, 6]
        order = _depth_order(records.view(np.uint32)[:, 6], boxes)
        starts, entries = _bin(order, boxes, camera.width, camera.height, threads)
        drawn, alpha, depth = _blend(
            starts, entries, records, boxes, values, behind, camera.width, camera.height, 4 * threads,
            _f(conventions.alpha_max), _f(conventions.alpha_min), transmittance_min,
        )
    depths = (None, torch.from_numpy(depth)) if conventions.inverse_depth else (torch.from_numpy(depth), None)
    return SplatOutput(torch.from_numpy(drawn), torch.from_numpy(alpha), *depths)


@numba.njit(cache=True, parallel=True, fastmath={"contract", "nsz"})
def _project(
    means, quaternions, scales, opacities, view, intrinsics, limits, width, height, eps2d, alpha_min, near,
    normalize, radius_boxes,
):
    """EWA projection.

    Returns:
        Records (N, 8): pixel x, y; half inverse covariance a, b, c (exponent = a dx^2 + 2 b dx dy + c dy^2,
        with 2b stored); opacity; depth; unused. Boxes (N, 4): the inclusive pixel range x0, x1, y0, y1 where
        alpha can reach ``alpha_min``, cut to the tiles of ``SplatConventions.extent``; empty (x0 > x1) for
        what is not drawn.
    """
    count = means.shape[0]
    records = np.empty((count, 8), np.float32)
    boxes = np.empty((count, 4), np.int32)
    half, one, two = _f(0.5), _f(1.0), _f(2.0)
    for n in numba.prange(count):
        boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3] = 1, 0, 1, 0
        px, py, pz = means[n, 0], means[n, 1], means[n, 2]
        x = view[0, 0] * px + view[0, 1] * py + view[0, 2] * pz + view[0, 3]
        y = view[1, 0] * px + view[1, 1] * py + view[1, 2] * pz + view[1, 3]
        z = view[2, 0] * px + view[2, 1] * py + view[2, 2] * pz + view[2, 3]
        records[n, 6] = z
        opacity = opacities[n]
        if z < near or opacity < alpha_min:
            continue
        inverse_z = one / z
        x, y = x * inverse_z, y * inverse_z
        u = intrinsics[0, 0] * x + intrinsics[0, 1] * y + intrinsics[0, 2]
        v = intrinsics[1, 0] * x + intrinsics[1, 1] * y + intrinsics[1, 2]

        qw, qx, qy, qz = quaternions[n, 0], quaternions[n, 1], quaternions[n, 2], quaternions[n, 3]
        if normalize:
            largest = max(max(abs(qw), abs(qx)), max(abs(qy), abs(qz)))
            qw, qx, qy, qz = qw / largest, qx / largest, qy / largest, qz / largest
            norm = one / np.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
            qw, qx, qy, qz = qw * norm, qx * norm, qy * norm, qz * norm
        r00, r01, r02 = one - two * (qy * qy + qz * qz), two * (qx * qy - qw * qz), two * (qx * qz + qw * qy)
        r10, r11, r12 = two * (qx * qy + qw * qz), one - two * (qx * qx + qz * qz), two * (qy * qz - qw * qx)
        r20, r21, r22 = two * (qx * qz - qw * qy), two * (qy * qz + qw * qx), one - two * (qx * qx + qy * qy)

        # Rows of K J R_view (2 x 3), with the Jacobian held inside the widened frustum.
        lx = min(max(x, limits[0]), limits[1])
        ly = min(max(y, limits[2]), limits[3])
        j00, j01 = intrinsics[0, 0] * inverse_z, intrinsics[0, 1] * inverse_z
        j02 = -(j00 * lx + j01 * ly)
        j10, j11 = intrinsics[1, 0] * inverse_z, intrinsics[1, 1] * inverse_z
        j12 = -(j10 * lx + j11 * ly)
        a0 = j00 * view[0, 0] + j01 * view[1, 0] + j02 * view[2, 0]
        a1 = j00 * view[0, 1] + j01 * view[1, 1] + j02 * view[2, 1]
        a2 = j00 * view[0, 2] + j01 * view[1, 2] + j02 * view[2, 2]
        b0 = j10 * view[0, 0] + j11 * view[1, 0] + j12 * view[2, 0]
        b1 = j10 * view[0, 1] + j11 * view[1, 1] + j12 * view[2, 1]
        b2 = j10 * view[0, 2] + j11 * view[1, 2] + j12 * view[2, 2]
        s0, s1, s2 = scales[n, 0], scales[n, 1], scales[n, 2]
        m00 = (a0 * r00 + a1 * r10 + a2 * r20) * s0
        m01 = (a0 * r01 + a1 * r11 + a2 * r21) * s1
        m02 = (a0 * r02 + a1 * r12 + a2 * r22) * s2
        m10 = (b0 * r00 + b1 * r10 + b2 * r20) * s0
        m11 = (b0 * r01 + b1 * r11 + b2 * r21) * s1
        m12 = (b0 * r02 + b1 * r12 + b2 * r22) * s2
        cxx = m00 * m00 + m01 * m01 + m02 * m02 + eps2d
        cxy = m00 * m10 + m01 * m11 + m02 * m12
        cyy = m10 * m10 + m11 * m11 + m12 * m12 + eps2d
        # In float64: for long thin Gaussians the two products cancel.
        determinant = np.float64(cxx) * np.float64(cyy) - np.float64(cxy) * np.float64(cxy)
        if not 0.0 < determinant < np.inf:
            continue
        records[n, 0], records[n, 1] = u, v
        records[n, 2] = half * np.float32(cyy / determinant)
        records[n, 3] = -np.float32(cxy / determinant)
        records[n, 4] = half * np.float32(cxx / determinant)
        records[n, 5] = opacity
        records[n, 7] = 0

        reach = np.sqrt(two * np.log(opacity / alpha_min))
        ex, ey = reach * np.sqrt(cxx) + _f(1e-3), reach * np.sqrt(cyy) + _f(1e-3)
        # Written so that an overflow to infinity or NaN is not drawn.
        if not (u + ex >= 0 and u - ex <= width and v + ey >= 0 and v - ey <= height):
            continue
        boxes[n, 0] = np.int32(max(np.ceil(u - ex - half), _f(0)))
        boxes[n, 1] = np.int32(min(np.floor(u + ex - half), _f(width - 1)))
        boxes[n, 2] = np.int32(max(np.ceil(v - ey - half), _f(0)))
        boxes[n, 3] = np.int32(min(np.floor(v + ey - half), _f(height - 1)))
        if radius_boxes:
            # Multiples of 16, so that the blending's own tiles are wholly in or out.
            mid = np.float64(0.5) * (np.float64(cxx) + np.float64(cyy))
            radius = np.ceil(3 * np.sqrt(mid + np.sqrt(max(mid * mid - determinant, 0.1))))
            # Clamped before the conversion, which is undefined beyond the integers' range.
            left, top = max(u - 0.5 - radius, 0.0), max(v - 0.5 - radius, 0.0)
            right, bottom = min(u + 14.5 + radius, width + 16.0), min(v + 14.5 + radius, height + 16.0)
            boxes[n, 0] = max(boxes[n, 0], np.int32(16 * np.floor(left / 16)))
            boxes[n, 1] = min(boxes[n, 1], np.int32(16 * np.floor(right / 16)) - 1)
            boxes[n, 2] = max(boxes[n, 2], np.int32(16 * np.floor(top / 16)))
            boxes[n, 3] = min(boxes[n, 3], np.int32(16 * np.floor(bottom / 16)) - 1)
        if boxes[n, 2] > boxes[n, 3]:
            boxes[n, 0], boxes[n, 1] = 1, 0
    return records, boxes


@numba.njit(cache=True)
def _depth_order(bits, boxes):
    """Indices of the drawn Gaussians, nearest first, ties by index: a radix sort of the depths' bit patterns,
    which ascend with positive depth."""
    count = 0
    for n in range(boxes.shape[0]):
        if boxes[n, 0] <= boxes[n, 1]:
            count += 1
    source, target = np.empty(count, np.int32), np.empty(count, np.int32)
    histogram = np.zeros((3, 2048), np.int64)
    k = 0
    for n in range(boxes.shape[0]):
        if boxes[n, 0] <= boxes[n, 1]:
            source[k] = n
            k += 1
            key = bits[n]
            histogram[0, key & 2047] += 1
            histogram[1, (key >> 11) & 2047] += 1
            histogram[2, key >> 22] += 1
    for digit in range(3):
        total = 0
        for bucket in range(2048):
            here = histogram[digit, bucket]
            histogram[digit, bucket] = total
            total += here
        shift = 11 * digit
        for k in range(count):
            n = source[k]
            bucket = (bits[n] >> shift) & 2047
            target[histogram[digit, bucket]] = n
            histogram[digit, bucket] += 1
        source, target = target, source
    return source


@numba.njit(cache=True, parallel=True)
def _bin(order, boxes, width, height, workers):
    """Lists the Gaussians of every tile in depth order.

    Each worker counts and then places one contiguous stretch of ``order``; a tile's list is its workers'
    parts one after the other, so the order is kept.

    Returns:
        Starts (tiles + 1,) into the entries, and entries: Gaussian indices.
    """
    across, down = (width + _TILE - 1) // _TILE, (height + _TILE - 1) // _TILE
    tiles = across * down
    cursor = np.zeros((workers, tiles), np.int64)
    stretch = (len(order) + workers - 1) // workers
    for w in numba.prange(workers):
        for k in range(w * stretch, min((w + 1) * stretch, len(order))):
            n = order[k]
            for ty in range(boxes[n, 2] // _TILE, boxes[n, 3] // _TILE + 1):
                for tx in range(boxes[n, 0] // _TILE, boxes[n, 1] // _TILE + 1):
                    cursor[w, ty * across + tx] += 1
    starts = np.empty(tiles + 1, np.int64)
    total = 0
    for t in range(tiles):
        starts[t] = total
        for w in range(workers):
            here = cursor[w, t]
            cursor[w, t] = total
            total += here
    starts[tiles] = total
    entries = np.empty(total, np.int32)
    for w in numba.prange(workers):
        for k in range(w * stretch, min((w + 1) * stretch, len(order))):
            n = order[k]
            for ty in range(boxes[n, 2] // _TILE, boxes[n, 3] // _TILE + 1):
                for tx in range(boxes[n, 0] // _TILE, boxes[n, 1] // _TILE + 1):
                    entries[cursor[w, ty * across + tx]] = n
                    cursor[w, ty * across + tx] += 1
    return starts, entries


@numba.njit(cache=True, fastmath=_MATH, error_model="numpy")
def _weigh(
    left, weight, columns, rows, mx, my, a, b, c, opacity, alpha_max, alpha_min, transmittance_min
):
    """Weights of one Gaussian on some pixels of a tile; ``left``, their transmittance, is updated and becomes
    negative where a pixel is finished.

    One long loop without branches, and comparisons instead of min() and max(), so that LLVM vectorises it.
    """
    zero, one, end = _f(0.0), _f(1.0), _f(_MAX_EXPONENT)
    for i in range(len(left)):
        dx, dy = columns[i] - mx, rows[i] - my
        exponent = (a * dx + b * dy) * dx + c * dy * dy
        x = (exponent if exponent < end else end) * _f(1 / 16)
        q = _Q0 + x * (_Q1 + x * (_Q2 + x * (_Q3 + x * (_Q4 + x * _Q5))))
        q = q * q
        q = q * q
        q = q * q
        q = q * q
        alpha = opacity * q
        alpha = alpha if alpha < alpha_max else alpha_max
        alpha = alpha if alpha >= alpha_min else zero
        alpha = alpha if exponent >= zero else zero
        before = left[i]
        alpha = alpha if before > zero else zero
        after = before * (one - alpha)
        weight[i] = before * alpha if after > transmittance_min else zero
        left[i] = after if after > transmittance_min else -abs(before)


@numba.njit(cache=True, fastmath=_MATH, error_model="numpy")
def _add_four(block, weight, va, vb, vc, vd):
    """Adds to four channels at once.

    They lie in one array, a tile apart: with an array for each, LLVM would need more checks for overlap than
    it allows itself, and not vectorise.
    """
    for i in range(len(weight)):
        w = weight[i]
        block[i] += w * va
        block[i + _TILE * _TILE] += w * vb
        block[i + 2 * _TILE * _TILE] += w * vc
        block[i + 3 * _TILE * _TILE] += w * vd


@numba.njit(cache=True, fastmath=_MATH, error_model="numpy")
def _blend_tile(
    entries, records, boxes, values, left, weight, total, columns, rows, x_tile, y_tile, alpha_max, alpha_min,
    transmittance_min,
):
    """Composites the Gaussians ``entries`` on one tile: sums of ``values`` in ``total``."""
    for k in range(len(entries)):
        n = entries[k]
        start = max(boxes[n, 2] - y_tile, 0) * _TILE
        stop = (min(boxes[n, 3] - y_tile, _TILE - 1) + 1) * _TILE
        _weigh(
            left[start:stop], weight[start:stop], columns[start:stop], rows[start:stop],
            records[n, 0] - _f(x_tile), records[n, 1] - _f(y_tile), records[n, 2], records[n, 3],
            records[n, 4], records[n, 5], alpha_max, alpha_min, transmittance_min,
        )
        for ch in range(0, values.shape[1], 4):
            _add_four(
                total[ch * _TILE * _TILE + start :], weight[start:stop], values[n, ch], values[n, ch + 1],
                values[n, ch + 2], values[n, ch + 3],
            )
        if k % 16 == 15 and left.max() <= 0:
            break


@numba.njit(cache=True, parallel=True, fastmath=_MATH)
def _blend(
    starts, entries, records, boxes, values, background, width, height, workers, alpha_max, alpha_min,
    transmittance_min,
):
    """Composites all tiles; ``values`` holds C features, the depth, and zeros up to a multiple of four.
    Workers take every k-th tile, which balances the crowded middle.
    """
    channels = len(background)
    drawn = np.empty((height, width, channels), np.float32)
    alpha = np.empty((height, width), np.float32)
    depth = np.empty((height, width), np.float32)
    across, down = (width + _TILE - 1) // _TILE, (height + _TILE - 1) // _TILE
    columns = np.empty(_TILE * _TILE, np.float32)
    rows = np.empty(_TILE * _TILE, np.float32)
    for i in range(_TILE * _TILE):
        columns[i], rows[i] = _f(i % _TILE) + _f(0.5), _f(i // _TILE) + _f(0.5)
    for worker in numba.prange(workers):
        left = np.empty(_TILE * _TILE, np.float32)
        weight = np.empty(_TILE * _TILE, np.float32)
        total = np.empty(values.shape[1] * _TILE * _TILE, np.float32)
        for tile in range(worker, across * down, workers):
            y_tile, x_tile = (tile // across) * _TILE, (tile % across) * _TILE
            left[:] = 1
            total[:] = 0
            # Pixels beyond the picture's edge never hold a tile open.
            for y in range(_TILE):
                for x in range(_TILE):
                    if y_tile + y >= height or x_tile + x >= width:
                        left[y * _TILE + x] = -1
            _blend_tile(
                entries[starts[tile] : starts[tile + 1]], records, boxes, values, left, weight, total,
                columns, rows, x_tile, y_tile, alpha_max, alpha_min, transmittance_min,
            )
            for y in range(min(_TILE, height - y_tile)):
                for x in range(min(_TILE, width - x_tile)):
                    i = y * _TILE + x
                    rest = abs(left[i])
                    for channel in range(channels):
                        value = total[channel * _TILE * _TILE + i] + rest * background[channel]
                        drawn[y_tile + y, x_tile + x, channel] = value
                    alpha[y_tile + y, x_tile + x] = _f(1.0) - rest
                    depth[y_tile + y, x_tile + x] = total[channels * _TILE * _TILE + i]
    return drawn, alpha, depth
