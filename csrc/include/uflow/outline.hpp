// Which pixels a found region is: its outline, drawn on a map of cells, and log10 NFA inside and outside it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "uflow/colours.hpp"
#include "uflow/field.hpp"
#include "uflow/parallel.hpp"
#include "uflow/regions.hpp"
#include "uflow/resize.hpp"

namespace uflow {

// What good images say of the map that outlines are drawn on: its median, and its largest value in a typical
// good image.
struct Drawing {
    double usual, quiet;
};

// Memory of one thread, for its next image.
struct OutlineWorkspace {
    std::vector<Run> runs;
    std::vector<float> across, heights, around, fine, fine_around, of_region, background;
    std::vector<float> colours, likeness, fine_likeness;
    std::vector<std::int32_t> columns;
    std::vector<std::uint32_t> column_sums;
    std::vector<std::uint8_t> found, mask, seeds, rest, touched, regions, outside;
    detail::Hearts hearts;

    std::size_t bytes() const noexcept {
        std::size_t all = hearts.bytes() + runs.capacity() * sizeof(Run) +
                          (columns.capacity() + column_sums.capacity()) * sizeof(std::uint32_t);
        for (const auto* floats : {&across, &heights, &around, &fine, &fine_around, &of_region, &background,
                                   &colours, &likeness, &fine_likeness})
            all += floats->capacity() * sizeof(float);
        for (const auto* flags : {&found, &mask, &seeds, &rest, &touched, &regions, &outside})
            all += flags->capacity();
        return all;
    }
};

namespace detail {

inline constexpr float edge_share = 0.8f;        // of the root mean square height around: below is a halo
inline constexpr float half_up = 0.5f;           // of the strongest region's height: is always enough
inline constexpr float echo_level = 0.25f;       // of the strongest region's height: below is its echo
inline constexpr std::ptrdiff_t blur_cells = 2;  // how far a cell sees
inline constexpr float heart_share = 1.0f;       // of the same: what surely is of a defect
inline constexpr float colour_share = 0.5f;      // by so much of the edge's share colour lowers or raises it
inline constexpr std::int32_t samples = 4;       // of colour, to a cell's side

// How many samples lie in half of one of `cells`, of `all` side by side: at least one.
inline std::int32_t half_a_cell(std::int32_t cells, std::int32_t all) noexcept {
    return std::max((all / cells + 1) / 2, 1);
}

// The sum over up to `blur_cells` neighbours to each side: of `count` lines of `length` values, which lie
// `step` apart, the first ones of two lines `line` apart.
inline void sum_along(const float* map, std::ptrdiff_t count, std::ptrdiff_t line, std::ptrdiff_t length,
                      std::ptrdiff_t step, float* to) noexcept {
    for (std::ptrdiff_t l = 0; l < count; ++l)
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            float sum = map[l * line + i * step];
            for (std::ptrdiff_t k = 1; k <= blur_cells; ++k) {
                if (i >= k) sum += map[l * line + (i - k) * step];
                if (i + k < length) sum += map[l * line + (i + k) * step];
            }
            to[l * line + i * step] = sum;
        }
}

// The sum over a square of `blur_cells` to each side, in place.
inline void sum_around(std::vector<float>& map, std::int32_t height, std::int32_t width,
                       std::vector<float>& across) {
    across.resize(map.size());
    sum_along(map.data(), width, 1, height, width, across.data());
    sum_along(across.data(), height, width, width, 1, map.data());
}

// The cell, of `cells` side by side, that pixel i of `pixels` lies in.
inline std::int32_t nearest_cell(std::int32_t i, std::int32_t cells, std::int32_t pixels) noexcept {
    return std::int32_t(std::int64_t(i) * cells / pixels);
}

// The pixel, of `pixels` side by side, at the centre of cell i of `cells`.
inline std::int32_t centre_of(std::int32_t i, std::int32_t pixels, std::int32_t cells) noexcept {
    return std::int32_t((2 * std::int64_t(i) + 1) * pixels / (2 * std::int64_t(cells)));
}

// Leaves in a mask the components that have a pixel among the seeds. Returns whether there are any.
inline bool keep_touching(std::uint8_t* mask, const std::uint8_t* seeds, std::int32_t height,
                          std::int32_t width, OutlineWorkspace& work) {
    work.touched.assign(std::size_t(find_runs(mask, height, width, Connectivity::four, work.runs)), 0);
    for_each_run(work.runs, width, [&](std::size_t component, std::size_t first, std::size_t end) {
        for (std::size_t pixel = first; pixel < end; ++pixel) work.touched[component] |= seeds[pixel];
    });
    for_each_run(work.runs, width, [&](std::size_t component, std::size_t first, std::size_t end) {
        if (!work.touched[component]) std::fill(mask + first, mask + end, std::uint8_t(0));
    });
    return std::any_of(work.touched.begin(), work.touched.end(), [](std::uint8_t seed) { return seed != 0; });
}

// Puts into a mask what it surrounds: the components outside it that do not reach the border.
inline void fill_holes(std::uint8_t* mask, std::int32_t height, std::int32_t width, OutlineWorkspace& work) {
    const std::size_t pixels = std::size_t(height) * std::size_t(width);
    work.rest.resize(pixels);
    std::uint8_t* rest = work.rest.data();
    for (std::size_t pixel = 0; pixel < pixels; ++pixel) rest[pixel] = !mask[pixel];
    const std::int32_t count = find_runs(work.rest.data(), height, width, Connectivity::four, work.runs);
    work.touched.assign(std::size_t(count), 0);
    for (const Run& run : work.runs)
        if (run.row == 0 || run.row == height - 1 || run.first == 0 || run.end == width)
            work.touched[std::size_t(run.component)] = 1;
    for_each_run(work.runs, width, [&](std::size_t component, std::size_t first, std::size_t end) {
        if (!work.touched[component]) std::fill(mask + first, mask + end, std::uint8_t(1));
    });
}

// The median of the cells where nothing was found, of those that count; `otherwise` where there are none.
inline float median_outside(const float* map, const std::uint8_t* found, const std::uint8_t* counted,
                            std::size_t cells, float otherwise, std::vector<float>& rest) {
    rest.clear();
    for (std::size_t cell = 0; cell < cells; ++cell)
        if (!found[cell] && (!counted || counted[cell])) rest.push_back(map[cell]);
    if (rest.empty()) return otherwise;
    const auto half = rest.begin() + std::ptrdiff_t(rest.size() / 2);
    std::nth_element(rest.begin(), half, rest.end());
    return rest.size() % 2 ? *half : (*std::max_element(rest.begin(), half) + *half) / 2;
}

// The largest value of a region.
inline float strongest_found(const float* map, const std::uint8_t* found, std::size_t cells) noexcept {
    float strongest = -std::numeric_limits<float>::infinity();
    for (std::size_t cell = 0; cell < cells; ++cell)
        if (found[cell]) strongest = std::max(strongest, map[cell]);
    return strongest;
}

// What cells hold, for each of the (out_height, out_width) pixels in them.
inline void nearest_cells(const std::uint8_t* cells, std::int32_t height, std::int32_t width,
                          std::int32_t out_height, std::int32_t out_width, OutlineWorkspace& work,
                          std::vector<std::uint8_t>& pixels) {
    pixels.resize(std::size_t(out_height) * std::size_t(out_width));
    work.columns.resize(std::size_t(out_width));
    for (std::int32_t col = 0; col < out_width; ++col)
        work.columns[std::size_t(col)] = nearest_cell(col, width, out_width);
    const std::int32_t* columns = work.columns.data();
    for (std::int32_t row = 0; row < out_height; ++row) {
        const std::int32_t cell = nearest_cell(row, height, out_height);
        std::uint8_t* to = pixels.data() + std::ptrdiff_t(row) * out_width;
        if (row > 0 && cell == nearest_cell(row - 1, height, out_height)) {
            std::copy(to - out_width, to, to);
            continue;
        }
        const std::uint8_t* from = cells + std::ptrdiff_t(cell) * width;
        for (std::int32_t col = 0; col < out_width; ++col) to[col] = from[columns[col]];
    }
}

// The cells that were found as pixels; each keeps the one at its centre, where the image has fewer pixels
// than the map has cells.
inline void seeds_of(const std::uint8_t* found, std::int32_t height, std::int32_t width,
                     std::int32_t out_height, std::int32_t out_width, OutlineWorkspace& work) {
    nearest_cells(found, height, width, out_height, out_width, work, work.seeds);
    for (std::int32_t row = 0; row < height; ++row)
        for (std::int32_t col = 0; col < width; ++col)
            if (found[std::ptrdiff_t(row) * width + col])
                work.seeds[std::size_t(centre_of(row, out_height, height)) * std::size_t(out_width) +
                           std::size_t(centre_of(col, out_width, width))] = 1;
}

// The root mean square, around each cell, of the heights that reach the level, into work.around. Into
// work.outside 1 for the surroundings, what lies further than that from all of these and from what was found,
// and no more than twice as far; 2 for what lies beyond, 0 for what is nearer.
inline void look_around(const std::uint8_t* found, const std::uint8_t* counted, std::int32_t height,
                        std::int32_t width, float level, OutlineWorkspace& work) {
    const std::size_t cells = work.heights.size();
    std::vector<float>&squares = work.around, &counts = work.background;
    std::vector<float>&near = work.fine, &next = work.fine_around;
    squares.resize(cells);
    counts.resize(cells);
    near.resize(cells);
    next.resize(cells);
    work.outside.resize(cells);
    for (std::size_t cell = 0; cell < cells; ++cell) {
        const float up = work.heights[cell];
        const bool high = up >= level;
        squares[cell] = high ? up * up : 0.0f;
        counts[cell] = high ? 1.0f : 0.0f;
        near[cell] = high || found[cell] ? 1.0f : 0.0f;
    }
    for (std::vector<float>* map : {&squares, &counts, &near}) sum_around(*map, height, width, work.across);
    std::transform(near.begin(), near.end(), next.begin(),
                   [](float sum) { return sum > 0.0f ? 1.0f : 0.0f; });
    sum_around(next, height, width, work.across);
    for (std::size_t cell = 0; cell < cells; ++cell) {
        squares[cell] = std::sqrt(squares[cell] / std::max(counts[cell], 1.0f));
        const bool counts_here = next[cell] > 0.0f && (!counted || counted[cell]);
        work.outside[cell] = near[cell] > 0.0f ? 0 : counts_here ? 1 : 2;
    }
}

// The pixels above the level, and above a share of the height around, that hang together with what was found,
// holes filled: of work.heights and work.around. share_at(pixel) is the share.
template <class ShareAt>
void draw_above(const std::uint8_t* found, std::int32_t height, std::int32_t width, float level,
                ShareAt&& share_at, std::int32_t out_height, std::int32_t out_width, OutlineWorkspace& work,
                std::uint8_t* mask) {
    const std::size_t pixels = std::size_t(out_height) * std::size_t(out_width);
    work.fine.resize(pixels);
    work.fine_around.resize(pixels);
    resize_bilinear(work.heights.data(), 1, height, width, out_height, out_width, 1, work.fine.data());
    resize_bilinear(work.around.data(), 1, height, width, out_height, out_width, 1, work.fine_around.data());
    const float *fine = work.fine.data(), *around = work.fine_around.data();
    for (std::size_t pixel = 0; pixel < pixels; ++pixel)
        mask[pixel] = std::uint8_t((fine[pixel] >= level) & (fine[pixel] >= around[pixel] * share_at(pixel)));
    seeds_of(found, height, width, out_height, out_width, work);
    if (!keep_touching(mask, work.seeds.data(), out_height, out_width, work))
        std::copy(work.seeds.begin(), work.seeds.end(), mask);
    fill_holes(mask, out_height, out_width, work);
}

// Leaves of a mask, 0 or 1, what has `reach` of it to both sides along `count` lines of `length` values,
// which lie `step` apart, the first ones of two lines `line` apart. Beyond the border all is of it.
inline void erode_along(std::uint8_t* mask, std::ptrdiff_t count, std::ptrdiff_t line, std::ptrdiff_t length,
                        std::ptrdiff_t step, std::ptrdiff_t reach) noexcept {
    for (std::ptrdiff_t l = 0; l < count; ++l) {
        std::uint8_t* at = mask + l * line;
        std::ptrdiff_t gap = -1 - reach;  // the last place outside; 2 marks what is too near to it
        for (std::ptrdiff_t i = 0; i < length; ++i)
            if (!at[i * step])
                gap = i;
            else if (i - gap <= reach)
                at[i * step] = 2;
        gap = length + reach;
        for (std::ptrdiff_t i = length - 1; i >= 0; --i)
            if (!at[i * step])
                gap = i;
            else if (gap - i <= reach)
                at[i * step] = 2;
        for (std::ptrdiff_t i = 0; i < length; ++i) at[i * step] = at[i * step] == 1;
    }
}

// How much each pixel looks like a defect, by its colour, into work.fine_likeness: see `likeness`. A region
// is what is connected above the level; its heart is where the map reaches the whole of the height around;
// deep is what lies half a cell or more inside a heart.
inline void look_at_colours(const Image& image, const std::uint8_t* found, std::int32_t height,
                            std::int32_t width, float level, std::int32_t out_height, std::int32_t out_width,
                            OutlineWorkspace& work) {
    const std::int32_t rows =
                           std::int32_t(std::min<std::int64_t>(std::int64_t(samples) * height, image.height)),
                       columns =
                           std::int32_t(std::min<std::int64_t>(std::int64_t(samples) * width, image.width));
    work.regions.resize(std::size_t(rows) * std::size_t(columns));
    draw_above(
        found, height, width, level, [](std::size_t) { return heart_share; }, rows, columns, work,
        work.regions.data());
    std::vector<std::uint8_t>& deep = work.seeds;
    deep = work.regions;
    erode_along(deep.data(), rows, columns, columns, 1, half_a_cell(width, columns));
    erode_along(deep.data(), columns, 1, rows, columns, half_a_cell(height, rows));
    for (std::size_t i = 0; i < work.regions.size(); ++i)  // work.fine has the heights of the samples
        work.regions[i] = work.regions[i] ? 2 + deep[i] : work.fine[i] >= level;
    nearest_cells(work.outside.data(), height, width, rows, columns, work, work.rest);
    colour_means(image, rows, columns, work.column_sums, work.colours);
    likeness(work.colours, work.regions, work.rest, rows, columns, work.runs, work.hearts, work.likeness);
    work.fine_likeness.resize(std::size_t(out_height) * std::size_t(out_width));
    resize_bilinear(work.likeness.data(), 1, rows, columns, out_height, out_width, 1,
                    work.fine_likeness.data());
}

}  // namespace detail

