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
#include "uflow/pause.hpp"

namespace uflow {

enum class Connectivity { four = 4, eight = 8 };

// Buffers that one thread reuses from image to image: nothing is allocated after the largest image was seen.
// Per pixel of a float image 4 + 4 + 4 + 4 + 4 + 8 bytes, and 8 where values need the exact sort.
struct TreeWorkspace {
    // The result of rank_tree, per rank, lowest pixel first.
    Buffer order;   // int32: the pixel, a flat index
    Buffer level;   // T: its value
    Buffer parent;  // int32: a lower rank; while sorting, keys of the pixels
    // Free after it, for component_tree.
    Buffer label;      // int32 per pixel of the padded image: its basin; then per rank its node
    Buffer component;  // int32 per basin; then per node its area
    Buffer basin;      // while sorting, keys and pixels; per basin; then double per node its value
    Buffer spare;      // while sorting, keys and pixels on their way to and fro
    // The work done on the last image, which tests hold against bounds.
    std::int64_t sort_passes = 0, relabelled = 0;

    std::size_t bytes() const noexcept {
        return order.bytes() + level.bytes() + parent.bytes() + label.bytes() + component.bytes() +
               basin.bytes() + spare.bytes();
    }
};

namespace detail {

// Unsigned integers in the order of the floats; adding +0 turns -0 into +0, so that the two are equal here as
// well.
template <class T>
auto ordered_bits(T value) noexcept {
    using Key = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
    static_assert(std::numeric_limits<T>::is_iec559 && sizeof(Key) == sizeof(T), "IEEE float or double");
    constexpr Key sign = Key(1) << (8 * sizeof(T) - 1);
    value += T(0);
    Key bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits & sign) ? ~bits : bits | sign;
}

template <class T, class Key>
T value_of_bits(Key key) noexcept {
    constexpr Key sign = Key(1) << (8 * sizeof(T) - 1);
    key = (key & sign) ? key ^ sign : ~key;
    T value;
    std::memcpy(&value, &key, sizeof value);
    return value;
}

// Sorts pixels by value, lowest first, equal ones as they lie in the image: work.order and work.level. First
// a radix sort by key_of(index), least significant digit first; then insertion of those that values with one
// key may have left out of order, for which value_of(key, index) tells the value. Gives up, and returns
// false, where that is much work.
template <int Bits, int Digits, class KeyOf, class ValueOf>
bool sort_by_keys(std::int32_t count, KeyOf key_of, ValueOf value_of, TreeWorkspace& work) {
    using Key = decltype(key_of(0));
    using T = decltype(value_of(Key(), 0));
    struct Pixel {
        Key key;
        std::int32_t index;
    };
    constexpr Key mask = (Key(1) << Bits) - 1;
    std::int32_t bins[Digits][mask + 1] = {};
    for (std::int32_t i = 0; i < count; ++i) {
        const Key key = key_of(i);
        for (int d = 0; d < Digits; ++d) ++bins[d][(key >> (Bits * d)) & mask];
    }
    const Pixel* from = nullptr;
    work.sort_passes = 0;
    for (int d = 0; d < Digits; ++d) {
        const int shift = Bits * d;
        const auto digit = [shift](Key key) { return (key >> shift) & mask; };
        if (bins[d][digit(key_of(0))] == count) continue;  // every pixel has this digit
        pause();
        std::int32_t start = 0;
        for (std::int32_t& bin : bins[d]) start += std::exchange(bin, start);
        Buffer& memory = work.sort_passes++ % 2 == 0 ? work.basin : work.spare;
        auto* to = memory.fit<Pixel>(std::size_t(count));
        if (from)
            for (std::int32_t i = 0; i < count; ++i) to[bins[d][digit(from[i].key)]++] = from[i];
        else
            for (std::int32_t i = 0; i < count; ++i) to[bins[d][digit(key_of(i))]++] = {key_of(i), i};
        from = to;
    }
    auto* order = work.order.fit<std::int32_t>(std::size_t(count));
    auto* level = work.level.fit<T>(std::size_t(count));
    T last = -std::numeric_limits<T>::infinity();
    std::int64_t moves = 0;
    for (std::int32_t i = 0; i < count; ++i) {
        const Pixel pixel = from ? from[i] : Pixel{key_of(i), i};
        const T value = value_of(pixel.key, pixel.index);
        std::int32_t at = i;
        if (value < last) {
            for (; at > 0 && level[at - 1] > value; --at) {
                order[at] = order[at - 1];
                level[at] = level[at - 1];
            }
            if ((moves += i - at) > count) return false;
        } else
            last = value;
        order[at] = pixel.index;
        level[at] = value;
    }
    return true;
}

// By all bits of the values: as many passes as they have digits, and no insertion.
template <int Bits, class T>
void sort_by_bits(const T* image, std::int32_t count, TreeWorkspace& work) {
    sort_by_keys<Bits, (8 * int(sizeof(T)) + Bits - 1) / Bits>(
        count, [=](std::int32_t i) { return ordered_bits(image[i]); },
        [](auto key, std::int32_t) { return value_of_bits<T>(key); }, work);
}

// By two digits: that many equal steps from the smallest value to the largest tell nearly all pixels apart.
// Gives up, and returns false, where values far from all others leave too few steps for these.
template <int Bits, class T>
bool sort_by_steps(const T* image, std::int32_t count, TreeWorkspace& work) {
    constexpr int lanes = 8;  // compilers make no vector minimum of floats by themselves
    T low[lanes], high[lanes];
    std::fill(low, low + lanes, image[0]);
    std::fill(high, high + lanes, image[0]);
    const auto see = [&](T value, int lane) {
        low[lane] = value < low[lane] ? value : low[lane];
        high[lane] = value > high[lane] ? value : high[lane];
    };
    std::int32_t i = 0;
    for (; i + lanes <= count; i += lanes)
        for (int lane = 0; lane < lanes; ++lane) see(image[i + lane], lane);
    for (; i < count; ++i) see(image[i], 0);
    const T least = *std::min_element(low, low + lanes), most = *std::max_element(high, high + lanes);
    const T scale = least < most ? T((1 << (2 * Bits)) - 2) / (most - least) : T(1);
    if (!(scale > T(0) && scale <= std::numeric_limits<T>::max())) return false;
    auto* key = work.parent.fit<std::uint32_t>(std::size_t(count));
    for (i = 0; i < count; ++i) key[i] = std::uint32_t(std::int32_t((image[i] - least) * scale));
    return sort_by_keys<Bits, 2>(
        count, [=](std::int32_t i) { return key[i]; },
        [=](std::uint32_t, std::int32_t i) { return image[i] + T(0); },  // no -0
        work);
}

template <class T>
void sort_pixels(const T* image, std::int32_t count, TreeWorkspace& work) {
    // Digits of 11 bits need fewer passes. Not for few pixels: the tables cost more than the pass. Nor for
    // many: 2048 places to write to are more than the translation buffer and the first cache hold.
    const bool few = count < 2048, many = count > 400000;
    if (!many && (few ? sort_by_steps<8>(image, count, work) : sort_by_steps<11>(image, count, work))) return;
    if (few || many)
        sort_by_bits<8>(image, count, work);
    else
        sort_by_bits<11>(image, count, work);
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

inline constexpr std::int32_t ahead = 24;  // pixels: a memory access takes about as long as these

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
    std::int32_t top, count;
    std::uint32_t next;
};

// No two basins are neighbours: at most every other pixel, and number 0, which is none.
inline std::size_t most_basins(std::int32_t count) noexcept { return std::size_t(count) / 2 + 2; }

// Joins the sorted pixels from the brightest down. Every pixel next to one already seen is of the same
// component as that, so only local maxima ("basins") are ever joined: each pixel keeps its basin, `component`
// tells the component of a basin, and when two components join, the basins of the one with fewer, kept in a
// ring, are relabelled (quick-find). So finding a component is one look-up without a loop, and all that
// branches on the image are the local maxima and the pixels where components meet. Pixels of ranks below
// `lowest` are left out, but for the last of them: the root of what is there.
template <Connectivity C, class Number>
void join_pixels(std::int32_t height, std::int32_t width, std::int32_t lowest, TreeWorkspace& work) {
    // The labels have one column more than the image, at the left, and a row more at the top and the bottom:
    // neighbours are then constant offsets, and no pixel has to look for the border.
    const std::int32_t count = height * width;
    const std::ptrdiff_t stride = width + 1;
    const std::size_t padded = std::size_t(height + 2) * std::size_t(stride) + 1;
    const std::size_t basins = most_basins(count);
    constexpr int degree = int(C);
    const std::ptrdiff_t offset[8] = {-stride,     -1,          1,          stride,
                                      -stride - 1, -stride + 1, stride - 1, stride + 1};

    // Where a pixel's label is stands where its parent will be.
    const auto* order = work.order.as<std::int32_t>();
    auto* parent = work.parent.fit<std::int32_t>(std::size_t(count));
    const Divisor row_length(width);
    for (std::int32_t rank = std::max(lowest - 1, 0); rank < count; ++rank)
        parent[rank] = order[rank] + row_length.quotient(order[rank]) + width + 2;

    using Label = std::make_unsigned_t<Number>;
    auto* label = work.label.fit<Label>(padded);
    auto* component = work.component.fit<Number>(basins);
    auto* basin = work.basin.fit<Basin>(basins);
    std::fill(label, label + padded, Label(0));
    constexpr std::int32_t none = std::numeric_limits<Number>::min();  // largest without its sign
    component[0] = none;
    std::uint32_t fresh = 1;  // the next basin
    std::int64_t relabelled = 0;
    for (std::int32_t end = count, first; end > lowest; end = first) {
        pause();
        first = std::max(lowest, end - between_pauses);
        for (std::int32_t rank = end; rank-- > first;) {
            if constexpr (sizeof(Number) > 2) {  // the second cache may not hold the labels
                const Label* later = label + parent[std::max(rank - ahead, lowest)];
                prefetch(later - stride);
                prefetch(later);
                prefetch(later + stride);
            }
            Label* here = label + parent[rank];
            std::int32_t high = none;        // the largest component around
            auto low = std::uint32_t(none);  // the smallest
            for (int k = 0; k < degree; ++k) {
                const std::int32_t near = component[here[offset[k]]];
                high = std::max(high, near);
                low = std::min(low, std::uint32_t(near));
            }
            if (high == none) {
                component[fresh] = Number(fresh);
                basin[fresh] = {rank, 1, fresh};
                *here = Label(fresh++);
                continue;
            }
            auto mine = std::uint32_t(high);
            parent[basin[mine].top] = rank;
            if (mine != low) {  // components meet, nearly always two
                const auto join = [&](std::uint32_t a, std::uint32_t b) {
                    const std::uint32_t more = basin[a].count < basin[b].count ? b : a, fewer = a ^ b ^ more;
                    parent[basin[a].top] = parent[basin[b].top] = rank;
                    basin[more].count += basin[fewer].count;
                    relabelled += basin[fewer].count;
                    // Where memory is slow, the end is told by the number, which is there before the next
                    // basin.
                    std::uint32_t each = fewer;
                    std::int32_t left = basin[fewer].count;
                    do {
                        component[each] = Number(more);
                        each = basin[each].next;
                    } while (sizeof(Number) > 2 ? --left > 0 : each != fewer);
                    std::swap(basin[more].next, basin[fewer].next);
                    return more;
                };
                mine = join(mine, low);
                bool others = false;
                for (int k = 0; k < degree; ++k) {
                    const std::int32_t near = component[here[offset[k]]];
                    others |= (near != none) & (near != std::int32_t(mine));
                }
                if (others)
                    for (int k = 0; k < degree; ++k) {
                        const std::int32_t near = component[here[offset[k]]];
                        if (near != none && near != std::int32_t(mine))
                            mine = join(mine, std::uint32_t(near));
                    }
            }
            basin[mine].top = rank;
            *here = Label(mine);
        }
    }
    work.relabelled = relabelled;
    const std::int32_t root = std::max(lowest - 1, 0);
    parent[root] = root;
    if (lowest > 0)
        for (std::uint32_t b = 1; b < fresh; ++b)
            if (component[b] == std::int32_t(b)) parent[basin[b].top] = root;
}

}  // namespace detail

