// The executor: page tables by deltas, rows that read and write contents.
#include <algorithm>
#include <bit>
#include <set>

#include "world.h"

namespace baton::world {

void World::do_plan() {
  steps_.push_back(scheduler_.plan(now_));
  const Plan& plan = steps_.back().plan();
  take_news(plan);
  if (plan.rows.empty()) {
    apply_tables(plan);
    if (steps_.size() == 1) check_progress();
    steps_.pop_back();
  } else if (steps_.size() == 1) {
    start_step();
  }
}

std::int32_t World::page_at(std::size_t group, const Row& row, std::size_t position) const {
  const auto& table = tables_[group][static_cast<std::size_t>(row.slot)];
  const std::size_t index = position / setup_.config.page_size;
  return index < table.size() ? table[index] : -1;
}

// What happens beside the steps, as soon as it is planned: remote writes do not wait for a fence.
void World::take_news(const Plan& plan) {
  check_retractions(plan);
  take_movements(plan);
  for (std::size_t i = 0; i < plan.admitted_requests.size(); ++i) {
    const int a = script_of(plan.admitted_requests[i]);
    Request& request = requests_[static_cast<std::size_t>(a)];
    request.slot = plan.admitted[i].slot;
    if (scheduler_.state_of(plan.admitted_requests[i]) != "Fetching") continue;
    // An AWAIT request waits for its first token even if it has every page, once.
    const bool awaits = setup_.scripts[static_cast<std::size_t>(a)].goal == Goal::kAwait;
    fetches_[a].awaits = awaits && !request.awaited;
    request.awaited = true;
  }
  for (const RequestId id : plan.finished_requests) {
    requests_[static_cast<std::size_t>(script_of(id))].over = true;
  }
  for (const RequestId id : plan.expired_requests) {
    requests_[static_cast<std::size_t>(script_of(id))].over = true;
  }
}

// The executor's part, when the steps before are over: tables and copies.
void World::apply_tables(const Plan& plan) {
  for (const std::int32_t slot : plan.slot_resets) {
    for (auto& tables : tables_) tables[static_cast<std::size_t>(slot)].clear();
  }
  for (const PageDelta& delta : plan.page_deltas) {
    auto& table = tables_[0][static_cast<std::size_t>(delta.slot)];
    if (table.size() <= static_cast<std::size_t>(delta.page_index)) {
      table.resize(static_cast<std::size_t>(delta.page_index) + 1, -1);
    }
    table[static_cast<std::size_t>(delta.page_index)] = delta.page;
  }
  if (scheduler_.groups() > 1) take_side_plan(plan);
  for (const PageCopy& copy : plan.copies) {
    content(0, raw(copy.target)) = content(0, raw(copy.source));
  }
}

// The oldest step begins: what do its rows say?
void World::start_step() {
  const Plan& plan = running();
  apply_tables(plan);
  if (void_) return;
  std::set<std::int32_t> written;
  std::size_t offset = 0, tokens = 0;
  bool prefill_seen = false;
  for (std::size_t i = 0; i < plan.rows.size(); ++i) {
    const Row& row = plan.rows[i];
    const Request& request = requests_[static_cast<std::size_t>(script_of(plan.requests[i]))];
    if (row.slot != request.slot) fail("a row has another slot than its request");
    if (row.query_tokens < 1) fail("a row without tokens");
    if (static_cast<std::size_t>(row.token_offset) != offset) fail("token offsets have gaps");
    prefill_seen |= row.kind == RowKind::kPrefill;
    if (prefill_seen && row.kind == RowKind::kDecode) fail("a decode row after a prefill row");
    for (std::int32_t t = 0; t < row.query_tokens; ++t) {
      const auto position = static_cast<std::size_t>(row.context_tokens + t);
      const Token fed = plan.token_ids[offset + static_cast<std::size_t>(t)];
      const std::size_t guess = position - std::min(position, request.tokens.size());
      if (request.over) {
        // Its row is discarded, whatever it feeds.
      } else if (fed == kSampledLast) {
        if (t > 0 || position + 1 != request.tokens.size() || setup_.config.overlap == 0) {
          fail("a row waits for a token that the step before does not sample");
        }
      } else if (position < request.tokens.size() ? fed != request.tokens[position]
                                                  : fed != request.draft.at(guess)) {
        fail("a row feeds another token than its request has there");
      }
      const std::int32_t page = page_at(row, position);
      if (page < 0) {
        fail("a row writes where its slot has no page");
        return;
      }
      written.insert(page);
      if (remote_writer(0, page) >= 0) {
        fail("a row writes a page that a fetch may still write");
      }
    }
    offset += static_cast<std::size_t>(row.query_tokens);
    tokens += static_cast<std::size_t>(row.query_tokens);
  }
  if (tokens > setup_.config.max_step_tokens) fail("a step exceeds its token budget");
  if (offset != plan.token_ids.size()) fail("token ids and rows differ in length");
  if (!checking_) return;

  // One writer a page: nobody else holds a page that a row writes, and no lease covers it.
  for (const std::int32_t page : written) {
    for (const Offload& offload : offloads_) {
      if (offload.pages.page == page) fail("a row writes a page that is being copied");
    }
    int holders = 0;
    for (std::size_t a = 0; a < requests_.size(); ++a) {
      for (const std::int32_t held : scheduler_.pages_of(a + 1)) holders += held == page;
    }
    if (holders != 1) fail("a row writes a page that has " + std::to_string(holders) + " holders");
    for (const LeaseSeen& lease : leases_) {
      if (lease.group == 0 && lease.deadline >= now_ &&
          std::find(lease.pages.begin(), lease.pages.end(), page) != lease.pages.end()) {
        fail("a row writes a leased page");
      }
    }
  }
  if (scheduler_.groups() > 1) check_side_writers();
  check_reads("planned");
}

// Everything a row attends to must be there: a hit implies written pages.
void World::check_reads(const char* when) {
  if (!checking_) return;
  const Plan& plan = running();
  for (std::size_t i = 0; i < plan.rows.size(); ++i) {
    const Row& row = plan.rows[i];
    const Request& request = requests_[static_cast<std::size_t>(script_of(plan.requests[i]))];
    for (std::int32_t p = 0; p < row.context_tokens; ++p) {
      const auto position = static_cast<std::size_t>(p);
      const std::int32_t page = page_at(row, position);
      if (page < 0 ||
          content(0, page)[position % setup_.config.page_size] != request.tags[position]) {
        fail(std::string("a row reads what was never written, when ") + when);
        return;
      }
    }
  }
  if (scheduler_.groups() > 1) check_side_reads(when);
}

// What the row's positions hold once it is computed.
std::vector<World::Tag> World::fed_tags(const Row& row, const Request& request) const {
  Request ahead = request;
  for (const Token token : request.draft) append(ahead, token, 0);
  std::vector<Tag> tags(static_cast<std::size_t>(row.query_tokens), kGarbage);
  for (std::size_t t = 0; t < tags.size(); ++t) {
    const auto position = static_cast<std::size_t>(row.context_tokens) + t;
    if (position < ahead.tags.size()) tags[t] = ahead.tags[position];
  }
  return tags;
}

void World::do_complete(int variant) {
  check_reads("completed");
  if (!fault_.empty()) return;
  const Plan& plan = running();
  std::vector<Token> tokens;
  std::vector<std::uint8_t> flags;
  std::vector<std::int32_t> accepted;
  bool varied = false;  // the first row that is not discarded is the one that ends
  std::vector<int> sampled;
  for (std::size_t i = 0; i < plan.rows.size(); ++i) {
    const Row& row = plan.rows[i];
    const int a = script_of(plan.requests[i]);
    const Request& request = requests_[static_cast<std::size_t>(a)];
    const std::vector<Tag> tags = fed_tags(row, request);
    for (std::int32_t t = 0; t < row.query_tokens; ++t) {
      const auto position = static_cast<std::size_t>(row.context_tokens + t);
      content(0, page_at(row, position))[position % setup_.config.page_size] =
          tags[static_cast<std::size_t>(t)];
    }
    if (!row.samples) continue;
    const auto last = static_cast<std::size_t>(row.context_tokens + row.query_tokens - row.samples);
    if (request.over) {  // discarded: whatever it sampled
      flags.push_back(0);
      tokens.push_back(0);
      accepted.push_back(1);
      sampled.push_back(a);
      continue;
    }
    if (last + 1 != request.tokens.size()) fail("a row samples before its last token");
    flags.push_back(varied ? std::uint8_t{0} : static_cast<std::uint8_t>(variant));
    varied = true;
    // The guesses hold good as long as the model says the same; a row that ends is cut short.
    Request ahead = request;
    std::int32_t count = 0;
    for (bool held = true; held; ++count) {
      tokens.push_back(next_token(ahead, last + static_cast<std::size_t>(count)));
      held = count + 1 < row.samples && flags.back() == 0 &&
             request.draft[static_cast<std::size_t>(count)] == tokens.back();
      append(ahead, tokens.back(), 0);
    }
    accepted.push_back(count);
    sampled.push_back(a);
  }
  if (scheduler_.groups() > 1) write_sides(true);
  const auto outcome = scheduler_.complete(steps_.front(), tokens, flags, now_, accepted);
  steps_.pop_front();
  const auto* completion = std::get_if<const Completion*>(&outcome);
  if (!completion) return fail("a completion was refused");
  auto token = tokens.begin();
  for (std::size_t i = 0; i < sampled.size(); ++i) {
    Request& request = requests_[static_cast<std::size_t>(sampled[i])];
    request.draft.clear();
    for (std::int32_t k = 0; k < accepted[i]; ++k, ++token) {
      if (flags[i] == 2 || request.over) continue;
      append(request, *token, setup_.scripts[static_cast<std::size_t>(sampled[i])].tenant);
      ++request.emitted;
    }
  }
  for (std::size_t i = 0; i < (*completion)->finished_requests.size(); ++i) {
    const int a = script_of((*completion)->finished_requests[i]);
    Request& request = requests_[static_cast<std::size_t>(a)];
    if (request.over) fail("a request finished after it was over");
    request.over = true;
    if ((*completion)->finished_reasons[i] == static_cast<std::int32_t>(FinishReason::kLength) &&
        request.emitted != setup_.scripts[static_cast<std::size_t>(a)].max_new_tokens) {
      fail("a request finished with too few or too many tokens");
    }
  }
  for (std::size_t i = 0; i < (*completion)->sealed_pages.size(); ++i) {
    if ((*completion)->sealed_groups[i] > 0) {
      check_side_seal(**completion, i);
      continue;
    }
    const Request& request =
        requests_[static_cast<std::size_t>(script_of((*completion)->sealed_requests[i]))];
    const auto& sealed = content(0, (*completion)->sealed_pages[i]);
    const auto first =
        static_cast<std::size_t>((*completion)->sealed_indices[i]) * setup_.config.page_size;
    for (std::size_t p = first; p < first + setup_.config.page_size && p < request.tags.size() &&
                                p + 1 < request.tokens.size();
         ++p) {
      if (sealed[p - first] != request.tags[p]) return fail("a page was sealed unwritten");
    }
  }
  if (!steps_.empty()) start_step();
}

// No ping-pong: after log2(pages) times a request comes back only when nothing runs, and is then
// sent away only for one that wins more and starts later. (An abandoned step may cost a state, and
// a fetch without its token the last page.)
void World::check_retractions(const Plan& plan) {
  const std::size_t doublings = std::bit_width(setup_.config.num_pages) + 1;
  for (const RequestId id : plan.retracted) {
    Request& request = requests_[static_cast<std::size_t>(script_of(id))];
    if (++request.retractions > doublings + 1 + requests_.size() + abandoned_) {
      fail("a request was retracted " + std::to_string(request.retractions) + " times");
    }
  }
}

void World::do_abandon() {
  ++abandoned_;
  // The forward may have written anything into the pages it was given to write.
  const Plan& plan = running();
  for (const Row& row : plan.rows) {
    for (std::int32_t t = 0; t < row.query_tokens; ++t) {
      const auto position = static_cast<std::size_t>(row.context_tokens + t);
      content(0, page_at(row, position))[position % setup_.config.page_size] = kGarbage;
    }
  }
  if (scheduler_.groups() > 1) write_sides(false);
  if (scheduler_.abandon(steps_.front())) fail("abandoning was refused");
  steps_.pop_front();
  void_ = !steps_.empty();
  if (void_) start_step();
}

// With nothing to compute, either nothing lives or an answer from outside is awaited.
void World::check_progress() {
  const Stats stats = scheduler_.stats();
  if (stats.waiting + stats.running == 0) return;
  if (stats.fetching + stats.prefilled + stats.leases + stats.offloading > 0 || !fetches_.empty())
    return;
  fail("stuck: " + std::to_string(stats.waiting) + " waiting, " + std::to_string(stats.running) +
       " running, nothing planned, nothing awaited");
}

}  // namespace baton::world
