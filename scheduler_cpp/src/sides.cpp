// The groups beside full attention: what a hit needs of them, what a row needs, what a step leaves.
#include <algorithm>
#include <numeric>

#include "lifecycle.h"

namespace baton {

std::size_t Config::state_groups() const {
  return static_cast<std::size_t>(
      std::count_if(side_groups.begin(), side_groups.end(),
                    [](const SideGroup& group) { return group.keeps == Retention::kState; }));
}

std::size_t Config::snapshot_interval() const {
  std::size_t interval = 0;
  for (const SideGroup& group : side_groups) {
    if (group.keeps != Retention::kState) continue;
    interval = interval ? std::lcm(interval, group.tokens) : group.tokens;
  }
  return interval;
}

// Of all groups together: more than before means that somebody gave something back.
std::size_t Scheduler::available() const {
  std::size_t pages = pool_.available();
  for (const auto& side : side_pools_) pages += side->available();
  return pages;
}

// ---------------------------------------------------------------- hits and admission

// The longest prefix of these pages, all held in group 0, that every other group can serve too.
std::size_t Scheduler::joint_boundary(std::span<const Digest> identities) const {
  const std::size_t page_size = config_.page_size;
  std::size_t boundary = identities.size();
  for (std::size_t before = boundary + 1; boundary < before;) {
    before = boundary;
    for (const auto& side : side_pools_) {
      const SideGroup& group = config_.side_groups[side->group() - 1];
      const auto holds = [&](std::size_t index) {
        return side->holds(in_group(identities[index], side->group()));
      };
      if (group.keeps == Retention::kWindow) {
        // A gap at `i` serves nothing beyond it that still sees it: go on from there.
        for (std::size_t i = boundary; i-- > group.first_needed(boundary * page_size, page_size);) {
          if (!holds(i)) boundary = i;
        }
      } else {
        const std::size_t stride = group.tokens / page_size;
        boundary -= boundary % stride;
        while (boundary > 0 && !holds(boundary - 1)) boundary -= stride;
      }
    }
  }
  return boundary;
}

// Cuts a match in group 0 to what all groups can serve, and takes their pages.
void Scheduler::match_sides(Sequence& sequence, PageTable& pages) {
  const std::size_t boundary =
      joint_boundary(std::span<const Digest>(sequence.identities).first(pages.sealed()));
  pages.truncate(boundary);
  for (const auto& side : side_pools_) {
    const SideGroup& group = config_.side_groups[side->group() - 1];
    const auto take = [&](std::size_t index) {
      return side->find(in_group(sequence.identity(index), side->group()));
    };
    if (group.keeps == Retention::kState) {
      pages.sides().states.emplace_back(*side, boundary ? take(boundary - 1) : std::nullopt);
      continue;
    }
    WindowTable& table = open_window(*side, pages.sides(), boundary * config_.page_size);
    while (table.end() < boundary) table.append(*take(table.end()));
  }
}

// A table for what is seen from `tokens` on.
WindowTable& Scheduler::open_window(PagePool& side, SideTables& sides, std::size_t tokens) {
  const SideGroup& group = config_.side_groups[side.group() - 1];
  // A chunk needs pages for all its tokens, on top of the window's.
  const std::size_t room = group.least_pages(config_.page_size) + 1 +
                           pages_for(config_.max_chunk_tokens, config_.page_size);
  return sides.windows.emplace_back(side, group.first_needed(tokens, config_.page_size),
                                    std::min(room, side.total()));
}

// Whether a request of `total` pages, its hits taken, can start in every group.
bool Scheduler::sides_have_room(const PageTable& pages, std::size_t total) const {
  const auto has = [&](const PagePool& pool, std::size_t wanted) {
    return pool.available() >= wanted + headroom(pool);
  };
  for (const WindowTable& table : pages.sides().windows) {
    const SideGroup& group = config_.side_groups[table.pool().group() - 1];
    const std::size_t held = table.end() - table.first();
    const std::size_t wanted = group.least_pages(config_.page_size) - held;
    if (!has(table.pool(), std::min(wanted, total - table.end()))) return false;
  }
  for (const StatePages& state : pages.sides().states) {
    if (state.pool().available() < 1) return false;
  }
  return true;
}

// A page to write the state to, for every state group; there is room.
void Scheduler::take_states(SideTables& sides) {
  for (StatePages& state : sides.states) state.start(*state.pool().allocate());
}

// The child's own pages in the place of its parent's partial ones.
void Scheduler::plan_side_copies(SideTables& sides, std::vector<SealedPage>&& partial) {
  auto source = partial.begin();
  for (WindowTable& table : sides.windows) {
    if (source == partial.end()) return;
    table.append(*table.pool().allocate());
    next_.side_copies.push_back({static_cast<std::int32_t>(table.pool().group()), raw(source->id()),
                                 raw(table[table.end() - 1])});
    flight_->pins.push_back(std::move(*source++));
  }
}

void Scheduler::announce_sides(const SideTables& sides, SlotId slot) {
  for (const WindowTable& table : sides.windows) {
    for (std::size_t i = table.first(); i < table.end(); ++i) {
      note_side_page(table, slot, i, raw(table[i]));
    }
  }
}

void Scheduler::note_side_page(const WindowTable& table, SlotId slot, std::size_t index,
                               std::int32_t page) {
  next_.side_deltas.push_back({static_cast<std::int32_t>(table.pool().group()), raw(slot),
                               static_cast<std::int32_t>(index), page});
}

// ---------------------------------------------------------------- rows

// A chunk that reaches a boundary of snapshots ends on the last one it reaches: the rest of a
// prompt then costs a step more, and all of it up to there can be found again.
std::size_t Scheduler::cut_at_snapshot(std::size_t context, std::size_t tokens) const {
  if (snapshot_interval_ == 0) return tokens;
  const std::size_t end = context + tokens;
  const std::size_t boundary = end - end % snapshot_interval_;
  return boundary > context ? boundary - context : tokens;
}

// Of `tokens` from `context` on, those that every window group has pages for, free ones included.
std::size_t Scheduler::window_room(const SideTables& sides, std::size_t context,
                                   std::size_t tokens) const {
  for (const WindowTable& table : sides.windows) {
    const std::size_t end = (table.end() + table.pool().available()) * config_.page_size;
    tokens = std::min(tokens, end - context);
  }
  return tokens;
}

// Every group's pages for a row: as many of `most` tokens as there is room for, and one at least,
// for which parked sessions make room, then the youngest. 0: not even that, for now.
std::size_t Scheduler::give_side_pages(Record& record, SideTables& sides, SlotId slot,
                                       std::size_t context, std::size_t most) {
  std::size_t tokens = window_room(sides, context, most);
  while (tokens == 0) {
    if (demote_one(0)) {
      tokens = window_room(sides, context, most);
      continue;
    }
    Record* victim = victim_after(running_.index_of(record));
    if (!victim) return 0;
    retract_running(*victim);
    tokens = window_room(sides, context, most);
  }
  tokens = cut_at_snapshot(context, tokens);
  for (WindowTable& table : sides.windows) {
    while (table.end() * config_.page_size < context + tokens) {
      table.append(*table.pool().allocate());
      note_side_page(table, slot, table.end() - 1, raw(table[table.end() - 1]));
    }
  }
  return tokens;
}

// The states' part of a row that was just added. `first`: no other row of it is in flight.
void Scheduler::add_state_row(SideTables& sides, std::size_t context, std::size_t tokens,
                              bool first) {
  for (StatePages& state : sides.states) {
    next_.state_pages.push_back(state.row(context, first));
    const std::size_t interval = config_.side_groups[state.pool().group() - 1].tokens;
    if ((context + tokens) % interval != 0 || state.leaves_snapshot()) continue;
    if (auto page = state.pool().allocate()) {
      state.leave_snapshot_at(context + tokens, std::move(*page));
    }
  }
}

// ---------------------------------------------------------------- what a step leaves

// Rows up to `computed` are in the cache: full pages are sealed, the window moves, states advance.
void Scheduler::advance_sides(Record& record, SideTables& sides, SlotId slot, Sequence& sequence,
                              std::size_t computed) {
  const std::size_t page_size = config_.page_size;
  for (WindowTable& table : sides.windows) {
    const std::size_t group = table.pool().group();
    while ((table.sealed_end() + 1) * page_size <= computed) {
      const std::size_t index = table.sealed_end();
      const Digest identity = in_group(sequence.identity(index), group);
      const PageId before = table[index];
      const PageId after = table.seal_next(identity);
      note_sealed(record, group, index, after, identity);
      if (before != after) note_side_page(table, slot, index, raw(after));
    }
    const std::size_t needed = config_.side_groups[group - 1].first_needed(computed, page_size);
    while (table.first() < std::min(needed, table.sealed_end())) {
      note_side_page(table, slot, table.first(), -1);
      table.drop_first();
    }
  }
  for (StatePages& state : sides.states) {
    if (!state.advance(computed)) continue;
    const std::size_t index = computed / page_size - 1;
    const Digest identity = in_group(sequence.identity(index), state.pool().group());
    note_sealed(record, state.pool().group(), index, state.seal_snapshot(identity), identity);
  }
}

// The prompt is complete and nothing is computed any more: what is left is sealed for its reader.
void Scheduler::seal_side_tails(Record& record, SideTables& sides, Sequence& sequence) {
  const std::size_t last = (sequence.prompt_tokens - 1) / config_.page_size;
  const bool partial = sequence.prompt_tokens % config_.page_size != 0;
  if (sides.empty()) return;
  const Digest tail = partial ? sequence.prompt_tail_identity() : sequence.identity(last);
  for (WindowTable& table : sides.windows) {
    if (table.sealed_end() == table.end()) continue;
    const Digest identity = in_group(tail, table.pool().group());
    note_sealed(record, table.pool().group(), last, table.seal_tail(identity), identity);
  }
  for (StatePages& state : sides.states) {
    const Digest identity = in_group(tail, state.pool().group());
    note_sealed(record, state.pool().group(), last, state.seal_last(identity), identity);
  }
}

// What was computed is suspect: nobody finds it again, unless somebody else uses it.
void Scheduler::forget_sides(const SideTables& sides) {
  for (const WindowTable& table : sides.windows) {
    for (std::size_t i = table.first(); i < table.sealed_end(); ++i) {
      table.pool().forget_unshared(table.sealed_page(i));
    }
  }
  for (const StatePages& state : sides.states) {
    if (state.base()) state.pool().forget_unshared(*state.base());
  }
}

}  // namespace baton
