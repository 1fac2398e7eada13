// A threshold for the anomaly maps of any model with the C++ core alone: good maps and new ones in, log10 NFA
// out.
//   maps LOG_NFA OUT_HEIGHT OUT_WIDTH  ALPHA HEIGHT WIDTH GOOD NEW
// GOOD, NEW: files of one map of HEIGHT x WIDTH after the other as raw float32, in numpy
// maps.astype("float32").tofile("good.f32"). LOG_NFA, the file to write, holds OUT_HEIGHT x OUT_WIDTH for
// each new map, detected where below 0. A line each is printed.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <uflow/map_threshold.hpp>

int side(const std::string& text) {
    if (const int value = std::atoi(text.c_str()); value > 0 && value < 10000) return value;
    throw std::runtime_error("not a size from 1 to 9999: " + text);
}

std::vector<float> read(const std::string& path, std::size_t cells) {
    std::ifstream stream(path, std::ios::binary);
    const std::string file{std::istreambuf_iterator<char>(stream), {}};
    if (file.empty() || file.size() % (cells * sizeof(float)))
        throw std::runtime_error(path + " is not a file of maps of " + std::to_string(cells) +
                                 " float32 values");
    std::vector<float> values(file.size() / sizeof(float));
    std::copy(file.begin(), file.end(), reinterpret_cast<char*>(values.data()));
    if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); }))
        throw std::runtime_error(path + " holds a value that is not finite");
    return values;
}

int main(int argc, char** argv) try {
    if (argc != 9)
        throw std::runtime_error("usage: maps LOG_NFA OUT_HEIGHT OUT_WIDTH  ALPHA HEIGHT WIDTH GOOD NEW");
    const int out_height = side(argv[2]), out_width = side(argv[3]), height = side(argv[5]),
              width = side(argv[6]);
    const std::size_t cells = std::size_t(height) * width, pixels = std::size_t(out_height) * out_width;
    const std::vector<float> good = read(argv[7], cells), maps = read(argv[8], cells);

    std::vector<uflow::Maps> images;
    for (std::size_t i = 0; i < good.size(); i += cells) images.push_back({good.data() + i, height, width});
    const uflow::MapThreshold threshold = uflow::learn_map_threshold(images, std::atof(argv[4]));

    const std::size_t batch = maps.size() / cells;
    std::vector<float> log_nfa(batch * pixels);
    uflow::judge_maps(threshold, {maps.data(), height, width}, std::int64_t(batch), out_height, out_width,
                      /*threads=*/0, log_nfa.data());

    std::ofstream file(argv[1], std::ios::binary);
    const auto bytes = std::streamsize(log_nfa.size() * sizeof(float));
    if (!file.write(reinterpret_cast<const char*>(log_nfa.data()), bytes).flush())
        throw std::runtime_error("cannot write " + std::string(argv[1]));
    for (std::size_t i = 0; i < batch; ++i) {
        const float *first = log_nfa.data() + i * pixels, *last = first + pixels;
        const float lowest = *std::min_element(first, last);
        const auto detected = std::count_if(first, last, [](float value) { return value < 0; });
        std::printf("p-value %.6g, lowest log10 NFA %.6g, %d pixels\n", threshold.p_value(double(lowest)),
                    double(lowest), int(detected));
    }
} catch (const std::exception& error) {
    return std::fprintf(stderr, "maps: %s\n", error.what()), 2;
}
