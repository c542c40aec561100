// Parked turns and forks: what stays, what is shared, what is copied.
#include <cstdint>
#include <variant>
#include <vector>

#include "fixture.h"

using namespace baton;
using namespace baton::test;

TEST(a_parked_turn_keeps_its_pages_until_the_deadline) {
  Fixture f(config_of(8, 2, 16));
  f.submit_on({.park_us = 50}, 1, counting(9), 2);
  f.step();
  f.step();
  CHECK_EQ(f.scheduler.state_of(1), "Parked");
  CHECK_EQ(f.scheduler.stats().parked, 1);
  CHECK_EQ(f.scheduler.stats().referenced_pages, 3);  // the partial one too
  f.now += 51;
  f.step();
  CHECK(f.scheduler.state_of(1).empty());
  CHECK(f.demoted == std::vector<RequestId>{1});
  CHECK_EQ(f.scheduler.stats().cached_pages, 2);  // still found, and evictable
  CHECK_EQ(f.scheduler.stats().free_pages, 6);
}

TEST(a_renewed_park_lasts_longer) {
  Fixture f(config_of(8, 2, 16));
  f.submit_on({.park_us = 50}, 1, counting(9), 1);
  f.step();
  CHECK_EQ(f.scheduler.renew_park(1, 500), Reply::kAccepted);
  f.now = 400;
  f.step();
  CHECK_EQ(f.scheduler.state_of(1), "Parked");
  f.now = 500;
  f.step();
  CHECK(f.scheduler.state_of(1).empty());
  CHECK_EQ(f.scheduler.renew_park(1, 900), Reply::kIgnored);
}

TEST(the_next_request_of_a_session_takes_its_park_over) {
  Fixture f(config_of(8, 2, 16));
  f.submit_on({.park_us = 50}, 1, counting(9), 1);
  f.step();
  f.submit_on({.resumes = 1}, 2, counting(14), 1);
  CHECK_EQ(f.scheduler.state_of(1), "Parked");
  f.step();
  CHECK(f.scheduler.state_of(1).empty());
  CHECK(f.demoted.empty());
  CHECK_EQ(f.scheduler.stats().reused_tokens, 9);  // two pages, and a copy of the partial one
}

TEST(cancelling_ends_a_park) {
  Fixture f(config_of(8, 2, 16));
  f.submit_on({.park_us = 50}, 1, counting(9), 1);
  f.step();
  CHECK_EQ(f.scheduler.cancel(1), Reply::kAccepted);
  CHECK_EQ(f.scheduler.cancel(1), Reply::kIgnored);
  CHECK_EQ(f.scheduler.stats().referenced_pages, 0);
}

TEST(parked_sessions_give_way_before_anybody_running_does) {
  Fixture f(config_of(8, 4, 32));
  f.submit_on({.park_us = 1000}, 1, counting(12, 500), 1);
  f.step();
  f.submit_on({.park_us = 500}, 2, counting(8, 900), 1);
  f.step();
  CHECK_EQ(f.scheduler.stats().referenced_pages, 5);
  f.submit(3, counting(7), 20);  // grows to 7 pages
  std::vector<RequestId> gave_way;
  for (int i = 0; i < 20; ++i) {
    f.step();
    gave_way.insert(gave_way.end(), f.demoted.begin(), f.demoted.end());
  }
  CHECK(gave_way == std::vector<RequestId>({2, 1}));  // first who would have expired first
  CHECK_EQ(f.scheduler.stats().retractions, 0);
  CHECK_EQ(f.scheduler.stats().generated_tokens, 22);
}

TEST(parked_sessions_do_not_block_an_admission_when_nothing_runs) {
  Fixture f(config_of(8, 4, 32));
  f.submit_on({.park_us = 1000}, 1, counting(23, 500), 1);
  f.step();
  f.submit(2, counting(20), 1);
  f.step();
  CHECK(f.demoted == std::vector<RequestId>{1});
  CHECK_EQ(f.scheduler.stats().generated_tokens, 2);
}

TEST(admission_waits_for_those_who_run_before_it_takes_parked_pages) {
  Fixture f(config_of(8, 4, 32));
  f.submit_on({.park_us = 1000}, 1, counting(16, 500), 1);
  f.step();
  f.submit(2, counting(7), 6);
  f.step();
  f.submit(3, counting(16, 100), 1);
  f.step();
  CHECK_EQ(f.scheduler.state_of(3), "Queued");
  CHECK_EQ(f.scheduler.state_of(1), "Parked");
  for (int i = 0; i < 8; ++i) f.step();
  CHECK(f.scheduler.state_of(3).empty());
}

TEST(a_poisoned_turn_is_not_parked) {
  Fixture f(config_of(8, 2, 16));
  f.submit_on({.park_us = 50}, 1, counting(9), 3);
  f.step(2);
  CHECK(f.scheduler.state_of(1).empty());
  CHECK_EQ(f.scheduler.stats().free_pages, 8);
}

// ---------------------------------------------------------------- forks

