// The splatter's part of the C interface: checks of the call, stages, memory. The work is done by the
// kernels.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "context.h"
#include "guava_native.h"
#include "isa.h"
#include "splat_bins.h"
#include "splat_kernels.h"

namespace guava {

#define GUAVA_DECLARE_KERNELS(ISA) \
    namespace ISA { \
    extern const ProjectKernel splat_project; \
    extern const BlendKernels splat_blend; \
    extern const BlendBackwardKernels splat_blend_backward; \
    extern const ProjectBackwardKernel splat_project_backward; \
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
    BlendBackwardKernels blend_backward;
    ProjectBackwardKernel project_backward;
};

Kernels kernels_of(const Context &context) {
#define GUAVA_KERNELS(ISA) \
    Kernels { ISA::splat_project, ISA::splat_blend, ISA::splat_blend_backward, ISA::splat_project_backward }
#if GUAVA_X86
    if (context.isa == GUAVA_ISA_AVX512) return GUAVA_KERNELS(avx512);
    if (context.isa == GUAVA_ISA_AVX2) return GUAVA_KERNELS(avx2);
#endif
    (void)context;
    return GUAVA_KERNELS(baseline);
}

constexpr int kMaxSize = 1 << 19; // pixels a side: tiles are counted in 16 bits
constexpr int64_t kTileGrain = 8; // tiles in a row that a thread takes at once: they share Gaussians
constexpr int kChannelLimit = 1 << 20;
// Gradients of pairs that are held at once; a crowded tile may need more.
constexpr int64_t kBandBytes = int64_t{192} << 20;
constexpr int64_t kBackgroundParts = 64;

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
    // Of backward passes.
    Buffer<float> slots, moments, left;
    Buffer<double> sums;

