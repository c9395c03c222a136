// Vectors of the native width for kernels that are compiled once per instruction set (*_isa.cpp).
//
// Everything is in an anonymous namespace inside one per instruction set, and nothing of std:: is called: an
// inline function with external linkage that was compiled with AVX here could otherwise be the copy that the
// linker keeps for the whole library, and machines without AVX would stop at it.
//
// vf and vi are plain GCC/Clang vectors: + - * and comparisons to vi masks work element by element, and
// scalars are broadcast. Masks that select are a type of their own (vm), because AVX-512 keeps them in other
// registers.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef GUAVA_ISA
#error "compile *_isa.cpp with -DGUAVA_ISA=baseline, avx2 or avx512"
#endif

#define GUAVA_INLINE static inline __attribute__((always_inline))

#if defined(__clang__)
#define GUAVA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define GUAVA_UNROLL _Pragma("GCC unroll 32")
#endif

namespace guava {
namespace GUAVA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vf __attribute__((vector_size(4 * kLanes)));
typedef int32_t vi __attribute__((vector_size(4 * kLanes)));
typedef uint32_t vu __attribute__((vector_size(4 * kLanes)));
typedef float vf_unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

GUAVA_INLINE vf splat(float x) { return vf{} + x; }
GUAVA_INLINE vf load(const float *p) { return *reinterpret_cast<const vf_unaligned *>(p); }
GUAVA_INLINE void store(float *p, vf x) { *reinterpret_cast<vf_unaligned *>(p) = x; }
GUAVA_INLINE void store(int32_t *p, vi x) { *reinterpret_cast<vi_unaligned *>(p) = x; }
GUAVA_INLINE vi as_int(vf x) { return reinterpret_cast<vi>(x); }
GUAVA_INLINE vu as_bits(vf x) { return reinterpret_cast<vu>(x); } // unsigned, so that sums may wrap
GUAVA_INLINE vf as_float(vi x) { return reinterpret_cast<vf>(x); }
GUAVA_INLINE vf as_float(vu x) { return reinterpret_cast<vf>(x); }
GUAVA_INLINE vi truncate(vf x) { return __builtin_convertvector(x, vi); }
GUAVA_INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }

#if defined(__AVX512F__)

