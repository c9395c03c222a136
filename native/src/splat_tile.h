// What the forward and the backward blending share: a tile's Gaussians in the tile's own coordinates, which
// of its blocks they reach, and the evaluation of alphas in a block. For *_isa.cpp.
//
// A block of 4 x 4 pixels is what one Gaussian is evaluated on at once: kParts vectors of kLanes pixels, row
// by row. A tile's Gaussians are taken in batches, so that working memory is bounded.
#pragma once

#include "simd.h"
#include "splat_kernels.h"
#include "splat_load.h"

namespace guava {
namespace GUAVA_ISA {
namespace {

constexpr int kParts = kBlockPixels / kLanes;
constexpr int kBatch = 1024;
constexpr int kPrefetchAhead = 16;
constexpr size_t kLine = 64; // bytes of a cache line

// A Gaussian relative to a tile's top left corner: u = l11 X + l21 Y + u0, v = l22 Y + v0.
struct LocalGaussian {
    float l11, l21, u0, l22, v0, lo, depth;
    uint32_t id;
};

// A batch of a tile's Gaussians.
struct Batch {
    LocalGaussian gaussians[kBatch];
    uint16_t blocks[kBatch + kLanes]; // bit 4 y + x: may reach block (x, y) of the tile
    int32_t list[kBatch + kLanes];    // those that may reach the current block
};

struct PixelCentres {
    vf x[kParts], y[kParts];
};

GUAVA_INLINE void set_pixel_centres(PixelCentres &centres, int block) {
    const float left = (float)(block % (kTile / kBlock) * kBlock),
        top = (float)(block / (kTile / kBlock) * kBlock);
    for (int part = 0; part < kParts; ++part) {
        centres.x[part] = centres.y[part] = vf{};
        for (int lane = 0; lane < kLanes; ++lane) {
            const int pixel = part * kLanes + lane;
            centres.x[part][lane] = left + (float)(pixel % kBlock) + 0.5f;
            centres.y[part][lane] = top + (float)(pixel / kBlock) + 0.5f;
        }
    }
}

// r = opacity exp(-E) of one Gaussian at kLanes pixels of a block, before its clamp; 0 below alpha_min.
GUAVA_INLINE vf raw_alphas(const LocalGaussian &g, const PixelCentres &centres, int part, vf log2_alpha_min) {
    vf u = g.l11 * centres.x[part] + (g.l21 * centres.y[part] + g.u0);
    vf v = g.l22 * centres.y[part] + g.v0;
    vf exponent = g.lo - u * u - v * v;
    return keep(less_equal(log2_alpha_min, exponent), exp2(exponent));
}

// Transmittance behind. Not before - before * alpha, which has no digits left behind an opaque Gaussian, and
// another rounding wherever the compiler makes one instruction of it: all passes must have the same bits.
GUAVA_INLINE vf transmitted(vf before, vf alpha) { return before * (1.0f - alpha); }

// Fetches the next tile's Gaussians into the second-level cache while this one is worked on, a part after
// every block: they lie all over memory.
struct NextTile {
    const SplatRecord *records;
    const float *features; // NULL: not needed
    const uint32_t *ids;
    uint32_t count, done;
    size_t feature_bytes; // of one Gaussian, as many as are worth fetching

    GUAVA_INLINE NextTile none() { return {nullptr, nullptr, nullptr, 0, 0, 0}; }

