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

#include "uflow/pause.hpp"

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
            for (std::int64_t i; (i = next.fetch_add(1)) < count;) {
                pause();
                task(worker, i);
            }
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

// Calls task(workspace, image) for every image of a batch; each thread has a workspace of its own. `kept`:
// that of the calling thread, for its next call too, or null.
template <class Workspace, class Task>
void for_each_image(std::int64_t batch, int threads, Workspace* kept, Task&& task) {
    std::vector<Workspace> others(std::size_t(workers(batch, threads) - (kept ? 1 : 0)));
    parallel_for(batch, threads, [&](int worker, std::int64_t image) {
        task(kept && worker == 0 ? *kept : others[std::size_t(worker - (kept ? 1 : 0))], image);
    });
}

}  // namespace uflow
