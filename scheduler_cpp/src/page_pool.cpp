#include "baton/page_pool.h"

namespace baton {

// ---------------------------------------------------------------- handles

OwnedPage& OwnedPage::operator=(OwnedPage&& other) noexcept {
  if (this != &other) {
    if (pool_) pool_->free_owned(id_);
    pool_ = std::exchange(other.pool_, nullptr);
    id_ = other.id_;
  }
  return *this;
}

OwnedPage::~OwnedPage() {
  if (pool_) pool_->free_owned(id_);
}

SealedPage OwnedPage::seal(const Digest& identity, bool in_flight) && {
  if (in_flight && pool_->holds(identity)) return std::move(*this).freeze();
  return std::exchange(pool_, nullptr)->seal(id_, identity, /*tail=*/false);
}

SealedPage OwnedPage::seal_tail(const Digest& identity) && {
  return std::exchange(pool_, nullptr)->seal(id_, identity, /*tail=*/true);
}

SealedPage OwnedPage::freeze() && {
  return std::exchange(pool_, nullptr)->freeze(id_);
}

SealedPage& SealedPage::operator=(SealedPage&& other) noexcept {
  if (this != &other) {
    if (pool_) pool_->release(id_);
    pool_ = std::exchange(other.pool_, nullptr);
    id_ = other.id_;
  }
  return *this;
}

SealedPage::~SealedPage() {
  if (pool_) pool_->release(id_);
}

SealedPage SealedPage::share() const {
  pool_->acquire(id_);
  return SealedPage(*pool_, id_);
}

bool SealedPage::shared() const {
  return pool_->at(id_).references > 1;
}

OwnedPage SealedPage::copy_on_write(OwnedPage&& blank, PageCopy& copy) && {
  copy = {id_, blank.id()};
  const SealedPage given_up = std::move(*this);
  return std::move(blank);
}

LeasedPage::LeasedPage(SealedPage&& page) : pool_(page.pool_), page_(std::move(page)) {
  if (pool_->at(page_.id()).leases++ == 0) ++pool_->leased_;
}

LeasedPage::~LeasedPage() {
  if (pool_ && --pool_->at(page_.id()).leases == 0) --pool_->leased_;
}

// ---------------------------------------------------------------- pool

PagePool::PagePool(std::size_t pages, std::size_t group)
    : group_(group), pages_(pages), index_(pages) {
  free_.reserve(pages);
  for (std::size_t i = pages; i-- > 0;) free_.push_back(static_cast<PageId>(i));
}

std::optional<OwnedPage> PagePool::allocate() {
  if (free_.empty()) {
    const std::int32_t next = coldest_of_all();
    if (next < 0) return std::nullopt;
    const auto coldest = static_cast<PageId>(next);
    unlink(coldest);
    unindex(coldest);
    to_free(coldest);
  }
  const PageId id = free_.back();
  free_.pop_back();
  at(id).use = Use::kOwned;
  ++owned_;
  return OwnedPage(*this, id);
}

std::optional<SealedPage> PagePool::find(const Digest& identity) {
  const std::int32_t found = index_.find(identity);
  if (found == kNoEntry) return std::nullopt;
  acquire(static_cast<PageId>(found));
  return SealedPage(*this, static_cast<PageId>(found));
}

void PagePool::mark_backed(const Digest& identity, bool backed) {
  const std::int32_t found = index_.find(identity);
  if (found == kNoEntry) return;
  const auto id = static_cast<PageId>(found);
  const bool cold = at(id).references == 0;
  if (cold) unlink(id);
  at(id).backed = backed;
  if (cold) link_warmest(id);
}

std::optional<SealedPage> PagePool::coldest_unbacked() {
  if (unbacked_.coldest < 0) return std::nullopt;
  const auto id = static_cast<PageId>(unbacked_.coldest);
  acquire(id);
  return SealedPage(*this, id);
}

std::optional<Digest> PagePool::next_out() const {
  const std::int32_t next = coldest_of_all();
  if (!free_.empty() || next < 0) return std::nullopt;
  return at(static_cast<PageId>(next)).identity;
}

void PagePool::forget_unshared(const SealedPage& page) {
  if (at(page.id()).references == 1 && at(page.id()).indexed) unindex(page.id());
}

SealedPage PagePool::seal(PageId id, const Digest& identity, bool tail) {
  const std::int32_t found = index_.find(identity);
  if (found != kNoEntry) {
    free_owned(id);
    acquire(static_cast<PageId>(found));
    return SealedPage(*this, static_cast<PageId>(found));
  }
  Page& page = at(id);
  page.identity = identity;
  page.use = Use::kSealed;
  page.indexed = true;
  page.tail = tail;
  page.references = 1;
  --owned_;
  index_.insert(identity, id);
  return SealedPage(*this, id);
}

SealedPage PagePool::freeze(PageId id) {
  Page& page = at(id);
  page.use = Use::kSealed;
  page.references = 1;
  --owned_;
  return SealedPage(*this, id);
}

void PagePool::acquire(PageId id) {
  if (at(id).references++ == 0) unlink(id);
}

void PagePool::release(PageId id) {
  Page& page = at(id);
  if (--page.references > 0) return;
  if (page.indexed && !page.tail) {
    link_warmest(id);
    return;
  }
  if (page.indexed) unindex(id);
  to_free(id);
}

void PagePool::free_owned(PageId id) {
  --owned_;
  to_free(id);
}

void PagePool::to_free(PageId id) {
  Page& page = at(id);
  page.use = Use::kFree;
  page.tail = false;
  page.backed = false;
  free_.push_back(id);
}

void PagePool::unindex(PageId id) {
  Page& page = at(id);
  index_.erase(page.identity);
  page.indexed = false;
  if (!page.tail) evicted_.push_back(page.identity);
}

void PagePool::link_warmest(PageId id) {
  Page& page = at(id);
  ColdList& list = list_of(page);
  page.colder = list.warmest;
  page.warmer = -1;
  (list.warmest < 0 ? list.coldest : at(static_cast<PageId>(list.warmest)).warmer) = raw(id);
  list.warmest = raw(id);
  ++cached_;
}

void PagePool::unlink(PageId id) {
  const Page& page = at(id);
  ColdList& list = list_of(page);
  (page.colder < 0 ? list.coldest : at(static_cast<PageId>(page.colder)).warmer) = page.warmer;
  (page.warmer < 0 ? list.warmest : at(static_cast<PageId>(page.warmer)).colder) = page.colder;
  --cached_;
}

std::vector<Digest> PagePool::held() const {
  std::vector<Digest> held;
  for (const Page& page : pages_) {
    if (page.indexed && !page.tail) held.push_back(page.identity);
  }
  return held;
}

std::vector<PageId> PagePool::coldest_first() const {
  std::vector<PageId> ids;
  for (const ColdList* list : {&backed_, &unbacked_}) {
    for (std::int32_t i = list->coldest; i >= 0; i = pages_[static_cast<std::size_t>(i)].warmer) {
      ids.push_back(static_cast<PageId>(i));
    }
  }
  return ids;
}

const char* PagePool::audit(const std::vector<std::uint32_t>& references) const {
  std::size_t free_seen = 0, owned_seen = 0, cached_seen = 0, leased_seen = 0, indexed_seen = 0;
  for (std::size_t i = 0; i < pages_.size(); ++i) {
    const Page& page = pages_[i];
    if (page.leases > page.references) return "a page has more leases than references";
    leased_seen += page.leases > 0;
    indexed_seen += page.indexed;
    switch (page.use) {
      case Use::kFree:
        ++free_seen;
        if (references[i] != 0) return "a free page has an owner";
        if (page.indexed) return "a free page is indexed";
        break;
      case Use::kOwned:
        ++owned_seen;
        if (references[i] != 1) return "an owned page does not have exactly one owner";
        if (page.indexed) return "a writable page is indexed";
        break;
      case Use::kSealed:
        if (references[i] != page.references) return "a sealed page's references do not add up";
        if (page.references == 0) {
          ++cached_seen;
          if (!page.indexed) return "an unreferenced sealed page cannot be found";
        }
        if (page.indexed && index_.find(page.identity) != static_cast<std::int32_t>(i)) {
          return "the index does not lead to an indexed page";
        }
        break;
    }
  }
  if (free_seen != free_.size()) return "the free list and the free pages differ";
  if (owned_seen != owned_) return "the count of owned pages is off";
  if (cached_seen != cached_) return "the count of cached pages is off";
  if (leased_seen != leased_) return "the count of leased pages is off";
  if (indexed_seen != index_.size()) return "the index holds entries that no page claims";
  std::size_t linked = 0;
  for (const ColdList* list : {&backed_, &unbacked_}) {
    for (std::int32_t i = list->coldest; i >= 0; i = pages_[static_cast<std::size_t>(i)].warmer) {
      const Page& page = pages_[static_cast<std::size_t>(i)];
      if (++linked > cached_) return "the eviction list has a loop";
      if (page.references != 0) return "an evictable page is in use";
      if (page.backed != (list == &backed_)) return "an evictable page is in the wrong list";
    }
  }
  if (linked != cached_) return "the eviction list and the cached pages differ";
  return "";
}

}  // namespace baton
