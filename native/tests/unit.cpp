// Unit tests of the native splatter through its C interface: a plain program, so that it also runs under qemu
// and sanitizers. The reference is a naive implementation in double precision, written from the formulas of
// src/guava/rendering/splatting.py; gradients are its central differences. Runs animation.cpp as well. Prints
// "N passed, 0 failed".
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "guava_native.h"

namespace {

// ---- A very small test framework --------------------------------------------------------------------------

int passed = 0, failed = 0;
std::string where;

void check(bool good, const char *what) {
    ++(good ? passed : failed);
    if (!good) std::printf("FAILED: %s [%s]\n", what, where.c_str());
}

void check_below(double value, double bound, const char *what) {
    ++(value <= bound ? passed : failed);
    if (!(value <= bound)) std::printf("FAILED: %s: %g > %g [%s]\n", what, value, bound, where.c_str());
}

// The same numbers on every platform.
struct Random {
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed * 2654435761u + 12345) {}
    double uniform(double low = 0, double high = 1) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return low + (high - low) * static_cast<double>(state >> 11) / 9007199254740992.0;
    }
};

// ---- Scenes -----------------------------------------------------------------------------------------------

enum Parameter { kMeans, kQuaternions, kScales, kOpacities, kFeatures, kBackground, kView, kIntrinsics,
    kParameters };
const char *const kNames[] = {"means", "quaternions", "scales", "opacities", "features", "background", "view",
                              "intrinsics"};

struct Scene {
    int count, channels, width, height, flags;
    bool has_background = true;
    std::vector<float> values[kParameters];
    float frustum[4] = {-0.7f, 0.7f, -0.6f, 0.6f};
    float eps2d = 0.3f, alpha_max = 0.999f, alpha_min = 1 / 255.f, transmittance_min = 1e-4f,
        near_plane = 0.01f;

    guava_splat_scene interface() const {
        guava_splat_scene s = {};
        s.count = count;
        s.channels = channels;
        s.width = width;
        s.height = height;
        s.flags = flags;
        s.means = values[kMeans].data();
        s.quaternions = values[kQuaternions].data();
        s.scales = values[kScales].data();
        s.opacities = values[kOpacities].data();
        s.features = values[kFeatures].data();
        s.background = has_background ? values[kBackground].data() : nullptr;
        std::copy(values[kView].begin(), values[kView].end(), s.view);
        std::copy(values[kIntrinsics].begin(), values[kIntrinsics].end(), s.intrinsics);
        std::copy(frustum, frustum + 4, s.frustum);
        s.eps2d = eps2d;
        s.alpha_max = alpha_max;
        s.alpha_min = alpha_min;
        s.transmittance_min = transmittance_min;
        s.near_plane = near_plane;
        return s;
    }
    size_t pixels() const { return static_cast<size_t>(width) * static_cast<size_t>(height); }
};

constexpr int kGsplat = GUAVA_SPLAT_NORMALIZE_QUATERNIONS;
constexpr int kThreeDgs = GUAVA_SPLAT_EXCLUSIVE_LIMITS | GUAVA_SPLAT_RADIUS_EXTENT |
                          GUAVA_SPLAT_STRAIGHT_THROUGH | GUAVA_SPLAT_INVERSE_DEPTH;

// Gaussians in front of a skewed camera, some beside the picture, some behind the camera.
Scene random_scene(int count, int channels, int width, int height, int flags, uint64_t seed,
    double size = 3) {
    Scene s = {};
    s.count = count;
    s.channels = channels;
    s.width = width;
    s.height = height;
    s.flags = flags;
    s.has_background = true;
    Random random(seed);
    const double focal = std::max(width, height) * 1.1;
    s.values[kIntrinsics] = {static_cast<float>(focal), 0.07f * static_cast<float>(focal),
        0.51f * static_cast<float>(width),
                             0.02f * static_cast<float>(focal), 1.05f * static_cast<float>(focal),
                             0.47f * static_cast<float>(height)};
    const double a = 0.3, b = -0.2; // a turn about y, then about x
    s.values[kView] = {
        static_cast<float>(std::cos(a)), 0, static_cast<float>(std::sin(a)), 0.05f,
        static_cast<float>(std::sin(a) * std::sin(b)), static_cast<float>(std::cos(b)),
        static_cast<float>(-std::cos(a) * std::sin(b)), -0.03f,
        static_cast<float>(-std::sin(a) * std::cos(b)), static_cast<float>(std::sin(b)),
        static_cast<float>(std::cos(a) * std::cos(b)), 2.0f,
    };
    for (int i = 0; i < count; ++i) {
        const bool behind = i % 17 == 16;
        for (int c = 0; c < 3; ++c)
            s.values[kMeans].push_back(static_cast<float>(random.uniform(-0.9,
                0.9) - (behind && c == 2 ? 4 : 0)));
        double q[4], norm = 0;
        for (double &x : q) x = random.uniform(-1, 1), norm += x * x;
        const double length = flags & GUAVA_SPLAT_NORMALIZE_QUATERNIONS ? random.uniform(0.5, 2) : 1;
        for (double x : q) s.values[kQuaternions].push_back(static_cast<float>(x / std::sqrt(norm) * length));
        for (int c = 0; c < 3; ++c)
            s.values[kScales].push_back(static_cast<float>(random.uniform(0.2, 1) * size * 2 / focal));
        s.values[kOpacities].push_back(static_cast<float>(i % 5 == 0 ? 1.0 : random.uniform(0.05, 1)));
        for (int c = 0; c < channels; ++c)
            s.values[kFeatures].push_back(static_cast<float>(random.uniform(-1, 1)));
    }
    for (int c = 0; c < channels; ++c)
        s.values[kBackground].push_back(static_cast<float>(random.uniform(-1, 1)));
    if (!(flags & GUAVA_SPLAT_NORMALIZE_QUATERNIONS)) s.alpha_max = 0.99f, s.near_plane = 0.2f;
    return s;
}

