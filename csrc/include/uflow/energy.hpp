// Latents in, energies and exceedance counts per cell out: the only pass over the latents.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "uflow/lanes.hpp"
#include "uflow/parallel.hpp"

namespace uflow {

namespace detail {

// One image. Eight channels are added to each other before they are added to the sums: fewer passes over
// these, and less rounding in them. The sums of one block of cells stay in the first cache while the channels
// go by.
template <bool counting, class T>
UFLOW_INLINE void sum_channels_in_lanes(const T* z, std::ptrdiff_t channels, std::ptrdiff_t cells, T limit,
                                        T* energy, std::int32_t* counts) noexcept {
    constexpr std::ptrdiff_t block = 1024;
    for (std::ptrdiff_t start = 0; start < cells; start += block) {
        const std::ptrdiff_t here = std::min(block, cells - start);
        T* sum = energy + start;
        std::int32_t* count = counting ? counts + start : nullptr;
        std::fill(sum, sum + here, T(0));
        if constexpr (counting) std::fill(count, count + here, 0);
        std::ptrdiff_t channel = 0;
        for (; channel + 8 <= channels; channel += 8) {
            const T* r[8];
            for (int k = 0; k < 8; ++k) r[k] = z + (channel + k) * cells + start;
            const T *r0 = r[0], *r1 = r[1], *r2 = r[2], *r3 = r[3], *r4 = r[4], *r5 = r[5], *r6 = r[6],
                    *r7 = r[7];
            for (std::ptrdiff_t i = 0; i < here; ++i) {
                const T a = r0[i] * r0[i], b = r1[i] * r1[i], c = r2[i] * r2[i], d = r3[i] * r3[i];
                const T e = r4[i] * r4[i], f = r5[i] * r5[i], g = r6[i] * r6[i], h = r7[i] * r7[i];
                sum[i] += ((a + b) + (c + d)) + ((e + f) + (g + h));
                if constexpr (counting)
                    count[i] += (a >= limit) + (b >= limit) + (c >= limit) + (d >= limit) + (e >= limit) +
                                (f >= limit) + (g >= limit) + (h >= limit);
            }
        }
        for (; channel < channels; ++channel) {
            const T* row = z + channel * cells + start;
            for (std::ptrdiff_t i = 0; i < here; ++i) {
                const T square = row[i] * row[i];
                sum[i] += square;
                if constexpr (counting) count[i] += square >= limit;
            }
        }
    }
}

template <bool counting, class T>
void sum_channels(const T* z, std::ptrdiff_t channels, std::ptrdiff_t cells, T limit, T* energy,
                  std::int32_t* counts) noexcept {
    in_widest_lanes<Rounding::alike>([=](auto) UFLOW_INLINED {
        sum_channels_in_lanes<counting>(z, channels, cells, limit, energy, counts);
    });
}

// The same for counts alone: magnitudes are compared as the integers that their bits are, from the smallest
// value on whose square reaches the limit. Returns whether all values are finite. Bits: unsigned, as wide as
// T.
template <class Bits, class T>
UFLOW_INLINE bool count_channels_in_lanes(const T* z, std::ptrdiff_t channels, std::ptrdiff_t cells, T limit,
                                          std::int32_t* counts) noexcept {
    using Int = std::make_signed_t<Bits>;
    T least = std::sqrt(limit);
    while (least > T(0) && least * least >= limit) least = std::nextafter(least, T(0));
    while (least * least < limit) least = std::nextafter(least, std::numeric_limits<T>::infinity());
    const Int below = bits_as<Int>(least) - 1;  // "greater" is one instruction, "greater or equal" more
    Int most = 0;
    constexpr std::ptrdiff_t block = 8192;  // long runs of each channel: they are fetched ahead
    for (std::ptrdiff_t start = 0; start < cells; start += block) {
        const std::ptrdiff_t here = std::min(block, cells - start);
        std::int32_t* count = counts + start;
        std::fill(count, count + here, 0);
        std::ptrdiff_t channel = 0;
        const auto see = [&](const T* row, std::ptrdiff_t i) {
            const Int magnitude = bits_as<Int>(row[i]) & std::numeric_limits<Int>::max();
            most = std::max(most, magnitude);
            return std::int32_t(magnitude > below);
        };
        for (; channel + 8 <= channels; channel += 8) {
            const T *r0 = z + channel * cells + start, *r1 = r0 + cells, *r2 = r1 + cells, *r3 = r2 + cells,
                    *r4 = r3 + cells, *r5 = r4 + cells, *r6 = r5 + cells, *r7 = r6 + cells;
            for (std::ptrdiff_t i = 0; i < here; ++i)
                count[i] += ((see(r0, i) + see(r1, i)) + (see(r2, i) + see(r3, i))) +
                            ((see(r4, i) + see(r5, i)) + (see(r6, i) + see(r7, i)));
        }
        for (; channel < channels; ++channel)
            for (std::ptrdiff_t i = 0; i < here; ++i) count[i] += see(z + channel * cells + start, i);
    }
    return most < bits_as<Int>(std::numeric_limits<T>::infinity());
}

template <class T>
bool count_channels(const T* z, std::ptrdiff_t channels, std::ptrdiff_t cells, T limit,
                    std::int32_t* counts) noexcept {
    using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
    return in_widest_lanes<Rounding::alike>(
        [=](auto) UFLOW_INLINED { return count_channels_in_lanes<Bits>(z, channels, cells, limit, counts); });
}

}  // namespace detail

// energy (batch, cells) of latents z (batch, channels, cells): the sum of z^2 over the channels.
template <class T>
void energies(const T* z, std::int64_t batch, std::ptrdiff_t channels, std::ptrdiff_t cells, int threads,
              T* energy) {
    parallel_for(batch, threads, [&](int, std::int64_t image) {
        detail::sum_channels<false>(z + image * channels * cells, channels, cells, T(0),
                                    energy + image * cells, nullptr);
    });
}

// The same, and counts (batch, cells): in how many channels z^2 >= tau.
template <class T>
void energies_and_exceedances(const T* z, std::int64_t batch, std::ptrdiff_t channels, std::ptrdiff_t cells,
                              double tau, int threads, T* energy, std::int32_t* counts) {
    parallel_for(batch, threads, [&](int, std::int64_t image) {
        detail::sum_channels<true>(z + image * channels * cells, channels, cells, T(tau),
                                   energy + image * cells, counts + image * cells);
    });
}

// The counts alone; returns whether all latents are finite.
template <class T>
bool exceedances(const T* z, std::int64_t batch, std::ptrdiff_t channels, std::ptrdiff_t cells, double tau,
                 int threads, std::int32_t* counts) {
    std::atomic<bool> finite{true};
    parallel_for(batch, threads, [&](int, std::int64_t image) {
        if (!detail::count_channels(z + image * channels * cells, channels, cells, T(tau),
                                    counts + image * cells))
            finite = false;
    });
    return finite;
}

}  // namespace uflow
