// A step costs what changed, not what exists: the work of a steady step while context, pools and
// queue grow, and its heap allocations. Built with an instrumented core of its own.
#include <algorithm>
#include <cstring>
#include <vector>

#include "baton/scheduler.h"
#include "check.h"
#include "count_work.h"

using namespace baton;

namespace {

constexpr std::size_t kPage = 16;
constexpr std::size_t kRunning = 64;
constexpr std::size_t kSteps = 256;

struct Load {
  std::vector<SideGroup> side_groups = {};
  std::size_t host_pages = 0;
  std::size_t context = 1024;
  std::size_t spare_pages = 4096;  // beyond what the running ones need, filled with cache
  std::size_t waiting = 0;         // prompts that do not fit
};

// One step. Whether all its rows decode.
bool step(Scheduler& scheduler, Micros now) {
  static std::vector<Token> tokens(kRunning * 4, 5);
  static std::vector<std::uint8_t> flags(kRunning * 4, 0);
  Step planned = scheduler.plan(now);
  const std::size_t n = planned.plan().sampling_rows;
  CHECK(n <= tokens.size());
  const bool decodes =
      !planned.plan().rows.empty() && planned.plan().rows.back().kind == RowKind::kDecode;
  const auto outcome =
      scheduler.complete(planned, std::span(tokens).first(n), std::span(flags).first(n), now);
  CHECK(std::holds_alternative<const Completion*>(outcome));
  return decodes;
}

// What steady steps under a load cost, in all.
test::Work cost_of(const Load& load) {
  Config config;
  config.page_size = kPage;
  config.num_pages = kRunning * pages_for(load.context + kPage, kPage) + load.spare_pages;
  config.max_running = kRunning + 1;
  config.max_step_tokens = 1 << 22;
  config.max_chunk_tokens = 1 << 22;
  config.max_context = 1 << 22;
  config.max_waiting = load.waiting + kRunning + 1;
  config.side_groups = load.side_groups;
  config.host_pages = load.host_pages;
  Scheduler scheduler(config);
  Micros now = 0;
  RequestId id = 0;
  std::vector<Token> prompt(std::max(load.context + kPage, config.num_pages * kPage - 1));
  const auto submit = [&](std::size_t tokens, std::size_t max_new) {
    ++id;
    for (std::size_t i = 0; i < tokens; ++i) prompt[i] = static_cast<Token>(i * 31 + id);
    CHECK_EQ(scheduler.submit(
                 {id, std::span(prompt).first(tokens), max_new, {1, 2}, Goal::kGenerate, 0}),
             Admission::kAccepted);
  };
  submit(config.num_pages * kPage - 1, 1);  // fills the pool with cache
  while (scheduler.stats().waiting + scheduler.stats().running > 0) step(scheduler, ++now);
  for (std::size_t i = 0; i < kRunning; ++i) submit(load.context + i % kPage, 2000);
  while (!step(scheduler, ++now) || scheduler.stats().waiting > 0) continue;
  CHECK_EQ(scheduler.stats().running, kRunning);
  for (std::size_t i = 0; i < load.waiting; ++i) submit((config.num_pages - 1) * kPage, 1);
  for (int i = 0; i < 40; ++i) step(scheduler, ++now);

  const test::Work before = test::work_done();
  for (std::size_t i = 0; i < kSteps; ++i) step(scheduler, ++now);
  const test::Work after = test::work_done();
  CHECK_EQ(scheduler.stats().retractions, 0);
  CHECK_EQ(scheduler.stats().running, kRunning);
  return {after.blocks - before.blocks, after.bytes - before.bytes,
          after.allocations - before.allocations};
}

void stays_within(const Load& small, const Load& large) {
  // A block is worth a handful of instructions; so are some bytes moved.
  const auto spent = [](const Load& load) {
    const test::Work work = cost_of(load);
    return static_cast<double>(work.blocks + work.bytes / 16) / kSteps;
  };
  const double before = spent(small), after = spent(large);
  std::printf("  blocks a step: %.0f, then %.0f (x%.3f)\n", before, after, after / before);
  CHECK(before > kRunning);
  CHECK(after <= 1.3 * before);
}

}  // namespace

TEST(work_that_grows_is_seen) {
  std::vector<int> numbers(64, 1), more(64 * 16, 1);
  const auto count = [](std::vector<int>& walked) {
    const std::uint64_t before = test::work_done().blocks;
    for (volatile int& number : walked) {
      if (number > 0) number = number + 1;
    }
    return test::work_done().blocks - before;
  };
  CHECK(count(more) > 8 * count(numbers));
  const volatile std::size_t size = numbers.size() * sizeof(int);
  const std::uint64_t bytes = test::work_done().bytes;
  std::memmove(numbers.data(), more.data(), size);
  CHECK_EQ(test::work_done().bytes - bytes, size + 0);
}

TEST(cost_does_not_grow_with_the_context) {
  stays_within({.context = 512}, {.context = 512 * 16});
}

TEST(cost_does_not_grow_with_the_pool) {
  stays_within({.spare_pages = 8192}, {.spare_pages = 8192 * 16});
}

TEST(cost_does_not_grow_with_the_queue) {
  stays_within({.spare_pages = 4096, .waiting = 1}, {.spare_pages = 4096, .waiting = 64});
}

TEST(a_steady_decode_step_allocates_nothing) {
  CHECK_EQ(cost_of({}).allocations, 0);
}

namespace {

std::vector<SideGroup> beside(std::size_t times) {
  return {{Retention::kWindow, 8 * kPage, times * 16 * kRunning},
          {Retention::kState, 4 * kPage, times * 4 * kRunning}};
}

}  // namespace

TEST(cost_does_not_grow_with_the_context_in_any_group) {
  stays_within({.side_groups = beside(1), .context = 512},
               {.side_groups = beside(1), .context = 512 * 16});
}

TEST(cost_does_not_grow_with_any_groups_pool) {
  stays_within({.side_groups = beside(1)}, {.side_groups = beside(16)});
}

TEST(cost_does_not_grow_with_the_host_tier) {
  stays_within({.host_pages = 1024}, {.host_pages = 1024 * 16});
}

TEST(a_steady_decode_step_allocates_nothing_in_any_group) {
  CHECK_EQ(cost_of({.side_groups = beside(1)}).allocations, 0);
}
