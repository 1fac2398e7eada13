// Any bytes make images, masks, trees and laws of the area, and the core must agree with its slow twins. For
// libFuzzer (-fsanitize=fuzzer), or with UFLOW_FUZZ_MAIN a program of its own: fuzz_core [INPUTS [SEED]].
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "slow.hpp"
#include "uflow/block_test.hpp"
#include "uflow/field.hpp"
#include "uflow/outline.hpp"
#include "uflow/regions.hpp"

using uflow::Connectivity;

namespace {

// The bytes as numbers; 0 where they end.
struct Bytes {
    const std::uint8_t* at;
    std::size_t left;

    int below(int limit) {
        if (left == 0) return 0;
        --left;
        return *at++ % limit;
    }
    // Whole numbers and so many ties, or any float of moderate size, of either sign.
    template <class T>
    T value(bool ties) {
        const int high = below(256), low = below(256), exponent = below(41);
        if (ties) return T(high % 5 - 2);
        return T((high * 256 + low - 32768) * std::pow(2.0, exponent - 20));
    }
    // An energy: from 0 on.
    float energy(bool ties) { return ties ? float(below(5)) : float(below(256) * 256 + below(256)) / 2048; }
};

bool close(double a, double b) {
    return std::fabs(a - b) <= 2e-5 * (1 + std::max(std::fabs(a), std::fabs(b)));
}

// Nodes as the core numbers them, for each of which the twin has the same pixels, level and parent.
template <class T>
void trees(Bytes bytes, int height, int width) {
    const Connectivity kind = bytes.below(2) ? Connectivity::four : Connectivity::eight;
    const bool ties = bytes.below(2) != 0;
    std::vector<T> image(std::size_t(height * width));
    std::vector<std::int32_t> counts(image.size());
    for (T& v : image) v = bytes.value<T>(ties);
    for (std::int32_t& n : counts) n = bytes.below(9);
    const std::vector<uflow_test::Node> slow = uflow_test::component_tree(image, height, width, kind);
    static uflow::TreeWorkspace work;  // of all inputs: nothing may leak from one to the next
    std::vector<double> sums;
    {
        const auto tree = uflow::component_tree(image.data(), counts.data(), height, width, kind, work);
        sums.assign(tree.value, tree.value + tree.size);
    }
    const auto tree = uflow::component_tree(image.data(), nullptr, height, width, kind, work);
    CHECK(std::size_t(tree.size) == slow.size());
    std::vector<int> twin(std::size_t(tree.size), -1);  // of each node
    const auto* order = work.order.as<std::int32_t>();
    std::vector<int> node_of(image.size());
    for (std::size_t rank = 0; rank < image.size(); ++rank)
        node_of[std::size_t(order[rank])] = tree.node_of[rank];
    for (std::size_t pixel = 0; pixel < image.size(); ++pixel)
        for (std::size_t n = 0; n < slow.size(); ++n)  // the twin's smallest node that holds the pixel
            if (std::binary_search(slow[n].pixels.begin(), slow[n].pixels.end(), int(pixel)))
                twin[std::size_t(node_of[pixel])] = int(n);
    for (std::int32_t node = 0; node < tree.size; ++node) {
        const int n = twin[std::size_t(node)];
        CHECK(n >= 0);
        if (n < 0) return;
        const uflow_test::Node& same = slow[std::size_t(n)];
        CHECK(tree.area[node] == std::int32_t(same.pixels.size()) && tree.value[node] == same.level);
        CHECK(same.parent < 0 ? node == 0 : twin[std::size_t(tree.parent[node])] == same.parent);
        double sum = 0;
        for (const int pixel : same.pixels) sum += counts[std::size_t(pixel)];
        CHECK(sums[std::size_t(node)] == sum);
    }
    // The max-tree: a parent before its children, and at every pixel the level of its canonical pixel.
    std::vector<std::int32_t> parent(image.size()), sorted(image.size()), seen(image.size(), 0);
    uflow::max_tree(image.data(), height, width, kind, work, parent.data(), sorted.data());
    CHECK(parent[std::size_t(sorted[0])] == sorted[0]);
    for (const std::int32_t pixel : sorted) {
        const auto up = std::size_t(parent[std::size_t(pixel)]);
        CHECK(seen[up] || pixel == sorted[0]);
        CHECK(image[up] < image[std::size_t(pixel)] || node_of[up] == node_of[std::size_t(pixel)]);
        seen[std::size_t(pixel)] = 1;
    }
}

// Any tree with any values, many of them equal.
void selection(Bytes bytes) {
    const int count = 1 + bytes.below(40);
    std::vector<std::int32_t> parent{0};
    std::vector<double> value;
    for (int node = 1; node < count; ++node) parent.push_back(std::max(0, node - 1 - bytes.below(4)));
    for (int node = 0; node < count; ++node) value.push_back(-bytes.below(6));
    std::vector<std::int32_t> region(parent.size());
    uflow::Buffer work;
    uflow::select_regions(parent.data(), value.data(), count, work, region.data());
    std::vector<int> up(parent.begin(), parent.end());
    up[0] = -1;
    const std::vector<int> final_ones = uflow_test::final_regions(up, value);
    for (int node = 0; node < count; ++node) {
        int at = node;
        while (at >= 0 && std::find(final_ones.begin(), final_ones.end(), at) == final_ones.end())
            at = up[std::size_t(at)];
        CHECK(region[std::size_t(node)] == at);
    }
}

void masks(Bytes bytes, int height, int width) {
    const Connectivity kind = bytes.below(2) ? Connectivity::four : Connectivity::eight;
    std::vector<std::uint8_t> mask(std::size_t(height * width));
    std::vector<float> values(mask.size());
    const int density = 1 + bytes.below(5);
    for (std::uint8_t& inside : mask)
        inside = std::uint8_t(bytes.below(6) < density ? 0 : bytes.below(255) + 1);
    for (float& v : values) v = bytes.value<float>(true);
    std::vector<uflow::Run> runs;
    const auto slow = uflow_test::components({mask.begin(), mask.end()}, height, width, kind);
    CHECK(uflow::find_runs(mask.data(), height, width, kind, runs) == std::int32_t(slow.size()));
    std::vector<uflow_test::Pixels> found(slow.size());
    for (const uflow::Run& run : runs)
        for (std::int32_t col = run.first; col < run.end; ++col)
            found[std::size_t(run.component)].push_back(run.row * width + col);
    CHECK(found == slow);
    const auto regions = uflow::regions(mask.data(), values.data(), values.data(), height, width, runs);
    CHECK(regions.size() ==
          uflow_test::components({mask.begin(), mask.end()}, height, width, Connectivity::four).size());
    std::int64_t area = 0;
    for (const uflow::Region& region : regions) {
        area += region.area;
        CHECK(region.top >= 0 && region.left >= 0 && region.bottom <= height && region.right <= width);
        CHECK(region.top <= region.row && region.row < region.bottom && region.log_nfa <= region.score);
    }
    CHECK(area == std::count_if(mask.begin(), mask.end(), [](std::uint8_t v) { return v != 0; }));
}

// The whole test under any law of the area, on one and two threads, against the twin's tree and regions.
void whole_test(Bytes bytes, int height, int width) {
    const bool by_area = bytes.below(2) != 0, own_area = bytes.below(2) != 0, own_tests = bytes.below(2) != 0;
    const uflow::Tail tail = bytes.below(2) ? uflow::Tail::chernoff : uflow::Tail::exact;
    const bool ties = bytes.below(2) != 0;
    const std::int64_t batch = 3;
    const std::size_t cells = std::size_t(height * width);
    const double dof = 0.1 + bytes.below(40) / 4.0, scale = 0.25 * (1 + bytes.below(8));
    const uflow::Background model{scale, dof, 1.0 + bytes.below(3), dof};
    std::vector<float> energy(std::size_t(batch) * cells);
    for (float& e : energy) e = bytes.energy(ties);
    std::vector<double> effective, tests;
    for (std::size_t a = 0; a <= cells; ++a) {
        effective.push_back(own_area ? (1 + bytes.below(200)) / 8.0 : double(a));
        tests.push_back(own_tests ? bytes.below(64) / 4.0 - 4
                                  : uflow::log10_number_of_tests_by_area(std::max(1.0, double(a)),
                                                                         std::int64_t(cells), 1));
    }
    std::vector<uflow::Scale> scales{{energy.data(), nullptr, height, width, model}};
    if (own_area) scales[0].area_law.effective_area = effective.data();
    if (own_tests) scales[0].area_law.log_tests = tests.data();
    static uflow::NfaWorkspace kept;
    std::vector<float> nfa(energy.size()), again(energy.size());
    uflow::log_nfa(scales, batch, height, width, tail, by_area, 1, nfa.data(), &kept);
    uflow::log_nfa(scales, batch, height, width, tail, by_area, 2, again.data());
    CHECK(nfa == again);
    const std::int64_t count = std::int64_t(cells);
    const double total = uflow::log10_number_of_tests(&count, 1);
    const std::vector<float> first(energy.begin(), energy.begin() + std::ptrdiff_t(cells));
    const auto nodes = uflow_test::component_tree(first, height, width, Connectivity::four);
    std::vector<int> parent;
    std::vector<double> value;
    for (const uflow_test::Node& node : nodes) {
        const double log_p = tail == uflow::Tail::exact
                                 ? uflow::log10_chi2_sf(node.level / scale, dof)
                                 : uflow::log10_chi2_chernoff(node.level / (scale * dof), dof, true);
        const std::size_t area = node.pixels.size();
        const double score = std::max(log_p * effective[area] / model.correlation_area, -1e30);
        parent.push_back(node.parent);
        value.push_back(score + (by_area ? tests[area] : 0.0));
    }
    std::vector<double> want(cells, by_area ? tests[1] : total);
    std::vector<double> sorted = value;
    std::sort(sorted.begin(), sorted.end());
    for (std::size_t i = 1; i < sorted.size(); ++i)  // the last digit decides nothing
        if (sorted[i] != sorted[i - 1] &&
            std::fabs(sorted[i] - sorted[i - 1]) < 1e-9 * (1 + std::fabs(sorted[i])))
            return;
    for (const int node : uflow_test::final_regions(parent, value))
        for (const int pixel : nodes[std::size_t(node)].pixels)
            want[std::size_t(pixel)] = value[std::size_t(node)] + (by_area ? 0.0 : total);
    for (std::size_t cell = 0; cell < cells; ++cell) CHECK(close(nfa[cell], want[cell]));
}

// Maps of all scales on one grid, and the older test: in bounds and the same on any number of threads.
void grids(Bytes bytes, int height, int width) {
    const int out_height = 1 + bytes.below(40), out_width = 1 + bytes.below(80);
    const std::int64_t batch = 2;
    const int half_height = (height + 1) / 2, half_width = (width + 1) / 2;
    std::vector<float> fine(std::size_t(batch * height * width)),
        coarse(std::size_t(batch * half_height * half_width));
    for (float& e : fine) e = bytes.energy(false);
    for (float& e : coarse) e = bytes.energy(false);
    const std::vector<uflow::Maps> maps{{fine.data(), height, width},
                                        {coarse.data(), half_height, half_width}};
    const uflow::EvidenceWeights weights{{8.0, 8.0}, 0.5, {1.0, 0.25}};
    const std::size_t pixels = std::size_t(out_height * out_width);
    std::vector<float> one(std::size_t(batch) * pixels), two(one.size());
    uflow::anomaly_map(maps, weights.energy_means, batch, out_height, out_width, 1, one.data());
    uflow::anomaly_map(maps, weights.energy_means, batch, out_height, out_width, 2, two.data());
    CHECK(one == two);
    CHECK(std::all_of(one.begin(), one.end(), [](float v) { return v >= 0.0f && v <= 1.0f; }));
    uflow::resize_bilinear(fine.data(), batch, height, width, out_height, out_width, 1, one.data());
    const auto slow = uflow_test::bilinear({fine.begin(), fine.begin() + height * width}, height, width,
                                           out_height, out_width);
    for (std::size_t i = 0; i < pixels; ++i) CHECK(close(one[i], slow[i]));
    std::vector<float> field(fine.size()), field_again(fine.size());
    uflow::evidence_field({maps, maps}, weights, batch, 1, field.data());
    uflow::evidence_field({maps, maps}, weights, batch, 2, field_again.data());
    CHECK(field == field_again);
    const auto wide = uflow_test::bilinear({coarse.begin(), coarse.begin() + half_height * half_width},
                                           half_height, half_width, height, width);
    for (std::size_t i = 0; i < wide.size(); ++i) {  // the latents count less than what is clamped
        const double distances = fine[i] + 0.25 * wide[i], latents = field[i] - distances;
        CHECK(latents >= -2e-5 * (1 + distances) && latents <= 17 + 2e-5 * (1 + distances));
    }

    const int channels = 1 + bytes.below(9), window = 1 + bytes.below(6);
    if (std::min(height, width) <= uflow::block_half(window, 0)) return;
    std::vector<std::int32_t> counts(fine.size());
    for (std::int32_t& n : counts) n = bytes.below(channels + 1);
    const bool continuous = bytes.below(2) != 0;
    const std::vector<uflow::BlockScale> blocks{{counts.data(), height, width, channels}};
    std::vector<double> block(one.size()), block_again(one.size());
    uflow::log_nfa_block(blocks, batch, out_height, out_width, window, 0.1, continuous, 1, block.data());
    uflow::log_nfa_block(blocks, batch, out_height, out_width, window, 0.1, continuous, 2,
                         block_again.data());
    CHECK(block == block_again);
    CHECK(std::all_of(block.begin(), block.end(), [](double v) { return std::isfinite(v); }));
}

// Outlines against the twin: whole numbers, and sizes at which resizing is exact, so that no rounding
// decides.
void outlines(Bytes bytes, int height, int width) {
    const int out_height = height << bytes.below(3), out_width = width << bytes.below(3);
    const int usual = bytes.below(5), quiet = usual + bytes.below(8), density = 1 + bytes.below(5);
    std::vector<float> map(std::size_t(height * width));
    std::vector<std::uint8_t> found(map.size()), mask(std::size_t(out_height * out_width));
    for (float& value : map) value = float(bytes.below(16));
    for (std::uint8_t& cell : found) cell = bytes.below(12) < density;
    uflow_test::Picture picture{{}, 1 + bytes.below(40), 1 + bytes.below(40)};
    const bool in_colour = bytes.below(2) != 0;
    picture.values.resize(std::size_t(3 * picture.height * picture.width));
    for (int& value : picture.values) value = bytes.below(256);
    const std::vector<std::uint8_t> pixels(picture.values.begin(), picture.values.end());
    const uflow::Image image{pixels.data(), picture.height, picture.width};
    static uflow::OutlineWorkspace work;
    uflow::draw_regions(map.data(), found.data(), height, width, {double(usual), double(quiet)}, out_height,
                        out_width, work, mask.data(), {nullptr, in_colour ? &image : nullptr});
    CHECK(std::vector<bool>(mask.begin(), mask.end()) ==
          uflow_test::outlines({map.begin(), map.end()}, {found.begin(), found.end()}, height, width, usual,
                               quiet, out_height, out_width, in_colour ? &picture : nullptr));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const int before = uflow_test::failures();
    Bytes bytes{data, size};
    const int what = bytes.below(6), height = 1 + bytes.below(9), width = 1 + bytes.below(9);
    if (what == 0) trees<float>(bytes, height, width), trees<double>(bytes, height, width);
    if (what == 1) selection(bytes);
    if (what == 2) masks(bytes, height, 5 * width);
    if (what == 3) whole_test(bytes, height, width);
    if (what == 4) grids(bytes, height, width);
    if (what == 5) outlines(bytes, height, width);
    if (uflow_test::failures() > before) std::abort();
    return 0;
}

#ifdef UFLOW_FUZZ_MAIN
int main(int argc, char** argv) {
    const int inputs = argc > 1 ? std::atoi(argv[1]) : 2000;
    std::mt19937 random(argc > 2 ? unsigned(std::atoi(argv[2])) : 1u);
    std::vector<std::uint8_t> input(2000);
    for (int i = 0; i < inputs; ++i) {
        for (std::uint8_t& byte : input) byte = std::uint8_t(random());
        LLVMFuzzerTestOneInput(input.data(), input.size() - random() % input.size());
    }
    return uflow_test::result();
}
#endif
