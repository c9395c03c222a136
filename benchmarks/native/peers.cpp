/* What the native splatter is measured against: a straightforward per-pixel splatter, and the machine's
 * peaks.
 *
 * Compiled when a benchmark runs, once per instruction set, with the optimisation flags of the native
 * kernels. The splatter draws gsplat's conventions (SplatConventions' defaults) on 8 x 8 tiles, which suit it
 * better than the native one's 16 x 16; only its blending is timed. Projection, sorting and listing are plain
 * scalar code.
 */
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#include "guava_native.h"

namespace {

constexpr int kTile = 8;
constexpr float kLog2E = 1.44269504f;

// The exponent of a Gaussian is p = a dx^2 + b dx dy + c dy^2 in powers of two; half_x, half_y: how far from
// its centre alpha can reach alpha_min.
struct Record {
    float x, y, a, b, c, opacity, depth, threshold, half_x, half_y;
};
static_assert(sizeof(Record) == 40, "numba_peer.py reads rows of ten");

template <typename Work>
void on_threads(int threads, Work work) {
    std::vector<std::thread> others;
    for (int t = 1; t < threads; t++) others.emplace_back(work, t);
    work(0);
    for (auto &thread : others) thread.join();
}

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

struct peer {
    guava_splat_scene scene;
    std::vector<Record> records;
    std::vector<int64_t> starts;
    std::vector<int32_t> entries;

