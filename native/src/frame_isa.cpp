// A splatted or refined picture over a background, in 8 bits: see guava.rendering.frame for the reasons.
#include "frame_kernels.h"
#include "simd.h"

namespace guava {
namespace GUAVA_ISA {
namespace {

// Red, green, blue, alpha.
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef uint8_t u4 __attribute__((vector_size(4)));

constexpr float kFaint = 2.0f / 255; // guava.rendering.frame.FAINT

GUAVA_INLINE v4 smaller(v4 a, v4 b) { return (v4)(((i4)a & (a < b)) | ((i4)b & ~(a < b))); }
GUAVA_INLINE v4 larger(v4 a, v4 b) { return (v4)(((i4)a & (a > b)) | ((i4)b & ~(a > b))); }
GUAVA_INLINE v4 all(float x) { return v4{x, x, x, x}; }

// The mean of samples x samples input pixels, premultiplied, with its alpha.
GUAVA_INLINE v4 averaged(const guava_frame *frame, int64_t y, int64_t x, int samples) {
    const int64_t wide = (int64_t)frame->width * samples;
    v4 total{};
    for (int64_t row = y * samples; row < (y + 1) * samples; ++row)
        for (int64_t column = x * samples; column < (x + 1) * samples; ++column) {
            const int64_t pixel = row * wide + column;
            const float *f = frame->features + pixel * frame->channels;
            total += v4{f[0], f[1], f[2], frame->alpha[pixel]};
        }
    return total * (1.0f / (float)(samples * samples));
}

// No colour is brighter than its alpha allows.
GUAVA_INLINE v4 composed(v4 pixel, v4 behind) {
    v4 alpha = all(pixel[3]);
    return larger(smaller(pixel, alpha), v4{}) + behind * (1 - alpha);
}

// A refiner paints beyond the Gaussians: its colours raise alpha, unless they are too faint to be meant.
GUAVA_INLINE v4 composed_glowing(v4 pixel, v4 behind) {
    v4 color = larger(smaller(pixel, all(1)), v4{});
    float bright = color[0] > color[1] ? color[0] : color[1];
    bright = bright > color[2] ? bright : color[2];
    if (!(pixel[3] > 0) && !(bright >= kFaint)) return behind;
    float alpha = pixel[3] > bright ? pixel[3] : bright;
    return color + behind * (1 - (alpha < 1 ? alpha : 1));
}

GUAVA_INLINE void one_row(const guava_frame *frame, int64_t y, int samples, bool glowing) {
    uint8_t *out = frame->rgb + y * frame->row_bytes;
    const float *picture = frame->behind ? frame->behind + 3 * y * frame->width : nullptr;
    v4 behind = {frame->background[0], frame->background[1], frame->background[2], 0};
    for (int64_t x = 0; x < frame->width; ++x) {
        if (picture) behind = v4{picture[3 * x], picture[3 * x + 1], picture[3 * x + 2], 0};
        v4 pixel = averaged(frame, y, x, samples);
        v4 over = glowing ? composed_glowing(pixel, behind) : composed(pixel, behind);
        i4 level = __builtin_convertvector(larger(smaller(over, all(1)), v4{}) * 255.0f + 0.5f, i4);
        u4 bytes = __builtin_convertvector(level, u4);
        out[3 * x] = bytes[0];
        out[3 * x + 1] = bytes[1];
        out[3 * x + 2] = bytes[2];
    }
}

void rows(const guava_frame *frame, int64_t begin, int64_t end) {
    const bool glowing = frame->glowing != 0;
    for (int64_t y = begin; y < end; ++y) {
        if (frame->samples == 1 && glowing)
            one_row(frame, y, 1, true);
        else if (frame->samples == 1)
            one_row(frame, y, 1, false);
        else if (frame->samples == 2 && !glowing)
            one_row(frame, y, 2, false);
        else
            one_row(frame, y, frame->samples, glowing);
    }
}

} // namespace

extern const FrameKernels frame_kernels;
const FrameKernels frame_kernels = {rows};

} // namespace GUAVA_ISA
} // namespace guava
