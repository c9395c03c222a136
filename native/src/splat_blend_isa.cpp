// Compositing, front to back, tile by tile.
//
// Channels up to kFusedChannels are summed in registers while alphas are evaluated. More go in two phases:
// rows of 16 weights (one Gaussian, one block) are collected, and then multiplied with the Gaussians' feature
// rows like matrices, 16 pixels x 32 channels with the sums in registers, which is where the machine's speed
// is.
#include "simd.h"
#include "splat_kernels.h"
#include "splat_tile.h"

namespace guava {
namespace GUAVA_ISA {
namespace {

constexpr int kFusedChannels = 4;
constexpr int kRows = 64;      // weight rows that are collected
constexpr int kStopEvery = 16; // Gaussians after which it is asked whether the block is opaque

// What is known of a block between two batches.
struct BlockState {
    // Transmittance with nothing left out, which only falls: below the limit the pixel has ended.
    vf running[kParts];
    // Transmittance of what was drawn.
    vf left[kParts];
    vf depth[kParts];
};

struct Rows {
    float weights[kRows][kBlockPixels];
    const float *features[kRows];
    int count;
};

// Sums of channels: first all whole vectors of channels, in chunks of two vectors (the last may be one), each
// [pixel][channel of the chunk]; then the rest, [channel][pixel].
struct Layout {
    int channels, wide; // wide: channels in whole vectors
    GUAVA_INLINE Layout of(int channels) {
        return {channels, channels <= kFusedChannels ? 0 : channels / kLanes * kLanes};
    }
};

struct Scratch {
    Batch batch;
    BlockState states[kTileBlocks];
    float fused_features[kBatch][kFusedChannels];
    Rows rows;
    float sums[]; // one block's, or kTileBlocks blocks' if a tile has several batches
};

size_t scratch_bytes(int32_t channels) {
    return sizeof(Scratch) + sizeof(float) * kTileBlocks * kBlockPixels * (size_t)channels + 64;
}

// sums[pixel][channel] += sum_k weights[k][pixel] features[k][channel], for V vectors of channels.
template <int V>
GUAVA_INLINE void multiply_wide(const Rows &rows, int channel, float *sums) {
#if defined(__AVX512F__) || defined(__aarch64__)
    constexpr int kPixels = 8; // 16 of 32 registers hold sums
#else
    constexpr int kPixels = 4; // 8 of 16
#endif
    for (int p = 0; p < kBlockPixels; p += kPixels) {
        vf total[kPixels][V];
        GUAVA_UNROLL
        for (int i = 0; i < kPixels; ++i) {
            GUAVA_UNROLL
            for (int v = 0; v < V; ++v) total[i][v] = load(sums + ((p + i) * V + v) * kLanes);
        }
        for (int k = 0; k < rows.count; ++k) {
            const float *f = rows.features[k] + channel, *w = rows.weights[k] + p;
            vf feature[V];
            GUAVA_UNROLL
            for (int v = 0; v < V; ++v) feature[v] = load(f + v * kLanes);
            GUAVA_UNROLL
            for (int i = 0; i < kPixels; ++i) {
                GUAVA_UNROLL
                for (int v = 0; v < V; ++v) total[i][v] += w[i] * feature[v];
            }
        }
        GUAVA_UNROLL
        for (int i = 0; i < kPixels; ++i) {
            GUAVA_UNROLL
            for (int v = 0; v < V; ++v) store(sums + ((p + i) * V + v) * kLanes, total[i][v]);
        }
    }
}

// The same for N single channels, sums[channel][pixel].
template <int N>
GUAVA_INLINE void multiply_planar(const Rows &rows, int channel, float *sums) {
    vf total[N][kParts];
    GUAVA_UNROLL
    for (int c = 0; c < N; ++c) {
        GUAVA_UNROLL
        for (int part = 0; part < kParts; ++part)
            total[c][part] = load(sums + c * kBlockPixels + part * kLanes);
    }
    for (int k = 0; k < rows.count; ++k) {
        const float *f = rows.features[k] + channel;
        GUAVA_UNROLL
        for (int part = 0; part < kParts; ++part) {
            vf w = load(rows.weights[k] + part * kLanes);
            GUAVA_UNROLL
            for (int c = 0; c < N; ++c) total[c][part] += w * f[c];
        }
    }
    GUAVA_UNROLL
    for (int c = 0; c < N; ++c) {
        GUAVA_UNROLL
        for (int part = 0; part < kParts; ++part)
            store(sums + c * kBlockPixels + part * kLanes, total[c][part]);
    }
}

void multiply(Rows &rows, const Layout &layout, float *sums) {
    int c = 0;
    for (; c + 2 * kLanes <= layout.wide; c += 2 * kLanes) multiply_wide<2>(rows, c, sums + c * kBlockPixels);
    for (; c < layout.wide; c += kLanes) multiply_wide<1>(rows, c, sums + c * kBlockPixels);
    for (; c + 4 <= layout.channels; c += 4) multiply_planar<4>(rows, c, sums + c * kBlockPixels);
    for (; c < layout.channels; ++c) multiply_planar<1>(rows, c, sums + c * kBlockPixels);
    rows.count = 0;
}

// Composites the listed Gaussians on one block. kFused: the number of channels if they are summed here, or
// -1.
template <int kFused>
void blend_block(
    const BlendJob &job, Scratch &s, const Layout &layout, int block, int listed, float *sums,
    BlendCounts &counts
) {
    const SplatConstants &k = *job.constants;
    const vf alpha_max = vf{} + k.alpha_max, log2_alpha_min = vf{} + k.log2_alpha_min;
    const vf limit = vf{} + k.transmittance_min;
    PixelCentres centres;
    set_pixel_centres(centres, block);
    BlockState state = s.states[block];
    constexpr int kSums = kFused > 0 ? kFused : 1;
    vf total[kSums][kParts];
    if (kFused > 0)
        for (int c = 0; c < kSums; ++c)
            for (int part = 0; part < kParts; ++part)
                total[c][part] = load(sums + c * kBlockPixels + part * kLanes);
    Rows &rows = s.rows;
    rows.count = 0;

    int t = 0;
    while (t < listed) {
        const int stop = listed - t < kStopEvery ? listed : t + kStopEvery;
        counts.evaluations += (stop - t) * kBlockPixels;
        for (; t < stop; ++t) {
            const int j = s.batch.list[t];
            const LocalGaussian &g = s.batch.gaussians[j];
            uint32_t drawn = 0;
            GUAVA_UNROLL
            for (int part = 0; part < kParts; ++part) {
                vf alpha = minimum(raw_alphas(g, centres, part, log2_alpha_min), alpha_max);
                vf before = state.running[part], after = transmitted(before, alpha);
                vm open = less(limit, after);
                vf weight = keep(open, before * alpha);
                state.running[part] = after;
                state.left[part] = select(open, after, state.left[part]);
                state.depth[part] += weight * g.depth;
                if (kFused < 0) {
                    store(rows.weights[rows.count] + part * kLanes, weight);
                    drawn |= bits(less(vf{}, weight));
                } else {
                    GUAVA_UNROLL
                    for (int c = 0; c < kFused; ++c) total[c][part] += weight * s.fused_features[j][c];
                }
            }
            if (kFused < 0) {
                fetch_row(job.features, g.id, (size_t)layout.channels);
                rows.features[rows.count] = job.features + (size_t)g.id * (size_t)layout.channels;
                rows.count += drawn != 0;
                if (rows.count == kRows) {
                    counts.weights += kRows * kBlockPixels;
                    multiply(rows, layout, sums);
                }
            }
        }
        if (!any_open(state.running, k.transmittance_min)) break;
    }
    if (kFused < 0 && rows.count) {
        counts.weights += rows.count * kBlockPixels;
        multiply(rows, layout, sums);
    }
    if (kFused >= 0) counts.weights += t * kBlockPixels;
    if (kFused > 0)
        for (int c = 0; c < kSums; ++c)
            for (int part = 0; part < kParts; ++part)
                store(sums + c * kBlockPixels + part * kLanes, total[c][part]);
    s.states[block] = state;
}

// A tile's place in the picture.
struct TilePlace {
    int x, y, width, height;
};

GUAVA_INLINE TilePlace place_of(const SplatConstants &k, int64_t tile) {
    TilePlace place;
    place.x = (int)(tile % k.tiles_x) * kTile;
    place.y = (int)(tile / k.tiles_x) * kTile;
    place.width = k.width - place.x < kTile ? k.width - place.x : kTile;
    place.height = k.height - place.y < kTile ? k.height - place.y : kTile;
    return place;
}

// Vectors may go past the caches if all of them are aligned.
GUAVA_INLINE bool streamable(const BlendJob &job) {
    return job.constants->channels % kBlockPixels == 0 && (uintptr_t)job.out_features % 64 == 0;
}

// Channels of `width` pixels in a row, from sums in whole vectors and single channels.
void write_pixels(const BlendJob &job, const Layout &layout, float *out, int first_pixel, int width,
                  const float *rest, const float *sums, bool streamed) {
    for (int pixel = first_pixel; pixel < first_pixel + width; ++pixel, out += layout.channels) {
        int c = 0;
        while (c < layout.wide) {
            const int vectors = layout.wide - c >= 2 * kLanes ? 2 : 1;
            const float *from = sums + c * kBlockPixels + pixel * vectors * kLanes;
            for (int v = 0; v < vectors; ++v, c += kLanes, from += kLanes) {
                vf value = load(from);
                if (job.background) value += rest[pixel] * load(job.background + c);
                if (streamed) stream(out + c, value);
                else store(out + c, value);
            }
        }
        for (; c < layout.channels; ++c) {
            const float behind = job.background ? rest[pixel] * job.background[c] : 0.0f;
            out[c] = sums[c * kBlockPixels + pixel] + behind;
        }
    }
}

// The same for N channels, [channel][pixel], that lie behind one another.
template <int N>
GUAVA_INLINE void write_few(const BlendJob &job, float *out, int first_pixel, int width, const float *rest,
                            const float *sums) {
    float background[N];
    for (int c = 0; c < N; ++c) background[c] = job.background ? job.background[c] : 0.0f;
    for (int x = 0; x < width; ++x)
        for (int c = 0; c < N; ++c) {
            const int pixel = first_pixel + x;
            out[x * N + c] = sums[c * kBlockPixels + pixel] + rest[pixel] * background[c];
        }
}

template <int kFused>
void write_block(const BlendJob &job, const Layout &layout, const TilePlace &tile, int block,
                 const BlockState &state, const float *sums, bool streamed) {
    const SplatConstants &k = *job.constants;
    const int left = tile.x + block % (kTile / kBlock) * kBlock,
        top = tile.y + block / (kTile / kBlock) * kBlock;
    const int width = k.width - left < kBlock ? k.width - left : kBlock;
    const int height = k.height - top < kBlock ? k.height - top : kBlock;
    alignas(64) float rest[kBlockPixels], alpha[kBlockPixels], depth[kBlockPixels];
    for (int part = 0; part < kParts; ++part) {
        store(rest + part * kLanes, state.left[part]);
        store(alpha + part * kLanes, 1.0f - state.left[part]);
        store(depth + part * kLanes, state.depth[part]);
    }
    const size_t row_bytes = sizeof(float) * (size_t)width;
    for (int y = 0; y < height; ++y) {
        const int first = y * kBlock;
        const size_t place = (size_t)(top + y) * (size_t)k.width + (size_t)left;
        if (job.out_alpha) __builtin_memcpy(job.out_alpha + place, alpha + first, row_bytes);
        if (job.out_depth) __builtin_memcpy(job.out_depth + place, depth + first, row_bytes);
        if (!job.out_features) continue;
        float *out = job.out_features + place * (size_t)layout.channels;
        if constexpr (kFused > 0) {
            if (width == kBlock) write_few<kFused>(job, out, first, kBlock, rest, sums);
            else write_few<kFused>(job, out, first, width, rest, sums);
        } else {
            write_pixels(job, layout, out, first, width, rest, sums, streamed);
        }
    }
}

void write_empty_tile(const BlendJob &job, const TilePlace &tile, bool streamed) {
    const SplatConstants &k = *job.constants;
    const size_t channels = (size_t)k.channels;
    for (int y = 0; y < tile.height; ++y) {
        const size_t place = (size_t)(tile.y + y) * (size_t)k.width + (size_t)tile.x;
        if (job.out_alpha) __builtin_memset(job.out_alpha + place, 0, sizeof(float) * (size_t)tile.width);
        if (job.out_depth) __builtin_memset(job.out_depth + place, 0, sizeof(float) * (size_t)tile.width);
        if (!job.out_features) continue;
        float *out = job.out_features + place * channels;
        const size_t count = (size_t)tile.width * channels;
        if (job.background)
            for (int x = 0; x < tile.width; ++x)
                __builtin_memcpy(out + (size_t)x * channels, job.background, sizeof(float) * channels);
        else if (streamed)
            for (size_t i = 0; i < count; i += kLanes) stream(out + i, vf{});
        else
            __builtin_memset(out, 0, sizeof(float) * count);
    }
}

// Pixels beyond the picture's edge are opaque from the beginning, so that they never hold a block open.
void begin_tile(Scratch &s, const TilePlace &tile) {
    for (int block = 0; block < kTileBlocks; ++block) {
        PixelCentres centres;
        set_pixel_centres(centres, block);
        for (int part = 0; part < kParts; ++part) {
            vm inside = both(less(centres.x[part], splat((float)tile.width)),
                             less(centres.y[part], splat((float)tile.height)));
            s.states[block].running[part] = s.states[block].left[part] = keep(inside, splat(1));
            s.states[block].depth[part] = vf{};
        }
    }
}

template <int kFused>
void blend_tile(
    const BlendJob &job, Scratch &s, int64_t tile, int64_t tile_end, bool streamed, BlendCounts &counts
) {
    const SplatConstants &k = *job.constants;
    const TilePlace place = place_of(k, tile);
    const uint32_t begin = job.starts[tile], end = job.starts[tile + 1];
    if (begin == end) {
        write_empty_tile(job, place, streamed);
        return;
    }
    const Layout layout = Layout::of(k.channels);
    const size_t block_sums = (size_t)layout.channels * kBlockPixels;
    begin_tile(s, place);
    const bool several = end - begin > kBatch;
    const auto outside = [&](int block) {
        return block % 4 * kBlock >= place.width || block / 4 * kBlock >= place.height;
    };
    const auto sums_of = [&](int block) { return s.sums + (several ? (size_t)block * block_sums : 0); };
    NextTile next = next_tile(job.records, job.features, k.channels, job.starts, job.ids, tile, tile_end);
    for (uint32_t first = begin; first < end; first += kBatch) {
        const uint32_t count = end - first < kBatch ? end - first : kBatch;
        load_batch(s.batch, job.records, job.ids + first, (int)count, (float)place.x, (float)place.y,
                   k.log2_alpha_min);
        if (kFused > 0)
            for (uint32_t j = 0; j < count; ++j)
                for (int c = 0; c < kFused; ++c)
                    s.fused_features[j][c] = job.features[(size_t)job.ids[first + j] * kFused + c];
        bool open = false;
        for (int block = 0; block < kTileBlocks; ++block) {
            next.fetch_part(block);
            if (outside(block)) continue;
            float *sums = sums_of(block);
            if (first == begin) __builtin_memset(sums, 0, sizeof(float) * block_sums);
            const int listed = list_block(s.batch, (int)count, block);
            blend_block<kFused>(job, s, layout, block, listed, sums, counts);
            if (several) open = open || any_open(s.states[block].running, k.transmittance_min);
            else write_block<kFused>(job, layout, place, block, s.states[block], sums, streamed);
        }
        if (several && !open) break; // however many Gaussians lie behind
    }
    for (int block = 0; several && block < kTileBlocks; ++block)
        if (!outside(block))
            write_block<kFused>(job, layout, place, block, s.states[block], sums_of(block), streamed);
}

void blend(const BlendJob *job, int64_t tile_begin, int64_t tile_end, void *scratch, BlendCounts *counts) {
    Scratch &s = *static_cast<Scratch *>(scratch);
    const bool streamed = streamable(*job);
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) switch (job->constants->channels) {
        case 0: blend_tile<0>(*job, s, tile, tile_end, streamed, *counts); break;
        case 1: blend_tile<1>(*job, s, tile, tile_end, streamed, *counts); break;
        case 2: blend_tile<2>(*job, s, tile, tile_end, streamed, *counts); break;
        case 3: blend_tile<3>(*job, s, tile, tile_end, streamed, *counts); break;
        case 4: blend_tile<4>(*job, s, tile, tile_end, streamed, *counts); break;
        default: blend_tile<-1>(*job, s, tile, tile_end, streamed, *counts);
        }
    finish_streams();
}

} // namespace

extern const BlendKernels splat_blend;
const BlendKernels splat_blend = {scratch_bytes, blend};

} // namespace GUAVA_ISA
} // namespace guava
