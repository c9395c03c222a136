// The splatter's part of the C interface: checks of the call, stages, memory. The work is done by the kernels.
#include <cmath>
#include <cstring>
#include <limits>

#include "context.h"
#include "guava_native.h"
#include "isa.h"
#include "splat_bins.h"
#include "splat_kernels.h"

namespace guava {

#define GUAVA_DECLARE_KERNELS(ISA)                                                                                     \
    namespace ISA {                                                                                                    \
    extern const ProjectKernel splat_project;                                                                          \
    extern const BlendKernels splat_blend;                                                                             \
    }
GUAVA_DECLARE_KERNELS(baseline)
#if GUAVA_X86
GUAVA_DECLARE_KERNELS(avx2)
GUAVA_DECLARE_KERNELS(avx512)
#endif

namespace {

struct Kernels {
    ProjectKernel project;
    BlendKernels blend;
};

Kernels kernels_of(const Context &context) {
#if GUAVA_X86
    if (context.isa == GUAVA_ISA_AVX512) return {avx512::splat_project, avx512::splat_blend};
    if (context.isa == GUAVA_ISA_AVX2) return {avx2::splat_project, avx2::splat_blend};
#endif
    (void)context;
    return {baseline::splat_project, baseline::splat_blend};
}

constexpr int kMaxSize = 1 << 19;   // pixels a side: tiles are counted in 16 bits
constexpr int64_t kTileGrain = 4;   // tiles that a thread takes at once
constexpr int kChannelLimit = 1 << 20;

} // namespace
} // namespace guava

// The scene as the forward pass saw it.
struct guava_splat_state {
    guava::Buffer<guava::SplatRecord> records;
    guava::TileLists lists;
    guava::SplatConstants constants;
    int64_t count = -1; // -1: no forward pass yet, or one that failed

    size_t bytes() const { return records.bytes() + lists.bytes(); }
    void clear() {
        records.clear();
        lists.clear();
        count = -1;
    }
};

namespace guava {
namespace {

struct SplatWorkspace : Workspace {
    guava_splat_state own; // for forward passes without a state
    SortWorkspace sort;
    Buffer<ProjectChunk> chunks;
    Buffer<char> scratch;

