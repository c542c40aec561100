// Fetches: what is asked of peers at admission, what has come, and where a request goes on then.
//
// Beside full attention a request needs of each window group the pages that it still sees, and of
// each state group one page: the state where it goes on. An AWAIT request goes on at the end of its
// prompt, whoever restores a prefix at a snapshot. Whatever does not fit together in the end is
// given back; a request that is retracted for it finds again what can be used.
#include <algorithm>

#include "lifecycle.h"

namespace baton {
namespace {

// Snapshots asked for beyond the one wanted, each a step further back.
constexpr std::size_t kMostRewinds = 3;

Digest identity_at(Sequence& sequence, std::size_t index) {
  return index < sequence.full_pages() ? sequence.identity(index) : sequence.prompt_tail_identity();
}

}  // namespace

// ---------------------------------------------------------------- admission

// Of so many pages that peers hold, those that are worth fetching: up to a snapshot.
std::size_t Scheduler::fetchable_boundary(std::size_t pages) const {
  return snapshot_interval_ ? pages - pages % (snapshot_interval_ / config_.page_size) : pages;
}

// What is here of a request that will go on after `tokens`. Unlike for a row, groups need not agree
// yet: what one of them lacks will come.
PageTable Scheduler::match_to_fetch(Sequence& sequence, std::size_t most, std::size_t tokens) {
  PageTable pages = match_tokens(sequence, most);
  for (const auto& side : side_pools_) {
    const SideGroup& group = config_.side_groups[side->group() - 1];
    const auto find = [&](std::size_t index) {
      return side->find(in_group(sequence.identity(index), side->group()));
    };
    if (group.keeps == Retention::kState) {
      StatePages& state = pages.sides().states.emplace_back(*side, std::nullopt);
      if (!ends_on_snapshot(state, tokens)) continue;
      if (auto held = find(tokens / config_.page_size - 1)) {
        state.stand_on(std::move(*held), tokens);
      }
      continue;
    }
    WindowTable& table = open_window(*side, pages.sides(), tokens);
    while (table.end() < tokens / config_.page_size) {
      std::optional<SealedPage> held = find(table.end());
      if (!held) break;
      table.append(std::move(*held));
    }
  }
  return pages;
}

bool Scheduler::ends_on_snapshot(const StatePages& state, std::size_t tokens) const {
  return tokens % config_.side_groups[state.pool().group() - 1].tokens == 0;
}

bool Scheduler::targets_have_room(const PageTable& pages, std::size_t tokens) const {
  const std::size_t total = pages_for(tokens, config_.page_size);
  for (const WindowTable& table : pages.sides().windows) {
    const PagePool& pool = table.pool();
    if (pool.available() < total - table.end() + headroom(pool)) return false;
  }
  for (const StatePages& state : pages.sides().states) {
    const bool snapshot = ends_on_snapshot(state, tokens) && state.stands_at() == 0;
    if (state.pool().available() < 1 + static_cast<std::size_t>(snapshot)) return false;
  }
  return true;
}

// Pages to be filled, and where there is room one for the last snapshot before the prompt's end: by
// it this session's next turn, or another one's, is found here again.
void Scheduler::take_targets(Sequence& sequence, SideTables& sides, std::size_t tokens,
                             bool awaits) {
  for (WindowTable& table : sides.windows) {
    table.arrive(table.end());
    while (table.end() < pages_for(tokens, config_.page_size)) {
      table.append(*table.pool().allocate());
    }
  }
  const std::size_t last = fetchable_boundary(tokens / config_.page_size);
  for (StatePages& state : sides.states) {
    if (state.stands_at() > 0) continue;
    const Digest held = last ? in_group(sequence.identity(last - 1), state.pool().group()) : kRoot;
    const bool keeps = awaits && last > 0 && !state.pool().holds(held) &&
                       state.pool().available() > headroom(state.pool());
    if (ends_on_snapshot(state, tokens) || keeps) {
      state.expect_snapshot(*state.pool().allocate());
    }
  }
}

void Scheduler::fetch_page(const Record& record, std::size_t group, std::size_t index,
                           PageId page) {
  Sequence& sequence = *record.sequence();
  next_.fetch_requests.push_back(record.id);
  next_.fetch_pages.push_back({static_cast<std::int32_t>(index), raw(page)});
  next_.fetch_groups.push_back(static_cast<std::int32_t>(group));
  next_.fetch_hashes.push_back(in_group(identity_at(sequence, index), group));
}

void Scheduler::start_fetch(Record& record) {
  const Fetching& fetching = record.as<Fetching>();
  const std::vector<HostPage>& restored = fetching.restored();
  for (std::size_t index = fetching.arrived(); index < fetching.wanted(); ++index) {
    const std::size_t from_host = index - fetching.restored_first();
    if (from_host < restored.size()) {
      next_.restore_requests.push_back(record.id);
      next_.restore_pages.push_back({static_cast<std::int32_t>(index), restored[from_host].id(),
                                     raw(fetching.pages()[index])});
      continue;
    }
    fetch_page(record, 0, index, fetching.pages()[index]);
  }
  if (!side_pools_.empty()) fetch_sides(record);
}

void Scheduler::fetch_sides(Record& record) {
  const Fetching& fetching = record.as<Fetching>();
  const std::size_t last = fetching.wanted() - 1;
  const std::size_t stride = snapshot_interval_ / config_.page_size;
  const SideTables& sides = fetching.sides();
  for (const WindowTable& table : sides.windows) {
    for (std::size_t index = table.sealed_end(); index < table.end(); ++index) {
      fetch_page(record, table.pool().group(), index, table[index]);
    }
  }
  for (const StatePages& state : sides.states) {
    if (state.stands_at() > 0) continue;
    const std::size_t group = state.pool().group();
    if (fetching.awaits()) {
      const bool aligned = ends_on_snapshot(state, fetching.sequence().tokens.size());
      fetch_page(record, group, last, aligned ? state.incoming() : state.live());
      if (aligned || !state.expects_snapshot()) continue;
      fetch_page(record, group,
                 fetchable_boundary(fetching.sequence().tokens.size() / config_.page_size) - 1,
                 state.incoming());
      continue;
    }
    // Several groups would have to be rewound to the same place.
    const std::size_t rewinds = side_pools_.size() == 1 ? kMostRewinds : 0;
    for (std::size_t back = 0; back <= rewinds; ++back) {
      if (fetching.wanted() < back * stride + fetching.usable() + 1) break;
      fetch_page(record, group, last - back * stride, state.incoming());
    }
  }
}

// ---------------------------------------------------------------- arrivals

Reply Scheduler::pages_arrived(RequestId request, std::size_t first_index, std::size_t count,
                               std::size_t group) {
  Record* record = find(request);
  if (!record) return Reply::kIgnored;
  const Reply reply = kTable.answer<PagesArrived>(record->state);
  if (reply != Reply::kAccepted) return reply;
  Fetching& fetching = record->as<Fetching>();
  const std::size_t end = first_index + count;
  if (group == 0) {
    if (end <= fetching.arrived()) return Reply::kIgnored;
    return tokens_arrived(fetching, first_index, count) ? reply : Reply::kRejected;
  }
  for (WindowTable& table : fetching.sides().windows) {
    if (table.pool().group() != group) continue;
    if (end <= table.arrived()) return Reply::kIgnored;
    return window_arrived(fetching, table, first_index, count) ? reply : Reply::kRejected;
  }
  for (StatePages& state : fetching.sides().states) {
    if (state.pool().group() != group) continue;
    return count == 1 && state_arrived(fetching, state, first_index) ? reply : Reply::kRejected;
  }
  return Reply::kRejected;
}

bool Scheduler::tokens_arrived(Fetching& fetching, std::size_t first, std::size_t count) {
  if (first != fetching.arrived() || first + count > fetching.wanted()) return false;
  Sequence& sequence = fetching.sequence();
  for (std::size_t index = first; index < first + count; ++index) {
    if (index >= sequence.full_pages()) {  // the tail stays writable: decoding goes on in it
      fetched_tokens_ += sequence.tokens.size() - index * config_.page_size;
      continue;
    }
    const bool restored = index - fetching.restored_first() < fetching.restored().size();
    (restored ? restored_tokens_ : fetched_tokens_) += config_.page_size;
    const PageId before = fetching.pages()[index];
    const PageId after = fetching.seal_next();
    if (before != after) {
      next_.page_deltas.push_back(
          {raw(fetching.slot()), static_cast<std::int32_t>(index), raw(after)});
    }
  }
  fetching.on(PagesArrived{count});
  return true;
}

bool Scheduler::window_arrived(Fetching& fetching, WindowTable& table, std::size_t first,
                               std::size_t count) {
  if (first != table.arrived() || first + count > table.end()) return false;
  Sequence& sequence = fetching.sequence();
  table.arrive(first + count);
  while (table.sealed_end() < std::min(table.arrived(), sequence.full_pages())) {
    const std::size_t index = table.sealed_end();
    const PageId before = table[index];
    const PageId after = table.seal_next(in_group(sequence.identity(index), table.pool().group()));
    if (before != after) note_side_page(table, fetching.slot(), index, raw(after));
  }
  return true;
}

bool Scheduler::state_arrived(Fetching& fetching, StatePages& state, std::size_t index) {
  Sequence& sequence = fetching.sequence();
  const std::size_t tokens = sequence.tokens.size();
  const std::size_t position = (index + 1) * config_.page_size;
  if (state.stands_at() == 0 && fetching.awaits() && index == fetching.wanted() - 1 &&
      !ends_on_snapshot(state, tokens)) {
    state.arrive(tokens);
    return true;
  }
  if (!state.expects_snapshot() || index < fetching.usable() || index >= fetching.wanted() ||
      position > tokens || !ends_on_snapshot(state, position)) {
    return false;
  }
  const Digest identity = in_group(sequence.identity(index), state.pool().group());
  if (fetching.awaits() && position < tokens) {
    state.keep_snapshot(identity);
  } else {
    state.go_on_from_snapshot(identity, position);
  }
  return true;
}

// ---------------------------------------------------------------- the end

Reply Scheduler::fetch_ended(RequestId request, std::optional<Token> first_token, bool finish,
                             Micros now) {
  at_least(now);
  Record* record = find(request);
  if (!record) return Reply::kIgnored;
  const Reply reply = first_token ? kTable.answer<FetchCompleted>(record->state)
                                  : kTable.answer<FetchGaveUp>(record->state);
  if (reply != Reply::kAccepted) return reply;
  if (record->is<Draining>()) {
    Draining& draining = record->as<Draining>();
    if (!draining.fetch_in_flight()) return Reply::kIgnored;
    quarantined_ -= draining.pages().size();
    draining.on(FetchGaveUp{});
    settle(*record);
    return reply;
  }

  Fetching& fetching = record->as<Fetching>();
  if (first_token && fetching.complete()) {
    next_.started_requests.push_back(request);
    ++generated_tokens_;
    become(*record, std::move(fetching).on(FetchCompleted{*first_token}));
    enter_running(*record);
    const Sequence& started = record->as<Decoding>().sequence();
    if (finish || started.generated() >= started.max_new_tokens) {
      end_turn(*record, finish ? FinishReason::kFlag : FinishReason::kLength,
               next_.finished_requests, next_.finished_reasons);
    }
  } else if (fetching.can_compute()) {
    become(*record, std::move(fetching).on(FetchGaveUp{}));
    enter_running(*record);
  } else {
    // Every page is sealed, but the last token's logits are wanted; or the groups do not stand at
    // one place. It must come back: for a writable last page, and where all groups can go on. What
    // is here will be found again.
    retract<Fetching>(*record);
  }
  return reply;
}

}  // namespace baton