// ---- The reference ----------------------------------------------------------------------------------------

struct Picture {
    std::vector<double> features, alpha, depth;
    // What changes only in jumps: the number of weights, and the order of depth.
    int64_t drawn = 0;
    uint64_t order = 0;
};

using Values = std::vector<double>[kParameters];

// How much the clamp to alpha_max took off every alpha, in the order of evaluation: what "straight through"
// holds fixed while parameters are varied.
using Clamps = std::vector<double>;

void render(const Scene &s, const Values &p, const Clamps *held, Clamps *made, Picture &out) {
    struct Flat {
        double x, y, a, b, c, z, opacity, low[2], high[2];
        int index;
    };
    std::vector<Flat> flats;
    const std::vector<double> &view = p[kView], &in = p[kIntrinsics];
    for (int i = 0; i < s.count; ++i) {
        double point[3];
        for (int r = 0; r < 3; ++r) {
            point[r] = view[4 * r + 3];
            for (int c = 0; c < 3; ++c) point[r] += view[4 * r + c] * p[kMeans][3 * i + c];
        }
        const double z = point[2], opacity = p[kOpacities][i];
        const bool exclusive = s.flags & GUAVA_SPLAT_EXCLUSIVE_LIMITS;
        if (exclusive ? z <= s.near_plane : z < s.near_plane) continue;
        if (opacity < s.alpha_min) continue;
        const double nx = point[0] / z, ny = point[1] / z;
        const double hx = std::min<double>(std::max<double>(nx, s.frustum[0]), s.frustum[1]);
        const double hy = std::min<double>(std::max<double>(ny, s.frustum[2]), s.frustum[3]);
        double q[4], norm = 0;
        for (int c = 0; c < 4; ++c) q[c] = p[kQuaternions][4 * i + c], norm += q[c] * q[c];
        if (s.flags & GUAVA_SPLAT_NORMALIZE_QUATERNIONS)
            for (double &x : q) x /= std::sqrt(norm);
        const double w = q[0], x = q[1], y = q[2], v = q[3];
        const double axes[3][3] = {
            {1 - 2 * (y * y + v * v), 2 * (x * y - w * v), 2 * (x * v + w * y)},
            {2 * (x * y + w * v), 1 - 2 * (x * x + v * v), 2 * (y * v - w * x)},
            {2 * (x * v - w * y), 2 * (y * v + w * x), 1 - 2 * (x * x + y * y)},
        };
        const double jacobian[2][3] = {{1 / z, 0, -hx / z}, {0, 1 / z, -hy / z}};
        double spread[2][3] = {};
        for (int r = 0; r < 2; ++r)
            for (int c = 0; c < 3; ++c)
                for (int m = 0; m < 3; ++m)
                    for (int n = 0; n < 3; ++n)
                        spread[r][c] += (in[3 * r] * jacobian[0][m] + in[3 * r + 1] * jacobian[1][m]) *
                                        view[4 * m + n] * axes[n][c] * p[kScales][3 * i + c];
        double covariance[2][2] = {{s.eps2d, 0}, {0, s.eps2d}};
        for (int r = 0; r < 2; ++r)
            for (int c = 0; c < 2; ++c)
                for (int m = 0; m < 3; ++m) covariance[r][c] += spread[r][m] * spread[c][m];
        const double determinant = covariance[0][0] * covariance[1][1] - covariance[0][1] * covariance[1][0];
        if (!(determinant > 0)) continue;
        Flat f = {};
        f.x = in[0] * nx + in[1] * ny + in[2];
        f.y = in[3] * nx + in[4] * ny + in[5];
        f.a = covariance[1][1] / determinant;
        f.b = -covariance[0][1] / determinant;
        f.c = covariance[0][0] / determinant;
        f.z = z;
        f.opacity = opacity;
        f.index = i;
        const double centre[2] = {f.x - 0.5, f.y - 0.5}, mid = (covariance[0][0] + covariance[1][1]) / 2;
        const double largest = mid + std::sqrt(std::max(0.1, mid * mid - determinant));
        const double radius = std::ceil(3 * std::sqrt(largest));
        for (int c = 0; c < 2; ++c) {
            f.low[c] = 16 * std::floor((centre[c] - radius) / 16);
            f.high[c] = 16 * std::floor((centre[c] + radius + 15) / 16);
        }
        flats.push_back(f);
    }
    std::stable_sort(flats.begin(), flats.end(), [](const Flat &a, const Flat &b) { return a.z < b.z; });

    const size_t channels = static_cast<size_t>(s.channels);
    out.features.assign(s.pixels() * channels, 0);
    out.alpha.assign(s.pixels(), 0);
    out.depth.assign(s.pixels(), 0);
    out.drawn = 0;
    out.order = 0;
    for (const Flat &f : flats) out.order = out.order * 1000003 + static_cast<uint64_t>(f.index);
    if (made) made->clear();
    size_t evaluation = 0;
    for (int py = 0; py < s.height; ++py)
        for (int px = 0; px < s.width; ++px) {
            const size_t pixel = static_cast<size_t>(py) * static_cast<size_t>(s.width)
                + static_cast<size_t>(px);
            double left = 1;
            bool open = true;
            for (const Flat &f : flats) {
                const double dx = px + 0.5 - f.x, dy = py + 0.5 - f.y;
                const double raw = f.opacity * std::exp(-0.5 * (f.a * dx * dx
                    + f.c * dy * dy) - f.b * dx * dy);
                double alpha = std::min<double>(raw, s.alpha_max);
                if (s.flags & GUAVA_SPLAT_STRAIGHT_THROUGH) {
                    if (made) made->push_back(raw - alpha);
                    if (held) alpha = raw - (*held)[evaluation];
                    ++evaluation;
                }
                if (alpha < s.alpha_min || !open) continue;
                if ((s.flags & GUAVA_SPLAT_RADIUS_EXTENT) &&
                    (px < f.low[0] || px >= f.high[0] || py < f.low[1] || py >= f.high[1]))
                    continue;
                const double after = left * (1 - alpha);
                if (s.flags & GUAVA_SPLAT_EXCLUSIVE_LIMITS ? after < s.transmittance_min
                                                           : after <= s.transmittance_min) {
                    open = false;
                    continue;
                }
                const double weight = left * alpha;
                for (size_t c = 0; c < channels; ++c)
                    out.features[pixel * channels + c] +=
                        weight * p[kFeatures][static_cast<size_t>(f.index) * channels + c];
                out.depth[pixel] += weight * (s.flags & GUAVA_SPLAT_INVERSE_DEPTH ? 1 / f.z : f.z);
                ++out.drawn;
                left = after;
            }
            out.alpha[pixel] = 1 - left;
            for (size_t c = 0; c < channels && s.has_background; ++c)
                out.features[pixel * channels + c] += left * p[kBackground][c];
        }
}