typedef __mmask16 vm;
GUAVA_INLINE vm less(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
GUAVA_INLINE vm less_equal(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
GUAVA_INLINE vm both(vm a, vm b) { return (vm)(a & b); }
GUAVA_INLINE vm either(vm a, vm b) { return (vm)(a | b); }
GUAVA_INLINE vf select(vm m, vf a, vf b) { return (vf)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
GUAVA_INLINE vf keep(vm m, vf a) { return (vf)_mm512_maskz_mov_ps(m, (__m512)a); }
GUAVA_INLINE vi keep(vm m, vi a) { return (vi)_mm512_maskz_mov_epi32(m, (__m512i)a); }
GUAVA_INLINE uint32_t bits(vm m) { return m; }
GUAVA_INLINE vf minimum(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
GUAVA_INLINE vf maximum(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
GUAVA_INLINE vf square_root(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
GUAVA_INLINE void stream(float *p, vf x) { _mm512_stream_ps(p, (__m512)x); }
GUAVA_INLINE float sum(vf x) { return _mm512_reduce_add_ps((__m512)x); }

#else

typedef vi vm;
GUAVA_INLINE vm less(vf a, vf b) { return a < b; }
GUAVA_INLINE vm less_equal(vf a, vf b) { return a <= b; }
GUAVA_INLINE vm both(vm a, vm b) { return a & b; }
GUAVA_INLINE vm either(vm a, vm b) { return a | b; }
GUAVA_INLINE vf keep(vm m, vf a) { return as_float(m & as_int(a)); }
GUAVA_INLINE vi keep(vm m, vi a) { return m & a; }

#if defined(__AVX2__)
GUAVA_INLINE vf select(vm m, vf a, vf b) { return (vf)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)m); }
GUAVA_INLINE uint32_t bits(vm m) { return (uint32_t)_mm256_movemask_ps((__m256)m); }
GUAVA_INLINE vf minimum(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
GUAVA_INLINE vf maximum(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
GUAVA_INLINE vf square_root(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
GUAVA_INLINE void stream(float *p, vf x) { _mm256_stream_ps(p, (__m256)x); }
#elif defined(__SSE2__)
GUAVA_INLINE vf select(vm m, vf a, vf b) { return as_float((m & as_int(a)) | (~m & as_int(b))); }
GUAVA_INLINE uint32_t bits(vm m) { return (uint32_t)_mm_movemask_ps((__m128)m); }
GUAVA_INLINE vf minimum(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
GUAVA_INLINE vf maximum(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
GUAVA_INLINE vf square_root(vf a) { return (vf)_mm_sqrt_ps((__m128)a); }
GUAVA_INLINE void stream(float *p, vf x) { _mm_stream_ps(p, (__m128)x); }
#elif defined(__aarch64__)
GUAVA_INLINE vf select(vm m, vf a, vf b) {
    return (vf)vbslq_f32((uint32x4_t)m, (float32x4_t)a, (float32x4_t)b);
}
GUAVA_INLINE uint32_t bits(vm m) {
    const uint32x4_t weights = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32((uint32x4_t)m, weights));
}
// vminq would turn NaN into NaN whatever the order; these are a < b ? a : b like the x86 ones.
GUAVA_INLINE vf minimum(vf a, vf b) { return select(a < b, a, b); }
GUAVA_INLINE vf maximum(vf a, vf b) { return select(a > b, a, b); }
GUAVA_INLINE vf square_root(vf a) { return (vf)vsqrtq_f32((float32x4_t)a); }
GUAVA_INLINE void stream(float *p, vf x) { store(p, x); }
#else
GUAVA_INLINE vf select(vm m, vf a, vf b) { return as_float((m & as_int(a)) | (~m & as_int(b))); }
GUAVA_INLINE uint32_t bits(vm m) {
    uint32_t all = 0;
    for (int i = 0; i < kLanes; ++i) all |= (uint32_t)(m[i] & 1) << i;
    return all;
}
GUAVA_INLINE vf minimum(vf a, vf b) { return select(a < b, a, b); }
GUAVA_INLINE vf maximum(vf a, vf b) { return select(a > b, a, b); }
GUAVA_INLINE vf square_root(vf a) {
    for (int i = 0; i < kLanes; ++i) a[i] = __builtin_sqrtf(a[i]);
    return a;
}
GUAVA_INLINE void stream(float *p, vf x) { store(p, x); }
#endif

GUAVA_INLINE float sum(vf x) {
    float total = 0;
    for (int i = 0; i < kLanes; ++i) total += x[i];
    return total;
}

#endif

GUAVA_INLINE bool any(vm m) { return bits(m) != 0; }

// Streaming stores are weakly ordered: to be called before another thread is told of them.
GUAVA_INLINE void finish_streams() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// 2^x for x <= 128, relative error < 3e-7 for x >= -126; garbage, but no trap, below. Rounding to the nearest
// integer by adding 1.5 * 2^23 is what -ffast-math would fold away: these files are not built with it.
GUAVA_INLINE vf exp2(vf x) {
    const float magic = 12582912.0f;
    vf shifted = x + magic;
    vf r = x - (shifted - magic); // [-1/2, 1/2]
    vf p = splat(1.33335581e-3f);
    p = p * r + 9.61812911e-3f;
    p = p * r + 5.55041087e-2f;
    p = p * r + 2.40226507e-1f;
    p = p * r + 6.93147181e-1f;
    p = p * r + 1.0f;
    return as_float(as_bits(p) + (as_bits(shifted) << 23));
}

// log2(x) for normal x > 0, absolute error < 2e-7 around 1: x = 2^e m with m in [sqrt(1/2), sqrt(2)), and
// ln m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172.
GUAVA_INLINE vf log2(vf x) {
    const uint32_t sqrt_half = 0x3f3504f3;
    vi exponent = (vi)(as_bits(x) - sqrt_half) >> 23;
    vf m = as_float(as_bits(x) - ((vu)exponent << 23));
    vf s = (m - 1.0f) / (m + 1.0f), t = s * s;
    const float c = 2.8853900817779268f; // 2 / ln 2
    vf series = splat(c / 9);
    series = series * t + c / 7;
    series = series * t + c / 5;
    series = series * t + c / 3;
    series = series * t + c;
    return series * s + to_float(exponent);
}

} // namespace
} // namespace GUAVA_ISA
} // namespace guava
