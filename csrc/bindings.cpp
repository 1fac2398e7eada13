// numpy arrays in, numpy arrays out. Checks what would make the core read or write out of bounds, copies the
// pointers, releases the GIL and calls the core. Nothing is converted silently and inputs are never written.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "uflow/buffer.hpp"
#include "uflow/component_tree.hpp"
#include "uflow/energy.hpp"
#include "uflow/joint.hpp"
#include "uflow/lanes.hpp"
#include "uflow/max_tree.hpp"
#include "uflow/number_of_tests.hpp"
#include "uflow/regions.hpp"
#include "uflow/resize.hpp"
#include "uflow/segment.hpp"
#include "uflow/select.hpp"
#include "uflow/tail.hpp"

namespace py = pybind11;
using py::literals::operator""_a;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;  // as an argument always with noconvert()
using Counts = std::optional<Array<std::int32_t>>;

// For checks made once a call: the message is built in any case.
void require(bool ok, const std::string& message) {
    if (!ok) throw std::invalid_argument(message);
}

std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

// Dimensions, at least one element, and every side within int32.
void check_shape(const py::array& array, py::ssize_t dims, const char* name) {
    const auto fail = [&](const std::string& what) {
        throw std::invalid_argument(name + what + ", got shape " + shape_of(array));
    };
    if (array.ndim() != dims) fail(" needs " + std::to_string(dims) + " dimensions");
    std::int64_t cells = 1;
    for (py::ssize_t i = 0; i < dims; ++i) {
        if (array.shape(i) == 0) fail(" is empty");
        if (dims < 3 || i > 0) cells *= std::int64_t(array.shape(i));
        if (cells > std::numeric_limits<std::int32_t>::max()) fail(" has more than 2^31 - 1 pixels");
    }
}

// Messages are made only when needed: these run over every element.
template <class T>
void check_finite(const Array<T>& array, const char* name) {
    using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
    const Bits infinite = uflow::detail::bits_as<Bits>(std::numeric_limits<T>::infinity());
    const T* data = array.data();
    const py::ssize_t size = array.size();
    Bits bad = 0;
    for (py::ssize_t i = 0; i < size; ++i)  // without a branch: several at once
        bad |= Bits((uflow::detail::bits_as<Bits>(data[i]) & infinite) == infinite);
    if (bad) {
        const T* first = std::find_if(data, data + size, [](T value) { return !std::isfinite(value); });
        throw std::invalid_argument(std::string(name) + " has a value that is not finite, at flat index " +
                                    std::to_string(first - data) + " of shape " + shape_of(array));
    }
}

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

