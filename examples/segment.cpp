// Segments one image with the C++ core alone: energies in, log10 NFA out, its regions printed.
//   segment MAP SIZE  ENERGY HEIGHT WIDTH CHANNELS  [ENERGY HEIGHT WIDTH CHANNELS ...]
// ENERGY, a file per scale, finest first: HEIGHT x WIDTH sums of z^2 over CHANNELS as raw float32, in numpy
// energy.astype("float32").tofile("energy.f32"). MAP is SIZE x SIZE, numpy.fromfile("map.f32", "float32").
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <uflow/segment.hpp>

int positive(const std::string& text) {
    if (const int value = std::atoi(text.c_str()); value > 0 && value < 10000) return value;
    throw std::runtime_error("not a size from 1 to 9999: " + text);
}

std::vector<float> read(const std::string& path, int count) {
    std::vector<float> values(count + 1);  // one spare, which the file must not fill
    std::ifstream file(path, std::ios::binary);
    file.read(reinterpret_cast<char*>(values.data()), values.size() * sizeof(float));
    if (file.gcount() != std::streamsize(count * sizeof(float)))
        throw std::runtime_error(path + " is not a file of " + std::to_string(count) + " float32 values");
    return values;
}

int main(int argc, char** argv) try {
    if (argc < 7 || argc % 4 != 3)
        throw std::runtime_error("usage: segment MAP SIZE  ENERGY HEIGHT WIDTH CHANNELS  [ENERGY ...]");
    const int size = positive(argv[2]), pixels = size * size;
    std::vector<std::vector<float>> energies;
    std::vector<uflow::Scale> scales;
    for (char** arg = argv + 3; arg < argv + argc; arg += 4) {
        const int height = positive(arg[1]), width = positive(arg[2]), channels = positive(arg[3]);
        const uflow::Background normal{1.0, double(channels), 1.0, double(channels)};  // the paper's
        energies.push_back(read(arg[0], height * width));
        scales.push_back({energies.back().data(), nullptr, height, width, normal});
    }
    std::vector<float> map(pixels);
    uflow::log_nfa(scales, 1, size, size, uflow::Tail::chernoff, false, 1, map.data());
    std::ofstream file(argv[1], std::ios::binary);
    if (!file.write(reinterpret_cast<char*>(map.data()), pixels * sizeof(float)).flush())
        throw std::runtime_error("cannot write the map");
    int regions = 0;
    for (int i = 0, area = 0; i < pixels; ++i, area = 0) {  // flood each region, raising it to 0
        std::vector<std::array<int, 2>> open{{i / size, i % size}};
        float lowest = 0.0f;
        while (!open.empty()) {
            const auto [row, col] = open.back();
            open.pop_back();
            if (row < 0 || col < 0 || row == size || col == size || map[row * size + col] >= 0.0f) continue;
            lowest = std::min(lowest, std::exchange(map[row * size + col], 0.0f)), ++area;
            open.insert(open.end(), {{row - 1, col}, {row + 1, col}, {row, col - 1}, {row, col + 1}});
        }
        if (area) std::printf("region %d: %d pixels, lowest log10 NFA %.6g\n", ++regions, area, lowest);
    }
    std::printf("%d regions\n", regions);
} catch (const std::exception& error) {
    return std::fprintf(stderr, "segment: %s\n", error.what()), 2;
}
