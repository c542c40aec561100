// The scheduler: (state, events) -> plan. No clock, no I/O, no threads; the same events give the
// same plans.
//
// Policy, in one paragraph. Requests are admitted by priority, fairly between tenants, first come
// first served within one, all or nothing: a slot and every page of the prompt. A step decodes all
// running requests, then spends what is left of its token budget on prompt chunks, then on new
// admissions. When a decode needs a page and none can be evicted, the running request of least
// priority, among them the youngest, is retracted: it keeps its tokens, and is readmitted before
// anybody new. The first in rank can therefore always go on.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "baton/ids.h"
#include "baton/lease.h"
#include "baton/page_pool.h"
#include "baton/plan.h"
#include "baton/record.h"
#include "baton/request.h"
#include "baton/slab.h"
#include "baton/slot_pool.h"
#include "baton/step.h"
#include "baton/transition_table.h"
#include "baton/waiting_queue.h"

namespace baton {

enum class Role : std::uint8_t { kPrefill, kDecode, kFused };
enum class Admission : std::uint8_t { kAccepted, kDuplicate, kQueueFull, kTooLong, kNeverFits };

struct Config {
  Role role = Role::kFused;
  std::size_t page_size = 64;
  std::size_t num_pages = 0;
  std::size_t max_running = 0;
  std::size_t max_step_tokens = 0;
  std::size_t max_chunk_tokens = 0;
  std::size_t max_context = 0;
  std::size_t max_waiting = 0;
  Micros hold_us = 0;

  // What is wrong with it, naming field, value and what is allowed; empty when nothing is.
  [[nodiscard]] std::string problem() const;
};

struct Submission {
  RequestId request;
  std::span<const Token> tokens;  // at least one
  std::size_t max_new_tokens;     // at least one
  SipKey key;
  Goal goal;
  std::size_t fetch_pages;
  std::int32_t priority = 0;  // higher goes first
};

struct Stats {
  std::size_t total_pages, free_pages, cached_pages, owned_pages, referenced_pages, leased_pages,
      quarantined_pages;
  std::size_t waiting, running, fetching, prefilled, draining, leases;
  std::uint64_t computed_tokens, generated_tokens, reused_tokens, fetched_tokens, retractions;
};

// Per sampling row, what the engine decided about its token.
enum class RowFlag : std::uint8_t { kGoOn = 0, kFinish = 1, kPoisoned = 2 };

// Why a completion was refused. Nothing was applied, and the step is still in flight.
enum class Misuse : std::uint8_t { kSpent, kForeign, kTokenCount, kFlagCount, kToken, kFlag };

class Scheduler {
 public:
  // Steps planned and not completed. 1 is overlap depth 0.
  static constexpr std::size_t kStepsInFlight = 1;

  // The config must have no problem().
  explicit Scheduler(const Config& config);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // ---- requests
  [[nodiscard]] Admission submit(const Submission& submission);
  Reply cancel(RequestId request);

  // ---- steps
  bool can_plan() const { return !steps_.full(); }
  // Requires can_plan().
  [[nodiscard]] Step plan(Micros now);
  // Checks everything, then applies everything: the step is spent unless a Misuse is returned.
  [[nodiscard]] std::variant<const Completion*, Misuse> complete(
      Step& step, std::span<const Token> tokens, std::span<const std::uint8_t> flags, Micros now);
  // The step did not happen: no row advanced, its requests are planned again.
  [[nodiscard]] std::optional<Misuse> abandon(Step& step);

  // ---- hand-over, reader's side
  Reply pages_arrived(RequestId request, std::size_t first_index, std::size_t count);
  Reply fetch_ended(RequestId request, std::optional<Token> first_token, bool finish, Micros now);

  // ---- hand-over, holder's side
  // Leases the longest held prefix of `identities`; 0 when nothing is held.
  [[nodiscard]] LeaseId grant(std::span<const Digest> identities, Micros now, Micros ttl,
                              std::vector<std::int32_t>& pages);
  bool renew(LeaseId lease, Micros now, Micros ttl);
  Verdict release(LeaseId lease, Micros now);
  Reply handed_over(RequestId request);

  // Nobody will ask for these pages again (their session is over); how many were held. Those in use
  // stay with their users and are free after them.
  std::size_t forget(std::span<const Digest> identities);

