// Two steps in flight: what is planned ahead, what is discarded, what waits for the fence.
#include <algorithm>
#include <vector>

#include "baton/scheduler.h"
#include "check.h"
#include "fixture.h"

using namespace baton;
using test::counting;
using test::kKey;

namespace {

// Pages of 4 tokens.
struct Fixture {
  explicit Fixture(std::size_t pages = 16, std::size_t chunk = 16)
      : scheduler([&] {
          Config config = world::small_config(pages, 4, chunk, Role::kFused);
          config.page_size = 4;
          config.overlap = 1;
          return config;
        }()) {}

  void submit(RequestId id, const std::vector<Token>& prompt, std::size_t max_new,
              const Terms& terms = {}) {
    CHECK_EQ(scheduler.submit({id, prompt, max_new, kKey, Goal::kGenerate, 0, terms}),
             Admission::kAccepted);
  }
  Step plan() { return scheduler.plan(++now); }
  std::variant<const Completion*, Refusal> complete(Step& step, Token token = 1,
                                                    std::uint8_t flag = 0) {
    const std::vector<Token> tokens(step.plan().sampling_rows, token);
    const std::vector<std::uint8_t> flags(step.plan().sampling_rows, flag);
    auto outcome = scheduler.complete(step, tokens, flags, now);
    CHECK_EQ(scheduler.check_invariants(), std::string());
    return outcome;
  }
  const Completion& done(Step& step, Token token = 1, std::uint8_t flag = 0) {
    return *std::get<const Completion*>(complete(step, token, flag));
  }
  // Request 1, whose first token is known.
  void decode(std::size_t prompt, std::size_t max_new, const Terms& terms = {}) {
    submit(1, counting(prompt), max_new, terms);
    Step step = plan();
    (void)done(step);
  }

  Scheduler scheduler;
  Micros now = 0;
};

}  // namespace

TEST(a_row_is_planned_before_its_token_is_known) {
  Fixture f;
  f.decode(3, 8);
  Step first = f.plan();
  Step second = f.plan();
  CHECK(!f.scheduler.can_plan());
  CHECK_EQ(first.plan().token_ids[0], 1);
  CHECK_EQ(second.plan().token_ids[0], kSampledLast);
  CHECK_EQ(second.plan().rows[0].context_tokens, first.plan().rows[0].context_tokens + 1);
  CHECK_EQ(f.scheduler.pages_of(1).size(), 2);  // the second row's page is reserved
  (void)f.done(first, 5);
  Step third = f.plan();
  CHECK_EQ(third.plan().token_ids[0], kSampledLast);
  (void)f.done(second, 6);
  (void)f.done(third, 7);
  Step fourth = f.plan();
  CHECK_EQ(fourth.plan().token_ids[0], 7);
  CHECK(!f.scheduler.abandon(fourth));
}

TEST(chunks_of_a_prompt_follow_each_other) {
  Fixture f(16, 4);
  f.submit(1, counting(11), 2);
  Step first = f.plan();
  Step second = f.plan();
  CHECK_EQ(second.plan().rows[0].context_tokens, 4);
  (void)f.done(first);
  Step third = f.plan();
  CHECK_EQ(third.plan().rows[0].context_tokens, 8);
  CHECK_EQ(third.plan().rows[0].query_tokens, 3);
  CHECK_EQ(third.plan().rows[0].samples, 1);
  (void)f.done(second);
  CHECK(f.plan().plan().rows.empty());  // its first token is not known yet
  (void)f.done(third);
  CHECK_EQ(f.scheduler.state_of(1), "Decoding");
}

TEST(the_row_of_a_request_that_has_ended_is_discarded_and_its_pages_wait_for_it) {
  Fixture f;
  f.decode(3, 8);
  Step first = f.plan();
  Step second = f.plan();
  CHECK(f.done(first, 5, 1).finished_requests == std::vector<RequestId>{1});
  CHECK_EQ(f.scheduler.state_of(1), "Draining");
  CHECK_EQ(f.scheduler.stats().free_pages + f.scheduler.stats().cached_pages, 14);
  const Completion& discarded = f.done(second, 6);
  CHECK(discarded.finished_requests.empty());
  CHECK(discarded.sealed_pages.empty());
  CHECK(f.scheduler.state_of(1).empty());
  CHECK_EQ(f.scheduler.stats().generated_tokens, 2);
  CHECK_EQ(f.scheduler.stats().free_pages + f.scheduler.stats().cached_pages, 16);
}