void to_double(const Scene &s, Values &p) {
    for (int n = 0; n < kParameters; ++n) p[n].assign(s.values[n].begin(), s.values[n].end());
}

// ---- The library ------------------------------------------------------------------------------------------

struct Context {
    guava_context *handle;
    Context(int threads, int isa) : handle(guava_context_create(threads)) {
        check(handle && guava_context_set_isa(handle, isa) == GUAVA_OK, "a context with the instruction set");
    }
    ~Context() { guava_context_destroy(handle); }
};

struct State {
    guava_splat_state *handle = guava_splat_state_create();
    ~State() { guava_splat_state_destroy(handle); }
};

// An output that is aligned to floats only, with guards on both sides.
struct Output {
    std::vector<float> memory;
    size_t size;
    explicit Output(size_t size, size_t offset = 3) : memory(size + 32, -777.0f), size(size), start(offset) {}
    float *data() { return memory.data() + start; }
    const float *data() const { return memory.data() + start; }
    bool guarded() const {
        for (size_t i = 0; i < memory.size(); ++i)
            if ((i < start || i >= start + size) && memory[i] != -777.0f) return false;
        return true;
    }
    size_t start;
};

struct Drawn {
    Output features, alpha, depth;
    int32_t status;
    guava_splat_problem problem = {};
    guava_splat_stats stats = {};
    Drawn(const Scene &s, guava_context *context, guava_splat_state *state = nullptr, size_t offset = 3)
        : features(s.pixels() * static_cast<size_t>(s.channels), offset), alpha(s.pixels()),
            depth(s.pixels()) {
        const guava_splat_scene scene = s.interface();
        const guava_splat_picture picture = {features.data(), alpha.data(), depth.data()};
        status = guava_splat_forward(context, &scene, &picture, state, &problem, &stats);
    }
    bool guarded() const { return features.guarded() && alpha.guarded() && depth.guarded(); }
};

