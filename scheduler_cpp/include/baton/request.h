// The states of a request as move-only types, and every legal way from one to the next.
//
// A state owns what the request holds in it: tokens, slot, pages, the ticket of a fetch. A
// transition that leaves a state is `&&`-qualified and consumes it; one that stays is `&`. A pair
// (state, event) without an `on` here does not compile, and transition_table.h proves that these
// overloads are exactly its accepted cells.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>
#include <variant>

#include "baton/events.h"
#include "baton/ids.h"
#include "baton/page_table.h"
#include "baton/sequence.h"
#include "baton/slot_pool.h"

namespace baton {

class Queued;
class Fetching;
class Prefilling;
class Prefilled;
class Decoding;
class Parked;
class Retracted;
class Draining;
class Finished;

// Moves only; no default construction, no copies.
#define BATON_MOVE_ONLY(State)         \
  State(State&&) noexcept = default;   \
  State& operator=(State&&) = default; \
  State(const State&) = delete;        \
  State& operator=(const State&) = delete

class [[nodiscard]] Queued {
 public:
  explicit Queued(SequencePtr sequence) : sequence_(std::move(sequence)) {}
  BATON_MOVE_ONLY(Queued);

  Sequence& sequence() const { return *sequence_; }

  [[nodiscard]] Fetching on(AdmittedToFetch&& event) &&;
  [[nodiscard]] Prefilling on(AdmittedToCompute&& event) &&;
  [[nodiscard]] Finished on(DeadlinePassed) &&;
  [[nodiscard]] Finished on(Cancelled) &&;

 private:
  SequencePtr sequence_;
};

// Holds a slot and all pages of its prompt; peers' pages are being read into the writable ones.
class [[nodiscard]] Fetching {
 public:
  BATON_MOVE_ONLY(Fetching);

  Sequence& sequence() const { return *sequence_; }
  const PageTable& pages() const { return pages_; }
  SideTables& sides() { return pages_.sides(); }
  const SideTables& sides() const { return pages_.sides(); }
  SlotId slot() const { return slot_.id(); }
  // Pages before this index are complete: local hits and arrivals.
  std::size_t arrived() const { return arrived_; }
  // One past the last page that the fetch was asked for.
  std::size_t wanted() const { return wanted_; }
  // What is read in the host tier, for pages from `restored_first` on.
  const FetchTicket& ticket() const { return ticket_; }
  const std::vector<HostPage>& restored() const { return ticket_.restored(); }
  std::size_t restored_first() const { return first_; }
  bool awaits() const { return awaits_; }
  // What every group beside full attention can serve without the fetch.
  std::size_t usable() const { return usable_; }
  // Tokens that are here in full attention.
  std::size_t here() const {
    return std::min(arrived_ * sequence_->page_size, sequence_->tokens.size());
  }
  bool sides_can_go_on() const { return sides().can_go_on(here(), arrived_ == wanted_); }
  // Whether a first token would make it decode.
  bool complete() const { return awaits_ && arrived_ == pages_.size() && sides_can_go_on(); }
  // Whether computing can go on in place: the last token's page is still writable, and every group
  // stands where the next token is computed. (A state cannot take back the last token.)
  bool can_compute() const {
    if (pages_.owned() == 0) return false;
    return sides().empty() || (here() < sequence_->tokens.size() && sides_can_go_on());
  }

  void on(PagesArrived event) & { arrived_ += event.count; }
  // Full pages that arrived are sealed in order, each becoming findable.
  PageId seal_next() { return pages_.seal_next(sequence_->identity(pages_.sealed())); }

  [[nodiscard]] Prefilling on(FetchGaveUp) &&;
  [[nodiscard]] Decoding on(FetchCompleted event) &&;
  [[nodiscard]] Retracted on(Retract) &&;
  [[nodiscard]] Draining on(DeadlinePassed) &&;
  [[nodiscard]] Draining on(Cancelled) &&;

 private:
  friend class Queued;
  friend class Retracted;
  Fetching(SequencePtr sequence, AdmittedToFetch&& event)
      : sequence_(std::move(sequence)),
        slot_(std::move(event.slot)),
        pages_(std::move(event.pages)),
        ticket_(std::move(event.ticket)),
        first_(pages_.sealed()),
        arrived_(first_),
        wanted_(event.wanted),
        usable_(event.usable),
        awaits_(event.awaits) {}

  SequencePtr sequence_;
  Slot slot_;
  PageTable pages_;
  FetchTicket ticket_;
  std::size_t first_;  // that was missing
  std::size_t arrived_;
  std::size_t wanted_;
  std::size_t usable_;
  bool awaits_;
};

// Holds a slot and all pages of its tokens; `computed` of them are in KV.
class [[nodiscard]] Prefilling {
 public:
  BATON_MOVE_ONLY(Prefilling);