void check_same_shape(const py::array& a, const py::array& b, const char* names) {
    bool same = a.ndim() == b.ndim();
    for (py::ssize_t i = 0; same && i < a.ndim(); ++i) same = a.shape(i) == b.shape(i);
    require(same,
            std::string(names) + " must have the same shape, got " + shape_of(a) + " and " + shape_of(b));
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

void check_latents(const py::array& latents) {
    if (latents.ndim() != 4 || latents.size() == 0)
        throw std::invalid_argument("latents must be (B, C, H, W) and not empty, got shape " +
                                    shape_of(latents));
}

std::int32_t side(const py::array& array, py::ssize_t axis) { return std::int32_t(array.shape(axis)); }

// Memory that a Python thread keeps from call to call: for a small map, touching fresh pages takes as long as
// the work (docs/performance.md). Given back where it grew large, and when the thread ends.
template <class Workspace, class Use>
void with_kept(Use&& use) {
    thread_local Workspace kept;
    use(kept);
    if (kept.bytes() > (std::size_t(64) << 20)) kept = Workspace{};
}

void check_connectivity(int connectivity) {
    if (connectivity != 4 && connectivity != 8)
        throw std::invalid_argument("connectivity must be 4 or 8, got " + std::to_string(connectivity));
}

template <class T>
void check_image(const Array<T>& image, int connectivity) {
    check_shape(image, 2, "image");
    check_finite(image, "image");
    check_connectivity(connectivity);
}

template <class T>
py::tuple max_tree(const Array<T>& image, int connectivity) {
    check_image(image, connectivity);
    Array<std::int32_t> parent({image.shape(0), image.shape(1)}), order(image.size());
    const T* in = image.data();
    std::int32_t *parent_out = parent.mutable_data(), *order_out = order.mutable_data();
    const std::int32_t height = side(image, 0), width = side(image, 1);
    {
        const py::gil_scoped_release release;
        with_kept<uflow::TreeWorkspace>([&](auto& work) {
            uflow::max_tree(in, height, width, uflow::Connectivity(connectivity), work, parent_out,
                            order_out);
        });
    }
    return py::make_tuple(parent, order);
}

template <class T, class U>
Array<T> to_array(const U* values, std::int32_t count) {
    Array<T> array(count);
    std::copy(values, values + count, array.mutable_data());
    return array;
}

template <class T>
py::dict component_tree(const Array<T>& image, int connectivity, const Counts& exceedances) {
    check_image(image, connectivity);
    if (exceedances) check_same_shape(image, *exceedances, "image and exceedances");
    const std::int32_t height = side(image, 0), width = side(image, 1), pixels = height * width;
    const auto kind = uflow::Connectivity(connectivity);
    uflow::TreeWorkspace work;
    Array<std::int64_t> sums;
    if (exceedances) {
        const auto tree = uflow::component_tree(image.data(), exceedances->data(), height, width, kind, work);
        sums = to_array<std::int64_t>(tree.value, tree.size);
    }
    const auto tree = uflow::component_tree(image.data(), nullptr, height, width, kind, work);
    Array<std::int32_t> node_of({image.shape(0), image.shape(1)});
    for (std::int32_t rank = 0; rank < pixels; ++rank)
        node_of.mutable_data()[work.order.as<std::int32_t>()[rank]] = tree.node_of[rank];
    py::dict result("parent"_a = to_array<std::int32_t>(tree.parent, tree.size),
                    "area"_a = to_array<std::int32_t>(tree.area, tree.size),
                    "level"_a = to_array<T>(tree.value, tree.size), "node_of"_a = node_of);
    if (exceedances) result["exceedances"] = sums;
    return result;
}

Array<std::int32_t> select_regions(const Array<std::int32_t>& parent, const Array<double>& value) {
    check_shape(parent, 1, "parent");
    check_same_shape(parent, value, "parent and value");
    const std::int32_t* in = parent.data();
    require(in[0] == 0, "node 0 must be the root and its own parent");
    const std::int32_t nodes = side(parent, 0);
    for (std::int32_t node = 1; node < nodes; ++node)
        if (in[node] < 0 || in[node] >= node)
            throw std::invalid_argument("a parent must come before its children: node " +
                                        std::to_string(node) + " has parent " + std::to_string(in[node]));
    const double *first = value.data(), *end = first + nodes;
    require(std::none_of(first, end, [](double v) { return std::isnan(v); }), "value has a NaN");
    Array<std::int32_t> region(parent.size());
    uflow::Buffer work;
    uflow::select_regions(in, first, nodes, work, region.mutable_data());
    return region;
}

template <class T>
Array<T> energies(const Array<T>& latents, int threads) {
    check_latents(latents);
    Array<T> result({latents.shape(0), latents.shape(2), latents.shape(3)});
    const T* in = latents.data();
    T* out = result.mutable_data();
    const std::int64_t batch = latents.shape(0);
    const py::ssize_t channels = latents.shape(1), cells = latents.shape(2) * latents.shape(3);
    {
        const py::gil_scoped_release release;
        uflow::energies(in, batch, channels, cells, threads, out);
    }
    return result;
}

template <class T>
py::tuple energies_and_exceedances(const Array<T>& latents, double tau, int threads) {
    check_latents(latents);
    Array<T> energy({latents.shape(0), latents.shape(2), latents.shape(3)});
    Array<std::int32_t> counts({latents.shape(0), latents.shape(2), latents.shape(3)});
    const T* in = latents.data();
    T* energy_out = energy.mutable_data();
    std::int32_t* counts_out = counts.mutable_data();
    const std::int64_t batch = latents.shape(0);
    const py::ssize_t channels = latents.shape(1), cells = latents.shape(2) * latents.shape(3);
    {
        const py::gil_scoped_release release;
        uflow::energies_and_exceedances(in, batch, channels, cells, tau, threads, energy_out, counts_out);
    }
    return py::make_tuple(energy, counts);
}

template <class T>
py::tuple exceedances(const Array<T>& latents, double tau, int threads) {
    check_latents(latents);
    Array<std::int32_t> counts({latents.shape(0), latents.shape(2), latents.shape(3)});
    const T* in = latents.data();
    std::int32_t* out = counts.mutable_data();
    const std::int64_t batch = latents.shape(0);
    const py::ssize_t channels = latents.shape(1), cells = latents.shape(2) * latents.shape(3);
    bool finite = true;
    {
        const py::gil_scoped_release release;
        finite = uflow::exceedances(in, batch, channels, cells, tau, threads, out);
    }
    return py::make_tuple(counts, finite);
}

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
    Array<float> result({energy.shape(0), energy.shape(1), energy.shape(2)});
    const T* in = energy.data();
    const std::int32_t* counts = exceedances ? exceedances->data() : nullptr;
    float* out = result.mutable_data();
    const std::int64_t batch = energy.shape(0);
    const std::int32_t height = side(energy, 1), width = side(energy, 2);
    {
        const py::gil_scoped_release release;
        with_kept<uflow::SegmentWorkspace>([&](auto& work) {
            uflow::log_pfa(in, counts, batch, height, width, tail, background, threads, out, &work);
        });
    }
    return result;
}

