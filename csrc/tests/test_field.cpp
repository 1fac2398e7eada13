// Anomaly map, field and area law of maps small enough to work out by hand; threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.hpp"
#include "uflow/field.hpp"

using uflow::Evidence;
using uflow::EvidenceWeights;
using uflow::Maps;

namespace {

void likelihoods() {
    // exp(-e / (2 mean)): 1 and exp(-2) side by side, half-way between them in the middle of the output.
    const std::vector<float> fine{0, 8}, none{0};
    const std::vector<Maps> energies{{fine.data(), 1, 2}, {none.data(), 1, 1}};
    std::vector<float> map(3);
    uflow::anomaly_map(energies, {2.0, 5.0}, 1, 1, 3, 1, map.data());
    CHECK(map[0] == 0.0f);
    CHECK_CLOSE(map[1], (1 - std::exp(-2.0)) / 4, 1e-6);
    CHECK_CLOSE(map[2], (1 - std::exp(-2.0)) / 2, 1e-6);
}

void sum_by_hand() {
    const std::vector<float> fine{1, 2, 3, 4}, coarse{10};
    std::vector<float> sum(4);
    uflow::weighted_sum({{fine.data(), 2, 2}, {coarse.data(), 1, 1}}, {2.0, 0.5}, 1, 2, 2, 1, sum.data());
    CHECK(sum == std::vector<float>({7, 9, 11, 13}));
}

void field_by_hand() {
    // One scale: -2 ln exp(-e / (2 mean)) is e / mean. The distances are 2 and 3 everywhere.
    const std::vector<float> energy{0, 4, 12, 8}, two(4, 2.0f), three{3};
    Evidence evidence{{{energy.data(), 2, 2}}, {}};
    EvidenceWeights weights{{4.0}, 0.5, {}};
    std::vector<float> field(4), drawing(4);
    uflow::evidence_field(evidence, weights, 1, 1, field.data());
    for (int cell = 0; cell < 4; ++cell)
        CHECK_CLOSE(field[std::size_t(cell)], energy[std::size_t(cell)] / 8, 1e-6);
    uflow::drawing_map(evidence, weights, 1, 1, drawing.data());
    CHECK(drawing == field);
    evidence.distances = {{two.data(), 2, 2}, {three.data(), 1, 1}};
    weights.distances = {1.0, 4.0};
    uflow::evidence_field(evidence, weights, 1, 1, field.data());
    for (int cell = 0; cell < 4; ++cell)
        CHECK_CLOSE(field[std::size_t(cell)], energy[std::size_t(cell)] / 8 + 2 + 12, 1e-6);
    // To draw on, the distance that joins two scales counts half.
    uflow::drawing_map(evidence, weights, 1, 1, drawing.data());
    CHECK(drawing == std::vector<float>(4, 2.0f + 6.0f));

    // Two scales: the mean of 1 and exp(-2), then -2 ln of it. No energy is too large for a finite field.
    const std::vector<float> none{0}, much{1, 1e30f};
    evidence = {{{energy.data() + 2, 1, 1}, {none.data(), 1, 1}}, {}};
    uflow::evidence_field(evidence, {{3.0, 1.0}, 1.0, {}}, 1, 1, field.data());
    CHECK_CLOSE(field[0], -2 * std::log((1 + std::exp(-2.0)) / 2), 1e-6);
    uflow::evidence_field({{{much.data(), 1, 2}}, {}}, {{1.0}, 1.0, {}}, 1, 1, field.data());
    CHECK_CLOSE(field[1], 48 * std::log(2.0), 1e-6);
}

void areas_by_hand() {
    // Independent cells: the paper's number by area, of one scale.
    const uflow::AreaTables independent = uflow::power_law_of_area(9, 1.0);
    const std::vector<double> paper = uflow::log10_number_of_tests_by_area(9, 1);
    for (std::size_t area = 1; area <= 9; ++area) {
        CHECK(independent.effective_area[area] == double(area));
        CHECK_CLOSE(independent.log_tests[area], paper[area], 1e-14);
    }
    // All cells know the same: any region is one cell. Half-way, four cells are worth two.
    const uflow::AreaTables same = uflow::power_law_of_area(9, 0.0), half = uflow::power_law_of_area(9, 0.5);
    CHECK(same.law().effective_area[9] == 1.0 && same.law().log_tests[1] == same.law().log_tests[9]);
    CHECK_CLOSE(same.log_tests[9], std::log10(9 * 0.316915 * 4.062570), 1e-12);
    CHECK_CLOSE(half.effective_area[4], 2.0, 1e-15);
    CHECK_CLOSE(half.log_tests[4], std::log10(27 * 0.316915 * 4.062570 * 4.062570 / 2), 1e-12);
}

void threading() {
    std::mt19937 random(1);
    std::chi_squared_distribution<float> chi2(8);
    const std::int64_t batch = 7;
    std::vector<float> fine(batch * 9 * 11), coarse(batch * 4 * 5);
    for (float& e : fine) e = chi2(random);
    for (float& e : coarse) e = chi2(random);
    const std::vector<Maps> maps{{fine.data(), 9, 11}, {coarse.data(), 4, 5}};
    const Evidence evidence{maps, {maps[1], maps[0]}};
    const EvidenceWeights weights{{8.0, 9.0}, 0.1, {0.2, 0.3}};
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
    same(fine.size(), [&](int threads, float* out) {
        uflow::evidence_field(evidence, weights, batch, threads, out, &kept);
    });
    same(fine.size(),
         [&](int threads, float* out) { uflow::drawing_map(evidence, weights, batch, threads, out, &kept); });
    same(batch * 20 * 30, [&](int threads, float* out) {
        uflow::anomaly_map(maps, weights.energy_means, batch, 20, 30, threads, out, &kept);
    });
    same(batch * 20 * 30, [&](int threads, float* out) {
        uflow::resize_bilinear(fine.data(), batch, 9, 11, 20, 30, threads, out);
    });
}

}  // namespace

int main() {
    likelihoods();
    sum_by_hand();
    field_by_hand();
    areas_by_hand();
    threading();
    return uflow_test::result();
}