  Sequence& sequence() const { return *sequence_; }
  const PageTable& pages() const { return pages_; }
  SideTables& sides() { return pages_.sides(); }
  SlotId slot() const { return slot_.id(); }
  std::size_t computed() const { return computed_; }
  std::size_t remaining() const { return sequence_->tokens.size() - computed_; }

  void on(ChunkComputed event) & { computed_ += event.tokens; }
  bool can_seal() const { return pages_.sealed() < computed_ / sequence_->page_size; }
  PageId seal_next(bool in_flight) {
    return pages_.seal_next(sequence_->identity(pages_.sealed()), in_flight);
  }

  [[nodiscard]] Decoding on(PromptComputed event) &&;
  [[nodiscard]] Prefilled on(PromptHandedOut event) &&;
  [[nodiscard]] Draining on(Stopped) &&;
  [[nodiscard]] Retracted on(Retract) &&;
  [[nodiscard]] Draining on(DeadlinePassed) &&;
  [[nodiscard]] Draining on(Cancelled) &&;

 private:
  friend class Queued;
  friend class Fetching;
  friend class Retracted;
  Prefilling(SequencePtr sequence, Slot&& slot, PageTable&& pages, std::size_t computed)
      : sequence_(std::move(sequence)),
        slot_(std::move(slot)),
        pages_(std::move(pages)),
        computed_(computed) {}

  SequencePtr sequence_;
  Slot slot_;
  PageTable pages_;
  std::size_t computed_;
};

// Its prompt is computed and sealed to the last token; a reader takes it until the deadline.
class [[nodiscard]] Prefilled {
 public:
  BATON_MOVE_ONLY(Prefilled);

  Sequence& sequence() const { return *sequence_; }
  const PageTable& pages() const { return pages_; }
  SideTables& sides() { return pages_.sides(); }
  Micros hold_deadline() const { return hold_deadline_; }

  // A partial last page is sealed under its own identity. Says which page that is now.
  PageId seal_tail() { return pages_.seal_tail(sequence_->prompt_tail_identity()); }

  void on(Forked event) & {
    event.copy = pages_.fork(event.child, event.common, sequence_->page_size);
  }

  [[nodiscard]] Finished on(HandedOver) &&;
  [[nodiscard]] Finished on(HoldExpired) &&;
  [[nodiscard]] Finished on(Cancelled) &&;

 private:
  friend class Prefilling;
  Prefilled(SequencePtr sequence, PageTable&& pages, Micros hold_deadline)
      : sequence_(std::move(sequence)), pages_(std::move(pages)), hold_deadline_(hold_deadline) {}

  SequencePtr sequence_;
  PageTable pages_;
  Micros hold_deadline_;
};

// All tokens but the last one are in KV; a step feeds the last and samples the next.
class [[nodiscard]] Decoding {
 public:
  BATON_MOVE_ONLY(Decoding);

  Sequence& sequence() const { return *sequence_; }
  const PageTable& pages() const { return pages_; }
  SideTables& sides() { return pages_.sides(); }
  SlotId slot() const { return slot_.id(); }
  std::size_t computed() const { return computed_; }
  Token last_token() const { return last_token_; }
  // Whether the KV of the token after `ahead` more has no page yet.
  bool needs_page(std::size_t ahead) const { return computed_ + ahead == capacity_; }
  std::size_t capacity() const { return capacity_; }
  std::span<const Token> draft() const { return {sequence_->draft.data(), drafted_}; }

  void grow(OwnedPage&& page) {
    pages_.append(std::move(page));
    capacity_ += sequence_->page_size;
  }
  void on(Drafted event) & {
    sequence_->draft.assign(event.tokens.begin(), event.tokens.end());
    drafted_ = static_cast<std::uint32_t>(event.tokens.size());
  }
  void on(TokenSampled event) & {
    ++computed_;
    drafted_ = 0;
    last_token_ = event.token;
    sequence_->tokens.push_back(event.token);
  }
  void on(Forked event) & {
    event.copy = pages_.fork(event.child, event.common, sequence_->page_size);
  }
  bool can_seal() const { return computed_ >= seal_at_; }
  // Whether the token after `ahead` more is the last of a page, which its row will let seal.
  bool fills_page(std::size_t ahead) const { return computed_ + ahead + 1 == seal_at_; }
  // Before `name_next`.
  void prefetch_naming() const {
    sequence_->prefetch_identity();
    pages_.prefetch_seal();
  }
  // The page that is sealed next gets its name: all its tokens must be known.
  const Digest& name_next() const { return sequence_->identity(pages_.sealed()); }
  // Before `seal_next`, once the page has its name.
  void prefetch_seal() const { pages_.prefetch_seal(name_next()); }
  PageId seal_next(bool in_flight) {
    seal_at_ += sequence_->page_size;
    return pages_.seal_next(sequence_->identity(pages_.sealed()), in_flight);
  }