    __attribute__((always_inline)) inline void fetch_part(int block) {
        const uint32_t until = count * (uint32_t)(block + 1) / kTileBlocks;
        for (; done < until; ++done) {
            const size_t id = ids[done];
            __builtin_prefetch(records + id, 0, 2);
            const char *row = reinterpret_cast<const char *>(features) + id * feature_bytes;
            for (size_t byte = 0; features && byte < feature_bytes; byte += kLine)
                __builtin_prefetch(row + byte, 0, 2);
        }
    }
};

constexpr size_t kFetchedBytes = 256; // feature rows longer than this are left to the hardware's prefetcher

// The beginning of a Gaussian's feature row into the first-level cache.
GUAVA_INLINE void fetch_row(const float *features, size_t id, size_t channels) {
    const char *row = reinterpret_cast<const char *>(features + id * channels);
    __builtin_prefetch(row);
    if (channels * sizeof(float) > kLine) __builtin_prefetch(row + kLine);
}

GUAVA_INLINE NextTile next_tile(const SplatRecord *records, const float *features, int channels,
                                const uint32_t *starts, const uint32_t *ids, int64_t tile, int64_t tile_end) {
    if (tile + 1 >= tile_end) return NextTile::none();
    const uint32_t begin = starts[tile + 1], count = starts[tile + 2] - begin;
    const size_t bytes = sizeof(float) * (size_t)channels;
    return {records, bytes && bytes <= kFetchedBytes ? features : nullptr, ids + begin,
            count < (uint32_t)kBatch ? count : (uint32_t)kBatch, 0, bytes};
}

// Which blocks of the tile an ellipse u^2 + v^2 <= room reaches, kLanes ellipses at once. In each row of
// blocks, pixel centres have dy in [low, high]; there the ellipse spans
//
//     dx = -(l21 / l11) dy +- sqrt(room - (l22 dy)^2) / l11,
//
// widest at the ends of [low, high], unless the ellipse's own rightmost (leftmost) point lies between.
GUAVA_INLINE vi blocks_of_ellipses(vf x, vf y, vf l11, vf l21, vf l22, vf room, vf reach_x) {
    constexpr int kAcross = kTile / kBlock;
    const float slack = 2e-3f; // pixels, for rounding
    vf inverse = 1.0f / l11, slope = -l21 * inverse, reach_y = square_root(room) / l22;
    vf tip = slope * room / (l22 * l22 * reach_x); // dy of the rightmost point; minus that, of the leftmost
    vf left[kAcross], right[kAcross];              // [4 b + 1/2, 4 b + 7/2] holds a block's pixel centres
    GUAVA_UNROLL
    for (int b = 0; b < kAcross; ++b) {
        left[b] = (kBlock * (float)b + 0.5f - slack) - x;
        right[b] = (kBlock * (float)b + (kBlock - 0.5f) + slack) - x;
    }
    vi blocks{};
    GUAVA_UNROLL
    for (int row = 0; row < kAcross; ++row) {
        vf low = (kBlock * (float)row + 0.5f - slack) - y,
            high = (kBlock * (float)row + (kBlock - 0.5f) + slack) - y;
        vm here = both(less_equal(low, reach_y), less_equal(-reach_y, high));
        low = maximum(low, -reach_y);
        high = minimum(high, reach_y);
        vf at_low = square_root(maximum(room - (l22 * low) * (l22 * low), vf{})) * inverse;
        vf at_high = square_root(maximum(room - (l22 * high) * (l22 * high), vf{})) * inverse;
        vf most = maximum(slope * low + at_low, slope * high + at_high);
        vf least = minimum(slope * low - at_low, slope * high - at_high);
        most = select(both(less_equal(low, tip), less_equal(tip, high)), reach_x, most);
        least = select(both(less_equal(low, -tip), less_equal(-tip, high)), -reach_x, least);
        GUAVA_UNROLL
        for (int b = 0; b < kAcross; ++b) {
            vm meets = both(here, both(less_equal(least, right[b]), less_equal(left[b], most)));
            blocks |= keep(meets, vi{} + (1 << (row * kAcross + b)));
        }
    }
    return blocks;
}

void load_batch(
    Batch &batch, const SplatRecord *records, const uint32_t *ids, int count, float left, float top,
    float log2_alpha_min
) {
    typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
    typedef uint16_t HalvesUnaligned __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
    alignas(64) SplatRecord rows[kLanes];
    alignas(64) uint32_t row_ids[kLanes];
    for (int j = 0; j < count; j += kLanes) {
        for (int i = 0; i < kLanes; ++i) {
            const int at = j + i < count ? j + i : count - 1;
            if (at + kPrefetchAhead < count) __builtin_prefetch(records + ids[at + kPrefetchAhead]);
            row_ids[i] = ids[at];
            rows[i] = records[ids[at]];
        }
        vf r[8]; // x, y, l11, l21, l22, lo, depth, reach_x
        load_rows_of_eight(reinterpret_cast<const float *>(rows), r);
        const vf x = r[0] - left, y = r[1] - top, l11 = r[2], l21 = r[3], l22 = r[4], lo = r[5];
        vf id;
        __builtin_memcpy(&id, row_ids, sizeof id);
        const vf local[8] = {l11, l21, -(l11 * x + l21 * y), l22, -(l22 * y), lo, r[6], id};
        store_rows_of_eight(reinterpret_cast<float *>(batch.gaussians + j), local);
        const vf room = maximum(lo - log2_alpha_min, vf{});
        const vi blocks = blocks_of_ellipses(x, y, l11, l21, l22, room, r[7]);
        *reinterpret_cast<HalvesUnaligned *>(batch.blocks + j) = __builtin_convertvector(blocks, Halves);
    }
}

// Whether a pixel of a block has not ended.
GUAVA_INLINE bool any_open(const vf running[kParts], float transmittance_min) {
    vm open = less(splat(transmittance_min), running[0]);
    for (int part = 1; part < kParts; ++part)
        open = either(open, less(splat(transmittance_min), running[part]));
    return any(open);
}

// Those of the batch that may reach a block, in order, in batch.list. Returns how many.
GUAVA_INLINE int list_block(Batch &batch, int count, int block) {
    int listed = 0;
#if defined(__AVX512BW__)
    const __m256i bit = _mm256_set1_epi16((short)(1 << block));
    __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int j = 0; j < count; j += 16) {
        const __m256i blocks = _mm256_loadu_si256((const __m256i *)(batch.blocks + j));
        __mmask16 here = _mm256_test_epi16_mask(blocks, bit);
        if (count - j < 16) here &= (__mmask16)((1u << (count - j)) - 1);
        _mm512_storeu_si512(batch.list + listed, _mm512_maskz_compress_epi32(here, index));
        listed += __builtin_popcount(here);
        index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
    }
#else
    for (int j = 0; j < count; ++j) {
        batch.list[listed] = j;
        listed += batch.blocks[j] >> block & 1;
    }
#endif
    return listed;
}

} // namespace
} // namespace GUAVA_ISA
} // namespace guava
