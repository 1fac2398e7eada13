// Energies and exceedance counts against plain loops, for channel counts around the unrolled eight.
#include <cmath>
#include <cstdint>
#include <limits>
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
    std::vector<std::int32_t> alone(energy.size(), -1);
    CHECK(uflow::exceedances(z.data(), batch, channels, cells, 1.5, 2, alone.data()));
    CHECK(alone == counts);
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

// Values right below and at the smallest whose square reaches tau, of both signs, tau of many sizes; and what
// is not finite.
template <class T>
void counts_at_the_limit() {
    std::int32_t count = 0;
    for (const double tau : {1e-300, 1e-40, 1e-12, 0.3, 1.5, 2.70554345, 6.63489660, 1e10}) {
        std::vector<T> z;
        T v = std::sqrt(T(tau));
        for (int k = 0; k < 20; ++k) v = std::nextafter(v, T(0));
        for (int k = 0; k < 40; ++k, v = std::nextafter(v, std::numeric_limits<T>::infinity()))
            z.insert(z.end(), {v, -v});
        std::int32_t expected = 0;
        for (const T value : z) expected += value * value >= T(tau);
        CHECK(uflow::exceedances(z.data(), 1, std::ptrdiff_t(z.size()), 1, tau, 1, &count));
        CHECK(count == expected);
    }
    for (const T bad : {std::numeric_limits<T>::infinity(), -std::numeric_limits<T>::infinity(),
                        std::numeric_limits<T>::quiet_NaN(), -std::numeric_limits<T>::quiet_NaN()})
        for (int at = 0; at < 11; ++at) {
            std::vector<T> z(11, std::numeric_limits<T>::max());
            CHECK(uflow::exceedances(z.data(), 1, 11, 1, 1.0, 1, &count) && count == 11);
            z[std::size_t(at)] = bad;
            CHECK(!uflow::exceedances(z.data(), 1, 11, 1, 1.0, 1, &count));
        }
}

}  // namespace

int main() {
    counts_at_the_limit<float>();
    counts_at_the_limit<double>();
    for (int channels : {1, 7, 8, 9, 16, 37}) {
        equals_plain_loops<float>(3, channels, 5);
        equals_plain_loops<double>(1, channels, 1);
    }
    equals_plain_loops<float>(1, 9, 1024 + 3);  // more cells than one block
    return uflow_test::result();
}
