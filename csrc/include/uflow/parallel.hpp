// A batch over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace uflow {

// Calls task(worker, index) for every index < count, worker < workers(count, threads). An exception stops the
// rest and is thrown again here. threads <= 0: as many as the machine has.
inline int workers(std::int64_t count, int threads) noexcept {
    if (count <= 1) return 1;  // asking the machine takes 6 us
    const std::int64_t most = threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
    return int(std::min(count, most));
}

template <class Task>
void parallel_for(std::int64_t count, int threads, Task&& task) {
    const int crew = workers(count, threads);
    std::atomic<std::int64_t> next{0};
    std::exception_ptr error;
    std::mutex error_lock;
    const auto work = [&](int worker) noexcept {
        try {
            for (std::int64_t i; (i = next.fetch_add(1)) < count;) task(worker, i);
        } catch (...) {
            next = count;
            const std::lock_guard<std::mutex> lock(error_lock);
            if (!error) error = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    others.reserve(std::size_t(crew - 1));
    try {
        for (int worker = 1; worker < crew; ++worker) others.emplace_back(work, worker);
    } catch (const std::system_error&) {
        // No more threads to be had: those that run do all the work.
    }
    work(0);
    for (std::thread& other : others) other.join();
    if (error) std::rethrow_exception(error);
}

// The workspaces of a crew of threads; that of the calling thread may be the caller's, to be kept.
template <class Workspace>
class Crew {
  public:
    Crew(int size, Workspace* first) : others_(std::size_t(first ? size - 1 : size)), first_(first) {}
    Workspace& operator[](int worker) {
        if (!first_) return others_[std::size_t(worker)];
        return worker == 0 ? *first_ : others_[std::size_t(worker - 1)];
    }

  private:
    std::vector<Workspace> others_;
    Workspace* first_;
};

}  // namespace uflow
