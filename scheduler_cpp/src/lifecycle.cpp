// Submission, cancelling and hand-over: events that arrive between steps.
#include "lifecycle.h"

#include <algorithm>
#include <functional>

namespace baton {

std::string Config::problem() const {
  const auto at_least_one = [](const char* name, std::size_t value) {
    return value >= 1 ? std::string()
                      : std::string(name) + " is " + std::to_string(value) + ": must be at least 1";
  };
  for (const auto& [name, value] :
       {std::pair{"page_size", page_size}, std::pair{"num_pages", num_pages},
        std::pair{"max_running", max_running}, std::pair{"max_step_tokens", max_step_tokens},
        std::pair{"max_chunk_tokens", max_chunk_tokens}, std::pair{"max_context", max_context},
        std::pair{"max_waiting", max_waiting}}) {
    if (auto text = at_least_one(name, value); !text.empty()) return text;
    if (value > 0x3fffffff) {
      return std::string(name) + " is " + std::to_string(value) + ": must be at most 2^30 - 1";
    }
  }
  if (max_step_tokens < max_running) {
    return "max_step_tokens is " + std::to_string(max_step_tokens) +
           ": must be at least max_running (" + std::to_string(max_running) +
           "), since every running request may decode one token in a step";
  }
  for (std::size_t i = 0; i < side_groups.size(); ++i) {
    const std::string name = "side_groups[" + std::to_string(i) + "]";
    const SideGroup& group = side_groups[i];
    const bool window = group.keeps == Retention::kWindow;
    const std::string tokens = std::to_string(group.tokens);
    if (group.tokens < 1 || group.tokens > 0x3fffffff) {
      return name + " has " + (window ? "a window of " : "a snapshot every ") + tokens +
             " tokens: must be from 1 to 2^30 - 1";
    }
    if (!window && group.tokens % page_size != 0) {
      return name + " has a snapshot every " + tokens +
             " tokens: must be a multiple of page_size (" + std::to_string(page_size) + ")";
    }
    const std::size_t least = group.least_pages(page_size);
    if (group.pages < least || group.pages > 0x3fffffff) {
      return name + " has " + std::to_string(group.pages) + " pages: must be at least " +
             std::to_string(least) + ", what one request needs, and at most 2^30 - 1";
    }
  }
  if (overlap > 1) {
    return "overlap is " + std::to_string(overlap) +
           ": must be 0 (a step is completed before the next is planned) or 1";
  }
  if (overlap > 0 && !side_groups.empty()) {
    return "overlap is " + std::to_string(overlap) +
           " with side_groups: rows of windows and states are planned one step at a time; must be "
           "0";
  }
  if (max_draft_tokens > 64) {
    return "max_draft_tokens is " + std::to_string(max_draft_tokens) + ": must be at most 64";
  }
  if (max_draft_tokens > 0 && !side_groups.empty()) {
    return "max_draft_tokens is " + std::to_string(max_draft_tokens) +
           " with side_groups: a window or a state cannot take back a token; must be 0";
  }
  if (host_pages > 0 && !side_groups.empty()) {
    return "host_pages is " + std::to_string(host_pages) +
           " with side_groups: the host tier keeps pages of full attention alone";
  }
  if (host_pages > 0x3fffffff) {
    return "host_pages is " + std::to_string(host_pages) + ": must be at most 2^30 - 1";
  }
  if (hold_us < 0) return "hold_us is " + std::to_string(hold_us) + ": must not be negative";
  return {};
}

Scheduler::Scheduler(const Config& config)
    : config_(config),
      snapshot_interval_(config.snapshot_interval()),
      pool_(config.num_pages),
      host_(config.host_pages),
      slots_(config.max_running, next_.slot_resets),
      steps_(config.overlap) {
  const std::size_t groups = 1 + config.side_groups.size();
  for (const SideGroup& group : config.side_groups) {
    side_pools_.push_back(std::make_unique<PagePool>(group.pages, 1 + side_pools_.size()));
    side_pools_.back()->evicted().reserve(2 * config.max_running);
  }
  const std::size_t most_sealed =
      groups * (config.max_running + config.max_step_tokens / config.page_size + 1);
  next_.reserve(config.max_running, config.max_step_tokens, groups - 1);
  for (Flight& flight : steps_.all()) {
    flight.plan.reserve(config.max_running, config.max_step_tokens, groups - 1);
    flight.rows.reserve(config.max_running);
    flight.filling.reserve(config.max_running);
  }
  completion_.reserve(config.max_running, most_sealed);
  running_.reserve(config.max_running);
  prefilling_.reserve(config.max_running);
}

// ---------------------------------------------------------------- requests

Admission Scheduler::submit(const Submission& submission) {
  const std::size_t prompt = submission.tokens.size();
  const std::size_t most = prompt + submission.max_new_tokens;
  if (records_.contains(submission.request)) return Admission::kDuplicate;
  if (most > config_.max_context) return Admission::kTooLong;
  // The last sampled token is never fed back, so its KV needs no room.
  const std::size_t kept = submission.goal == Goal::kHandOver ? prompt : most - 1;
  if (pages_for(kept, config_.page_size) > pool_.total()) return Admission::kNeverFits;
  if (queued_.size() >= config_.max_waiting) return Admission::kQueueFull;
  const Record* parent = find(submission.terms.parent());
  const Sequence* theirs = parent ? parent->sequence() : nullptr;
  if (theirs && theirs->key != submission.key) return Admission::kForeign;

  SequencePtr sequence =
      sequences_.make(submission.request, submission.goal, submission.key, config_.page_size,
                      submission.tokens, submission.max_new_tokens, submission.fetch_pages);
  auto record = record_slab_.make(submission.request, ++arrivals_, submission.terms,
                                  Queued(std::move(sequence)));
  ++population_[record->state.index()];
  queued_.push(*record, submission.key);
  if (submission.terms.deadline > 0) {
    deadlines_.emplace_back(submission.terms.deadline, submission.request);
    std::push_heap(deadlines_.begin(), deadlines_.end(), std::greater<>());
  }
  records_.emplace(submission.request, std::move(record));
  return Admission::kAccepted;
}

// Ends a request that waits, fetches or runs. What a step or a fetch still uses stays until then.
template <class Event>
void Scheduler::give_up(Record& record, const Event& event) {
  if (record.is<Queued>()) {
    queued_.remove(record, record.as<Queued>().sequence().key);
    become(record, std::move(record.as<Queued>()).on(event));
    return drop(record);
  }
  if (record.is<Retracted>()) {
    retracted_.remove(record);
    become(record, std::move(record.as<Retracted>()).on(event));
    return drop(record);
  }
  if (record.is<Fetching>()) {
    quarantined_ += record.as<Fetching>().pages().size();
    become(record, std::move(record.as<Fetching>()).on(event));
    return settle(record);
  }
  running_.remove(record);
  if (record.is<Prefilling>()) {
    become(record, std::move(record.as<Prefilling>()).on(event));
  } else {
    become(record, std::move(record.as<Decoding>()).on(event));
  }
  settle(record);
}

// A request that has ended meanwhile, or whose turn has, is not concerned.
void Scheduler::miss_deadlines() {
  while (!deadlines_.empty() && deadlines_.front().first < now_) {
    std::pop_heap(deadlines_.begin(), deadlines_.end(), std::greater<>());
    Record* record = find(deadlines_.back().second);
    deadlines_.pop_back();
    if (!record || kTable.answer<DeadlinePassed>(record->state) != Reply::kAccepted) continue;
    next_.finished_requests.push_back(record->id);
    next_.finished_reasons.push_back(static_cast<std::int32_t>(FinishReason::kDeadline));
    give_up(*record, DeadlinePassed{});
  }
}

Reply Scheduler::cancel(RequestId request) {
  Record* record = find(request);
  if (!record) return Reply::kIgnored;
  const Reply reply = kTable.answer<Cancelled>(record->state);
  if (reply != Reply::kAccepted) return reply;
  const Cancelled event;
  if (record->is<Prefilled>()) {
    prefilled_.remove(*record);
    become(*record, std::move(record->as<Prefilled>()).on(event));
    drop(*record);
  } else if (record->is<Parked>()) {
    unpark(*record, event);
  } else if (record->is<Draining>()) {
    if (!record->as<Draining>().parks()) return Reply::kIgnored;
    record->as<Draining>().on(event);
  } else {
    give_up(*record, event);
  }
  return reply;
}

Reply Scheduler::renew_park(RequestId request, Micros deadline) {
  Record* record = find(request);
  if (!record) return Reply::kIgnored;
  const Reply reply = kTable.answer<ParkRenewed>(record->state);
  if (reply != Reply::kAccepted) return reply;
  Parked& parked = record->as<Parked>();
  parked_.erase({parked.deadline(), request});
  parked.on(ParkRenewed{deadline});
  parked_.insert({deadline, request});
  return reply;
}

Reply Scheduler::draft(RequestId request, std::size_t position, std::span<const Token> tokens) {
  Record* record = find(request);
  if (!record) return Reply::kIgnored;
  const Reply reply = kTable.answer<Drafted>(record->state);
  if (reply != Reply::kAccepted) return reply;
  Decoding& decoding = record->as<Decoding>();
  if (position < decoding.sequence().tokens.size()) return Reply::kIgnored;
  // Not beyond its last token, not while a step verifies what was guessed before.
  if (position > decoding.sequence().tokens.size() || record->claims() > 0 ||
      tokens.size() > config_.max_draft_tokens) {
    return Reply::kRejected;
  }
  decoding.on(Drafted{tokens});
  return reply;
}

// ---------------------------------------------------------------- the holder's side

std::size_t Scheduler::forget(std::span<const Digest> identities) {
  std::size_t held = 0;
  // The last page of a chain first: so its pages join the free list as they would by eviction.
  for (std::size_t i = identities.size(); i-- > 0;) {
    held += pool_.forget(identities[i]);
    for (const auto& side : side_pools_) {
      held += side->forget(in_group(identities[i], side->group()));
    }
  }
  return held;
}

LeaseId Scheduler::grant(std::span<const Digest> identities, Micros now, Micros ttl,
                         std::vector<std::int32_t>& pages, std::size_t group) {
  at_least(now);
  leases_.expire(now_);
  pages.clear();
  std::vector<LeasedPage> leased;
  for (const Digest& identity : identities) {
    std::optional<SealedPage> page = pool(group).find(identity);
    if (!page) break;
    pages.push_back(raw(page->id()));
    leased.emplace_back(std::move(*page));
  }
  return leased.empty() ? 0 : leases_.grant(std::move(leased), now_ + ttl);
}

bool Scheduler::renew(LeaseId lease, Micros now, Micros ttl) {
  at_least(now);
  return leases_.renew(lease, now_, now_ + ttl);
}

Verdict Scheduler::release(LeaseId lease, Micros now) {
  at_least(now);
  return leases_.release(lease, now_);
}

Reply Scheduler::handed_over(RequestId request) {
  Record* record = find(request);
  if (!record) return Reply::kIgnored;
  const Reply reply = kTable.answer<HandedOver>(record->state);
  if (reply != Reply::kAccepted) return reply;
  prefilled_.remove(*record);
  become(*record, std::move(record->as<Prefilled>()).on(HandedOver{}));
  drop(*record);
  return reply;
}

// ---------------------------------------------------------------- records

Record* Scheduler::find(RequestId request) const {
  const auto found = records_.find(request);
  return found == records_.end() ? nullptr : found->second.get();
}

void Scheduler::enter_running(Record& record) {
  running_.insert(record);
}

void Scheduler::retract_running(Record& record) {
  ++record.retractions;
  running_.remove(record);
  if (record.is<Decoding>()) {
    retract<Decoding>(record);
  } else {
    retract<Prefilling>(record);
  }
}

// Its last token is there: the turn is over, and its pages stay if that was asked for.
void Scheduler::end_turn(Record& record, FinishReason reason, std::vector<RequestId>& requests,
                         std::vector<std::int32_t>& reasons) {
  if (record.terms.park_us == 0) return stop<Decoding>(record, reason, requests, reasons);
  requests.push_back(record.id);
  reasons.push_back(static_cast<std::int32_t>(reason));
  running_.remove(record);
  become(record, std::move(record.as<Decoding>()).on(TurnParked{now_ + record.terms.park_us}));
  settle(record);
}

void Scheduler::demote(Record& record) {
  next_.demoted_requests.push_back(record.id);
  ++demotions_;
  unpark(record, Demoted{});
}

// The parked session that `next` goes on has been taken up.
void Scheduler::resume(Record& next) {
  Record* parked = next.terms.resumes ? find(next.terms.resumes) : nullptr;
  if (parked && parked->is<Parked>()) unpark(*parked, Resumed{});
}

void Scheduler::settle(Record& record) {
  Draining& draining = record.as<Draining>();
  if (draining.fetch_in_flight()) return;
  std::optional<Idle> idle = record.idle();
  if (!idle) return;
  if (draining.parks()) {
    become(record, std::move(draining).on(ParkSettled{*idle}));
    parked_.insert({record.as<Parked>().deadline(), record.id});
    return;
  }
  become(record, std::move(record.as<Draining>()).on(Settled{*idle}));
  drop(record);
}

void Scheduler::drop(Record& record) {
  --population_[record.state.index()];
  records_.erase(record.id);
}

}  // namespace baton
