// Between kLanes rows of three, four or eight floats and as many vectors. For *_isa.cpp.
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

// Elements I / 2 of a and b by turns, from the given one on.
template <int From, int... I>
GUAVA_INLINE vf by_turns(vf a, vf b, Sequence<I...>) {
    return __builtin_shufflevector(a, b, (From + I / 2 + I % 2 * kLanes)...);
}

// Separates even from odd components three times.
GUAVA_INLINE void load_rows_of_eight(const float *p, vf out[8]) {
    typename Count<kLanes>::type lanes;
    vf even[4], odd[4];
    for (int i = 0; i < 4; ++i) {
        vf a = load(p + 2 * i * kLanes), b = load(p + (2 * i + 1) * kLanes);
        even[i] = every<2, 0>(a, b, lanes);
        odd[i] = every<2, 1>(a, b, lanes);
    }
    vf *halves[2] = {even, odd};
    for (int h = 0; h < 2; ++h) {
        const vf *v = halves[h];
        vf e0 = every<2, 0>(v[0], v[1], lanes), e1 = every<2, 0>(v[2], v[3], lanes);
        vf o0 = every<2, 1>(v[0], v[1], lanes), o1 = every<2, 1>(v[2], v[3], lanes);
        out[h] = every<2, 0>(e0, e1, lanes);
        out[h + 4] = every<2, 1>(e0, e1, lanes);
        out[h + 2] = every<2, 0>(o0, o1, lanes);
        out[h + 6] = every<2, 1>(o0, o1, lanes);
    }
}

GUAVA_INLINE void store_rows_of_eight(float *p, const vf in[8]) {
    typename Count<kLanes>::type lanes;
    vf halves[2][4];
    for (int h = 0; h < 2; ++h) {
        vf e0 = by_turns<0>(in[h], in[h + 4], lanes), e1 = by_turns<kLanes / 2>(in[h], in[h + 4], lanes);
        vf o0 = by_turns<0>(in[h + 2], in[h + 6], lanes), o1 = by_turns<kLanes / 2>(in[h + 2], in[h + 6],
            lanes);
        halves[h][0] = by_turns<0>(e0, o0, lanes);
        halves[h][1] = by_turns<kLanes / 2>(e0, o0, lanes);
        halves[h][2] = by_turns<0>(e1, o1, lanes);
        halves[h][3] = by_turns<kLanes / 2>(e1, o1, lanes);
    }
    for (int i = 0; i < 4; ++i) {
        store(p + 2 * i * kLanes, by_turns<0>(halves[0][i], halves[1][i], lanes));
        store(p + (2 * i + 1) * kLanes, by_turns<kLanes / 2>(halves[0][i], halves[1][i], lanes));
    }
}

} // namespace
} // namespace GUAVA_ISA
} // namespace guava
