// Colours: the means of parts by hand, the likeness against the normal laws it stands for, and outlines that
// follow it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.hpp"
#include "uflow/outline.hpp"

namespace {

using Mask = std::vector<std::uint8_t>;

void means_by_hand() {
    // Two rows of three pixels in parts of one and of two columns; then of the pixels themselves.
    const std::vector<std::uint8_t> pixels{0, 10, 20, 1, 2, 3, 255, 0, 9,  //
                                           4, 30, 60, 5, 4, 1, 255, 2, 3};
    std::vector<std::uint32_t> sums;
    std::vector<float> means;
    uflow::detail::colour_means({pixels.data(), 2, 3}, 1, 2, sums, means);
    CHECK(means == std::vector<float>({2, 20, 40, 129, 2, 4}));
    uflow::detail::colour_means({pixels.data(), 2, 3}, 2, 3, sums, means);
    CHECK(std::equal(means.begin(), means.end(), pixels.begin(), pixels.end()));
}

// Twice the probability, less 1, by Bayes's rule on densities, of a background whose channels are
// independent. A region is of one of the defects, each of the same area.
double by_densities(const double* colour, const std::vector<const double*>& defects, const double* background,
                    const double* variances) {
    const auto density = [&](const double* mean) {
        double sum = 0.0;
        for (int c = 0; c < 3; ++c) sum += (colour[c] - mean[c]) * (colour[c] - mean[c]) / variances[c];
        return std::exp(-sum / 2);
    };
    double regions = 0.0;
    for (const double* defect : defects) regions += density(defect) / double(defects.size());
    return 2 * regions / (regions + density(background)) - 1;
}

// Samples in one row, so that what stands side by side is one region. Outside: all eight corners of a box, so
// that channels do not covary, with these variances; the camera's noise is added.
const double background[] = {100, 90, 80}, box_variances[] = {36 + 4, 16 + 4, 64 + 4};

struct Row {
    std::vector<float> means, result;
    Mask regions, outside;
    std::vector<uflow::Run> runs;
    uflow::detail::Hearts hearts;

