// Which instruction sets this library has and this machine runs.
#pragma once

#include <cstdint>

// Kernels exist for all three on x86-64; elsewhere only for the baseline.
#if defined(__x86_64__) || defined(_M_X64)
#define GUAVA_X86 1
#else
#define GUAVA_X86 0
#endif

namespace guava {

int32_t best_isa(); // of guava_isa, never GUAVA_ISA_BEST

} // namespace guava
