// What the forward and the backward blending share: a tile's Gaussians in the tile's own coordinates, which of
// its blocks they reach, and the evaluation of alphas in a block. For *_isa.cpp.
//
// A block of 4 x 4 pixels is what one Gaussian is evaluated on at once: kParts vectors of kLanes pixels, row by
// row. A tile's Gaussians are taken in batches, so that working memory is bounded.
#pragma once

#include "simd.h"
#include "splat_kernels.h"

namespace guava {
namespace GUAVA_ISA {
namespace {

constexpr int kParts = kBlockPixels / kLanes;
constexpr int kBatch = 1024;
constexpr int kPrefetchAhead = 16;

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
    const float left = (float)(block % (kTile / kBlock) * kBlock), top = (float)(block / (kTile / kBlock) * kBlock);
    for (int part = 0; part < kParts; ++part)
        for (int lane = 0; lane < kLanes; ++lane) {
            const int pixel = part * kLanes + lane;
            centres.x[part][lane] = left + (float)(pixel % kBlock) + 0.5f;
            centres.y[part][lane] = top + (float)(pixel / kBlock) + 0.5f;
        }
}

// Bits first..last of four, for the blocks whose pixel centres [4 b + 1/2, 4 b + 7/2] meet [low, high].
GUAVA_INLINE uint32_t blocks_between(float low, float high) {
    uint32_t mask = 0;
    for (int b = 0; b < kTile / kBlock; ++b)
        mask |= (uint32_t)((low <= kBlock * b + (kBlock - 0.5f)) & (high >= kBlock * b + 0.5f)) << b;
    return mask;
}

void load_batch(
    Batch &batch, const SplatRecord *records, const uint32_t *ids, int count, float left, float top,
    float log2_alpha_min
) {
    for (int j = 0; j < count; ++j) {
        if (j + kPrefetchAhead < count) __builtin_prefetch(records + ids[j + kPrefetchAhead]);
        const SplatRecord &r = records[ids[j]];
        const float x = r.x - left, y = r.y - top;
        LocalGaussian &g = batch.gaussians[j];
        g.l11 = r.l11;
        g.l21 = r.l21;
        g.l22 = r.l22;
        g.u0 = -(r.l11 * x + r.l21 * y);
        g.v0 = -(r.l22 * y);
        g.lo = r.lo;
        g.depth = r.depth;
        g.id = ids[j];
        const float room = r.lo - log2_alpha_min;
        const float reach_y = __builtin_sqrtf(room > 0 ? room : 0) / r.l22 + 1e-3f;
        const uint32_t across = blocks_between(x - r.reach_x, x + r.reach_x);
        const uint32_t down = blocks_between(y - reach_y, y + reach_y);
        const uint32_t rows = (down & 1) | (down & 2) << 3 | (down & 4) << 6 | (down & 8) << 9;
        batch.blocks[j] = (uint16_t)(across * rows);
    }
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
