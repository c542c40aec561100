// The fuzzer's entry without a fuzzer: inputs worth keeping, and random bytes.
#include <vector>

#include "check.h"
#include "fuzz_input.h"

using namespace baton::world;

namespace {

void holds(const std::vector<std::uint8_t>& input) {
  const std::string fault = run_input(input);
  if (!fault.empty()) check::fail(__FILE__, __LINE__, fault);
}

}  // namespace

TEST(inputs_of_any_length_are_understood) {
  holds({});
  holds({1});
  holds({0, 0, 0, 7});
  holds({0, 0, 0, 7, 0xff, 0xff, 0xff});
  for (int value = 0; value < 256; ++value) {
    holds(std::vector<std::uint8_t>(40, static_cast<std::uint8_t>(value)));
  }
}

TEST(random_bytes_break_no_world) {
  Random random(2026);
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::uint8_t> input(4 + random.below(160));
    for (std::uint8_t& byte : input) byte = static_cast<std::uint8_t>(random.below(256));
    holds(input);
  }
}
