// Maps resized as torch.nn.functional.interpolate does, a row at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <vector>

#include "uflow/buffer.hpp"
#include "uflow/lanes.hpp"
#include "uflow/parallel.hpp"

#ifdef UFLOW_AVX2
#include <immintrin.h>
#endif

namespace uflow {

// Along each axis, every output is a weighted sum of Taps neighbouring inputs (the border's again beyond it).
// Bilinear: 2 taps, align_corners=False. Bicubic: 4 taps, align_corners=True, Keys' kernel with A = -0.75.
template <int Taps>
struct ResizeAxis {
    static_assert(Taps == 2 || Taps == 4, "bilinear or bicubic");
    static constexpr int before = Taps / 2 - 1, after = Taps / 2;  // inputs beyond the border
    std::vector<std::int32_t> index;                               // of the first tap, where `before` is 0
    std::vector<float> weight;                                     // Taps per output

    ResizeAxis(std::int32_t in, std::int32_t out) : index(std::size_t(out)), weight(std::size_t(out) * Taps) {
        float* at_weight = weight.data();
        const double step = Taps == 2 ? double(in) / double(out)
                            : out > 1 ? double(in - 1) / double(out - 1)
                                      : 0.0;
        for (std::int32_t i = 0; i < out; ++i) {
            const double at = Taps == 2 ? std::max(0.0, (i + 0.5) * step - 0.5) : i * step;
            index[std::size_t(i)] = std::min(std::int32_t(at), in - 1);
            const double t = at - std::int32_t(at);
            for (int tap = 0; tap < Taps; ++tap) *at_weight++ = float(kernel(std::fabs(t - (tap - before))));
        }
    }

    static double kernel(double x) noexcept {
        constexpr double a = -0.75;
        if constexpr (Taps == 2) return 1.0 - x;
        return x <= 1.0 ? ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
                        : ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a;
    }
};

// Rows of the map stretched to the output's width, of which Taps make an output row: kept until they are not
// needed any more, since going down the output the same ones serve again and again.
template <int Taps>
struct ResizeLines {
    Buffer memory;  // float: Taps rows, and a row of the map with what is beyond its border
    const float* map;
    std::int32_t held[Taps];  // which row of the map a line holds
    const float* line[Taps];  // for the current output row
};

namespace detail {

// line[i] = the sum of Taps weights times the values from at[i] on; the weights of all first taps come first,
// then those of all second ones. Of `from`, 8 values beyond the last one taken may be read.
template <int Taps>
UFLOW_INLINE void stretch_from(std::int32_t i, const float* from, const std::int32_t* at, const float* w,
                               std::int32_t count, float* line) noexcept {
    for (; i < count; ++i) {
        const float *value = from + at[i], *weight = w + i;
        const std::ptrdiff_t n = count;
        if constexpr (Taps == 4)
            line[i] = (weight[0] * value[0] + weight[2 * n] * value[2]) +
                      (weight[n] * value[1] + weight[3 * n] * value[3]);
        else
            line[i] = weight[0] * value[0] + weight[n] * value[1];
    }
}

#ifdef UFLOW_AVX2
// Eight outputs at a time. Where the map grows, they come from eight neighbouring values, and a permutation
// of these is each tap. No fused multiply-adds: every processor rounds alike.
template <int Taps>
UFLOW_AVX2 void stretch_avx2(const float* from, const std::int32_t* at, const float* w, std::int32_t count,
                             float* line) noexcept {
    std::int32_t i = 0;
    for (; i + 8 <= count && at[i + 7] - at[i] <= 8 - Taps; i += 8) {
        const __m256 values = _mm256_loadu_ps(from + at[i]);
        __m256i lane = _mm256_sub_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + i)),
                                        _mm256_set1_epi32(at[i]));
        __m256 term[Taps];
        for (int tap = 0; tap < Taps; ++tap) {
            term[tap] = _mm256_mul_ps(_mm256_loadu_ps(w + std::ptrdiff_t(tap) * count + i),
                                      _mm256_permutevar8x32_ps(values, lane));
            lane = _mm256_add_epi32(lane, _mm256_set1_epi32(1));
        }
        if constexpr (Taps == 4)
            _mm256_storeu_ps(line + i,
                             _mm256_add_ps(_mm256_add_ps(term[0], term[2]), _mm256_add_ps(term[1], term[3])));
        else
            _mm256_storeu_ps(line + i, _mm256_add_ps(term[0], term[1]));
    }
    stretch_from<Taps>(i, from, at, w, count, line);
}
#endif
template <int Taps>
void stretch(const float* from, const std::int32_t* at, const float* w, std::int32_t count,
             float* line) noexcept {
    in_widest_lanes<Rounding::alike>([=](auto lanes) UFLOW_INLINED {
        (void)lanes;
#ifdef UFLOW_AVX2
        if constexpr (std::is_same_v<decltype(lanes), Lanes<Double4>>)
            return stretch_avx2<Taps>(from, at, w, count, line);
#endif
        stretch_from<Taps>(0, from, at, w, count, line);
    });
}

}  // namespace detail

