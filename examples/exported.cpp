// The calibrated test of an exported model by the C++ core alone: what the network gives in, log10 NFA out.
//   exported MAP IMAGES NUMBERS  ENERGY [ENERGY ...] [DISTANCE ...]
// MAP: the .npy file to write, float32 (batch, height, width), detected where below 0. IMAGES: a .npy file of
// the images, of their own size, red first: uint8 (batch, height, width, 3), or (height, width, 3). NUMBERS:
// a text file, the four lines that docs/guide/cpp.md prints. ENERGY, DISTANCE: the outputs energy_0, ...,
// distance_0, ... of the network, a .npy file each, float32 (batch, h, w) or (h, w).
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <sstream>
#include <stdexcept>
#include <string>
#include <uflow/outline.hpp>

const std::string magic("\x93NUMPY\x01\0", 8);  // and version 1.0; then two bytes, the length of the header:
const char* header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d, %d), }";
const char* image_header = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d, %d, %d, %d), }";

struct Rule {
    double shift, exponent;
    uflow::Background cell;          // scale, dof
    uflow::Drawing drawing;          // usual, quiet
    uflow::EvidenceWeights weights;  // energy means, latents, distances
};

// The test; docs/guide/cpp.md shows it.
std::vector<float> test(const uflow::Evidence& evidence, const Rule& rule,
                        const std::vector<uflow::Image>& images) {
    const int batch = int(images.size()), height = images[0].height, width = images[0].width;
    // All evidence on the finest grid, and the map that outlines are drawn on.
    const auto [values, rows, columns] = evidence.energies[0];
    std::vector<float> field(batch * rows * columns), drawn_on(field.size()), log_nfa(field.size());
    uflow::evidence_field(evidence, rule.weights, batch, /*threads=*/0, field.data());
    uflow::drawing_map(evidence, rule.weights, batch, /*threads=*/0, drawn_on.data());

    // log10 NFA of each cell.
    const uflow::AreaTables areas = uflow::power_law_of_area(rows * columns, rule.exponent);
    uflow::log_nfa({{field.data(), nullptr, rows, columns, rule.cell, areas.law()}}, batch, rows, columns,
                   uflow::Tail::exact, /*by_area=*/true, /*threads=*/0, log_nfa.data());
    for (float& value : log_nfa) value += float(rule.shift);

    // Of each pixel: the mask is where it is below 0. Outlines follow the colours of the images.
    std::vector<float> map(std::size_t(batch) * height * width);
    uflow::outline_log_nfa({log_nfa.data(), rows, columns}, drawn_on.data(), rule.drawing, batch, height,
                           width, /*threads=*/0, map.data(), nullptr, images.data());
    return map;
}

Rule read_rule(const std::string& path) {
    std::ifstream file(path);
    std::vector<double> lines[4];
    for (auto& numbers : lines) {
        std::string text;
        std::getline(file, text);
        std::istringstream line(text);
        for (double number; line >> number;) numbers.push_back(number);
        if (!file || !line.eof()) throw std::runtime_error(path + " is not four lines of numbers");
    }
    const auto& [test, outline, means, distances] = lines;
    if (test.size() != 4 || outline.size() != 3 || means.empty())
        throw std::runtime_error(path + " does not hold 4, 3, 1 or more, and any number of numbers");
    const auto all_positive = [](const std::vector<double>& numbers) {
        return std::all_of(numbers.begin(), numbers.end(), [](double number) { return number > 0; });
    };
    if (!all_positive({test[1], test[2], outline[2]}) || !(test[3] >= 0 && test[3] <= 1) ||
        !all_positive(means) || !all_positive(distances))
        throw std::runtime_error(path + " holds a number that is out of range");
    return {test[0], test[3], {test[1], test[2]}, {outline[0], outline[1]}, {means, outline[2], distances}};
}

std::string read_file(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
}

