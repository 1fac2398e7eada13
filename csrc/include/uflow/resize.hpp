// Maps resized as torch.nn.functional.interpolate does, a row at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "uflow/buffer.hpp"
#include "uflow/parallel.hpp"

namespace uflow {

// Along each axis, every output is a weighted sum of Taps neighbouring inputs (indices clamped at the
// border). Bilinear: 2 taps, align_corners=False. Bicubic: 4 taps, align_corners=True, Keys' kernel with A =
// -0.75.
template <int Taps, class Real>
struct ResizeAxis {
    static_assert(Taps == 2 || Taps == 4, "bilinear or bicubic");
    std::vector<std::int32_t> index;  // Taps per output
    std::vector<Real> weight;

    ResizeAxis(std::int32_t in, std::int32_t out)
        : index(std::size_t(out) * Taps), weight(std::size_t(out) * Taps) {
        std::int32_t* at_index = index.data();
        Real* at_weight = weight.data();
        const double step = Taps == 2 ? double(in) / double(out)
                            : out > 1 ? double(in - 1) / double(out - 1)
                                      : 0.0;
        for (std::int32_t i = 0; i < out; ++i) {
            const double at = Taps == 2 ? std::max(0.0, (i + 0.5) * step - 0.5) : i * step;
            const auto below = std::int32_t(at);
            const double t = at - below;
            for (int tap = 0; tap < Taps; ++tap) {
                const int offset = tap - (Taps / 2 - 1);
                *at_index++ = std::clamp(below + offset, std::int32_t(0), in - 1);
                *at_weight++ = Real(kernel(std::fabs(t - offset)));
            }
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
template <int Taps, class Real>
struct ResizeLines {
    Buffer memory;            // Real, Taps rows
    std::int32_t held[Taps];  // which row of the map a line holds
    const Real* line[Taps];   // for the current output row
};

template <int Taps, class Real>
struct Resize {
    std::int32_t width, out_width;
    ResizeAxis<Taps, Real> rows, cols;

    Resize(std::int32_t height, std::int32_t width, std::int32_t out_height, std::int32_t out_width)
        : width(width), out_width(out_width), rows(height, out_height), cols(width, out_width) {}

    void start(ResizeLines<Taps, Real>& lines) const {
        lines.memory.template fit<Real>(std::size_t(Taps) * std::size_t(out_width));
        std::fill(lines.held, lines.held + Taps, -1);
    }

    // Fills in lines.line for an output row; its values are sum over taps of weight(out_row)[tap] *
    // line[tap][col].
    void prepare(const Real* map, std::int32_t out_row, ResizeLines<Taps, Real>& lines) const {
        for (int tap = 0; tap < Taps; ++tap) {
            const std::int32_t row = rows.index[std::size_t(out_row) * Taps + std::size_t(tap)];
            const int slot = row % Taps;  // the rows of one output row follow one another
            Real* line = lines.memory.template as<Real>() + std::size_t(slot) * std::size_t(out_width);
            lines.line[tap] = line;
            if (lines.held[slot] == row) continue;
            lines.held[slot] = row;
            const Real* from = map + std::size_t(row) * std::size_t(width);
            const std::int32_t* at = cols.index.data();
            const Real* w = cols.weight.data();
            for (std::int32_t col = 0; col < out_width; ++col, at += Taps, w += Taps) {
                Real sum = w[0] * from[at[0]];
                for (int k = 1; k < Taps; ++k) sum += w[k] * from[at[k]];
                line[col] = sum;
            }
        }
    }
    const Real* weight(std::int32_t out_row) const {
        return rows.weight.data() + std::size_t(out_row) * Taps;
    }
};

// One row of a map resized bilinearly: row[col] is its value, as long as the lines are not filled for
// another.
template <class Real>
struct ResizedRow {
    const Real *above, *below;
    Real up, down;
    Real operator[](std::int32_t col) const noexcept { return up * above[col] + down * below[col]; }
};
template <class Real>
ResizedRow<Real> resized_row(const Resize<2, Real>& resize, const Real* map, std::int32_t out_row,
                             ResizeLines<2, Real>& lines) {
    resize.prepare(map, out_row, lines);
    return {lines.line[0], lines.line[1], resize.weight(out_row)[0], resize.weight(out_row)[1]};
}

// A batch of maps (batch, height, width) resized bilinearly to (batch, out_height, out_width).
inline void resize_bilinear(const float* maps, std::int64_t batch, std::int32_t height, std::int32_t width,
                            std::int32_t out_height, std::int32_t out_width, int threads, float* result) {
    const Resize<2, float> resize(height, width, out_height, out_width);
    Crew<ResizeLines<2, float>> crew(workers(batch, threads), nullptr);
    parallel_for(batch, threads, [&](int worker, std::int64_t image) {
        ResizeLines<2, float>& lines = crew[worker];
        resize.start(lines);
        const float* map = maps + std::size_t(image) * std::size_t(height) * std::size_t(width);
        float* out = result + std::size_t(image) * std::size_t(out_height) * std::size_t(out_width);
        for (std::int32_t row = 0; row < out_height; ++row, out += out_width) {
            const auto resized = resized_row(resize, map, row, lines);
            for (std::int32_t col = 0; col < out_width; ++col) out[col] = resized[col];
        }
    });
}

}  // namespace uflow