template <int Taps>
struct Resize {
    using Axis = ResizeAxis<Taps>;
    std::int32_t height, width, out_height, out_width;
    Axis rows, cols;
    std::vector<float> col_weight;  // of all first taps, then of all second ones, ...

    Resize(std::int32_t height, std::int32_t width, std::int32_t out_height, std::int32_t out_width)
        : height(height),
          width(width),
          out_height(out_height),
          out_width(out_width),
          rows(height, out_height),
          cols(height == width && out_height == out_width ? rows : Axis(width, out_width)),
          col_weight(cols.weight.size()) {
        for (std::int32_t i = 0; i < out_width; ++i)
            for (int tap = 0; tap < Taps; ++tap)
                col_weight[std::size_t(tap) * std::size_t(out_width) + std::size_t(i)] =
                    cols.weight[std::size_t(i) * Taps + std::size_t(tap)];
    }

    void start(const float* map, ResizeLines<Taps>& lines) const {
        lines.map = map;
        lines.memory.template fit<float>(std::size_t(Taps) * std::size_t(out_width) + std::size_t(width) +
                                         Taps + 8);
        std::fill(lines.held, lines.held + Taps, -1);
    }

    // Fills in lines.line for an output row; its values are sum over taps of weight(out_row)[tap] *
    // line[tap][col].
    void prepare(std::int32_t out_row, ResizeLines<Taps>& lines) const {
        float* memory = lines.memory.template as<float>();
        for (int tap = 0; tap < Taps; ++tap) {
            const std::int32_t row = std::clamp(rows.index[std::size_t(out_row)] + tap - Axis::before,
                                                std::int32_t(0), height - 1);
            const int slot = row % Taps;  // the rows of one output row follow one another
            float* line = memory + std::size_t(slot) * std::size_t(out_width);
            lines.line[tap] = line;
            if (lines.held[slot] == row) continue;
            lines.held[slot] = row;
            const float* from = lines.map + std::size_t(row) * std::size_t(width);
            float* padded = memory + std::size_t(Taps) * std::size_t(out_width);
            std::fill_n(padded, Axis::before, from[0]);
            std::copy_n(from, width, padded + Axis::before);
            std::fill_n(padded + Axis::before + width, Axis::after, from[width - 1]);
            detail::stretch<Taps>(padded, cols.index.data(), col_weight.data(), out_width, line);
        }
    }
    const float* weight(std::int32_t out_row) const {
        return rows.weight.data() + std::size_t(out_row) * Taps;
    }
};

// Each scale (anything with a height and a width) to one grid.
template <int Taps, class Scale>
std::vector<Resize<Taps>> resize_to(std::int32_t out_height, std::int32_t out_width,
                                    const std::vector<Scale>& scales) {
    std::vector<Resize<Taps>> resize;
    resize.reserve(scales.size());
    for (const Scale& scale : scales) resize.emplace_back(scale.height, scale.width, out_height, out_width);
    return resize;
}

// The maps of one image, which `lines` have been started with, resized bilinearly to one grid and joined
// there: out = value_of(0)(first map), then out = join(out, value_of(l)(next map)).
template <class ValueOf, class Join>
void join_scales(const std::vector<Resize<2>>& resize, std::vector<ResizeLines<2>>& lines, float* out,
                 ValueOf value_of, Join join) {
    const std::int32_t width = resize[0].out_width, height = resize[0].out_height;
    const std::size_t scales = resize.size();
    for (std::int32_t row = 0; row < height; ++row, out += width) {
        if (row % 64 == 0) pause();
        for (std::size_t l = 0; l < scales; ++l) {
            ResizeLines<2>& here = lines[l];
            resize[l].prepare(row, here);
            const float *above = here.line[0], *below = here.line[1];
            const float up = resize[l].weight(row)[0], down = resize[l].weight(row)[1];
            const auto value = value_of(l);
            if (l == 0)
                for (std::int32_t col = 0; col < width; ++col)
                    out[col] = value(up * above[col] + down * below[col]);
            else
                for (std::int32_t col = 0; col < width; ++col)
                    out[col] = join(out[col], value(up * above[col] + down * below[col]));
        }
    }
}

// A batch of maps (batch, height, width) resized bilinearly to (batch, out_height, out_width).
inline void resize_bilinear(const float* maps, std::int64_t batch, std::int32_t height, std::int32_t width,
                            std::int32_t out_height, std::int32_t out_width, int threads, float* result) {
    const std::vector<Resize<2>> resize{{height, width, out_height, out_width}};
    const std::size_t cells = std::size_t(height) * std::size_t(width);
    const std::size_t out_cells = std::size_t(out_height) * std::size_t(out_width);
    std::vector<ResizeLines<2>>* none = nullptr;
    for_each_image(batch, threads, none, [&](std::vector<ResizeLines<2>>& lines, std::int64_t image) {
        lines.resize(1);
        resize[0].start(maps + std::size_t(image) * cells, lines[0]);
        join_scales(
            resize, lines, result + std::size_t(image) * out_cells,
            [](std::size_t) { return [](float value) { return value; }; }, std::plus<>());
    });
}

}  // namespace uflow
