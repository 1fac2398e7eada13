// Joint energy and anomaly map of maps small enough to work out by hand; threads.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.hpp"
#include "uflow/joint.hpp"

using uflow::Background;
using uflow::Scale;

namespace {

void by_hand() {
    // The coarse cell, worth 6 / (2 * 3) = 1, is everywhere; 8 / (0.5 * 4) = 4 lies in the fine map's corner.
    const std::vector<float> fine{8, 0, 0, 0, 0, 0}, coarse{6};
    const std::vector<Scale> scales{{fine.data(), nullptr, 2, 3, Background{0.5, 4.0}},
                                    {coarse.data(), nullptr, 1, 1, Background{2.0, 3.0}}};
    std::vector<float> joint(6);
    uflow::joint_energy(scales, 1, 1, joint.data());
    const double want[] = {1 + 4.0 / 4, 1 + 4.0 / 6, 1.0};  // the neighbourhoods hold 4, 6 and 4 cells
    for (int cell = 0; cell < 6; ++cell) CHECK_CLOSE(joint[cell], want[cell % 3], 1e-6);
    for (const auto& [height, width] : std::vector<std::array<int, 2>>{{1, 6}, {6, 1}, {1, 1}, {3, 2}}) {
        const std::vector<float> ones(6, 2.0f);  // the mean of equal values is that value, at every border
        const std::vector<Scale> line{{ones.data(), nullptr, height, width, Background{0.5, 4.0}}};
        uflow::joint_energy(line, 1, 1, joint.data());
        for (int cell = 0; cell < height * width; ++cell) CHECK_CLOSE(joint[cell], 1.0, 1e-6);
    }
}

void likelihoods() {
    // exp(-e / (2 channels)): 1 and exp(-2) side by side, half-way between them in the middle of the output.
    const std::vector<float> fine{0, 8}, none{0};
    const std::vector<Scale> scales{{fine.data(), nullptr, 1, 2, Background{1.0, 2.0, 1.0, 2.0}},
                                    {none.data(), nullptr, 1, 1, Background{1.0, 5.0, 1.0, 5.0}}};
    std::vector<float> map(3);
    uflow::anomaly_map(scales, 1, 1, 3, 1, map.data());
    CHECK(map[0] == 0.0f);
    CHECK_CLOSE(map[1], (1 - std::exp(-2.0)) / 4, 1e-6);
    CHECK_CLOSE(map[2], (1 - std::exp(-2.0)) / 2, 1e-6);
}

void threading() {
    std::mt19937 random(1);
    std::chi_squared_distribution<float> chi2(8);
    const std::int64_t batch = 7;
    std::vector<float> fine(batch * 9 * 11), coarse(batch * 4 * 5);
    for (float& e : fine) e = chi2(random);
    for (float& e : coarse) e = chi2(random);
    const std::vector<Scale> scales{{fine.data(), nullptr, 9, 11, Background{1, 8, 1, 8}},
                                    {coarse.data(), nullptr, 4, 5, Background{1, 8, 1, 8}}};
    const auto same = [&](std::size_t size, auto&& run) {
        std::vector<float> one(size), many(size);
        run(1, one.data());
        for (int threads : {0, 2, 50}) {
            std::fill(many.begin(), many.end(), -1.0f);
            run(threads, many.data());
            CHECK(one == many);
        }
    };
    uflow::NfaWorkspace kept;
    same(fine.size(),
         [&](int threads, float* out) { uflow::joint_energy(scales, batch, threads, out, &kept); });
    same(batch * 20 * 30,
         [&](int threads, float* out) { uflow::anomaly_map(scales, batch, 20, 30, threads, out, &kept); });
    same(batch * 20 * 30, [&](int threads, float* out) {
        uflow::resize_bilinear(fine.data(), batch, 9, 11, 20, 30, threads, out);
    });
}

}  // namespace

int main() {
    by_hand();
    likelihoods();
    threading();
    return uflow_test::result();
}
