// What passes between the splatter's orchestration (splat.cpp, once) and its kernels (*_isa.cpp, once per
// instruction set). Plain data only.
//
// The exponent of a Gaussian at a pixel, d = pixel - centre, is kept as a Cholesky factor of the inverse
// covariance, in units of log2:
//
//     log2(alpha) = lo - u^2 - v^2,   u = l11 dx + l21 dy,   v = l22 dy,   lo = log2(opacity)
//
// A sum of squares cannot become negative by rounding, however thin the Gaussian. With the dilated covariance
// [[A, B], [B, C]] and h = log2(e) / 2:
//
//     l11 = sqrt(h C / det),   l21 = -l11 B / C,   l22 = sqrt(h / C)
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "guava_native.h"

namespace guava {

constexpr int kTile = 16;          // pixels; the unit of SplatConventions.extent == "radius" as well
constexpr int kBlock = 4;          // a tile is cut into blocks of 4 x 4 pixels, which are what vectors hold
constexpr int kBlockPixels = 16;
constexpr int kTileBlocks = (kTile / kBlock) * (kTile / kBlock);
constexpr int kProjectGrain = 1024; // Gaussians; also the grain of the projection's gradients
constexpr float kHalfLog2E = 0.72134752044448f;

// One Gaussian on the picture.
struct SplatRecord {
    float x, y;          // centre, pixels
    float l11, l21, l22; // see above, 1 / pixel
    float lo;            // log2(opacity)
    float depth;         // what the depth picture sums: z or 1 / z
    float reach_x;       // |dx| <= reach_x and ...
    // ... |dy| <= reach_y = sqrt(lo - log2(alpha_min)) / l22 hold every pixel with alpha >= alpha_min.
};

// One visible Gaussian for sorting and binning.
struct SplatKey {
    uint32_t depth; // bits of the positive camera depth, which ascend with it
    uint32_t index;
    uint16_t x0, x1, y0, y1; // inclusive range of tiles
};

// The scene's numbers in the form that the kernels use.
struct SplatConstants {
    float view[12], intrinsics[6], frustum[4];
    float eps2d, alpha_max, alpha_min, log2_alpha_min, transmittance_min, near_plane;
    int32_t flags, width, height, tiles_x, tiles_y, channels;
};

struct ProjectChunk {
    int64_t visible, pairs;
    uint32_t depth_min, depth_max;
    bool suspect; // some value is not allowed: to be looked for one by one
};

struct ProjectJob {
    const SplatConstants *constants;
    const float *means, *quaternions, *scales, *opacities, *features;
    SplatRecord *records; // (N,), only those of visible Gaussians are written
    SplatKey *keys;       // (N,), a chunk's visible ones from its first place on
};

struct BlendJob {
    const SplatConstants *constants;
    const SplatRecord *records;
    const uint32_t *starts; // (tiles + 1,)
    const uint32_t *ids;    // (pairs,) Gaussians of the tiles, nearest first
    const float *features, *background;
    float *out_features, *out_alpha, *out_depth; // NULL: not wanted
};

struct BlendCounts {
    int64_t evaluations, weights;
};

using ProjectKernel = void (*)(const ProjectJob *job, int64_t begin, int64_t end, ProjectChunk *chunk);

struct BlendKernels {
    size_t (*scratch)(int32_t channels); // bytes of working memory, 64-byte aligned
    void (*blend)(const BlendJob *job, int64_t tile_begin, int64_t tile_end, void *scratch,
        BlendCounts *counts);
};

// ---- Backward. The blending's gradients are summed per Gaussian-tile pair ("slot"), because a tile is
// worked on by one thread only; slots of a Gaussian are then added up in order. So no sum depends on how
// tiles were dealt out.

// After a slot's channels, rounded up to whole vectors: sums over the pair's pixels of g = dL / d ln(alpha
// before its clamp), in the coordinates u and v above, and of dL / d depth.
enum SplatMoment { kMoment1, kMomentU, kMomentV, kMomentUU, kMomentUV, kMomentVV, kMomentDepth,
    kMoments = 8 };

struct BlendBackwardJob {
    const SplatConstants *constants;
    const SplatRecord *records;
    const uint32_t *starts, *ids;
    const float *features, *background;
    const float *out_features, *out_alpha, *out_depth; // gradients by the picture, NULL: zero
    float *slots;        // of the pairs from first_pair on
    int64_t first_pair;
    int32_t slot_channels; // channels of a slot, in whole vectors; 0: no gradients of features are wanted
    float *left;           // (H, W) the transmittance that is left, NULL: not wanted
};

struct BlendBackwardKernels {
    int32_t (*slot_channels)(int32_t channels);
    size_t (*scratch)(int32_t channels, int64_t longest_list);
    void (*blend)(const BlendBackwardJob *job, int64_t tile_begin, int64_t tile_end, void *scratch);
};

constexpr int kCameraSums = 18; // view (12), intrinsics (6)

struct ProjectBackwardJob {
    const SplatConstants *constants;
    const float *means, *quaternions, *scales, *opacities;
    // Of one band of tiles: pairs [first_pair, last_pair), in `slots`.
    const uint32_t *pair_starts, *pair_counts, *places;
    const float *slots;
    int64_t first_pair, last_pair;
    int32_t slot_channels;
    bool first_band, last_band;
    float *moments; // (N, kMoments), sums over the bands so far
    float *d_means, *d_quaternions, *d_scales, *d_opacities, *d_features; // NULL: not wanted
    bool camera;    // whether sums over Gaussians are wanted
};

// camera_sums: (kCameraSums,) of these Gaussians, if job->camera.
using ProjectBackwardKernel = void (*)(const ProjectBackwardJob *job, int64_t begin, int64_t end,
                                       double *camera_sums);

} // namespace guava
