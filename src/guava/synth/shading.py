"""Per-pixel colours of a rasterised person, and light."""

from __future__ import annotations

import math

import numba
import numpy as np

FACE, BODY, HAND, LEFT_EYE, RIGHT_EYE, TEETH, TONGUE, CAVITY, SOCKET, SHIRT, LEGS, HAIR, SCALP = range(13)
"""Materials."""

_LATTICE = 64
NOISE_LATTICE = np.random.default_rng(20240817).random((_LATTICE, _LATTICE, _LATTICE), dtype=np.float32)
"""Values of the noise lattice; fixed, so that people depend on their own seeds only."""


def linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] -> linear light."""
    srgb = np.asarray(srgb, float)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def displayed(light: np.ndarray) -> np.ndarray:
    """Linear light -> sRGB in [0, 1], float32."""
    light = np.clip(light, 0, 1).astype(np.float32)
    return np.where(
        light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 1e-8) ** np.float32(1 / 2.4) - 0.055
    )


@numba.njit(cache=True, fastmath=True, inline="always")
def _noise(table, x, y, z):
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    tx, ty, tz = x - fx, y - fy, z - fz
    tx, ty, tz = tx * tx * (3 - 2 * tx), ty * ty * (3 - 2 * ty), tz * tz * (3 - 2 * tz)
    i, j, k = int(fx) & 63, int(fy) & 63, int(fz) & 63
    i1, j1, k1 = (i + 1) & 63, (j + 1) & 63, (k + 1) & 63
    a = table[i, j, k] * (1 - tx) + table[i1, j, k] * tx
    b = table[i, j1, k] * (1 - tx) + table[i1, j1, k] * tx
    c = table[i, j, k1] * (1 - tx) + table[i1, j, k1] * tx
    d = table[i, j1, k1] * (1 - tx) + table[i1, j1, k1] * tx
    return ((a * (1 - ty) + b * ty) * (1 - tz) + (c * (1 - ty) + d * ty) * tz) * 2 - 1


@numba.njit(cache=True, fastmath=True, inline="always")
def _smooth(low, high, x):
    t = min(max((x - low) / (high - low), 0.0), 1.0)
    return t * t * (3 - 2 * t)


@numba.njit(cache=True, fastmath=True, parallel=True)
def shade_pixels(
    face_ids,
    bary,
    faces,
    materials,
    normals,
    canonical,
    frontness,
    extra,
    table,
    offset,
    skin,
    lips,
    brow,
    hair,
    iris,
    sclera,
    nail,
    scalars,
    cloth_colors,
    cloth_scalars,
    paint,
    paint_origin,
    paint_pixel,
    eye_centers,
    eye_axes,
    nails,
    knuckles,
    landmarks_y,
    albedo,
    normal_out,
    gloss,
):
    """Fill ``albedo`` (H, W, 3) linear, ``normal_out`` (H, W, 3) and ``gloss`` (H, W, 2: strength, exponent).

    Colours are linear. ``scalars``: cover, hairline, freckles, mottle, gloss, mid-eye y and z, waist, iris.
    ``knuckles``: (K, 7) canonical joint, direction, strength. ``extra``: (V, 3) see ``Hair.extra``.
    """
    height, width = face_ids.shape
    for y in numba.prange(height):
        for x in range(width):
            f = face_ids[y, x]
            if f < 0:
                continue
            material = materials[f]
            px = py = pz = nx = ny = nz = front = e0 = e1 = e2 = 0.0
            for k in range(3):
                w, v = bary[y, x, k], faces[f, k]
                px += w * canonical[v, 0]
                py += w * canonical[v, 1]
                pz += w * canonical[v, 2]
                nx += w * normals[v, 0]
                ny += w * normals[v, 1]
                nz += w * normals[v, 2]
                front += w * frontness[v]
                e0 += w * extra[v, 0]
                e1 += w * extra[v, 1]
                e2 += w * extra[v, 2]
            ox, oy, oz = px + offset[0], py + offset[1], pz + offset[2]
            r = g = b = 0.5
            shine, exponent = 0.03, 12.0
            bump = 0.0
            if material == LEGS or (material == BODY and py < scalars[7]):
                material = LEGS
            if material <= HAND or material == SCALP or material == SOCKET:
                big = _noise(table, ox * 22, oy * 22, oz * 22)
                mid = _noise(table, ox * 90, oy * 90, oz * 90)
                fine = _noise(table, ox * 700, oy * 700, oz * 700)
                tone = 1 + scalars[3] * (0.05 * big + 0.045 * mid) + 0.03 * fine
                r, g, b = skin[0] * tone, skin[1] * tone * (1 - 0.03 * big), skin[2] * tone * (1 - 0.03 * big)
                spot = _smooth(0.55, 0.8, _noise(table, ox * 260 + 7, oy * 260, oz * 260)) * scalars[2] * 0.35
                r, g, b = r * (1 - 0.5 * spot), g * (1 - 0.75 * spot), b * (1 - 0.85 * spot)
                shine, exponent = 0.045 * scalars[4], 14.0
                bump = 0.055
            if material == FACE or material == SCALP or material == SOCKET:
                if front > 0.05:
                    mx = (px - paint_origin[0]) / paint_pixel - 0.5
                    my = (paint_origin[1] - py) / paint_pixel - 0.5
                    if 0 <= mx < paint.shape[1] - 1 and 0 <= my < paint.shape[0] - 1:
                        i, j = int(my), int(mx)
                        ty, tx = my - i, mx - j
                        fade = _smooth(0.05, 0.3, front)
                        w00, w01, w10, w11 = (1 - ty) * (1 - tx), (1 - ty) * tx, ty * (1 - tx), ty * tx
                        p0 = fade * (
                            w00 * paint[i, j, 0]
                            + w01 * paint[i, j + 1, 0]
                            + w10 * paint[i + 1, j, 0]
                            + w11 * paint[i + 1, j + 1, 0]
                        )
                        p1 = fade * (
                            w00 * paint[i, j, 1]
                            + w01 * paint[i, j + 1, 1]
                            + w10 * paint[i + 1, j, 1]
                            + w11 * paint[i + 1, j + 1, 1]
                        )
                        p2 = fade * (
                            w00 * paint[i, j, 2]
                            + w01 * paint[i, j + 1, 2]
                            + w10 * paint[i + 1, j, 2]
                            + w11 * paint[i + 1, j + 1, 2]
                        )
                        p3 = fade * paint[i, j, 3]
                        p4 = fade * paint[i, j, 4]
                        p5 = fade * paint[i, j, 5]
                        p6 = fade * paint[i, j, 6]
                        p7 = fade * paint[i, j, 7]
                        r, g, b = r * (1 + 0.06 * p5), g * (1 - 0.22 * p5), b * (1 - 0.2 * p5)
                        r, g, b = r * (1 - 0.25 * p3), g * (1 - 0.34 * p3), b * (1 - 0.3 * p3)
                        r, g, b = r * (1 - 0.35 * p7), g * (1 - 0.45 * p7), b * (1 - 0.45 * p7)
                        m = 0.62 * p6
                        r, g, b = (
                            r + m * (hair[0] * 0.8 - r),
                            g + m * (hair[1] * 0.8 - g),
                            b + m * (hair[2] * 0.8 - b),
                        )
                        streak = 1 + 0.22 * _noise(table, ox * 1400, oy * 350, oz * 400)
                        r, g, b = (
                            r + p0 * (lips[0] * streak - r),
                            g + p0 * (lips[1] * streak - g),
                            b + p0 * (lips[2] * streak - b),
                        )
                        shine += 0.05 * p0
                        m = min(1.0, p1)
                        r, g, b = r + m * (brow[0] - r), g + m * (brow[1] - g), b + m * (brow[2] - b)
                        shine *= 1 - m
                        m = 0.93 * p2
                        r, g, b = r * (1 - m) + 0.006 * m, g * (1 - m) + 0.005 * m, b * (1 - m) + 0.005 * m
                        m = 0.85 * p4
                        r, g, b = r * (1 - m) + 0.02 * m, g * (1 - m) + 0.008 * m, b * (1 - m) + 0.006 * m
            if material == SOCKET:
                if py > landmarks_y[0]:
                    r, g, b = 0.015, 0.012, 0.011
                else:
                    r, g, b = 0.55 * r, 0.36 * g, 0.36 * b
            if (material == SCALP or material == FACE) and scalars[0] > 0:
                # The hairline: high over the brow, down before the ears, low on the nape.
                line = (
                    scalars[5]
                    + scalars[1]
                    - 0.9 * max(0.0, scalars[6] - 0.012 - pz)
                    - 2.2 * max(0.0, scalars[6] - 0.06 - pz)
                )
                ragged = 0.004 * _noise(table, ox * 160, oy * 60, oz * 160) + 0.003 * _noise(
                    table, ox * 600, oy * 120, oz * 600
                )
                ear = 1.0 if (abs(px) > 0.069 and py < scalars[5] + 0.02 and pz > scalars[6] - 0.095) else 0.0
                m = _smooth(-0.004, 0.006, py + ragged - line) * scalars[0] * (1 - ear)
                streak = 1 + 0.3 * _noise(table, ox * 300, oy * 300, oz * 60)
                r, g, b = (
                    r + m * (hair[0] * streak - r),
                    g + m * (hair[1] * streak - g),
                    b + m * (hair[2] * streak - b),
                )
                shine = shine * (1 - m) + 0.04 * m
                bump = bump + m * 0.2
            if material == HAND:
                red = 0.0
                for k in range(knuckles.shape[0]):
                    dx, dy, dz = px - knuckles[k, 0], py - knuckles[k, 1], pz - knuckles[k, 2]
                    d2 = dx * dx + dy * dy + dz * dz
                    if d2 < 0.00032:
                        along = dx * knuckles[k, 3] + dy * knuckles[k, 4] + dz * knuckles[k, 5]
                        jitter = 0.0007 * _noise(table, ox * 300, oy * 300, oz * 300)
                        line = math.exp(-(((along + jitter) / 0.0008) ** 2)) + 0.5 * math.exp(
                            -(((along + jitter - 0.0028) / 0.0007) ** 2)
                        )
                        dark = 1 - 0.38 * line * knuckles[k, 6]
                        r, g, b = r * (0.3 + 0.7 * dark), g * dark, b * dark
                        red = max(red, math.exp(-d2 / 0.00009))
                for k in range(nails.shape[0]):
                    dx, dy, dz = px - nails[k, 0, 0], py - nails[k, 0, 1], pz - nails[k, 0, 2]
                    if dx * dx + dy * dy + dz * dz < 0.0005:
                        along = dx * nails[k, 1, 0] + dy * nails[k, 1, 1] + dz * nails[k, 1, 2]
                        up = dx * nails[k, 2, 0] + dy * nails[k, 2, 1] + dz * nails[k, 2, 2]
                        ax = nails[k, 1, 1] * nails[k, 2, 2] - nails[k, 1, 2] * nails[k, 2, 1]
                        ay = nails[k, 1, 2] * nails[k, 2, 0] - nails[k, 1, 0] * nails[k, 2, 2]
                        az = nails[k, 1, 0] * nails[k, 2, 1] - nails[k, 1, 1] * nails[k, 2, 0]
                        across = dx * ax + dy * ay + dz * az
                        q = (along / nails[k, 3, 0]) ** 4 + (across / nails[k, 3, 1]) ** 4
                        if up > -nails[k, 3, 2] * 0.8:
                            inside = 1 - _smooth(0.7, 1.0, q)
                            rim = _smooth(0.7, 0.95, q) * (1 - _smooth(1.1, 1.7, q))
                            r, g, b = (
                                r + inside * (nail[0] - r),
                                g + inside * (nail[1] - g),
                                b + inside * (nail[2] - b),
                            )
                            dark = 1 - 0.35 * rim
                            r, g, b = r * dark, g * dark, b * dark
                            shine += 0.12 * inside
                        red = max(red, math.exp(-(dx * dx + dy * dy + dz * dz) / 0.00007) * 0.7)
                r, g, b = r * (1 + 0.05 * red), g * (1 - 0.14 * red), b * (1 - 0.14 * red)
            elif material == LEFT_EYE or material == RIGHT_EYE:
                e = 0 if material == LEFT_EYE else 1
                dx, dy, dz = px - eye_centers[e, 0], py - eye_centers[e, 1], pz - eye_centers[e, 2]
                length = math.sqrt(dx * dx + dy * dy + dz * dz) + 1e-9
                cosine = (dx * eye_axes[e, 0] + dy * eye_axes[e, 1] + dz * eye_axes[e, 2]) / length
                angle = math.acos(min(1.0, max(-1.0, cosine)))
                vein = 0.05 * _noise(table, ox * 500, oy * 500, oz * 500) + 0.25 * _smooth(0.5, 1.1, angle)
                r, g, b = sclera[0], sclera[1] * (1 - vein), sclera[2] * (1 - vein)
                around = math.atan2(dy, dx)
                ray = 1 + 0.3 * _noise(table, around * 14 + offset[0], angle * 20, offset[1])
                m = 1 - _smooth(scalars[8] - 0.025, scalars[8] + 0.025, angle)
                rim = 1 - 0.6 * _smooth(scalars[8] - 0.14, scalars[8] - 0.01, angle)
                r, g, b = (
                    r + m * (iris[0] * ray * rim - r),
                    g + m * (iris[1] * ray * rim - g),
                    b + m * (iris[2] * ray * rim - b),
                )
                m = 1 - _smooth(0.15, 0.19, angle)
                r, g, b = r * (1 - m) + 0.004 * m, g * (1 - m) + 0.004 * m, b * (1 - m) + 0.004 * m
                shine, exponent = 0.55, 160.0
            elif material == TEETH:
                gap = abs(math.sin(math.atan2(px, pz - 0.095) * 11.0))
                tone = 0.62 + 0.38 * _smooth(0.0, 0.16, gap)
                r, g, b = 0.72 * tone, 0.66 * tone, 0.55 * tone
                shine, exponent = 0.15, 60.0
            elif material == TONGUE:
                r, g, b = 0.36, 0.1, 0.1
                shine, exponent = 0.08, 30.0
            elif material == CAVITY:
                deep = _smooth(0.0, 0.014, landmarks_y[1] - pz)
                r = lips[0] * 0.8 * (1 - deep) + 0.05 * deep
                g = lips[1] * 0.75 * (1 - deep) + 0.008 * deep
                b = lips[2] * 0.75 * (1 - deep) + 0.008 * deep
                shine = 0.05 * (1 - deep)
            elif material == SHIRT or material == LEGS:
                c = 0 if material == SHIRT else 1
                period, weave, seed, pattern = (
                    cloth_scalars[c, 0],
                    cloth_scalars[c, 1],
                    cloth_scalars[c, 2],
                    int(cloth_scalars[c, 3]),
                )
                sleeve = _smooth(0.15, 0.26, abs(px)) * _smooth(0.30, 0.40, py)
                # Sleeve stripes go on where the trunk's end.
                along = py * (1 - sleeve) + (0.70 - abs(px)) * sleeve
                across = px * (1 - sleeve) + pz * sleeve
                m = 0.0
                if pattern == 1:
                    m = _smooth(-0.12, 0.12, math.sin(along * 6.2832 / period))
                elif pattern == 2:
                    m = _smooth(-0.12, 0.12, math.sin(across * 6.2832 / period))
                elif pattern == 3:
                    m = 0.5 * _smooth(-0.12, 0.12, math.sin(along * 6.2832 / period)) + 0.5 * _smooth(
                        -0.12, 0.12, math.sin(across * 6.2832 / period)
                    )
                elif pattern == 4:
                    m = _smooth(0.05, 0.15, _noise(table, px / period + seed, py / period, pz / period))
                elif pattern == 5 and pz > 0.0 and abs(px) < 0.1 and 0.28 < py < 0.44:
                    m = _smooth(0.0, 0.1, _noise(table, px / period + seed, py / period, seed))
                grain = 1 + weave * (
                    _noise(table, ox * 900, oy * 900, oz * 900)
                    + 0.8 * _noise(table, ox * 120, oy * 120, oz * 120)
                )
                r = (cloth_colors[c, 0, 0] * (1 - m) + cloth_colors[c, 1, 0] * m) * grain
                g = (cloth_colors[c, 0, 1] * (1 - m) + cloth_colors[c, 1, 1] * m) * grain
                b = (cloth_colors[c, 0, 2] * (1 - m) + cloth_colors[c, 1, 2] * m) * grain
                shine, exponent = 0.012, 6.0
                bump = 0.12
            elif material == HAIR:
                strand = _noise(table, e2 * 900 + e1 * 40, e1 * 13, e0 * 1.5)
                fine = _noise(table, e2 * 3200 + e1 * 90, e1 * 31 + offset[0], e0 * 2.5)
                tone = (0.75 + 0.4 * e1) * (1 + 0.22 * strand + 0.3 * fine) * (0.7 + 0.45 * e0)
                r, g, b = hair[0] * tone, hair[1] * tone, hair[2] * tone
                shine, exponent = 0.06, 10.0
                bump = 0.25
            if bump > 0:
                q = 420.0 if material != SHIRT and material != LEGS else 45.0
                if material == HAIR:
                    q = 500.0
                nx += bump * _noise(table, ox * q + 3, oy * q, oz * q)
                ny += bump * _noise(table, ox * q + 17, oy * q + 5, oz * q)
                nz += bump * _noise(table, ox * q + 29, oy * q + 11, oz * q)
            length = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
            normal_out[y, x, 0], normal_out[y, x, 1], normal_out[y, x, 2] = (
                nx / length,
                ny / length,
                nz / length,
            )
            albedo[y, x, 0], albedo[y, x, 1], albedo[y, x, 2] = max(r, 0.0), max(g, 0.0), max(b, 0.0)
            gloss[y, x, 0], gloss[y, x, 1] = shine, exponent


@numba.njit(cache=True, fastmath=True, parallel=True)
def light_pixels(
    face_ids,
    materials,
    albedo,
    normal,
    gloss,
    occlusion,
    view_points,
    light,
    light_color,
    sky,
    ground,
    shadow_depth,
    shadow_matrix,
    shadow_bias,
    skin_wrap,
    out,
):
    """Linear radiance (H, W, 3): one wrapped key light with a shadow map, a hemisphere of fill, a highlight.

    ``view_points``: (H, W, 3) world positions; ``light``: (3,) unit, towards the light; the
    viewer is far along +z.
    ``shadow_matrix``: (3, 4) world -> shadow pixel x, y and depth.
    """
    height, width = face_ids.shape
    rows, columns = shadow_depth.shape
    for y in numba.prange(height):
        for x in range(width):
            f = face_ids[y, x]
            if f < 0:
                continue
            nx, ny, nz = normal[y, x, 0], normal[y, x, 1], normal[y, x, 2]
            if nz < -0.05:  # the inner side of open surfaces
                nx, ny, nz = -nx, -ny, -nz
            facing = nx * light[0] + ny * light[1] + nz * light[2]
            p = view_points[y, x]
            u = (
                shadow_matrix[0, 0] * p[0]
                + shadow_matrix[0, 1] * p[1]
                + shadow_matrix[0, 2] * p[2]
                + shadow_matrix[0, 3]
            )
            v = (
                shadow_matrix[1, 0] * p[0]
                + shadow_matrix[1, 1] * p[1]
                + shadow_matrix[1, 2] * p[2]
                + shadow_matrix[1, 3]
            )
            d = (
                shadow_matrix[2, 0] * p[0]
                + shadow_matrix[2, 1] * p[1]
                + shadow_matrix[2, 2] * p[2]
                + shadow_matrix[2, 3]
            )
            lit, count = 0.0, 0
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    i, j = int(v) + dy, int(u) + dx
                    if 0 <= i < rows and 0 <= j < columns:
                        count += 1
                        if d < shadow_depth[i, j] + shadow_bias:
                            lit += 1
            shadow = lit / count if count > 0 else 1.0
            skin = 1.0 if materials[f] <= HAND or materials[f] == SCALP else 0.0
            up = 0.5 + 0.5 * ny
            hx, hy, hz = light[0], light[1], light[2] + 1.0
            length = math.sqrt(hx * hx + hy * hy + hz * hz)
            half = max(0.0, (nx * hx + ny * hy + nz * hz) / length)
            rim = (1 - max(0.0, nz)) ** 3
            highlight = (
                gloss[y, x, 0] * (half ** gloss[y, x, 1]) * (0.3 + 0.7 * shadow) * (2 + gloss[y, x, 1]) * 0.12
            )
            highlight += gloss[y, x, 0] * rim * 0.5 * up
            for k in range(3):
                wrap = skin_wrap[k] * skin
                direct = max(0.0, (facing + wrap) / (1 + wrap))
                # Blood tints what light is left inside a shadow's edge.
                soft = shadow + skin * (1 - shadow) * shadow * skin_wrap[k]
                fill = (sky[k] * up + ground[k] * (1 - up)) * occlusion[y, x]
                fill = fill * (1 + skin * (1 - occlusion[y, x]) * skin_wrap[k])
                out[y, x, k] = (
                    albedo[y, x, k] * (direct * min(soft, 1.0) * light_color[k] + fill)
                    + highlight * light_color[k]
                )