struct Gradients {
    std::vector<Output> outputs;
    int32_t status;
    Gradients(const Scene &s, guava_context *context, const guava_splat_state *state, const float *features,
              const float *alpha, const float *depth) {
        for (const std::vector<float> &values : s.values) outputs.emplace_back(values.size());
        const guava_splat_scene scene = s.interface();
        guava_splat_gradients g = {};
        g.out_features = features;
        g.out_alpha = alpha;
        g.out_depth = depth;
        float **wanted[] = {&g.means, &g.quaternions, &g.scales, &g.opacities,
                            &g.features, &g.background, &g.view, &g.intrinsics};
        for (int n = 0; n < kParameters; ++n) *wanted[n] = outputs[static_cast<size_t>(n)].data();
        if (!s.has_background) g.background = nullptr;
        status = guava_splat_backward(context, &scene, state, &g, nullptr);
    }
};

// The larger one; NaN is larger than anything, and stays when it is asked again.
double larger(double most, double value) {
    return value <= most ? most : std::isnan(value) ? std::numeric_limits<double>::infinity() : value;
}

double largest_difference(const Output &a, const std::vector<double> &b) {
    double most = 0;
    for (size_t i = 0; i < b.size(); ++i) most = larger(most, std::fabs(a.data()[i] - b[i]));
    return most;
}

bool same_bits(const Output &a, const Output &b) {
    return a.size == b.size && std::memcmp(a.data(), b.data(), a.size * sizeof(float)) == 0;
}

std::vector<int> instruction_sets() {
    std::vector<int> found;
    for (int isa : {GUAVA_ISA_BASELINE, GUAVA_ISA_AVX2, GUAVA_ISA_AVX512})
        if (guava_isa_available(isa)) found.push_back(isa);
    return found;
}

void name(int isa, const char *what, const Scene &s) {
    where = std::string(guava_isa_name(isa)) + " " + what + ": " + std::to_string(s.count) + " Gaussians, " +
            std::to_string(s.channels) + " channels, " + std::to_string(s.width) + "x"
                + std::to_string(s.height) +
            (s.flags == kGsplat ? ", gsplat" : ", 3dgs");
}

// ---- Tests ------------------------------------------------------------------------------------------------

void compare_forward(const Scene &s, const char *what, double tolerance = 2e-5) {
    Values p;
    to_double(s, p);
    Picture reference;
    render(s, p, nullptr, nullptr, reference);
    for (int isa : instruction_sets()) {
        name(isa, what, s);
        Context context(2, isa);
        const Drawn drawn(s, context.handle);
        check(drawn.status == GUAVA_OK, "forward");
        check(drawn.guarded(), "nothing written beyond the outputs");
        check_below(largest_difference(drawn.features, reference.features), tolerance, "features");
        check_below(largest_difference(drawn.alpha, reference.alpha), tolerance, "alpha");
        check_below(largest_difference(drawn.depth, reference.depth), 3 * tolerance, "depth");
    }
}

