// Energy maps to log-probabilities and log NFA, on maps small enough to work out by hand; threads; bad input.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "uflow/block_test.hpp"
#include "uflow/segment.hpp"

using uflow::Background;
using uflow::Tail;

namespace {

// The 4 x 4 image of test_max_tree.cpp as energies of one channel.
const std::vector<float> hand{9, 3, 7, 7,  //
                              3, 3, 1, 1,  //
                              1, 1, 5, 1,  //
                              0, 1, 1, 1};

std::vector<float> map_of(Tail tail, const Background& model, const std::int32_t* exceedances = nullptr) {
    std::vector<float> out(16);
    uflow::log_pfa(hand.data(), exceedances, 1, 4, 4, tail, model, 1, out.data());
    return out;
}

void one_map() {
    // Chernoff: the six cells of level 3 (-1.17 in all) do not win over 9 (-1.26) and 7, 7 (-1.76).
    const auto chernoff = [](double area, double t) {
        return area * -0.5 * (t - 1 - std::log(t)) / std::log(10.0);
    };
    std::vector<float> out = map_of(Tail::chernoff, {1, 1, 1, 1, 0.1});
    for (int cell = 0; cell < 16; ++cell) {
        const bool seven = cell == 2 || cell == 3;
        const double want = cell == 0    ? chernoff(1, 9)
                            : seven      ? chernoff(2, 7)
                            : cell == 10 ? chernoff(1, 5)
                                         : 0.0;
        CHECK_CLOSE(out[cell], want, 1e-6);
    }
    // A correlation area of 2 halves the log; with two degrees of freedom the six cells win.
    out = map_of(Tail::chernoff, {1, 1, 2, 1, 0.1});
    CHECK_CLOSE(out[0], chernoff(1, 9) / 2, 1e-6);
    out = map_of(Tail::exact, {1, 2, 1, 2, 0.1});  // sf(x; 2) = exp(-x / 2)
    CHECK_CLOSE(out[1], -6 * 1.5 / std::log(10.0), 1e-6);
    out = map_of(Tail::exact, {0.5, 2, 1, 2, 0.1});
    CHECK_CLOSE(out[1], -6 * 3.0 / std::log(10.0), 1e-6);
    // Without the guard an energy of 0 is impossible: a finite stand-in, at the root of a single branch.
    const std::vector<float> branch{0, 1, 4};
    std::vector<float> flat(3);
    uflow::log_pfa(branch.data(), nullptr, 1, 1, 3, Tail::chernoff_unguarded, {1, 1, 1, 1, 0.1}, 1,
                   flat.data());
    for (float v : flat) CHECK(std::isfinite(v) && v < -1e29f);
    uflow::log_pfa(branch.data(), nullptr, 1, 1, 3, Tail::chernoff, {1, 1, 1, 1, 0.1}, 1, flat.data());
    CHECK(flat[0] == 0.0f && flat[1] == 0.0f && flat[2] < 0.0f);
    // Binomial: every cell of the six has its one sample above tau, 0.1^6.
    std::vector<std::int32_t> counts(16);
    for (int cell = 0; cell < 6; ++cell) counts[cell] = 1;
    out = map_of(Tail::binomial, {1, 1, 1, 1, 0.1}, counts.data());
    for (int cell = 0; cell < 6; ++cell) CHECK_CLOSE(out[cell], -6.0, 1e-6);
    CHECK(out[15] == 0.0f);
}

// One row of a map resized.
template <int Taps>
std::vector<double> resized_row(const std::vector<float>& map, int height, int width, int out_height,
                                int out_width, int row) {
    const uflow::Resize<Taps> resize(height, width, out_height, out_width);
    uflow::ResizeLines<Taps> lines;
    resize.start(map.data(), lines);
    std::vector<double> out(std::size_t(out_width), 0.0);
    resize.prepare(row, lines);
    for (std::size_t col = 0; col < out.size(); ++col)
        for (int tap = 0; tap < Taps; ++tap)
            out[col] += double(resize.weight(row)[tap]) * double(lines.line[tap][col]);
    return out;
}

void resizing() {
    const std::vector<float> map{0, 4, 8, 20};                           // 2 x 2
    const std::vector<double> row = resized_row<2>(map, 2, 2, 4, 4, 1);  // a quarter of the way down
    CHECK_CLOSE(row[0], 2, 1e-15);
    CHECK_CLOSE(row[1], 3.5, 1e-15);
    CHECK_CLOSE(row[2], 6.5, 1e-15);
    CHECK_CLOSE(row[3], 8, 1e-15);
    const std::vector<double> cubic =
        resized_row<4>(map, 2, 2, 3, 3, 1);  // the centre: the mean, by symmetry
    CHECK_CLOSE(cubic[0], 4, 1e-15);
    CHECK_CLOSE(cubic[1], 8, 1e-15);
    CHECK_CLOSE(cubic[2], 12, 1e-15);
    CHECK(resized_row<4>(map, 2, 2, 1, 1, 0)[0] == 0.0);
}

void whole_test() {
    const Background model{1, 1, 1, 1, 0.1};
    const std::vector<uflow::Scale> scales{{hand.data(), nullptr, 4, 4, model}};
    const std::int64_t cells = 16;
    std::vector<float> out(16);
    uflow::log_nfa(scales, 1, 4, 4, Tail::chernoff, false, 1, out.data());
    const std::vector<float> log_pfa = map_of(Tail::chernoff, model);
    for (int i = 0; i < 16; ++i)
        CHECK_CLOSE(out[i], log_pfa[i] + uflow::log10_number_of_tests(&cells, 1), 1e-6);
    uflow::log_nfa(scales, 1, 4, 4, Tail::chernoff, true, 1, out.data());
    CHECK_CLOSE(out[15], uflow::log10_number_of_tests_by_area(1, 16, 1), 1e-6);
    CHECK_CLOSE(out[0], log_pfa[0] + uflow::log10_number_of_tests_by_area(1, 16, 1),
                2.0);  // a small region wins
    CHECK(out[0] != out[1]);

    // Block test: no count anywhere, so log10 P(Bin(9, 0.1) > 0) at every cell of both scales.
    const std::vector<std::int32_t> none(16, 0);
    const std::vector<uflow::BlockScale> blocks{{none.data(), 4, 4, 1}, {none.data(), 2, 2, 1}};
    std::vector<double> block(25);
    uflow::log_nfa_block(blocks, 1, 5, 5, 3, 0.1, false, 1, block.data());
    for (double v : block) CHECK_CLOSE(v, 2 * std::log10(1 - std::pow(0.9, 9)) + std::log10(20.0), 1e-6);
    bool thrown = false;
    try {
        uflow::log_nfa_block(blocks, 1, 5, 5, 8, 0.1, false, 1, block.data());  // half 4 needs 5 cells
    } catch (const std::invalid_argument&) {
        thrown = true;
    }
    CHECK(thrown);
}

// A region of a cells is worth law.effective_area[a] cells, and log_tests[a] is added.
void laws_of_the_area() {
    const Background model{1, 2, 1, 2, 0.1};  // sf(x; 2) = exp(-x / 2)
    const auto log_p = [](double energy) { return -0.5 * energy / std::log(10.0); };
    const auto map_by = [&](const std::vector<double>& effective, const std::vector<double>& tests) {
        uflow::Scale scale{hand.data(), nullptr, 4, 4, model};
        scale.area_law = {effective.data(), tests.data()};
        std::vector<float> out(16);
        uflow::log_nfa({scale}, 1, 4, 4, Tail::exact, true, 1, out.data());
        return out;
    };
    std::vector<double> area(17), once(17, 1.0), tests(17, 3.0);
    for (int a = 0; a <= 16; ++a) area[std::size_t(a)] = a;
    // However large, a region is worth one cell: the peaks 9, 7 7 and 5 win, and nothing is merged.
    std::vector<float> out = map_by(once, tests);
    CHECK_CLOSE(out[0], log_p(9) + 3, 1e-6);
    CHECK_CLOSE(out[2], log_p(7) + 3, 1e-6);
    CHECK_CLOSE(out[10], log_p(5) + 3, 1e-6);
    CHECK(out[1] == 3.0f && out[15] == 3.0f);
    // Two cells are worth a hundred.
    std::vector<double> pairs = once;
    pairs[2] = 100;
    out = map_by(pairs, tests);
    CHECK_CLOSE(out[2], 100 * log_p(7) + 3, 1e-6);
    CHECK_CLOSE(out[0], log_p(9) + 3, 1e-6);
    // Six cells are tested often less: they win over the peaks in them. One cell outside is tested as one is.
    tests[6] = -50;
    tests[1] = 4;
    out = map_by(once, tests);
    for (const int cell : {0, 1, 2, 3, 4, 5}) CHECK_CLOSE(out[cell], log_p(3) - 50, 1e-6);
    CHECK_CLOSE(out[10], log_p(5) + 4, 1e-6);
    CHECK(out[15] == 4.0f);
    // The area itself and the default number of tests are what there is without a law, bit for bit.
    const std::vector<uflow::Scale> plain{{hand.data(), nullptr, 4, 4, model}};
    std::vector<float> want(16);
    uflow::log_nfa(plain, 1, 4, 4, Tail::exact, true, 1, want.data());
    CHECK(map_by(area, uflow::log10_number_of_tests_by_area(16, 1)) == want);
}

void threading() {
    std::mt19937 random(1);
    std::chi_squared_distribution<float> chi2(8);
    const std::int64_t batch = 7;
    std::vector<float> fine(batch * 9 * 11), coarse(batch * 4 * 5);
    for (float& e : fine) e = chi2(random);
    for (float& e : coarse) e = chi2(random);
    const Background model{1, 8, 1, 8, 0.1};
    const std::vector<uflow::Scale> scales{{fine.data(), nullptr, 9, 11, model},
                                           {coarse.data(), nullptr, 4, 5, model}};
    std::vector<float> one(batch * 20 * 30), many(one.size());
    uflow::log_nfa(scales, batch, 20, 30, Tail::exact, true, 1, one.data());
    for (int threads : {0, 2, 5, 50}) {
        std::fill(many.begin(), many.end(), 1.0f);
        uflow::log_nfa(scales, batch, 20, 30, Tail::exact, true, threads, many.data());
        CHECK(one == many);
    }
    bool thrown = false;
    try {
        uflow::parallel_for(100, 4, [](int, std::int64_t i) {
            if (i == 13) throw std::runtime_error("13");
        });
    } catch (const std::runtime_error&) {
        thrown = true;
    }
    CHECK(thrown);
    std::vector<int> done(1000);
    uflow::parallel_for(1000, 3, [&](int, std::int64_t i) { ++done[std::size_t(i)]; });
    CHECK(std::all_of(done.begin(), done.end(), [](int n) { return n == 1; }));
}

}  // namespace

int main() {
    one_map();
    resizing();
    whole_test();
    laws_of_the_area();
    threading();
    return uflow_test::result();
}
