// The other file of test_two_files.cpp.
#include "every_header.hpp"

double quantile_in_another_file(double q) { return uflow::chi2_1_quantile(q); }
