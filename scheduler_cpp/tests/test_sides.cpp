// The groups beside full attention: what a window gives back, what a hit needs, what a snapshot is.
#include <vector>

#include "baton/scheduler.h"
#include "check.h"
#include "fixture.h"

using namespace baton;
using test::counting;
using test::kKey;

namespace {

// Pages of 4 tokens, chunks of 8.
struct Fixture {
  explicit Fixture(std::vector<SideGroup> groups, std::size_t chunk = 8)
      : scheduler(config(std::move(groups), chunk)) {}

  static Config config(std::vector<SideGroup> groups, std::size_t chunk) {
    Config config = world::small_config(32, 4, chunk, Role::kFused);
    config.page_size = 4;
    config.max_context = 256;
    config.side_groups = std::move(groups);
    return config;
  }
  void submit(RequestId id, const std::vector<Token>& prompt, std::size_t max_new,
              const Terms& terms = {}) {
    CHECK_EQ(scheduler.submit({id, prompt, max_new, kKey, Goal::kGenerate, 0, terms}),
             Admission::kAccepted);
  }
  // One step; its rows, states and what was reused at admission.
  void step() {
    Step planned = scheduler.plan(++now);
    rows = planned.plan().rows;
    states = planned.plan().state_pages;
    for (const AdmittedRow& row : planned.plan().admitted) reused = row.reused_tokens;
    const std::vector<Token> tokens(planned.plan().sampling_rows, 1);
    const std::vector<std::uint8_t> flags(planned.plan().sampling_rows, 0);
    const auto outcome = scheduler.complete(planned, tokens, flags, now);
    CHECK(std::holds_alternative<const Completion*>(outcome));
    CHECK_EQ(scheduler.check_invariants(), std::string());
  }
  void run() {
    while (scheduler.stats().waiting + scheduler.stats().running > 0) step();
  }

  Scheduler scheduler;
  Micros now = 0;
  std::vector<Row> rows;
  std::vector<StateRow> states;
  std::int32_t reused = -1;
};

}  // namespace

TEST(a_window_gives_back_what_fell_out_of_it) {
  Fixture f({world::window(6, 8)});
  f.submit(1, counting(8), 60);
  for (int i = 0; i < 40; ++i) {
    f.step();
    const PoolStats pool = f.scheduler.pool_stats(1);
    CHECK(pool.owned + pool.referenced <= 3);  // six tokens touch three pages at most
  }
  CHECK_EQ(f.scheduler.stats().retractions, 0);
  CHECK(f.scheduler.stats().owned_pages + f.scheduler.stats().referenced_pages > 10);
}

TEST(a_hit_needs_only_the_windows_tail) {
  Fixture f({world::window(4, 3)});  // cannot hold the prompt, but can hold its tail
  f.submit(1, counting(24), 1);
  f.run();
  f.submit(2, counting(26), 1);
  f.step();
  CHECK_EQ(f.reused, 24);
}

TEST(a_prefix_is_usable_as_far_as_every_group_can_serve_it) {
  Fixture f({world::window(5, 3)});
  f.submit(1, counting(24), 1);
  f.run();
  // The shorter prompt's window is gone, though full attention still has all its pages.
  CHECK_EQ(f.scheduler.lookup(counting(24), kKey), 24);
  CHECK_EQ(f.scheduler.lookup(counting(12), kKey), 0);
  f.submit(2, counting(13), 1);
  f.step();
  CHECK_EQ(f.reused, 0);
}

TEST(chunks_end_on_the_last_snapshot_they_reach) {
  Fixture f({world::state(8, 8)}, 13);
  f.submit(1, counting(30), 2);
  std::vector<std::int32_t> chunks;
  while (f.scheduler.state_of(1) != "Decoding") {
    f.step();
    chunks.push_back(f.rows[0].query_tokens);
  }
  CHECK(chunks == std::vector<std::int32_t>({8, 8, 8, 6}));
}

TEST(a_prompt_that_ends_between_snapshots_is_found_up_to_the_last_one) {
  Fixture f({world::state(8, 8)}, 64);
  f.submit(1, counting(23), 1);
  f.run();
  f.submit(2, counting(23), 1);
  f.step();
  CHECK_EQ(f.reused, 16);
  CHECK_EQ(f.rows[0].query_tokens, 7);
}

TEST(a_snapshot_is_read_where_it_is_and_written_elsewhere) {
  Fixture f({world::state(8, 8)}, 64);
  f.submit(1, counting(17), 1);
  f.run();
  f.submit(2, counting(17), 4);
  f.submit(3, counting(17), 4);
  f.step();
  CHECK_EQ(f.rows.size(), 2);
  CHECK_EQ(f.states[0].read, f.states[1].read);
  CHECK(f.states[0].write != f.states[0].read);
  CHECK(f.states[0].write != f.states[1].write);
  f.step();
  CHECK_EQ(f.states[0].read, f.states[0].write);  // in place from then on
}

TEST(without_a_page_to_go_on_with_no_snapshot_is_taken) {
  Fixture f({world::state(4, 2)});
  f.submit(1, counting(3), 12);
  f.submit(2, counting(3, 50), 12);
  f.run();
  CHECK_EQ(f.scheduler.stats().retractions, 0);
  CHECK_EQ(f.scheduler.stats().generated_tokens, 24);
}

TEST(a_state_written_in_place_by_an_abandoned_step_is_computed_again) {
  Fixture f({world::state(8, 8)}, 64);
  f.submit(1, counting(10), 8);
  f.step();
  f.step();
  Step step = f.scheduler.plan(9);  // reads and writes the same page
  CHECK_EQ(step.plan().state_pages[0].read, step.plan().state_pages[0].write);
  CHECK(!f.scheduler.abandon(step));
  CHECK_EQ(f.scheduler.state_of(1), "Retracted");
  f.step();
  CHECK_EQ(f.reused, 8);
}

TEST(a_parked_turn_is_resumed_where_it_stopped_in_every_group) {
  Fixture f({world::window(6, 12), world::state(8, 8)}, 64);
  f.submit(1, counting(9), 3, {.park_us = 100});
  f.run();
  CHECK_EQ(f.scheduler.state_of(1), "Parked");
  std::vector<Token> next = counting(9);
  next.insert(next.end(), {1, 1, 1, 40, 41});  // what was generated, then a tool's answer
  f.submit(2, next, 2, {.resumes = 1});
  f.step();
  CHECK_EQ(f.reused, 11);  // all but the last token, which was never fed back
  CHECK_EQ(f.rows[0].query_tokens, 3);
  CHECK(f.states[0].read != f.states[0].write);
  f.run();
}

// Found by the random driver: the running request's window had no page, and nobody gave way.
TEST(a_parked_session_gives_way_to_a_window_that_runs) {
  Fixture f({world::window(6, 3)});
  f.submit(1, counting(10), 2, {.park_us = 1000});
  f.run();
  f.submit(2, counting(10, 100), 8);
  f.run();
  CHECK_EQ(f.scheduler.stats().demotions, 1);
}

// Found by the random driver: the parent's pages replaced a longer match.
TEST(a_fork_takes_no_less_than_was_found_by_content) {
  Fixture f({world::window(16, 12), world::state(4, 8)});
  f.submit(1, counting(8), 1, {.park_us = 1000});
  f.run();
  f.submit(2, counting(17), 1);
  f.run();
  std::vector<Token> next = counting(17);
  next[8] = 8;
  f.submit(3, next, 1, {.fork_of = 1});
  f.step();
  CHECK_EQ(f.reused, 16);
}
