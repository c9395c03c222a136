// Loading kLanes rows of three or four floats as three or four vectors. For *_isa.cpp.
#pragma once

#include "simd.h"

namespace guava {
namespace GUAVA_ISA {
namespace {

// std::integer_sequence, without std::.
template <int... I>
struct Sequence {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
    using type = Sequence<I...>;
};

// Component O of row i lies at 3 i + O of three vectors in a row. First what lies in the first two (anything
// where it lies in the third), then the third's.
constexpr int from_two(int place) { return place < 2 * kLanes ? place : 0; }
constexpr int from_third(int i, int place) { return place < 2 * kLanes ? i : kLanes + place - 2 * kLanes; }

template <int O, int... I>
GUAVA_INLINE vf component_of_three(vf a, vf b, vf c, Sequence<I...>) {
    vf ab = __builtin_shufflevector(a, b, from_two(3 * I + O)...);
    return __builtin_shufflevector(ab, c, from_third(I, 3 * I + O)...);
}

GUAVA_INLINE void load_rows_of_three(const float *p, vf out[3]) {
    vf a = load(p), b = load(p + kLanes), c = load(p + 2 * kLanes);
    typename Count<kLanes>::type lanes;
    out[0] = component_of_three<0>(a, b, c, lanes);
    out[1] = component_of_three<1>(a, b, c, lanes);
    out[2] = component_of_three<2>(a, b, c, lanes);
}

template <int Step, int O, int... I>
GUAVA_INLINE vf every(vf a, vf b, Sequence<I...>) {
    return __builtin_shufflevector(a, b, (Step * I + O)...);
}

GUAVA_INLINE void load_rows_of_four(const float *p, vf out[4]) {
    typename Count<kLanes>::type lanes;
    vf a = load(p), b = load(p + kLanes), c = load(p + 2 * kLanes), d = load(p + 3 * kLanes);
    vf even_low = every<2, 0>(a, b, lanes), even_high = every<2, 0>(c, d, lanes); // components 0 and 2
    vf odd_low = every<2, 1>(a, b, lanes), odd_high = every<2, 1>(c, d, lanes);   // components 1 and 3
    out[0] = every<2, 0>(even_low, even_high, lanes);
    out[2] = every<2, 1>(even_low, even_high, lanes);
    out[1] = every<2, 0>(odd_low, odd_high, lanes);
    out[3] = every<2, 1>(odd_low, odd_high, lanes);
}

} // namespace
} // namespace GUAVA_ISA
} // namespace guava