    int across() const { return (scene.width + kTile - 1) / kTile; }
    int down() const { return (scene.height + kTile - 1) / kTile; }
};

namespace {

float clamped(float value, float low, float high) { return std::min(std::max(value, low), high); }

// EWA projection of Gaussian i; an opacity of 0 marks what is not drawn.
Record project(const guava_splat_scene &s, int64_t i) {
    Record r = {};
    const float *m = s.means + 3 * i, *q = s.quaternions + 4 * i, *scale = s.scales + 3 * i, *v = s.view;
    const float *k = s.intrinsics;
    float camera[3];
    for (int d = 0; d < 3; d++)
        camera[d] = v[4 * d] * m[0] + v[4 * d + 1] * m[1] + v[4 * d + 2] * m[2] + v[4 * d + 3];
    const float z = r.depth = camera[2];
    if (z < s.near_plane || s.opacities[i] < s.alpha_min) return r;
    const float x = camera[0] / z, y = camera[1] / z;
    r.x = k[0] * x + k[1] * y + k[2];
    r.y = k[3] * x + k[4] * y + k[5];

    const float norm = 1 / std::sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
    const float qw = q[0] * norm, qx = q[1] * norm, qy = q[2] * norm, qz = q[3] * norm;
    const float rotation[3][3] = {
        {1 - 2 * (qy * qy + qz * qz), 2 * (qx * qy - qw * qz), 2 * (qx * qz + qw * qy)},
        {2 * (qx * qy + qw * qz), 1 - 2 * (qx * qx + qz * qz), 2 * (qy * qz - qw * qx)},
        {2 * (qx * qz - qw * qy), 2 * (qy * qz + qw * qx), 1 - 2 * (qx * qx + qy * qy)},
    };
    // Rows of K J R_view, with the Jacobian held inside the widened frustum.
    const float lx = clamped(x, s.frustum[0], s.frustum[1]), ly = clamped(y, s.frustum[2], s.frustum[3]);
    float axes[2][3];
    for (int row = 0; row < 2; row++) {
        const float j0 = k[3 * row] / z, j1 = k[3 * row + 1] / z, j2 = -(j0 * lx + j1 * ly);
        float world[3];
        for (int d = 0; d < 3; d++) world[d] = j0 * v[d] + j1 * v[4 + d] + j2 * v[8 + d];
        for (int d = 0; d < 3; d++)
            axes[row][d] = scale[d] * (world[0] * rotation[0][d] + world[1] * rotation[1][d] +
                                       world[2] * rotation[2][d]);
    }
    double xx = s.eps2d, xy = 0, yy = s.eps2d;
    for (int d = 0; d < 3; d++) {
        xx += axes[0][d] * axes[0][d];
        xy += axes[0][d] * axes[1][d];
        yy += axes[1][d] * axes[1][d];
    }
    const double determinant = xx * yy - xy * xy;
    if (!(determinant > 0)) return r;
    r.a = static_cast<float>(-0.5 * kLog2E * yy / determinant);
    r.b = static_cast<float>(kLog2E * xy / determinant);
    r.c = static_cast<float>(-0.5 * kLog2E * xx / determinant);
    r.opacity = s.opacities[i];
    r.threshold = std::log2(s.alpha_min / r.opacity);
    const double reach = std::sqrt(-2 * r.threshold / kLog2E);
    r.half_x = static_cast<float>(reach * std::sqrt(xx)) + 1e-3f;
    r.half_y = static_cast<float>(reach * std::sqrt(yy)) + 1e-3f;
    return r;
}

template <typename Visit>
void each_tile(const peer &p, const Record &r, Visit visit) {
    const int width = p.scene.width, height = p.scene.height;
    if (r.opacity <= 0 || !(r.x + r.half_x >= 0 && r.x - r.half_x <= width)) return;
    if (!(r.y + r.half_y >= 0 && r.y - r.half_y <= height)) return;
    const int x0 = static_cast<int>(std::max(std::ceil(r.x - r.half_x - 0.5f), 0.f));
    const int x1 = static_cast<int>(std::min(std::floor(r.x + r.half_x - 0.5f), width - 1.f));
    const int y0 = static_cast<int>(std::max(std::ceil(r.y - r.half_y - 0.5f), 0.f));
    const int y1 = static_cast<int>(std::min(std::floor(r.y + r.half_y - 0.5f), height - 1.f));
    if (x0 > x1 || y0 > y1) return;
    for (int ty = y0 / kTile; ty <= y1 / kTile; ty++)
        for (int tx = x0 / kTile; tx <= x1 / kTile; tx++) visit(ty * p.across() + tx);
}

// Composites one pixel. kChannels > 0 lets the compiler unroll and vectorise the sum over channels.
// Returns how many Gaussians contributed.
template <int kChannels>
int64_t draw_pixel(const peer &p, int tile, int x, int y, float *features, float *alpha_out,
                   float *depth_out) {
    const guava_splat_scene &s = p.scene;
    const int channels = kChannels ? kChannels : s.channels;
    float left = 1, depth = 0;
    float fixed[kChannels ? kChannels : 1] = {};
    float *sum = kChannels ? fixed : features;
    if (!kChannels) std::fill(sum, sum + channels, 0.f);
    int64_t drawn = 0;
    for (int64_t j = p.starts[tile]; j < p.starts[tile + 1]; j++) {
        const Record &r = p.records[p.entries[j]];
        const float dx = x + 0.5f - r.x, dy = y + 0.5f - r.y;
        const float power = dx * (r.a * dx + r.b * dy) + (r.c * dy) * dy;
        if (power > 0) continue;
        const float alpha = std::min(s.alpha_max, r.opacity * exp2f(power));
        if (alpha < s.alpha_min) continue;
        const float after = left * (1 - alpha);
        if (after <= s.transmittance_min) break;
        const float weight = alpha * left;
        const float *f = s.features + static_cast<int64_t>(p.entries[j]) * channels;
        for (int c = 0; c < channels; c++) sum[c] += weight * f[c];
        depth += weight * r.depth;
        left = after;
        drawn++;
    }
    if (kChannels) std::memcpy(features, fixed, sizeof(float) * channels);
    if (s.background)
        for (int c = 0; c < channels; c++) features[c] += left * s.background[c];
    *alpha_out = 1 - left;
    *depth_out = depth;
    return drawn;
}

template <int kChannels>
int64_t draw(const peer &p, int threads, float *features, float *alpha, float *depth) {
    std::atomic<int> next{0};
    std::atomic<int64_t> drawn{0};
    const int tiles = p.across() * p.down();
    on_threads(threads, [&](int) {
        int64_t mine = 0;
        for (int tile = next++; tile < tiles; tile = next++) {
            const int left = tile % p.across() * kTile, top = tile / p.across() * kTile;
            for (int y = top; y < std::min(top + kTile, p.scene.height); y++)
                for (int x = left; x < std::min(left + kTile, p.scene.width); x++) {
                    const int64_t pixel = static_cast<int64_t>(y) * p.scene.width + x;
                    mine += draw_pixel<kChannels>(p, tile, x, y, features + pixel * p.scene.channels,
                                                  alpha + pixel, depth + pixel);
                }
        }
        drawn += mine;
    });
    return drawn;
}

// Vectors of this file's instruction set.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kChains = 24;
#elif defined(__AVX__)
constexpr int kLanes = 8, kChains = 12;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kChains = 24;
#else
constexpr int kLanes = 4, kChains = 12;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes)));

// Enough independent chains to hide the latency of two multiply-add units.
float multiply_add(int64_t rounds, float factor, float term) {
    Vector chains[kChains], f = factor - Vector{}, t = term - Vector{};
    for (int i = 0; i < kChains; i++) chains[i] = t + static_cast<float>(i);
    for (int64_t round = 0; round < rounds; round++)
#pragma GCC unroll 24
        for (int i = 0; i < kChains; i++) chains[i] = chains[i] * f + t;
    Vector sum = {};
    for (int i = 0; i < kChains; i++) sum += chains[i];
    return sum[0];
}

}  // namespace

