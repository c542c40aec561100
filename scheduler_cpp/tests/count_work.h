// What the instrumented core has done so far; see count_work.cpp.
#pragma once

#include <cstdint>

namespace baton::test {

struct Work {
  std::uint64_t blocks = 0;       // basic blocks run
  std::uint64_t bytes = 0;        // copied, moved or set
  std::uint64_t allocations = 0;  // on the heap
};
// A call, not a variable: the compiler does not know that its own hook counts.
Work work_done();

}  // namespace baton::test
