// Projection of 3D Gaussians (EWA), kLanes at once, and the check of the scene's values on the way.
#include "simd.h"
#include "splat_kernels.h"
#include "splat_load.h"

namespace guava {
namespace GUAVA_ISA {
namespace {

struct Gaussians {
    vf mean[3], quaternion[4], scale[3], opacity;
};

GUAVA_INLINE void load_gaussians(
    Gaussians &g, const float *means, const float *quaternions, const float *scales, const float *opacities
) {
    load_rows_of_three(means, g.mean);
    load_rows_of_four(quaternions, g.quaternion);
    load_rows_of_three(scales, g.scale);
    g.opacity = load(opacities);
}

// Fewer than kLanes Gaussians, filled up with invisible ones.
GUAVA_INLINE void load_last_gaussians(Gaussians &g, const ProjectJob &job, int64_t begin, int count) {
    float means[3 * kLanes] = {}, quaternions[4 * kLanes], scales[3 * kLanes] = {}, opacities[kLanes] = {};
    for (int i = 0; i < 4 * kLanes; ++i) quaternions[i] = 1;
    __builtin_memcpy(means, job.means + 3 * begin, sizeof(float) * 3 * (size_t)count);
    __builtin_memcpy(quaternions, job.quaternions + 4 * begin, sizeof(float) * 4 * (size_t)count);
    __builtin_memcpy(scales, job.scales + 3 * begin, sizeof(float) * 3 * (size_t)count);
    __builtin_memcpy(opacities, job.opacities + begin, sizeof(float) * (size_t)count);
    load_gaussians(g, means, quaternions, scales, opacities);
}

// Zero times a value is not zero where the value is NaN or infinite: sums of such products find them.
GUAVA_INLINE void watch(vf &sum, vf value) { sum += value * 0.0f; }

GUAVA_INLINE bool allowed(const Gaussians &g) {
    vf zero{};
    for (int i = 0; i < 3; ++i) watch(zero, g.mean[i]);
    for (int i = 0; i < 4; ++i) watch(zero, g.quaternion[i]);
    for (int i = 0; i < 3; ++i) watch(zero, g.scale[i]);
    watch(zero, g.opacity);
    vm turned = either(
        either(less(zero, maximum(g.quaternion[0], -g.quaternion[0])),
               less(zero, maximum(g.quaternion[1], -g.quaternion[1]))),
        either(less(zero, maximum(g.quaternion[2], -g.quaternion[2])),
               less(zero, maximum(g.quaternion[3], -g.quaternion[3])))
    );
    // Rounding of opacities is forgiven. NaN in `zero` makes every comparison false.
    vm in_range = both(less_equal(splat(-1e-4f), g.opacity), less_equal(g.opacity, splat(1 + 1e-4f)));
    return bits(both(turned, in_range)) == (1u << kLanes) - 1;
}

bool features_allowed(const float *features, int64_t count) {
    vf a{}, b{}, c{}, d{};
    int64_t i = 0;
    for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
        watch(a, load(features + i));
        watch(b, load(features + i + kLanes));
        watch(c, load(features + i + 2 * kLanes));
        watch(d, load(features + i + 3 * kLanes));
    }
    float rest = sum(a + b + c + d);
    for (; i < count; ++i) rest += features[i] * 0.0f;
    return rest == 0.0f;
}

struct Projected {
    vm visible;
    vf z, x, y, l11, l21, l22, lo, depth, reach_x;
    vi x0, x1, y0, y1; // tiles
};

// Columns of the matrix of a quaternion (w, x, y, z); a rotation only if it is unit.
GUAVA_INLINE void quaternion_matrix(const vf q[4], vf m[3][3]) {
    vf w = q[0], x = q[1], y = q[2], z = q[3];
    m[0][0] = 1.0f - 2.0f * (y * y + z * z);
    m[0][1] = 2.0f * (x * y - w * z);
    m[0][2] = 2.0f * (x * z + w * y);
    m[1][0] = 2.0f * (x * y + w * z);
    m[1][1] = 1.0f - 2.0f * (x * x + z * z);
    m[1][2] = 2.0f * (y * z - w * x);
    m[2][0] = 2.0f * (x * z - w * y);
    m[2][1] = 2.0f * (y * z + w * x);
    m[2][2] = 1.0f - 2.0f * (x * x + y * y);
}

// By the largest component first, so that squares neither overflow nor vanish.
GUAVA_INLINE void normalize(vf q[4]) {
    vf largest = maximum(maximum(maximum(q[0], -q[0]), maximum(q[1], -q[1])),
                         maximum(maximum(q[2], -q[2]), maximum(q[3], -q[3])));
    vf inverse = 1.0f / largest;
    for (int i = 0; i < 4; ++i) q[i] *= inverse;
    vf norm = 1.0f / square_root(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
    for (int i = 0; i < 4; ++i) q[i] *= norm;
}

// Tiles that hold the pixel centres between low and high (in pixels, high >= 1/2 and low <= size), clamped.
GUAVA_INLINE void tile_range(vf low, vf high, int size, vi &first, vi &last) {
    vf last_pixel = splat((float)(size - 1));
    first = truncate(minimum(maximum(low + 0.5f, vf{}), last_pixel)) / kTile;
    last = truncate(minimum(high - 0.5f, last_pixel)) / kTile;
}

// SplatConventions.extent == "radius": only tiles floor((p - r) / 16) up to, not including,
// floor((p + r + 15) / 16), p = centre - 1/2. Clamped before the conversion; truncation of what is positive
// is its floor.
GUAVA_INLINE void cut_to_radius(vf centre, vf radius, int size, vi &first, vi &last) {
    vf low = minimum(maximum(centre - 0.5f - radius, vf{}), splat((float)size));
    vf high = minimum(maximum(centre - 0.5f + radius + (kTile - 1.0f), vf{}), splat(size + 2.0f * kTile));
    vi low_tile = truncate(low) / kTile, high_tile = truncate(high) / kTile - 1;
    first = first > low_tile ? first : low_tile;
    last = last < high_tile ? last : high_tile;
}

GUAVA_INLINE vf ceiling(vf x) { // of 0 <= x < 2^31
    vf t = to_float(truncate(x));
    return t + keep(less(t, x), splat(1));
}

GUAVA_INLINE Projected project(const SplatConstants &k, const Gaussians &g) {
    Projected out;
    const float *v = k.view, *in = k.intrinsics;
    vf point[3];
    for (int i = 0; i < 3; ++i)
        point[i] = v[4 * i] * g.mean[0] + v[4 * i + 1] * g.mean[1] + v[4 * i + 2] * g.mean[2] + v[4 * i + 3];
    vf z = point[2], near = splat(k.near_plane);
    out.z = z;
    out.visible = k.flags & GUAVA_SPLAT_EXCLUSIVE_LIMITS ? less(near, z) : less_equal(near, z);
    out.visible = both(out.visible, less_equal(splat(k.alpha_min), g.opacity));
    out.visible = both(out.visible, less(vf{}, z)); // near <= 0 must not draw what lies in the camera's plane

    vf inverse_z = 1.0f / z, nx = point[0] * inverse_z, ny = point[1] * inverse_z;
    out.x = in[0] * nx + in[1] * ny + in[2];
    out.y = in[3] * nx + in[4] * ny + in[5];
    out.depth = k.flags & GUAVA_SPLAT_INVERSE_DEPTH ? inverse_z : z;

    vf q[4] = {g.quaternion[0], g.quaternion[1], g.quaternion[2], g.quaternion[3]}, axes[3][3];
    if (k.flags & GUAVA_SPLAT_NORMALIZE_QUATERNIONS) normalize(q);
    quaternion_matrix(q, axes);

    // m = K J R axes S (2 x 3), with the Jacobian held inside the widened frustum.
    vf hx = minimum(maximum(nx, splat(k.frustum[0])), splat(k.frustum[1]));
    vf hy = minimum(maximum(ny, splat(k.frustum[2])), splat(k.frustum[3]));
    vf m[2][3];
    for (int r = 0; r < 2; ++r) {
        vf j0 = in[3 * r] * inverse_z, j1 = in[3 * r + 1] * inverse_z, j2 = -(j0 * hx + j1 * hy);
        vf t[3];
        for (int c = 0; c < 3; ++c) t[c] = j0 * v[c] + j1 * v[4 + c] + j2 * v[8 + c];
        for (int c = 0; c < 3; ++c)
            m[r][c] = (t[0] * axes[0][c] + t[1] * axes[1][c] + t[2] * axes[2][c]) * g.scale[c];
    }
    vf xx = m[0][0] * m[0][0] + m[0][1] * m[0][1] + m[0][2] * m[0][2];
    vf xy = m[0][0] * m[1][0] + m[0][1] * m[1][1] + m[0][2] * m[1][2];
    vf yy = m[1][0] * m[1][0] + m[1][1] * m[1][1] + m[1][2] * m[1][2];
    // det(m m^T + e I) = |m_0 x m_1|^2 + e (|m_0|^2 + |m_1|^2) + e^2 (Lagrange's identity): no difference of
    // large products, which would leave nothing of a thin Gaussian's determinant in single precision.
    vf c0 = m[0][1] * m[1][2] - m[0][2] * m[1][1], c1 = m[0][2] * m[1][0] - m[0][0] * m[1][2];
    vf c2 = m[0][0] * m[1][1] - m[0][1] * m[1][0];
    vf determinant = c0 * c0 + c1 * c1 + c2 * c2 + k.eps2d * (xx + yy) + k.eps2d * k.eps2d;
    vf a = xx + k.eps2d, c = yy + k.eps2d;
    // False for infinity and NaN, too.
    out.visible = both(out.visible, both(less(vf{}, determinant), less(determinant,
        splat(__builtin_inff()))));

    out.l11 = square_root(kHalfLog2E * c / determinant);
    out.l21 = -out.l11 * (xy / c);
    out.l22 = square_root(kHalfLog2E / c);
    out.lo = log2(g.opacity);
    vf room = square_root(maximum(out.lo - k.log2_alpha_min, vf{}) * (1 / kHalfLog2E));
    out.reach_x = room * square_root(a) + 1e-3f;
    vf reach_y = room * square_root(c) + 1e-3f;

    vf left = out.x - out.reach_x, right = out.x + out.reach_x, top = out.y - reach_y,
        bottom = out.y + reach_y;
    // All false where something overflowed.
    out.visible = both(out.visible, both(less_equal(splat(0.5f), right), less_equal(splat(0.5f), bottom)));
    out.visible = both(out.visible, both(less_equal(left, splat(k.width - 0.5f)),
                                         less_equal(top, splat(k.height - 0.5f))));
    tile_range(left, right, k.width, out.x0, out.x1);
    tile_range(top, bottom, k.height, out.y0, out.y1);
    if (k.flags & GUAVA_SPLAT_RADIUS_EXTENT) {
        // The larger eigenvalue m + sqrt(m^2 - det), where m^2 - det = ((a - c) / 2)^2 + b^2 without
        // cancellation.
        vf half_difference = 0.5f * (xx - yy);
        vf spread = maximum(half_difference * half_difference + xy * xy, splat(0.1f));
        vf radius = ceiling(minimum(3.0f * square_root(0.5f * (a + c) + square_root(spread)), splat(1e9f)));
        cut_to_radius(out.x, radius, k.width, out.x0, out.x1);
        cut_to_radius(out.y, radius, k.height, out.y0, out.y1);
    }
    return out;
}

void write(const ProjectJob &job, const Projected &p, int64_t first, SplatKey *keys, ProjectChunk &chunk) {
    alignas(64) float fields[8][kLanes];
    alignas(64) int32_t boxes[4][kLanes];
    alignas(64) float depths[kLanes];
    const vf values[8] = {p.x, p.y, p.l11, p.l21, p.l22, p.lo, p.depth, p.reach_x};
    for (int f = 0; f < 8; ++f) store(fields[f], values[f]);
    store(boxes[0], p.x0);
    store(boxes[1], p.x1);
    store(boxes[2], p.y0);
    store(boxes[3], p.y1);
    store(depths, p.z);
    for (uint32_t rest = bits(p.visible); rest; rest &= rest - 1) {
        const int i = __builtin_ctz(rest);
        if (boxes[0][i] > boxes[1][i] || boxes[2][i] > boxes[3][i]) continue;
        float *record = reinterpret_cast<float *>(job.records + first + i);
        for (int f = 0; f < 8; ++f) record[f] = fields[f][i];
        SplatKey &key = keys[chunk.visible++];
        __builtin_memcpy(&key.depth, &depths[i], 4);
        key.index = (uint32_t)(first + i);
        key.x0 = (uint16_t)boxes[0][i];
        key.x1 = (uint16_t)boxes[1][i];
        key.y0 = (uint16_t)boxes[2][i];
        key.y1 = (uint16_t)boxes[3][i];
        if (key.depth < chunk.depth_min) chunk.depth_min = key.depth;
        if (key.depth > chunk.depth_max) chunk.depth_max = key.depth;
        chunk.pairs += (int64_t)(key.x1 - key.x0 + 1) * (key.y1 - key.y0 + 1);
    }
}

void project_chunk(const ProjectJob *job, int64_t begin, int64_t end, ProjectChunk *chunk) {
    const SplatConstants &k = *job->constants;
    ProjectChunk found = {0, 0, UINT32_MAX, 0, false};
    for (int64_t i = begin; i < end; i += kLanes) {
        Gaussians g;
        if (end - i >= kLanes)
            load_gaussians(g, job->means + 3 * i, job->quaternions + 4 * i, job->scales + 3 * i,
                           job->opacities + i);
        else
            load_last_gaussians(g, *job, i, (int)(end - i));
        if (!allowed(g)) {
            found.suspect = true;
            break;
        }
        write(*job, project(k, g), i, job->keys + begin, found);
    }
    const int64_t channels = k.channels;
    if (channels && !features_allowed(job->features + begin * channels, (end - begin) * channels))
        found.suspect = true;
    *chunk = found;
}

} // namespace

extern const ProjectKernel splat_project;
const ProjectKernel splat_project = project_chunk;

} // namespace GUAVA_ISA
} // namespace guava
