// Speculation: guesses are fed on pages reserved before, and never accepted beyond them.
#include <cstdint>
#include <variant>
#include <vector>

#include "fixture.h"

using namespace baton;
using namespace baton::test;

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
