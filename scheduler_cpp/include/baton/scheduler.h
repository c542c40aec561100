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
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "baton/cache_group.h"
#include "baton/host_tier.h"
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
enum class Admission : std::uint8_t {
  kAccepted,
  kDuplicate,
  kQueueFull,
  kTooLong,
  kNeverFits,
  kForeign
};

struct Config {
  Role role = Role::kFused;
  std::size_t page_size = 64;
  std::size_t num_pages = 0;  // of group 0, full attention
  std::size_t max_running = 0;
  std::size_t max_step_tokens = 0;
  std::size_t max_chunk_tokens = 0;
  std::size_t max_context = 0;
  std::size_t max_waiting = 0;
  Micros hold_us = 0;
  std::size_t max_draft_tokens = 0;
  std::size_t overlap = 0;  // steps that may be planned before the one in flight is completed
  std::vector<SideGroup> side_groups = {};  // numbered from 1
  std::size_t host_pages = 0;               // of the host tier; 0: there is none

  [[nodiscard]] std::size_t state_groups() const;
  // Tokens between snapshots that every state group takes; 0 without state groups.
  [[nodiscard]] std::size_t snapshot_interval() const;
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
  Terms terms = {};
};

struct Stats {
  std::size_t total_pages, free_pages, cached_pages, owned_pages, referenced_pages, leased_pages,
      quarantined_pages;
  std::size_t waiting, running, fetching, prefilled, parked, draining, leases, offloading;
  std::uint64_t computed_tokens, generated_tokens, reused_tokens, restored_tokens, fetched_tokens,
      retractions, demotions;
};

// Pages of one group: free + cached + owned + referenced = total, always.
struct PoolStats {
  std::size_t total, free, cached, owned, referenced, leased;
};

// Per sampling row, what the engine decided about its token.
enum class RowFlag : std::uint8_t { kGoOn = 0, kFinish = 1, kPoisoned = 2 };

// Why a completion was refused. Nothing was applied, and the step is still in flight.
enum class Misuse : std::uint8_t {
  kSpent,
  kForeign,
  kTokenCount,
  kFlagCount,
  kAcceptedCount,
  kToken,
  kFlag,
  kAccepted,    // none, or more than were reserved and one
  kNotDrafted,  // accepted, but another token was fed
  kOrder,       // an earlier step is still in flight
  kVoid,        // an earlier step was abandoned
};
struct Refusal {
  Misuse misuse;
  std::size_t row = 0;  // of those that sample, where it is about one
};

class Scheduler {
 public:
  // Pages on their way to the host tier at a time.
  static constexpr std::size_t kMostOffloads = 8;

  // The config must have no problem().
  explicit Scheduler(const Config& config);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // ---- requests
  [[nodiscard]] Admission submit(const Submission& submission);
  Reply cancel(RequestId request);
  // A parked request is kept until `deadline` instead.
  Reply renew_park(RequestId request, Micros deadline);

  // Guesses at the tokens from `position` on, to be verified by the next step. Of a request that
  // is further by now: ignored.
  Reply draft(RequestId request, std::size_t position, std::span<const Token> tokens);

  // ---- steps
  bool can_plan() const { return !steps_.full() && (steps_.empty() || !steps_.oldest().is_void); }
  // Requires can_plan().
  [[nodiscard]] Step plan(Micros now);
  // Checks everything, then applies everything: the step is spent unless it is refused.
  // `accepted`: tokens of each sampling row, as many as drafts held good and one; none given: one
  // each. `tokens`: those of all rows, in order.
  [[nodiscard]] std::variant<const Completion*, Refusal> complete(
      Step& step, std::span<const Token> tokens, std::span<const std::uint8_t> flags, Micros now,
      std::span<const std::int32_t> accepted = {});
  // The step did not happen: no row advanced, its requests are planned again.
  [[nodiscard]] std::optional<Misuse> abandon(Step& step);

  // ---- hand-over, reader's side
  // Pages of one group. In a state group one page: the state after its last token.
  Reply pages_arrived(RequestId request, std::size_t first_index, std::size_t count,
                      std::size_t group = 0);
  Reply fetch_ended(RequestId request, std::optional<Token> first_token, bool finish, Micros now);

  // ---- host tier
  // Terminal: the copy is complete, or was given up. Restores end as fetches do.
  Reply offload_ended(OffloadId offload, bool complete);

