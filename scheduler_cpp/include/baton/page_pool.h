// Pages and who may touch them.
//
// A page is Free, Owned (writable, exactly one owner) or Sealed (immutable, shared). The handles
// carry that in their types: OwnedPage is move-only and gives its page back when it dies; sealing
// consumes it; a SealedPage is a counted reference that is shared explicitly; copy-on-write is the
// only way from Sealed back to Owned. A page with a living handle is never on the free list, so a
// lease, a step or a fetch protects its pages by owning handles.
//
// Sealed pages that nobody references stay findable by identity and are evicted, coldest first,
// when a page is needed. Everything is O(1).
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "baton/ids.h"
#include "baton/large_pages.h"
#include "baton/prefetch.h"
#include "baton/prefix_hash.h"
#include "baton/prefix_index.h"

namespace baton {

class PagePool;
class SealedPage;

// A whole-page copy the executor makes before the rows of the step that names it.
struct PageCopy {
  PageId source;
  PageId target;
};

class [[nodiscard]] OwnedPage {
 public:
  OwnedPage(OwnedPage&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}
  OwnedPage& operator=(OwnedPage&& other) noexcept;
  OwnedPage(const OwnedPage&) = delete;
  OwnedPage& operator=(const OwnedPage&) = delete;
  ~OwnedPage();

  PageId id() const { return id_; }

  // Makes the page immutable and findable. If the identity is already held by another page, that
  // page is the answer and this one is free again; unless it is `in_flight`, read by rows that
  // know it by number: then it stays, under no identity.
  [[nodiscard]] SealedPage seal(const Digest& identity, bool in_flight = false) &&;
  // Before `seal`: what it reads and writes of the pool.
  inline void prefetch_seal(const Digest& identity) const;
  // The same for a partial page: it can be leased by its identity, but is not kept as cache.
  [[nodiscard]] SealedPage seal_tail(const Digest& identity) &&;
  // Makes the page immutable under no identity: only who is given a reference reaches it, and it is
  // free again with the last one.
  [[nodiscard]] SealedPage freeze() &&;

 private:
  friend class PagePool;
  OwnedPage(PagePool& pool, PageId id) : pool_(&pool), id_(id) {}

  PagePool* pool_;
  PageId id_;
};

class [[nodiscard]] SealedPage {
 public:
  SealedPage(SealedPage&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}
  SealedPage& operator=(SealedPage&& other) noexcept;
  SealedPage(const SealedPage&) = delete;
  SealedPage& operator=(const SealedPage&) = delete;
  ~SealedPage();

  PageId id() const { return id_; }
  inline std::size_t group() const;

  [[nodiscard]] SealedPage share() const;
  // Whether others hold it too.
  bool shared() const;
  // Gives up this reference for a writable page of the same content, once `copy` has been made.
  [[nodiscard]] OwnedPage copy_on_write(OwnedPage&& blank, PageCopy& copy) &&;

 private:
  friend class PagePool;
  friend class LeasedPage;
  SealedPage(PagePool& pool, PageId id) : pool_(&pool), id_(id) {}

  PagePool* pool_;
  PageId id_;
};

// A reference held for a remote reader; counted apart so that leased pages can be told.
class [[nodiscard]] LeasedPage {
 public:
  explicit LeasedPage(SealedPage&& page);
  LeasedPage(LeasedPage&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), page_(std::move(other.page_)) {}
  LeasedPage& operator=(LeasedPage&&) = delete;
  LeasedPage(const LeasedPage&) = delete;
  LeasedPage& operator=(const LeasedPage&) = delete;
  ~LeasedPage();

  PageId id() const { return page_.id(); }
  inline std::size_t group() const;

 private:
  PagePool* pool_;
  SealedPage page_;
};

class PagePool {
 public:
  // `group`: of the pages, for those who ask a page where it belongs.
  explicit PagePool(std::size_t pages, std::size_t group = 0);
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // A free page, else the coldest unreferenced sealed one; nothing when all are in use.
  [[nodiscard]] std::optional<OwnedPage> allocate();
  // A reference to the page of this identity.
  [[nodiscard]] std::optional<SealedPage> find(const Digest& identity);
  bool holds(const Digest& identity) const { return index_.find(identity) != kNoEntry; }
  // Whether a copy of this identity lives elsewhere: such pages are evicted first.
  void mark_backed(const Digest& identity, bool backed);
  // The page that is evicted next among those that have no copy elsewhere.
  [[nodiscard]] std::optional<SealedPage> coldest_unbacked();
  // What the next allocation would evict, if it must evict at all.
  [[nodiscard]] std::optional<Digest> next_out() const;
  Digest identity(const SealedPage& page) const { return at(page.id()).identity; }
  // Nobody wants the page of this identity again: it cannot be found any more, and is free now or
  // with its last reference. False: no full page has it.
  bool forget(const Digest& identity);
  // The content is suspect: if nobody else uses the page, nobody will find it again, and it is
  // freed with this reference.
  void forget_unshared(const SealedPage& page);