// Whether a .npy file has a header, and behind it so many values of so many bytes; and moves these to `to`.
template <class T>
bool values_of(const std::string& file, std::size_t count, std::vector<T>& to) {
    const std::size_t bytes = sizeof(T) * count;
    if (!bytes || file.size() != 10u + (unsigned char)file[8] + 256u * (unsigned char)file[9] + bytes)
        return false;
    to.resize(count);
    std::memcpy(to.data(), file.data() + file.size() - bytes, bytes);
    return true;
}

bool is_npy(const std::string& file) { return file.size() > 10 && file.compare(0, 8, magic) == 0; }

std::vector<uflow::Image> read_images(const std::string& path, std::vector<std::uint8_t>& pixels) {
    const std::string file = read_file(path);
    int sides[5] = {1, 0, 0, 0, 0}, found = 0;  // a batch of 1 where the file has only (height, width, 3)
    if (is_npy(file))
        found = std::sscanf(file.c_str() + 10, image_header, sides + 1, sides + 2, sides + 3, sides + 4);
    const int* shape = sides + std::max(found - 3, 0);
    const std::size_t each = std::size_t(shape[1]) * shape[2] * 3;
    if (found < 3 || shape[3] != 3 || !values_of(file, shape[0] * each, pixels))
        throw std::runtime_error(path + " is not a .npy file (1.0) of uint8 (batch, height, width, 3)");
    std::vector<uflow::Image> images;
    for (int i = 0; i < shape[0]; ++i) images.push_back({pixels.data() + i * each, shape[1], shape[2]});
    return images;
}

uflow::Maps read_maps(const std::string& path, std::vector<float>& values, std::size_t batch) {
    const std::string file = read_file(path);
    int sides[4] = {1, 0, 0, 0}, found = 0;  // a batch of 1 where the file has only (h, w)
    if (is_npy(file)) found = std::sscanf(file.c_str() + 10, header, sides + 1, sides + 2, sides + 3);
    const int* shape = sides + std::max(found - 2, 0);
    if (!values_of(file, std::size_t(shape[0]) * shape[1] * shape[2], values))
        throw std::runtime_error(path + " is not a .npy file (1.0) of float32 (batch, h, w) or (h, w)");
    if (batch != std::size_t(shape[0])) throw std::runtime_error(path + " is of another batch size");
    if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); }))
        throw std::runtime_error(path + " holds a value that is not finite");
    return {values.data(), shape[1], shape[2]};
}

int main(int argc, char** argv) try {
    if (argc < 5) throw std::runtime_error("usage: exported MAP IMAGES NUMBERS  ENERGY ... DISTANCE ...");
    std::vector<std::uint8_t> pixels;
    const std::vector<uflow::Image> images = read_images(argv[2], pixels);
    const Rule rule = read_rule(argv[3]);
    const std::size_t energies = rule.weights.energy_means.size();
    if (std::size_t(argc - 4) != energies + rule.weights.distances.size())
        throw std::runtime_error("one file is needed for each number of the third and of the fourth line");
    std::vector<std::vector<float>> memory(argc - 4);
    uflow::Evidence evidence;
    for (std::size_t i = 0; i < memory.size(); ++i)
        (i < energies ? evidence.energies : evidence.distances)
            .push_back(read_maps(argv[4 + i], memory[i], images.size()));
    std::vector<float> map = test(evidence, rule, images);
    char text[118];
    std::snprintf(text, sizeof text, header, int(images.size()), images[0].height, images[0].width);
    std::ofstream out(argv[1], std::ios::binary);
    out << magic << 'v' << '\0' << std::left << std::setw(117) << text << '\n';  // v: 118 bytes of header
    if (!out.write(reinterpret_cast<char*>(map.data()), std::streamsize(4 * map.size())).flush())
        throw std::runtime_error("cannot write the map");
    const auto detected = std::count_if(map.begin(), map.end(), [](float value) { return value < 0; });
    std::printf("lowest log10 NFA %.6g, %d pixels\n", *std::min_element(map.begin(), map.end()),
                int(detected));
} catch (const std::exception& error) {
    return std::fprintf(stderr, "exported: %s\n", error.what()), 2;
}
