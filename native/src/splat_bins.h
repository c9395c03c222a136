// Depth order and tile lists.
#pragma once

#include "context.h"
#include "splat_kernels.h"

namespace guava {

// The Gaussians of every tile, nearest first, and the way back.
struct TileLists {
    Buffer<uint32_t> starts; // (tiles + 1,) into ids
    Buffer<uint32_t> ids;    // (pairs,)
    // For gradients: a Gaussian's pairs are places[pair_starts[i] + 0, 1, ...] of ids, as many as its box has
    // tiles, tile by tile; written only for visible Gaussians.
    Buffer<uint32_t> pair_starts; // (N,)
    Buffer<uint32_t> pair_counts; // (N,) 0 for what is not drawn
    Buffer<uint32_t> places;      // (pairs,)
    int64_t visible = 0, pairs = 0;

    size_t bytes() const {
        return starts.bytes() + ids.bytes() + pair_starts.bytes() + pair_counts.bytes() + places.bytes();
    }
    void clear() {
        starts.clear(), ids.clear(), pair_starts.clear(), pair_counts.clear(), places.clear();
    }
};

struct SortWorkspace {
    Buffer<SplatKey> keys, sorted;
    Buffer<uint32_t> histograms, cursors;
    Buffer<int64_t> parts;

    size_t bytes() const {
        return keys.bytes() + sorted.bytes() + histograms.bytes() + cursors.bytes() + parts.bytes();
    }
    void clear() { keys.clear(), sorted.clear(), histograms.clear(), cursors.clear(), parts.clear(); }
};

// Sorts the keys that the projection left in `work.keys`, chunk by chunk, by depth and then by index. The
// result is the returned one of work's two buffers. NULL: cancelled.
SplatKey *sort_by_depth(Context &context, SortWorkspace &work, const ProjectChunk *chunks, int64_t count);

// Lists every tile's Gaussians. False: cancelled. Throws std::bad_alloc, also where there are 2^32 pairs or
// more.
bool list_tiles(Context &context, SortWorkspace &work, const SplatKey *sorted, int64_t visible, int64_t pairs,
                int tiles_x, int tiles_y, int64_t gaussians, bool for_gradients, TileLists &lists);

} // namespace guava
