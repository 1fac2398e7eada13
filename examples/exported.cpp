// The calibrated test of an exported model by the C++ core alone: energies in, log10 NFA out.
//   exported MAP HEIGHT WIDTH  SHIFT SCALE DOF AREA  SCALE DOF [SCALE DOF ...]  ENERGY [ENERGY ...]
// The numbers, from model.json by the line in docs/cpp.md: shift, joint background, background of each scale.
// ENERGY: a .npy file a scale, finest first, float32 (batch, h, w) or (h, w). MAP: the .npy file to write,
// float32 (batch, HEIGHT, WIDTH), detected where below 0.
#include <cstdio>
#include <fstream>
#include <iomanip>
#include <uflow/joint.hpp>

const std::string magic("\x93NUMPY\x01\0", 8);  // and version 1.0; then two bytes, the length of the header:
const char* header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d, %d), }";

uflow::Scale read(const std::string& path, uflow::Background normal, std::vector<float>& values, int& batch) {
    std::ifstream stream(path, std::ios::binary);
    const std::string file{std::istreambuf_iterator<char>(stream), {}};
    int side[4] = {1, 0, 0, 0}, sides = 0;  // a batch of 1 where the file has only (h, w)
    if (file.size() > 10 && file.compare(0, 8, magic) == 0)
        sides = std::sscanf(file.c_str() + 10, header, side + 1, side + 2, side + 3);
    const int* shape = side + std::max(sides - 2, 0);
    values.resize(std::size_t(shape[0]) * shape[1] * shape[2]);
    const std::size_t bytes = 4 * values.size();
    if (!bytes || file.size() != 10u + (unsigned char)file[8] + 256u * (unsigned char)file[9] + bytes)
        throw std::runtime_error(path + " is not a .npy file (1.0) of float32 (batch, h, w) or (h, w)");
    if (batch && batch != shape[0]) throw std::runtime_error(path + " is of another batch size");
    std::memcpy(values.data(), file.data() + file.size() - bytes, bytes);
    batch = shape[0];
    return {values.data(), nullptr, shape[1], shape[2], normal};
}

int main(int argc, char** argv) try {
    if (argc < 11 || argc % 3 != 2) throw std::runtime_error("usage: exported MAP HEIGHT WIDTH  SHIFT ...");
    const int count = (argc - 8) / 3;  // scales
    std::vector<double> n(argc - 2 - count);
    char text[118];
    for (std::size_t i = 0; i < n.size(); ++i)
        if (std::sscanf(argv[i + 2], "%lf%c", &n[i], text) != 1 || !(n[i] < 1e9 && (n[i] > 0 || i == 2)))
            throw std::runtime_error(std::string("not a number for its place: ") + argv[i + 2]);
    int batch = 0, height = int(n[0]), width = int(n[1]), detected = 0;
    std::vector<std::vector<float>> energies(count);
    std::vector<uflow::Scale> scales(count);
    for (int l = 0; l < count; ++l)
        scales[l] = read(argv[argc - count + l], {n[6 + 2 * l], n[7 + 2 * l]}, energies[l], batch);
    std::vector<float> joint(energies[0].size()), map(std::size_t(batch) * height * width);
    uflow::joint_energy(scales, batch, 0, joint.data());
    if (!std::all_of(joint.begin(), joint.end(), [](float e) { return std::isfinite(e); }))
        throw std::runtime_error("an energy is not finite");
    scales = {{joint.data(), nullptr, scales[0].height, scales[0].width, {n[3], n[4], n[5]}}};
    uflow::log_nfa(scales, batch, height, width, uflow::Tail::exact, /*by_area=*/true, 0, map.data());
    for (float& value : map) detected += (value += float(n[2])) < 0;
    std::snprintf(text, sizeof text, header, batch, height, width);
    std::ofstream out(argv[1], std::ios::binary);
    out << magic << 'v' << '\0' << std::left << std::setw(117) << text << '\n';  // v: 118 bytes of header
    if (!out.write(reinterpret_cast<char*>(map.data()), std::streamsize(4 * map.size())).flush())
        throw std::runtime_error("cannot write the map");
    std::printf("lowest log10 NFA %.6g, %d pixels\n", *std::min_element(map.begin(), map.end()), detected);
} catch (const std::exception& error) {
    return std::fprintf(stderr, "exported: %s\n", error.what()), 2;
}
