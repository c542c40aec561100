// One step: decode everybody, then prompt chunks, then admissions.
#include <algorithm>

#include "lifecycle.h"

namespace baton {

Step Scheduler::plan(Micros now) {
  at_least(now);
  ++plans_;
  flight_ = &steps_.spare();
  stalled_ = false;
  expire(now_);
  budget_ = config_.max_step_tokens;
  const std::size_t decodes = population_[kStateIndex<Decoding>];
  draft_budget_ = budget_ - std::min(budget_, decodes);
  plan_decodes();
  chunk_budget_ =
      config_.role == Role::kDecode ? std::min(budget_, config_.max_chunk_tokens) : budget_;
  plan_chunks();
  plan_admissions();
  plan_offloads();
  std::swap(next_.evicted_hashes, pool_.evicted());
  for (const auto& side : side_pools_) side->take_evicted(next_.evicted_hashes);
  std::swap(next_, flight_->plan);
  next_.clear();
  flight_->sequence = plans_;
  if (!flight_->plan.rows.empty()) steps_.launch();
  return Step(*this, flight_->plan, plans_);
}

// Costs what is due, not what is held.
void Scheduler::expire(Micros now) {
  miss_deadlines();
  leases_.expire(now);
  while (Record* record = prefilled_.front()) {
    if (record->as<Prefilled>().hold_deadline() >= now) break;
    prefilled_.remove(*record);
    next_.expired_requests.push_back(record->id);
    become(*record, std::move(record->as<Prefilled>()).on(HoldExpired{}));
    drop(*record);
  }
  while (!parked_.empty() && parked_.begin()->first < now) demote(*find(parked_.begin()->second));
}

// The parked session that expires first gives way, request `but` only as the last one. False: none
// is parked.
bool Scheduler::demote_one(RequestId but) {
  if (parked_.empty()) return false;
  auto first = parked_.begin();
  if (first->second == but && parked_.size() > 1) ++first;
  demote(*find(first->second));
  return true;
}

// Whether a row more makes sense while others are in flight: where it will stand must be known, and
// that it is not over by then.
bool Scheduler::can_decode(const Record& record) const {
  const std::uint32_t samples = record.pending_samples();
  if (samples == 0) return true;
  const Sequence& sequence = *record.sequence();
  return record.pending_tokens() == samples &&
         sequence.generated() + samples < sequence.max_new_tokens;
}

void Scheduler::plan_decodes() {
  running_.compact();
  prefilling_.clear();
  for (std::size_t i = 0; i < running_.extent(); ++i) {
    Record* record = running_.at(i);
    if (!record) continue;  // retracted a moment ago
    if (record->is<Prefilling>()) {
      prefilling_.push_back(record);
      continue;
    }
    if (stalled_ || !can_decode(*record)) continue;
    if (record->as<Decoding>().needs_page(record->pending_tokens()) && !give_page(*record, i)) {
      continue;
    }
    if (!side_pools_.empty() && !give_window_page(*record)) continue;
    const bool guesses = record->claims() == 0 && !record->as<Decoding>().draft().empty();
    add_decode_row(*record, guesses ? reserve_draft(*record) : 0);
  }
}

// A page for the next token of the running request at `index`; parked sessions make room, then
// those that win less. False: nobody does, and it is retracted itself.
bool Scheduler::give_page(Record& record, std::size_t index) {
  std::optional<OwnedPage> page = pool_.allocate();
  while (!page && demote_one(0)) page = pool_.allocate();
  while (!page) {
    Record* victim = victim_after(index);
    if (!victim && !steps_.empty()) {
      // Whoever could give way has rows in flight, or it has itself. None get new ones meanwhile.
      stalled_ = true;
      return false;
    }
    retract_running(victim ? *victim : record);
    if (!victim) return false;
    page = pool_.allocate();
  }
  grow(record.as<Decoding>(), std::move(*page));
  return true;
}

void Scheduler::grow(Decoding& decoding, OwnedPage&& page) {
  next_.page_deltas.push_back(
      {raw(decoding.slot()), static_cast<std::int32_t>(decoding.pages().size()), raw(page.id())});
  decoding.grow(std::move(page));
}

// How many guesses a row can carry. Nobody makes room for guesses: they take tokens that no decode
// needs, and pages that are free or evictable while a page for every decode remains.
std::size_t Scheduler::reserve_draft(Record& record) {
  Decoding& decoding = record.as<Decoding>();
  const Sequence& sequence = decoding.sequence();
  const std::size_t useful = sequence.max_new_tokens - sequence.generated() - 1;
  std::size_t drafted = std::min({decoding.draft().size(), useful, draft_budget_});
  const std::size_t end = decoding.computed() + 1 + drafted;
  while (decoding.capacity() < end && pool_.available() > population_[kStateIndex<Decoding>]) {
    grow(decoding, *pool_.allocate());
  }
  drafted = std::min(drafted, decoding.capacity() - decoding.computed() - 1);
  draft_budget_ -= drafted;
  return drafted;
}

// The same in the window groups.
bool Scheduler::give_window_page(Record& record) {
  Decoding& decoding = record.as<Decoding>();
  if (give_side_pages(record, decoding.sides(), decoding.slot(), decoding.computed(), 1)) {
    return true;
  }
  retract_running(record);
  return false;
}

// Who gives way to the running request at `index`: of those that win less, hence have no row in
// this step yet, those of the lowest priority; of them the one that loses least, in tokens that
// nobody else keeps.
Record* Scheduler::victim_after(std::size_t index) const {
  Record* cheapest = nullptr;
  std::size_t least = 0;
  for (std::size_t i = running_.extent(); i-- > index + 1;) {
    Record* record = running_.at(i);
    if (!record || record->claims() > 0) continue;
    if (cheapest && record->terms.priority > cheapest->terms.priority) break;
    const bool decodes = record->is<Decoding>();
    const PageTable& pages =
        decodes ? record->as<Decoding>().pages() : record->as<Prefilling>().pages();
    const std::size_t computed =
        decodes ? record->as<Decoding>().computed() : record->as<Prefilling>().computed();
    const std::size_t shared = pages.shared();
    // Who shares all it has would give nothing back.
    const std::size_t loss = shared == pages.size()
                                 ? config_.max_context + 1
                                 : computed - std::min(computed, shared * config_.page_size);
    if (cheapest && loss >= least) continue;
    cheapest = record;
    least = loss;
  }
  return cheapest;
}

void Scheduler::add_decode_row(Record& record, std::size_t drafted) {
  Decoding& decoding = record.as<Decoding>();
  const auto tokens = static_cast<std::int32_t>(1 + drafted);
  const std::size_t context = decoding.computed() + record.pending_tokens();
  next_.rows.push_back({raw(decoding.slot()), tokens, static_cast<std::int32_t>(context), tokens,
                        static_cast<std::int32_t>(next_.token_ids.size()), RowKind::kDecode});
  next_.requests.push_back(record.id);
  next_.token_ids.push_back(record.pending_samples() ? kSampledLast : decoding.last_token());
  for (const Token guess : decoding.draft().first(drafted)) next_.token_ids.push_back(guess);
  ++next_.sampling_rows;
  if (snapshot_interval_) add_state_row(decoding.sides(), decoding.computed(), 1, !record.claims());
  if (decoding.fills_page(record.pending_tokens())) {
    flight_->filling.push_back(static_cast<std::uint32_t>(flight_->rows.size()));
  }
  flight_->rows.emplace_back(record, tokens, true, drafted);
  budget_ -= 1 + drafted;
}

std::size_t Scheduler::chunk_limit() const {
  return std::min({budget_, chunk_budget_, config_.max_chunk_tokens});
}

void Scheduler::plan_chunks() {
  for (Record* record : prefilling_) {
    if (stalled_ || chunk_limit() == 0) return;
    if (record->is<Prefilling>()) add_chunk_row(*record);  // else retracted a moment ago
  }
}

void Scheduler::add_chunk_row(Record& record) {
  Prefilling& prefilling = record.as<Prefilling>();
  const std::size_t computed = prefilling.computed() + record.pending_tokens();
  const std::size_t remaining = prefilling.remaining() - record.pending_tokens();
  if (remaining == 0) return;  // all of it is in flight
  std::size_t chunk = std::min(remaining, chunk_limit());
  if (!side_pools_.empty()) {
    chunk = give_side_pages(record, prefilling.sides(), prefilling.slot(), computed, chunk);
    if (chunk == 0) return;  // those who hold the pages go on
  }
  const bool samples = chunk == remaining;
  const std::span<const Token> tokens = prefilling.sequence().tokens.all();
  const auto from = tokens.begin() + static_cast<std::ptrdiff_t>(computed);
  next_.rows.push_back({raw(prefilling.slot()), static_cast<std::int32_t>(chunk),
                        static_cast<std::int32_t>(computed), samples,
                        static_cast<std::int32_t>(next_.token_ids.size()), RowKind::kPrefill});
  next_.requests.push_back(record.id);
  next_.token_ids.insert(next_.token_ids.end(), from, from + static_cast<std::ptrdiff_t>(chunk));
  next_.sampling_rows += samples;
  if (snapshot_interval_) {
    add_state_row(prefilling.sides(), computed, chunk, !record.claims());
  }
  flight_->rows.emplace_back(record, static_cast<std::uint32_t>(chunk), samples);
  budget_ -= chunk;
  chunk_budget_ -= chunk;
}

void Scheduler::plan_admissions() {
  while (Record* record = stalled_ ? nullptr : next_to_admit()) {
    if (slots_.empty() || blocked(*record)) return;
    if (admit(*record) != Admitted::kYes) return;
  }
}

}  // namespace baton