extern "C" {

/* Everything before blending, on one thread. The scene's arrays must outlive the peer. */
GUAVA_API peer *peer_prepare(const guava_splat_scene *scene) {
    peer *p = new peer{*scene, {}, {}, {}};
    p->records.resize(scene->count);
    for (int64_t i = 0; i < scene->count; i++) p->records[i] = project(*scene, i);
    std::vector<int32_t> order(scene->count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return p->records[a].depth < p->records[b].depth; });
    p->starts.assign(p->across() * p->down() + 1, 0);
    for (int i : order) each_tile(*p, p->records[i], [&](int tile) { p->starts[tile + 1]++; });
    std::partial_sum(p->starts.begin(), p->starts.end(), p->starts.begin());
    p->entries.resize(p->starts.back());
    std::vector<int64_t> cursor(p->starts.begin(), p->starts.end() - 1);
    for (int i : order) each_tile(*p, p->records[i], [&](int tile) { p->entries[cursor[tile]++] = i; });
    return p;
}

GUAVA_API void peer_destroy(peer *p) { delete p; }

GUAVA_API int64_t peer_pairs(const peer *p) { return static_cast<int64_t>(p->entries.size()); }

/* records: (N, 10); starts: (tiles + 1,); entries: (pairs,). */
GUAVA_API void peer_lists(const peer *p, float *records, int64_t *starts, int32_t *entries) {
    std::memcpy(records, p->records.data(), p->records.size() * sizeof(Record));
    std::copy(p->starts.begin(), p->starts.end(), starts);
    std::copy(p->entries.begin(), p->entries.end(), entries);
}

/* The naive loop. Returns the number of contributions: (Gaussian, pixel) weights that are added. */
GUAVA_API int64_t peer_blend(const peer *p, int32_t threads, float *features, float *alpha, float *depth) {
    switch (p->scene.channels) {
        case 3: return draw<3>(*p, threads, features, alpha, depth);
        case 4: return draw<4>(*p, threads, features, alpha, depth);
        case 32: return draw<32>(*p, threads, features, alpha, depth);
        default: return draw<0>(*p, threads, features, alpha, depth);
    }
}

/* Single-precision multiply-adds per second (two operations each), 1e9 operations per second. */
GUAVA_API double peer_peak(int32_t threads, double duration) {
    volatile float factor = 0.9f, term = 0.1f;
    std::atomic<int64_t> rounds{0};
    std::vector<float> sinks(threads);
    const double start = seconds();
    on_threads(threads, [&](int t) {
        constexpr int64_t kRounds = 20000;
        int64_t mine = 0;
        do {
            sinks[t] += multiply_add(kRounds, factor, term);
            mine += kRounds;
        } while (seconds() - start < duration);
        rounds += mine;
    });
    volatile float sink = std::accumulate(sinks.begin(), sinks.end(), 0.f);
    (void)sink;
    return 2e-9 * kChains * kLanes * static_cast<double>(rounds) / (seconds() - start);
}

/* Bytes that are read (copy = 0), or read and written (copy = 1), 1e9 per second, going through `bytes` of
 * memory again and again. data: that much memory, written before, shared evenly by the threads. */
GUAVA_API double peer_bandwidth(int32_t threads, int32_t copy, char *data, int64_t bytes, double duration) {
    std::atomic<int64_t> moved{0};
    std::vector<float> sinks(threads * 16);
    const double start = seconds();
    on_threads(threads, [&](int t) {
        const int64_t share = bytes / threads / 8192 * 8192;
        char *mine = data + t * share;
        int64_t done = 0;
        do {
            if (copy) {
                std::memcpy(mine, mine + share / 2, share / 2);
            } else {
                const Vector *v = reinterpret_cast<const Vector *>(mine);
                Vector sums[8] = {};
                for (int64_t i = 0; i < share / static_cast<int64_t>(sizeof(Vector)); i += 8)
#pragma GCC unroll 8
                    for (int k = 0; k < 8; k++) sums[k] += v[i + k];
                for (int k = 0; k < 8; k++) sinks[t * 16] += sums[k][0];
            }
            done += share;
        } while (seconds() - start < duration);
        moved += done;
    });
    volatile float sink = std::accumulate(sinks.begin(), sinks.end(), 0.f);
    (void)sink;
    return 1e-9 * static_cast<double>(moved) / (seconds() - start);
}

}
