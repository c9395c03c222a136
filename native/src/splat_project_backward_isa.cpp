// Adds up the slots of every Gaussian and carries the gradients back through the projection, in double
// precision: a long thin Gaussian's gradient by its length is a small difference of large terms.
//
// With d = pixel - centre, P = Sigma^-1 (2 x 2) and E = d^T P d / 2 = ln 2 (u^2 + v^2),
// L = [[l11, l21], [0, l22]], P = 2 ln 2 L^T L, and sums over pixels of g = dL / d ln(alpha) = -dL / dE:
//
//     dL / d centre  = sum g P d                  = 2 ln 2 L^T (sum g u, sum g v)
//     dL / d Sigma   = 1/2 sum g (P d) (P d)^T
//                    = 2 (ln 2)^2 L^T [[sum g u u, sum g u v], [.., sum g v v]] L
//     dL / d opacity = sum g / opacity
//
// From there by the chain rule through Sigma = M M^T + eps I, M = K J R A S: see the code, whose names are
// those of splat_project_isa.cpp.
#include "simd.h"
#include "splat_kernels.h"

namespace guava {
namespace GUAVA_ISA {
namespace {

constexpr int kDoubles = kLanes / 2;
constexpr double kLn2 = 0.69314718055994530942;
constexpr int kPrefetchAhead = 16;           // Gaussians
constexpr uint32_t kPrefetchedPairs = 4;     // of each
constexpr ptrdiff_t kPrefetchedBytes = 256; // of each

typedef double vd __attribute__((vector_size(8 * kDoubles)));
typedef int64_t vl __attribute__((vector_size(8 * kDoubles)));

GUAVA_INLINE vd root(vd x) {
    for (int i = 0; i < kDoubles; ++i) x[i] = __builtin_sqrt(x[i]);
    return x;
}

GUAVA_INLINE vd clamp(vd x, double low, double high, vd &inside) {
    vl below = x < low, above = x > high;
    inside = (below | above) ? vd{} : vd{} + 1.0;
    return below ? vd{} + low : above ? vd{} + high : x;
}

// kDoubles Gaussians, and their gradients.
struct Lanes {
    alignas(64) double mean[3][kDoubles], quaternion[4][kDoubles], scale[3][kDoubles], opacity[kDoubles];
    alignas(64) double moment[kMoments][kDoubles];
    alignas(64) double d_mean[3][kDoubles], d_quaternion[4][kDoubles], d_scale[3][kDoubles],
        d_opacity[kDoubles];
};

GUAVA_INLINE vd get(const double *p) { return *reinterpret_cast<const vd *>(p); }
GUAVA_INLINE void put(double *p, vd x) { *reinterpret_cast<vd *>(p) = x; }

// dL/dq for the matrix of a quaternion as it is, from D = dL/dmatrix.
GUAVA_INLINE void quaternion_gradient(const vd q[4], const vd D[3][3], vd out[4]) {
    vd w = q[0], x = q[1], y = q[2], z = q[3];
    out[0] = 2.0 * (z * (D[1][0] - D[0][1]) + y * (D[0][2] - D[2][0]) + x * (D[2][1] - D[1][2]));
    out[1] = 2.0 * (y * (D[0][1] + D[1][0]) + z * (D[0][2] + D[2][0]) + w * (D[2][1] - D[1][2]) -
                    2.0 * x * (D[1][1] + D[2][2]));
    out[2] = 2.0 * (x * (D[0][1] + D[1][0]) + z * (D[1][2] + D[2][1]) + w * (D[0][2] - D[2][0]) -
                    2.0 * y * (D[0][0] + D[2][2]));
    out[3] = 2.0 * (x * (D[0][2] + D[2][0]) + y * (D[1][2] + D[2][1]) + w * (D[1][0] - D[0][1]) -
                    2.0 * z * (D[0][0] + D[1][1]));
}

void project_backward(const SplatConstants &k, Lanes &g, bool camera, vd sums[kCameraSums]) {
    vd view[3][4], in[2][3];
    for (int r = 0; r < 3; ++r)
        for (int c = 0; c < 4; ++c) view[r][c] = vd{} + (double)k.view[4 * r + c];
    for (int r = 0; r < 2; ++r)
        for (int c = 0; c < 3; ++c) in[r][c] = vd{} + (double)k.intrinsics[3 * r + c];
    vd mean[3], point[3], scale[3], q[4];
    for (int i = 0; i < 3; ++i) mean[i] = get(g.mean[i]), scale[i] = get(g.scale[i]);
    for (int i = 0; i < 4; ++i) q[i] = get(g.quaternion[i]);

    // The projection again.
    for (int r = 0; r < 3; ++r)
        point[r] = view[r][0] * mean[0] + view[r][1] * mean[1] + view[r][2] * mean[2] + view[r][3];
    const vd inverse_z = 1.0 / point[2], nx = point[0] * inverse_z, ny = point[1] * inverse_z;
    vd x_inside, y_inside;
    const vd hx = clamp(nx, k.frustum[0], k.frustum[1], x_inside);
    const vd hy = clamp(ny, k.frustum[2], k.frustum[3], y_inside);
    const bool normalized = k.flags & GUAVA_SPLAT_NORMALIZE_QUATERNIONS;
    const vd inverse_norm = 1.0 / root(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
    if (normalized)
        for (int i = 0; i < 4; ++i) q[i] *= inverse_norm;
    const vd w = q[0], x = q[1], y = q[2], z = q[3];
    const vd A[3][3] = {
        {1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)},
        {2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)},
        {2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)},
    };
    vd B[2][3], T[2][3], Q[2][3], M[2][3]; // B = K J, T = B R, Q = T A, M = Q S
    for (int r = 0; r < 2; ++r) {
        B[r][0] = in[r][0] * inverse_z;
        B[r][1] = in[r][1] * inverse_z;
        B[r][2] = -(B[r][0] * hx + B[r][1] * hy);
        for (int c = 0; c < 3; ++c)
            T[r][c] = B[r][0] * view[0][c] + B[r][1] * view[1][c] + B[r][2] * view[2][c];
        for (int c = 0; c < 3; ++c) Q[r][c] = T[r][0] * A[0][c] + T[r][1] * A[1][c] + T[r][2] * A[2][c];
        for (int c = 0; c < 3; ++c) M[r][c] = Q[r][c] * scale[c];
    }
    const vd xx = M[0][0] * M[0][0] + M[0][1] * M[0][1] + M[0][2] * M[0][2];
    const vd xy = M[0][0] * M[1][0] + M[0][1] * M[1][1] + M[0][2] * M[1][2];
    const vd yy = M[1][0] * M[1][0] + M[1][1] * M[1][1] + M[1][2] * M[1][2];
    const vd c0 = M[0][1] * M[1][2] - M[0][2] * M[1][1], c1 = M[0][2] * M[1][0] - M[0][0] * M[1][2];
    const vd c2 = M[0][0] * M[1][1] - M[0][1] * M[1][0];
    const double eps = k.eps2d;
    const vd determinant = c0 * c0 + c1 * c1 + c2 * c2 + eps * (xx + yy) + eps * eps;
    const double h = 0.5 / kLn2; // log2(e) / 2
    const vd c = yy + eps;
    const vd l11 = root(h * c / determinant), l21 = -l11 * (xy / c), l22 = root(h / c);

