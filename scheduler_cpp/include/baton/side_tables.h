// What one request holds in the groups beside full attention: a moving window of pages, or a state.
#pragma once

#include <algorithm>
#include <cassert>
#include <optional>
#include <utility>
#include <vector>

#include "baton/cache_group.h"
#include "baton/ids.h"
#include "baton/page_pool.h"

namespace baton {

// Pages [first, end) of a request in a window group: sealed ones first, then writable ones.
class [[nodiscard]] WindowTable {
 public:
  // `room`: pages it will hold at most, so that growing never allocates.
  WindowTable(PagePool& pool, std::size_t first, std::size_t room) : pool_(&pool), first_(first) {
    sealed_.reserve(room);
    owned_.reserve(room);
  }
  WindowTable(WindowTable&&) noexcept = default;
  WindowTable& operator=(WindowTable&&) = delete;
  WindowTable(const WindowTable&) = delete;
  WindowTable& operator=(const WindowTable&) = delete;
  ~WindowTable() { clear(); }

  PagePool& pool() const { return *pool_; }
  std::size_t first() const { return first_; }
  std::size_t sealed_end() const { return first_ + sealed_.size(); }
  std::size_t end() const { return sealed_end() + owned_.size(); }
  PageId operator[](std::size_t index) const {
    return index < sealed_end() ? sealed_[index - first_].id() : owned_[index - sealed_end()].id();
  }
  const SealedPage& sealed_page(std::size_t index) const { return sealed_[index - first_]; }

  void append(SealedPage&& page) {
    assert(owned_.empty());
    sealed_.push_back(std::move(page));
  }
  void append(OwnedPage&& page) { owned_.push_back(std::move(page)); }

  // Seals page `sealed_end()` and says which page now holds the identity.
  PageId seal_next(const Digest& identity) {
    sealed_.push_back(take_first_owned().seal(identity));
    return sealed_.back().id();
  }
  PageId seal_tail(const Digest& identity) {
    sealed_.push_back(take_first_owned().seal_tail(identity));
    return sealed_.back().id();
  }

  // While a fetch fills the writable pages: one past the last page that is here.
  std::size_t arrived() const { return arrived_; }
  void arrive(std::size_t end) { arrived_ = end; }

  // Lets go of the oldest page. It is sealed: only what is computed falls out of a window.
  void drop_first() {
    assert(!sealed_.empty());
    sealed_.erase(sealed_.begin());
    ++first_;
  }

  // Nothing is written any more: pages before `end` become immutable, others are given back.
  void freeze(std::size_t end) {
    while (!owned_.empty() && this->end() > end) owned_.pop_back();
    while (!owned_.empty()) sealed_.push_back(take_first_owned().freeze());
  }
  // References to the first pages up to `end`, for a child that goes on where this one stopped.
  [[nodiscard]] WindowTable fork(std::size_t end) const {
    WindowTable child(*pool_, first_, sealed_.capacity());
    for (std::size_t i = first_; i < end; ++i) child.append(sealed_page(i).share());
    return child;
  }

  void clear() {
    owned_.clear();
    while (!sealed_.empty()) sealed_.pop_back();
  }

 private:
  OwnedPage take_first_owned() {
    assert(!owned_.empty());
    OwnedPage page = std::move(owned_.front());
    owned_.erase(owned_.begin());
    return page;
  }

  PagePool* pool_;
  std::size_t first_;
  std::size_t arrived_ = 0;
  std::vector<SealedPage> sealed_;
  std::vector<OwnedPage> owned_;
};

// The pages a row reads its state from and writes it to. No read page: from the zero state.
struct StateRow {
  std::int32_t read;
  std::int32_t write;
};
static_assert(sizeof(StateRow) == 2 * sizeof(std::int32_t));

// The state of a request: a snapshot that the next row reads, if it stands on one, and the page
// that rows write. A row that ends on a snapshot's boundary takes the page after it beforehand, so
// that a snapshot is never a copy and never waits.
class [[nodiscard]] StatePages {
 public:
  // Starts from the snapshot, or from the zero state.
  StatePages(PagePool& pool, std::optional<SealedPage>&& base)
      : pool_(&pool), base_(std::move(base)) {}
  StatePages(StatePages&&) noexcept = default;
  StatePages& operator=(StatePages&&) = delete;
  StatePages(const StatePages&) = delete;
  StatePages& operator=(const StatePages&) = delete;

  PagePool& pool() const { return *pool_; }
  const std::optional<SealedPage>& base() const { return base_; }
  // Rows write into `live` from now on.
  void start(OwnedPage&& live) { live_ = std::move(live); }
  // f(page) for every page held.
  template <class F>
  void for_each_page(F&& f) const {
    if (base_) f(base_->id());
    if (live_) f(live_->id());
    if (after_) f(after_->id());
    if (incoming_) f(incoming_->id());
  }

