// The 4 x 4 image of test_max_tree.cpp: its six components, their areas, levels and counts.
#include <cstdint>
#include <vector>

#include "check.hpp"
#include "uflow/component_tree.hpp"

using uflow::Connectivity;
using Ints = std::vector<std::int32_t>;

namespace {

Ints ints(const std::int32_t* from, std::int32_t count) { return {from, from + count}; }

// Per pixel the node that holds it.
Ints nodes_of_pixels(const uflow::ComponentTree& tree, uflow::TreeWorkspace& work, std::int32_t pixels) {
    Ints nodes(std::size_t(pixels), -1);
    for (std::int32_t rank = 0; rank < pixels; ++rank)
        nodes[std::size_t(work.order.as<std::int32_t>()[rank])] = tree.node_of[rank];
    return nodes;
}

template <class T>
void hand_worked(uflow::TreeWorkspace& work) {
    const std::vector<T> image{9, 3, 7, 7,  //
                               3, 3, 1, 1,  //
                               1, 1, 5, 1,  //
                               0, 1, 1, 1};
    const Ints exceedances{8, 2, 6, 5,  //
                           3, 1, 0, 0,  //
                           0, 0, 4, 0,  //
                           0, 0, 1, 0};
    uflow::ComponentTree tree =
        uflow::component_tree(image.data(), exceedances.data(), 4, 4, Connectivity::four, work);
    CHECK(tree.size == 6);
    CHECK((std::vector<double>(tree.value, tree.value + 6) == std::vector<double>{30, 30, 25, 4, 11, 8}));
    tree = uflow::component_tree(image.data(), nullptr, 4, 4, Connectivity::four, work);
    CHECK(tree.size == 6);
    CHECK((std::vector<double>(tree.value, tree.value + 6) == std::vector<double>{0, 1, 3, 5, 7, 9}));
    CHECK((ints(tree.parent, 6) == Ints{0, 0, 1, 1, 2, 2}));
    CHECK((ints(tree.area, 6) == Ints{16, 15, 6, 1, 2, 1}));
    CHECK((nodes_of_pixels(tree, work, 16) == Ints{5, 2, 4, 4, 2, 2, 1, 1, 1, 1, 3, 1, 0, 1, 1, 1}));
}

// Above a floor of 3: the peaks 9, 7 7 and 5, all at the root.
template <class T>
void above_a_floor(uflow::TreeWorkspace& work) {
    const std::vector<T> image{9, 3, 7, 7,  //
                               3, 3, 1, 1,  //
                               1, 1, 5, 1,  //
                               0, 1, 1, 1};
    const uflow::ComponentTree tree =
        uflow::component_tree(image.data(), nullptr, 4, 4, Connectivity::four, work, 3.0);
    CHECK(tree.size == 4 && tree.first_rank == 11);
    CHECK((std::vector<double>(tree.value, tree.value + 4) == std::vector<double>{3, 5, 7, 9}));
    CHECK((ints(tree.parent, 4) == Ints{0, 0, 0, 0}));
    CHECK((ints(tree.area + 1, 3) == Ints{1, 2, 1}));
    const auto* order = work.order.as<std::int32_t>();
    Ints inside;
    for (std::int32_t rank = tree.first_rank + 1; rank < 16; ++rank) inside.push_back(order[rank]);
    CHECK((inside == Ints{10, 2, 3, 0}));
    const uflow::ComponentTree none =
        uflow::component_tree(image.data(), nullptr, 4, 4, Connectivity::four, work, 9.0);
    CHECK(none.size == 1 && none.first_rank == 15);
}

template <class T>
void constant(uflow::TreeWorkspace& work) {
    const std::vector<T> image(6, T(-2.5));
    const uflow::ComponentTree tree =
        uflow::component_tree(image.data(), nullptr, 2, 3, Connectivity::eight, work);
    CHECK(tree.size == 1 && tree.parent[0] == 0 && tree.area[0] == 6 && tree.value[0] == -2.5);
    CHECK((nodes_of_pixels(tree, work, 6) == Ints(6, 0)));
}

template <class T>
void all() {
    uflow::TreeWorkspace work;  // reused: nothing may leak from one image to the next
    hand_worked<T>(work);
    constant<T>(work);
    above_a_floor<T>(work);
    hand_worked<T>(work);
}

}  // namespace

int main() {
    all<float>();
    all<double>();
    return uflow_test::result();
}
