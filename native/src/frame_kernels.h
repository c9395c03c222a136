// What passes between guava_frame_rgb8 (frame.cpp, once) and its kernel (frame_isa.cpp, once per
// instruction set).
#pragma once

#include <stdint.h>

#include "guava_native.h"

namespace guava {

struct FrameKernels {
    void (*rows)(const guava_frame *frame, int64_t begin, int64_t end);
};

} // namespace guava