  // ---- while a fetch brings a state
  // Tokens after which rows can go on by what is here; 0 until something has come.
  std::size_t stands_at() const { return stands_at_; }
  // A snapshot of ours serves: nothing needs to come.
  void stand_on(SealedPage&& snapshot, std::size_t position) {
    base_ = std::move(snapshot);
    stands_at_ = position;
  }
  // `page` is filled with a snapshot; `live` with the state at the prompt's end.
  void expect_snapshot(OwnedPage&& page) { incoming_ = std::move(page); }
  bool expects_snapshot() const { return incoming_.has_value(); }
  PageId incoming() const { return incoming_->id(); }
  PageId live() const { return live_->id(); }
  // The snapshot is here: rows go on from it after `position`, or it is only kept as cache.
  void go_on_from_snapshot(const Digest& identity, std::size_t position) {
    stand_on(std::move(*incoming_).seal(identity), position);
    incoming_.reset();
  }
  void keep_snapshot(const Digest& identity) {
    const SealedPage cached = std::move(*incoming_).seal(identity);
    incoming_.reset();
  }
  // The state after `position` is in `live`.
  void arrive(std::size_t position) { stands_at_ = position; }
  // The fetch is over: nothing more comes.
  void expect_nothing() { incoming_.reset(); }

  // A row from `context` on; `first`: no other row of this request is in flight.
  StateRow row(std::size_t context, bool first) const {
    const std::int32_t live = raw(live_->id());
    const std::int32_t read = !first || !base_ ? (context == 0 ? -1 : live) : raw(base_->id());
    return {read, after_ ? raw(after_->id()) : live};
  }
  // That row ends on a boundary: `page` is what is written after it.
  void leave_snapshot_at(std::size_t position, OwnedPage&& page) {
    boundary_ = position;
    after_ = std::move(page);
  }
  bool leaves_snapshot() const { return after_.has_value(); }

  // A row was computed up to `position`. What it read is needed no more; true: what it wrote is to
  // be sealed as a snapshot.
  [[nodiscard]] bool advance(std::size_t position) {
    base_.reset();
    return after_ && boundary_ == position;
  }
  PageId seal_snapshot(const Digest& identity) {
    base_ = std::move(*live_).seal(identity);
    live_ = std::exchange(after_, std::nullopt);
    return base_->id();
  }
  // Rows come no more; the state is kept under `identity` while somebody holds it.
  PageId seal_last(const Digest& identity) {
    if (!base_) base_ = std::move(*live_).seal_tail(identity);
    live_.reset();
    after_.reset();
    return base_->id();
  }
  // Nothing is written any more.
  void freeze() {
    if (!base_) base_ = std::move(*live_).freeze();
    live_.reset();
    after_.reset();
  }
  // For a child that goes on where this one stopped: it reads the same state and writes elsewhere.
  [[nodiscard]] StatePages fork() const { return StatePages(*pool_, base_->share()); }

  // The rows in flight did not happen, but may have written. Whether the state is still there.
  [[nodiscard]] bool survives(std::size_t context) {
    after_.reset();
    return base_ || context == 0;
  }

 private:
  PagePool* pool_;
  std::optional<SealedPage> base_;
  std::optional<OwnedPage> live_;
  std::optional<OwnedPage> after_;
  std::optional<OwnedPage> incoming_;  // filled by a fetch
  std::size_t boundary_ = 0;
  std::size_t stands_at_ = 0;
};

// One entry for each window group and each state group, in the order of the config.
struct [[nodiscard]] SideTables {
  std::vector<WindowTable> windows;
  std::vector<StatePages> states;

  bool empty() const { return windows.empty() && states.empty(); }

  // While a fetch runs: whether every group can go on after `tokens`, those of full pages or of the
  // whole prompt, as all that was asked for (`whole`) or as what came of it.
  bool can_go_on(std::size_t tokens, bool whole) const {
    return std::all_of(windows.begin(), windows.end(),
                       [&](const WindowTable& t) { return whole && t.arrived() == t.end(); }) &&
           std::all_of(states.begin(), states.end(),
                       [&](const StatePages& s) { return s.stands_at() == tokens; });
  }
  // The fetch is over.
  void expect_nothing() {
    for (StatePages& state : states) state.expect_nothing();
  }

  // `tokens` are in the cache, and none will be written.
  void freeze(std::size_t tokens, std::size_t page_size) {
    for (WindowTable& table : windows) table.freeze(pages_for(tokens, page_size));
    for (StatePages& state : states) state.freeze();
  }
  // All of it but partial pages of windows, which are returned: they are to be copied.
  [[nodiscard]] std::vector<SealedPage> fork(SideTables& child, std::size_t tokens,
                                             std::size_t page_size) const {
    child.clear();
    std::vector<SealedPage> partial;
    const std::size_t full = tokens / page_size;
    for (const WindowTable& table : windows) {
      child.windows.push_back(table.fork(full));
      if (full < table.end()) partial.push_back(table.sealed_page(full).share());
    }
    for (const StatePages& state : states) child.states.push_back(state.fork());
    return partial;
  }
  void clear() {
    windows.clear();
    states.clear();
  }
};

}  // namespace baton