  std::size_t group() const { return group_; }
  std::size_t total() const { return pages_.size(); }
  std::size_t free() const { return free_.size(); }
  std::size_t cached() const { return cached_; }
  std::size_t owned() const { return owned_; }
  std::size_t referenced() const { return total() - free() - cached_ - owned_; }
  std::size_t leased() const { return leased_; }
  // Unreferenced pages with a copy elsewhere: of those that are evicted first. Walks them.
  std::size_t backed() const {
    std::size_t count = 0;
    for (std::int32_t i = backed_.coldest; i >= 0; i = pages_[static_cast<std::size_t>(i)].warmer) {
      ++count;
    }
    return count;
  }
  std::size_t available() const { return free() + cached_; }

  // Identities that left the index since the list was last taken (full pages only).
  std::vector<Digest>& evicted() { return evicted_; }
  // Moves that list to the end of `list`.
  void take_evicted(std::vector<Digest>& list) {
    list.insert(list.end(), evicted_.begin(), evicted_.end());
    evicted_.clear();
  }
  // Identities of all full pages in the index, in page order.
  [[nodiscard]] std::vector<Digest> held() const;
  // Pages that hold nothing. For debugging: whoever reads one reads garbage.
  [[nodiscard]] const std::vector<PageId>& free_pages() const { return free_; }
  // Evictable pages, the next to go first.
  [[nodiscard]] std::vector<PageId> coldest_first() const;
  // Of the page's identity, while it can be found by it; else of nothing.
  Digest findable_identity(PageId id) const { return at(id).indexed ? at(id).identity : kRoot; }
  // Empty when the pool's own bookkeeping is consistent. `references` counts handles per page as
  // its owners see them (owned: 1).
  [[nodiscard]] const char* audit(const std::vector<std::uint32_t>& references) const;

 private:
  friend class OwnedPage;
  friend class SealedPage;
  friend class LeasedPage;

  enum class Use : std::uint8_t { kFree, kOwned, kSealed };
  struct Page {
    Digest identity;
    std::uint32_t references = 0;
    std::uint32_t leases = 0;
    std::int32_t colder = -1;  // neighbours in the list of unreferenced sealed pages
    std::int32_t warmer = -1;
    Use use = Use::kFree;
    bool indexed = false;
    bool tail = false;
    bool backed = false;
  };
  // Unreferenced sealed pages.
  struct ColdList {
    std::int32_t coldest = -1;
    std::int32_t warmest = -1;
  };

  static constexpr std::int32_t kNoEntry = PrefixIndex::kNone;

  Page& at(PageId id) { return pages_[static_cast<std::size_t>(raw(id))]; }
  const Page& at(PageId id) const { return pages_[static_cast<std::size_t>(raw(id))]; }
  SealedPage seal(PageId id, const Digest& identity, bool tail);
  SealedPage freeze(PageId id);
  void acquire(PageId id);
  void release(PageId id);
  void free_owned(PageId id);
  void to_free(PageId id);
  void unindex(PageId id);
  std::int32_t coldest_of_all() const {
    return backed_.coldest >= 0 ? backed_.coldest : unbacked_.coldest;
  }
  ColdList& list_of(const Page& page) { return page.backed ? backed_ : unbacked_; }
  void link_warmest(PageId id);
  void unlink(PageId id);

  std::size_t group_;
  std::vector<Page, LargePages<Page>> pages_;
  std::vector<PageId> free_;
  PrefixIndex index_;
  std::vector<Digest> evicted_;
  ColdList backed_;  // evicted before the others
  ColdList unbacked_;
  std::size_t cached_ = 0;
  std::size_t owned_ = 0;
  std::size_t leased_ = 0;
};

inline void OwnedPage::prefetch_seal(const Digest& identity) const {
  pool_->index_.prefetch_home(identity);
  prefetch(&pool_->at(id_), sizeof(PagePool::Page));
}

inline std::size_t SealedPage::group() const {
  return pool_->group();
}

inline std::size_t LeasedPage::group() const {
  return pool_->group();
}

}  // namespace baton
