// Choosing among nested regions: the prune and merge of the paper in one pass up the tree and one down.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace uflow {

struct SelectWorkspace {
    std::vector<std::int32_t> children;        // per node: number of children seen
    std::vector<std::int32_t> representative;  // per node: the best region at or above it, or none
    std::vector<double> best;  // per node: smallest value among the representatives of its children
    std::vector<std::uint8_t> final_region, closed;
};

// parent: nodes numbered parent first, node 0 the root. value: the log-probability of each node (or any other
// score of which less is better). region (out): per node the final region that holds it, or -1.
//
// A leaf represents itself. A node with one child keeps the child's representative unless its own value is
// strictly smaller (prune). A node with several children represents them if each has a representative and its
// own value is not larger than any of theirs (merge), and else there is none, here and below. The final
// regions are the first representatives met on the way up from the root.
inline void select_regions(const std::int32_t* parent, const double* value, std::int32_t count,
                           SelectWorkspace& work, std::int32_t* region) {
    constexpr std::int32_t none = -1, unset = -2;
    const auto nodes = std::size_t(count);
    work.children.assign(nodes, 0);
    work.representative.assign(nodes, unset);
    work.best.resize(nodes);
    work.final_region.assign(nodes, 0);
    work.closed.assign(nodes, 0);
    auto& representative = work.representative;  // until a node's turn comes: that of its children so far
    for (std::int32_t node = count; node-- > 0;) {
        if (work.children[node] == 0)
            representative[node] = node;
        else if (representative[node] != none &&
                 (work.children[node] == 1 ? value[node] < work.best[node] : value[node] <= work.best[node]))
            representative[node] = node;
        else if (work.children[node] > 1)
            representative[node] = none;
        if (node == 0) break;
        const std::int32_t below = parent[node], mine = representative[node];
        ++work.children[below];
        if (mine == none || representative[below] == none)
            representative[below] = none;
        else if (representative[below] == unset || value[mine] < work.best[below]) {
            representative[below] = mine;
            work.best[below] = value[mine];
        }
    }
    for (std::int32_t node = 0; node < count; ++node) {
        const bool inside = node > 0 && work.closed[parent[node]];  // a node below has decided already
        work.closed[node] = inside || representative[node] != none;
        if (!inside && representative[node] != none) work.final_region[representative[node]] = 1;
        region[node] = work.final_region[node] ? node : node > 0 ? region[parent[node]] : none;
    }
}

}  // namespace uflow
