// Memory that a thread reuses from image to image.
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

namespace uflow {

// Raw memory that only grows and is never initialised: std::vector would write zeros first. One buffer may
// serve one step for one type and the next for another.
class Buffer {
  public:
    Buffer() noexcept = default;
    Buffer(Buffer&& other) noexcept
        : data_(std::move(other.data_)), capacity_(std::exchange(other.capacity_, 0)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        data_ = std::move(other.data_);
        capacity_ = std::exchange(other.capacity_, 0);
        return *this;
    }

    // At least `count` elements of any value; what was in it is lost where it has to grow.
    template <class T>
    T* fit(std::size_t count) {
        if (count * sizeof(T) > capacity_) {
            data_.reset();  // first: the old and the new memory need not exist together
            capacity_ = 0;
            data_.reset(new unsigned char[count * sizeof(T)]);
            capacity_ = count * sizeof(T);
        }
        return as<T>();
    }
    template <class T>
    T* as() noexcept {
        static_assert(std::is_trivially_copyable<T>::value && std::is_trivially_destructible<T>::value,
                      "memory is reused without calling destructors");
        return reinterpret_cast<T*>(data_.get());
    }
    std::size_t bytes() const noexcept { return capacity_; }

  private:
    std::unique_ptr<unsigned char[]> data_;
    std::size_t capacity_ = 0;
};

}  // namespace uflow
