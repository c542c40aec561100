// Looking without touching: counters, lookups, and the invariants that tests hold on to.
#include <algorithm>

#include "lifecycle.h"

namespace baton {
namespace {

// The pages a state holds; null for states that hold none.
const PageTable* pages_in(const State& state) {
  if (const auto* s = std::get_if<Fetching>(&state)) return &s->pages();
  if (const auto* s = std::get_if<Prefilling>(&state)) return &s->pages();
  if (const auto* s = std::get_if<Prefilled>(&state)) return &s->pages();
  if (const auto* s = std::get_if<Decoding>(&state)) return &s->pages();
  if (const auto* s = std::get_if<Parked>(&state)) return &s->pages();
  if (const auto* s = std::get_if<Draining>(&state)) return &s->pages();
  return nullptr;
}

// f(group, page) for every page of a request.
template <class F>
void for_each_page(const PageTable& pages, F&& f) {
  for (std::size_t i = 0; i < pages.size(); ++i) f(std::size_t{0}, pages[i]);
  for (const WindowTable& table : pages.sides().windows) {
    for (std::size_t i = table.first(); i < table.end(); ++i) f(table.pool().group(), table[i]);
  }
  for (const StatePages& state : pages.sides().states) {
    state.for_each_page([&](PageId page) { f(state.pool().group(), page); });
  }
}

// Which of a request's pages stand where: two worlds with other extents behave otherwise.
template <class F>
void put_side_extents(const SideTables& sides, F&& put) {
  for (const WindowTable& table : sides.windows) {
    put(table.first());
    put(table.sealed_end());
    put(table.arrived());
  }
  for (const StatePages& state : sides.states) {
    put(static_cast<std::size_t>(state.base().has_value()));
    put(static_cast<std::size_t>(state.leaves_snapshot()));
    put(static_cast<std::size_t>(state.expects_snapshot()));
    put(state.stands_at());
  }
}

}  // namespace

Stats Scheduler::stats() const {
  const auto in = [this](std::size_t index) { return population_[index]; };
  Stats stats{};
  stats.total_pages = pool_.total();
  stats.free_pages = pool_.free();
  stats.cached_pages = pool_.cached();
  stats.owned_pages = pool_.owned();
  stats.referenced_pages = pool_.referenced();
  stats.leased_pages = pool_.leased();
  stats.quarantined_pages = quarantined_;
  stats.waiting = in(kStateIndex<Queued>) + in(kStateIndex<Retracted>);
  stats.running = in(kStateIndex<Prefilling>) + in(kStateIndex<Decoding>);
  stats.fetching = in(kStateIndex<Fetching>);
  stats.prefilled = in(kStateIndex<Prefilled>);
  stats.parked = in(kStateIndex<Parked>);
  stats.draining = in(kStateIndex<Draining>);
  stats.leases = leases_.size();
  stats.offloading = offloads_.size();
  stats.restored_tokens = restored_tokens_;
  stats.computed_tokens = computed_tokens_;
  stats.generated_tokens = generated_tokens_;
  stats.reused_tokens = reused_tokens_;
  stats.fetched_tokens = fetched_tokens_;
  stats.retractions = retractions_;
  stats.demotions = demotions_;
  return stats;
}

std::size_t Scheduler::lookup(std::span<const Token> tokens, SipKey key) const {
  Digest parent = kRoot;
  std::size_t held = 0;
  std::vector<Digest> identities;
  while (held + config_.page_size <= tokens.size()) {
    parent = page_identity(key, parent, tokens.subspan(held, config_.page_size));
    if (!pool_.holds(parent)) break;
    identities.push_back(parent);
    held += config_.page_size;
  }
  return joint_boundary(identities) * config_.page_size;
}

std::string_view Scheduler::state_of(RequestId request) const {
  const Record* record = find(request);
  return record ? kStateNames[record->state.index()] : std::string_view();
}

std::vector<std::int32_t> Scheduler::pages_of(RequestId request, std::size_t group) const {
  std::vector<std::int32_t> ids;
  const Record* record = find(request);
  if (const PageTable* pages = record ? pages_in(record->state) : nullptr) {
    for_each_page(*pages, [&](std::size_t of, PageId page) {
      if (of == group) ids.push_back(raw(page));
    });
  }
  return ids;
}

PoolStats Scheduler::pool_stats(std::size_t group) const {
  const PagePool& of = pool(group);
  return {of.total(), of.free(), of.cached(), of.owned(), of.referenced(), of.leased()};
}

std::vector<Digest> Scheduler::held_identities() const {
  std::vector<Digest> held = pool_.held();
  for (const auto& side : side_pools_) {
    const std::vector<Digest> beside = side->held();
    held.insert(held.end(), beside.begin(), beside.end());
  }
  return held;
}

std::string Scheduler::check_invariants() const {
  std::vector<std::vector<std::uint32_t>> references;
  for (std::size_t group = 0; group < groups(); ++group) {
    references.emplace_back(pool(group).total(), 0);
  }
  const auto count = [&](std::size_t group, PageId page) {
    ++references[group][static_cast<std::size_t>(raw(page))];
  };
  std::vector<std::uint32_t> host_references(host_.pages().total(), 0);
  const auto count_host = [&](const FetchTicket& ticket) {
    for (const HostPage& page : ticket.restored()) {
      ++host_references[static_cast<std::size_t>(page.id())];
    }
  };
  std::array<std::size_t, kStateNames.size()> population{};
  std::size_t slots = 0, quarantined = 0, claims = 0;
  for (const auto& [id, record] : records_) {
    ++population[record->state.index()];
    claims += record->claims();
    slots += record->is<Fetching>() || record->is<Prefilling>() || record->is<Decoding>() ||
             record->is<Draining>();
    if (const PageTable* pages = pages_in(record->state)) for_each_page(*pages, count);
    if (const auto* fetching = std::get_if<Fetching>(&record->state)) {
      count_host(fetching->ticket());
    }
    if (const auto* draining = std::get_if<Draining>(&record->state)) {
      if (draining->ticket()) count_host(*draining->ticket());
      if (draining->fetch_in_flight()) quarantined += draining->pages().size();
      if (!draining->fetch_in_flight() && record->claims() == 0) {
        return "a draining request waits for nothing";
      }
    }
    if (const auto* prefilled = std::get_if<Prefilled>(&record->state)) {
      if (prefilled->pages().owned() > 0) return "a prefilled request has a writable page";
    }
    if (const auto* parked = std::get_if<Parked>(&record->state)) {
      if (parked->pages().owned() > 0) return "a parked request has a writable page";
      if (!parked_.contains({parked->deadline(), id})) return "a parked request is not listed";
    }
    if (const auto* decoding = std::get_if<Decoding>(&record->state)) {
      const std::size_t pages = decoding->pages().size() * config_.page_size;
      if (decoding->computed() > pages) return "a decoding request computed past its pages";
      if (decoding->computed() + 1 != decoding->sequence().tokens.size()) {
        return "a decoding request lacks more than its last token";
      }
      if (decoding->pages().sealed() * config_.page_size > decoding->computed()) {
        return "a decoding request has sealed a page that is not computed";
      }
    }
    if (const auto* prefilling = std::get_if<Prefilling>(&record->state)) {
      if (prefilling->remaining() == 0) return "a prefilling request has nothing to compute";
    }
  }
  leases_.for_each_page(count);
  for (const auto& [id, offload] : offloads_) {
    count(0, offload.source());
    ++host_references[static_cast<std::size_t>(offload.target())];
  }
  if (const char* broken = host_.pages().audit(host_references); *broken) {
    return std::string("host tier: ") + broken;
  }
  std::size_t claimed = 0;
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    const Flight& flight = steps_.at(i);
    claimed += flight.rows.size() + flight.sources.size();
    for (const SealedPage& pin : flight.pins) count(pin.group(), pin.id());
  }
  for (std::size_t group = 0; group < groups(); ++group) {
    const char* broken = pool(group).audit(references[group]);
    if (*broken) return "group " + std::to_string(group) + ": " + broken;
  }
  if (population != population_) return "the population counts are off";
  if (quarantined != quarantined_) return "the count of quarantined pages is off";
  if (slots + slots_.free() != slots_.total()) return "slots are not conserved";
  if (population[kStateIndex<Queued>] != queued_.size()) return "the queue is off";
  if (population[kStateIndex<Retracted>] != retracted_.size()) return "the retracted are off";
  if (population[kStateIndex<Prefilled>] != prefilled_.size()) return "the held are off";
  if (population[kStateIndex<Parked>] != parked_.size()) return "the parked are off";
  if (population[kStateIndex<Prefilling>] + population[kStateIndex<Decoding>] != running_.size()) {
    return "the running list is off";
  }
  if (claims != claimed) return "row claims are off";
  return {};
}

