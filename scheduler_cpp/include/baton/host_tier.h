// Copies of sealed pages in host memory, findable by identity, coldest evicted first; and the
// movements to and from it. A movement is a ticket that owns both ends: the executor copies when it
// likes, and neither end can be reused before it has said that the movement is over.
//
// A host page is a type of its own: it cannot stand in a page table, nor a device page in here.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "baton/ids.h"
#include "baton/page_pool.h"

namespace baton {

// A reference to a copy that can be read.
class [[nodiscard]] HostPage {
 public:
  std::int32_t id() const { return raw(page_.id()); }

 private:
  friend class HostTier;
  friend class BlankHostPage;
  explicit HostPage(SealedPage&& page) : page_(std::move(page)) {}

  SealedPage page_;
};

// A host page with one writer: the movement that fills it.
class [[nodiscard]] BlankHostPage {
 public:
  std::int32_t id() const { return raw(page_.id()); }
  [[nodiscard]] HostPage seal(const Digest& identity) && {
    return HostPage(std::move(page_).seal(identity));
  }

 private:
  friend class HostTier;
  explicit BlankHostPage(OwnedPage&& page) : page_(std::move(page)) {}

  OwnedPage page_;
};

class HostTier {
 public:
  explicit HostTier(std::size_t pages) : pool_(pages) {}

  // A free page, else the coldest copy that nobody reads.
  [[nodiscard]] std::optional<BlankHostPage> allocate() {
    std::optional<OwnedPage> page = pool_.allocate();
    if (!page) return std::nullopt;
    return BlankHostPage(std::move(*page));
  }
  [[nodiscard]] std::optional<HostPage> find(const Digest& identity) {
    std::optional<SealedPage> page = pool_.find(identity);
    if (!page) return std::nullopt;
    return HostPage(std::move(*page));
  }
  bool holds(const Digest& identity) const { return pool_.holds(identity); }
  // Whose copy the next allocation would overwrite, if any.
  [[nodiscard]] std::optional<Digest> next_out() const { return pool_.next_out(); }
  // The content is suspect: unless it is being read, nobody finds it again.
  void forget_unread(const Digest& identity) {
    if (const auto page = pool_.find(identity)) pool_.forget_unshared(*page);
  }
  // Identities that left since the list was last taken.
  std::vector<Digest>& evicted() { return pool_.evicted(); }
  const PagePool& pages() const { return pool_; }

 private:
  PagePool pool_;
};

using OffloadId = std::uint64_t;  // 0 is none

// A device page is being copied into a host page.
class [[nodiscard]] OffloadTicket {
 public:
  OffloadTicket(SealedPage&& source, BlankHostPage&& target, const Digest& identity)
      : source_(std::move(source)), target_(std::move(target)), identity_(identity) {}

  PageId source() const { return source_.id(); }
  std::int32_t target() const { return target_.id(); }
  const Digest& identity() const { return identity_; }
  // The copy is complete: it can be found from now on.
  void land() && {
    const SealedPage read = std::move(source_);
    const HostPage written = std::move(target_).seal(identity_);
  }

 private:
  SealedPage source_;
  BlankHostPage target_;
  Digest identity_;
};

}  // namespace baton
