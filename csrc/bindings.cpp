// The module _core, numpy arrays in, numpy arrays out: checks, releases the GIL and calls the core.
#include "bindings.hpp"

#include "uflow/block_test.hpp"
#include "uflow/energy.hpp"
#include "uflow/field.hpp"
#include "uflow/max_tree.hpp"
#include "uflow/number_of_tests.hpp"
#include "uflow/outline.hpp"
#include "uflow/regions.hpp"
#include "uflow/resize.hpp"
#include "uflow/segment.hpp"
#include "uflow/tail.hpp"

using namespace bindings;

namespace {

// Counts per cell, each from 0 to channels.
void check_counts(const Array<std::int32_t>& counts, double channels) {
    const auto most = std::uint32_t(std::min(channels, 2147483647.0));
    const std::int32_t* data = counts.data();
    const py::ssize_t size = counts.size();
    std::uint32_t bad = 0;
    for (py::ssize_t i = 0; i < size; ++i) bad |= std::uint32_t(std::uint32_t(data[i]) > most);
    if (bad) {
        const auto outside = [&](std::int32_t n) { return std::uint32_t(n) > most; };
        throw std::invalid_argument("exceedances must lie between 0 and the number of channels, got " +
                                    std::to_string(*std::find_if(data, data + size, outside)));
    }
}

void check_background(const uflow::Background& b) {
    const auto positive = [](double v) { return std::isfinite(v) && v > 0.0; };
    require(positive(b.scale) && positive(b.dof) && positive(b.correlation_area) && positive(b.channels),
            "scale, dof, correlation area and channels must be positive and finite");
    require(b.exceedance > 0.0 && b.exceedance < 1.0, "the exceedance probability must lie in (0, 1)");
}

void check_size(std::int64_t height, std::int64_t width) {
    constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
    require(height > 0 && width > 0 && height <= most && width <= most / height,
            "the output size must be positive and below 2^31 pixels, got " + std::to_string(height) + " x " +
                std::to_string(width));
}

// ---------------------------------------------------------------------------------------------------------------
// Trees and regions.

template <class T>
py::tuple max_tree(const Array<T>& image, int connectivity) {
    check_image(image, connectivity);
    Array<std::int32_t> order(image.size());
    std::int32_t* order_out = order.mutable_data();
    const auto parent = new_array<std::int32_t>(shape_like(image), [&](std::int32_t* out) {
        with_kept<uflow::TreeWorkspace>([&](auto& work) {
            uflow::max_tree(image.data(), side(image, 0), side(image, 1), uflow::Connectivity(connectivity),
                            work, out, order_out);
        });
    });
    return py::make_tuple(parent, order);
}

struct RunsWorkspace {
    std::vector<uflow::Run> runs;
    std::size_t bytes() const noexcept { return runs.capacity() * sizeof(uflow::Run); }
};

const std::uint8_t* bytes_of(const Array<bool>& mask) {
    return reinterpret_cast<const std::uint8_t*>(mask.data());
}

py::tuple connected_components(const Array<bool>& mask, int connectivity) {
    check_shape(mask, 2, "mask");
    check_connectivity(connectivity);
    const std::int32_t height = side(mask, 0), width = side(mask, 1);
    std::int32_t count = 0;
    const auto labels = new_array<std::int32_t>(shape_like(mask), [&](std::int32_t* out) {
        std::fill(out, out + std::int64_t(height) * width, 0);
        with_kept<RunsWorkspace>([&](auto& work) {
            count =
                uflow::find_runs(bytes_of(mask), height, width, uflow::Connectivity(connectivity), work.runs);
            for (const uflow::Run& run : work.runs) {
                std::int32_t* row = out + std::int64_t(run.row) * width;
                std::fill(row + run.first, row + run.end, run.component + 1);
            }
        });
    });
    return py::make_tuple(labels, count);
}

template <class T>
py::list regions(const Array<bool>& mask, const Array<T>& log_nfa, const Array<T>& anomaly_map) {
    check_shape(mask, 2, "mask");
    check_same_shape(mask, log_nfa, "mask and log_nfa");
    check_same_shape(mask, anomaly_map, "mask and anomaly_map");
    const auto found = without_gil([&] {
        std::vector<uflow::Region> regions;
        with_kept<RunsWorkspace>([&](auto& work) {
            regions = uflow::regions(bytes_of(mask), log_nfa.data(), anomaly_map.data(), side(mask, 0),
                                     side(mask, 1), work.runs);
        });
        return regions;
    });
    py::list result;
    for (const uflow::Region& r : found)
        result.append(py::make_tuple(r.area, py::make_tuple(r.top, r.left, r.bottom, r.right),
                                     py::make_tuple(r.row, r.col), r.log_nfa, r.score));
    return result;
}

Array<bool> draw_regions(const Array<float>& map, const Array<bool>& found, double usual, double quiet,
                         std::int64_t height, std::int64_t width, const std::optional<Array<bool>>& counted,
                         const std::optional<Array<std::uint8_t>>& image) {
    check_shape(map, 2, "map");
    check_finite(map, "map");
    check_same_shape(map, found, "map and found");
    if (counted) check_same_shape(map, *counted, "map and counted");
    check_size(height, width);
    uflow::Image picture{};
    uflow::DrawingAids aids{counted ? bytes_of(*counted) : nullptr, nullptr};
    if (image) {
        require(image->ndim() == 3 && image->size() > 0 && image->shape(2) == 3,
                "an image must be (H, W, 3), got shape " + shape_of(*image));
        check_size(image->shape(0), image->shape(1));
        picture = {image->data(), side(*image, 0), side(*image, 1)};
        aids.image = &picture;
    }
    return new_array<bool>({height, width}, [&](bool* out) {
        with_kept<uflow::OutlineWorkspace>([&](auto& work) {
            uflow::draw_regions(map.data(), bytes_of(found), side(map, 0), side(map, 1), {usual, quiet},
                                std::int32_t(height), std::int32_t(width), work,
                                reinterpret_cast<std::uint8_t*>(out), aids);
        });
    });
}

// ---------------------------------------------------------------------------------------------------------------
// Latents, which nobody has to check but for their shape: (batch, channels, height, width).

template <class T>
struct Latents {
    explicit Latents(const Array<T>& array) : values(array.data()) {
        require(array.ndim() == 4 && array.size() > 0,
                "latents must be (B, C, H, W) and not empty, got shape " + shape_of(array));
        maps = {array.shape(0), array.shape(2), array.shape(3)};
        channels = array.shape(1);
        cells = array.shape(2) * array.shape(3);
    }
    const T* values;
    Shape maps;
    py::ssize_t channels, cells;
};

template <class T>
Array<T> energies(const Array<T>& latents, int threads) {
    const Latents<T> z(latents);
    return new_array<T>(
        z.maps, [&](T* out) { uflow::energies(z.values, z.maps[0], z.channels, z.cells, threads, out); });
}

template <class T>
py::tuple energies_and_exceedances(const Array<T>& latents, double tau, int threads) {
    const Latents<T> z(latents);
    Array<std::int32_t> counts(z.maps);
    std::int32_t* counts_out = counts.mutable_data();
    const auto energy = new_array<T>(z.maps, [&](T* out) {
        uflow::energies_and_exceedances(z.values, z.maps[0], z.channels, z.cells, tau, threads, out,
                                        counts_out);
    });
    return py::make_tuple(energy, counts);
}

template <class T>
py::tuple exceedances(const Array<T>& latents, double tau, int threads) {
    const Latents<T> z(latents);
    bool finite = true;
    const auto counts = new_array<std::int32_t>(z.maps, [&](std::int32_t* out) {
        finite = uflow::exceedances(z.values, z.maps[0], z.channels, z.cells, tau, threads, out);
    });
    return py::make_tuple(counts, finite);
}

// ---------------------------------------------------------------------------------------------------------------
// Energies of one scale, and of several.

template <class T>
Array<float> log_pfa(const Array<T>& energy, const Counts& exceedances, uflow::Tail tail,
                     const uflow::Background& background, int threads) {
    check_shape(energy, 3, "energy");
    check_finite(energy, "energy");
    check_background(background);
    require(exceedances.has_value() || tail != uflow::Tail::binomial, "the binomial tail needs exceedances");
    if (exceedances) {
        check_same_shape(energy, *exceedances, "energy and exceedances");
        check_counts(*exceedances, background.channels);
    }
    const std::int32_t* counts = exceedances ? exceedances->data() : nullptr;
    return new_array<float>(shape_like(energy), [&](float* out) {
        with_kept<uflow::SegmentWorkspace>([&](auto& work) {
            uflow::log_pfa(energy.data(), counts, energy.shape(0), side(energy, 1), side(energy, 2), tail,
                           background, threads, out, &work);
        });
    });
}

// The arrays of a list: they arrive as objects, since an overload of array_t inside a std::vector would
// convert silently.
template <class T>
std::vector<Array<T>> arrays_of(const py::list& list, const std::string& name) {
    std::vector<Array<T>> arrays;
    for (const py::handle item : list) {
        if (!py::isinstance<Array<T>>(item))
            throw py::type_error(name + " must be C-contiguous numpy arrays of " +
                                 std::string(py::str(py::dtype::of<T>())));
        arrays.push_back(py::reinterpret_borrow<Array<T>>(item));
    }
    return arrays;
}

// (batch, height, width) for every scale.
template <class T>
std::vector<Array<T>> maps_of(const py::list& list, const char* name) {
    const auto arrays = arrays_of<T>(list, name);
    require(!arrays.empty(), std::string(name) + " is an empty list");
    for (const Array<T>& array : arrays) {
        check_shape(array, 3, name);
        require(array.shape(0) == arrays[0].shape(0), std::string(name) +
                                                          " must have one batch size, got shapes " +
                                                          shape_of(arrays[0]) + " and " + shape_of(array));
    }
    return arrays;
}

// A table by area for every scale: cells + 1 finite numbers.
std::vector<Array<double>> area_tables(const py::list& list, const std::vector<uflow::Scale>& scales,
                                       const char* name) {
    const auto tables = arrays_of<double>(list, name);
    require(tables.size() == scales.size(), std::string(name) + ": one table per scale is needed");
    for (std::size_t l = 0; l < scales.size(); ++l) {
        const std::size_t size = scales[l].cells() + 1;
        require(tables[l].ndim() == 1 && std::size_t(tables[l].size()) == size,
                std::string(name) + " must hold a value for every area from 0 to that of the map, " +
                    std::to_string(size) + ", got shape " + shape_of(tables[l]));
        check_finite(tables[l], name);
    }
    return tables;
}

// The scales of energies without counts.
std::vector<uflow::Scale> scales_of(const std::vector<Array<float>>& energies,
                                    const std::vector<uflow::Background>& backgrounds) {
    require(backgrounds.size() == energies.size(), "one background per scale is needed");
    std::vector<uflow::Scale> scales;
    for (std::size_t l = 0; l < energies.size(); ++l) {
        check_finite(energies[l], "energies");
        check_background(backgrounds[l]);
        scales.push_back(
            {energies[l].data(), nullptr, side(energies[l], 1), side(energies[l], 2), backgrounds[l]});
    }
    return scales;
}

Array<float> log_nfa(const py::list& energies, const std::optional<py::list>& exceedances,
                     const std::vector<uflow::Background>& backgrounds, std::int64_t height,
                     std::int64_t width, uflow::Tail tail, bool by_area, int threads,
                     const std::optional<py::list>& effective_area,
                     const std::optional<py::list>& log_tests) {
    const auto energy = maps_of<float>(energies, "energies");
    check_size(height, width);
    auto scales = scales_of(energy, backgrounds);
    require(exceedances.has_value() || tail != uflow::Tail::binomial, "the binomial tail needs exceedances");
    std::vector<Array<std::int32_t>> counts;
    if (exceedances) {
        counts = maps_of<std::int32_t>(*exceedances, "exceedances");
        require(counts.size() == energy.size(), "one array of exceedances per scale is needed");
    }
    for (std::size_t l = 0; l < counts.size(); ++l) {
        check_same_shape(energy[l], counts[l], "energies and exceedances");
        check_counts(counts[l], backgrounds[l].channels);
        scales[l].exceedances = counts[l].data();
    }
    std::vector<Array<double>> areas, tests;
    if (effective_area) {
        require(tail != uflow::Tail::binomial,
                "effective_area goes with tails of one cell, not the binomial");
        areas = area_tables(*effective_area, scales, "effective_area");
    }
    for (std::size_t l = 0; l < areas.size(); ++l) {
        const double* table = scales[l].area_law.effective_area = areas[l].data();
        require(std::all_of(table + 1, table + areas[l].size(), [](double v) { return v > 0.0; }),
                "effective_area must be positive");
    }
    if (log_tests) {
        require(by_area, "log_tests goes with the test by area");
        tests = area_tables(*log_tests, scales, "log_tests");
    }
    for (std::size_t l = 0; l < tests.size(); ++l) scales[l].area_law.log_tests = tests[l].data();
    return new_array<float>({energy[0].shape(0), height, width}, [&](float* out) {
        with_kept<uflow::NfaWorkspace>([&](auto& work) {
            uflow::log_nfa(scales, energy[0].shape(0), std::int32_t(height), std::int32_t(width), tail,
                           by_area, threads, out, &work);
        });
    });
}

Array<double> log_nfa_block(const py::list& exceedances, const std::vector<std::int32_t>& channels,
                            std::int64_t height, std::int64_t width, int window, double exceedance,
                            bool continuous, int threads) {
    const auto counts = maps_of<std::int32_t>(exceedances, "exceedances");
    check_size(height, width);
    require(channels.size() == counts.size(), "one number of channels per scale is needed");
    require(window > 0, "the window must be positive, got " + std::to_string(window));
    require(exceedance > 0.0 && exceedance < 1.0, "the exceedance probability must lie in (0, 1)");
    std::vector<uflow::BlockScale> scales;
    for (std::size_t l = 0; l < counts.size(); ++l) {
        const double side_of_window = 2.0 * uflow::block_half(window, l) + 1.0;
        require(channels[l] > 0 && side_of_window * side_of_window * channels[l] < 1e9,
                "channels must be positive and the window's samples fewer than 1e9");
        check_counts(counts[l], channels[l]);
        scales.push_back({counts[l].data(), side(counts[l], 1), side(counts[l], 2), channels[l]});
    }
    return new_array<double>({counts[0].shape(0), height, width}, [&](double* out) {
        uflow::log_nfa_block(scales, counts[0].shape(0), std::int32_t(height), std::int32_t(width), window,
                             exceedance, continuous, threads, out);
    });
}

Array<float> anomaly_map(const py::list& energies, const std::vector<double>& means, std::int64_t height,
                         std::int64_t width, int threads) {
    const auto energy = maps_of<float>(energies, "energies");
    check_size(height, width);
    require(means.size() == energy.size(), "one mean per scale is needed");
    for (const double mean : means)
        require(std::isfinite(mean) && mean > 0.0, "means must be positive and finite");
    std::vector<uflow::Maps> maps;
    for (const Array<float>& array : energy) {
        check_finite(array, "energies");
        maps.push_back({array.data(), side(array, 1), side(array, 2)});
    }
    return new_array<float>({energy[0].shape(0), height, width}, [&](float* out) {
        with_kept<uflow::NfaWorkspace>([&](auto& work) {
            uflow::anomaly_map(maps, means, energy[0].shape(0), std::int32_t(height), std::int32_t(width),
                               threads, out, &work);
        });
    });
}

Array<float> resize_bilinear(const Array<float>& maps, std::int64_t height, std::int64_t width, int threads) {
    check_shape(maps, 3, "maps");
    check_finite(maps, "maps");
    check_size(height, width);
    return new_array<float>({maps.shape(0), height, width}, [&](float* out) {
        uflow::resize_bilinear(maps.data(), maps.shape(0), side(maps, 1), side(maps, 2), std::int32_t(height),
                               std::int32_t(width), threads, out);
    });
}

// ---------------------------------------------------------------------------------------------------------------
// Probabilities and numbers of tests.

// Work on `size` values, with pauses.
template <class Work>
void in_pieces(py::ssize_t size, Work&& work) {
    for (py::ssize_t first = 0; first < size; first += uflow::between_pauses) {
        uflow::pause();
        work(std::size_t(first), std::size_t(std::min<py::ssize_t>(uflow::between_pauses, size - first)));
    }
}

Array<double> log10_chi2_sf(const Array<double>& x, const Array<double>& dof) {
    check_same_shape(x, dof, "x and dof");
    return new_array<double>({x.size()}, [&](double* out) {
        in_pieces(x.size(), [&](std::size_t first, std::size_t count) {
            uflow::log10_chi2_sf({x.data() + first}, {dof.data() + first}, out + first, count);
        });
    });
}

Array<double> log10_binomial_sf(const Array<double>& k, const Array<double>& n, const Array<double>& p) {
    check_same_shape(k, n, "k and n");
    check_same_shape(k, p, "k and p");
    return new_array<double>({k.size()}, [&](double* out) {
        in_pieces(k.size(), [&](std::size_t first, std::size_t count) {
            uflow::log10_binomial_sf({k.data() + first}, {n.data() + first}, {p.data() + first}, out + first,
                                     count);
        });
    });
}

double log10_number_of_tests(const std::vector<std::int64_t>& cells) {
    for (const std::int64_t n : cells)
        require(n > 0, "a scale needs at least one cell, got " + std::to_string(n));
    require(!cells.empty(), "the number of tests needs at least one scale");
    return uflow::log10_number_of_tests(cells.data(), cells.size());
}

Array<double> log10_number_of_tests_by_area(std::int64_t cells, std::size_t scales) {
    require(cells > 0 && cells < std::numeric_limits<std::int32_t>::max() && scales > 0,
            "the number of tests by area needs at least one cell and one scale");
    const auto table = without_gil([&] { return uflow::log10_number_of_tests_by_area(cells, scales); });
    return Array<double>(py::ssize_t(table.size()), table.data());
}

}  // namespace

