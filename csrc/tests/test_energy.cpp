// Energies and exceedance counts against plain loops, for channel counts around the unrolled eight.
#include <cstdint>
#include <random>
#include <vector>

#include "check.hpp"
#include "uflow/energy.hpp"

namespace {

template <class T>
void equals_plain_loops(int batch, int channels, int cells) {
    std::mt19937 random(3);
    std::normal_distribution<T> normal;
    std::vector<T> z(std::size_t(batch * channels * cells));
    for (T& v : z) v = normal(random);
    std::vector<T> energy(std::size_t(batch * cells), T(-1));
    std::vector<std::int32_t> counts(energy.size(), -1);
    uflow::energies(z.data(), batch, channels, cells, 2, energy.data());
    std::vector<T> again(energy.size(), T(-1));
    uflow::energies_and_exceedances(z.data(), batch, channels, cells, 1.5, 2, again.data(), counts.data());
    CHECK(energy == again);
    for (int image = 0; image < batch; ++image)
        for (int cell = 0; cell < cells; ++cell) {
            double sum = 0;
            std::int32_t count = 0;
            for (int channel = 0; channel < channels; ++channel) {
                const T v = z[std::size_t((image * channels + channel) * cells + cell)];
                sum += double(v) * double(v);
                count += v * v >= T(1.5);
            }
            const auto at = std::size_t(image * cells + cell);
            CHECK_CLOSE(energy[at], sum, 1e-5 * (1 + sum));
            CHECK(counts[at] == count);
        }
}

}  // namespace

int main() {
    for (int channels : {1, 7, 8, 9, 16, 37}) {
        equals_plain_loops<float>(3, channels, 5);
        equals_plain_loops<double>(1, channels, 1);
    }
    equals_plain_loops<float>(1, 9, 1024 + 3);  // more cells than one block
    return uflow_test::result();
}
