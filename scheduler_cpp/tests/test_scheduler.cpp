// Named situations: what the policy promises, one promise a test.
#include <algorithm>
#include <cstdint>
#include <variant>
#include <vector>

#include "fixture.h"

using namespace baton;
using namespace baton::test;

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