// Compares about `samples` entries of every gradient with central differences.
void compare_backward(const Scene &s, const char *what, int samples, double tolerance = 1e-4) {
    Random random(99);
    const size_t channels = static_cast<size_t>(s.channels);
    std::vector<float> by_features(s.pixels() * channels), by_alpha(s.pixels()), by_depth(s.pixels());
    for (std::vector<float> *values : {&by_features, &by_alpha, &by_depth})
        for (float &x : *values) x = static_cast<float>(random.uniform(-1, 1));
    Values p;
    to_double(s, p);
    Clamps clamps;
    Picture base, moved;
    render(s, p, nullptr, &clamps, base);
    const auto loss = [&](const Picture &picture) {
        double total = 0;
        for (size_t i = 0; i < by_features.size(); ++i) total += by_features[i] * picture.features[i];
        for (size_t i = 0; i < s.pixels(); ++i) total += by_alpha[i] * picture.alpha[i]
            + by_depth[i] * picture.depth[i];
        return total;
    };
    struct Entry {
        int parameter;
        size_t place;
        double value;
    };
    std::vector<Entry> entries;
    int crossed = 0;
    for (int n = 0; n < kParameters; ++n) {
        if (n == kBackground && !s.has_background) continue;
        // The camera moves all depths: a larger step swaps neighbours.
        const double h = n == kView ? 1e-8 : 1e-6;
        const size_t step = std::max<size_t>(1, p[n].size() / static_cast<size_t>(samples));
        for (size_t i = 0; i < p[n].size(); i += step) {
            const double kept = p[n][i];
            double side[2];
            bool crosses = false;
            for (int sign = 0; sign < 2; ++sign) {
                p[n][i] = kept + (sign ? -h : h);
                render(s, p, &clamps, nullptr, moved);
                side[sign] = loss(moved);
                crosses = crosses || moved.drawn != base.drawn || moved.order != base.order;
            }
            p[n][i] = kept;
            if (crosses) ++crossed; // a limit lies between: there is no derivative to compare with
            else entries.push_back({n, i, (side[0] - side[1]) / (2 * h)});
        }
    }
    for (int isa : instruction_sets()) {
        name(isa, what, s);
        Context context(2, isa);
        State state;
        const Drawn drawn(s, context.handle, state.handle);
        const Gradients g(s, context.handle, state.handle, by_features.data(), by_alpha.data(),
            by_depth.data());
        check(drawn.status == GUAVA_OK && g.status == GUAVA_OK, "forward and backward");
        check_below(crossed, 0.05 * static_cast<double>(entries.size()) + 1, "entries without a derivative");
        for (int n = 0; n < kParameters; ++n) {
            const Output &output = g.outputs[static_cast<size_t>(n)];
            check(output.guarded(), "nothing written beyond the gradients");
            double largest = 1e-3, worst = 0;
            for (const Entry &e : entries)
                if (e.parameter == n) largest = std::max(largest, std::fabs(e.value));
            for (const Entry &e : entries)
                if (e.parameter == n) worst = larger(worst, std::fabs(output.data()[e.place] - e.value));
            check_below(worst / largest, tolerance, kNames[n]);
        }
    }
}

void test_forward() {
    for (int flags : {kGsplat, kThreeDgs}) {
        for (int channels : {0, 1, 2, 3, 4, 5, 16, 31, 32, 33, 64})
            compare_forward(random_scene(120, channels, 37, 29, flags, 1), "forward");
        compare_forward(random_scene(60, 3, 1, 1, flags, 2), "one pixel");
        compare_forward(random_scene(60, 32, 1, 50, flags, 3), "one column");
        compare_forward(random_scene(60, 7, 50, 1, flags, 4), "one row");
        compare_forward(random_scene(200, 4, 64, 48, flags, 5), "whole tiles");
        compare_forward(random_scene(30, 333, 20, 20, flags, 6), "many channels");
        compare_forward(random_scene(40, 3, 40, 40, flags, 7, 60), "Gaussians larger than the picture");
        Scene without = random_scene(50, 32, 40, 33, flags, 8);
        without.has_background = false;
        compare_forward(without, "no background");
    }
}

void test_limits() {
    for (int channels : {3, 16}) {
        Scene deep = random_scene(2600, channels, 13, 9, kGsplat, 10, 4); // lists longer than a batch
        for (float &x : deep.values[kOpacities]) x *= 0.02f;
        compare_forward(deep, "long lists", 4e-5);
        compare_forward(random_scene(2600, channels, 13, 9, kGsplat, 15, 9), "long opaque lists", 4e-5);
        Scene faint = random_scene(100, channels, 30, 30, kGsplat, 11);
        faint.alpha_min = 1e-12f;
        compare_forward(faint, "alpha_min 1e-12");
        Scene opaque = random_scene(100, channels, 30, 30, kGsplat, 12);
        opaque.alpha_max = 1;
        opaque.transmittance_min = 0;
        compare_forward(opaque, "alpha_max 1, transmittance_min 0");
        Scene needles = random_scene(60, channels, 60, 60, kGsplat, 13);
        for (size_t i = 0; i < needles.values[kScales].size(); i += 3) {
            needles.values[kScales][i] = 0.8f;
            needles.values[kScales][i + 1] = needles.values[kScales][i + 2] = 1e-5f;
        }
        compare_forward(needles, "needles", 1e-4);
        Scene flat = random_scene(60, channels, 30, 30, kGsplat, 14);
        for (float &x : flat.values[kScales]) x = 0;
        compare_forward(flat, "scales 0");
    }
}

void test_backward() {
    for (int flags : {kGsplat, kThreeDgs}) {
        for (int channels : {0, 1, 3, 4, 5, 32, 33})
            compare_backward(random_scene(12, channels, 19, 21, flags, 20), "backward", 40);
        compare_backward(random_scene(20, 3, 1, 1, flags, 21, 6), "backward of one pixel", 40);
        Scene deep = random_scene(2600, 5, 6, 5, flags, 22, 4);
        for (float &x : deep.values[kOpacities]) x *= 0.02f;
        compare_backward(deep, "backward of long lists", 12);
        compare_backward(random_scene(2600, 5, 6, 5, flags, 25, 9), "backward of long opaque lists", 12);
        Scene without = random_scene(12, 3, 20, 20, flags, 23);
        without.has_background = false;
        compare_backward(without, "backward without background", 20);
    }
    Scene opaque = random_scene(20, 3, 18, 18, kGsplat, 24);
    opaque.alpha_max = 1;
    compare_backward(opaque, "backward, alpha_max 1", 20);
}

