// The max-tree of an image: sort the pixels, join them from the brightest down, make the result canonical.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "uflow/buffer.hpp"

namespace uflow {

enum class Connectivity { four = 4, eight = 8 };

// A pixel on its way through the sort: its value as an unsigned integer of the same order, and its flat
// index.
template <class T>
struct Pixel {
    using Key = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
    Key key;
    std::int32_t index;
};

// Buffers that one thread reuses from image to image: nothing is allocated after the largest image was seen.
// Per pixel of a float image 8 + 8 + 4 + 4 + 4 + 8 bytes.
struct TreeWorkspace {
    // The result of rank_tree.
    Buffer pixels;  // Pixel<T> per rank: sorted, lowest first
    Buffer parent;  // int32 per rank
    // Free after it, for component_tree.
    Buffer spare;      // Pixel<T>: where the sort moves them to and fro
    Buffer label;      // int32 per pixel of the padded image: its basin; then per rank its node
    Buffer component;  // int32 per basin; then per node its area
    Buffer basin;      // per basin; then double per node its value
    // The work done on the last image, which tests hold against bounds.
    std::int64_t sort_passes = 0, relabelled = 0;

    std::size_t bytes() const noexcept {
        return pixels.bytes() + parent.bytes() + spare.bytes() + label.bytes() + component.bytes() +
               basin.bytes();
    }
};

namespace detail {

// Unsigned integers in the order of the floats; adding +0 turns -0 into +0, so that the two are equal here as
// well.
template <class T>
typename Pixel<T>::Key ordered_bits(T value) noexcept {
    using Key = typename Pixel<T>::Key;
    static_assert(std::numeric_limits<T>::is_iec559 && sizeof(Key) == sizeof(T), "IEEE float or double");
    constexpr Key sign = Key(1) << (8 * sizeof(T) - 1);
    value += T(0);
    Key bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits & sign) ? ~bits : bits | sign;
}

template <class T>
T value_of_bits(typename Pixel<T>::Key key) noexcept {
    constexpr typename Pixel<T>::Key sign = typename Pixel<T>::Key(1) << (8 * sizeof(T) - 1);
    key = (key & sign) ? key ^ sign : ~key;
    T value;
    std::memcpy(&value, &key, sizeof value);
    return value;
}

// Stable radix sort (least significant digit first) of the pixels by value, lowest first, into work.pixels.
// The indices count in an image with one column more, at the left, and one row more, at the top: neighbours
// are then constant offsets, and no pixel has to look for the border.
template <int Bits, class T>
void sort_pixels(const T* image, std::int32_t height, std::int32_t width, TreeWorkspace& work) {
    using Key = typename Pixel<T>::Key;
    constexpr int digits = (8 * int(sizeof(T)) + Bits - 1) / Bits;
    constexpr Key mask = (Key(1) << Bits) - 1;
    const std::int32_t count = height * width;
    std::int32_t bins[digits][mask + 1] = {};
    Pixel<T>*from = work.pixels.fit<Pixel<T>>(std::size_t(count)),
    *to = work.spare.fit<Pixel<T>>(std::size_t(count));
    std::int32_t i = 0, index = width + 2;
    for (std::int32_t row = 0; row < height; ++row, ++index)
        for (std::int32_t col = 0; col < width; ++col, ++i, ++index) {
            const Key key = ordered_bits(image[i]);
            from[i] = {key, index};
            for (int d = 0; d < digits; ++d) ++bins[d][(key >> (Bits * d)) & mask];
        }
    work.sort_passes = 0;
    for (int d = 0; d < digits; ++d) {
        if (bins[d][(from[0].key >> (Bits * d)) & mask] == count) continue;  // every pixel has this digit
        std::int32_t start = 0;
        for (std::int32_t& bin : bins[d]) start += std::exchange(bin, start);
        for (i = 0; i < count; ++i) to[bins[d][(from[i].key >> (Bits * d)) & mask]++] = from[i];
        std::swap(from, to);
        ++work.sort_passes;
    }
    if (from != work.pixels.as<Pixel<T>>()) std::swap(work.pixels, work.spare);
}

// Quotients by one divisor as a multiplication and a shift: exact for numerators below 2^31 (Granlund and
// Montgomery, PLDI 1994).
struct Divisor {
    std::uint64_t factor;
    int shift = 32;

