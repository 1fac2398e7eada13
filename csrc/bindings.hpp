// What bindings.cpp and bindings_testing.cpp share: numpy arrays, the checks of what would make the core read
// or write out of bounds, and the GIL. Nothing is converted silently and inputs are never written.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "uflow/lanes.hpp"
#include "uflow/pause.hpp"

namespace bindings {

namespace py = pybind11;
using py::literals::operator""_a;

template <class T>
using Array = py::array_t<T, py::array::c_style>;  // as an argument always with noconvert()
using Counts = std::optional<Array<std::int32_t>>;
using Shape = std::vector<py::ssize_t>;

// Ctrl-C and other signals are Python's to handle, which it does in its main thread alone and with the GIL.
// So the core's pauses look whether there is one, not more often than people notice, and what a handler
// raises ends the call.
class Signals {
  public:
    Signals() {
        last_look = Clock::now();
        uflow::on_pause = &look;
    }
    ~Signals() { uflow::on_pause = nullptr; }
    Signals(const Signals&) = delete;
    Signals& operator=(const Signals&) = delete;

  private:
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::milliseconds interval{50};
    static inline thread_local Clock::time_point last_look;

    static void look() {
        const Clock::time_point now = Clock::now();
        if (now - last_look < interval) return;
        last_look = now;
        const py::gil_scoped_acquire acquire;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
};

// What work() returns; other Python threads run meanwhile.
template <class Work>
auto without_gil(Work&& work) {
    const py::gil_scoped_release release;
    const Signals signals;
    return work();
}

// A new array, which fill(its memory) writes while other Python threads run.
template <class T, class Fill>
Array<T> new_array(Shape shape, Fill&& fill) {
    Array<T> array(std::move(shape));
    T* memory = array.mutable_data();
    without_gil([&] { fill(memory); });
    return array;
}

// Memory that a Python thread keeps from call to call: for a small map, touching fresh pages takes as long as
// the work (docs/notebook/performance.md). Given back where it grew large, and when the thread ends.
template <class Workspace, class Use>
void with_kept(Use&& use) {
    thread_local Workspace kept;
    use(kept);
    if (kept.bytes() > (std::size_t(64) << 20)) kept = Workspace{};
}

// The same function for float32 and for float64 arrays.
template <class Float, class Double, class... Arguments>
void def_both(py::module_& m, const char* name, Float of_float, Double of_double,
              const Arguments&... arguments) {
    m.def(name, of_float, arguments...);
    m.def(name, of_double, arguments...);
}

// For checks made once a call: the message is built in any case.
inline void require(bool ok, const std::string& message) {
    if (!ok) throw std::invalid_argument(message);
}

inline std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

inline Shape shape_like(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

inline std::int32_t side(const py::array& array, py::ssize_t axis) { return std::int32_t(array.shape(axis)); }

// Dimensions, at least one element, and every side within int32.
inline void check_shape(const py::array& array, py::ssize_t dims, const char* name) {
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

inline void check_same_shape(const py::array& a, const py::array& b, const char* names) {
    require(a.ndim() == b.ndim() && std::equal(a.shape(), a.shape() + a.ndim(), b.shape()),
            std::string(names) + " must have the same shape, got " + shape_of(a) + " and " + shape_of(b));
}

// Messages are made only when needed: this runs over every element.
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

inline void check_connectivity(int connectivity) {
    if (connectivity != 4 && connectivity != 8)
        throw std::invalid_argument("connectivity must be 4 or 8, got " + std::to_string(connectivity));
}

template <class T>
void check_image(const Array<T>& image, int connectivity) {
    check_shape(image, 2, "image");
    check_finite(image, "image");
    check_connectivity(connectivity);
}

}  // namespace bindings
