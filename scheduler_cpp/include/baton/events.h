// Everything that can happen to a request, as types. Capabilities inside an event (a slot, pages,
// the proof that no step is in flight) make it impossible to raise it out of thin air.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "baton/host_tier.h"
#include "baton/ids.h"
#include "baton/page_table.h"
#include "baton/slot_pool.h"

namespace baton {

enum class FinishReason : std::int32_t { kLength = 0, kFlag = 1, kPoisoned = 2, kDeadline = 3 };

// Proof that no step in flight has a row of this request. Only its record can give it.
class Idle {
 private:
  friend class Record;
  Idle() = default;
};

// Pages of this request are being filled, by remote reads or from the host tier. Whoever holds the
// ticket must keep the pages; the ticket keeps what is read in the host tier. Only the terminal
// event takes it away.
class [[nodiscard]] FetchTicket {
 public:
  FetchTicket(FetchTicket&&) noexcept = default;
  FetchTicket& operator=(FetchTicket&&) noexcept = default;
  FetchTicket(const FetchTicket&) = delete;
  FetchTicket& operator=(const FetchTicket&) = delete;
  // `restored`: host pages that fill the first of the missing pages.
  static FetchTicket issue(std::vector<HostPage>&& restored = {}) {
    return FetchTicket(std::move(restored));
  }

  const std::vector<HostPage>& restored() const { return restored_; }

 private:
  explicit FetchTicket(std::vector<HostPage>&& restored) : restored_(std::move(restored)) {}

  std::vector<HostPage> restored_;
};

struct AdmittedToFetch {
  Slot slot;
  PageTable pages;
  FetchTicket ticket;
  std::size_t wanted;  // one past the last page that is to be filled
  bool awaits;         // a first token comes with it
  // Beside full attention: pages that every group can serve without the fetch.
  std::size_t usable = 0;
};
struct AdmittedToCompute {
  Slot slot;
  PageTable pages;
  std::size_t copied_tokens = 0;  // what a copy brings of the first writable page
};
struct PagesArrived {
  std::size_t count;  // the next ones
};
struct FetchGaveUp {};   // terminal: compute what is missing from here
struct FetchCompleted {  // terminal: all pages and the first token are here
  Token first_token;
};
struct ChunkComputed {
  std::size_t tokens;
};
struct PromptComputed {  // the rest of the prompt is computed and its next token sampled
  Token token;
};
struct PromptHandedOut {  // the same, for a request that another worker decodes
  Token token;
  Micros hold_deadline;
};
struct Drafted {  // guesses at what follows its last token
  std::span<const Token> tokens;
};
struct TokenSampled {
  Token token;
};
struct Stopped {  // it has its last token, or it failed
  FinishReason reason;
};
struct TurnParked {  // it has its last token, and its session awaits a tool's answer
  Micros deadline;
};
struct ParkSettled {  // no step has a row of it any more
  Idle idle;
};
struct ParkRenewed {
  Micros deadline;
};
struct Forked {  // another request begins with `common` tokens of this one
  PageTable& child;
  std::optional<PartialCopy>& copy;
  std::size_t common;
};
struct Resumed {};  // the session's next request has been admitted
struct Demoted {};  // the deadline has passed, or others need the pages
struct Retract {
  Idle idle;
};
struct HandedOver {};
struct HoldExpired {};
struct DeadlinePassed {};
struct Cancelled {};
struct Settled {
  Idle idle;
};

}  // namespace baton