    size_t bytes() const override { return own.bytes() + sort.bytes() + chunks.bytes() + scratch.bytes(); }
    void clear() override {
        own.clear();
        sort.clear();
        chunks.clear();
        scratch.clear();
    }
};

SplatWorkspace &workspace_of(Context &context) {
    if (!context.splat) context.splat = new SplatWorkspace;
    return *static_cast<SplatWorkspace *>(context.splat);
}

bool valid_call(const guava_splat_scene *s) {
    if (!s || s->count < 0 || s->channels < 0 || s->width < 1 || s->height < 1) return false;
    if (s->width > kMaxSize || s->height > kMaxSize || s->channels > kChannelLimit) return false;
    if (s->count >= static_cast<int64_t>(UINT32_MAX)) return false;
    if (s->count && !(s->means && s->quaternions && s->scales && s->opacities)) return false;
    if (s->count && s->channels && !s->features) return false;
    const int64_t pixels = static_cast<int64_t>(s->width) * s->height, row = s->channels > 4 ? s->channels : 4;
    const int64_t most = static_cast<int64_t>(SIZE_MAX / 2 / sizeof(float));
    return pixels <= most / row && s->count <= most / row;
}

SplatConstants constants_of(const guava_splat_scene &s) {
    SplatConstants k = {};
    std::memcpy(k.view, s.view, sizeof k.view);
    std::memcpy(k.intrinsics, s.intrinsics, sizeof k.intrinsics);
    std::memcpy(k.frustum, s.frustum, sizeof k.frustum);
    k.eps2d = s.eps2d;
    k.alpha_max = s.alpha_max;
    // Below the smallest normal number nothing can be seen, and the fast exponential ends there.
    k.alpha_min = std::fmax(s.alpha_min, std::numeric_limits<float>::min());
    k.log2_alpha_min = static_cast<float>(std::log2(static_cast<double>(k.alpha_min)));
    // The kernels stop at the limit; one float below says "below the limit".
    k.transmittance_min = s.flags & GUAVA_SPLAT_EXCLUSIVE_LIMITS
        ? std::nextafter(s.transmittance_min, -std::numeric_limits<float>::infinity())
        : s.transmittance_min;
    k.near_plane = s.near_plane;
    k.flags = s.flags;
    k.width = s.width;
    k.height = s.height;
    k.tiles_x = (s.width + kTile - 1) / kTile;
    k.tiles_y = (s.height + kTile - 1) / kTile;
    k.channels = s.channels;
    return k;
}

// ---- What is wrong with a scene: looked for only where the kernels' quick check found something ------------

enum ProblemArray { kMeans, kQuaternions, kScales, kOpacities, kFeatures, kBackground, kCamera };
enum ProblemKind { kNotFinite, kZeroQuaternion, kOpacityRange };

bool all_finite(const float *values, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        if (!std::isfinite(values[i])) return false;
    return true;
}

bool find_not_finite(const float *values, int64_t rows, int64_t width, int32_t array, guava_splat_problem &found) {
    for (int64_t row = 0; row < rows; ++row)
        if (!all_finite(values + row * width, width)) {
            found = {array, kNotFinite, row};
            return true;
        }
    return false;
}

bool find_problem_of_gaussians(const guava_splat_scene &s, guava_splat_problem &found) {
    if (find_not_finite(s.means, s.count, 3, kMeans, found)) return true;
    if (find_not_finite(s.quaternions, s.count, 4, kQuaternions, found)) return true;
    if (find_not_finite(s.scales, s.count, 3, kScales, found)) return true;
    if (find_not_finite(s.opacities, s.count, 1, kOpacities, found)) return true;
    if (find_not_finite(s.features, s.count, s.channels, kFeatures, found)) return true;
    for (int64_t i = 0; i < s.count; ++i) {
        const float *q = s.quaternions + 4 * i;
        if (q[0] == 0 && q[1] == 0 && q[2] == 0 && q[3] == 0) {
            found = {kQuaternions, kZeroQuaternion, i};
            return true;
        }
    }
    for (int64_t i = 0; i < s.count; ++i)
        if (!(s.opacities[i] >= -1e-4f && s.opacities[i] <= 1 + 1e-4f)) {
            found = {kOpacities, kOpacityRange, i};
            return true;
        }
    return false;
}

bool find_problem_of_camera(const guava_splat_scene &s, guava_splat_problem &found) {
    const float numbers[] = {s.eps2d, s.alpha_max, s.alpha_min, s.transmittance_min, s.near_plane};
    if (!all_finite(s.view, 12) || !all_finite(s.intrinsics, 6) || !all_finite(s.frustum, 4) ||
        !all_finite(numbers, 5)) {
        found = {kCamera, kNotFinite, 0};
        return true;
    }
    return s.background && find_not_finite(s.background, s.channels, 1, kBackground, found);
}

// ---- Forward ------------------------------------------------------------------------------------------------

int32_t project_and_bin(Context &context, SplatWorkspace &work, const guava_splat_scene &scene,
                        guava_splat_state &state, bool for_gradients, guava_splat_problem &problem,
                        guava_splat_stats &stats) {
    const Kernels kernels = kernels_of(context);
    const int64_t count = scene.count;
    if (find_problem_of_camera(scene, problem)) return GUAVA_INVALID_VALUE;
    state.count = -1;
    state.constants = constants_of(scene);

    const double start = milliseconds();
    const int64_t chunks = (count + kProjectGrain - 1) / kProjectGrain;
    ProjectChunk *chunk = work.chunks.reserve(static_cast<size_t>(chunks));
    ProjectJob job = {};
    job.constants = &state.constants;
    job.means = scene.means;
    job.quaternions = scene.quaternions;
    job.scales = scene.scales;
    job.opacities = scene.opacities;
    job.features = scene.features;
    job.records = state.records.reserve(static_cast<size_t>(count));
    job.keys = work.sort.keys.reserve(static_cast<size_t>(count));
    if (!parallel_for(context, count, kProjectGrain, [&](int64_t begin, int64_t end, int) {
            kernels.project(&job, begin, end, chunk + begin / kProjectGrain);
        }))
        return GUAVA_CANCELLED;
    int64_t visible = 0, pairs = 0;
    for (int64_t c = 0; c < chunks; ++c) {
        if (chunk[c].suspect && find_problem_of_gaussians(scene, problem)) return GUAVA_INVALID_VALUE;
        visible += chunk[c].visible;
        pairs += chunk[c].pairs;
    }
    const double projected = milliseconds();
    const SplatKey *sorted = sort_by_depth(context, work.sort, chunk, chunks);
    if (!sorted) return GUAVA_CANCELLED;
    const double ordered = milliseconds();
    if (!list_tiles(context, work.sort, sorted, visible, pairs, state.constants.tiles_x, state.constants.tiles_y,
                    count, for_gradients, state.lists))
        return GUAVA_CANCELLED;
    stats.project_ms = projected - start;
    stats.sort_ms = ordered - projected;
    stats.bin_ms = milliseconds() - ordered;
    stats.visible = visible;
    stats.pairs = pairs;
    return GUAVA_OK;
}

int32_t blend(Context &context, SplatWorkspace &work, const guava_splat_scene &scene,
              const guava_splat_state &state, const guava_splat_picture &picture, guava_splat_stats &stats) {
    const Kernels kernels = kernels_of(context);
    const double start = milliseconds();
    const size_t scratch_bytes = (kernels.blend.scratch(scene.channels) + 63) / 64 * 64;
    char *scratch = work.scratch.reserve(scratch_bytes * static_cast<size_t>(context.threads()));
    Buffer<BlendCounts> counts;
    counts.reserve(static_cast<size_t>(context.threads()));
    for (int worker = 0; worker < context.threads(); ++worker) counts[worker] = {0, 0};
    BlendJob job = {};
    job.constants = &state.constants;
    job.records = state.records.data();
    job.starts = state.lists.starts.data();
    job.ids = state.lists.ids.data();
    job.features = scene.features;
    job.background = scene.background;
    job.out_features = scene.channels ? picture.features : nullptr;
    job.out_alpha = picture.alpha;
    job.out_depth = picture.depth;
    const int64_t tiles = static_cast<int64_t>(state.constants.tiles_x) * state.constants.tiles_y;
    if (!parallel_for(context, tiles, kTileGrain, [&](int64_t begin, int64_t end, int worker) {
            kernels.blend.blend(&job, begin, end, scratch + scratch_bytes * static_cast<size_t>(worker),
                                &counts[worker]);
        }))
        return GUAVA_CANCELLED;
    for (int worker = 0; worker < context.threads(); ++worker) {
        stats.evaluations += counts[worker].evaluations;
        stats.weights += counts[worker].weights;
    }
    stats.blend_ms = milliseconds() - start;
    return GUAVA_OK;
}

int32_t forward(Context &context, const guava_splat_scene &scene, const guava_splat_picture &picture,
                guava_splat_state *kept, guava_splat_problem &problem, guava_splat_stats &stats) {
    context.begin_call();
    SplatWorkspace &work = workspace_of(context);
    guava_splat_state &state = kept ? *kept : work.own;
    int32_t status = project_and_bin(context, work, scene, state, kept != nullptr, problem, stats);
    if (status == GUAVA_OK) status = blend(context, work, scene, state, picture, stats);
    if (status == GUAVA_OK) state.count = scene.count;
    return status;
}

} // namespace
} // namespace guava

