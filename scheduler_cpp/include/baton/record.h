// One live request: its state, where it is listed, and how many rows of steps in flight it has.
#pragma once

#include <algorithm>
#include <cassert>
#include <optional>
#include <utility>
#include <vector>

#include "baton/events.h"
#include "baton/request.h"

namespace baton {

// What a caller asks of a request beyond its tokens.
struct Terms {
  std::int32_t priority = 0;  // higher goes first
  Micros park_us = 0;         // how long its pages stay after its turn; 0: as cache only
  RequestId resumes = 0;      // a parked request whose session this one goes on; 0: none
  RequestId fork_of = 0;      // a request whose pages it shares as far as tokens agree; 0: none

  // Whose pages it may take besides those that are found by content.
  RequestId parent() const { return resumes ? resumes : fork_of; }

  Micros deadline = 0;  // when it is given up, wherever it stands; 0: never
};

class Record {
 public:
  Record(RequestId id, std::uint64_t arrival, const Terms& terms, Queued&& state)
      : id(id), arrival(arrival), state(std::move(state)), terms(terms) {}
  Record(const Record&) = delete;
  Record& operator=(const Record&) = delete;

  const RequestId id;
  const std::uint64_t arrival;  // order of submission
  State state;
  const Terms terms;

  // Who wins when pages are short: higher priority, then the older one. Smaller wins.
  std::pair<std::int64_t, std::uint64_t> rank() const {
    return {-static_cast<std::int64_t>(terms.priority), arrival};
  }

  template <class S>
  S& as() {
    S* state_as = std::get_if<S>(&state);
    assert(state_as);
    return *state_as;
  }
  // Its tokens; null when it is over and needs them no more.
  Sequence* sequence() const {
    return std::visit(
        [](const auto& at) -> Sequence* {
          if constexpr (requires { at.sequence(); }) {
            return &at.sequence();
          } else {
            return nullptr;
          }
        },
        state);
  }
  template <class S>
  bool is() const {
    return std::holds_alternative<S>(state);
  }

  // The proof that no step has a row of this request, if that is so.
  [[nodiscard]] std::optional<Idle> idle() const {
    return claims_ == 0 ? std::optional<Idle>(Idle()) : std::nullopt;
  }
  std::uint32_t claims() const { return claims_; }
  // Of the rows in flight: tokens they feed, and how many of the rows sample.
  std::uint32_t pending_tokens() const { return pending_tokens_; }
  std::uint32_t pending_samples() const { return pending_samples_; }
  // How often it gave its pages back to others.
  std::uint32_t retractions = 0;

 private:
  friend class RowClaim;
  friend class RecordList;
  std::uint32_t claims_ = 0;
  std::uint32_t pending_tokens_ = 0;
  std::uint32_t pending_samples_ = 0;
  Record* previous_ = nullptr;
  Record* next_ = nullptr;
};

// A row of a step in flight. While it lives, its request cannot settle nor be retracted, so its
// slot and pages stay.
class [[nodiscard]] RowClaim {
 public:
  RowClaim(Record& record, std::uint32_t tokens, bool samples, std::uint32_t drafted = 0)
      : record_(&record), tokens_(tokens), drafted_(drafted), samples_(samples) {
    ++record.claims_;
    record.pending_tokens_ += tokens_;
    record.pending_samples_ += samples_;
  }
  RowClaim(RowClaim&& other) noexcept
      : record_(std::exchange(other.record_, nullptr)),
        tokens_(other.tokens_),
        drafted_(other.drafted_),
        samples_(other.samples_) {}
  RowClaim& operator=(RowClaim&&) = delete;
  RowClaim(const RowClaim&) = delete;
  RowClaim& operator=(const RowClaim&) = delete;
  ~RowClaim() {
    if (record_) end();
  }

  std::uint32_t tokens() const { return tokens_; }
  // Of the tokens, those reserved for guesses.
  std::uint32_t drafted() const { return drafted_; }
  const Record& record() const { return *record_; }
  bool samples() const { return samples_; }
  // Ends the claim and gives the request back.
  [[nodiscard]] Record& settle() && {
    end();
    return *std::exchange(record_, nullptr);
  }

 private:
  void end() {
    --record_->claims_;
    record_->pending_tokens_ -= tokens_;
    record_->pending_samples_ -= samples_;
  }

  Record* record_;
  std::uint32_t tokens_;
  std::uint32_t drafted_;
  bool samples_;
};

// A list of records; each is in one list at most. All operations are O(1) but the ordered insert,
// which walks past those that win.
class RecordList {
 public:
  Record* front() const { return head_; }
  static Record* after(const Record& record) { return record.next_; }
  std::size_t size() const { return size_; }

  void push_back(Record& record) { insert_before(nullptr, record); }
  void insert_by_rank(Record& record) {
    Record* at = head_;
    while (at && at->rank() < record.rank()) at = at->next_;
    insert_before(at, record);
  }
  void remove(Record& record) {
    (record.previous_ ? record.previous_->next_ : head_) = record.next_;
    (record.next_ ? record.next_->previous_ : tail_) = record.previous_;
    record.previous_ = record.next_ = nullptr;
    --size_;
  }

 private:
  void insert_before(Record* at, Record& record) {
    record.next_ = at;
    record.previous_ = at ? at->previous_ : tail_;
    (record.previous_ ? record.previous_->next_ : head_) = &record;
    (at ? at->previous_ : tail_) = &record;
    ++size_;
  }

  Record* head_ = nullptr;
  Record* tail_ = nullptr;
  std::size_t size_ = 0;
};

// Requests with rows to compute, by rank. Leaving makes a hole, which the next walk closes.
class RunningList {
 public:
  void reserve(std::size_t requests) { entries_.reserve(requests * 2); }
  std::size_t extent() const { return entries_.size(); }
  std::size_t size() const { return live_; }
  Record* at(std::size_t index) const { return entries_[index].record; }  // null: a hole

  void insert(Record& record) {
    auto at = entries_.end();
    while (at != entries_.begin() && std::prev(at)->rank > record.rank()) --at;
    entries_.insert(at, {record.rank(), &record});
    ++live_;
  }
  void remove(const Record& record) {
    entries_[index_of(record)].record = nullptr;
    --live_;
  }
  std::size_t index_of(const Record& record) const {
    auto at =
        std::lower_bound(entries_.begin(), entries_.end(), record.rank(),
                         [](const Entry& entry, const auto& rank) { return entry.rank < rank; });
    // A hole of the same request may stand before it, if it left and came back between two walks.
    while (at->record != &record) ++at;
    return static_cast<std::size_t>(at - entries_.begin());
  }
  // Closes holes.
  void compact() {
    if (live_ == entries_.size()) return;
    std::erase_if(entries_, [](const Entry& entry) { return entry.record == nullptr; });
  }

 private:
  struct Entry {
    std::pair<std::int64_t, std::uint64_t> rank;
    Record* record;
  };
  std::vector<Entry> entries_;
  std::size_t live_ = 0;
};

}  // namespace baton