// What else there is to draw an outline by.
struct DrawingAids {
    const std::uint8_t* counted = nullptr;  // (height, width): not 0 where a cell may be of the background
    const Image* image = nullptr;           // what the map was made of, of any size
};

// The pixels (out_height, out_width), 0 or 1, of the regions that were found: `found`, 0 or 1, and `map`, to
// draw on, are (height, width).
// Heights are counted from the image's own background, the median of the cells where nothing was found. A
// pixel belongs to a region if it is connected to its cells through pixels that are higher than a typical
// good image is anywhere, but half the strongest region's height is enough and a quarter is needed, and no
// halo of something stronger: above 0.8 of the root mean square height of what is so high within the blur's
// reach. Where there is an image, the share is lower, down to half, the more the pixel has the colour of a
// defect, and higher, up to one and a half, the more it has that of the surroundings. Holes are filled. A
// region of which nothing is left so is the halo or the echo of a stronger one, and goes with it; where
// nothing at all would be left, the cells are kept.
inline void draw_regions(const float* map, const std::uint8_t* found, std::int32_t height, std::int32_t width,
                         const Drawing& drawing, std::int32_t out_height, std::int32_t out_width,
                         OutlineWorkspace& work, std::uint8_t* mask, const DrawingAids& aids = {}) {
    const std::size_t cells = std::size_t(height) * std::size_t(width);
    const float usual =
        detail::median_outside(map, found, aids.counted, cells, float(drawing.usual), work.background);
    const float strongest = detail::strongest_found(map, found, cells) - usual;
    if (!(strongest > 0.0f)) {  // where the map sees nothing, the cells are the outline
        detail::seeds_of(found, height, width, out_height, out_width, work);
        std::copy(work.seeds.begin(), work.seeds.end(), mask);
        detail::fill_holes(mask, out_height, out_width, work);
        return;
    }
    const float quiet = float(drawing.quiet) - float(drawing.usual);
    const float level =
        std::min(std::max(quiet, detail::echo_level * strongest), detail::half_up * strongest);
    work.heights.resize(cells);
    std::transform(map, map + cells, work.heights.begin(), [&](float value) { return value - usual; });
    detail::look_around(found, aids.counted, height, width, level, work);
    const auto draw = [&](auto&& share_at) {
        detail::draw_above(found, height, width, level, share_at, out_height, out_width, work, mask);
    };
    if (aids.image == nullptr) return draw([](std::size_t) { return detail::edge_share; });
    detail::look_at_colours(*aids.image, found, height, width, level, out_height, out_width, work);
    const float* likeness = work.fine_likeness.data();
    draw([=](std::size_t pixel) {
        return detail::edge_share * (1.0f - detail::colour_share * likeness[pixel]);
    });
}