extern "C" {

GUAVA_API guava_splat_state *guava_splat_state_create(void) { return new (std::nothrow) guava_splat_state; }

GUAVA_API void guava_splat_state_destroy(guava_splat_state *state) { delete state; }

GUAVA_API size_t guava_splat_state_bytes(const guava_splat_state *state) { return state ? state->bytes() : 0; }

GUAVA_API int32_t guava_splat_forward(guava_context *context, const guava_splat_scene *scene,
                                      const guava_splat_picture *picture, guava_splat_state *state,
                                      guava_splat_problem *problem, guava_splat_stats *stats) {
    if (!context || !picture || !guava::valid_call(scene)) return GUAVA_INVALID_CALL;
    if (!picture->alpha || (scene->channels && !picture->features)) return GUAVA_INVALID_CALL;
    guava_splat_problem found = {};
    guava_splat_stats measured = {};
    int32_t status;
    try {
        status = guava::forward(*context, *scene, *picture, state, found, measured);
    } catch (const std::bad_alloc &) {
        status = GUAVA_OUT_OF_MEMORY;
    }
    if (problem && status == GUAVA_INVALID_VALUE) *problem = found;
    measured.evaluations = measured.weights = 0;
    if (stats) *stats = measured;
    return status;
}

GUAVA_API int32_t guava_splat_count(guava_context *context, const guava_splat_scene *scene,
                                    guava_splat_stats *stats) {
    if (!context || !stats || !guava::valid_call(scene)) return GUAVA_INVALID_CALL;
    guava_splat_problem found = {};
    *stats = {};
    try {
        return guava::forward(*context, *scene, {}, nullptr, found, *stats);
    } catch (const std::bad_alloc &) {
        return GUAVA_OUT_OF_MEMORY;
    }
}

} // extern "C"