  // ---- hand-over, holder's side
  // Leases the longest held prefix of `identities`, all of one group; 0 when nothing is held.
  [[nodiscard]] LeaseId grant(std::span<const Digest> identities, Micros now, Micros ttl,
                              std::vector<std::int32_t>& pages, std::size_t group = 0);
  bool renew(LeaseId lease, Micros now, Micros ttl);
  Verdict release(LeaseId lease, Micros now);
  Reply handed_over(RequestId request);

  // Nobody will ask for these pages again (their session is over), told by their identities in
  // group 0 and forgotten in every group; how many were held. Those in use stay with their users
  // and are free after them.
  std::size_t forget(std::span<const Digest> identities);

  // ---- looking
  std::size_t lookup(std::span<const Token> tokens, SipKey key) const;
  Stats stats() const;
  std::size_t groups() const { return 1 + side_pools_.size(); }
  PoolStats pool_stats(std::size_t group) const;
  PoolStats host_stats() const;
  // Of every group's full pages and snapshots.
  std::vector<Digest> held_identities() const;
  // In the order in which they will be taken.
  const std::vector<PageId>& free_pages(std::size_t group = 0) const {
    return pool(group).free_pages();
  }
  const Config& config() const { return config_; }
  // Name of the state, empty when the request is gone.
  std::string_view state_of(RequestId request) const;
  // Pages in token order; empty for requests that hold none.
  std::vector<std::int32_t> pages_of(RequestId request, std::size_t group = 0) const;
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
  bool give_window_page(Record& record);
  bool demote_one(RequestId but);
  Record* victim_after(std::size_t index) const;
  std::size_t reserve_draft(Record& record);
  bool can_decode(const Record& record) const;
  void add_decode_row(Record& record, std::size_t drafted);
  void grow(Decoding& decoding, OwnedPage&& page);
  void add_chunk_row(Record& record);
  std::size_t chunk_limit() const;

  // admission.cpp
  enum class Admitted { kYes, kNoPages, kNoBudget, kBehindItsPrefix };
  Record* next_to_admit() const;
  Admitted admit(Record& record);
  PageTable match(Sequence& sequence, std::size_t most);
  PageTable match_tokens(Sequence& sequence, std::size_t most);
  std::size_t headroom(const PagePool& pool) const;
  std::size_t distance(const Record& record) const;
  std::optional<PartialCopy> fork(Record& parent, Sequence& sequence, PageTable& pages);
  void plan_copy(Record& parent, PartialCopy&& copy, PageId target);
  bool blocked(const Record& record) const;
  bool being_computed(Sequence& sequence, std::size_t index) const;
  template <class Event>
  void leave_queue(Record& record, Event&& event);
  void announce(Record& record, std::size_t reused_tokens);

  // fetches.cpp: what is asked of peers, and what came
  std::size_t fetchable_boundary(std::size_t pages) const;
  PageTable match_to_fetch(Sequence& sequence, std::size_t most, std::size_t tokens);
  bool targets_have_room(const PageTable& pages, std::size_t tokens) const;
  void take_targets(Sequence& sequence, SideTables& sides, std::size_t tokens, bool awaits);
  bool ends_on_snapshot(const StatePages& state, std::size_t tokens) const;
  void start_fetch(Record& record);
  void fetch_sides(Record& record);
  void fetch_page(const Record& record, std::size_t group, std::size_t index, PageId page);
  bool tokens_arrived(Fetching& fetching, std::size_t first, std::size_t count);
  bool window_arrived(Fetching& fetching, WindowTable& table, std::size_t first, std::size_t count);
  bool state_arrived(Fetching& fetching, StatePages& state, std::size_t index);

