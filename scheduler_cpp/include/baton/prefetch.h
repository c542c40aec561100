// Asks for memory that will be needed soon, so that it is on its way meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>

namespace baton {

// All cache lines of `bytes` from `at` on. The memory need not exist.
inline void prefetch(const void* at, std::size_t bytes) {
  constexpr std::uintptr_t kLine = 64;
  const auto begin = reinterpret_cast<std::uintptr_t>(at);
  for (std::uintptr_t line = begin / kLine * kLine; line < begin + bytes; line += kLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(line));
  }
  // GCC takes a function that does nothing but prefetch for one without effects, and drops calls
  // of it. It keeps those of one with an `asm`, and be it empty.
  asm volatile("");
}

}  // namespace baton
