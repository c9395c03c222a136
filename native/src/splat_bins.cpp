// A radix sort of the visible Gaussians, once, and a counting sort of them into tiles: both stable, so that
// the result does not depend on how the work is parted.
#include "splat_bins.h"

#include <algorithm>
#include <cstring>

namespace guava {
namespace {

constexpr int kMaxDigitBits = 12;
constexpr int64_t kMinPart = 4096; // Gaussians for which another thread is worth waking

int bit_length(uint32_t x) {
    int bits = 0;
    for (; x; x >>= 1) ++bits;
    return bits;
}

int64_t parts_for(const Context &context, int64_t count) {
    return std::max<int64_t>(1, std::min<int64_t>(context.threads(), count / kMinPart));
}

// A stretch of the keys: part p of `parts`. In the first pass they lie chunk by chunk, with gaps.
template <class Visit>
void visit_part(const SplatKey *keys, const ProjectChunk *chunks, int64_t count, int64_t part, int64_t parts,
                Visit &&visit) {
    const int64_t begin = count * part / parts, end = count * (part + 1) / parts;
    if (!chunks) {
        for (int64_t i = begin; i < end; ++i) visit(keys[i]);
        return;
    }
    for (int64_t c = begin; c < end; ++c) {
        const SplatKey *chunk = keys + c * kProjectGrain;
        for (int64_t i = 0; i < chunks[c].visible; ++i) visit(chunk[i]);
    }
}

} // namespace

SplatKey *sort_by_depth(Context &context, SortWorkspace &work, const ProjectChunk *chunks, int64_t count) {
    uint32_t low = UINT32_MAX, high = 0;
    int64_t visible = 0;
    for (int64_t c = 0; c < count; ++c) {
        if (!chunks[c].visible) continue;
        visible += chunks[c].visible;
        low = std::min(low, chunks[c].depth_min);
        high = std::max(high, chunks[c].depth_max);
    }
    SplatKey *source = work.keys.data(), *target = work.sorted.reserve(static_cast<size_t>(visible));
    if (!visible) return target;
    // An avatar is about as deep as it is far away: 22 bits instead of 32, two passes instead of three.
    const int bits = std::max(1, bit_length(high - low));
    const int passes = (bits + kMaxDigitBits - 1) / kMaxDigitBits, digit = (bits + passes - 1) / passes;
    const uint32_t buckets = 1u << digit, mask = buckets - 1;
    const int64_t parts = parts_for(context, visible);
    uint32_t *histograms = work.histograms.reserve(static_cast<size_t>(parts) * buckets);
    for (int pass = 0; pass < passes; ++pass) {
        const int shift = pass * digit;
        const ProjectChunk *lists = pass == 0 ? chunks : nullptr;
        const int64_t length = pass == 0 ? count : visible;
        if (!parallel_for(context, parts, 1, [&](int64_t part, int64_t, int) {
                uint32_t *histogram = histograms + part * buckets;
                std::memset(histogram, 0, sizeof(uint32_t) * buckets);
                visit_part(source, lists, length, part, parts,
                           [&](const SplatKey &key) { ++histogram[(key.depth - low) >> shift & mask]; });
            }))
            return nullptr;
        uint32_t total = 0;
        for (uint32_t bucket = 0; bucket < buckets; ++bucket)
            for (int64_t part = 0; part < parts; ++part) {
                const uint32_t here = histograms[part * buckets + bucket];
                histograms[part * buckets + bucket] = total;
                total += here;
            }
        if (!parallel_for(context, parts, 1, [&](int64_t part, int64_t, int) {
                uint32_t *cursor = histograms + part * buckets;
                visit_part(source, lists, length, part, parts, [&](const SplatKey &key) {
                    target[cursor[(key.depth - low) >> shift & mask]++] = key;
                });
            }))
            return nullptr;
        std::swap(source, target);
    }
    return source;
}

bool list_tiles(Context &context, SortWorkspace &work, const SplatKey *sorted, int64_t visible, int64_t pairs,
                int tiles_x, int tiles_y, int64_t gaussians, bool for_gradients, TileLists &lists) {
    if (pairs >= static_cast<int64_t>(UINT32_MAX)) throw std::bad_alloc();
    const int64_t tiles = static_cast<int64_t>(tiles_x) * tiles_y, parts = parts_for(context, visible);
    uint32_t *starts = lists.starts.reserve(static_cast<size_t>(tiles) + 1);
    uint32_t *ids = lists.ids.reserve(static_cast<size_t>(pairs));
    uint32_t *cursors = work.cursors.reserve(static_cast<size_t>(parts * tiles));
    int64_t *part_pairs = work.parts.reserve(static_cast<size_t>(parts));
    uint32_t *pair_starts = nullptr, *pair_counts = nullptr, *places = nullptr;
    if (for_gradients) {
        pair_starts = lists.pair_starts.reserve(static_cast<size_t>(gaussians));
        pair_counts = lists.pair_counts.reserve(static_cast<size_t>(gaussians));
        places = lists.places.reserve(static_cast<size_t>(pairs));
        std::memset(pair_counts, 0, sizeof(uint32_t) * static_cast<size_t>(gaussians));
    }
    lists.visible = visible;
    lists.pairs = pairs;

    if (!parallel_for(context, parts, 1, [&](int64_t part, int64_t, int) {
            uint32_t *count = cursors + part * tiles;
            std::memset(count, 0, sizeof(uint32_t) * static_cast<size_t>(tiles));
            int64_t total = 0;
            for (int64_t i = visible * part / parts; i < visible * (part + 1) / parts; ++i) {
                const SplatKey &key = sorted[i];
                for (int y = key.y0; y <= key.y1; ++y)
                    for (int x = key.x0; x <= key.x1; ++x) ++count[y * tiles_x + x];
                total += (key.x1 - key.x0 + 1) * (key.y1 - key.y0 + 1);
            }
            part_pairs[part] = total;
        }))
        return false;
    uint32_t total = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        starts[tile] = total;
        for (int64_t part = 0; part < parts; ++part) {
            const uint32_t here = cursors[part * tiles + tile];
            cursors[part * tiles + tile] = total;
            total += here;
        }
    }
    starts[tiles] = total;
    return parallel_for(context, parts, 1, [&](int64_t part, int64_t, int) {
        uint32_t *cursor = cursors + part * tiles;
        uint32_t pair = 0;
        for (int64_t before = 0; before < part; ++before) pair += static_cast<uint32_t>(part_pairs[before]);
        for (int64_t i = visible * part / parts; i < visible * (part + 1) / parts; ++i) {
            const SplatKey &key = sorted[i];
            const uint32_t first = pair;
            for (int y = key.y0; y <= key.y1; ++y)
                for (int x = key.x0; x <= key.x1; ++x) {
                    const uint32_t place = cursor[y * tiles_x + x]++;
                    ids[place] = key.index;
                    if (places) places[pair++] = place;
                }
            if (places) {
                pair_starts[key.index] = first;
                pair_counts[key.index] = pair - first;
            }
        }
    });
}

} // namespace guava