// A part of the gradients, and parts of what they come from.
void test_partial_backward() {
    const Scene s = random_scene(80, 6, 33, 20, kGsplat, 30);
    for (int isa : instruction_sets()) {
        name(isa, "partial backward", s);
        Context context(2, isa);
        State state;
        const Drawn drawn(s, context.handle, state.handle);
        std::vector<float> ones(s.pixels() * 6, 1.0f), zeros(s.pixels() * 6, 0.0f);
        const Gradients full(s, context.handle, state.handle, ones.data(), zeros.data(), zeros.data());
        const Gradients part(s, context.handle, state.handle, ones.data(), nullptr, nullptr);
        for (size_t n = 0; n < kParameters; ++n) check(same_bits(full.outputs[n], part.outputs[n]),
            kNames[n]);
        const Gradients none(s, context.handle, state.handle, nullptr, nullptr, nullptr);
        bool zero = none.status == GUAVA_OK;
        for (const Output &output : none.outputs)
            for (size_t i = 0; i < output.size; ++i) zero = zero && output.data()[i] == 0;
        check(zero, "no gradient in, none out");
        const guava_splat_scene scene = s.interface();
        guava_splat_gradients g = {};
        Output means(s.values[kMeans].size());
        g.out_features = ones.data();
        g.means = means.data();
        check(guava_splat_backward(context.handle, &scene, state.handle, &g, nullptr) == GUAVA_OK,
            "means only");
        check(same_bits(means, full.outputs[kMeans]), "means only: the same");
    }
}

void test_threads() {
    for (int channels : {3, 32, 37}) {
        const Scene s = random_scene(6000, channels, 150, 101, channels == 3 ? kThreeDgs : kGsplat, 40, 4);
        Random random(41);
        std::vector<float> by_features(s.pixels() * static_cast<size_t>(channels)), by_alpha(s.pixels());
        for (float &x : by_features) x = static_cast<float>(random.uniform(-1, 1));
        for (float &x : by_alpha) x = static_cast<float>(random.uniform(-1, 1));
        for (int isa : instruction_sets()) {
            name(isa, "threads", s);
            Context one(1, isa);
            State state;
            const Drawn drawn(s, one.handle, state.handle);
            const Gradients g(s, one.handle, state.handle, by_features.data(), by_alpha.data(),
                by_alpha.data());
            for (int threads : {2, 3, 5}) {
                Context many(threads, isa);
                State own;
                const Drawn again(s, many.handle, own.handle, 16);
                const Gradients h(s, many.handle, own.handle, by_features.data(), by_alpha.data(),
                    by_alpha.data());
                check(same_bits(drawn.features, again.features) && same_bits(drawn.alpha, again.alpha) &&
                          same_bits(drawn.depth, again.depth),
                      "the same picture, bit for bit");
                for (size_t n = 0; n < kParameters; ++n) check(same_bits(g.outputs[n], h.outputs[n]),
                    kNames[n]);
            }
        }
    }
}

void test_empty() {
    for (int isa : instruction_sets())
        for (int channels : {0, 3, 32}) {
            Scene s = random_scene(0, channels, 33, 18, kGsplat, 50);
            name(isa, "empty", s);
            Context context(2, isa);
            State state;
            const Drawn drawn(s, context.handle, state.handle);
            bool background = drawn.status == GUAVA_OK;
            const std::vector<float> &colors = s.values[kBackground];
            for (size_t i = 0; i < drawn.features.size; ++i)
                background = background && drawn.features.data()[i] == colors[i % colors.size()];
            for (size_t i = 0; i < s.pixels(); ++i) background = background && drawn.alpha.data()[i] == 0;
            check(background, "the background");
            const std::vector<float> ones(s.pixels() * 32, 1.0f);
            const Gradients g(s, context.handle, state.handle, ones.data(), ones.data(), ones.data());
            bool all = g.status == GUAVA_OK;
            for (int c = 0; c < channels; ++c)
                all = all && g.outputs[kBackground].data()[c] == static_cast<float>(s.pixels());
            check(all, "the background's gradient");
            Scene behind = random_scene(40, channels, 33, 18, kGsplat, 51);
            for (size_t i = 2; i < behind.values[kMeans].size(); i += 3) behind.values[kMeans][i] -= 10;
            const Drawn nothing(behind, context.handle, state.handle);
            check(nothing.status == GUAVA_OK && nothing.stats.visible == 0, "everything behind the camera");
            const Gradients zero(behind, context.handle, state.handle, ones.data(), ones.data(), ones.data());
            bool none = zero.status == GUAVA_OK;
            for (size_t i = 0; i < zero.outputs[kMeans].size; ++i) none = none
                && zero.outputs[kMeans].data()[i] == 0;
            check(none, "has no gradient");
        }
}

