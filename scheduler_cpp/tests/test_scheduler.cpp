// Named situations: what the policy promises, one promise a test.
#include <algorithm>
#include <numeric>
#include <optional>
#include <vector>

#include "baton/scheduler.h"
#include "check.h"
#include "setups.h"

using namespace baton;

namespace {

constexpr SipKey kKey{1, 2};

Config config_of(std::size_t pages, std::size_t running, std::size_t step_tokens) {
  Config config = world::small_config(pages, running, step_tokens, Role::kFused);
  config.page_size = 4;
  config.max_step_tokens = std::max(step_tokens, running);
  config.max_context = 1 << 16;
  config.max_waiting = 64;
  return config;
}

struct Fixture {
  explicit Fixture(const Config& config) : scheduler(config) {}

  Admission submit(RequestId id, std::vector<Token> prompt, std::size_t max_new = 4,
                   Goal goal = Goal::kGenerate, SipKey key = kKey, std::int32_t priority = 0) {
    return scheduler.submit({id, prompt, max_new, key, goal, 0, {.priority = priority}});
  }

  Admission submit_on(const Terms& terms, RequestId id, std::vector<Token> prompt,
                      std::size_t max_new = 4) {
    return scheduler.submit({id, prompt, max_new, kKey, Goal::kGenerate, 0, terms});
  }

  // Plans and completes one step; the requests of its rows.
  std::vector<RequestId> step(std::uint8_t flag = 0) {
    Step planned = scheduler.plan(++now);
    const Plan& plan = planned.plan();
    const std::vector<RequestId> requests = plan.requests;
    retracted = plan.retracted;
    admitted = plan.admitted_requests;
    demoted = plan.demoted_requests;
    finished = plan.finished_requests;
    reasons = plan.finished_reasons;
    const std::vector<Token> tokens(plan.sampling_rows, 1);
    const std::vector<std::uint8_t> flags(plan.sampling_rows, flag);
    CHECK(
        std::holds_alternative<const Completion*>(scheduler.complete(planned, tokens, flags, now)));
    CHECK_EQ(scheduler.check_invariants(), std::string());
    return requests;
  }

