// The module _core_testing: parts of the core that only tests and benchmarks call from Python.
#include "bindings.hpp"
#include "uflow/block_test.hpp"
#include "uflow/component_tree.hpp"
#include "uflow/field.hpp"
#include "uflow/select.hpp"
#include "uflow/tail.hpp"

using namespace bindings;

namespace {

template <class T, class U>
Array<T> to_array(const U* values, std::int32_t count) {
    return new_array<T>({count}, [&](T* out) { std::copy(values, values + count, out); });
}

template <class T>
py::dict component_tree(const Array<T>& image, int connectivity, const Counts& exceedances) {
    check_image(image, connectivity);
    if (exceedances) check_same_shape(image, *exceedances, "image and exceedances");
    const auto kind = uflow::Connectivity(connectivity);
    uflow::TreeWorkspace work;
    const auto tree_of = [&](const std::int32_t* counts) {
        return uflow::component_tree(image.data(), counts, side(image, 0), side(image, 1), kind, work);
    };
    py::dict result;
    if (exceedances) {
        const auto tree = tree_of(exceedances->data());
        result["exceedances"] = to_array<std::int64_t>(tree.value, tree.size);
    }
    const auto tree = tree_of(nullptr);
    result["parent"] = to_array<std::int32_t>(tree.parent, tree.size);
    result["area"] = to_array<std::int32_t>(tree.area, tree.size);
    result["level"] = to_array<T>(tree.value, tree.size);
    result["node_of"] = new_array<std::int32_t>(shape_like(image), [&](std::int32_t* node_of) {
        const auto* order = work.order.as<std::int32_t>();
        for (py::ssize_t rank = 0; rank < image.size(); ++rank) node_of[order[rank]] = tree.node_of[rank];
    });
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
    return new_array<std::int32_t>({nodes}, [&](std::int32_t* region) {
        uflow::Buffer work;
        uflow::select_regions(in, first, nodes, work, region);
    });
}

Array<double> log10_chi2_chernoff(const Array<double>& t, const Array<double>& dof, bool guarded) {
    check_same_shape(t, dof, "t and dof");
    return new_array<double>({t.size()}, [&](double* out) {
        std::transform(t.data(), t.data() + t.size(), dof.data(), out,
                       [&](double ratio, double d) { return uflow::log10_chi2_chernoff(ratio, d, guarded); });
    });
}

Array<double> block_tail_table(int n, int channels, double p, bool continuous) {
    require(n > 0 && channels > 0 && p > 0.0 && p < 1.0,
            "block_tail_table needs n, channels > 0 and 0 < p < 1");
    return new_array<double>({py::ssize_t(n) * channels + 1}, [&](double* table) {
        uflow::block_tail_table(n, channels, p, continuous, table);
    });
}

std::vector<uflow::Maps> maps_of(const std::vector<Array<float>>& arrays) {
    std::vector<uflow::Maps> maps;
    for (const Array<float>& array : arrays) {
        check_shape(array, 3, "maps");
        require(array.shape(0) == arrays[0].shape(0), "maps must have one batch size");
        maps.push_back({array.data(), side(array, 1), side(array, 2)});
    }
    return maps;
}

// The field, and what outlines are drawn on.
py::tuple evidence_field(const std::vector<Array<float>>& energies,
                         const std::vector<Array<float>>& distances, const std::vector<double>& energy_means,
                         double latents, const std::vector<double>& distance_weights) {
    const uflow::Evidence evidence{maps_of(energies), maps_of(distances)};
    require(!energies.empty() && energy_means.size() == energies.size() &&
                distance_weights.size() == distances.size(),
            "one mean per energy and one weight per distance are needed");
    const uflow::EvidenceWeights weights{energy_means, latents, distance_weights};
    const std::int64_t batch = energies[0].shape(0);
    for (const Array<float>& array : distances)
        require(array.shape(0) == batch, "maps must have one batch size");
    const Shape shape = shape_like(energies[0]);
    const auto field =
        new_array<float>(shape, [&](float* out) { uflow::evidence_field(evidence, weights, batch, 1, out); });
    const auto drawing =
        new_array<float>(shape, [&](float* out) { uflow::drawing_map(evidence, weights, batch, 1, out); });
    return py::make_tuple(field, drawing);
}

}  // namespace

PYBIND11_MODULE(_core_testing, m, py::mod_gil_not_used()) {
    m.doc() = "Parts of the C++ core for its tests and benchmarks; no installed package has this module.";

    def_both(m, "component_tree", &component_tree<float>, &component_tree<double>, "image"_a.noconvert(),
             "connectivity"_a, "exceedances"_a.noconvert() = py::none());
    m.def("select_regions", &select_regions, "parent"_a.noconvert(), "value"_a.noconvert());
    m.def("log10_chi2_chernoff", &log10_chi2_chernoff, "t"_a.noconvert(), "dof"_a.noconvert(), "guarded"_a);
    m.def("block_tail_table", &block_tail_table, "n"_a, "channels"_a, "p"_a, "continuous"_a);
    m.def("evidence_field", &evidence_field, "energies"_a, "distances"_a, "energy_means"_a, "latents"_a,
          "distance_weights"_a);
}