// A list of arrays arrives as objects: an overload of array_t inside a std::vector would convert silently.
template <class T>
std::vector<Array<T>> arrays_of(const py::list& list, const char* name) {
    std::vector<Array<T>> arrays;
    for (const py::handle item : list) {
        if (!py::isinstance<Array<T>>(item))
            throw py::type_error(std::string(name) + " must be C-contiguous numpy arrays of " +
                                 std::string(py::str(py::dtype::of<T>())));
        arrays.push_back(py::reinterpret_borrow<Array<T>>(item));
        check_shape(arrays.back(), 3, name);
        require(arrays.back().shape(0) == arrays[0].shape(0),
                std::string(name) + " must have one batch size, got shapes " + shape_of(arrays[0]) + " and " +
                    shape_of(arrays.back()));
    }
    require(!arrays.empty(), std::string(name) + " is an empty list");
    return arrays;
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
                     std::int64_t width, uflow::Tail tail, bool by_area, int threads) {
    const auto energy = arrays_of<float>(energies, "energies");
    const auto counts = exceedances ? arrays_of<std::int32_t>(*exceedances, "exceedances")
                                    : std::vector<Array<std::int32_t>>{};
    check_size(height, width);
    require(exceedances.has_value() || tail != uflow::Tail::binomial, "the binomial tail needs exceedances");
    require(!exceedances || counts.size() == energy.size(), "one array of exceedances per scale is needed");
    auto scales = scales_of(energy, backgrounds);
    for (std::size_t l = 0; l < counts.size(); ++l) {
        check_same_shape(energy[l], counts[l], "energies and exceedances");
        check_counts(counts[l], backgrounds[l].channels);
        scales[l].exceedances = counts[l].data();
    }
    const std::int64_t batch = energy[0].shape(0);
    Array<float> result({batch, height, width});
    float* out = result.mutable_data();
    {
        const py::gil_scoped_release release;
        with_kept<uflow::NfaWorkspace>([&](auto& work) {
            uflow::log_nfa(scales, batch, std::int32_t(height), std::int32_t(width), tail, by_area, threads,
                           out, &work);
        });
    }
    return result;
}

