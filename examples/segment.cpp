// The paper's test of one image with the C++ core alone: energies in, log10 NFA out, its regions printed.
//   segment MAP SIZE  ENERGY HEIGHT WIDTH CHANNELS  [ENERGY HEIGHT WIDTH CHANNELS ...]
// ENERGY, a file per scale, finest first: HEIGHT x WIDTH sums of z^2 over CHANNELS as raw float32, in numpy
// energy.astype("float32").tofile("energy.f32"). MAP is SIZE x SIZE, numpy.fromfile("map.f32", "float32").
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <uflow/regions.hpp>
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
    std::vector<std::uint8_t> mask(pixels);
    std::transform(map.begin(), map.end(), mask.begin(), [](float value) { return value < 0.0f; });
    std::vector<uflow::Run> memory;
    const auto regions = uflow::regions(mask.data(), map.data(), map.data(), size, size, memory);
    for (const uflow::Region& r : regions)
        std::printf("%d pixels in rows %d to %d, columns %d to %d, lowest log10 NFA %.6g\n", int(r.area),
                    r.top, r.bottom - 1, r.left, r.right - 1, r.log_nfa);
    std::printf("%d regions\n", int(regions.size()));
} catch (const std::exception& error) {
    return std::fprintf(stderr, "segment: %s\n", error.what()), 2;
}