void test_invalid_values() {
    const float nan = std::numeric_limits<float>::quiet_NaN(),
        infinity = std::numeric_limits<float>::infinity();
    struct Case {
        int parameter;
        size_t place;
        float value;
        guava_splat_problem problem;
    };
    const Case cases[] = {
        {kMeans, 3 * 70 + 1, nan, {0, 0, 70}},        {kMeans, 3 * 1099 + 2, infinity, {0, 0, 1099}},
        {kQuaternions, 4 * 5 + 3, -infinity, {1, 0, 5}}, {kScales, 3 * 1098, nan, {2, 0, 1098}},
        {kOpacities, 13, nan, {3, 0, 13}},            {kOpacities, 13, 1.01f, {3, 2, 13}},
        {kOpacities, 1030, -0.01f, {3, 2, 1030}},     {kFeatures, 5 * 1099 + 4, nan, {4, 0, 1099}},
        {kFeatures, 5 * 3, infinity, {4, 0, 3}},      {kBackground, 2, nan, {5, 0, 2}},
        {kView, 7, nan, {6, 0, 0}},                   {kIntrinsics, 1, infinity, {6, 0, 0}},
    };
    for (int isa : instruction_sets()) {
        Context context(2, isa);
        const auto expect = [&](const Scene &s, const guava_splat_problem &wanted) {
            const Drawn drawn(s, context.handle);
            check(drawn.status == GUAVA_INVALID_VALUE && drawn.problem.array == wanted.array &&
                      drawn.problem.kind == wanted.kind && drawn.problem.row == wanted.row,
                  "the first wrong row");
        };
        const Scene good = random_scene(1100, 5, 20, 20, kGsplat, 60);
        for (const Case &c : cases) {
            Scene s = good;
            name(isa, kNames[c.parameter], s);
            s.values[c.parameter][c.place] = c.value;
            expect(s, c.problem);
        }
        Scene zero = good;
        name(isa, "zero quaternion", zero);
        for (size_t c = 0; c < 4; ++c) zero.values[kQuaternions][4 * 20 + c] = 0;
        expect(zero, {1, 1, 20});
        Scene nearly = good;
        nearly.values[kOpacities][3] = 1.00005f;
        nearly.values[kOpacities][4] = -0.00005f;
        check(Drawn(nearly, context.handle).status == GUAVA_OK, "rounding of opacities is forgiven");
        Scene huge = good;
        for (int c = 0; c < 3; ++c) huge.values[kMeans][static_cast<size_t>(30 + c)] = 3e38f;
        for (int c = 0; c < 3; ++c) huge.values[kScales][static_cast<size_t>(60 + c)] = 3e38f;
        const Drawn drawn(huge, context.handle);
        bool finite = drawn.status == GUAVA_OK;
        for (size_t i = 0; i < drawn.features.size; ++i) finite = finite
            && std::isfinite(drawn.features.data()[i]);
        check(finite, "overflowing values are not drawn");
    }
}

