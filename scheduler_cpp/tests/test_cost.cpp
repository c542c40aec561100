// A step costs what changed, not what exists: instructions of a steady step while context, pool and
// queue grow, and its heap allocations. Instructions come from the processor's counter; where that
// is not allowed, CPU time stands in, with a wider bound.
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "baton/scheduler.h"
#include "check.h"

namespace {
std::size_t allocations = 0;
}

void* operator new(std::size_t size) {
  ++allocations;
  if (void* p = std::malloc(size ? size : 1)) return p;
  std::abort();
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}

using namespace baton;

namespace {

class Meter {
 public:
  Meter() {
    perf_event_attr attr;
    std::memset(&attr, 0, sizeof(attr));
    attr.type = PERF_TYPE_HARDWARE;
    attr.size = sizeof(attr);
    attr.config = PERF_COUNT_HW_INSTRUCTIONS;
    attr.exclude_kernel = 1;
    attr.exclude_hv = 1;
    fd_ = static_cast<int>(syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0));
  }
  ~Meter() {
    if (fd_ >= 0) close(fd_);
  }
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;

  bool counts() const { return fd_ >= 0; }
  // Instructions so far, or nanoseconds of this thread.
  double read_now() const {
    std::uint64_t value = 0;
    if (fd_ >= 0 && read(fd_, &value, sizeof(value)) == sizeof(value)) {
      return static_cast<double>(value);
    }
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) * 1e9 + static_cast<double>(t.tv_nsec);
  }

 private:
  int fd_ = -1;
};

constexpr std::size_t kPage = 16;
constexpr std::size_t kRunning = 64;
constexpr std::size_t kSteps = 256;

struct Load {
  std::size_t context = 1024;
  std::size_t spare_pages = 4096;  // beyond what the running ones need, filled with cache
  std::size_t waiting = 0;         // prompts that do not fit
};

struct Cost {
  double per_step;
  std::size_t allocations;
};

void step(Scheduler& scheduler, Micros now) {
  static std::vector<Token> tokens(kRunning * 4, 5);
  static std::vector<std::uint8_t> flags(kRunning * 4, 0);
  Step planned = scheduler.plan(now);
  const std::size_t n = planned.plan().sampling_rows;
  CHECK(n <= tokens.size());
  const auto outcome =
      scheduler.complete(planned, std::span(tokens).first(n), std::span(flags).first(n), now);
  CHECK(std::holds_alternative<const Completion*>(outcome));
}

Cost cost_of(const Load& load) {
  Config config;
  config.page_size = kPage;
  config.num_pages = kRunning * pages_for(load.context + kPage, kPage) + load.spare_pages;
  config.max_running = kRunning + 1;
  config.max_step_tokens = 1 << 22;
  config.max_chunk_tokens = 1 << 22;
  config.max_context = 1 << 22;
  config.max_waiting = load.waiting + kRunning + 1;
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
  step(scheduler, ++now);
  for (std::size_t i = 0; i < kRunning; ++i) submit(load.context + i % kPage, 2000);
  for (int i = 0; i < 4; ++i) step(scheduler, ++now);
  CHECK_EQ(scheduler.stats().running, kRunning);
  for (std::size_t i = 0; i < load.waiting; ++i) submit((config.num_pages - 1) * kPage, 1);
  for (int i = 0; i < 40; ++i) step(scheduler, ++now);

  static const Meter meter;
  const std::size_t allocated = allocations;
  const double start = meter.read_now();
  for (std::size_t i = 0; i < kSteps; ++i) step(scheduler, ++now);
  const double spent = meter.read_now() - start;
  const std::size_t made = allocations - allocated;
  CHECK_EQ(scheduler.stats().retractions, 0);
  CHECK_EQ(scheduler.stats().running, kRunning);
  return {spent / kSteps, made};
}

void stays_within(const Load& small, const Load& large) {
  static const Meter meter;
  // A busy machine disturbs times, but what grows with a load of x16 still shows.
  const double bound = meter.counts() ? 1.3 : 6.0;
  double a = 1e300, b = 1e300;
  for (int round = 0; round < (meter.counts() ? 1 : 5); ++round) {
    a = std::min(a, cost_of(small).per_step);
    b = std::min(b, cost_of(large).per_step);
  }
  std::printf("  %s a step: %.0f, then %.0f (x%.2f)\n",
              meter.counts() ? "instructions" : "nanoseconds", a, b, b / a);
  CHECK(b <= bound * a);
}

}  // namespace

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
