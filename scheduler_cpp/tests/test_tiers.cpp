// The host tier: what is copied there, what is restored, and who must wait for whom.
#include <vector>

#include "baton/scheduler.h"
#include "check.h"
#include "fixture.h"

using namespace baton;
using test::counting;
using test::kKey;

namespace {

// Pages of 4 tokens; an executor whose copies end with the step that names them.
struct Fixture {
  explicit Fixture(std::size_t pages, std::size_t host_pages)
      : scheduler(config(pages, host_pages)) {}

  static Config config(std::size_t pages, std::size_t host_pages) {
    Config config = world::small_config(pages, 4, 64, Role::kFused);
    config.page_size = 4;
    config.max_context = 256;
    config.host_pages = host_pages;
    return config;
  }
  void submit(RequestId id, const std::vector<Token>& prompt, std::size_t max_new = 1) {
    CHECK_EQ(scheduler.submit({id, prompt, max_new, kKey, Goal::kGenerate, 0}),
             Admission::kAccepted);
  }
  void step() {
    Step planned = scheduler.plan(++now);
    const Plan& plan = planned.plan();
    const std::vector<RestorePage> restores = plan.restore_pages;
    const std::vector<RequestId> requests = plan.restore_requests;
    const std::vector<OffloadId> offloads = plan.offloads;
    const std::vector<Token> tokens(plan.sampling_rows, 1);
    const std::vector<std::uint8_t> flags(plan.sampling_rows, 0);
    const auto outcome = scheduler.complete(planned, tokens, flags, now);
    CHECK(std::holds_alternative<const Completion*>(outcome));
    for (const OffloadId id : offloads) {
      CHECK_EQ(scheduler.offload_ended(id, true), Reply::kAccepted);
    }
    for (std::size_t i = 0; i < restores.size(); ++i) {
      const auto index = static_cast<std::size_t>(restores[i].page_index);
      CHECK_EQ(scheduler.pages_arrived(requests[i], index, 1), Reply::kAccepted);
      if (i + 1 < restores.size() && requests[i + 1] == requests[i]) continue;
      CHECK_EQ(scheduler.fetch_ended(requests[i], std::nullopt, false, now), Reply::kAccepted);
    }
    CHECK_EQ(scheduler.check_invariants(), std::string());
  }
  void run() {
    while (scheduler.stats().waiting + scheduler.stats().running > 0) step();
  }

  Scheduler scheduler;
  Micros now = 0;
};

}  // namespace

TEST(what_was_evicted_is_restored_and_not_computed_again) {
  Fixture f(8, 16);
  f.submit(1, counting(25));
  f.run();
  f.step();  // with few pages free, the cache is copied
  CHECK_EQ(f.scheduler.host_stats().cached, 6);
  f.submit(2, counting(29, 100));
  f.run();
  CHECK(f.scheduler.lookup(counting(25), kKey) < 8);
  const auto computed = f.scheduler.stats().computed_tokens;
  f.submit(3, counting(25));
  f.step();
  CHECK_EQ(f.scheduler.state_of(3), "Prefilling");
  f.run();
  CHECK(f.scheduler.stats().restored_tokens >= 16);
  CHECK(f.scheduler.stats().computed_tokens - computed <= 9);
}

TEST(pages_with_a_copy_are_evicted_first) {
  Fixture f(12, 2);
  f.submit(1, counting(17));
  f.run();
  f.submit(2, counting(17, 100));
  f.run();
  f.step();
  CHECK_EQ(f.scheduler.host_stats().cached, 2);  // of the coldest: the first prompt's last pages
  f.submit(3, counting(21, 200));
  f.step();
  CHECK_EQ(f.scheduler.lookup(counting(17), kKey), 8);
  CHECK_EQ(f.scheduler.lookup(counting(17, 100), kKey), 16);
}

TEST(a_cancelled_restore_keeps_both_ends_until_it_is_over) {
  Fixture f(8, 16);
  f.submit(1, counting(25));
  f.run();
  f.step();
  f.submit(2, counting(29, 100));
  f.run();
  f.submit(3, counting(25));
  (void)f.scheduler.plan(90);
  CHECK_EQ(f.scheduler.state_of(3), "Fetching");
  const PoolStats host = f.scheduler.host_stats();
  CHECK(host.referenced > 0);
  CHECK_EQ(f.scheduler.cancel(3), Reply::kAccepted);
  CHECK_EQ(f.scheduler.state_of(3), "Draining");
  CHECK_EQ(f.scheduler.host_stats().referenced, host.referenced);
  CHECK_EQ(f.scheduler.stats().quarantined_pages, 7);
  CHECK_EQ(f.scheduler.fetch_ended(3, std::nullopt, false, 91), Reply::kAccepted);
  CHECK_EQ(f.scheduler.host_stats().referenced, 0);
  CHECK_EQ(f.scheduler.stats().quarantined_pages, 0);
}

TEST(a_page_that_is_being_copied_is_not_evicted) {
  Fixture f(8, 16);
  f.submit(1, counting(25));
  f.run();
  Step planned = f.scheduler.plan(50);
  const std::vector<OffloadId> offloads = planned.plan().offloads;
  CHECK(!offloads.empty());
  CHECK_EQ(f.scheduler.stats().referenced_pages, offloads.size());
  CHECK_EQ(f.scheduler.host_stats().owned, offloads.size());
  for (const OffloadId id : offloads) {
    CHECK_EQ(f.scheduler.offload_ended(id, false), Reply::kAccepted);
  }
  CHECK_EQ(f.scheduler.stats().referenced_pages, 0);
  CHECK_EQ(f.scheduler.host_stats().free, 16);
  CHECK_EQ(f.scheduler.offload_ended(offloads[0], true), Reply::kIgnored);
}

TEST(a_retracted_request_comes_back_from_the_host_tier) {
  Fixture f(10, 16);
  f.submit(1, counting(13), 24);
  f.submit(2, counting(13, 100), 24);
  f.run();
  CHECK(f.scheduler.stats().retractions > 0);
  CHECK(f.scheduler.stats().restored_tokens > 0);
  CHECK_EQ(f.scheduler.stats().generated_tokens, 48);
}

// Found by the random driver: two pages took turns in the last host page for ever.
TEST(a_copy_does_not_make_way_for_one_that_is_no_better) {
  Fixture f(8, 1);
  f.submit(1, counting(25));
  f.run();
  for (int i = 0; i < 4; ++i) f.step();
  CHECK_EQ(f.scheduler.stats().offloading, 0);
  Step planned = f.scheduler.plan(60);
  CHECK(planned.plan().offloads.empty());
}

TEST(a_poisoned_page_is_forgotten_in_the_host_tier_too) {
  Fixture f(8, 16);
  f.submit(1, counting(25));
  f.run();
  f.step();
  f.submit(2, counting(25));
  Step planned = f.scheduler.plan(70);
  const std::vector<Token> token = {0};
  const std::vector<std::uint8_t> poisoned = {2};
  CHECK(std::holds_alternative<const Completion*>(
      f.scheduler.complete(planned, token, poisoned, 70)));
  CHECK_EQ(f.scheduler.host_stats().cached, 0);
  CHECK_EQ(f.scheduler.lookup(counting(25), kKey), 0);
}
