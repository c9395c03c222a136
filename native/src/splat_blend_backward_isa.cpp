// Gradients of compositing, block by block; derivation:
//
// At a pixel, w_i = T_i alpha_i with T_(i+1) = T_i (1 - alpha_i), and the picture is F = sum_i w_i f_i +
// T_end * bg, alpha = 1 - T_end, depth = sum_i w_i z_i. With G = dL/dF, Ga = dL/dalpha, Gd = dL/ddepth, and
//
//     v_i = f_i . G + z_i Gd            (what a weight is worth)
//     S_i = sum_(j > i) w_j v_j + T_end (bg . G - Ga)
//
// S_i is proportional to 1 - alpha_i, so that dL/dalpha_i = T_i v_i - S_i / (1 - alpha_i). alpha is the
// clamped r = 2^(lo - u^2 - v^2); the gradient by ln r is
//
//     g_i = r_i dL/dalpha_i = a_i v_i - b_i S_i,    a_i = r_i T_i,   b_i = r_i / (1 - alpha_i)
//
// with a_i = b_i = 0 where r is clamped, unless the clamp is "straight through". So a block is gone through
// forwards for the rows w, a and b (16 pixels each), v = features * G is a product of matrices, backwards for
// S and g, and dL/df_i = sum_pixels w_i G and the moments of g are products of matrices again. S is summed
// from behind: taking it as the difference of the total and a sum from the front would lose its digits where
// little light is left.
#include "simd.h"
#include "splat_kernels.h"
#include "splat_tile.h"