// It has no state but what each thread keeps to itself (with_kept), so free-threaded Pythons need no GIL for
// it.
PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    m.doc() = "The C++ core of uflow. Use uflow.segmentation, which checks and converts its input.";

    py::enum_<uflow::Tail>(m, "Tail")
        .value("exact", uflow::Tail::exact)
        .value("chernoff", uflow::Tail::chernoff)
        .value("chernoff_unguarded", uflow::Tail::chernoff_unguarded)
        .value("binomial", uflow::Tail::binomial);
    py::class_<uflow::Background>(m, "Background")
        .def(py::init(
                 [](double scale, double dof, double correlation_area, double channels, double exceedance) {
                     return uflow::Background{scale, dof, correlation_area, channels, exceedance};
                 }),
             "scale"_a, "dof"_a, "correlation_area"_a, "channels"_a, "exceedance"_a);

    def_both(m, "max_tree", &max_tree<float>, &max_tree<double>, "image"_a.noconvert(), "connectivity"_a);
    m.def("connected_components", &connected_components, "mask"_a.noconvert(), "connectivity"_a);
    m.def("draw_regions", &draw_regions, "map"_a.noconvert(), "found"_a.noconvert(), "usual"_a, "quiet"_a,
          "height"_a, "width"_a, "counted"_a.noconvert() = py::none(), "image"_a.noconvert() = py::none());
    def_both(m, "regions", &regions<float>, &regions<double>, "mask"_a.noconvert(), "log_nfa"_a.noconvert(),
             "anomaly_map"_a.noconvert());
    def_both(m, "energies", &energies<float>, &energies<double>, "latents"_a.noconvert(), "threads"_a);
    def_both(m, "energies_and_exceedances", &energies_and_exceedances<float>,
             &energies_and_exceedances<double>, "latents"_a.noconvert(), "tau"_a, "threads"_a);
    def_both(m, "exceedances", &exceedances<float>, &exceedances<double>, "latents"_a.noconvert(), "tau"_a,
             "threads"_a);
    def_both(m, "log_pfa", &log_pfa<float>, &log_pfa<double>, "energy"_a.noconvert(),
             "exceedances"_a.noconvert(), "tail"_a, "background"_a, "threads"_a);
    m.def("log_nfa", &log_nfa, "energies"_a, "exceedances"_a, "backgrounds"_a, "height"_a, "width"_a,
          "tail"_a, "by_area"_a, "threads"_a, "effective_area"_a = py::none(), "log_tests"_a = py::none());
    m.def("log_nfa_block", &log_nfa_block, "exceedances"_a, "channels"_a, "height"_a, "width"_a, "window"_a,
          "exceedance"_a, "continuous"_a, "threads"_a);
    m.def("anomaly_map", &anomaly_map, "energies"_a, "means"_a, "height"_a, "width"_a, "threads"_a);
    m.def("resize_bilinear", &resize_bilinear, "maps"_a.noconvert(), "height"_a, "width"_a, "threads"_a);
    m.def("log10_chi2_sf", &log10_chi2_sf, "x"_a.noconvert(), "dof"_a.noconvert());
    m.def("log10_binomial_sf", &log10_binomial_sf, "k"_a.noconvert(), "n"_a.noconvert(), "p"_a.noconvert());
    m.def("chi2_1_quantile", &uflow::chi2_1_quantile, "q"_a);
    m.def("log10_number_of_tests", &log10_number_of_tests, "cells"_a);
    m.def("log10_number_of_tests_by_area", &log10_number_of_tests_by_area, "cells"_a, "scales"_a);
}