void test_invalid_calls() {
    const Scene s = random_scene(10, 3, 8, 8, kGsplat, 70);
    name(GUAVA_ISA_BASELINE, "invalid calls", s);
    check(guava_abi_version() == GUAVA_ABI_VERSION, "version");
    check(guava_context_create(0) == nullptr, "no threads");
    Context context(1, GUAVA_ISA_BEST);
    check(guava_context_set_isa(context.handle, 17) == GUAVA_INVALID_CALL, "no such instruction set");
    State state;
    guava_splat_scene scene = s.interface();
    Output features(s.pixels() * 3), alpha(s.pixels());
    guava_splat_picture picture = {features.data(), alpha.data(), nullptr};
    const auto forward = [&] {
        return guava_splat_forward(context.handle, &scene, &picture, nullptr, nullptr, nullptr);
    };
    check(forward() == GUAVA_OK, "without depth, problem and stats");
    check(guava_splat_forward(nullptr, &scene, &picture, nullptr, nullptr, nullptr) == GUAVA_INVALID_CALL,
          "no context");
    check(guava_splat_forward(context.handle, nullptr, &picture, nullptr, nullptr,
        nullptr) == GUAVA_INVALID_CALL,
          "no scene");
    for (const std::function<void()> &spoil : std::vector<std::function<void()>>{
             [&] { scene.count = -1; }, [&] { scene.channels = -1; }, [&] { scene.width = 0; },
             [&] { scene.height = 1 << 30; }, [&] { scene.means = nullptr; },
                 [&] { scene.features = nullptr; },
             [&] { picture.alpha = nullptr; }, [&] { picture.features = nullptr; }}) {
        scene = s.interface();
        picture = {features.data(), alpha.data(), nullptr};
        spoil();
        check(forward() == GUAVA_INVALID_CALL, "refused");
    }
    scene = s.interface();
    guava_splat_gradients none = {};
    check(guava_splat_backward(context.handle, &scene, state.handle, &none, nullptr) == GUAVA_INVALID_CALL,
          "backward without forward");
    const Drawn drawn(s, context.handle, state.handle);
    check(guava_splat_backward(context.handle, &scene, state.handle, &none, nullptr) == GUAVA_OK, "backward");
    scene.count = 9;
    check(guava_splat_backward(context.handle, &scene, state.handle, &none, nullptr) == GUAVA_INVALID_CALL,
          "backward of another scene");
    check(guava_splat_state_bytes(state.handle) > 0 && guava_context_bytes(context.handle) > 0, "bytes");
    guava_context_trim(context.handle);
    check(guava_context_bytes(context.handle) == 0, "trimmed");
    check(forward() == GUAVA_OK || scene.count == 9, "usable after trimming");
    guava_splat_stats counts = {};
    scene = s.interface();
    check(guava_splat_count(context.handle, &scene, &counts) == GUAVA_OK && counts.visible > 0 &&
              counts.pairs >= counts.visible && counts.evaluations > 0
                  && counts.weights <= counts.evaluations,
          "counts");
}

void test_cancel() {
    Scene s = random_scene(60000, 3, 512, 512, kGsplat, 80, 40); // some seconds of work
    for (float &x : s.values[kOpacities]) x *= 0.02f;
    for (int isa : instruction_sets())
        for (int threads : {1, 2}) {
            name(isa, "cancel", s);
            Context context(threads, isa);
            int calls = 0;
            guava_context_set_poll(context.handle, [](void *user) { return ++*static_cast<int *>(user); },
                                   &calls);
            check(Drawn(s, context.handle).status == GUAVA_CANCELLED && calls == 1,
                "cancelled by the first poll");
            guava_context_set_poll(context.handle, nullptr, nullptr);
            const Scene small = random_scene(30, 3, 20, 20, kGsplat, 81);
            check(Drawn(small, context.handle).status == GUAVA_OK, "usable afterwards");
        }
}

void test_cancel_backward() {
    Scene s = random_scene(1000, 3, 256, 256, kGsplat, 82, 400);
    for (float &x : s.values[kOpacities]) x *= 0.02f;
    s.transmittance_min = 0; // no pixel ends: several poll intervals of work, whatever the vectors
    name(GUAVA_ISA_BEST, "cancel backward", s);
    const std::vector<float> ones(3 * s.pixels(), 1.0f);
    Context context(1, GUAVA_ISA_BEST);
    State state;
    check(Drawn(s, context.handle, state.handle).status == GUAVA_OK, "forward");
    const auto backward = [&] {
        return Gradients(s, context.handle, state.handle, ones.data(), ones.data(), nullptr);
    };
    int calls = 0;
    guava_context_set_poll(context.handle, [](void *user) { return ++*static_cast<int *>(user); }, &calls);
    check(backward().status == GUAVA_CANCELLED && calls == 1, "cancelled by the first poll");
    guava_context_set_poll(context.handle, nullptr, nullptr);
    const Gradients after = backward(), again = backward();
    check(after.status == GUAVA_OK, "the state is as it was");
    for (size_t n = 0; n < kParameters; ++n) check(same_bits(after.outputs[n], again.outputs[n]), kNames[n]);
}

void test_two_contexts() {
    const Scene s = random_scene(3000, 8, 120, 90, kGsplat, 90, 4);
    name(GUAVA_ISA_BEST, "two contexts", s);
    Context first(2, GUAVA_ISA_BEST);
    const Drawn expected(s, first.handle);
    std::atomic<int> same{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 2; ++t)
        threads.emplace_back([&] {
            guava_context *context = guava_context_create(2);
            for (int i = 0; i < 5; ++i) same += same_bits(Drawn(s, context).features, expected.features);
            guava_context_destroy(context);
        });
    for (std::thread &thread : threads) thread.join();
    check(same == 10, "two contexts at the same time give the same pictures");
}

} // namespace

void animation_tests(void (*check)(bool good, const char *what)); // animation.cpp

int main() {
    where = "animation";
    animation_tests(check);
    test_forward();
    test_limits();
    test_backward();
    test_partial_backward();
    test_threads();
    test_empty();
    test_invalid_values();
    test_invalid_calls();
    test_cancel();
    test_cancel_backward();
    test_two_contexts();
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}