    Row() {
        for (const int a : {-1, 1})
            for (const int b : {-1, 1})
                for (const int c : {-1, 1}) add(100 + 6 * a, 90 + 4 * b, 80 + 8 * c, 0, 1);
    }
    void add(double red, double green, double blue, std::uint8_t region, std::uint8_t out = 0) {
        for (const double value : {red, green, blue}) means.push_back(float(value));
        regions.push_back(region);
        outside.push_back(out);
    }
    std::vector<double> colour(std::size_t i) const {
        return {means.begin() + std::ptrdiff_t(3 * i), means.begin() + std::ptrdiff_t(3 * i + 3)};
    }
    void look() {
        uflow::detail::likeness(means, regions, outside, 1, std::int32_t(regions.size()), runs, hearts,
                                result);
    }
};

void likeness_is_bayes() {
    // A defect so far from the surroundings that all samples surely are of it.
    const double defect[] = {160, 60, 10};
    Row row;
    row.add(159, 60, 9, 2);
    row.add(161, 60, 11, 2);
    for (const double share : {1.5, 0.0, 0.48, 0.49, 0.495, 0.505, 0.51, 0.52, 1.0})
        row.add(100 + 60 * share, 90 - 30 * share, 80 - 70 * share, 0);
    row.look();
    for (std::size_t i = 0; i < row.result.size(); ++i) {
        if (row.outside[i])
            CHECK(row.result[i] == -1.0f);
        else
            CHECK(std::fabs(row.result[i] -
                            by_densities(row.colour(i).data(), {defect}, background, box_variances)) < 1e-6);
    }
    // Nothing to compare with: no opinion.
    Row none = row, nowhere = row;
    none.regions.assign(row.regions.size(), 0);
    none.look();
    CHECK(std::all_of(none.result.begin(), none.result.end(), [](float value) { return value == 0.0f; }));
    nowhere.outside.assign(row.regions.size(), 0);
    nowhere.look();
    CHECK(nowhere.result == none.result);
    // Apart, they are two regions of two colours.
    std::swap(row.regions[9], row.regions[10]);
    const std::vector<double> first = row.colour(8), other = row.colour(10);
    row.look();
    CHECK(row.hearts.of_region.size() == 2);
    for (std::size_t i = 8; i < row.regions.size(); ++i)
        CHECK(std::fabs(row.result[i] - by_densities(row.colour(i).data(), {first.data(), other.data()},
                                                     background, box_variances)) < 1e-6);
    // A region without a heart has no colour; one that holds two hearts has one.
    const std::vector<float> apart = row.result;
    row.regions[13] = 1;
    row.look();
    CHECK(row.result == apart);
    row.regions[9] = 1;
    row.look();
    CHECK(row.hearts.of_region.size() == 1);
    CHECK(row.hearts.of_region[0].area == 2);
    // However far apart colours are, the answer is a number.
    std::fill_n(row.means.begin() + 24, 3, 1e6f);
    std::fill_n(row.means.end() - 3, 3, -1e6f);
    row.look();
    CHECK(row.result[8] == 1.0f);
    CHECK(std::fabs(row.result.back()) == 1.0f);
}

// A defect narrower than the blur: most of the heart of its region shows the surroundings.
void hearts_show_surroundings_too() {
    const double defect[] = {125, 80, 50};
    for (const int defective : {2, 3, 9}) {
        Row row;
        for (int i = 0; i < defective; ++i) row.add(defect[0], defect[1], defect[2], 2);
        for (int repeat = 0; repeat < 3; ++repeat)
            for (std::size_t corner = 0; corner < 8; ++corner) {
                const std::vector<double> colour = row.colour(corner);
                row.add(colour[0], colour[1], colour[2], 2);
            }
        row.look();
        CHECK(std::fabs(row.hearts.of_region[0].defective - defective) < 0.25);
        for (std::size_t i = 8; i < row.result.size(); ++i) {
            const double pure = by_densities(row.colour(i).data(), {defect}, background, box_variances);
            CHECK(std::fabs(row.result[i] - pure) < 0.02);
        }
    }
    // Deep in a heart all is of the defect, whatever its colour: here as much light as dark.
    Row uneven;
    for (const double step : {-30, 30, -30, 30}) uneven.add(100 + step, 90 + step, 80 + step, 3);
    for (const double step : {-30, 30, 0}) uneven.add(100 + step, 90 + step, 80 + step, 0);
    uneven.look();
    CHECK_CLOSE(uneven.hearts.of_region[0].defective, 4.0, 1e-12);
    for (std::size_t i = 8; i < uneven.result.size(); ++i) CHECK(std::fabs(uneven.result[i]) < 1e-6);
    // What shows nothing but the surroundings looks like neither.
    Row row;
    for (std::size_t corner = 0; corner < 8; ++corner) {
        const std::vector<double> colour = row.colour(corner);
        row.add(colour[0], colour[1], colour[2], 2);
    }
    row.look();
    for (std::size_t i = 8; i < row.result.size(); ++i) CHECK(std::fabs(row.result[i]) < 1e-6);
}

void the_largest_sixteen_regions_count() {
    // Twenty regions with a gap after each, the last two of them of two samples.
    Row row;
    for (int region = 0; region < 20; ++region) {
        const float colour = float(5 * region);
        for (int i = 0; i < (region < 18 ? 1 : 2); ++i) row.add(colour, colour, colour, 2);
        row.add(100, 100, 100, 0);
    }
    row.look();
    CHECK(row.hearts.of_region.size() == 16);
    // The two large ones, and of those that are alike the first.
    for (std::size_t i = 0; i < 16; ++i) {
        const uflow::detail::Heart& heart = row.hearts.of_region[i];
        const float colour = row.means[3 * row.hearts.samples[heart.first]];
        CHECK(colour == float(5 * (i < 2 ? 18 + i : i - 2)));
    }
}

void solving() {
    const std::array<uflow::detail::Colour, 3> a{{{4, 0, 0}, {2, 10, 0}, {-2, 2, 9}}};  // the lower half
    const uflow::detail::Colour x = uflow::detail::solve(a, {2, 28, 29});
    CHECK_CLOSE(x[0], 1.0, 1e-12);
    CHECK_CLOSE(x[1], 2.0, 1e-12);
    CHECK_CLOSE(x[2], 3.0, 1e-12);
}

// A map of 16 x 16 cells that has a wide blurred hump in the middle, and the cells of its top.
struct Hump {
    std::vector<float> map = std::vector<float>(256);
    Mask found = Mask(256);
    Hump() {
        for (int i = 0; i < 256; ++i) {
            const double y = i / 16 - 7.5, x = i % 16 - 7.5;
            map[std::size_t(i)] = float(10 * std::exp(-(x * x + y * y) / 12));
            found[std::size_t(i)] = map[std::size_t(i)] > 7;
        }
    }
};

Mask drawn(const Hump& hump, const uflow::Image* image, int side, const std::uint8_t* counted = nullptr) {
    uflow::OutlineWorkspace work;
    Mask mask(std::size_t(side * side), 9);
    uflow::draw_regions(hump.map.data(), hump.found.data(), 16, 16, {0, 1}, side, side, work, mask.data(),
                        {counted, image});
    return mask;
}

// A picture of 64 x 64 pixels: a disc of some radius, of another colour.
std::vector<std::uint8_t> disc(double radius, std::uint8_t bright, unsigned noise_seed = 1) {
    std::mt19937 random(noise_seed);
    std::vector<std::uint8_t> pixels;
    for (int i = 0; i < 64 * 64; ++i) {
        const double y = i / 64 - 31.5, x = i % 64 - 31.5;
        for (int c = 0; c < 3; ++c)
            pixels.push_back(
                std::uint8_t((x * x + y * y < radius * radius ? bright : 100) + int(random() % 9)));
    }
    return pixels;
}

std::ptrdiff_t area(const Mask& mask) { return std::count(mask.begin(), mask.end(), 1); }

void erosion() {
    // A plus of five, a block that reaches a corner, whose border does not count, and a row too thin.
    Mask mask{1, 1, 1, 0, 0, 0, 1, 0,  //
              1, 1, 1, 0, 0, 1, 1, 1,  //
              1, 1, 1, 0, 0, 0, 1, 0,  //
              0, 0, 0, 0, 0, 0, 0, 0};
    Mask rows = mask;
    uflow::detail::erode_along(rows.data(), 4, 8, 8, 1, 1);
    CHECK(rows == Mask({1, 1, 0, 0, 0, 0, 0, 0,  //
                        1, 1, 0, 0, 0, 0, 1, 1,  //
                        1, 1, 0, 0, 0, 0, 0, 0,  //
                        0, 0, 0, 0, 0, 0, 0, 0}));
    uflow::detail::erode_along(mask.data(), 8, 1, 4, 8, 2);
    CHECK(mask == Mask({1, 1, 1, 0, 0, 0, 1, 0,  //
                        0, 0, 0, 0, 0, 0, 0, 0,  //
                        0, 0, 0, 0, 0, 0, 0, 0,  //
                        0, 0, 0, 0, 0, 0, 0, 0}));
}

void outlines_follow_colours() {
    const Hump hump;
    const Mask alone = drawn(hump, nullptr, 64);
    for (const std::uint8_t bright : {std::uint8_t(110), std::uint8_t(120), std::uint8_t(160)})
        for (const double radius : {7.0, 9.0, 11.0}) {
            const auto pixels = disc(radius, bright);
            const uflow::Image image{pixels.data(), 64, 64};
            const double wanted = 3.14159 * radius * radius;
            CHECK(std::fabs(double(area(drawn(hump, &image, 64))) - wanted) < 0.02 * wanted);
            CHECK(std::fabs(double(area(drawn(hump, &image, 128))) / 4 - wanted) < 0.2 * wanted);
        }
    // Of what is smaller than the top of the hump, 104 pixels, no more than that is drawn if its colour is
    // clear, and little more if it is not.
    const struct {
        double radius;
        std::uint8_t bright;
        std::ptrdiff_t most;
    } small[] = {{3, 160, 105}, {4, 160, 105}, {5, 160, 105}, {4, 120, 105}, {5, 120, 105}, {5, 110, 125}};
    for (const auto& spot : small) {
        const auto pixels = disc(spot.radius, spot.bright);
        const uflow::Image image{pixels.data(), 64, 64};
        CHECK(area(drawn(hump, &image, 64)) <= spot.most);
    }
    // Only the surroundings count: whatever is far away, the outline is the same.
    auto far = disc(9, 160);
    const uflow::Image near_only{far.data(), 64, 64};
    const Mask before = drawn(hump, &near_only, 64);
    std::fill_n(far.begin(), 3 * 64 * 6, std::uint8_t(160));
    CHECK(drawn(hump, &near_only, 64) == before);
    // Nothing to see: the map decides alone, but for the little that noise says.
    const auto even = disc(0, 100);
    const uflow::Image plain{even.data(), 64, 64};
    CHECK(std::abs(area(drawn(hump, &plain, 64)) - area(alone)) < area(alone) / 10);
    // Where no cell counts as background there is nothing to compare with.
    const auto pixels = disc(7, 160);
    const uflow::Image image{pixels.data(), 64, 64};
    const Mask none(256, 0), all(256, 1);
    CHECK(drawn(hump, &image, 64, none.data()) == drawn(hump, nullptr, 64, none.data()));
    CHECK(drawn(hump, &image, 64, all.data()) == drawn(hump, &image, 64));
}

// Two humps in one map, and two discs in one picture: the outline of each is what it would be alone.
void defects_of_two_colours() {
    const Hump hump;
    std::vector<float> map(2 * 256);
    Mask found(2 * 256);
    for (std::size_t i = 0; i < 256; ++i)
        for (const std::size_t side : {std::size_t(0), std::size_t(16)}) {
            map[i / 16 * 32 + side + i % 16] = hump.map[i];
            found[i / 16 * 32 + side + i % 16] = hump.found[i];
        }
    const auto light = disc(9, 200), dark = disc(7, 20, 2);
    std::vector<std::uint8_t> pixels;
    for (std::size_t row = 0; row < 64; ++row)
        for (const auto* half : {&light, &dark})
            pixels.insert(pixels.end(), half->begin() + std::ptrdiff_t(row * 192),
                          half->begin() + std::ptrdiff_t(row * 192 + 192));
    const uflow::Image image{pixels.data(), 64, 128};
    uflow::OutlineWorkspace work;
    Mask mask(64 * 128);
    uflow::draw_regions(map.data(), found.data(), 16, 32, {0, 1}, 64, 128, work, mask.data(),
                        {nullptr, &image});
    std::ptrdiff_t areas[2] = {};
    for (std::size_t i = 0; i < mask.size(); ++i) areas[i % 128 / 64] += mask[i];
    CHECK(std::fabs(double(areas[0]) - 3.14159 * 81) < 0.02 * 3.14159 * 81);
    CHECK(std::fabs(double(areas[1]) - 3.14159 * 49) < 0.02 * 3.14159 * 49);
}

void images_of_any_size() {
    const Hump hump;
    const std::vector<std::uint8_t> one{1, 2, 3};
    const uflow::Image smallest{one.data(), 1, 1};
    CHECK(area(drawn(hump, &smallest, 64)) > 0);
    std::vector<std::uint8_t> line(3 * 5000);
    for (std::size_t i = 0; i < line.size(); ++i)
        line[i] = std::uint8_t(i % 7 + (i > 7000 && i < 8000 ? 90 : 0));
    for (const uflow::Image image : {uflow::Image{line.data(), 1, 5000}, uflow::Image{line.data(), 5000, 1}})
        CHECK(area(drawn(hump, &image, 40)) > 0);
}

void batches_take_their_own_image() {
    const Hump hump;
    std::vector<float> cells(hump.map), maps(hump.map);
    for (float& value : cells) value = 7 - value;
    for (auto* values : {&cells, &maps})
        values->insert(values->end(), values->begin(), values->begin() + 256);
    const auto small = disc(7, 160), large = disc(11, 160);
    const uflow::Image images[] = {{small.data(), 64, 64}, {large.data(), 64, 64}};
    std::vector<float> out(2 * 64 * 64);
    for (const int threads : {1, 2}) {
        uflow::outline_log_nfa({cells.data(), 16, 16}, maps.data(), {0, 1}, 2, 64, 64, threads, out.data(),
                               nullptr, images);
        for (const int image : {0, 1}) {
            const float* own = out.data() + image * 64 * 64;
            Mask below(64 * 64);
            std::transform(own, own + 64 * 64, below.begin(), [](float value) { return value < 0; });
            CHECK(below == drawn(hump, images + image, 64));
        }
    }
}

}  // namespace

int main() {
    means_by_hand();
    likeness_is_bayes();
    hearts_show_surroundings_too();
    the_largest_sixteen_regions_count();
    solving();
    erosion();
    outlines_follow_colours();
    defects_of_two_colours();
    images_of_any_size();
    batches_take_their_own_image();
    return uflow_test::result();
}
