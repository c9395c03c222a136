// Detection by CPUID, without the compilers' own run-time libraries (which mingw and zig do not all have).
#include "isa.h"

#include "guava_native.h"

#if GUAVA_X86
#include <cpuid.h>
#endif

namespace guava {
namespace {

#if GUAVA_X86
struct Features {
    bool avx2 = false, avx512 = false;
};

// Registers that the operating system saves, XCR0.
uint64_t saved_registers() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

Features detect() {
    Features found;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
    const bool fma = c & (1u << 12), osxsave = c & (1u << 27), avx = c & (1u << 28), f16c = c & (1u << 29);
    if (!osxsave || !avx || !fma || !f16c) return found;
    const uint64_t saved = saved_registers();
    const uint64_t ymm = 0x6, zmm = 0xe6;
    if ((saved & ymm) != ymm || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    found.avx2 = b & (1u << 5);
    const uint32_t f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31, all = f | dq | bw | vl;
#if defined(__APPLE__)
    const bool zmm_saved = true; // macOS turns the upper registers on when a thread first uses them
#else
    const bool zmm_saved = (saved & zmm) == zmm;
#endif
    found.avx512 = found.avx2 && zmm_saved && (b & all) == all;
    return found;
}

const Features &features() {
    static const Features found = detect();
    return found;
}
#endif

} // namespace

int32_t best_isa() {
#if GUAVA_X86
    if (features().avx512) return GUAVA_ISA_AVX512;
    if (features().avx2) return GUAVA_ISA_AVX2;
#endif
    return GUAVA_ISA_BASELINE;
}

} // namespace guava

extern "C" {

GUAVA_API int32_t guava_isa_available(int32_t isa) {
    return isa >= GUAVA_ISA_BASELINE && isa <= guava::best_isa();
}

GUAVA_API const char *guava_isa_name(int32_t isa) {
    switch (isa) {
#if GUAVA_X86
    case GUAVA_ISA_BASELINE: return "sse2";
#elif defined(__aarch64__)
    case GUAVA_ISA_BASELINE: return "neon";
#else
    case GUAVA_ISA_BASELINE: return "baseline";
#endif
    case GUAVA_ISA_AVX2: return "avx2";
    case GUAVA_ISA_AVX512: return "avx512";
    default: return "unknown";
    }
}

} // extern "C"
