// The pages of one request, in token order: shared sealed ones first, then writable ones; and what
// it holds in the groups beside full attention.
#pragma once

#include <algorithm>
#include <cassert>
#include <optional>
#include <utility>
#include <vector>

#include "baton/ids.h"
#include "baton/page_pool.h"
#include "baton/prefetch.h"
#include "baton/side_tables.h"

namespace baton {

// The part of a parent's page that a child takes as a copy: its first tokens.
struct PartialCopy {
  PageId source;
  std::size_t tokens;
  std::optional<SealedPage> pin;   // of a page that is sealed; a writable one has its owner
  std::vector<SealedPage> beside;  // the same of each window group; always sealed
};

class [[nodiscard]] PageTable {
 public:
  PageTable() = default;
  PageTable(PageTable&&) noexcept = default;
  PageTable& operator=(PageTable&& other) noexcept {
    clear();
    sealed_ = std::move(other.sealed_);
    owned_ = std::move(other.owned_);
    first_owned_ = std::exchange(other.first_owned_, 0);
    sides_ = std::move(other.sides_);
    return *this;
  }
  PageTable(const PageTable&) = delete;
  PageTable& operator=(const PageTable&) = delete;
  ~PageTable() { clear(); }

  std::size_t size() const { return sealed_.size() + owned(); }
  std::size_t sealed() const { return sealed_.size(); }
  std::size_t owned() const { return owned_.size() - first_owned_; }
  void reserve(std::size_t pages) { sealed_.reserve(pages); }

  PageId operator[](std::size_t index) const {
    return index < sealed_.size() ? sealed_[index].id()
                                  : owned_[first_owned_ + index - sealed_.size()].id();
  }
  const SealedPage& sealed_page(std::size_t index) const { return sealed_[index]; }

  SideTables& sides() { return sides_; }
  const SideTables& sides() const { return sides_; }

  // Sealed pages go in front of every writable one.
  void append(SealedPage&& page) {
    assert(owned() == 0);
    sealed_.push_back(std::move(page));
  }
  void append(OwnedPage&& page) { owned_.push_back(std::move(page)); }

  // Seals the first writable page and says which page now holds the identity.
  PageId seal_next(const Digest& identity, bool in_flight = false) {
    sealed_.push_back(take_first_owned().seal(identity, in_flight));
    return sealed_.back().id();
  }
  PageId seal_tail(const Digest& identity) {
    sealed_.push_back(take_first_owned().seal_tail(identity));
    return sealed_.back().id();
  }
  // Before `seal_next`: the ends of the lists; then, with the identity, where the page is found.
  void prefetch_seal() const {
    prefetch(owned_.data() + first_owned_, sizeof(OwnedPage));
    prefetch(sealed_.data() + sealed_.size(), sizeof(SealedPage));
  }
  void prefetch_seal(const Digest& identity) const { owned_[first_owned_].prefetch_seal(identity); }
  // Makes the first writable page immutable under no identity.
  void freeze_next() { sealed_.push_back(take_first_owned().freeze()); }

  // Lets `child` have the first `tokens` tokens of these pages: full pages by reference, behind
  // those it has, and what it needs of the next page as a copy that is still to be made.
  [[nodiscard]] std::optional<PartialCopy> fork(PageTable& child, std::size_t tokens,
                                                std::size_t page_size) const {
    const std::size_t full = std::min(tokens / page_size, sealed());
    std::vector<SealedPage> beside;
    if (!sides_.empty()) beside = sides_.fork(child.sides_, tokens, page_size);
    while (child.sealed() < full) child.append(sealed_[child.sealed()].share());
    const std::size_t has = child.sealed() * page_size;
    if (tokens <= has || child.sealed() >= size()) return std::nullopt;
    PartialCopy copy{(*this)[child.sealed()], std::min(tokens - has, page_size), std::nullopt,
                     std::move(beside)};
    if (child.sealed() < sealed()) copy.pin = sealed_[child.sealed()].share();
    return copy;
  }

  // How many leading pages others hold too. Whoever shares a page shares those before it.
  std::size_t shared() const {
    const auto end = std::partition_point(sealed_.begin(), sealed_.end(),
                                          [](const SealedPage& page) { return page.shared(); });
    return static_cast<std::size_t>(end - sealed_.begin());
  }

  // Gives back writable pages from index `pages` on.
  void shrink_to(std::size_t pages) {
    while (owned() > 0 && size() > pages) owned_.pop_back();
    if (owned() == 0) {
      owned_.clear();
      first_owned_ = 0;
    }
  }

  // Keeps the first `pages`, which are sealed.
  void truncate(std::size_t pages) {
    assert(owned() == 0);
    while (sealed_.size() > pages) sealed_.pop_back();
  }

  // Writable pages are dropped first, then references from the last page to the first, so that a
  // prefix outlives its continuations in the cache.
  void clear() {
    sides_.clear();
    owned_.clear();
    first_owned_ = 0;
    while (!sealed_.empty()) sealed_.pop_back();
  }

 private:
  OwnedPage take_first_owned() {
    assert(owned() > 0);
    OwnedPage page = std::move(owned_[first_owned_]);
    if (++first_owned_ == owned_.size()) {
      owned_.clear();
      first_owned_ = 0;
    }
    return page;
  }

  std::vector<SealedPage> sealed_;
  std::vector<OwnedPage> owned_;
  std::size_t first_owned_ = 0;  // those before it have been sealed
  SideTables sides_;
};

}  // namespace baton
