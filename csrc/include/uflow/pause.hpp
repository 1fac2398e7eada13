// Calls that take seconds can be ended: between pieces of work they call a function of the program's.
#pragma once

#include <cstdint>

namespace uflow {

// Called by the thread that called the core, between pieces of work; it may throw, which ends the call. Null:
// nothing is called. Each thread has its own, so that none is called by threads that the core starts.
inline thread_local void (*on_pause)() = nullptr;

inline constexpr std::int32_t between_pauses = 1 << 18;  // pixels: milliseconds

inline void pause() {
    if (on_pause) on_pause();
}

}  // namespace uflow
