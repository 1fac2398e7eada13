// The max-tree of an image: sort the pixels, join them from the brightest down, make the result canonical.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

namespace uflow {

enum class Connectivity { four = 4, eight = 8 };

// Buffers that one thread reuses from image to image: nothing is allocated after the largest image was seen.
template <class T>
struct MaxTreeWorkspace {
    using Key = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
    std::vector<Key> key, key_swap;
    std::vector<std::int32_t> order_swap, root;
};

namespace detail {

// Unsigned integers in the order of the floats; adding +0 turns -0 into +0, so that the two are equal here as
// well.
template <class T>
typename MaxTreeWorkspace<T>::Key ordered_bits(T value) noexcept {
    using Key = typename MaxTreeWorkspace<T>::Key;
    static_assert(std::numeric_limits<T>::is_iec559 && sizeof(Key) == sizeof(T), "IEEE float or double");
    constexpr Key sign = Key(1) << (8 * sizeof(T) - 1);
    value += T(0);
    Key bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits & sign) ? ~bits : bits | sign;
}

// Stable radix sort (least significant byte first) of pixel indices by value, lowest first.
template <class T>
void sort_pixels(const T* image, std::int32_t count, MaxTreeWorkspace<T>& work, std::int32_t* order) {
    using Key = typename MaxTreeWorkspace<T>::Key;
    constexpr int digits = int(sizeof(T));
    std::int32_t bins[digits][256] = {};
    work.key.resize(std::size_t(count));
    work.key_swap.resize(std::size_t(count));
    work.order_swap.resize(std::size_t(count));
    Key *from = work.key.data(), *to = work.key_swap.data();
    std::int32_t *index = order, *index_to = work.order_swap.data();
    for (std::int32_t i = 0; i < count; ++i) {
        const Key key = ordered_bits(image[i]);
        from[i] = key;
        index[i] = i;
        for (int d = 0; d < digits; ++d) ++bins[d][(key >> (8 * d)) & 255];
    }
    for (int d = 0; d < digits; ++d) {
        if (bins[d][(from[0] >> (8 * d)) & 255] == count) continue;  // every pixel has this digit
        std::int32_t start = 0;
        for (std::int32_t& bin : bins[d]) start += std::exchange(bin, start);
        for (std::int32_t i = 0; i < count; ++i) {
            const std::int32_t place = bins[d][(from[i] >> (8 * d)) & 255]++;
            to[place] = from[i];
            index_to[place] = index[i];
        }
        std::swap(from, to);
        std::swap(index, index_to);
    }
    if (index != order) std::memcpy(order, index, std::size_t(count) * sizeof *order);
}

// Root of the set of a pixel; halves the path on the way.
inline std::int32_t find_root(std::int32_t* root, std::int32_t pixel) noexcept {
    while (root[pixel] != pixel) pixel = root[pixel] = root[root[pixel]];
    return pixel;
}

template <Connectivity C>
void join_pixels(std::int32_t height, std::int32_t width, const std::int32_t* order, std::int32_t* root,
                 std::int32_t* parent) noexcept {
    const std::int32_t count = height * width;
    for (std::int32_t i = 0; i < count; ++i) root[i] = -1;  // not seen yet
    for (std::int32_t i = count; i-- > 0;) {
        const std::int32_t pixel = order[i];
        const std::int32_t row = std::int32_t(std::uint32_t(pixel) / std::uint32_t(width)),
                           col = pixel - row * width;
        parent[pixel] = root[pixel] = pixel;
        const auto join = [&](std::int32_t neighbour) {
            if (root[neighbour] < 0) return;
            const std::int32_t top = find_root(root, neighbour);
            if (top != pixel) parent[top] = root[top] = pixel;
        };
        const bool up = row > 0, down = row + 1 < height, left = col > 0, right = col + 1 < width;
        if (up) join(pixel - width);
        if (left) join(pixel - 1);
        if (right) join(pixel + 1);
        if (down) join(pixel + width);
        if constexpr (C == Connectivity::eight) {
            if (up && left) join(pixel - width - 1);
            if (up && right) join(pixel - width + 1);
            if (down && left) join(pixel + width - 1);
            if (down && right) join(pixel + width + 1);
        }
    }
}

}  // namespace detail

// Max-tree of a row-major image (Berger et al. 2007, "Effective component tree computation"): order lists the
// pixels from the root up, a parent before its children; parent[p] is the canonical pixel (the first in
// order) of p's component, or for a canonical pixel that of the component just below; the root is its own
// parent. parent and order hold height * width elements.
template <class T>
void max_tree(const T* image, std::int32_t height, std::int32_t width, Connectivity connectivity,
              MaxTreeWorkspace<T>& work, std::int32_t* parent, std::int32_t* order) {
    if (height < 1 || width < 1 || std::int64_t(height) * width > std::numeric_limits<std::int32_t>::max())
        throw std::invalid_argument("max_tree: the image needs between 1 and 2^31 - 1 pixels");
    const std::int32_t count = height * width;
    detail::sort_pixels(image, count, work, order);
    work.root.resize(std::size_t(count));
    if (connectivity == Connectivity::four)
        detail::join_pixels<Connectivity::four>(height, width, order, work.root.data(), parent);
    else
        detail::join_pixels<Connectivity::eight>(height, width, order, work.root.data(), parent);
    for (std::int32_t i = 0; i < count; ++i) {
        const std::int32_t pixel = order[i], below = parent[pixel];
        if (image[parent[below]] == image[below]) parent[pixel] = parent[below];
    }
}

}  // namespace uflow
