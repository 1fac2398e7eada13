// Outlines of maps small enough to draw by hand, mostly at the size of the cells; log NFA inside and outside.
#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "check.hpp"
#include "uflow/outline.hpp"

namespace {

using Mask = std::vector<std::uint8_t>;

Mask drawn(const std::vector<float>& map, const Mask& found, int height, int width, uflow::Drawing drawing,
           int out_height, int out_width) {
    uflow::OutlineWorkspace work;
    Mask mask(std::size_t(out_height * out_width), 9);
    uflow::draw_regions(map.data(), found.data(), height, width, drawing, out_height, out_width, work,
                        mask.data());
    return mask;
}

// A line, and behind it as much again of the usual level, so that this is the image's background.
Mask line(std::vector<float> map, Mask found, uflow::Drawing drawing) {
    const std::size_t length = map.size();
    map.resize(2 * length + 5, float(drawing.usual));
    found.resize(map.size(), 0);
    const int width = int(map.size());
    Mask mask = drawn(map, found, 1, width, drawing, 1, width);
    CHECK(mask == drawn(map, found, width, 1, drawing, width, 1));  // down as along
    CHECK(std::count(mask.begin() + std::ptrdiff_t(length), mask.end(), 1) == 0);
    mask.resize(length);
    return mask;
}

void outlines_by_hand() {
    // From 0.8 of the root mean square of 5, 8 and 5 on. Another bright place is not of the region, unless it
    // hangs together with it.
    CHECK(line({0, 3, 5, 8, 5, 3, 0, 0, 0, 7}, {0, 0, 0, 1, 0, 0, 0, 0, 0, 0}, {0, 2}) ==
          Mask({0, 0, 1, 1, 1, 0, 0, 0, 0, 0}));
    // A region may reach a brighter one: it is cut where the halo of that begins, two cells before it.
    CHECK(line({0, 3, 3, 3, 3, 8, 3, 0}, {0, 1, 0, 0, 0, 1, 0, 0}, {0, 2}) == Mask({0, 1, 1, 0, 0, 1, 0, 0}));
    // The quiet level, where it lies between a quarter and a half of the height; heights count from the
    // background.
    const std::vector<float> slope{0, 3, 4, 5, 6, 7, 8, 8, 10};
    const Mask peak{0, 0, 0, 0, 0, 0, 0, 0, 1};
    CHECK(line(slope, peak, {2, 5}) == Mask({0, 0, 0, 0, 1, 1, 1, 1, 1}));
    CHECK(line(slope, peak, {2, 9}) == Mask({0, 0, 0, 0, 0, 1, 1, 1, 1}));  // half of it
    CHECK(line(slope, peak, {2, 3}) == Mask({0, 0, 0, 1, 1, 1, 1, 1, 1}));  // a quarter
    // What is below 0.8 of the root mean square of 5 and 8, which is 5.3, of 6 and 8, 5.7, of 6, 8 and
    // 8, 5.9.
    CHECK(line({0, 5, 8, 0, 0}, {0, 0, 1, 0, 0}, {0, 2}) == Mask({0, 0, 1, 0, 0}));
    CHECK(line({0, 6, 8, 0, 0}, {0, 0, 1, 0, 0}, {0, 2}) == Mask({0, 1, 1, 0, 0}));
    CHECK(line({0, 6, 8, 8, 0}, {0, 0, 1, 0, 0}, {0, 2}) == Mask({0, 1, 1, 1, 0}));
    // One peak among much that is lower does not cut it away.
    CHECK(line({0, 8, 5, 5, 5, 5, 0, 0}, {0, 1, 0, 0, 0, 0, 0, 0}, {0, 2}) == Mask({0, 1, 1, 1, 1, 1, 0, 0}));
    // A region weaker than the quiet level: half its own height. Where nothing would be left, the cells stay.
    CHECK(line({0, 1, 3, 4, 3, 1}, {0, 0, 0, 1, 0, 0}, {0, 5}) == Mask({0, 0, 1, 1, 1, 0}));
    CHECK(line({1, 1, 1, 1, 1}, {0, 1, 1, 0, 0}, {2, 5}) == Mask({0, 1, 1, 0, 0}));
    // A region that is the halo of another goes.
    CHECK(line({0, 3, 0, 8, 0}, {0, 1, 0, 1, 0}, {0, 2}) == Mask({0, 0, 0, 1, 0}));
    // So does one that is its echo: below a quarter, however far away.
    CHECK(line({10, 0, 0, 0, 0, 2, 0}, {1, 0, 0, 0, 0, 1, 0}, {0, 1}) == Mask({1, 0, 0, 0, 0, 0, 0}));
    CHECK(line({10, 0, 0, 0, 0, 3, 0}, {1, 0, 0, 0, 0, 1, 0}, {0, 1}) == Mask({1, 0, 0, 0, 0, 1, 0}));
    // Nothing found, nothing drawn.
    CHECK(line({9, 9, 9}, {0, 0, 0}, {0, 1}) == Mask({0, 0, 0}));
}

void brighter_images() {
    // An image that is lifted as a whole has the same outline, and no wider one.
    const std::vector<float> map{0, 0, 1, 3, 4, 3, 1, 0, 0};
    std::vector<float> lifted = map;
    for (float& value : lifted) value += 6;
    const Mask found{0, 0, 0, 0, 1, 0, 0, 0, 0}, want{0, 0, 0, 1, 1, 1, 0, 0, 0};
    CHECK(drawn(map, found, 1, 9, {0, 2}, 1, 9) == want);
    CHECK(drawn(lifted, found, 1, 9, {0, 2}, 1, 9) == want);
    // Of an even number of cells the background lies in the middle of two, at 1.5: the edge at 3.28.
    CHECK(drawn({0, 4, 3.4f, 2, 0, 0, 2, 2, 1}, {0, 1, 0, 0, 0, 0, 0, 0, 0}, 1, 9, {0, 9}, 1, 9) ==
          Mask({0, 1, 1, 0, 0, 0, 0, 0, 0}));
    // All of it found: heights count from what good images have.
    CHECK(drawn({4, 3, 1}, {1, 1, 1}, 1, 3, {0, 9}, 1, 3) == Mask({1, 1, 0}));
}

void holes() {
    const std::vector<float> ring{8, 8, 8, 0, 0,  //
                                  8, 0, 8, 0, 0,  //
                                  8, 8, 8, 8, 8,  //
                                  0, 0, 8, 0, 8,  //
                                  0, 0, 8, 0, 8};
    Mask found(25);
    std::transform(ring.begin(), ring.end(), found.begin(), [](float value) { return value > 0; });
    const Mask want{1, 1, 1, 0, 0,  //
                    1, 1, 1, 0, 0,  //
                    1, 1, 1, 1, 1,  //
                    0, 0, 1, 0, 1,  //
                    0, 0, 1, 0, 1};
    CHECK(drawn(ring, found, 5, 5, {0, 2}, 5, 5) == want);
}

void at_the_size_of_the_image() {
    // 8 and 0 resized to four pixels: 8, 6, 2, 0; the edge is at 6.4. To eight: 8, 8, 7, 5, ... A cell that
    // stays covers its pixels.
    CHECK(drawn({8, 0}, {1, 0}, 1, 2, {0, 1}, 1, 4) == Mask({1, 0, 0, 0}));
    CHECK(drawn({8, 0}, {1, 0}, 1, 2, {0, 7}, 1, 8) == Mask({1, 1, 1, 0, 0, 0, 0, 0}));
    CHECK(drawn({1, 1}, {0, 1}, 1, 2, {2, 3}, 2, 5) == Mask({0, 0, 0, 1, 1, 0, 0, 0, 1, 1}));
}

void log_nfa_by_hand() {
    // Three images: a region that is wider than its cell; two regions; none.
    const std::vector<float> cells{3,  -2, 1, 5, 4,   //
                                   -1, 7,  2, 9, -6,  //
                                   3,  2,  1, 2, 3},
        map{0, 8, 8, 0, 0,  //
            8, 0, 0, 6, 8,  //
            8, 8, 8, 8, 8};
    std::vector<float> out(15);
    for (const int threads : {1, 3}) {
        uflow::outline_log_nfa({cells.data(), 1, 5}, map.data(), {0, 2}, 3, 1, 5, threads, out.data());
        CHECK(out == std::vector<float>({3, -2, -2, 5, 4,   //
                                         -1, 7, 2, -6, -6,  //
                                         3, 2, 1, 2, 3}));
    }
    // Resized, -4 and 2 would be below 0 on the first two of four pixels, -4 and -2.5: only the outline is.
    const std::vector<float> pair{-4, 2}, strong{8, 0};
    out.resize(4);
    uflow::outline_log_nfa({pair.data(), 1, 2}, strong.data(), {0, 7}, 1, 1, 4, 1, out.data());
    CHECK(out == std::vector<float>({-4, 0, 0.5, 2}));
    // A region that covers no cell that was found has the image's lowest too: three pixels see cells 0, 2
    // and 4.
    const std::vector<float> ends{-3, 5, 5, 5, 5, -2}, high{8, 8, 0, 0, 8, 8};
    out.resize(3);
    uflow::outline_log_nfa({ends.data(), 1, 6}, high.data(), {0, 7}, 1, 1, 3, 1, out.data());
    CHECK(out == std::vector<float>({-3, 5, -3}));
    // The region that decided is an echo of the other, which takes its value.
    const std::vector<float> two{-9, 4, 4, 4, 4, -2}, echo{1, 0, 0, 0, 0, 8};
    out.resize(6);
    uflow::outline_log_nfa({two.data(), 1, 6}, echo.data(), {0, 7}, 1, 1, 6, 1, out.data());
    CHECK(out == std::vector<float>({0, 4, 4, 4, 4, -9}));
    // Nothing found: resized to two pixels, the 1 is lost, and comes back.
    const std::vector<float> quiet{4, 1, 4, 4};
    uflow::outline_log_nfa({quiet.data(), 1, 4}, map.data(), {0, 7}, 1, 1, 2, 1, out.data());
    CHECK(out[0] == 1.0f && out[1] == 2.5f);  // 2.5 and 4, less 1.5
}

void threading() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(1.0f, 0.7f);
    const std::int64_t batch = 7;
    std::vector<float> cells(batch * 9 * 11), map(cells.size());
    for (float& value : cells) value = normal(random);
    for (float& value : map) value = normal(random);
    uflow::OutlineWorkspace kept;
    std::vector<float> one(batch * 30 * 25), many(one.size());
    const uflow::Maps maps{cells.data(), 9, 11};
    uflow::outline_log_nfa(maps, map.data(), {0.9, 1.8}, batch, 30, 25, 1, one.data());
    for (const int threads : {0, 1, 2, 50}) {
        std::fill(many.begin(), many.end(), 99.0f);
        uflow::outline_log_nfa(maps, map.data(), {0.9, 1.8}, batch, 30, 25, threads, many.data(), &kept);
        CHECK(one == many);
    }
}

}  // namespace

int main() {
    outlines_by_hand();
    brighter_images();
    holes();
    at_the_size_of_the_image();
    log_nfa_by_hand();
    threading();
    return uflow_test::result();
}
