// Who gets in: by priority, the retracted before the new, tenants in fair turns, all or nothing.
#include <algorithm>

#include "lifecycle.h"

namespace baton {

Record* Scheduler::next_to_admit() const {
  Record* retracted = retracted_.front();
  Record* queued = queued_.front();
  if (!retracted || !queued) return retracted ? retracted : queued;
  return queued->terms.priority > retracted->terms.priority ? queued : retracted;
}

// Pages that admission leaves alone so that running decodes are not retracted at once. Nothing is
// kept back when nothing runs: then whoever fits the pool must get in.
std::size_t Scheduler::headroom(const PagePool& pool) const {
  return std::min(population_[kStateIndex<Decoding>], pool.total() / 32);
}

// Pages that must stay free for those who run when a retracted request comes back: twice as many
// each time, so that it is not sent away at once again. Nothing when nothing runs.
std::size_t Scheduler::distance(const Record& record) const {
  if (record.retractions == 0) return 0;
  const std::size_t doublings = std::min<std::size_t>(record.retractions - 1, 30);
  return std::min(running_.size() << doublings, pool_.total());
}

// The head of the queue is looked at again when pages came free, and now and then because its
// prefix may have become shared; never every step, since matching costs its prompt's pages.
bool Scheduler::blocked(const Record& record) const {
  return blocked_ && blocked_->request == record.id && running_.size() > 0 &&
         available() <= blocked_->available && plans_ < blocked_->retry_at;
}

PageTable Scheduler::match_tokens(Sequence& sequence, std::size_t most) {
  PageTable pages;
  while (pages.sealed() < most) {
    std::optional<SealedPage> page = pool_.find(sequence.identity(pages.sealed()));
    if (!page) break;
    pages.append(std::move(*page));
  }
  return pages;
}

PageTable Scheduler::match(Sequence& sequence, std::size_t most) {
  PageTable pages = match_tokens(sequence, most);
  if (!side_pools_.empty()) match_sides(sequence, pages);
  return pages;
}

// What the request takes of its parent's pages beyond those in `pages`, as far as their tokens
// agree.
std::optional<PartialCopy> Scheduler::fork(Record& parent, Sequence& sequence, PageTable& pages) {
  std::optional<PartialCopy> copy;
  if (kTable.answer<Forked>(parent.state) != Reply::kAccepted) return copy;
  const std::span<const Token> ours = sequence.tokens.all();
  const std::span<const Token> theirs = parent.sequence()->tokens.all();
  // Its last token is not in KV; of ours, the logits are wanted.
  const std::size_t most = std::min(ours.size(), theirs.size()) - 1;
  const auto differ =
      std::mismatch(ours.begin(), ours.begin() + static_cast<std::ptrdiff_t>(most), theirs.begin());
  const auto common = static_cast<std::size_t>(differ.first - ours.begin());
  if (common <= pages.sealed() * config_.page_size) return copy;  // as much was found by content
  // Beside full attention what is held is good for one place only: where the parent stopped.
  if (!side_pools_.empty() && (!parent.is<Parked>() || common + 1 != theirs.size())) return copy;
  const auto offer = [&](auto& state) { state.on(Forked{pages, copy, common}); };
  if (parent.is<Decoding>()) offer(parent.as<Decoding>());
  if (parent.is<Parked>()) offer(parent.as<Parked>());
  if (parent.is<Prefilled>()) offer(parent.as<Prefilled>());
  return copy;
}

// The executor copies before the rows of this step; until the step is over the source stays.
void Scheduler::plan_copy(Record& parent, PartialCopy&& copy, PageId target) {
  next_.copies.push_back({copy.source, target});
  if (copy.pin) {
    flight_->pins.push_back(std::move(*copy.pin));
  } else {
    flight_->sources.emplace_back(parent, 0, false);
  }
}

// Whether a running prompt is about to seal the page that this one lacks first: then it waits some
// steps for that page and all that follow it, instead of computing them a second time. (Sub-agents
// start together with one long prefix.) The other one runs, so this ends.
bool Scheduler::being_computed(Sequence& sequence, std::size_t index) const {
  const Digest& wanted = sequence.identity(index);
  for (const Record* record : prefilling_) {
    if (!record->is<Prefilling>()) continue;  // retracted in this plan
    const Prefilling& ahead = std::get<Prefilling>(record->state);
    const std::vector<Digest>& identities = ahead.sequence().identities;
    if (index >= ahead.pages().sealed() && index < identities.size() &&
        identities[index] == wanted) {
      return true;
    }
  }
  return false;
}

Scheduler::Admitted Scheduler::admit(Record& record) {
  Sequence& sequence =
      record.is<Queued>() ? record.as<Queued>().sequence() : record.as<Retracted>().sequence();
  const std::size_t total = pages_for(sequence.tokens.size(), config_.page_size);
  const std::size_t reusable = (sequence.tokens.size() - 1) / config_.page_size;
  const bool awaits = record.is<Queued>() && sequence.goal == Goal::kAwait;
  const std::size_t fetchable = record.is<Retracted>() ? 0
                                : awaits
                                    ? total
                                    : fetchable_boundary(std::min(sequence.fetch_pages, reusable));
  if (budget_ == 0 && fetchable == 0 && config_.host_pages == 0) return Admitted::kNoBudget;

  std::size_t reused, copied = 0;
  {
    PageTable pages = match(sequence, awaits ? sequence.full_pages() : reusable);
    std::vector<HostPage> restored = match_host(sequence, pages.sealed(), reusable);
    const std::size_t wanted = std::max(fetchable, pages.sealed() + restored.size());
    const bool fetches = awaits || wanted > pages.sealed();
    const std::size_t usable = pages.sealed();
    const bool fetches_sides = fetches && !side_pools_.empty();
    const std::size_t fetched = awaits ? sequence.tokens.size() : wanted * config_.page_size;
    if (fetches_sides)
      pages = match_to_fetch(sequence, std::min(wanted, sequence.full_pages()), fetched);
    const auto sides_fit = [&] {
      return fetches_sides ? targets_have_room(pages, fetched) : sides_have_room(pages, total);
    };
    Record* parent = fetches ? nullptr : find(record.terms.parent());
    std::optional<PartialCopy> copy;
    if (parent) copy = fork(*parent, sequence, pages);
    reused = pages.sealed();
    if (!fetches && chunk_limit() == 0) return Admitted::kNoBudget;
    if (!fetches && reused < reusable && being_computed(sequence, reused)) {
      return Admitted::kBehindItsPrefix;
    }
    // With nothing running, whoever is parked gives way to whoever can run.
    while (running_.size() == 0 && (pool_.available() < total - reused || !sides_fit()) &&
           demote_one(record.terms.parent())) {
      if (!parent || find(record.terms.parent())) continue;
      parent = nullptr;
      copy.reset();
      if (side_pools_.empty()) continue;
      pages = match(sequence, reusable);
      reused = pages.sealed();
    }
    if (pool_.available() < total - reused + std::max(headroom(pool_), distance(record)) ||
        !sides_fit()) {
      pages.clear();
      blocked_ = Blocked{record.id, available(), plans_ + 16};
      return Admitted::kNoPages;
    }
    pages.reserve(pages_for(sequence.prompt_tokens + sequence.max_new_tokens, config_.page_size));
    while (pages.size() < total) pages.append(*pool_.allocate());
    take_states(pages.sides());
    if (fetches_sides) take_targets(sequence, pages.sides(), fetched, awaits);
    if (copy) {
      copied = copy->tokens;
      plan_side_copies(pages.sides(), std::move(copy->beside));
      plan_copy(*parent, std::move(*copy), pages[reused]);
    }
    if (fetches) {
      leave_queue(record,
                  AdmittedToFetch{*slots_.take(), std::move(pages),
                                  FetchTicket::issue(std::move(restored)), wanted, awaits, usable});
    } else {
      leave_queue(record, AdmittedToCompute{*slots_.take(), std::move(pages), copied});
    }
  }
  blocked_.reset();
  resume(record);
  announce(record, reused * config_.page_size + copied);
  return Admitted::kYes;
}

// Whoever was retracted has been served before.
template <class Event>
void Scheduler::leave_queue(Record& record, Event&& event) {
  if (record.is<Retracted>()) {
    retracted_.remove(record);
    become(record, std::move(record.as<Retracted>()).on(std::move(event)));
  } else {
    const Sequence& sequence = record.as<Queued>().sequence();
    queued_.serve(record, sequence.key, sequence.tokens.size());
    become(record, std::move(record.as<Queued>()).on(std::move(event)));
  }
}

// The executor learns the slot's pages, the engine the slot; a fetch learns its targets.
void Scheduler::announce(Record& record, std::size_t reused_tokens) {
  const bool fetching = record.is<Fetching>();
  const SlotId slot = fetching ? record.as<Fetching>().slot() : record.as<Prefilling>().slot();
  const PageTable& pages =
      fetching ? record.as<Fetching>().pages() : record.as<Prefilling>().pages();
  next_.admitted_requests.push_back(record.id);
  next_.admitted.push_back({raw(slot), static_cast<std::int32_t>(reused_tokens)});
  reused_tokens_ += reused_tokens;
  for (std::size_t index = 0; index < pages.size(); ++index) {
    next_.page_deltas.push_back({raw(slot), static_cast<std::int32_t>(index), raw(pages[index])});
  }
  announce_sides(pages.sides(), slot);
  if (fetching) {
    start_fetch(record);
  } else {
    enter_running(record);
    prefilling_.push_back(&record);
    add_chunk_row(record);
  }
}

}  // namespace baton
