// Where the page of an identity is: an open-addressing table that never grows.
//
// Identities are outputs of a keyed PRF, so their low bits are already a good, unforgeable hash.
// Deletion shifts entries back, hence no tombstones and no decay.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "baton/ids.h"
#include "baton/large_pages.h"
#include "baton/prefetch.h"
#include "baton/prefix_hash.h"

namespace baton {

class PrefixIndex {
 public:
  static constexpr std::int32_t kNone = -1;

  explicit PrefixIndex(std::size_t entries)
      : mask_(std::bit_ceil(entries * 2 + 2) - 1), cells_(mask_ + 1) {}

  // The page held under the identity, or kNone.
  std::int32_t find(const Digest& identity) const {
    for (std::size_t i = home(identity);; i = next(i)) {
      const Cell& cell = cells_[i];
      if (cell.page == kNone || cell.identity == identity) return cell.page;
    }
  }

  // Before `find` or `insert`: where it starts to look.
  void prefetch_home(const Digest& identity) const {
    prefetch(&cells_[home(identity)], sizeof(Cell));
  }

  // The identity must not be present.
  void insert(const Digest& identity, PageId page) {
    std::size_t i = home(identity);
    while (cells_[i].page != kNone) i = next(i);
    cells_[i] = {identity, raw(page)};
    ++size_;
  }

  // The identity must be present.
  void erase(const Digest& identity) {
    std::size_t hole = home(identity);
    while (cells_[hole].identity != identity || cells_[hole].page == kNone) hole = next(hole);
    for (std::size_t i = next(hole); cells_[i].page != kNone; i = next(i)) {
      // An entry may fill the hole unless its home lies after the hole on its probe path.
      const std::size_t distance_home = (i - home(cells_[i].identity)) & mask_;
      const std::size_t distance_hole = (i - hole) & mask_;
      if (distance_home < distance_hole) continue;
      cells_[hole] = cells_[i];
      hole = i;
    }
    cells_[hole] = {};
    --size_;
  }

  std::size_t size() const { return size_; }

 private:
  struct Cell {
    Digest identity;
    std::int32_t page = kNone;
  };

  std::size_t home(const Digest& identity) const { return identity.lo & mask_; }
  std::size_t next(std::size_t i) const { return (i + 1) & mask_; }

  std::size_t mask_;
  std::size_t size_ = 0;
  std::vector<Cell, LargePages<Cell>> cells_;
};

}  // namespace baton