  [[nodiscard]] Draining on(Stopped) &&;
  [[nodiscard]] Draining on(TurnParked event) &&;
  [[nodiscard]] Retracted on(Retract) &&;
  [[nodiscard]] Draining on(DeadlinePassed) &&;
  [[nodiscard]] Draining on(Cancelled) &&;

 private:
  friend class Fetching;
  friend class Prefilling;
  Decoding(SequencePtr sequence, Slot&& slot, PageTable&& pages, Token token)
      : sequence_(std::move(sequence)),
        slot_(std::move(slot)),
        pages_(std::move(pages)),
        computed_(sequence_->tokens.size()),
        capacity_(pages_.size() * sequence_->page_size),
        seal_at_((pages_.sealed() + 1) * sequence_->page_size),
        last_token_(token) {
    sequence_->tokens.push_back(token);
  }

  SequencePtr sequence_;
  Slot slot_;
  PageTable pages_;
  std::size_t computed_;
  std::size_t capacity_;  // tokens that fit its pages
  std::size_t seal_at_;   // tokens with which its first writable page is full
  std::uint32_t drafted_ = 0;
  Token last_token_;
};

// Its turn is over and a tool's answer awaited: all its pages stay, immutable, until the deadline,
// unless others need them more. It holds no slot.
class [[nodiscard]] Parked {
 public:
  BATON_MOVE_ONLY(Parked);

  Sequence& sequence() const { return *sequence_; }
  const PageTable& pages() const { return pages_; }
  Micros deadline() const { return deadline_; }

  void on(ParkRenewed event) & { deadline_ = event.deadline; }
  void on(Forked event) & {
    event.copy = pages_.fork(event.child, event.common, sequence_->page_size);
  }

  [[nodiscard]] Finished on(Resumed) &&;
  [[nodiscard]] Finished on(Demoted) &&;
  [[nodiscard]] Finished on(Cancelled) &&;

 private:
  friend class Draining;
  Parked(SequencePtr sequence, PageTable&& pages, Micros deadline)
      : sequence_(std::move(sequence)), pages_(std::move(pages)), deadline_(deadline) {}

  SequencePtr sequence_;
  PageTable pages_;
  Micros deadline_;
};

// Gave everything back under pressure but its tokens, which will be computed again.
class [[nodiscard]] Retracted {
 public:
  BATON_MOVE_ONLY(Retracted);

  Sequence& sequence() const { return *sequence_; }

  [[nodiscard]] Fetching on(AdmittedToFetch&& event) &&;
  [[nodiscard]] Prefilling on(AdmittedToCompute&& event) &&;
  [[nodiscard]] Finished on(DeadlinePassed) &&;
  [[nodiscard]] Finished on(Cancelled) &&;

 private:
  friend class Fetching;
  friend class Prefilling;
  friend class Decoding;
  explicit Retracted(SequencePtr sequence) : sequence_(std::move(sequence)) {}

  SequencePtr sequence_;
};

// Over, but a step or a fetch still uses its pages. A turn that will be parked keeps its tokens.
class [[nodiscard]] Draining {
 public:
  BATON_MOVE_ONLY(Draining);

  const PageTable& pages() const { return pages_; }
  bool fetch_in_flight() const { return ticket_.has_value(); }
  const std::optional<FetchTicket>& ticket() const { return ticket_; }
  bool parks() const { return parking_ != nullptr; }

  void on(FetchGaveUp) & { ticket_.reset(); }
  void on(FetchCompleted) & { ticket_.reset(); }
  void on(Cancelled) & { parking_.reset(); }

  // Only when no fetch is in flight either.
  [[nodiscard]] Finished on(Settled) &&;
  // Only when it parks.
  [[nodiscard]] Parked on(ParkSettled) &&;

 private:
  friend class Fetching;
  friend class Prefilling;
  friend class Decoding;
  Draining(Slot&& slot, PageTable&& pages, std::optional<FetchTicket> ticket)
      : slot_(std::move(slot)), pages_(std::move(pages)), ticket_(std::move(ticket)) {}
  Draining(Slot&& slot, PageTable&& pages, SequencePtr parking, Micros deadline)
      : slot_(std::move(slot)),
        pages_(std::move(pages)),
        parking_(std::move(parking)),
        park_deadline_(deadline) {}

  Slot slot_;
  PageTable pages_;
  std::optional<FetchTicket> ticket_;
  SequencePtr parking_;  // of a turn that will be parked
  Micros park_deadline_ = 0;
};

// Holds nothing. Its record is dropped.
class [[nodiscard]] Finished {
 public:
  BATON_MOVE_ONLY(Finished);

 private:
  friend class Queued;
  friend class Prefilled;
  friend class Parked;
  friend class Retracted;
  friend class Draining;
  Finished() = default;
};

#undef BATON_MOVE_ONLY

using State = std::variant<Queued, Fetching, Prefilling, Prefilled, Decoding, Parked, Retracted,
                           Draining, Finished>;

}  // namespace baton