  Scheduler scheduler;
  Micros now = 0;
  std::vector<RequestId> retracted, admitted, demoted, finished;
  std::vector<std::int32_t> reasons;
};

std::vector<Token> counting(std::size_t n, Token from = 0) {
  std::vector<Token> tokens(n);
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

}  // namespace

TEST(requests_that_start_together_compute_a_shared_prefix_once) {
  Fixture f(config_of(64, 8, 16));
  for (RequestId id = 1; id <= 4; ++id) {
    std::vector<Token> prompt = counting(40);
    prompt.push_back(static_cast<Token>(1000 + id));
    f.submit(id, prompt);
  }
  for (int i = 0; i < 40; ++i) f.step();
  CHECK_EQ(f.scheduler.stats().waiting + f.scheduler.stats().running, 0);
  CHECK_EQ(f.scheduler.stats().computed_tokens, 41 + 3);
}

TEST(decode_goes_first_and_chunks_take_the_rest) {
  Fixture f(config_of(64, 4, 8));
  f.submit(1, counting(5), 30);
  f.step();
  f.submit(2, counting(20, 100), 4);
  Step step = f.scheduler.plan(5);
  CHECK_EQ(step.plan().rows.size(), 2);
  CHECK(step.plan().rows[0].kind == RowKind::kDecode);
  CHECK_EQ(step.plan().rows[1].query_tokens, 7);
  CHECK(!f.scheduler.abandon(step));
}

TEST(in_the_decode_role_all_chunks_share_one_bound) {
  Config config = config_of(64, 4, 32);
  config.role = Role::kDecode;
  config.max_chunk_tokens = 6;
  Fixture f(config);
  f.submit(1, counting(4), 4);
  f.submit(2, counting(20, 100), 4);
  Step step = f.scheduler.plan(1);
  CHECK_EQ(step.plan().token_ids.size(), 6);
  CHECK_EQ(step.plan().rows.size(), 2);
  CHECK(!f.scheduler.abandon(step));
}

TEST(the_oldest_request_is_never_retracted) {
  Fixture f(config_of(8, 4, 32));
  for (RequestId id = 1; id <= 4; ++id) f.submit(id, counting(7, static_cast<Token>(id * 50)), 20);
  bool any = false;
  for (int i = 0; i < 400; ++i) {
    f.step();
    any |= !f.retracted.empty();
    for (RequestId id = 1; id <= 4; ++id) {
      if (f.scheduler.state_of(id).empty()) continue;  // the oldest that still lives
      CHECK_EQ(std::count(f.retracted.begin(), f.retracted.end(), id), 0);
      break;
    }
  }
  CHECK(any);
  CHECK_EQ(f.scheduler.stats().waiting + f.scheduler.stats().running, 0);
  CHECK_EQ(f.scheduler.stats().generated_tokens, 80);
}

TEST(a_retracted_request_that_does_not_fit_blocks_no_prefilling_one) {
  Config config = config_of(10, 4, 6);
  config.max_chunk_tokens = 2;
  Fixture f(config);
  f.submit(1, counting(8, 0), 24);  // grows to 8 pages
  while (f.scheduler.state_of(1) != "Decoding") f.step();
  f.submit(2, counting(16, 100), 4);  // 4 pages, computed 2 tokens a step
  f.submit(3, counting(8, 200), 8);
  while (f.scheduler.stats().retractions == 0) f.step();
  const auto rows = f.step();
  CHECK_EQ(std::count(rows.begin(), rows.end(), RequestId{1}), 1);
  for (int i = 0; i < 200; ++i) f.step();
  CHECK_EQ(f.scheduler.stats().waiting + f.scheduler.stats().running, 0);
}

TEST(a_cancelled_fetch_keeps_its_pages_until_it_ends) {
  Fixture f(config_of(8, 2, 8));
  f.submit(1, counting(9), 2, Goal::kAwait);
  f.step();
  CHECK_EQ(f.scheduler.cancel(1), Reply::kAccepted);
  CHECK_EQ(f.scheduler.stats().quarantined_pages, 3);
  CHECK_EQ(f.scheduler.stats().free_pages, 5);
  CHECK_EQ(f.scheduler.pages_arrived(1, 0, 1), Reply::kIgnored);
  CHECK_EQ(f.scheduler.fetch_ended(1, std::nullopt, false, 9), Reply::kAccepted);
  CHECK_EQ(f.scheduler.stats().free_pages, 8);
}

TEST(a_request_cancelled_in_a_step_keeps_its_pages_until_the_step_ends) {
  Fixture f(config_of(8, 2, 8));
  f.submit(1, counting(6), 4);
  Step step = f.scheduler.plan(1);
  CHECK_EQ(f.scheduler.cancel(1), Reply::kAccepted);
  CHECK_EQ(f.scheduler.state_of(1), "Draining");
  CHECK_EQ(f.scheduler.stats().owned_pages, 2);
  const std::vector<Token> token = {3};
  const std::vector<std::uint8_t> flag = {0};
  CHECK(std::holds_alternative<const Completion*>(f.scheduler.complete(step, token, flag, 2)));
  CHECK_EQ(f.scheduler.stats().free_pages, 8);
}

TEST(an_awaited_prompt_that_is_all_here_but_lacks_its_token_recomputes_one_page) {
  Fixture f(config_of(8, 2, 8));
  f.submit(1, counting(8), 1);
  f.step();  // both pages are cache now
  f.submit(2, counting(8), 2, Goal::kAwait);
  f.step();
  CHECK_EQ(f.scheduler.state_of(2), "Fetching");
  const auto before = f.scheduler.stats().computed_tokens;
  CHECK_EQ(f.scheduler.fetch_ended(2, std::nullopt, false, 9), Reply::kAccepted);
  CHECK_EQ(f.scheduler.state_of(2), "Retracted");
  f.step();
  CHECK_EQ(f.scheduler.stats().computed_tokens - before, 4);
}

TEST(held_pages_expire_and_their_prefix_stays) {
  Fixture f(config_of(8, 2, 16));
  f.submit(1, counting(9), 2, Goal::kHandOver);
  f.step();
  CHECK_EQ(f.scheduler.state_of(1), "Prefilled");
  f.now += 100;
  f.step();
  CHECK(f.scheduler.state_of(1).empty());
  CHECK_EQ(f.scheduler.stats().cached_pages, 2);
  CHECK_EQ(f.scheduler.stats().free_pages, 6);
}

TEST(tenants_share_whatever_their_queues_lengths) {
  Config config = config_of(64, 1, 16);
  Fixture f(config);
  const SipKey crowd{1, 1}, alone{2, 2};
  for (RequestId id = 1; id <= 20; ++id) {
    f.submit(id, counting(8, static_cast<Token>(id * 10)), 1, Goal::kGenerate, crowd);
  }
  f.submit(100, counting(8), 1, Goal::kGenerate, alone);
  f.submit(101, counting(8), 1, Goal::kGenerate, alone);
  std::vector<RequestId> order;
  while (f.scheduler.stats().waiting > 0) {
    f.step();
    order.insert(order.end(), f.admitted.begin(), f.admitted.end());
  }
  const auto turn = [&](RequestId id) { return std::find(order.begin(), order.end(), id); };
  CHECK(turn(100) - order.begin() <= 2);
  CHECK(turn(101) - order.begin() <= 4);
}

TEST(a_tenant_with_small_prompts_gets_more_of_them) {
  Fixture f(config_of(64, 1, 64));
  const SipKey small{1, 1}, large{2, 2};
  for (RequestId id = 1; id <= 12; ++id) {
    f.submit(id, counting(8, static_cast<Token>(id * 10)), 1, Goal::kGenerate, small);
    f.submit(100 + id, counting(32, static_cast<Token>(id * 100)), 1, Goal::kGenerate, large);
  }
  std::size_t of_small = 0;
  for (int i = 0; i < 10; ++i) {
    f.step();
    of_small += !f.admitted.empty() && f.admitted[0] < 100;
  }
  CHECK_EQ(of_small, 8);
}

TEST(priority_goes_first_and_is_retracted_last) {
  Fixture f(config_of(8, 3, 32));
  f.submit(1, counting(7, 0), 20);
  f.submit(2, counting(7, 100), 20);
  f.submit(3, counting(7, 200), 20, Goal::kGenerate, kKey, 5);
  f.step();
  CHECK_EQ(f.admitted[0], 3);
  for (int i = 0; i < 200; ++i) {
    f.step();
    CHECK_EQ(std::count(f.retracted.begin(), f.retracted.end(), RequestId{3}), 0);
  }
  CHECK(f.scheduler.stats().retractions > 0);
  CHECK_EQ(f.scheduler.stats().generated_tokens, 60);
}

// ---------------------------------------------------------------- parked sessions

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

// ---------------------------------------------------------------- guesses

namespace {

struct Guessing : Fixture {
  explicit Guessing(std::size_t pages = 16, std::size_t step_tokens = 16)
      : Fixture([&] {
          Config config = config_of(pages, 4, step_tokens);
          config.max_draft_tokens = 8;
          return config;
        }()) {}

