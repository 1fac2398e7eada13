// Runs, components and regions of a mask, by hand and against flooding.
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "uflow/regions.hpp"

using uflow::Connectivity;
using uflow::Run;

namespace {

std::vector<std::int32_t> labels_of(const std::vector<std::uint8_t>& mask, int height, int width,
                                    Connectivity connectivity, std::int32_t& count) {
    std::vector<Run> runs;
    count = uflow::find_runs(mask.data(), height, width, connectivity, runs);
    std::vector<std::int32_t> labels(mask.size(), -1);
    for (const Run& run : runs)
        for (std::int32_t col = run.first; col < run.end; ++col)
            labels[std::size_t(run.row * width + col)] = run.component;
    return labels;
}

// The components in raster order, each flooded from its first pixel.
std::vector<std::int32_t> flooded(const std::vector<std::uint8_t>& mask, int height, int width,
                                  Connectivity connectivity, std::int32_t& count) {
    std::vector<std::int32_t> labels(mask.size(), -1), open;
    count = 0;
    for (int start = 0; start < height * width; ++start) {
        if (!mask[std::size_t(start)] || labels[std::size_t(start)] >= 0) continue;
        open.assign(1, start);
        while (!open.empty()) {
            const int pixel = open.back();
            open.pop_back();
            if (!mask[std::size_t(pixel)] || labels[std::size_t(pixel)] >= 0) continue;
            labels[std::size_t(pixel)] = count;
            for (int down = -1; down <= 1; ++down)
                for (int right = -1; right <= 1; ++right) {
                    const int row = pixel / width + down, col = pixel % width + right;
                    const bool beside = connectivity == Connectivity::eight || down * right == 0;
                    if (beside && row >= 0 && row < height && col >= 0 && col < width)
                        open.push_back(row * width + col);
                }
        }
        ++count;
    }
    return labels;
}

void components_equal_flooding() {
    std::mt19937 random(1);
    for (const auto& [height, width] :
         std::vector<std::pair<int, int>>{{1, 1}, {1, 40}, {40, 1}, {7, 8}, {23, 17}, {30, 64}})
        for (double density : {0.0, 0.2, 0.5, 0.6, 0.9, 1.0})
            for (Connectivity connectivity : {Connectivity::four, Connectivity::eight}) {
                std::vector<std::uint8_t> mask(std::size_t(height * width));
                std::bernoulli_distribution inside(density);
                for (std::uint8_t& pixel : mask)
                    pixel = inside(random) ? 255 : 0;  // any value but 0 is inside
                std::int32_t count, want;
                const auto labels = labels_of(mask, height, width, connectivity, count);
                CHECK(labels == flooded(mask, height, width, connectivity, want));
                CHECK(count == want);
            }
}

void by_hand() {
    const std::vector<std::uint8_t> mask{1, 0, 1, 1,  //
                                         1, 0, 0, 1,  //
                                         0, 1, 0, 1};
    const std::vector<float> log_nfa{-1, 9,  -2, -3,  //
                                     -5, 9,  9,  -1,  //
                                     9,  -5, 9,  -8};
    std::vector<float> score{.1f, .9f, .2f, .3f, .4f, .9f, .9f, .5f, .9f, .6f, .9f, .1f};
    std::vector<Run> runs;
    const auto found = uflow::regions(mask.data(), log_nfa.data(), score.data(), 3, 4, runs);
    CHECK(found.size() == 3);
    CHECK(found[0].area == 4 && found[0].top == 0 && found[0].left == 2 && found[0].bottom == 3);
    CHECK(found[0].right == 4 && found[0].log_nfa == -8 && found[0].score == double(.5f));
    CHECK_CLOSE(found[0].row, 0.75, 1e-15);
    CHECK_CLOSE(found[0].col, 2.75, 1e-15);
    CHECK(found[1].log_nfa == -5 && found[1].area == 2);  // as low as the next, and before it in the image
    CHECK(found[2].log_nfa == -5 && found[2].area == 1 && found[2].row == 2.0 && found[2].col == 1.0);

    score[1] = std::numeric_limits<float>::quiet_NaN();  // outside: nobody looks
    CHECK(uflow::regions(mask.data(), log_nfa.data(), score.data(), 3, 4, runs).size() == 3);
    score[2] = score[1];
    bool thrown = false;
    try {
        uflow::regions(mask.data(), log_nfa.data(), score.data(), 3, 4, runs);
    } catch (const std::invalid_argument&) {
        thrown = true;
    }
    CHECK(thrown);
}

}  // namespace

int main() {
    components_equal_flooding();
    by_hand();
    return uflow_test::result();
}