TEST(a_turn_is_parked_when_the_step_behind_its_end_is_over) {
  Fixture f;
  f.decode(3, 8, {.park_us = 100});
  Step first = f.plan();
  Step second = f.plan();
  (void)f.done(first, 5, 1);
  CHECK_EQ(f.scheduler.state_of(1), "Draining");
  (void)f.done(second);
  CHECK_EQ(f.scheduler.state_of(1), "Parked");
  CHECK_EQ(f.scheduler.pages_of(1).size(), 1);
}

TEST(no_row_is_planned_beyond_the_last_token) {
  Fixture f;
  f.decode(3, 2);
  Step first = f.plan();
  CHECK(f.plan().plan().rows.empty());
  CHECK_EQ(f.done(first).finished_requests.size(), 1);
}

TEST(steps_are_completed_in_order) {
  Fixture f;
  f.decode(3, 8);
  Step first = f.plan();
  Step second = f.plan();
  CHECK_EQ(std::get<Refusal>(f.complete(second)).misuse, Misuse::kOrder);
  CHECK_EQ(*f.scheduler.abandon(second), Misuse::kOrder);
  (void)f.done(first);
  (void)f.done(second);
  CHECK_EQ(std::get<Refusal>(f.complete(second)).misuse, Misuse::kSpent);
}

TEST(what_follows_an_abandoned_step_can_only_be_abandoned) {
  Fixture f;
  f.decode(3, 8);
  Step first = f.plan();
  Step second = f.plan();
  CHECK(!f.scheduler.abandon(first));
  CHECK(!f.scheduler.can_plan());
  CHECK_EQ(std::get<Refusal>(f.complete(second)).misuse, Misuse::kVoid);
  CHECK(!f.scheduler.abandon(second));
  Step again = f.plan();
  CHECK_EQ(again.plan().token_ids[0], 1);
  CHECK_EQ(again.plan().rows[0].context_tokens, 3);
  CHECK(!f.scheduler.abandon(again));
}

TEST(a_page_that_a_row_in_flight_reads_is_not_exchanged_when_it_is_sealed) {
  Fixture f;
  f.submit(1, {7, 7, 7}, 8);
  f.submit(2, {7, 7, 7}, 8);
  Step start = f.plan();
  (void)f.done(start);
  Step first = f.plan();  // fills the page of each with the same tokens
  Step second = f.plan();
  const auto before = f.scheduler.pages_of(2);
  (void)f.done(first);
  CHECK_EQ(f.scheduler.pages_of(2)[0], before[0]);
  CHECK(f.scheduler.pages_of(1)[0] != before[0]);
  (void)f.done(second);
}

TEST(those_who_could_give_way_get_no_rows_until_they_can) {
  Fixture f(4, 16);
  f.submit(1, counting(7), 9);
  f.submit(2, counting(7, 100), 9);
  Step start = f.plan();
  (void)f.done(start);
  Step first = f.plan();   // both fill their second page
  Step second = f.plan();  // no page for either
  CHECK(second.plan().rows.empty());
  CHECK(second.plan().retracted.empty());
  (void)f.done(first);
  Step third = f.plan();
  CHECK(third.plan().retracted == std::vector<RequestId>{2});
  CHECK(third.plan().requests == std::vector<RequestId>{1});
  (void)f.done(third);
}

TEST(what_cannot_be_overlapped_is_refused) {
  Config config = world::small_config(8, 2, 4, Role::kFused);
  config.overlap = 2;
  CHECK(config.problem().find("overlap is 2: must be 0") == 0);
  config.overlap = 1;
  CHECK_EQ(config.problem(), std::string());
  config.side_groups = {{Retention::kWindow, 4, 8}};
  CHECK(config.problem().find("overlap is 1 with side_groups") == 0);
}
