// The whole test framework: two macros that print file:line on failure, and result() for main to return.
#pragma once

#include <cmath>
#include <cstdio>

namespace uflow_test {

inline int& failures() {
    static int count = 0;
    return count;
}

inline int& checks() {
    static int count = 0;
    return count;
}

inline void check(bool ok, const char* text, const char* file, int line) {
    ++checks();
    if (!ok) {
        ++failures();
        std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", file, line, text);
    }
}

// Relative comparison; equal values pass (also infinities and zeros), NaN never does.
inline void check_close(double a, double b, double rel, const char* text, const char* file, int line) {
    ++checks();
    if (!(a == b || std::fabs(a - b) <= rel * std::fmax(std::fabs(a), std::fabs(b))) ||
        (std::isinf(a) && a != b)) {
        ++failures();
        std::fprintf(stderr, "%s:%d: CHECK_CLOSE failed: %s: %.17g and %.17g differ by more than %g\n", file,
                     line, text, a, b, rel);
    }
}

// Exit status of a test program; a program that checked nothing fails.
inline int result() {
    std::fprintf(stderr, "%d checks, %d failed\n", checks(), failures());
    return failures() == 0 && checks() > 0 ? 0 : 1;
}

}  // namespace uflow_test

#define CHECK(cond) ::uflow_test::check(static_cast<bool>(cond), #cond, __FILE__, __LINE__)
#define CHECK_CLOSE(a, b, rel) ::uflow_test::check_close((a), (b), (rel), #a " ~ " #b, __FILE__, __LINE__)
