// The max-tree with one node per component, and what a test needs of a node: area, level, exceedance count.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace uflow {

// Nodes are numbered so that a parent comes before its children; node 0 is the root and its own parent.
template <class T>
struct ComponentTree {
    std::vector<std::int32_t> parent;       // per node
    std::vector<std::int32_t> area;         // per node: pixels
    std::vector<T> level;                   // per node: the smallest value in it
    std::vector<std::int64_t> exceedances;  // per node: sum over its pixels; zeros when no counts are given
    std::vector<std::int32_t> node_of;      // per pixel: the smallest component that holds it

    std::int32_t size() const noexcept { return std::int32_t(parent.size()); }
};

// image, parent and order as max_tree gives them; exceedances (per pixel) may be null. One pass over the
// pixels from the root up makes the nodes, and one over the nodes from the leaves down sums them. Buffers are
// reused.
template <class T>
void component_tree(const T* image, const std::int32_t* parent, const std::int32_t* order, std::int32_t count,
                    const std::int32_t* exceedances, ComponentTree<T>& tree) {
    const auto capacity = std::size_t(count);
    tree.parent.resize(capacity);
    tree.area.resize(capacity);
    tree.level.resize(capacity);
    tree.exceedances.resize(capacity);
    tree.node_of.resize(capacity);
    std::int32_t nodes = 0;
    for (std::int32_t i = 0; i < count; ++i) {
        const std::int32_t pixel = order[i], below = parent[pixel];
        std::int32_t node;
        if (i == 0 || image[below] != image[pixel]) {
            node = nodes++;
            tree.parent[node] = i == 0 ? 0 : tree.node_of[below];
            tree.level[node] = image[pixel];
            tree.area[node] = 0;
            tree.exceedances[node] = 0;
        } else {
            node = tree.node_of[below];
        }
        tree.node_of[pixel] = node;
        ++tree.area[node];
        if (exceedances) tree.exceedances[node] += exceedances[pixel];
    }
    for (std::int32_t node = nodes; --node > 0;) {
        tree.area[tree.parent[node]] += tree.area[node];
        tree.exceedances[tree.parent[node]] += tree.exceedances[node];
    }
    tree.parent.resize(std::size_t(nodes));  // shrinking keeps the memory
    tree.area.resize(std::size_t(nodes));
    tree.level.resize(std::size_t(nodes));
    tree.exceedances.resize(std::size_t(nodes));
}

}  // namespace uflow
