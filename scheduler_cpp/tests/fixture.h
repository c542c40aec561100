// One scheduler and its steps, for tests of named situations.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "baton/scheduler.h"
#include "check.h"
#include "setups.h"

namespace baton::test {

inline constexpr SipKey kKey{1, 2};

inline Config config_of(std::size_t pages, std::size_t running, std::size_t step_tokens) {
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

inline std::vector<Token> counting(std::size_t n, Token from = 0) {
  std::vector<Token> tokens(n);
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

}  // namespace baton::test