  // Completes the step with so many tokens for its only row: the guesses, then 7.
  std::variant<const Completion*, Refusal> verify(Step& step, std::vector<Token> tokens) {
    const std::vector<std::uint8_t> flags = {0};
    const std::vector<std::int32_t> accepted = {static_cast<std::int32_t>(tokens.size())};
    return scheduler.complete(step, tokens, flags, now, accepted);
  }
};

}  // namespace

TEST(guesses_are_fed_in_one_row_on_pages_reserved_before) {
  Guessing f;
  f.submit(1, counting(3), 20);
  f.step();
  CHECK_EQ(f.scheduler.draft(1, 4, std::vector<Token>{5, 6, 8}), Reply::kAccepted);
  Step step = f.scheduler.plan(++f.now);
  const Row row = step.plan().rows[0];
  CHECK_EQ(row.query_tokens, 4);
  CHECK_EQ(row.samples, 4);
  CHECK(step.plan().token_ids == std::vector<Token>({1, 5, 6, 8}));
  CHECK_EQ(f.scheduler.pages_of(1).size(), 2);  // tokens 0..6
  CHECK(std::holds_alternative<const Completion*>(f.verify(step, {5, 6, 7})));
  CHECK_EQ(f.scheduler.stats().generated_tokens, 4);
  CHECK_EQ(f.scheduler.check_invariants(), std::string());
  Step next = f.scheduler.plan(++f.now);
  CHECK_EQ(next.plan().rows[0].context_tokens, 6);
  CHECK_EQ(next.plan().rows[0].query_tokens, 1);
  CHECK_EQ(next.plan().token_ids[0], 7);
  CHECK(!f.scheduler.abandon(next));
}

TEST(pages_of_guesses_that_fail_stay_with_their_request_unsealed) {
  Guessing f;
  f.submit(1, counting(3), 20);
  f.step();
  (void)f.scheduler.draft(1, 4, std::vector<Token>{5, 6, 8, 9, 9, 9});
  Step step = f.scheduler.plan(++f.now);
  CHECK_EQ(f.scheduler.pages_of(1).size(), 3);
  const auto outcome = f.verify(step, {7});
  CHECK_EQ(std::get<const Completion*>(outcome)->sealed_pages.size(), 1);  // the prompt's own token
  CHECK_EQ(f.scheduler.pages_of(1).size(), 3);
  CHECK_EQ(f.scheduler.stats().owned_pages, 2);
  for (int i = 0; i < 30; ++i) f.step();
  CHECK_EQ(f.scheduler.stats().owned_pages + f.scheduler.stats().referenced_pages, 0);
}

TEST(a_completion_cannot_accept_what_was_not_reserved_or_not_fed) {
  Guessing f;
  f.submit(1, counting(3), 20);
  f.step();
  (void)f.scheduler.draft(1, 4, std::vector<Token>{5, 6});
  Step step = f.scheduler.plan(++f.now);
  const auto why = [&](std::vector<Token> tokens) {
    const auto outcome = f.verify(step, std::move(tokens));
    return std::get<Refusal>(outcome).misuse;
  };
  CHECK_EQ(why({5, 6, 7, 7}), Misuse::kAccepted);
  CHECK_EQ(why({}), Misuse::kAccepted);
  CHECK_EQ(why({6, 7}), Misuse::kNotDrafted);
  CHECK_EQ(why({5, -1}), Misuse::kToken);
  CHECK(std::holds_alternative<const Completion*>(f.verify(step, {5, 6, 7})));
}

TEST(a_prompts_row_brings_one_token) {
  Guessing f;
  f.submit(1, counting(3), 20);
  Step step = f.scheduler.plan(++f.now);
  const auto outcome = f.verify(step, {5, 6});
  CHECK_EQ(std::get<Refusal>(outcome).misuse, Misuse::kAccepted);
  CHECK(!f.scheduler.abandon(step));
}

TEST(drafts_are_answered_by_where_the_request_stands) {
  Guessing f;
  CHECK_EQ(f.scheduler.draft(1, 4, std::vector<Token>{5}), Reply::kIgnored);
  f.submit(1, counting(3), 20);
  CHECK_EQ(f.scheduler.draft(1, 4, std::vector<Token>{5}), Reply::kRejected);
  f.step();
  CHECK_EQ(f.scheduler.draft(1, 3, std::vector<Token>{5}), Reply::kIgnored);
  CHECK_EQ(f.scheduler.draft(1, 5, std::vector<Token>{5}), Reply::kRejected);
  CHECK_EQ(f.scheduler.draft(1, 4, std::vector<Token>(9, 5)), Reply::kRejected);
  Step step = f.scheduler.plan(++f.now);
  CHECK_EQ(f.scheduler.draft(1, 4, std::vector<Token>{5}), Reply::kRejected);
  CHECK(!f.scheduler.abandon(step));
}

TEST(guesses_never_exceed_the_limit_of_the_request) {
  Guessing f;
  f.submit(1, counting(3), 3);
  f.step();
  (void)f.scheduler.draft(1, 4, std::vector<Token>{5, 6, 8, 9});
  Step step = f.scheduler.plan(++f.now);
  CHECK_EQ(step.plan().rows[0].query_tokens, 2);
  const auto outcome = f.verify(step, {5, 6});
  CHECK(std::get<const Completion*>(outcome)->finished_requests == std::vector<RequestId>{1});
}

TEST(nobody_makes_room_for_guesses) {
  Guessing f(4, 16);
  f.submit(1, counting(7), 6);
  f.submit(2, counting(3, 50), 4);
  f.step();
  (void)f.scheduler.draft(1, 8, std::vector<Token>(8, 5));
  Step step = f.scheduler.plan(++f.now);
  CHECK_EQ(step.plan().rows.size(), 2);
  CHECK_EQ(step.plan().retracted.size(), 0);
  CHECK_EQ(step.plan().rows[0].query_tokens, 1);
  CHECK(!f.scheduler.abandon(step));
}

// ---------------------------------------------------------------- deadlines

TEST(a_deadline_ends_a_request_wherever_it_stands) {
  Config config = config_of(16, 2, 4);
  config.max_chunk_tokens = 4;
  Fixture f(config);
  f.submit_on({.deadline = 20}, 1, counting(3), 40);
  f.step();
  CHECK_EQ(f.scheduler.state_of(1), "Decoding");
  f.submit_on({.deadline = 21}, 2, counting(20, 100), 4);
  f.step();
  CHECK_EQ(f.scheduler.state_of(2), "Prefilling");
  f.submit_on({.deadline = 22}, 3, counting(3, 200), 4);
  f.now = 20;
  CHECK_EQ(f.scheduler.state_of(3), "Queued");
  f.step();  // at 21
  CHECK(f.finished == std::vector<RequestId>{1});
  CHECK(f.reasons == std::vector<std::int32_t>{static_cast<std::int32_t>(FinishReason::kDeadline)});
  f.now = 30;
  f.step();
  CHECK(f.finished == std::vector<RequestId>({2, 3}));
  CHECK_EQ(f.scheduler.stats().owned_pages + f.scheduler.stats().referenced_pages, 0);
}

TEST(a_fetch_past_its_requests_deadline_keeps_its_pages_until_it_ends) {
  Fixture f(config_of(8, 2, 8));
  CHECK_EQ(f.scheduler.submit({1, counting(9), 2, kKey, Goal::kAwait, 0, {.deadline = 5}}),
           Admission::kAccepted);
  f.step();
  f.now = 10;
  f.step();
  CHECK(f.finished == std::vector<RequestId>{1});
  CHECK_EQ(f.scheduler.stats().quarantined_pages, 3);
  CHECK_EQ(f.scheduler.fetch_ended(1, 3, false, 11), Reply::kAccepted);
  CHECK_EQ(f.scheduler.stats().free_pages, 8);
}

TEST(a_deadline_does_not_concern_a_turn_that_is_over) {
  Fixture f(config_of(16, 2, 8));
  f.submit_on({.park_us = 100, .deadline = 20}, 1, counting(3), 1);
  f.step();
  f.now = 50;
  f.step();
  CHECK_EQ(f.scheduler.state_of(1), "Parked");
  CHECK(f.finished.empty());
}

// ---------------------------------------------------------------- who is retracted

TEST(the_one_that_loses_least_is_retracted) {
  Fixture f(config_of(8, 4, 64));
  f.submit(1, counting(4, 0), 20);
  f.submit(2, counting(5, 100), 20);  // cheaper than the younger one
  f.submit(3, counting(17, 200), 10);
  while (f.retracted.empty()) f.step();
  CHECK(f.retracted == std::vector<RequestId>{2});
}

TEST(tokens_that_others_keep_cost_nothing) {
  Fixture f(config_of(10, 4, 64));
  f.submit(1, counting(16, 0), 30);
  f.step();
  std::vector<Token> shares = counting(16, 0);
  shares.push_back(77);
  f.submit(2, counting(6, 100), 20);
  f.submit(3, shares, 20);  // longer, but all but one of its pages are the first one's
  while (f.retracted.empty()) f.step();
  CHECK(f.retracted == std::vector<RequestId>{3});
}

TEST(a_lower_priority_goes_before_a_cheaper_request) {
  Fixture f(config_of(10, 4, 64));
  f.submit_on({.priority = 1}, 1, counting(4, 0), 30);
  f.submit_on({.priority = 0}, 2, counting(6, 100), 20);
  f.submit_on({.priority = -1}, 3, counting(18, 200), 20);
  while (f.retracted.empty()) f.step();
  CHECK(f.retracted == std::vector<RequestId>{3});
}

TEST(whoever_gave_way_comes_back_when_more_is_left_for_the_others_each_time) {
  Fixture f(config_of(32, 4, 64));
  f.submit_on({.priority = -1}, 1, counting(20), 60);
  f.step();
  std::size_t times = 0;
  constexpr std::size_t kOthers = 40;
  for (RequestId id = 2; id < 2 + kOthers; ++id) {  // each grows to 25 pages, and is over
    f.submit(id, counting(4, static_cast<Token>(100 * id)), 96);
    for (int i = 0; i < 60; ++i) {
      f.step();
      times += static_cast<std::size_t>(std::count(f.retracted.begin(), f.retracted.end(), 1));
    }
  }
  while (f.scheduler.stats().running + f.scheduler.stats().waiting) f.step();
  CHECK(times >= 1);
  CHECK(times <= 1 + 5);  // log2(pages): others run all the time
  CHECK_EQ(f.scheduler.stats().generated_tokens, 60 + 96 * kOthers);
}

TEST(under_lasting_pressure_retractions_stay_within_their_bound) {
  constexpr std::size_t kPages = 32, kRequests = 12;
  Fixture f(config_of(kPages, 8, 64));
  world::Random random(7);
  for (RequestId id = 1; id <= kRequests; ++id) {
    f.submit(id, counting(4 + random.below(30), static_cast<Token>(1000 * id)),
             20 + random.below(60));
  }
  std::vector<std::size_t> times(kRequests + 1);
  for (int i = 0; i < 4000 && f.scheduler.stats().running + f.scheduler.stats().waiting; ++i) {
    f.step();
    for (const RequestId id : f.retracted) ++times[id];
  }
  CHECK_EQ(f.scheduler.stats().running + f.scheduler.stats().waiting, 0);
  CHECK(f.scheduler.stats().retractions > 0);
  // All were there from the start and are equals: 2 + log2(pages).
  for (RequestId id = 1; id <= kRequests; ++id) CHECK(times[id] <= 7);
}