// log10 NFA (batch, out_height, out_width) of that of cells, detected where it is below 0: resized
// bilinearly, and moved so that the lowest value is that of the cells. In an image where a region was found
// it is, inside an outline, the lowest of the cells there, in one region the lowest of the image, and outside
// not below 0. `drawn_on`: the map to draw outlines on, of the same cells. `images`: what the maps were made
// of, one each, or nullptr.
inline void outline_log_nfa(const Maps& log_nfa, const float* drawn_on, const Drawing& drawing,
                            std::int64_t batch, std::int32_t out_height, std::int32_t out_width, int threads,
                            float* result, OutlineWorkspace* kept = nullptr, const Image* images = nullptr) {
    const std::size_t cells = log_nfa.cells();
    const std::size_t pixels = std::size_t(out_height) * std::size_t(out_width);
    for_each_image(batch, threads, kept, [&](OutlineWorkspace& work, std::int64_t image) {
        const std::int32_t height = log_nfa.height, width = log_nfa.width;
        const float *own = log_nfa.image(image), *map = drawn_on + std::size_t(image) * cells;
        float* out = result + std::size_t(image) * pixels;
        resize_bilinear(own, 1, height, width, out_height, out_width, 1, out);
        const float least = *std::min_element(own, own + cells);
        if (!(least < 0.0f)) {  // resizing flattens the lowest value
            const float lift = least - *std::min_element(out, out + pixels);
            for (std::size_t pixel = 0; pixel < pixels; ++pixel) out[pixel] += lift;
            return;
        }
        work.found.resize(cells);
        std::transform(own, own + cells, work.found.begin(), [](float value) { return value < 0.0f; });
        // The outlines of the regions that were found.
        work.mask.resize(pixels);
        draw_regions(map, work.found.data(), height, width, drawing, out_height, out_width, work,
                     work.mask.data(), {nullptr, images ? images + image : nullptr});
        // The lowest of the cells in each.
        const std::int32_t count =
            find_runs(work.mask.data(), out_height, out_width, Connectivity::four, work.runs);
        work.of_region.assign(std::size_t(count), std::numeric_limits<float>::infinity());
        for (const Run& run : work.runs) {
            const float* row =
                own + std::ptrdiff_t(detail::nearest_cell(run.row, height, out_height)) * width;
            float& lowest = work.of_region[std::size_t(run.component)];
            for (std::int32_t col = run.first; col < run.end; ++col)
                lowest = std::min(lowest, row[detail::nearest_cell(col, width, out_width)]);
        }
        // In an image of fewer pixels than cells a region may miss its own, and an outline may leave the
        // cells that decided: then the image's lowest counts.
        const float deepest = *std::min_element(work.of_region.begin(), work.of_region.end());
        for (float& lowest : work.of_region)
            if (!(lowest < 0.0f) || lowest == deepest) lowest = least;
        for (std::size_t pixel = 0; pixel < pixels; ++pixel) out[pixel] = std::max(out[pixel], 0.0f);
        detail::for_each_run(work.runs, out_width,
                             [&](std::size_t region, std::size_t first, std::size_t end) {
                                 std::fill(out + first, out + end, work.of_region[region]);
                             });
    });
}

}  // namespace uflow
