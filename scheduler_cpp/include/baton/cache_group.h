// Layers that share a retention rule share a cache group. Group 0 keeps every token (full
// attention) and is always there; what stands beside it is described here, numbered from 1.
#pragma once

#include <cstddef>
#include <cstdint>

#include "baton/prefix_hash.h"

namespace baton {

enum class Retention : std::uint8_t {
  kWindow,  // the pages that overlap the last `tokens` tokens
  kState,   // one state, and a snapshot of it every `tokens` tokens
};

struct SideGroup {
  Retention keeps = Retention::kWindow;
  std::size_t tokens = 0;
  std::size_t pages = 0;

  // Window: the first page that a query at `position` or a later one reads.
  std::size_t first_needed(std::size_t position, std::size_t page_size) const {
    return position + 1 > tokens ? (position + 1 - tokens) / page_size : 0;
  }
  // Pages that one request cannot do without.
  std::size_t least_pages(std::size_t page_size) const {
    return keeps == Retention::kState ? 2 : (tokens - 1 + page_size - 1) / page_size + 1;
  }
};

// A page's identity in group `group`. Identities are outputs of a keyed PRF, so a constant told
// apart by group salts them as well as another key would.
constexpr Digest in_group(const Digest& identity, std::size_t group) {
  return {identity.lo ^ group * 0x9e3779b97f4a7c15ULL, identity.hi ^ group * 0xc2b2ae3d27d4eb4fULL};
}

}  // namespace baton