TEST(a_fork_shares_full_pages_and_copies_the_partial_one) {
  Fixture f(config_of(16, 4, 16));
  f.submit(1, counting(10), 8);
  f.step();
  f.step();  // 11 tokens in KV, the 12th sampled
  std::vector<Token> tokens = counting(10);
  tokens.insert(tokens.end(), {1, 1});
  f.submit_on({.fork_of = 1}, 2, tokens);
  Step step = f.scheduler.plan(9);
  const Plan& plan = step.plan();
  CHECK_EQ(plan.copies.size(), 1);
  const auto parent = f.scheduler.pages_of(1), child = f.scheduler.pages_of(2);
  CHECK_EQ(parent[0], child[0]);
  CHECK_EQ(parent[1], child[1]);
  CHECK(parent[2] != child[2]);
  CHECK_EQ(raw(plan.copies[0].source), parent[2]);
  CHECK_EQ(raw(plan.copies[0].target), child[2]);
  CHECK_EQ(plan.admitted[0].reused_tokens, 11);
  CHECK_EQ(plan.rows[1].context_tokens, 11);
  CHECK_EQ(plan.rows[1].query_tokens, 1);
  CHECK_EQ(plan.rows[1].samples, 1);
  CHECK(!f.scheduler.abandon(step));
}

TEST(a_fork_may_part_within_a_shared_page) {
  Fixture f(config_of(16, 4, 16));
  f.submit(1, counting(8), 8);
  f.step();
  f.submit_on({.fork_of = 1}, 2, {0, 1, 2, 3, 4, 5, 99, 98, 97});
  Step step = f.scheduler.plan(9);
  CHECK_EQ(step.plan().copies.size(), 1);
  CHECK_EQ(raw(step.plan().copies[0].source), f.scheduler.pages_of(1)[1]);
  CHECK_EQ(step.plan().admitted[0].reused_tokens, 6);
  CHECK(!f.scheduler.abandon(step));
}

TEST(a_fork_shares_a_page_that_the_last_turn_filled) {
  Config config = config_of(16, 4, 16);
  config.max_step_tokens = 4;
  config.max_running = 1;
  Fixture f(config);
  f.submit_on({.park_us = 50}, 1, {0, 1, 2}, 2);
  f.step();
  f.step();
  CHECK_EQ(f.scheduler.state_of(1), "Parked");
  f.submit_on({.fork_of = 1}, 2, {0, 1, 2, 1, 7, 8});
  Step step = f.scheduler.plan(f.now);
  CHECK_EQ(step.plan().copies.size(), 0);  // its only page is full, hence shared
  f.scheduler.cancel(1);
  CHECK_EQ(f.scheduler.stats().referenced_pages, 1);
  CHECK(!f.scheduler.abandon(step));
}

TEST(a_cancelled_parents_partial_page_waits_for_the_copy) {
  Fixture f(config_of(16, 4, 16));
  f.submit_on({.park_us = 50}, 1, counting(6), 1);
  f.step();
  f.submit_on({.fork_of = 1}, 2, counting(9));
  Step step = f.scheduler.plan(f.now);
  CHECK_EQ(step.plan().copies.size(), 1);
  CHECK_EQ(f.scheduler.cancel(1), Reply::kAccepted);
  CHECK_EQ(f.scheduler.stats().free_pages, 12);  // one shared, two of the child, the source
  CHECK_EQ(f.scheduler.check_invariants(), std::string());
  const std::vector<Token> token = {3};
  const std::vector<std::uint8_t> flag = {0};
  CHECK(std::holds_alternative<const Completion*>(f.scheduler.complete(step, token, flag, 2)));
  CHECK_EQ(f.scheduler.stats().free_pages, 13);
}

TEST(a_decoding_parent_that_is_cancelled_drains_until_its_page_is_copied) {
  Config config = config_of(16, 4, 8);
  Fixture f(config);
  f.submit(1, counting(6), 8);
  f.step();
  f.submit_on({.fork_of = 1}, 2, counting(9));
  Step step = f.scheduler.plan(f.now);
  CHECK_EQ(f.scheduler.cancel(1), Reply::kAccepted);
  CHECK_EQ(f.scheduler.state_of(1), "Draining");
  CHECK(!f.scheduler.abandon(step));
  CHECK(f.scheduler.state_of(1).empty());
  CHECK_EQ(f.scheduler.check_invariants(), std::string());
}

TEST(a_fork_of_a_parked_session_leaves_it_parked) {
  Fixture f(config_of(16, 4, 16));
  f.submit_on({.park_us = 50}, 1, counting(9), 1);
  f.step();
  for (RequestId child = 2; child <= 4; ++child)
    f.submit_on({.fork_of = 1}, child, counting(11), 1);
  f.step();
  CHECK_EQ(f.scheduler.state_of(1), "Parked");
  CHECK_EQ(f.scheduler.stats().reused_tokens, 27);
}

TEST(a_fork_whose_parent_is_gone_computes_what_is_not_cached) {
  Fixture f(config_of(16, 4, 16));
  f.submit(1, counting(9), 1);
  f.step();
  f.submit_on({.fork_of = 1}, 2, counting(11), 1);
  f.step();
  CHECK_EQ(f.scheduler.stats().reused_tokens, 8);
}

TEST(nobody_forks_another_tenants_request) {
  Fixture f(config_of(16, 4, 16));
  f.submit_on({.park_us = 50}, 1, counting(9), 1);
  f.step();
  for (const Terms& terms : {Terms{.resumes = 1}, Terms{.fork_of = 1}}) {
    const std::vector<Token> tokens = counting(11);
    CHECK_EQ(f.scheduler.submit({2, tokens, 1, {9, 9}, Goal::kGenerate, 0, terms}),
             Admission::kForeign);
  }
}
