// The 4 x 4 image of test_max_tree.cpp: its five components, their areas, levels and counts.
#include <cstdint>
#include <vector>

#include "check.hpp"
#include "uflow/component_tree.hpp"
#include "uflow/max_tree.hpp"

template <class T>
void hand_worked(uflow::ComponentTree<T>& tree) {
    const std::vector<T> image{9, 3, 7, 7,  //
                               3, 3, 1, 1,  //
                               1, 1, 5, 1,  //
                               0, 1, 1, 1};
    const std::vector<std::int32_t> exceedances{8, 2, 6, 5,  //
                                                3, 1, 0, 0,  //
                                                0, 0, 4, 0,  //
                                                0, 0, 1, 0};
    std::vector<std::int32_t> parent(16), order(16);
    uflow::MaxTreeWorkspace<T> work;
    uflow::max_tree(image.data(), 4, 4, uflow::Connectivity::four, work, parent.data(), order.data());
    uflow::component_tree(image.data(), parent.data(), order.data(), 16, exceedances.data(), tree);
    CHECK(tree.size() == 6);
    CHECK((tree.level == std::vector<T>{0, 1, 3, 5, 7, 9}));
    CHECK((tree.parent == std::vector<std::int32_t>{0, 0, 1, 1, 2, 2}));
    CHECK((tree.area == std::vector<std::int32_t>{16, 15, 6, 1, 2, 1}));
    CHECK((tree.exceedances == std::vector<std::int64_t>{30, 30, 25, 4, 11, 8}));
    CHECK((tree.node_of == std::vector<std::int32_t>{5, 2, 4, 4, 2, 2, 1, 1, 1, 1, 3, 1, 0, 1, 1, 1}));

    uflow::component_tree(image.data(), parent.data(), order.data(), 16, nullptr,
                          tree);  // buffers reused, no counts
    CHECK((tree.area == std::vector<std::int32_t>{16, 15, 6, 1, 2, 1}));
    CHECK((tree.exceedances == std::vector<std::int64_t>(6, 0)));
}

template <class T>
void constant(uflow::ComponentTree<T>& tree) {
    const std::vector<T> image(6, T(2.5));
    std::vector<std::int32_t> parent(6), order(6);
    uflow::MaxTreeWorkspace<T> work;
    uflow::max_tree(image.data(), 2, 3, uflow::Connectivity::eight, work, parent.data(), order.data());
    uflow::component_tree(image.data(), parent.data(), order.data(), 6, nullptr, tree);
    CHECK((tree.parent == std::vector<std::int32_t>{0}));
    CHECK((tree.area == std::vector<std::int32_t>{6}));
    CHECK((tree.level == std::vector<T>{T(2.5)}));
    CHECK((tree.node_of == std::vector<std::int32_t>(6, 0)));
}

int main() {
    uflow::ComponentTree<float> single;
    hand_worked(single);
    constant(single);
    hand_worked(single);
    uflow::ComponentTree<double> twice;
    hand_worked(twice);
    constant(twice);
    return uflow_test::result();
}
