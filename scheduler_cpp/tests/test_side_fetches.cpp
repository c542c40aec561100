// Fetches of requests with groups beside full attention: what is asked for, and what a part of it
// is good for.
#include <algorithm>
#include <map>
#include <vector>

#include "fixture.h"

using namespace baton;
using namespace baton::test;

namespace {

struct Asked {
  std::int32_t group;
  std::int32_t index;
  std::int32_t page;
  Digest identity;
};

// Pages of 4 tokens; a request that awaits, or that peers hold `fetch_pages` of.
struct Reader : Fixture {
  explicit Reader(std::vector<SideGroup> groups) : Fixture(with(std::move(groups))) {}

  static Config with(std::vector<SideGroup> groups) {
    Config config = config_of(32, 4, 64);
    config.side_groups = std::move(groups);
    return config;
  }
  void ask(RequestId id, const std::vector<Token>& prompt, Goal goal, std::size_t fetch_pages = 0,
           std::size_t max_new = 4) {
    CHECK_EQ(scheduler.submit({id, prompt, max_new, kKey, goal, fetch_pages, {}}),
             Admission::kAccepted);
    look();
  }
  // A plan without rows that says what to fetch.
  void look() {
    Step planned = scheduler.plan(++now);
    const Plan& plan = planned.plan();
    CHECK_EQ(plan.rows.size(), 0);
    asked.clear();
    for (std::size_t i = 0; i < plan.fetch_requests.size(); ++i) {
      asked.push_back({plan.fetch_groups[i], plan.fetch_pages[i].page_index,
                       plan.fetch_pages[i].page, plan.fetch_hashes[i]});
    }
  }
  std::vector<std::int32_t> asked_in(std::int32_t group) const {
    std::vector<std::int32_t> indices;
    for (const Asked& page : asked) {
      if (page.group == group) indices.push_back(page.index);
    }
    return indices;
  }
  Reply arrive(std::size_t first, std::size_t count, std::size_t group = 0) {
    const Reply reply = scheduler.pages_arrived(1, first, count, group);
    CHECK_EQ(scheduler.check_invariants(), std::string());
    return reply;
  }
  void end(std::optional<Token> first = std::nullopt) {
    CHECK_EQ(scheduler.fetch_ended(1, first, false, now), Reply::kAccepted);
    CHECK_EQ(scheduler.check_invariants(), std::string());
  }
  bool at_rest() const {
    for (std::size_t group = 0; group < scheduler.groups(); ++group) {
      const PoolStats pool = scheduler.pool_stats(group);
      if (pool.free + pool.cached != pool.total) return false;
    }
    return true;
  }
  // The first row after admission: its context, and the state that it reads.
  Row first_row() {
    Step planned = scheduler.plan(++now);
    CHECK_EQ(planned.plan().rows.size(), 1);
    const Row row = planned.plan().rows.at(0);
    if (!planned.plan().state_pages.empty()) reads = planned.plan().state_pages[0].read;
    CHECK(!scheduler.abandon(planned));
    return row;
  }

  std::vector<Asked> asked;
  std::int32_t reads = -2;
};

using Indices = std::vector<std::int32_t>;

}  // namespace

TEST(an_awaited_prompt_asks_for_its_last_state_and_for_the_snapshot_before_it) {
  Reader f({world::state(8, 8)});
  f.ask(1, counting(18), Goal::kAwait);
  CHECK(f.asked_in(0) == Indices({0, 1, 2, 3, 4}));
  CHECK(f.asked_in(1) == Indices({4, 3}));
  const std::int32_t last = f.asked[5].page;
  // In any order; twice is once too often.
  CHECK_EQ(f.arrive(3, 1, 1), Reply::kAccepted);
  CHECK_EQ(f.arrive(3, 1, 1), Reply::kRejected);
  CHECK_EQ(f.arrive(0, 3), Reply::kAccepted);
  CHECK_EQ(f.arrive(4, 1, 1), Reply::kAccepted);
  CHECK_EQ(f.arrive(4, 1, 1), Reply::kRejected);
  CHECK_EQ(f.arrive(3, 2), Reply::kAccepted);
  f.end(7);
  CHECK_EQ(f.scheduler.state_of(1), "Decoding");
  const Row row = f.first_row();
  CHECK_EQ(row.context_tokens, 18);
  CHECK_EQ(f.reads, last);
  CHECK_EQ(f.scheduler.stats().computed_tokens, 0);
  // The snapshot serves whoever comes next.
  CHECK_EQ(f.scheduler.lookup(counting(18), kKey), 16);
}

