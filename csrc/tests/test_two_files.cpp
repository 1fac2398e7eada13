// Every header in two files of one program: it links only if all that they define is inline or a template.
#include "check.hpp"
#include "every_header.hpp"

double quantile_in_another_file(double q);

int main() {
    CHECK(quantile_in_another_file(0.9) == uflow::chi2_1_quantile(0.9));
    return uflow_test::result();
}
