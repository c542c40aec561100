// Deadlines, and who gives way when pages are short.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "fixture.h"

using namespace baton;
using namespace baton::test;

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