  // ---- looking
  std::size_t lookup(std::span<const Token> tokens, SipKey key) const;
  Stats stats() const;
  std::vector<Digest> held_identities() const { return pool_.held(); }
  const std::vector<PageId>& free_pages() const { return pool_.free_pages(); }
  const Config& config() const { return config_; }
  // Name of the state, empty when the request is gone.
  std::string_view state_of(RequestId request) const;
  // Pages in token order; empty for requests that hold none.
  std::vector<std::int32_t> pages_of(RequestId request) const;
  // Empty when every invariant holds. Walks everything.
  std::string check_invariants() const;
  // Equal for schedulers that will behave alike: pages are named by order of appearance, times are
  // relative, slots do not count. For explorers.
  std::vector<std::uint64_t> fingerprint() const;

 private:
  // plan.cpp: the policy
  void expire(Micros now);
  void plan_decodes();
  void plan_chunks();
  void plan_admissions();
  bool give_page(Record& record, std::size_t index);
  Record* youngest_after(std::size_t index) const;
  void add_decode_row(Record& record);
  void add_chunk_row(Record& record);
  std::size_t chunk_limit() const;

  // admission.cpp
  enum class Admitted { kYes, kNoPages, kNoBudget, kBehindItsPrefix };
  Record* next_to_admit() const;
  Admitted admit(Record& record);
  PageTable match(Sequence& sequence, std::size_t most);
  std::size_t headroom() const;
  bool blocked(const Record& record) const;
  bool being_computed(Sequence& sequence, std::size_t index) const;
  void announce(Record& record, std::size_t reused_pages);
  void start_fetch(Record& record);

  // complete.cpp
  std::optional<Misuse> refuse(const Step& step) const;
  std::optional<Misuse> refuse(std::span<const Token> tokens,
                               std::span<const std::uint8_t> flags) const;
  void complete_decode(Record& record, Token token, RowFlag flag);
  void complete_chunk(Record& record, std::uint32_t tokens);
  void complete_prompt(Record& record, std::uint32_t tokens, Token token, RowFlag flag);
  void poison(Record& record);
  void report_sealed(Record& record, SlotId slot, std::size_t index, PageId before, PageId after,
                     const Digest& identity);
  template <class S>
  void seal_full_pages(Record& record);
  void stop_if_over(Record& record, RowFlag flag);

  // lifecycle.cpp
  Record* find(RequestId request) const;
  template <class Next>
  void become(Record& record, Next&& next);
  void enter_running(Record& record);
  template <class S>
  void stop(Record& record, FinishReason reason, std::vector<RequestId>& requests,
            std::vector<std::int32_t>& reasons);
  template <class S>
  void retract(Record& record);
  void retract_running(Record& record);
  void settle(Record& record);
  void drop(Record& record);
  Micros at_least(Micros now) { return now_ = now > now_ ? now : now_; }

  const Config config_;
  Micros now_ = 0;
  std::uint64_t arrivals_ = 0;
  std::uint64_t plans_ = 0;

  Plan next_;     // what the executor sees next: grows with events, then by plan()
  Plan current_;  // what the executor sees
  Completion completion_;

  PagePool pool_;
  SlotPool slots_;
  LeaseTable leases_;

  Slab<Sequence> sequences_;
  Slab<Record> record_slab_;
  std::unordered_map<RequestId, Slab<Record>::Ptr> records_;
  WaitingQueue queued_;
  RecordList retracted_, prefilled_;
  RunningList running_;
  std::vector<Record*> prefilling_;  // of the plan being made, oldest first
  std::size_t budget_ = 0;           // tokens left in the plan being made
  std::size_t chunk_budget_ = 0;     // of them, for prompt chunks
  StepQueue<kStepsInFlight> steps_;

  // The head of the queue that did not fit, and when to look again.
  struct Blocked {
    RequestId request = 0;
    std::size_t available = 0;
    std::uint64_t retry_at = 0;
  };
  std::optional<Blocked> blocked_;

  std::array<std::size_t, kStateNames.size()> population_{};
  std::size_t quarantined_ = 0;
  std::uint64_t computed_tokens_ = 0, generated_tokens_ = 0, reused_tokens_ = 0,
                fetched_tokens_ = 0, retractions_ = 0;
};

}  // namespace baton
