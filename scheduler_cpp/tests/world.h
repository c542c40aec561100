// The world around a scheduler: an executor that really keeps page contents, peers that really
// write into target pages, readers that really look at leased pages. Driven by small events, it
// knows what every position of every page must hold, and says so when the scheduler breaks it.
//
// The random driver and the explorer are both thin over this.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "baton/scheduler.h"

namespace baton::world {

// What a request will be when it is submitted.
struct Script {
  std::vector<Token> prompt;
  std::size_t max_new_tokens = 1;
  Goal goal = Goal::kGenerate;
  std::size_t fetch_pages = 0;
  std::uint64_t tenant = 0;
  std::int32_t priority = 0;
  Micros park_us = 0;
  Micros time = 0;  // from submission to its deadline; 0: it has none
  // Number of the script (from 1) that this one goes on: its prompt follows that one's tokens.
  std::size_t resumes = 0;
  std::size_t fork_of = 0;  // the same, sharing
  std::size_t parent() const { return resumes ? resumes : fork_of; }
};

struct Setup {
  Config config;
  std::vector<Script> scripts;
  Micros lease_ttl = 5;
  std::size_t max_leases = 1;
};

enum class Kind : std::uint8_t {
  kSubmit,  // request a
  kPlan,
  kComplete,  // a: 0 all rows go on, 1 the first sampling row finishes, 2 it is poisoned
  kAbandon,
  kCancel,       // request a
  kArrive,       // the next page of request a's fetch; a + n * g: of its part in group g
  kMissing,      // request a + n * g: the peer does not have that page (of states only)
  kFetchDone,    // of request a, with a first token (if it may have one)
  kFetchLost,    // of request a
  kGrant,        // lease of request a's pages, tail included; a + n * g: in group g
  kRelease,      // lease number a
  kHandedOver,   // request a
  kRenewPark,    // of request a
  kDraft,        // for request a: guesses, of which the first half holds good
  kTick,         // time passes: a = 0 a little, 1 past every deadline
  kOffloadDone,  // offload number a
  kOffloadLost,
  kStray,  // a late or duplicate event for request a: must change nothing it should not
};

struct Event {
  Kind kind;
  std::uint8_t a = 0;
};
std::string text(const Event& event);

class World {
 public:
  explicit World(const Setup& setup);

  // Events that mean something now, in a fixed order.
  std::vector<Event> enabled() const;
  // Applies it if it is enabled, and checks everything. False: it was not enabled.
  bool apply(Event event);
  // Off: events are applied unchecked (a path that was checked before).
  void set_checking(bool checking) { checking_ = checking; }
  // What broke; empty while nothing has.
  const std::string& fault() const { return fault_; }
  // Equal for worlds that behave alike (pages named in order of appearance, times relative).
  std::vector<std::uint64_t> fingerprint() const;
  const Scheduler& scheduler() const { return scheduler_; }
  // Ends every fetch and lease, lets time pass and steps until nothing lives. Faults if that does
  // not end, or if pages are then missing.
  void drain();

 private:
  using Tag = std::uint64_t;  // what a position of a page holds: a hash of the tokens up to it
  static constexpr Tag kGarbage = 0;
  static constexpr Micros kLongTime = 1'000'000;  // past every deadline

  struct Request {
    bool submitted = false;
    bool over = false;
    std::vector<Token> tokens;
    std::vector<Tag> tags;  // of each token
    std::size_t prompt = 0;
    std::size_t retractions = 0;
    std::vector<Token> draft;  // guesses at what follows the tokens
    std::int32_t slot = -1;
    std::size_t emitted = 0;
    bool awaited = false;  // its first token was asked of a prefill worker
  };
  struct Fetch {
    struct Target {
      std::int32_t index;
      std::int32_t page;
      std::int32_t host;  // page of the host tier that it is restored from, or -1
      std::size_t group = 0;
    };
    std::vector<Target> pages;
    std::vector<std::vector<Target>> beside;  // by side group: what is still to come
    std::size_t arrived = 0;
    bool awaits = false;   // a first token comes with it
    bool complete = true;  // so far as nothing that was needed is missing
    bool whole() const {
      return complete && arrived == pages.size() &&
             std::all_of(beside.begin(), beside.end(),
                         [](const auto& left) { return left.empty(); });
    }
  };
  struct Offload {
    OffloadId id;
    OffloadPage pages;
    std::vector<Tag> content;
  };
  struct LeaseSeen {
    LeaseId id;
    Micros deadline;
    std::vector<std::int32_t> pages;
    std::vector<std::vector<Tag>> contents;
    std::size_t group;
  };

  bool is_enabled(Event event) const;
  bool is_parked(std::size_t request) const;
  bool has_deadline() const;
  bool has_parent(std::size_t request) const;
  void do_submit(int request);
  void do_draft(int request);
  std::vector<Tag> fed_tags(const Row& row, const Request& request) const;
  void do_plan();
  void do_complete(int variant);
  void do_abandon();
  void do_arrive(int request);
  void do_side_arrival(int which, bool missing);
  const std::vector<Fetch::Target>* still_to_come(int which) const;
  void do_fetch_end(int request, bool done);
  void do_grant(int request);
  void do_release(std::size_t lease);
  void do_stray(int request);
  const Plan& running() const { return steps_.front().plan(); }
  void take_news(const Plan& plan);
  void apply_tables(const Plan& plan);
  void start_step();
  void check_retractions(const Plan& plan);
  void take_movements(const Plan& plan);
  void do_offload_end(std::size_t offload, bool done);
  void check_reads(const char* when);
  void take_side_plan(const Plan& plan);
  void check_side_writers();
  void check_side_reads(const char* when);
  void write_sides(bool happened);
  void check_side_seal(const Completion& completion, std::size_t entry);
  const SideGroup& side(std::size_t group) const { return setup_.config.side_groups[group - 1]; }
  std::vector<Tag>& content(std::size_t group, std::int32_t page) {
    return contents_[group][static_cast<std::size_t>(page)];
  }
  std::int32_t page_at(std::size_t group, const Row& row, std::size_t position) const;
  void check_progress();
  void check_all();
  void fail(const std::string& what);
  void append(Request& request, Token token, std::uint64_t tenant) const;
  Token next_token(const Request& request, std::size_t position) const;
  int script_of(RequestId request) const { return static_cast<int>(request) - 1; }
  SipKey key(int request) const;
  std::int32_t page_at(const Row& row, std::size_t position) const {
    return page_at(0, row, position);
  }

  Setup setup_;
  Scheduler scheduler_;
  Micros now_ = 0;
  std::vector<Request> requests_;
  std::vector<std::vector<std::vector<std::int32_t>>> tables_;  // page tables, by group and slot
  std::vector<std::vector<std::vector<Tag>>> contents_;  // by group and page; one tag for a state
  // By group and page: request whose fetch may write it, or -1.
  std::vector<std::vector<int>> remote_writer_;
  int& remote_writer(std::size_t group, std::int32_t page) {
    return remote_writer_[group][static_cast<std::size_t>(page)];
  }
  std::map<int, Fetch> fetches_;
  std::vector<Offload> offloads_;
  std::vector<std::vector<Tag>> host_contents_;
  std::vector<LeaseSeen> leases_;
  std::deque<Step> steps_;  // in flight, oldest first
  bool void_ = false;       // the step before the oldest one was abandoned
  std::string fault_;
  bool checking_ = true;
  std::size_t abandoned_ = 0;
};

}  // namespace baton::world