    size_t bytes() const override {
        return own.bytes() + sort.bytes() + chunks.bytes() + scratch.bytes() + slots.bytes() +
               moments.bytes() + left.bytes() + sums.bytes();
    }
    void clear() override {
        own.clear(), sort.clear(), chunks.clear(), scratch.clear();
        slots.clear(), moments.clear(), left.clear(), sums.clear();
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
    const int64_t pixels = static_cast<int64_t>(s->width) * s->height,
        row = s->channels > 4 ? s->channels : 4;
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

// ---- What is wrong with a scene: looked for only where the kernels' quick check found something -----------

enum ProblemArray { kMeans, kQuaternions, kScales, kOpacities, kFeatures, kBackground, kCamera };
enum ProblemKind { kNotFinite, kZeroQuaternion, kOpacityRange };

bool all_finite(const float *values, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        if (!std::isfinite(values[i])) return false;
    return true;
}

bool find_not_finite(const float *values, int64_t rows, int64_t width, int32_t array,
    guava_splat_problem &found) {
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

// ---- Forward ----------------------------------------------------------------------------------------------

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
    if (!list_tiles(context, work.sort, sorted, visible, pairs, state.constants.tiles_x,
                    state.constants.tiles_y, count, for_gradients, state.lists))
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

// ---- Backward ---------------------------------------------------------------------------------------------

// dL/dbackground = sum over pixels of transmittance times gradient, in parts of whole rows whose number is
// fixed.
bool background_gradient(Context &context, SplatWorkspace &work, const guava_splat_scene &scene,
                         const float *left, const float *gradient, float *out) {
    const int64_t channels = scene.channels, parts = std::min<int64_t>(kBackgroundParts, scene.height);
    double *sums = work.sums.reserve(static_cast<size_t>(parts * channels));
    const bool done = parallel_for(context, parts, 1, [&](int64_t part, int64_t, int) {
        double *sum = sums + part * channels;
        std::fill(sum, sum + channels, 0.0);
        const int64_t begin = scene.height * part / parts, end = scene.height * (part + 1) / parts;
        for (int64_t pixel = begin * scene.width; pixel < end * scene.width; ++pixel)
            for (int64_t c = 0; c < channels; ++c)
                sum[c] += static_cast<double>(left[pixel]) * gradient[pixel * channels + c];
    });
    for (int64_t c = 0; done && c < channels; ++c) {
        double total = 0;
        for (int64_t part = 0; part < parts; ++part) total += sums[part * channels + c];
        out[c] = static_cast<float>(total);
    }
    return done;
}

int32_t backward(Context &context, const guava_splat_scene &scene, const guava_splat_state &state,
                 const guava_splat_gradients &wanted, guava_splat_stats &stats) {
    context.begin_call();
    SplatWorkspace &work = workspace_of(context);
    const Kernels kernels = kernels_of(context);
    const TileLists &lists = state.lists;
    const int64_t tiles = static_cast<int64_t>(state.constants.tiles_x) * state.constants.tiles_y;
    const uint32_t *starts = lists.starts.data();
    int64_t longest = 0;
    for (int64_t tile = 0; tile < tiles; ++tile)
        longest = std::max<int64_t>(longest, starts[tile + 1] - starts[tile]);

    BlendBackwardJob blend = {};
    blend.constants = &state.constants;
    blend.records = state.records.data();
    blend.starts = starts;
    blend.ids = lists.ids.data();
    blend.features = scene.features;
    blend.background = scene.background;
    blend.out_features = scene.channels ? wanted.out_features : nullptr;
    blend.out_alpha = wanted.out_alpha;
    blend.out_depth = wanted.out_depth;
    blend.slot_channels = wanted.features ? kernels.blend_backward.slot_channels(scene.channels) : 0;
    if (wanted.background && blend.out_features)
        blend.left = work.left.reserve(static_cast<size_t>(scene.width) * static_cast<size_t>(scene.height));

    ProjectBackwardJob project = {};
    project.constants = &state.constants;
    project.means = scene.means;
    project.quaternions = scene.quaternions;
    project.scales = scene.scales;
    project.opacities = scene.opacities;
    project.pair_starts = lists.pair_starts.data();
    project.pair_counts = lists.pair_counts.data();
    project.places = lists.places.data();
    project.slot_channels = blend.slot_channels;
    project.moments = work.moments.reserve(static_cast<size_t>(scene.count) * kMoments);
    project.d_means = wanted.means;
    project.d_quaternions = wanted.quaternions;
    project.d_scales = wanted.scales;
    project.d_opacities = wanted.opacities;
    project.d_features = scene.channels ? wanted.features : nullptr;
    project.camera = wanted.view || wanted.intrinsics;
    const int64_t chunks = (scene.count + kProjectGrain - 1) / kProjectGrain;
    Buffer<double> camera_sums;
    camera_sums.reserve(static_cast<size_t>(chunks * kCameraSums));

    const size_t scratch_bytes = (kernels.blend_backward.scratch(scene.channels, longest) + 63) / 64 * 64;
    char *scratch = work.scratch.reserve(scratch_bytes * static_cast<size_t>(context.threads()));
    const int64_t slot_floats = blend.slot_channels + kMoments;
    const int64_t band_pairs = kBandBytes / static_cast<int64_t>(sizeof(float)) / slot_floats;
    for (int64_t band = 0; band < tiles;) {
        int64_t end = band + 1;
        while (end < tiles && starts[end + 1] - starts[band] <= band_pairs) ++end;
        const int64_t pairs = starts[end] - starts[band];
        blend.slots = work.slots.reserve(static_cast<size_t>(pairs * slot_floats));
        blend.first_pair = starts[band];
        project.slots = blend.slots;
        project.first_pair = starts[band];
        project.last_pair = starts[end];
        project.first_band = band == 0;
        project.last_band = end == tiles;
        const double start = milliseconds();
        if (!parallel_for(context, end - band, kTileGrain, [&](int64_t first, int64_t last, int worker) {
                kernels.blend_backward.blend(&blend, band + first, band + last,
                                             scratch + scratch_bytes * static_cast<size_t>(worker));
            }))
            return GUAVA_CANCELLED;
        const double blended = milliseconds();
        if (!parallel_for(context, scene.count, kProjectGrain, [&](int64_t first, int64_t last, int) {
                kernels.project_backward(&project, first, last,
                                         camera_sums.data() + first / kProjectGrain * kCameraSums);
            }))
            return GUAVA_CANCELLED;
        stats.blend_backward_ms += blended - start;
        stats.project_backward_ms += milliseconds() - blended;
        band = end;
    }
    if (project.camera) {
        double total[kCameraSums] = {};
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
            for (int n = 0; n < kCameraSums; ++n) total[n] += camera_sums[chunk * kCameraSums + n];
        for (int n = 0; n < 12 && wanted.view; ++n) wanted.view[n] = static_cast<float>(total[n]);
        for (int n = 0; n < 6 && wanted.intrinsics; ++n)
            wanted.intrinsics[n] = static_cast<float>(total[12 + n]);
    }
    if (wanted.background) {
        std::fill(wanted.background, wanted.background + scene.channels, 0.0f);
        const double start = milliseconds();
        if (blend.left && !background_gradient(context, work, scene, blend.left, blend.out_features,
            wanted.background))
            return GUAVA_CANCELLED;
        stats.blend_backward_ms += milliseconds() - start;
    }
    stats.visible = lists.visible;
    stats.pairs = lists.pairs;
    return GUAVA_OK;
}

} // namespace
} // namespace guava

extern "C" {

GUAVA_API guava_splat_state *guava_splat_state_create(void) { return new (std::nothrow) guava_splat_state; }

GUAVA_API void guava_splat_state_destroy(guava_splat_state *state) { delete state; }

GUAVA_API size_t guava_splat_state_bytes(const guava_splat_state *state) {
    return state ? state->bytes() : 0;
}

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

GUAVA_API int32_t guava_splat_backward(guava_context *context, const guava_splat_scene *scene,
                                       const guava_splat_state *state,
                                       const guava_splat_gradients *gradients, guava_splat_stats *stats) {
    if (!context || !state || !gradients || !guava::valid_call(scene)) return GUAVA_INVALID_CALL;
    const guava::SplatConstants &k = state->constants;
    if (state->count != scene->count || k.channels != scene->channels || k.width != scene->width ||
        k.height != scene->height || k.flags != scene->flags)
        return GUAVA_INVALID_CALL;
    guava_splat_stats measured = {};
    int32_t status;
    try {
        status = guava::backward(*context, *scene, *state, *gradients, measured);
    } catch (const std::bad_alloc &) {
        status = GUAVA_OUT_OF_MEMORY;
    }
    if (stats) *stats = measured;
    return status;
}

} // extern "C"