// The max-tree in the order of the sorted pixels: work.order and work.level, lowest first, and work.parent,
// for each rank a lower one (its own for the root). Pixels of one level are a chain here, not yet one
// component. Returns the rank of the root: 0, or that of the highest pixel at or below `floor`, where there
// is one. Then the pixels of lower ranks are no part of the tree, and all components above the floor hang at
// the root, touching it or not.
template <class T>
std::int32_t rank_tree(const T* image, std::int32_t height, std::int32_t width, Connectivity connectivity,
                       TreeWorkspace& work, double floor = -std::numeric_limits<double>::infinity()) {
    if (height < 1 || width < 1 ||
        (std::int64_t(height) + 2) * (std::int64_t(width) + 1) >= std::numeric_limits<std::int32_t>::max())
        throw std::invalid_argument("max_tree: the image needs at least 1 and less than 2^31 pixels");
    const std::int32_t count = height * width;
    detail::sort_pixels(image, count, work);
    const T* level = work.level.as<T>();
    const auto lowest = std::int32_t(
        std::partition_point(level, level + count, [&](T value) { return double(value) <= floor; }) - level);
    const auto join = [&](auto number) {
        using Number = decltype(number);
        if (connectivity == Connectivity::four)
            detail::join_pixels<Connectivity::four, Number>(height, width, lowest, work);
        else
            detail::join_pixels<Connectivity::eight, Number>(height, width, lowest, work);
    };
    if (detail::most_basins(count) <= std::size_t(std::numeric_limits<std::int16_t>::max()))
        join(std::int16_t());
    else
        join(std::int32_t());
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
    const T* level = work.level.as<T>();
    const auto* ranks = work.parent.as<std::int32_t>();
    auto* canonical = work.order.as<std::int32_t>();
    std::copy_n(canonical, count, order);
    for (std::int32_t first = 1; first < count; first += 64) {
        const std::int32_t end = std::min(first + 64, count);
        std::int32_t equal = 0;  // most images have few plateaus: look at many pixels at once
        for (std::int32_t rank = first; rank < end; ++rank) equal |= level[rank] == level[rank - 1];
        for (std::int32_t rank = equal ? first : end; rank < end; ++rank)
            if (level[rank] == level[ranks[rank]]) canonical[rank] = canonical[ranks[rank]];
    }
    for (std::int32_t rank = 0; rank < count; ++rank) parent[order[rank]] = canonical[ranks[rank]];
}

}  // namespace uflow