    // To the centre and Sigma.
    const vd gu = get(g.moment[kMomentU]), gv = get(g.moment[kMomentV]);
    const vd d_x = 2.0 * kLn2 * (l11 * gu), d_y = 2.0 * kLn2 * (l21 * gu + l22 * gv);
    const vd uu = get(g.moment[kMomentUU]), uv = get(g.moment[kMomentUV]), vv = get(g.moment[kMomentVV]);
    const double f = 2.0 * kLn2 * kLn2;
    const vd d_xx = f * (l11 * l11 * uu), d_xy = f * (l11 * (l21 * uu + l22 * uv));
    const vd d_yy = f * (l21 * (l21 * uu + 2.0 * (l22 * uv)) + l22 * l22 * vv);
    put(g.d_opacity, get(g.moment[kMoment1]) / get(g.opacity));

    // To M = Q S (d Sigma = dM M^T + M dM^T), then Q = T A, T = B R.
    vd dQ[2][3], dT[2][3], dB[2][3], dA[3][3];
    vd d_scale[3] = {};
    for (int i = 0; i < 3; ++i) {
        const vd dM0 = 2.0 * (d_xx * M[0][i] + d_xy * M[1][i]), dM1 = 2.0 * (d_xy * M[0][i] + d_yy * M[1][i]);
        d_scale[i] = dM0 * Q[0][i] + dM1 * Q[1][i];
        dQ[0][i] = dM0 * scale[i];
        dQ[1][i] = dM1 * scale[i];
        put(g.d_scale[i], d_scale[i]);
    }
    for (int a = 0; a < 3; ++a)
        for (int i = 0; i < 3; ++i) dA[a][i] = T[0][a] * dQ[0][i] + T[1][a] * dQ[1][i];
    for (int r = 0; r < 2; ++r) {
        for (int a = 0; a < 3; ++a) dT[r][a] = dQ[r][0] * A[a][0] + dQ[r][1] * A[a][1] + dQ[r][2] * A[a][2];
        for (int b = 0; b < 3; ++b)
            dB[r][b] = dT[r][0] * view[b][0] + dT[r][1] * view[b][1] + dT[r][2] * view[b][2];
    }
    vd dq[4];
    quaternion_gradient(q, dA, dq);
    if (normalized) { // only what is across q; and q was divided by its norm
        const vd along = dq[0] * q[0] + dq[1] * q[1] + dq[2] * q[2] + dq[3] * q[3];
        for (int i = 0; i < 4; ++i) dq[i] = (dq[i] - along * q[i]) * inverse_norm;
    }
    for (int i = 0; i < 4; ++i) put(g.d_quaternion[i], dq[i]);

