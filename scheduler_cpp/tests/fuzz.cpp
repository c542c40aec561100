// libFuzzer's way into the worlds of the explorer: `make fuzz-scheduler`. The ordinary test run
// feeds the same entry with random bytes (test_fuzz.cpp).
#include <cstdio>
#include <cstdlib>

#include "fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string fault = baton::world::run_input({data, size});
  if (fault.empty()) return 0;
  std::fprintf(stderr, "FAULT: %s\n", fault.c_str());
  std::abort();
}
