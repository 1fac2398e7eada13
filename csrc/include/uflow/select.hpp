// Choosing among nested regions: the prune and merge of the paper in one pass up the tree and one down.
#pragma once

#include <cstddef>
#include <cstdint>

#include "uflow/buffer.hpp"

namespace uflow {

// parent: nodes numbered parent first, node 0 the root. value: the log-probability of each node (or any other
// score of which less is better). region (out): per node the final region that holds it, or -1.
//
// A leaf represents itself. A node with one child keeps the child's representative unless its own value is
// strictly smaller (prune). A node with several children represents them if each has a representative and its
// own value is not larger than any of theirs (merge), and else there is none, here and below. The final
// regions are the first representatives met on the way up from the root.
inline void select_regions(const std::int32_t* parent, const double* value, std::int32_t count, Buffer& work,
                           std::int32_t* region) {
    constexpr std::int32_t none = -1, unset = -2;
    enum : std::uint8_t { several = 1, final_region = 2, decided = 4 };
    auto* flags = work.fit<std::uint8_t>(std::size_t(count));
    std::int32_t* representative = region;  // until a node's turn comes: the best of its children so far
    for (std::int32_t node = 0; node < count; ++node) {
        representative[node] = unset;
        flags[node] = 0;
    }
    for (std::int32_t node = count; node-- > 0;) {
        std::int32_t mine = representative[node];
        if (mine == unset) {
            mine = node;
        } else if (mine != none) {
            const bool merges = flags[node] & several;
            if (value[node] < value[mine] || (merges && value[node] == value[mine]))
                mine = node;
            else if (merges)
                mine = none;
        }
        representative[node] = mine;
        if (node == 0) break;
        std::int32_t& below = representative[parent[node]];
        if (below == unset) {
            below = mine;
        } else {
            flags[parent[node]] |= several;
            if (mine == none || below == none)
                below = none;
            else if (value[mine] < value[below])
                below = mine;
        }
    }
    for (std::int32_t node = 0; node < count; ++node) {
        const bool inside = node > 0 && (flags[parent[node]] & decided);  // a node below has decided already
        const std::int32_t mine = representative[node];
        if (!inside && mine != none) flags[mine] |= final_region;
        if (inside || mine != none) flags[node] |= decided;
        region[node] = (flags[node] & final_region) ? node : node > 0 ? region[parent[node]] : none;
    }
}

}  // namespace uflow