    explicit Divisor(std::int32_t divisor) noexcept {
        while ((std::int64_t(1) << (shift - 32)) < divisor) ++shift;
        factor = ((std::uint64_t(1) << shift) - 1) / std::uint64_t(divisor) + 1;
    }
    std::int32_t quotient(std::int32_t numerator) const noexcept {
        return std::int32_t(std::uint64_t(numerator) * factor >> shift);
    }
};

constexpr std::int32_t ahead = 24;  // pixels: a memory access takes about as long as these

inline void prefetch(const void* address) noexcept {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(address);
#else
    (void)address;  // slower on large maps, equal otherwise
#endif
}

// A local maximum; where its number is that of a component, also the component's lowest pixel so far, as a
// rank, and the number of its basins. All basins of a component are a ring.
struct Basin {
    std::int32_t top, count, next;
};

// Joins the sorted pixels from the brightest down, and takes the padding out of their indices. Every pixel
// next to one already seen is of the same component as that, so only local maxima ("basins") are ever joined:
// each pixel keeps its basin, `component` tells the component of a basin, and when two components join, the
// basins of the one with fewer, kept in a ring, are relabelled (quick-find). So finding a component is one
// look-up without a loop, and all that branches on the image are the pixels where components meet. Pixels of
// ranks below `lowest` are left out, but for the last of them: the root of what is there.
template <Connectivity C, class T>
void join_pixels(std::int32_t height, std::int32_t width, std::int32_t lowest, TreeWorkspace& work) {
    const std::int32_t count = height * width, stride = width + 1;
    const std::size_t padded = std::size_t(height + 2) * std::size_t(stride) + 1;
    // No two basins are neighbours: at most every other pixel, and the one to come, and none.
    const std::size_t basins = std::size_t(count) / 2 + 3;
    auto* pixels = work.pixels.as<Pixel<T>>();
    auto* parent = work.parent.fit<std::int32_t>(std::size_t(count));
    auto* label = work.label.fit<std::int32_t>(padded);
    auto* component = work.component.fit<std::int32_t>(basins);
    auto* basin = work.basin.fit<Basin>(basins);
    std::fill(label, label + padded, 0);
    for (std::size_t i = 0; i < basins; ++i) {
        component[i] = std::int32_t(i);
        basin[i] = {0, 1, std::int32_t(i)};
    }
    constexpr int degree = int(C);
    const std::int32_t offset[8] = {-stride, -1, 1, stride, -stride - 1, -stride + 1, stride - 1, stride + 1};
    std::int32_t fresh = 1;  // the next basin, should the pixel be one
    work.relabelled = 0;
    const Divisor row_length(stride);
    for (std::int32_t rank = count; rank-- > lowest;) {
        const std::int32_t later = pixels[std::max(rank - ahead, 0)].index;
        prefetch(label + later - stride);
        prefetch(label + later);
        prefetch(label + later + stride);
        const std::int32_t at = pixels[rank].index, inner = at - stride - 1;
        pixels[rank].index = inner - row_length.quotient(inner);
        std::int32_t near[degree], high = 0;
        std::uint32_t low = ~0u;  // smallest component around, less one so that 0, none, is the largest
        for (int k = 0; k < degree; ++k) {
            near[k] = component[label[at + offset[k]]];
            high = std::max(high, near[k]);
            low = std::min(low, std::uint32_t(near[k]) - 1);
        }
        basin[fresh].top = rank;
        std::int32_t mine = high == 0 ? fresh : high;
        fresh += high == 0;
        parent[basin[mine].top] = rank;
        if (high != 0 && std::uint32_t(high) - 1 != low) {  // components meet, nearly always two
            const auto join = [&](std::int32_t a, std::int32_t b) {
                const std::int32_t large = basin[a].count < basin[b].count ? b : a, small = a ^ b ^ large;
                parent[basin[a].top] = parent[basin[b].top] = rank;
                basin[large].count += basin[small].count;
                work.relabelled += basin[small].count;
                std::int32_t each = small;
                do {
                    component[each] = large;
                    each = basin[each].next;
                } while (each != small);
                std::swap(basin[large].next, basin[small].next);
                return large;
            };
            const std::int32_t least = std::int32_t(low + 1);
            bool more = false;
            for (int k = 0; k < degree; ++k) more |= (near[k] != 0) & (near[k] != high) & (near[k] != least);
            mine = join(high, least);
            if (more)
                for (int k = 0; k < degree; ++k) {
                    const std::int32_t other = component[near[k]];
                    if (other != 0 && other != mine) mine = join(mine, other);
                }
        }
        basin[mine].top = rank;
        label[at] = mine;
    }
    const std::int32_t root = std::max(lowest - 1, 0);
    parent[root] = root;
    if (lowest > 0) {
        const std::int32_t inner = pixels[root].index - stride - 1;
        pixels[root].index = inner - row_length.quotient(inner);
        for (std::int32_t b = 1; b < fresh; ++b)
            if (component[b] == b) parent[basin[b].top] = root;
    }
}

}  // namespace detail

