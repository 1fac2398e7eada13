// Latents in, energies or exceedance counts per cell out: the only pass over the latents.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "uflow/parallel.hpp"

namespace uflow {

namespace detail {

// Cells whose sums stay in the first cache while the channels go by.
constexpr std::ptrdiff_t cell_block = 2048;

// out[cell] (float or integer) = sum over channels of term(z[channel][cell]), for one image. Eight channels
// are added to each other before they are added to the sum: fewer passes over it, and less rounding in it.
template <class T, class Out, class Term>
void sum_over_channels(const T* z, std::ptrdiff_t channels, std::ptrdiff_t cells, Term term,
                       Out* out) noexcept {
    for (std::ptrdiff_t first = 0; first < cells; first += cell_block) {
        const std::ptrdiff_t count = std::min(cell_block, cells - first);
        Out* sum = out + first;
        std::fill(sum, sum + count, Out(0));
        std::ptrdiff_t channel = 0;
        for (; channel + 8 <= channels; channel += 8) {
            const T* row[8];
            for (int k = 0; k < 8; ++k) row[k] = z + (channel + k) * cells + first;
            for (std::ptrdiff_t i = 0; i < count; ++i)
                sum[i] += ((term(row[0][i]) + term(row[1][i])) + (term(row[2][i]) + term(row[3][i]))) +
                          ((term(row[4][i]) + term(row[5][i])) + (term(row[6][i]) + term(row[7][i])));
        }
        for (; channel < channels; ++channel) {
            const T* row = z + channel * cells + first;
            for (std::ptrdiff_t i = 0; i < count; ++i) sum[i] += term(row[i]);
        }
    }
}

}  // namespace detail

// energy (batch, cells) of latents z (batch, channels, cells): the sum of z^2 over the channels.
template <class T>
void energies(const T* z, std::int64_t batch, std::ptrdiff_t channels, std::ptrdiff_t cells, int threads,
              T* energy) {
    parallel_for(batch, threads, [&](int, std::int64_t image) {
        detail::sum_over_channels(
            z + image * channels * cells, channels, cells, [](T v) { return v * v; }, energy + image * cells);
    });
}

// counts (batch, cells): in how many channels z^2 >= tau.
template <class T>
void exceedances(const T* z, std::int64_t batch, std::ptrdiff_t channels, std::ptrdiff_t cells, double tau,
                 int threads, std::int32_t* counts) {
    const T limit = T(tau);
    parallel_for(batch, threads, [&](int, std::int64_t image) {
        detail::sum_over_channels(
            z + image * channels * cells, channels, cells,
            [limit](T v) { return std::int32_t(v * v >= limit); }, counts + image * cells);
    });
}

}  // namespace uflow
