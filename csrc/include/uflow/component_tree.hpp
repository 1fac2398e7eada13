// The max-tree with one node per component, and what a test needs of a node: area, level or exceedance count.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "uflow/max_tree.hpp"

namespace uflow {

// Nodes are numbered so that a parent comes before its children; node 0 is the root and its own parent. The
// memory is the workspace's: valid until that sees another image.
struct ComponentTree {
    std::int32_t size;
    const std::int32_t* parent;
    const std::int32_t* area;     // pixels
    double* value;                // the level, or the sum of the counts
    const std::int32_t* node_of;  // per rank: the smallest component that holds the pixel work.order[rank]
    std::int32_t first_rank;      // lower ones are not in the tree
};

// The component tree of an image. Where counts (per pixel) is null, the value of a node is its level, the
// smallest pixel in it; else the sum of the counts of its pixels, exact up to 2^53. After the max-tree, one
// pass over the pixels from the root up makes the nodes, and one over the nodes from the leaves down sums
// them. With a `floor` (see rank_tree) the root stands for all at or below it: its area and value are not
// theirs.
template <class T>
ComponentTree component_tree(const T* image, const std::int32_t* counts, std::int32_t height,
                             std::int32_t width, Connectivity connectivity, TreeWorkspace& work,
                             double floor = -std::numeric_limits<double>::infinity()) {
    const std::int32_t root = rank_tree(image, height, width, connectivity, work, floor);
    const std::int32_t count = height * width;
    const auto* order = work.order.as<std::int32_t>();
    const T* level = work.level.as<T>();
    auto* parent =
        work.parent.as<std::int32_t>();  // of the ranks; as nodes are made, of these: never more of them
    auto* area = work.component.fit<std::int32_t>(std::size_t(count));
    auto* node_of = work.label.fit<std::int32_t>(std::size_t(count));
    auto* value = work.basin.fit<double>(std::size_t(count));
    pause();
    node_of[root] = 0;
    std::int32_t nodes = 0;
    for (std::int32_t rank = root; rank < count; ++rank) {
        const std::int32_t below = parent[rank];
        std::int32_t node = node_of[below];
        if (rank == root || level[below] != level[rank]) {
            parent[nodes] = node;
            node = nodes++;
            area[node] = 0;
            value[node] = counts ? 0.0 : double(level[rank]);
        }
        node_of[rank] = node;
        ++area[node];
        if (counts) value[node] += counts[order[rank]];
    }
    pause();
    for (std::int32_t node = nodes; --node > 0;) {
        area[parent[node]] += area[node];
        if (counts) value[parent[node]] += value[node];
    }
    return {nodes, parent, area, value, node_of, root};
}

}  // namespace uflow