namespace guava {
namespace GUAVA_ISA {
namespace {

constexpr int kStopEvery = 16;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kGroup = 8; // rows that are multiplied at once; a power of two
#else
constexpr int kGroup = 4;
#endif

typedef float Moments __attribute__((vector_size(4 * kMoments)));
typedef float MomentsUnaligned __attribute__((vector_size(4 * kMoments), aligned(4), may_alias));

struct BlockState {
    vf running[kParts], left[kParts]; // as in the forward pass
    vf behind[kParts];                // S
};

struct Row {
    float w[kBlockPixels], a[kBlockPixels], b[kBlockPixels];
    float v[kBlockPixels]; // then g
};

// The gradients by a block of the picture, 0 beyond its edge.
struct BlockGradients {
    float alpha[kBlockPixels], depth[kBlockPixels];
    float *features;   // [pixel][channel], channels in whole vectors
    float *transposed; // [channel][pixel]
};

struct Scratch {
    Batch batch;
    BlockState states[kTileBlocks];
    Row rows[kBatch + kGroup];
    int32_t gaussian_of_row[kBatch + kGroup]; // in the batch
    Moments pixel_moments[kBlockPixels];      // 1, X, Y, X^2, X Y, Y^2 from the block's centre
    BlockGradients gradients;
    float (*checkpoints)[kTileBlocks][kBlockPixels]; // `running` at the beginning of each batch
};

int32_t slot_channels(int32_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

size_t gradient_floats(int32_t channels) { return (size_t)kBlockPixels * (size_t)slot_channels(channels); }

size_t scratch_bytes(int32_t channels, int64_t longest_list) {
    const size_t batches = (size_t)((longest_list + kBatch - 1) / kBatch);
    return sizeof(Scratch) + 2 * sizeof(float) * gradient_floats(channels) +
           batches * kTileBlocks * kBlockPixels * sizeof(float);
}

void prepare(Scratch &s, int32_t channels) {
    s.gradients.features = reinterpret_cast<float *>(&s + 1);
    s.gradients.transposed = s.gradients.features + gradient_floats(channels);
    s.checkpoints = reinterpret_cast<float(*)[kTileBlocks][kBlockPixels]>(
        s.gradients.transposed + gradient_floats(channels));
    __builtin_memset(s.gradients.features, 0, 2 * sizeof(float) * gradient_floats(channels));
    for (int pixel = 0; pixel < kBlockPixels; ++pixel) {
        const float half = 0.5f * (kBlock - 1), x = (float)(pixel % kBlock) - half,
            y = (float)(pixel / kBlock) - half;
        s.pixel_moments[pixel] = Moments{1, x, y, x * x, x * y, y * y, 0, 0};
    }
}

// Forwards through the listed Gaussians of a block: transmittances, and, if asked for, rows. Returns how
// many.
template <bool kKeepRows>
int sweep_forward(const SplatConstants &k, const float *features, Scratch &s, int block, int listed) {
    const size_t channels = (size_t)k.channels;
    const vf alpha_max = vf{} + k.alpha_max, log2_alpha_min = vf{} + k.log2_alpha_min;
    const vf limit = vf{} + k.transmittance_min;
    const bool straight_through = k.flags & GUAVA_SPLAT_STRAIGHT_THROUGH;
    PixelCentres centres;
    set_pixel_centres(centres, block);
    BlockState state = s.states[block];
    int count = 0, t = 0;
    while (t < listed) {
        const int stop = listed - t < kStopEvery ? listed : t + kStopEvery;
        for (; t < stop; ++t) {
            const int j = s.batch.list[t];
            const LocalGaussian &g = s.batch.gaussians[j];
            Row &row = s.rows[count];
            uint32_t drawn = 0;
            GUAVA_UNROLL
            for (int part = 0; part < kParts; ++part) {
                vf raw = raw_alphas(g, centres, part, log2_alpha_min), alpha = minimum(raw, alpha_max);
                vf before = state.running[part], after = transmitted(before, alpha);
                vm open = less(limit, after);
                state.running[part] = after;
                state.left[part] = select(open, after, state.left[part]);
                if (kKeepRows) {
                    vf weight = keep(open, before * alpha);
                    vf sensitive = keep(open, raw);
                    if (!straight_through) sensitive = keep(less_equal(raw, alpha_max), sensitive);
                    store(row.w + part * kLanes, weight);
                    store(row.a + part * kLanes, sensitive * before);
                    store(row.b + part * kLanes, keep(open, sensitive / (1.0f - alpha))); // alpha 1: 0 / 0
                    drawn |= bits(less(vf{}, weight));
                }
            }
            if (kKeepRows) {
                s.gaussian_of_row[count] = j;
                count += drawn != 0;
                if (drawn) fetch_row(features, g.id, channels);
            }
        }
        if (!any_open(state.running, k.transmittance_min)) break;
    }
    s.states[block] = state;
    return count;
}

void load_gradients(const BlendBackwardJob &job, BlockGradients &g, int left, int top) {
    const SplatConstants &k = *job.constants;
    const int channels = k.channels, wide = slot_channels(channels);
    for (int pixel = 0; pixel < kBlockPixels; ++pixel) {
        const int x = left + pixel % kBlock, y = top + pixel / kBlock;
        const bool inside = x < k.width && y < k.height;
        const size_t place = (size_t)y * (size_t)k.width + (size_t)x;
        g.alpha[pixel] = inside && job.out_alpha ? job.out_alpha[place] : 0.0f;
        g.depth[pixel] = inside && job.out_depth ? job.out_depth[place] : 0.0f;
        if (!job.out_features) continue;
        float *to = g.features + pixel * wide;
        const size_t bytes = sizeof(float) * (size_t)channels;
        if (inside) __builtin_memcpy(to, job.out_features + place * (size_t)channels, bytes);
        else __builtin_memset(to, 0, bytes);
    }
    if (job.out_features)
        for (int c = 0; c < channels; ++c)
            for (int pixel = 0; pixel < kBlockPixels; ++pixel)
                g.transposed[c * kBlockPixels + pixel] = g.features[pixel * wide + c];
}

// v of kGroup rows.
GUAVA_INLINE void worth_of_weights(const BlendBackwardJob &job, Scratch &s, int first) {
    const int channels = job.out_features ? job.constants->channels : 0;
    const float *features[kGroup];
    vf total[kGroup][kParts];
    GUAVA_UNROLL
    for (int i = 0; i < kGroup; ++i) {
        const LocalGaussian &g = s.batch.gaussians[s.gaussian_of_row[first + i]];
        features[i] = job.features + (size_t)g.id * (size_t)job.constants->channels;
        GUAVA_UNROLL
        for (int part = 0; part < kParts; ++part)
            total[i][part] = g.depth * load(s.gradients.depth + part * kLanes);
    }
    for (int c = 0; c < channels; ++c) {
        GUAVA_UNROLL
        for (int part = 0; part < kParts; ++part) {
            vf gradient = load(s.gradients.transposed + c * kBlockPixels + part * kLanes);
            GUAVA_UNROLL
            for (int i = 0; i < kGroup; ++i) total[i][part] += features[i][c] * gradient;
        }
    }
    GUAVA_UNROLL
    for (int i = 0; i < kGroup; ++i) {
        GUAVA_UNROLL
        for (int part = 0; part < kParts; ++part) store(s.rows[first + i].v + part * kLanes, total[i][part]);
    }
}

// Adds sum_pixels w G of kGroup rows (`count` of them real) to their slots, V vectors of channels.
template <int V>
GUAVA_INLINE void gradients_of_features(const Scratch &s, int first, int count, int channel, int wide,
                                        float *slots, size_t stride) {
    vf total[kGroup][V];
    GUAVA_UNROLL
    for (int i = 0; i < kGroup; ++i) {
        GUAVA_UNROLL
        for (int v = 0; v < V; ++v) total[i][v] = vf{};
    }
    for (int pixel = 0; pixel < kBlockPixels; ++pixel) {
        vf gradient[V];
        GUAVA_UNROLL
        for (int v = 0; v < V; ++v)
            gradient[v] = load(s.gradients.features + pixel * wide + channel + v * kLanes);
        GUAVA_UNROLL
        for (int i = 0; i < kGroup; ++i) {
            GUAVA_UNROLL
            for (int v = 0; v < V; ++v) total[i][v] += s.rows[first + i].w[pixel] * gradient[v];
        }
    }
    GUAVA_UNROLL
    for (int i = 0; i < kGroup; ++i) {
        if (i >= count) break;
        float *slot = slots + (size_t)s.gaussian_of_row[first + i] * stride + channel;
        GUAVA_UNROLL
        for (int v = 0; v < V; ++v) store(slot + v * kLanes, load(slot + v * kLanes) + total[i][v]);
    }
}

// S and g, from the last row to the first.
void sweep_backward(const BlendBackwardJob &job, Scratch &s, int block, int count, float *slots,
                    size_t stride) {
    BlockState &state = s.states[block];
    vf behind[kParts];
    for (int part = 0; part < kParts; ++part) behind[part] = state.behind[part];
    for (int i = count - 1; i >= 0; --i) {
        Row &row = s.rows[i];
        vf depth_sum{};
        GUAVA_UNROLL
        for (int part = 0; part < kParts; ++part) {
            const int at = part * kLanes;
            vf v = load(row.v + at), w = load(row.w + at);
            store(row.v + at, load(row.a + at) * v - load(row.b + at) * behind[part]);
            behind[part] += w * v;
            depth_sum += w * load(s.gradients.depth + at);
        }
        if (job.out_depth)
            slots[(size_t)s.gaussian_of_row[i] * stride + (size_t)job.slot_channels
                + kMomentDepth] += sum(depth_sum);
    }
    for (int part = 0; part < kParts; ++part) state.behind[part] = behind[part];
}

// Adds the moments of g of four rows to their slots. They are summed about the block's centre, where u and v
// have the values uc and vc: u = l11 X + l21 Y + uc, v = l22 Y + vc.
GUAVA_INLINE void moments_of_rows(const Scratch &s, int block, int first, int count, float *slots,
                                  size_t stride) {
    constexpr int kFour = 4;
    Moments total[kFour];
    GUAVA_UNROLL
    for (int i = 0; i < kFour; ++i) total[i] = Moments{};
    for (int pixel = 0; pixel < kBlockPixels; ++pixel) {
        GUAVA_UNROLL
        for (int i = 0; i < kFour; ++i) total[i] += s.rows[first + i].v[pixel] * s.pixel_moments[pixel];
    }
    const float x = (float)(block % (kTile / kBlock) * kBlock) + 0.5f * kBlock;
    const float y = (float)(block / (kTile / kBlock) * kBlock) + 0.5f * kBlock;
    for (int i = 0; i < kFour && i < count; ++i) {
        const int j = s.gaussian_of_row[first + i];
        const LocalGaussian &g = s.batch.gaussians[j];
        const Moments m = total[i];
        const float uc = g.l11 * x + g.l21 * y + g.u0, vc = g.l22 * y + g.v0;
        // of sum g (u - uc), sum g (v - vc)
        const float x_part = g.l11 * m[1] + g.l21 * m[2], y_part = g.l22 * m[2];
        const float uu = g.l11 * g.l11 * m[3] + 2 * g.l11 * g.l21 * m[4] + g.l21 * g.l21 * m[5];
        const float uv = g.l22 * (g.l11 * m[4] + g.l21 * m[5]), vv = g.l22 * g.l22 * m[5];
        const Moments white = {
            m[0],
            x_part + uc * m[0],
            y_part + vc * m[0],
            uu + 2 * uc * x_part + uc * uc * m[0],
            uv + uc * y_part + vc * x_part + uc * vc * m[0],
            vv + 2 * vc * y_part + vc * vc * m[0],
            0, 0,
        };
        MomentsUnaligned *slot = reinterpret_cast<MomentsUnaligned *>(slots + (size_t)j * stride);
        *slot += white;
    }
}

// All gradients of a block whose forward sweep left `count` rows.
void block_backward(const BlendBackwardJob &job, Scratch &s, int block, int count, float *slots) {
    const size_t stride = (size_t)job.slot_channels + kMoments;
    for (int i = count; i % kGroup; ++i) { // what the last group reads beyond the end
        s.gaussian_of_row[i] = s.gaussian_of_row[count - 1];
        __builtin_memset(&s.rows[i], 0, sizeof(Row));
    }
    for (int i = 0; i < count; i += kGroup) worth_of_weights(job, s, i);
    sweep_backward(job, s, block, count, slots, stride);
    if (job.slot_channels && job.out_features)
        for (int i = 0; i < count; i += kGroup) {
            const int real = count - i < kGroup ? count - i : kGroup, wide = job.slot_channels;
            int c = 0;
            for (; c + 2 * kLanes <= wide; c += 2 * kLanes)
                gradients_of_features<2>(s, i, real, c, wide, slots, stride);
            for (; c < wide; c += kLanes) gradients_of_features<1>(s, i, real, c, wide, slots, stride);
        }
    for (int i = 0; i < count; i += 4)
        moments_of_rows(s, block, i, count - i, slots + job.slot_channels, stride);
}

void begin_tile(const SplatConstants &k, Scratch &s, int left, int top) {
    for (int block = 0; block < kTileBlocks; ++block) {
        PixelCentres centres;
        set_pixel_centres(centres, block);
        for (int part = 0; part < kParts; ++part) {
            vm inside = both(less(centres.x[part], splat((float)(k.width - left))),
                             less(centres.y[part], splat((float)(k.height - top))));
            s.states[block].running[part] = s.states[block].left[part] = keep(inside, splat(1));
        }
    }
}

// What is left of the light has gone through everything: T_end (bg . G - Ga), where S begins.
void begin_backward(const BlendBackwardJob &job, Scratch &s, int block) {
    BlockState &state = s.states[block];
    for (int part = 0; part < kParts; ++part) {
        vf worth = -load(s.gradients.alpha + part * kLanes);
        if (job.background && job.out_features)
            for (int c = 0; c < job.constants->channels; ++c)
                worth += job.background[c] * load(s.gradients.transposed + c * kBlockPixels + part * kLanes);
        state.behind[part] = state.left[part] * worth;
    }
}

void write_left(const BlendBackwardJob &job, const Scratch &s, int block, int left, int top) {
    const SplatConstants &k = *job.constants;
    float rest[kBlockPixels];
    for (int part = 0; part < kParts; ++part) store(rest + part * kLanes, s.states[block].left[part]);
    for (int pixel = 0; pixel < kBlockPixels; ++pixel) {
        const int x = left + pixel % kBlock, y = top + pixel / kBlock;
        if (x < k.width && y < k.height) job.left[(size_t)y * (size_t)k.width + (size_t)x] = rest[pixel];
    }
}

void tile_backward(const BlendBackwardJob &job, Scratch &s, int64_t tile, int64_t tile_end) {
    const SplatConstants &k = *job.constants;
    const int left = (int)(tile % k.tiles_x) * kTile, top = (int)(tile / k.tiles_x) * kTile;
    const uint32_t begin = job.starts[tile], length = job.starts[tile + 1] - begin;
    const size_t stride = (size_t)job.slot_channels + kMoments;
    float *slots = job.slots + (size_t)(begin - job.first_pair) * stride;
    if (length) __builtin_memset(slots, 0, sizeof(float) * stride * length);
    begin_tile(k, s, left, top);
    int batches = (int)((length + kBatch - 1) / kBatch);
    const auto load_batch_of = [&](int batch) {
        const uint32_t first = (uint32_t)batch * kBatch, rest = length - first;
        const int count = rest < kBatch ? (int)rest : kBatch;
        load_batch(s.batch, job.records, job.ids + begin + first, count, (float)left, (float)top,
            k.log2_alpha_min);
        return count;
    };
    const auto outside = [&](int block) {
        return left + block % 4 * kBlock >= k.width || top + block / 4 * kBlock >= k.height;
    };
    // A list of several batches is gone through twice: its last batch's transmittances are needed first.
    // Batches behind which nothing is seen are left out.
    for (int batch = 0; batches > 1 && batch < batches; ++batch) {
        const int count = load_batch_of(batch);
        bool open = false;
        for (int block = 0; block < kTileBlocks; ++block) {
            for (int part = 0; part < kParts; ++part)
                store(s.checkpoints[batch][block] + part * kLanes, s.states[block].running[part]);
            if (outside(block)) continue;
            sweep_forward<false>(k, nullptr, s, block, list_block(s.batch, count, block));
            open = open || any_open(s.states[block].running, k.transmittance_min);
        }
        if (!open) batches = batch + 1;
    }
    const bool several = length > (uint32_t)kBatch;
    NextTile next = next_tile(job.records, job.features, k.channels, job.starts, job.ids, tile, tile_end);
    for (int batch = batches - 1; batch >= 0; --batch) {
        const int gaussians = load_batch_of(batch);
        for (int block = 0; block < kTileBlocks; ++block) {
            next.fetch_part(block);
            if (outside(block)) continue;
            const int x = left + block % 4 * kBlock, y = top + block / 4 * kBlock;
            const int listed = list_block(s.batch, gaussians, block);
            int rows;
            if (several) {
                BlockState &state = s.states[block], final = state;
                for (int part = 0; part < kParts; ++part)
                    state.running[part] = load(s.checkpoints[batch][block] + part * kLanes);
                rows = sweep_forward<true>(k, job.features, s, block, listed);
                for (int part = 0; part < kParts; ++part) state.left[part] = final.left[part];
            } else {
                rows = sweep_forward<true>(k, job.features, s, block, listed);
            }
            if (!rows) { // S does not change
                if (batch == batches - 1 && several) {
                    load_gradients(job, s.gradients, x, y);
                    begin_backward(job, s, block);
                }
                continue;
            }
            load_gradients(job, s.gradients, x, y);
            if (batch == batches - 1) begin_backward(job, s, block);
            block_backward(job, s, block, rows, slots + (size_t)batch * kBatch * stride);
        }
    }
    if (job.left)
        for (int block = 0; block < kTileBlocks; ++block)
            write_left(job, s, block, left + block % 4 * kBlock, top + block / 4 * kBlock);
}

void blend_backward(const BlendBackwardJob *job, int64_t tile_begin, int64_t tile_end, void *scratch) {
    Scratch &s = *static_cast<Scratch *>(scratch);
    prepare(s, job->constants->channels);
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) tile_backward(*job, s, tile, tile_end);
}

} // namespace

extern const BlendBackwardKernels splat_blend_backward;
const BlendBackwardKernels splat_blend_backward = {slot_channels, scratch_bytes, blend_backward};

} // namespace GUAVA_ISA
} // namespace guava