  // sides.cpp: the groups beside full attention
  PagePool& pool(std::size_t group) { return group == 0 ? pool_ : *side_pools_[group - 1]; }
  const PagePool& pool(std::size_t group) const {
    return group == 0 ? pool_ : *side_pools_[group - 1];
  }
  std::size_t available() const;
  std::size_t joint_boundary(std::span<const Digest> identities) const;
  void match_sides(Sequence& sequence, PageTable& pages);
  WindowTable& open_window(PagePool& side, SideTables& sides, std::size_t tokens);
  bool sides_have_room(const PageTable& pages, std::size_t total) const;
  void take_states(SideTables& sides);
  void plan_side_copies(SideTables& sides, std::vector<SealedPage>&& partial);
  void announce_sides(const SideTables& sides, SlotId slot);
  void note_side_page(const WindowTable& table, SlotId slot, std::size_t index, std::int32_t page);
  std::size_t cut_at_snapshot(std::size_t context, std::size_t tokens) const;
  std::size_t window_room(const SideTables& sides, std::size_t context, std::size_t tokens) const;
  std::size_t give_side_pages(Record& record, SideTables& sides, SlotId slot, std::size_t context,
                              std::size_t most);
  void add_state_row(SideTables& sides, std::size_t context, std::size_t tokens, bool first);
  void advance_sides(Record& record, SideTables& sides, SlotId slot, Sequence& sequence,
                     std::size_t computed);
  void seal_side_tails(Record& record, SideTables& sides, Sequence& sequence);
  void forget_sides(const SideTables& sides);

  // tiers.cpp: movements to and from the host tier
  std::vector<HostPage> match_host(Sequence& sequence, std::size_t first, std::size_t most);
  void plan_offloads();

  // complete.cpp
  std::optional<Misuse> refuse(const Step& step) const;
  std::optional<Refusal> refuse(const Plan& plan, std::span<const Token> tokens,
                                std::span<const std::uint8_t> flags,
                                std::span<const std::int32_t> accepted) const;
  void complete_decode(Record& record, std::span<const Token> tokens, RowFlag flag);
  void complete_chunk(Record& record, std::uint32_t tokens);
  void complete_prompt(Record& record, std::uint32_t tokens, Token token, RowFlag flag);
  bool states_survive(Record& record);
  void poison(Record& record);
  void forget(const SealedPage& page);
  void land();
  void report_sealed(Record& record, SlotId slot, std::size_t index, PageId before, PageId after,
                     const Digest& identity);
  void note_sealed(const Record& record, std::size_t group, std::size_t index, PageId page,
                   const Digest& identity);
  void name_full_pages(const Flight& flight);
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
  void end_turn(Record& record, FinishReason reason, std::vector<RequestId>& requests,
                std::vector<std::int32_t>& reasons);
  template <class S>
  void retract(Record& record);
  void retract_running(Record& record);
  template <class Event>
  void unpark(Record& record, Event&& event);
  template <class Event>
  void give_up(Record& record, const Event& event);
  void miss_deadlines();
  void demote(Record& record);
  void resume(Record& next);
  void settle(Record& record);
  void drop(Record& record);
  Micros at_least(Micros now) { return now_ = now > now_ ? now : now_; }

  const Config config_;
  const std::size_t snapshot_interval_;
  Micros now_ = 0;
  std::uint64_t arrivals_ = 0;
  std::uint64_t plans_ = 0;

  Plan next_;  // what the executor sees next: grows with events, then by plan()
  Completion completion_;

  PagePool pool_;
  std::vector<std::unique_ptr<PagePool>> side_pools_;  // of groups 1, 2, ...
  HostTier host_;
  std::unordered_map<OffloadId, OffloadTicket> offloads_;
  OffloadId last_offload_ = 0;
  SlotPool slots_;
  LeaseTable leases_;

  Slab<Sequence> sequences_;
  Slab<Record> record_slab_;
  std::unordered_map<RequestId, Slab<Record>::Ptr> records_;
  WaitingQueue queued_;
  RecordList retracted_, prefilled_;
  std::set<std::pair<Micros, RequestId>> parked_;  // the first to expire, or to give way, first
  std::vector<std::pair<Micros, RequestId>> deadlines_;  // a heap, the next one first
  RunningList running_;
  std::vector<Record*> prefilling_;  // of the plan being made, oldest first
  std::size_t budget_ = 0;           // tokens left in the plan being made
  std::size_t chunk_budget_ = 0;     // of them, for prompt chunks
  std::size_t draft_budget_ = 0;     // of them, for guesses
  StepsInFlight steps_;
  Flight* flight_ = nullptr;  // of the plan being made
  bool stalled_ = false;      // in it somebody waits for pages that a step in flight still uses

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
                restored_tokens_ = 0, fetched_tokens_ = 0, retractions_ = 0, demotions_ = 0;
};

}  // namespace baton