    // To the point in the camera: through B = K J (clamped x / z and y / z have no gradient), through the
    // centre K (nx, ny, 1), and through what the depth picture sums.
    vd d_inverse_z{}, d_hx{}, d_hy{};
    for (int r = 0; r < 2; ++r) {
        d_inverse_z += dB[r][0] * in[r][0] + dB[r][1] * in[r][1] - dB[r][2] * (in[r][0] * hx + in[r][1] * hy);
        d_hx -= dB[r][2] * B[r][0];
        d_hy -= dB[r][2] * B[r][1];
    }
    const vd d_nx = in[0][0] * d_x + in[1][0] * d_y + d_hx * x_inside;
    const vd d_ny = in[0][1] * d_x + in[1][1] * d_y + d_hy * y_inside;
    d_inverse_z += d_nx * point[0] + d_ny * point[1];
    const vd d_depth = get(g.moment[kMomentDepth]);
    const bool inverse_depth = k.flags & GUAVA_SPLAT_INVERSE_DEPTH;
    if (inverse_depth) d_inverse_z += d_depth;
    vd d_point[3] = {d_nx * inverse_z, d_ny * inverse_z, -d_inverse_z * inverse_z * inverse_z};
    if (!inverse_depth) d_point[2] += d_depth;
    for (int a = 0; a < 3; ++a)
        put(g.d_mean[a], view[0][a] * d_point[0] + view[1][a] * d_point[1] + view[2][a] * d_point[2]);

    if (!camera) return;
    for (int b = 0; b < 3; ++b) {
        for (int a = 0; a < 3; ++a)
            sums[4 * b + a] += d_point[b] * mean[a] + B[0][b] * dT[0][a] + B[1][b] * dT[1][a];
        sums[4 * b + 3] += d_point[b];
    }
    const vd d_pixel[2] = {d_x, d_y};
    for (int r = 0; r < 2; ++r) {
        sums[12 + 3 * r] += d_pixel[r] * nx + (dB[r][0] - dB[r][2] * hx) * inverse_z;
        sums[12 + 3 * r + 1] += d_pixel[r] * ny + (dB[r][1] - dB[r][2] * hy) * inverse_z;
        sums[12 + 3 * r + 2] += d_pixel[r];
    }
}

// ---- Slots ------------------------------------------------------------------------------------------------

// The part of a Gaussian's pairs that lies in the band; its places ascend.
GUAVA_INLINE void pairs_in_band(const ProjectBackwardJob &job, int64_t i, uint32_t &begin, uint32_t &end) {
    begin = end = 0;
    if (!job.pair_counts[i]) return;
    begin = job.pair_starts[i];
    end = begin + job.pair_counts[i];
    while (begin < end && job.places[begin] < job.first_pair) ++begin;
    while (begin < end && job.places[end - 1] >= job.last_pair) --end;
}

typedef float Moments __attribute__((vector_size(4 * kMoments)));
typedef float MomentsUnaligned __attribute__((vector_size(4 * kMoments), aligned(4), may_alias));

// Features and moments of one Gaussian: the sums of its slots, and of the bands before.
GUAVA_INLINE void add_slots(const ProjectBackwardJob &job, int64_t i, bool streamed) {
    const int64_t channels = job.constants->channels;
    const size_t stride = (size_t)job.slot_channels + kMoments;
    uint32_t begin, end;
    pairs_in_band(job, i, begin, end);
    if (begin == end && !job.first_band) return;
    const auto slot = [&](uint32_t pair) {
        return job.slots + (size_t)(job.places[pair] - job.first_pair) * stride;
    };

    MomentsUnaligned &moments = *reinterpret_cast<MomentsUnaligned *>(job.moments + i * kMoments);
    Moments sum = job.first_band ? Moments{} : moments;
    for (uint32_t pair = begin; pair < end; ++pair)
        sum += *reinterpret_cast<const MomentsUnaligned *>(slot(pair) + job.slot_channels);
    moments = sum;

    if (!job.d_features) return;
    float *features = job.d_features + i * channels;
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
        vf total = job.first_band ? vf{} : load(features + c);
        for (uint32_t pair = begin; pair < end; ++pair) total += load(slot(pair) + c);
        if (streamed) stream(features + c, total);
        else store(features + c, total);
    }
    for (; c < channels; ++c) {
        float total = job.first_band ? 0 : features[c];
        for (uint32_t pair = begin; pair < end; ++pair) total += slot(pair)[c];
        features[c] = total;
    }
}