Array<double> log_nfa_block(const py::list& exceedances, const std::vector<std::int32_t>& channels,
                            std::int64_t height, std::int64_t width, int window, double exceedance,
                            bool continuous, int threads) {
    const auto counts = arrays_of<std::int32_t>(exceedances, "exceedances");
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
    const std::int64_t batch = counts[0].shape(0);
    Array<double> result({batch, height, width});
    double* out = result.mutable_data();
    {
        const py::gil_scoped_release release;
        uflow::log_nfa_block(scales, batch, std::int32_t(height), std::int32_t(width), window, exceedance,
                             continuous, threads, out);
    }
    return result;
}

Array<float> resize_bilinear(const Array<float>& maps, std::int64_t height, std::int64_t width, int threads) {
    check_shape(maps, 3, "maps");
    check_finite(maps, "maps");
    check_size(height, width);
    Array<float> result({std::int64_t(maps.shape(0)), height, width});
    const float* in = maps.data();
    float* out = result.mutable_data();
    const std::int64_t batch = maps.shape(0);
    const std::int32_t in_height = side(maps, 1), in_width = side(maps, 2);
    {
        const py::gil_scoped_release release;
        uflow::resize_bilinear(in, batch, in_height, in_width, std::int32_t(height), std::int32_t(width),
                               threads, out);
    }
    return result;
}

Array<float> joint_energy(const py::list& energies, const std::vector<uflow::Background>& backgrounds,
                          int threads) {
    const auto energy = arrays_of<float>(energies, "energies");
    const auto scales = scales_of(energy, backgrounds);
    Array<float> result({energy[0].shape(0), energy[0].shape(1), energy[0].shape(2)});
    const std::int64_t batch = energy[0].shape(0);
    float* out = result.mutable_data();
    {
        const py::gil_scoped_release release;
        with_kept<uflow::NfaWorkspace>(
            [&](auto& work) { uflow::joint_energy(scales, batch, threads, out, &work); });
    }
    return result;
}

Array<float> anomaly_map(const py::list& energies, const std::vector<double>& channels, std::int64_t height,
                         std::int64_t width, int threads) {
    const auto energy = arrays_of<float>(energies, "energies");
    check_size(height, width);
    std::vector<uflow::Background> backgrounds;
    for (const double count : channels) backgrounds.push_back({1.0, count, 1.0, count});
    const auto scales = scales_of(energy, backgrounds);
    const std::int64_t batch = energy[0].shape(0);
    Array<float> result({batch, height, width});
    float* out = result.mutable_data();
    {
        const py::gil_scoped_release release;
        with_kept<uflow::NfaWorkspace>([&](auto& work) {
            uflow::anomaly_map(scales, batch, std::int32_t(height), std::int32_t(width), threads, out, &work);
        });
    }
    return result;
}

struct RunsWorkspace {
    std::vector<uflow::Run> runs;
    std::size_t bytes() const noexcept { return runs.capacity() * sizeof(uflow::Run); }
};

py::tuple connected_components(const Array<bool>& mask, int connectivity) {
    check_shape(mask, 2, "mask");
    check_connectivity(connectivity);
    const std::int32_t height = side(mask, 0), width = side(mask, 1);
    Array<std::int32_t> labels({height, width});
    const auto* in = reinterpret_cast<const std::uint8_t*>(mask.data());
    std::int32_t *out = labels.mutable_data(), count = 0;
    {
        const py::gil_scoped_release release;
        std::fill(out, out + std::int64_t(height) * width, 0);
        with_kept<RunsWorkspace>([&](auto& work) {
            count = uflow::find_runs(in, height, width, uflow::Connectivity(connectivity), work.runs);
            for (const uflow::Run& run : work.runs) {
                std::int32_t* row = out + std::int64_t(run.row) * width;
                std::fill(row + run.first, row + run.end, run.component + 1);
            }
        });
    }
    return py::make_tuple(labels, count);
}

