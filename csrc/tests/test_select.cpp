// Prune and merge worked by hand on small trees: what each node ends up in, -1 for none.
#include <cstdint>
#include <vector>

#include "check.hpp"
#include "uflow/select.hpp"

using Nodes = std::vector<std::int32_t>;

static Nodes select(const Nodes& parent, const std::vector<double>& value) {
    static uflow::Buffer work;
    Nodes region(parent.size(), 99);
    uflow::select_regions(parent.data(), value.data(), std::int32_t(parent.size()), work, region.data());
    return region;
}

int main() {
    // A single node, and chains: the smallest value wins, the one nearest the leaf when equal.
    CHECK((select({0}, {0.0}) == Nodes{0}));
    CHECK((select({0, 0, 1, 2}, {-1, -7, -3, -2}) == Nodes{-1, 1, 1, 1}));
    CHECK((select({0, 0, 1, 2}, {-4, -4, -4, -4}) == Nodes{-1, -1, -1, 3}));
    // Two leaves: merged into the root when it is at most the smaller of theirs, also when equal.
    CHECK((select({0, 0, 0}, {-5, -5, -3}) == Nodes{0, 0, 0}));
    CHECK((select({0, 0, 0}, {-4.9, -5, -3}) == Nodes{-1, 1, 2}));
    // The tree of the 4 x 4 image (test_component_tree.cpp): 2 is the parent of 4 and 5, 1 of 2 and 3.
    const Nodes parent{0, 0, 1, 1, 2, 2};
    CHECK((select(parent, {0, 0, -9, -4, -5, -6}) == Nodes{-1, -1, 2, 3, 2, 2}));  // 2 merges, 1 does not
    CHECK((select(parent, {0, -9, -9, -4, -5, -6}) == Nodes{-1, 1, 1, 1, 1, 1}));  // then 1 merges too
    CHECK(
        (select(parent, {-10, -9, -9, -4, -5, -6}) == Nodes{0, 0, 0, 0, 0, 0}));  // then the root is smaller
    CHECK((select(parent, {-99, -99, -1, -4, -5, -6}) == Nodes{-1, -1, -1, 3, 4, 5}));  // none goes up
    // A chain above two leaves does not prune past their parent: 0 - 1 - 2 - (3 - 5, 4).
    CHECK((select({0, 0, 1, 2, 2, 3}, {-9, -9, -1, -3, -4, -2}) == Nodes{-1, -1, -1, 3, 4, 3}));
    // Children compare through their representatives: 1's is node 3, of -6, and the root's -5 is no better.
    CHECK((select({0, 0, 0, 1}, {-5, -2, -1, -6}) == Nodes{-1, -1, 2, 3}));
    return uflow_test::result();
}