std::vector<std::uint64_t> Scheduler::fingerprint() const {
  std::vector<std::uint64_t> print;
  std::vector<std::vector<std::int32_t>> names;
  for (std::size_t group = 0; group < groups(); ++group) {
    names.emplace_back(pool(group).total(), -1);
  }
  std::int32_t named = 0;
  const auto put = [&](auto value) { print.push_back(static_cast<std::uint64_t>(value)); };
  const auto put_page = [&](std::size_t group, PageId page) {
    std::int32_t& name = names[group][static_cast<std::size_t>(raw(page))];
    const bool first = name < 0;
    if (first) name = named++;
    put(name);
    if (first) put(pool(group).findable_identity(page).lo);
  };

  std::vector<const Record*> records;
  for (const auto& [id, record] : records_) records.push_back(record.get());
  std::sort(records.begin(), records.end(),
            [](const Record* a, const Record* b) { return a->arrival < b->arrival; });
  for (const Record* record : records) {
    put(record->id);
    put(record->state.index());
    put(record->claims());
    put(record->pending_tokens());
    put(record->pending_samples());
    put(record->retractions);
    if (record->terms.deadline) put(std::max<Micros>(record->terms.deadline - now_, -1));
    if (const auto* s = std::get_if<Fetching>(&record->state)) {
      put(s->arrived());
      put(s->usable());
      put(s->restored().size());
    }
    if (const auto* s = std::get_if<Prefilling>(&record->state)) {
      put(s->computed());
      put(s->sequence().tokens.size());
    }
    if (const auto* s = std::get_if<Decoding>(&record->state)) {
      put(s->computed());
      put(s->draft().size());
      for (const Token token : s->draft()) put(token);
    }
    if (const auto* s = std::get_if<Retracted>(&record->state)) put(s->sequence().tokens.size());
    if (const auto* s = std::get_if<Draining>(&record->state)) {
      put(s->fetch_in_flight());
      put(s->parks());
    }
    if (const auto* s = std::get_if<Prefilled>(&record->state)) put(s->hold_deadline() - now_);
    if (const auto* s = std::get_if<Parked>(&record->state)) {
      put(s->deadline() - now_);
      put(s->sequence().tokens.size());
    }
    const PageTable* pages = pages_in(record->state);
    put(pages ? pages->size() : 0);
    if (pages) for_each_page(*pages, put_page);
    if (pages) put_side_extents(pages->sides(), put);
  }
  for (const Record* r = prefilled_.front(); r; r = RecordList::after(*r)) put(r->id);
  leases_.for_each([&](const std::vector<LeasedPage>& pages, Micros deadline) {
    put(deadline - now_);
    for (const LeasedPage& page : pages) put_page(page.group(), page.id());
  });
  if (config_.host_pages > 0) {
    std::vector<OffloadId> ids;
    for (const auto& [id, offload] : offloads_) ids.push_back(id);
    std::sort(ids.begin(), ids.end());
    for (const OffloadId id : ids) put_page(0, offloads_.at(id).source());
    put(host_.pages().free());
    put(host_.pages().referenced());
    for (const PageId page : host_.pages().coldest_first()) {
      put(host_.pages().findable_identity(page).lo);
    }
    put(pool_.backed());
  }
  for (std::size_t group = 0; group < groups(); ++group) {
    put(pool(group).free());
    for (const PageId page : pool(group).coldest_first()) put_page(group, page);
  }
  if (blocked_) {
    put(blocked_->request);
    put(blocked_->available);
    put(blocked_->retry_at > plans_ ? blocked_->retry_at - plans_ : 0);
  }
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    put(steps_.at(i).rows.size());
    put(steps_.at(i).is_void);
  }
  put(next_.finished_requests.size());
  return print;
}

}  // namespace baton
