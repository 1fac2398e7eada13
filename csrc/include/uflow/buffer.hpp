// Memory that a thread reuses from image to image.
#pragma once

#include <cstddef>
#include <memory>

namespace uflow {

// An array that only grows and is never initialised: std::vector would write zeros first.
template <class T>
class Buffer {
  public:
    // At least `count` elements of any value; what was in it is lost where it has to grow.
    T* fit(std::size_t count) {
        if (count > capacity_) {
            data_.reset();  // first: the old and the new memory need not exist together
            capacity_ = 0;
            data_.reset(new T[count]);
            capacity_ = count;
        }
        return data_.get();
    }
    T* data() noexcept { return data_.get(); }
    std::size_t bytes() const noexcept { return capacity_ * sizeof(T); }

  private:
    std::unique_ptr<T[]> data_;
    std::size_t capacity_ = 0;
};

}  // namespace uflow
