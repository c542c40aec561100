// Counts what the core does: every basic block that runs (the compiler calls a hook at each: gcc
// and clang, -fsanitize-coverage=trace-pc), and the bytes of every memcpy, memmove and memset it
// makes (the linker wraps them). Exact, the same on a busy machine, and needs neither tools nor
// hardware counters. This file itself is not instrumented.
#include "count_work.h"

#include <cstdlib>
#include <new>

namespace {
baton::test::Work work;
}

namespace baton::test {
Work work_done() {
  return work;
}
}  // namespace baton::test

extern "C" {

void __sanitizer_cov_trace_pc() {
  ++work.blocks;
}

void* __real_memcpy(void* to, const void* from, std::size_t bytes);
void* __real_memmove(void* to, const void* from, std::size_t bytes);
void* __real_memset(void* to, int value, std::size_t bytes);

void* __wrap_memcpy(void* to, const void* from, std::size_t bytes) {
  work.bytes += bytes;
  return __real_memcpy(to, from, bytes);
}
void* __wrap_memmove(void* to, const void* from, std::size_t bytes) {
  work.bytes += bytes;
  return __real_memmove(to, from, bytes);
}
void* __wrap_memset(void* to, int value, std::size_t bytes) {
  work.bytes += bytes;
  return __real_memset(to, value, bytes);
}
}

void* operator new(std::size_t size) {
  ++work.allocations;
  if (void* p = std::malloc(size ? size : 1)) return p;
  std::abort();
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}