TEST(a_prompt_that_ends_on_a_snapshot_awaits_that_one_and_it_stays) {
  Reader f({world::state(8, 8)});
  f.ask(1, counting(16), Goal::kAwait);
  CHECK(f.asked_in(1) == Indices({3}));
  f.arrive(0, 4);
  CHECK_EQ(f.arrive(3, 1, 1), Reply::kAccepted);
  f.end(7);
  CHECK_EQ(f.scheduler.state_of(1), "Decoding");
  while (f.scheduler.stats().running) f.step();
  CHECK_EQ(f.scheduler.lookup(counting(16), kKey), 16);
  CHECK(f.at_rest());
}

TEST(without_its_state_a_prompt_goes_back_to_its_last_snapshot) {
  for (const bool token : {false, true}) {
    Reader f({world::state(8, 8)});
    f.ask(1, counting(18), Goal::kAwait);
    f.arrive(0, 5);
    f.arrive(3, 1, 1);
    f.end(token ? std::optional<Token>(7) : std::nullopt);  // of a state that never came
    CHECK_EQ(f.scheduler.state_of(1), "Retracted");
    CHECK_EQ(f.first_row().context_tokens, 16);
    while (f.scheduler.stats().running + f.scheduler.stats().waiting) f.step();
    CHECK_EQ(f.scheduler.stats().generated_tokens, 4);
    CHECK(f.at_rest());
  }
}

TEST(with_everything_but_its_first_token_a_prompt_goes_back_to_its_last_snapshot) {
  Reader f({world::state(8, 8)});
  f.ask(1, counting(18), Goal::kAwait);
  f.arrive(0, 5);
  f.arrive(3, 1, 1);
  f.arrive(4, 1, 1);
  f.end();
  CHECK_EQ(f.first_row().context_tokens, 16);
}

TEST(when_nothing_came_a_prompt_is_computed_in_place) {
  Reader f({world::state(8, 8)});
  f.ask(1, counting(18), Goal::kAwait);
  f.end();
  CHECK_EQ(f.scheduler.state_of(1), "Prefilling");
  CHECK_EQ(f.scheduler.stats().retractions, 0);
  CHECK_EQ(f.first_row().context_tokens, 0);
  CHECK_EQ(f.reads, -1);
}

TEST(a_restored_prefix_ends_on_a_snapshot) {
  Reader f({world::state(8, 8)});
  f.ask(1, counting(30), Goal::kGenerate, 7);
  CHECK(f.asked_in(0) == Indices({0, 1, 2, 3, 4, 5}));
  CHECK(f.asked_in(1) == Indices({5, 3, 1}));  // of these one: the best that a peer has
  CHECK_EQ(f.asked[6].page, f.asked[8].page);
  CHECK_EQ(f.arrive(4, 1, 1), Reply::kRejected);  // no snapshot stands there
  f.arrive(5, 1, 1);
  f.arrive(0, 6);
  f.end();
  CHECK_EQ(f.scheduler.state_of(1), "Prefilling");
  CHECK_EQ(f.scheduler.stats().retractions, 0);
  CHECK_EQ(f.first_row().context_tokens, 24);
  CHECK_EQ(f.scheduler.stats().fetched_tokens, 24);
}

TEST(a_restore_is_rewound_to_the_snapshot_that_there_is) {
  Reader f({world::state(8, 8)});
  f.ask(1, counting(30), Goal::kGenerate, 7);
  f.arrive(3, 1, 1);
  f.arrive(0, 4);
  f.end();
  CHECK_EQ(f.scheduler.state_of(1), "Prefilling");
  CHECK_EQ(f.first_row().context_tokens, 16);
}

TEST(tokens_without_a_state_are_kept_but_computed_again) {
  Reader f({world::state(8, 8)});
  f.ask(1, counting(30), Goal::kGenerate, 7);
  f.arrive(0, 6);
  f.end();
  CHECK_EQ(f.first_row().context_tokens, 0);
  CHECK(f.scheduler.stats().referenced_pages + f.scheduler.stats().cached_pages >= 6);
}

TEST(what_is_here_is_not_fetched) {
  Reader f({world::state(8, 8)});
  f.submit(9, counting(17), 1);
  while (f.scheduler.stats().running + f.scheduler.stats().waiting) f.step();
  f.ask(1, counting(30), Goal::kGenerate, 7);
  CHECK(f.asked_in(0) == Indices({4, 5}));
  CHECK(f.asked_in(1) == Indices({5}));  // further back there is one of ours
  f.end();                               // and by that one it goes on
  CHECK_EQ(f.first_row().context_tokens, 16);
}

TEST(peers_with_no_snapshot_to_gain_are_not_asked) {
  Reader f({world::state(8, 8)});
  CHECK_EQ(f.scheduler.submit({1, counting(30), 4, kKey, Goal::kGenerate, 1, {}}),
           Admission::kAccepted);
  CHECK_EQ(f.first_row().context_tokens, 0);
}

