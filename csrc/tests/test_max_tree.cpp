// One hand-worked 4 x 4 image (also in tests/test_core.py), ties, zeros of both signs, degenerate shapes, and
// the order of values that are spread unevenly.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "uflow/max_tree.hpp"

using uflow::Connectivity;

template <class T>
struct Result {
    std::vector<std::int32_t> parent, order;
};

template <class T>
Result<T> run(const std::vector<T>& image, int height, int width, Connectivity connectivity) {
    static uflow::TreeWorkspace work;  // reused on purpose: nothing may leak from one image to the next
    Result<T> result{std::vector<std::int32_t>(image.size()), std::vector<std::int32_t>(image.size())};
    uflow::max_tree(image.data(), height, width, connectivity, work, result.parent.data(),
                    result.order.data());
    return result;
}

template <class T>
void hand_worked() {
    // Two peaks, 9 and 7 7, that join at level 3; a peak 5 in the other corner; with 8 neighbours 5 touches
    // a 3.
    const std::vector<T> image{9, 3, 7, 7,  //
                               3, 3, 1, 1,  //
                               1, 1, 5, 1,  //
                               0, 1, 1, 1};
    const auto four = run(image, 4, 4, Connectivity::four);
    CHECK((four.order == std::vector<std::int32_t>{12, 6, 7, 8, 9, 11, 13, 14, 15, 1, 4, 5, 10, 2, 3, 0}));
    CHECK((four.parent == std::vector<std::int32_t>{1, 6, 1, 2, 1, 1, 12, 6, 6, 6, 6, 6, 12, 6, 6, 6}));
    const auto eight = run(image, 4, 4, Connectivity::eight);
    CHECK(eight.order == four.order);
    CHECK((eight.parent == std::vector<std::int32_t>{1, 6, 1, 2, 1, 1, 12, 6, 6, 6, 1, 6, 12, 6, 6, 6}));
}

template <class T>
void ties_and_shapes() {
    CHECK((run<T>({4, 4, 4, 4}, 2, 2, Connectivity::four).parent == std::vector<std::int32_t>{0, 0, 0, 0}));
    CHECK((run<T>({T(-0.0), 0, T(-0.0)}, 1, 3, Connectivity::four).parent ==
           std::vector<std::int32_t>{0, 0, 0}));
    CHECK((run<T>({T(-0.0), 0, T(-0.0)}, 1, 3, Connectivity::four).order ==
           std::vector<std::int32_t>{0, 1, 2}));
    CHECK((run<T>({-3, 2, T(-1e-30), T(-1e30)}, 4, 1, Connectivity::eight).order ==
           std::vector<std::int32_t>{3, 0, 2, 1}));
    CHECK((run<T>({5}, 1, 1, Connectivity::eight).parent == std::vector<std::int32_t>{0}));
    // A checkerboard: four single peaks with 4 neighbours, one component with 8.
    const std::vector<T> board{1, 0, 1, 0, 1, 0, 1, 0, 1};
    CHECK((run(board, 3, 3, Connectivity::four).parent ==
           std::vector<std::int32_t>{1, 1, 1, 1, 1, 1, 1, 1, 1}));
    CHECK((run(board, 3, 3, Connectivity::eight).parent ==
           std::vector<std::int32_t>{1, 1, 0, 1, 0, 1, 0, 1, 0}));
    bool thrown = false;
    try {
        run<T>({}, 0, 3, Connectivity::four);
    } catch (const std::invalid_argument&) {
        thrown = true;
    }
    CHECK(thrown);
}

// The order is that of a stable sort, whatever the values; `passes`: how many the sort may take.
template <class T>
void order_of(const std::vector<T>& image, std::int64_t passes) {
    uflow::TreeWorkspace work;
    uflow::rank_tree(image.data(), 1, std::int32_t(image.size()), Connectivity::four, work);
    std::vector<std::int32_t> expected(image.size());
    std::iota(expected.begin(), expected.end(), 0);
    std::stable_sort(expected.begin(), expected.end(), [&](std::int32_t a, std::int32_t b) {
        return image[std::size_t(a)] < image[std::size_t(b)];
    });
    CHECK(std::equal(expected.begin(), expected.end(), work.order.as<std::int32_t>()));
    CHECK(std::equal(expected.begin(), expected.end(), work.level.as<T>(),
                     [&](std::int32_t pixel, T level) { return image[std::size_t(pixel)] == level; }));
    CHECK(work.sort_passes <= passes);
}

template <class T>
void uneven_values() {
    using Limits = std::numeric_limits<T>;
    const std::int64_t all8 = sizeof(T), all11 = (8 * std::int64_t(sizeof(T)) + 10) / 11;
    for (const std::size_t count : {std::size_t(100), std::size_t(5000), std::size_t(420000)}) {
        std::mt19937 random(7);
        std::normal_distribution<T> normal;
        std::vector<T> noise(count), logarithmic(count), few(count), tiny(count);
        for (std::size_t i = 0; i < count; ++i) {
            noise[i] = normal(random);
            logarithmic[i] = std::exp(8 * normal(random));
            few[i] = std::floor(3 * normal(random));
            tiny[i] = std::floor(9 * normal(random)) * Limits::denorm_min();
        }
        const std::int64_t exact = count == 5000 ? all11 : all8, steps = count > 400000 ? exact : 2;
        order_of(noise, steps);
        order_of(few, steps);
        order_of(logarithmic, exact);
        order_of(tiny, exact);
        noise[count / 2] = Limits::max();  // one value far away
        order_of(noise, exact);
        noise[count / 3] = Limits::lowest();  // their difference is infinite
        order_of(noise, exact);
    }
}

int main() {
    uneven_values<float>();
    uneven_values<double>();
    hand_worked<float>();
    hand_worked<double>();
    ties_and_shapes<float>();
    ties_and_shapes<double>();
    return uflow_test::result();
}