template <class T>
py::list regions(const Array<bool>& mask, const Array<T>& log_nfa, const Array<T>& anomaly_map) {
    check_shape(mask, 2, "mask");
    check_same_shape(mask, log_nfa, "mask and log_nfa");
    check_same_shape(mask, anomaly_map, "mask and anomaly_map");
    const auto* in = reinterpret_cast<const std::uint8_t*>(mask.data());
    const T *nfa = log_nfa.data(), *score = anomaly_map.data();
    const std::int32_t height = side(mask, 0), width = side(mask, 1);
    std::vector<uflow::Region> found;
    {
        const py::gil_scoped_release release;
        with_kept<RunsWorkspace>(
            [&](auto& work) { found = uflow::regions(in, nfa, score, height, width, work.runs); });
    }
    py::list result;
    for (const uflow::Region& r : found)
        result.append(py::make_tuple(r.area, py::make_tuple(r.top, r.left, r.bottom, r.right),
                                     py::make_tuple(r.row, r.col), r.log_nfa, r.score));
    return result;
}

Array<double> log10_chi2_sf(const Array<double>& x, const Array<double>& dof) {
    check_same_shape(x, dof, "x and dof");
    Array<double> result(x.size());
    const uflow::Column xs{x.data()}, dofs{dof.data()};
    double* out = result.mutable_data();
    const auto count = std::size_t(x.size());
    {
        const py::gil_scoped_release release;
        uflow::log10_chi2_sf(xs, dofs, out, count);
    }
    return result;
}

Array<double> log10_chi2_chernoff(const Array<double>& t, const Array<double>& dof, bool guarded) {
    check_same_shape(t, dof, "t and dof");
    Array<double> result(t.size());
    const double *ts = t.data(), *dofs = dof.data(), *end = ts + t.size();
    double* out = result.mutable_data();
    {
        const py::gil_scoped_release release;
        std::transform(ts, end, dofs, out,
                       [&](double ratio, double d) { return uflow::log10_chi2_chernoff(ratio, d, guarded); });
    }
    return result;
}

Array<double> log10_binomial_sf(const Array<double>& k, const Array<double>& n, const Array<double>& p) {
    check_same_shape(k, n, "k and n");
    check_same_shape(k, p, "k and p");
    Array<double> result(k.size());
    const uflow::Column ks{k.data()}, ns{n.data()}, ps{p.data()};
    double* out = result.mutable_data();
    const auto count = std::size_t(k.size());
    {
        const py::gil_scoped_release release;
        uflow::log10_binomial_sf(ks, ns, ps, out, count);
    }
    return result;
}

Array<double> block_tail_table(int n, int channels, double p, bool continuous) {
    require(n > 0 && channels > 0 && p > 0.0 && p < 1.0,
            "block_tail_table needs n, channels > 0 and 0 < p < 1");
    Array<double> table(py::ssize_t(n) * channels + 1);
    double* out = table.mutable_data();
    {
        const py::gil_scoped_release release;
        uflow::block_tail_table(n, channels, p, continuous, out);
    }
    return table;
}

double log10_number_of_tests(const std::vector<std::int64_t>& cells) {
    for (const std::int64_t n : cells)
        require(n > 0, "a scale needs at least one cell, got " + std::to_string(n));
    require(!cells.empty(), "the number of tests needs at least one scale");
    return uflow::log10_number_of_tests(cells.data(), cells.size());
}

Array<double> log10_polyominoes(const Array<double>& r) {
    Array<double> result(r.size());
    std::transform(r.data(), r.data() + r.size(), result.mutable_data(), uflow::log10_polyominoes);
    return result;
}

