// A slow-down shows here first, in counted work instead of seconds: passes of the sort, basins relabelled,
// memory, and allocations.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <random>
#include <vector>

#include "check.hpp"
#include "uflow/field.hpp"

namespace {

std::int64_t allocations = 0;

}  // namespace

void* operator new(std::size_t size) {
    ++allocations;
    if (void* memory = std::malloc(size ? size : 1)) return memory;
    throw std::bad_alloc();
}
void* operator new[](std::size_t size) { return operator new(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

std::vector<float> chi2_energies(int count, int dof, unsigned seed) {
    std::mt19937 random(seed);
    std::chi_squared_distribution<float> chi2{float(dof)};
    std::vector<float> energies(static_cast<std::size_t>(count));
    for (float& e : energies) e = chi2(random);
    return energies;
}

// Noise has the most local maxima an image has, a comb the most per pixel, and a slope of them joins them one
// by one from the brightest down.
void work_of_the_tree() {
    uflow::TreeWorkspace work;
    const auto tree = [&](const std::vector<float>& image, int side) {
        uflow::rank_tree(image.data(), side, side, uflow::Connectivity::four, work);
    };
    for (int side : {14, 28, 112, 512}) {
        const int count = side * side;
        tree(chi2_energies(count, 816, 1), side);
        CHECK(work.sort_passes <= 2);
        CHECK(double(work.relabelled) <= 0.8 * count);  // measured: 0.4 to 0.65 a pixel
        std::vector<float> comb(static_cast<std::size_t>(count)), constant(comb.size(), 1.0f);
        for (int i = 0; i < count; ++i)
            comb[std::size_t(i)] = float((i / side + i % side) % 2 ? i : 2 * count + i);
        tree(comb, side);
        CHECK(double(work.relabelled) <= 0.5 * count * std::log2(count));
        tree(constant, side);
        CHECK(work.sort_passes == 0 && work.relabelled == 0);
    }
}

// Nothing allocates but for its threads and scales, however many images there are; and what a
// thread of log_nfa holds is at most 48 bytes a cell of the largest map.
void memory_of_the_test() {
    const int sides[] = {112, 56, 28};
    const int dof = 112;
    const auto run = [&](std::int64_t batch, uflow::Tail tail) {
        std::vector<std::vector<float>> energies;
        std::vector<std::vector<std::int32_t>> counts;
        std::vector<uflow::Scale> scales;
        std::vector<uflow::Maps> maps;
        for (int side : sides) {
            energies.push_back(chi2_energies(int(batch) * side * side, dof, 2));
            counts.emplace_back(energies.back().size(), 11);
            scales.push_back({energies.back().data(), counts.back().data(), side, side,
                              uflow::Background{1.0, double(dof), 1.0, double(dof), 0.1}});
        }
        for (const uflow::Scale& scale : scales) maps.push_back({scale.energy, scale.height, scale.width});
        const std::vector<double> means(3, dof);
        const uflow::Evidence evidence{maps, {maps[0], maps[1]}};
        const uflow::EvidenceWeights weights{means, 1.0, {1.0, 2.0}};
        std::vector<float> out(std::size_t(batch) * 256 * 256);
        const std::int64_t before = allocations;
        uflow::log_nfa(scales, batch, 256, 256, tail, true, 1, out.data());
        uflow::evidence_field(evidence, weights, batch, 1, out.data());
        uflow::drawing_map(evidence, weights, batch, 1, out.data());
        uflow::anomaly_map(maps, means, batch, 256, 256, 1, out.data());
        uflow::resize_bilinear(energies[2].data(), batch, sides[2], sides[2], 256, 256, 1, out.data());
        return allocations - before;
    };
    for (const uflow::Tail tail : {uflow::Tail::chernoff, uflow::Tail::exact, uflow::Tail::binomial})
        CHECK(run(1, tail) == run(5, tail));

    uflow::NfaWorkspace work;
    work.maps.resize(3);
    const std::vector<float> energies = chi2_energies(112 * 112, dof, 2);
    for (std::size_t l = 0; l < 3; ++l)
        uflow::log_pfa_map(energies.data(), nullptr, sides[l], sides[l], uflow::Tail::exact,
                           uflow::Background{1.0, double(dof), 1.0, double(dof), 0.1}, {}, work.segment,
                           work.maps[l].fit<float>(std::size_t(sides[l] * sides[l])));
    const double bytes_per_cell = double(work.bytes()) / (112 * 112);
    std::printf("a thread holds %.1f bytes a cell of the largest map\n", bytes_per_cell);
    CHECK(bytes_per_cell <= 48.0);
}

}  // namespace

int main() {
    work_of_the_tree();
    memory_of_the_test();
    return uflow_test::result();
}