void prefetch_slots(const ProjectBackwardJob &job, int64_t i) {
    if (!job.pair_counts[i]) return; // pair_starts is not written then
    const size_t stride = (size_t)job.slot_channels + kMoments;
    const uint32_t *places = job.places + job.pair_starts[i];
    for (uint32_t pair = 0; pair < job.pair_counts[i] && pair < kPrefetchedPairs; ++pair) {
        if (places[pair] < job.first_pair || places[pair] >= job.last_pair) continue;
        const float *slot = job.slots + (size_t)(places[pair] - job.first_pair) * stride;
        const char *first = reinterpret_cast<const char *>(slot);
        const char *last = reinterpret_cast<const char *>(slot + stride) - 1;
        for (const char *line = first; line <= last && line < first + kPrefetchedBytes; line += 64)
            __builtin_prefetch(line);
        __builtin_prefetch(last);
    }
}

void gather(const ProjectBackwardJob &job, Lanes &g, int lane, int64_t i) {
    for (int a = 0; a < 3; ++a) g.mean[a][lane] = job.means[3 * i + a];
    for (int a = 0; a < 4; ++a) g.quaternion[a][lane] = job.quaternions[4 * i + a];
    for (int a = 0; a < 3; ++a) g.scale[a][lane] = job.scales[3 * i + a];
    g.opacity[lane] = job.opacities[i];
    for (int m = 0; m < kMoments; ++m) g.moment[m][lane] = job.moments[i * kMoments + m];
}

void scatter(const ProjectBackwardJob &job, const Lanes &g, int lane, int64_t i) {
    if (job.d_means)
        for (int a = 0; a < 3; ++a) job.d_means[3 * i + a] = (float)g.d_mean[a][lane];
    if (job.d_quaternions)
        for (int a = 0; a < 4; ++a) job.d_quaternions[4 * i + a] = (float)g.d_quaternion[a][lane];
    if (job.d_scales)
        for (int a = 0; a < 3; ++a) job.d_scales[3 * i + a] = (float)g.d_scale[a][lane];
    if (job.d_opacities) job.d_opacities[i] = (float)g.d_opacity[lane];
}

void clear(const ProjectBackwardJob &job, int64_t i) {
    for (int a = 0; a < 3 && job.d_means; ++a) job.d_means[3 * i + a] = 0;
    for (int a = 0; a < 4 && job.d_quaternions; ++a) job.d_quaternions[4 * i + a] = 0;
    for (int a = 0; a < 3 && job.d_scales; ++a) job.d_scales[3 * i + a] = 0;
    if (job.d_opacities) job.d_opacities[i] = 0;
}

void project_backward_chunk(const ProjectBackwardJob *job, int64_t begin, int64_t end, double *camera_sums) {
    vd sums[kCameraSums] = {};
    Lanes g;
    int64_t gaussians[kDoubles];
    int filled = 0;
    const bool streamed = job->first_band && job->last_band && job->constants->channels % kBlockPixels == 0 &&
                          (uintptr_t)job->d_features % 64 == 0;
    const auto flush = [&] {
        for (int lane = filled; lane < kDoubles; ++lane) { // once more, without effect
            gather(*job, g, lane, gaussians[0]);
            for (int m = 0; m < kMoments; ++m) g.moment[m][lane] = 0;
        }
        project_backward(*job->constants, g, job->camera, sums);
        for (int lane = 0; lane < filled; ++lane) scatter(*job, g, lane, gaussians[lane]);
        filled = 0;
    };
    for (int64_t i = begin; i < end; ++i) {
        if (i + 2 * kPrefetchAhead < end && job->pair_counts[i + 2 * kPrefetchAhead])
            __builtin_prefetch(job->places + job->pair_starts[i + 2 * kPrefetchAhead]);
        if (i + kPrefetchAhead < end) prefetch_slots(*job, i + kPrefetchAhead);
        add_slots(*job, i, streamed);
        if (!job->last_band) continue;
        if (!job->pair_counts[i]) {
            clear(*job, i);
            continue;
        }
        gather(*job, g, filled, i);
        gaussians[filled++] = i;
        if (filled == kDoubles) flush();
    }
    if (filled) flush();
    finish_streams();
    if (job->camera)
        for (int n = 0; n < kCameraSums; ++n) {
            camera_sums[n] = 0;
            for (int lane = 0; lane < kDoubles; ++lane) camera_sums[n] += sums[n][lane];
        }
}

} // namespace

extern const ProjectBackwardKernel splat_project_backward;
const ProjectBackwardKernel splat_project_backward = project_backward_chunk;

} // namespace GUAVA_ISA
} // namespace guava
