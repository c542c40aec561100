// The names of things: plain numbers given types, so that a page is never taken for a slot.
#pragma once

#include <cstddef>
#include <cstdint>

namespace baton {

using RequestId = std::uint64_t;  // chosen by the caller, never reused
using LeaseId = std::uint64_t;    // 0 is no lease
using Micros = std::int64_t;      // monotonic microseconds, told by events
using Token = std::int32_t;

enum class PageId : std::int32_t {};
enum class SlotId : std::int32_t {};

constexpr std::int32_t raw(PageId page) {
  return static_cast<std::int32_t>(page);
}
constexpr std::int32_t raw(SlotId slot) {
  return static_cast<std::int32_t>(slot);
}

constexpr std::size_t pages_for(std::size_t tokens, std::size_t page_size) {
  return (tokens + page_size - 1) / page_size;
}

}  // namespace baton