TEST(an_awaited_window_is_what_the_next_token_sees) {
  Reader f({world::window(6, 8)});
  f.ask(1, counting(18), Goal::kAwait);
  CHECK(f.asked_in(1) == Indices({3, 4}));  // positions 13 to 17
  f.arrive(0, 5);
  CHECK_EQ(f.arrive(4, 1, 1), Reply::kRejected);  // a gap
  CHECK_EQ(f.arrive(3, 1, 1), Reply::kAccepted);
  CHECK_EQ(f.arrive(4, 1, 1), Reply::kAccepted);
  CHECK_EQ(f.arrive(4, 1, 1), Reply::kIgnored);
  f.end(7);
  CHECK_EQ(f.scheduler.state_of(1), "Decoding");
  while (f.scheduler.stats().running) f.step();
  CHECK(f.at_rest());
}

TEST(a_window_that_came_in_part_is_given_back) {
  Reader f({world::window(6, 8), world::state(8, 8)});
  f.ask(1, counting(18), Goal::kAwait);
  f.arrive(0, 5);
  f.arrive(4, 1, 2);
  f.arrive(3, 1, 1);
  f.end(7);
  CHECK_EQ(f.scheduler.state_of(1), "Retracted");
  while (f.scheduler.stats().running + f.scheduler.stats().waiting) f.step();
  CHECK(f.at_rest());
}

TEST(pages_of_every_group_stay_until_a_cancelled_fetch_has_ended) {
  Reader f({world::window(6, 8), world::state(8, 8)});
  f.ask(1, counting(18), Goal::kAwait);
  CHECK_EQ(f.scheduler.cancel(1), Reply::kAccepted);
  CHECK_EQ(f.scheduler.state_of(1), "Draining");
  CHECK_EQ(f.scheduler.pool_stats(1).owned, 2);
  CHECK_EQ(f.scheduler.pool_stats(2).owned, 2);
  CHECK_EQ(f.scheduler.pages_arrived(1, 4, 1, 2), Reply::kIgnored);
  f.end();
  CHECK(f.at_rest());
}

TEST(a_deadline_that_passes_during_a_fetch_keeps_its_targets) {
  Reader f({world::state(8, 8)});
  CHECK_EQ(f.scheduler.submit({1, counting(18), 4, kKey, Goal::kAwait, 0, {.deadline = 5}}),
           Admission::kAccepted);
  f.look();
  f.now = 10;
  f.look();
  CHECK_EQ(f.scheduler.state_of(1), "Draining");
  CHECK(!f.at_rest());
  f.end(7);
  CHECK(f.at_rest());
}

TEST(states_for_two_requests_in_a_pool_of_two_come_one_after_the_other) {
  Reader f({world::state(8, 2)});
  f.ask(1, counting(30), Goal::kGenerate, 7);
  f.ask(2, counting(30, 100), Goal::kGenerate, 7);
  CHECK_EQ(f.scheduler.state_of(2), "Queued");
  f.arrive(5, 1, 1);
  f.arrive(0, 6);
  f.end();
  for (int i = 0; i < 40 && f.scheduler.state_of(2) == "Queued"; ++i) f.step();
  CHECK_EQ(f.scheduler.state_of(2), "Fetching");
}

TEST(who_hands_over_leaves_the_state_at_the_prompts_end_for_its_reader) {
  Reader f({world::state(8, 8)});
  f.submit(1, counting(18), 1, Goal::kHandOver);
  f.step();
  f.step();
  CHECK_EQ(f.scheduler.state_of(1), "Prefilled");
  Digest identity = kRoot;
  for (std::size_t at = 0; at < 18; at += 4) {
    const auto tokens = counting(std::min<std::size_t>(4, 18 - at), static_cast<Token>(at));
    identity = page_identity(kKey, identity, tokens);
  }
  std::vector<std::int32_t> pages;
  const std::vector<Digest> asked = {in_group(identity, 1)};
  CHECK(f.scheduler.grant(asked, f.now, 5, pages, 1) != 0);
  CHECK_EQ(pages.size(), 1);
}

TEST(what_a_closed_session_had_is_forgotten_in_every_group) {
  Reader f({world::state(8, 8)});
  f.submit(1, counting(17), 1);
  while (f.scheduler.stats().running + f.scheduler.stats().waiting) f.step();
  CHECK(f.scheduler.pool_stats(1).cached > 0);
  std::vector<Digest> chain;
  for (std::size_t at = 0; at < 16; at += 4) {
    const auto tokens = counting(4, static_cast<Token>(at));
    chain.push_back(page_identity(kKey, chain.empty() ? kRoot : chain.back(), tokens));
  }
  CHECK(f.scheduler.forget(chain) > 4);
  CHECK_EQ(f.scheduler.pool_stats(1).cached, 0);
  CHECK_EQ(f.scheduler.stats().cached_pages, 0);
}
