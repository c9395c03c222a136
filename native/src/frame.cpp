// A splatted or refined picture over a background, in 8 bits; kernel in frame_isa.cpp.
#include "context.h"
#include "frame_kernels.h"
#include "isa.h"

namespace guava {

namespace baseline {
extern const FrameKernels frame_kernels;
}
#if GUAVA_X86
namespace avx2 {
extern const FrameKernels frame_kernels;
}
namespace avx512 {
extern const FrameKernels frame_kernels;
}
#endif

namespace {

constexpr int64_t kRowGrain = 16;
constexpr int64_t kMaxSide = 1 << 20, kMaxSamples = 64;

const FrameKernels &kernels(int32_t isa) {
#if GUAVA_X86
    if (isa == GUAVA_ISA_AVX512) return avx512::frame_kernels;
    if (isa == GUAVA_ISA_AVX2) return avx2::frame_kernels;
#endif
    (void)isa;
    return baseline::frame_kernels;
}

bool complete(const guava_frame *frame) {
    if (!frame || frame->width < 0 || frame->height < 0) return false;
    if (frame->width > kMaxSide || frame->height > kMaxSide) return false;
    if (frame->samples < 1 || frame->samples > kMaxSamples || frame->channels < 3) return false;
    if (frame->row_bytes < 3 * static_cast<int64_t>(frame->width)) return false;
    return !frame->width || !frame->height || (frame->features && frame->alpha && frame->rgb);
}

} // namespace
} // namespace guava

extern "C" {

GUAVA_API int32_t guava_frame_rgb8(guava_context *context, const guava_frame *frame) {
    if (!context || !guava::complete(frame)) return GUAVA_INVALID_CALL;
    context->begin_call();
    const guava::FrameKernels &run = guava::kernels(context->isa);
    bool done = guava::parallel_for(
        *context, frame->height, guava::kRowGrain,
        [&](int64_t begin, int64_t end, int) { run.rows(frame, begin, end); }
    );
    return done ? GUAVA_OK : GUAVA_CANCELLED;
}

} // extern "C"