Array<double> log10_number_of_tests_by_area(const Array<double>& r, std::int64_t cells, std::size_t scales) {
    Array<double> result(r.size());
    std::transform(r.data(), r.data() + r.size(), result.mutable_data(),
                   [&](double area) { return uflow::log10_number_of_tests_by_area(area, cells, scales); });
    return result;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
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

    m.def("max_tree", &max_tree<float>, "image"_a.noconvert(), "connectivity"_a);
    m.def("max_tree", &max_tree<double>, "image"_a.noconvert(), "connectivity"_a);
    m.def("component_tree", &component_tree<float>, "image"_a.noconvert(), "connectivity"_a,
          "exceedances"_a.noconvert() = py::none());
    m.def("component_tree", &component_tree<double>, "image"_a.noconvert(), "connectivity"_a,
          "exceedances"_a.noconvert() = py::none());
    m.def("select_regions", &select_regions, "parent"_a.noconvert(), "value"_a.noconvert());
    m.def("energies", &energies<float>, "latents"_a.noconvert(), "threads"_a);
    m.def("energies", &energies<double>, "latents"_a.noconvert(), "threads"_a);
    m.def("energies_and_exceedances", &energies_and_exceedances<float>, "latents"_a.noconvert(), "tau"_a,
          "threads"_a);
    m.def("energies_and_exceedances", &energies_and_exceedances<double>, "latents"_a.noconvert(), "tau"_a,
          "threads"_a);
    m.def("exceedances", &exceedances<float>, "latents"_a.noconvert(), "tau"_a, "threads"_a);
    m.def("exceedances", &exceedances<double>, "latents"_a.noconvert(), "tau"_a, "threads"_a);
    m.def("log_pfa", &log_pfa<float>, "energy"_a.noconvert(), "exceedances"_a.noconvert(), "tail"_a,
          "background"_a, "threads"_a);
    m.def("log_pfa", &log_pfa<double>, "energy"_a.noconvert(), "exceedances"_a.noconvert(), "tail"_a,
          "background"_a, "threads"_a);
    m.def("log_nfa", &log_nfa, "energies"_a, "exceedances"_a, "backgrounds"_a, "height"_a, "width"_a,
          "tail"_a, "by_area"_a, "threads"_a);
    m.def("log_nfa_block", &log_nfa_block, "exceedances"_a, "channels"_a, "height"_a, "width"_a, "window"_a,
          "exceedance"_a, "continuous"_a, "threads"_a);
    m.def("joint_energy", &joint_energy, "energies"_a, "backgrounds"_a, "threads"_a);
    m.def("anomaly_map", &anomaly_map, "energies"_a, "channels"_a, "height"_a, "width"_a, "threads"_a);
    m.def("resize_bilinear", &resize_bilinear, "maps"_a.noconvert(), "height"_a, "width"_a, "threads"_a);
    m.def("connected_components", &connected_components, "mask"_a.noconvert(), "connectivity"_a);
    m.def("regions", &regions<float>, "mask"_a.noconvert(), "log_nfa"_a.noconvert(),
          "anomaly_map"_a.noconvert());
    m.def("regions", &regions<double>, "mask"_a.noconvert(), "log_nfa"_a.noconvert(),
          "anomaly_map"_a.noconvert());
    m.def("log10_chi2_sf", &log10_chi2_sf, "x"_a.noconvert(), "dof"_a.noconvert());
    m.def("log10_chi2_chernoff", &log10_chi2_chernoff, "t"_a.noconvert(), "dof"_a.noconvert(), "guarded"_a);
    m.def("log10_binomial_sf", &log10_binomial_sf, "k"_a.noconvert(), "n"_a.noconvert(), "p"_a.noconvert());
    m.def("chi2_1_quantile", &uflow::chi2_1_quantile, "q"_a);
    m.def("block_tail_table", &block_tail_table, "n"_a, "channels"_a, "p"_a, "continuous"_a);
    m.def("log10_polyominoes", &log10_polyominoes, "r"_a.noconvert());
    m.def("log10_number_of_tests", &log10_number_of_tests, "cells"_a);
    m.def("log10_number_of_tests_by_area", &log10_number_of_tests_by_area, "r"_a.noconvert(), "cells"_a,
          "scales"_a);
}