// The max-tree in the order of the sorted pixels: work.pixels, lowest first, and work.parent, for each rank a
// lower one (its own for the root). Pixels of one level are a chain here, not yet one component. Returns the
// rank of the root: 0, or that of the highest pixel at or below `floor`, where there is one. Then the pixels
// of lower ranks are no part of the tree, and all components above the floor hang at the root, touching it or
// not.
template <class T>
std::int32_t rank_tree(const T* image, std::int32_t height, std::int32_t width, Connectivity connectivity,
                       TreeWorkspace& work, double floor = -std::numeric_limits<double>::infinity()) {
    if (height < 1 || width < 1 ||
        (std::int64_t(height) + 2) * (std::int64_t(width) + 1) >= std::numeric_limits<std::int32_t>::max())
        throw std::invalid_argument("max_tree: the image needs at least 1 and less than 2^31 pixels");
    // 11 bits a digit take a pass less. Not for few pixels: the tables cost more than the pass. Nor for many:
    // 2048 places to write to are more than the translation buffer and the first cache hold.
    const std::int32_t count = height * width;
    if (count < 2048 || count > 400000)
        detail::sort_pixels<8>(image, height, width, work);
    else
        detail::sort_pixels<11>(image, height, width, work);
    const auto* pixels = work.pixels.as<Pixel<T>>();
    const auto lowest =
        std::int32_t(std::partition_point(pixels, pixels + count,
                                          [&](const Pixel<T>& pixel) {
                                              return double(detail::value_of_bits<T>(pixel.key)) <= floor;
                                          }) -
                     pixels);
    if (connectivity == Connectivity::four)
        detail::join_pixels<Connectivity::four, T>(height, width, lowest, work);
    else
        detail::join_pixels<Connectivity::eight, T>(height, width, lowest, work);
    return std::max(lowest - 1, 0);
}

// Max-tree of a row-major image (Berger et al. 2007, "Effective component tree computation"): order lists the
// pixels from the root up, a parent before its children; parent[p] is the canonical pixel (the first in
// order) of p's component, or for a canonical pixel that of the component just below; the root is its own
// parent. parent and order hold height * width elements.
template <class T>
void max_tree(const T* image, std::int32_t height, std::int32_t width, Connectivity connectivity,
              TreeWorkspace& work, std::int32_t* parent, std::int32_t* order) {
    rank_tree(image, height, width, connectivity, work);
    const std::int32_t count = height * width;
    const Pixel<T>* pixels = work.pixels.as<Pixel<T>>();
    auto* ranks = work.parent.as<std::int32_t>();
    for (std::int32_t rank = 0; rank < count; ++rank) {
        detail::prefetch(parent + pixels[std::min(rank + detail::ahead, count - 1)].index);
        const std::int32_t below = ranks[rank], canonical = ranks[below];
        ranks[rank] = pixels[canonical].key == pixels[below].key ? canonical : below;
        order[rank] = pixels[rank].index;
        parent[order[rank]] = order[ranks[rank]];
    }
}

}  // namespace uflow
