// What a scheduler step costs: medians of per-thread CPU time, heap allocations, and how both grow.
//
// Prints one JSON object per case. Page size 64, one full-attention group.
#include <time.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "baton/scheduler.h"

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

constexpr std::size_t kPage = 64;
constexpr SipKey kKey{1, 2};

double cpu_us() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) * 1e-3;
}

// The value that this share of them stays below.
double quantile(std::vector<double> values, double share) {
  const auto at = static_cast<std::size_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

double median(std::vector<double> values) {
  return quantile(std::move(values), 0.5);
}

struct Bench {
  explicit Bench(const Config& config) : scheduler(std::make_unique<Scheduler>(config)) {}

  Admission submit(std::size_t prompt, std::size_t max_new, std::uint64_t salt,
                   Goal goal = Goal::kGenerate) {
    tokens.resize(prompt);
    for (std::size_t i = 0; i < prompt; ++i) {
      tokens[i] = static_cast<Token>((salt * 1000003 + i * 7) & 0xffff);
    }
    return scheduler->submit({++requests, tokens, max_new, kKey, goal, 0});
  }

  // One plan and its completion.
  const Plan& step() {
    Step planned = scheduler->plan(++now);
    const Plan& plan = planned.plan();
    sampled.assign(plan.sampling_rows, 17);
    flags.assign(plan.sampling_rows, 0);
    if (scheduler->complete(planned, sampled, flags, now).index() != 0) std::abort();
    return plan;
  }

  void run_until_decoding() {
    for (;;) {
      const Plan& plan = step();
      const bool waits = scheduler->stats().waiting > 0;
      if (!waits && !plan.rows.empty() && plan.rows.back().kind == RowKind::kDecode) return;
    }
  }

  std::unique_ptr<Scheduler> scheduler;
  std::vector<Token> tokens, sampled;
  std::vector<std::uint8_t> flags;
  RequestId requests = 0;
  Micros now = 0;
};

Config config(std::size_t pages, std::size_t running) {
  Config c;
  c.role = Role::kFused;
  c.page_size = kPage;
  c.num_pages = pages;
  c.max_running = running;
  c.max_step_tokens = 1 << 20;
  c.max_chunk_tokens = 1 << 20;
  c.max_context = 1 << 20;
  c.max_waiting = 4096;
  return c;
}

// `extra`: more fields of the object.
void report(const char* name, const std::vector<double>& us, double must_us,
            const std::string& extra = "") {
  std::printf("{\"case\": \"%s\", \"median_us\": %.2f, \"p90_us\": %.2f, \"must_us\": %.0f%s}\n",
              name, median(us), quantile(us, 0.9), must_us, extra.c_str());
  std::fflush(stdout);
}

template <class... Values>
std::string fields(const char* format, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

struct Decoded {
  std::vector<double> us;  // of each step
  double allocations = 0;  // a step
  double sealed = 0;       // pages, a step
};

// `steps` steady decode steps with `running` requests of `context` tokens.
Decoded decode(std::size_t running, std::size_t context, std::size_t steps) {
  constexpr std::size_t kWarm = 2 * kPage;  // each request has sealed pages before
  const std::size_t most = steps + kWarm + 400;
  Bench bench(config(running * pages_for(context + kPage + most, kPage), running));
  for (std::size_t i = 0; i < running; ++i) {
    // Staggered, so that in every step as many cross a page boundary, as in life.
    if (bench.submit(context + i % kPage, most, i) != Admission::kAccepted) std::abort();
  }
  bench.run_until_decoding();
  for (std::size_t i = 0; i < kWarm; ++i) bench.step();
  Decoded decoded;
  decoded.us.reserve(steps);
  const std::size_t before = allocations;
  std::size_t deltas = 0;
  for (std::size_t i = 0; i < steps; ++i) {
    const double start = cpu_us();
    deltas += bench.step().page_deltas.size();
    decoded.us.push_back(cpu_us() - start);
  }
  decoded.allocations = static_cast<double>(allocations - before) / static_cast<double>(steps);
  decoded.sealed = static_cast<double>(deltas) / static_cast<double>(steps);
  return decoded;
}

// The same decode at growing contexts. They take turns, each time with a scheduler of their own, so
// that whatever else the machine does, and where memory happens to lie, meets all of them.
void contexts() {
  constexpr std::size_t kRunning = 1024, kSteps = 3 * kPage, kRounds = 9;
  constexpr std::array<std::size_t, 4> kContexts{1, 4, 16, 128};  // Ki tokens
  std::array<std::vector<double>, kContexts.size()> us, times;
  std::array<Decoded, kContexts.size()> last;
  for (std::size_t round = 0; round < kRounds; ++round) {
    for (std::size_t i = 0; i < kContexts.size(); ++i) {
      last[i] = decode(kRunning, kContexts[i] << 10, kSteps);
      us[i].insert(us[i].end(), last[i].us.begin(), last[i].us.end());
      times[i].push_back(median(last[i].us) / median(last[0].us));
    }
  }
  for (std::size_t i = 0; i < kContexts.size(); ++i) {
    report(
        fields("decode, 1024 running, context %zu K", kContexts[i]).c_str(), us[i], 200,
        fields(", \"times_1k\": %.3f, \"times_1k_rounds\": [%.3f, %.3f], \"must_times_1k\": 1.2, "
               "\"allocations_per_step\": %.3f, \"new_pages_per_step\": %.2f",
               median(times[i]), quantile(times[i], 0), quantile(times[i], 1), last[i].allocations,
               last[i].sealed));
  }
}

// A pool full of reusable pages; every step needs pages and must evict for them.
void evicting() {
  constexpr std::size_t kPages = 100'000, kRunning = 64;
  Bench bench(config(kPages, kRunning));
  for (std::uint64_t filled = 0; filled < kPages; filled += 1600) {
    if (bench.submit(1600 * kPage, 1, 1'000'000 + filled) != Admission::kAccepted) std::abort();
    bench.step();
  }
  for (std::size_t i = 0; i < kRunning; ++i) {
    // Staggered, so that every step some request crosses a page boundary.
    if (bench.submit(1024 + i, 4000, i) != Admission::kAccepted) std::abort();
  }
  bench.run_until_decoding();
  std::vector<double> times;
  std::size_t evicted = 0;
  for (int i = 0; i < 2000; ++i) {
    const double start = cpu_us();
    const Plan& plan = bench.step();
    times.push_back(cpu_us() - start);
    evicted += plan.evicted_hashes.size();
  }
  if (evicted < 1000) std::abort();
  report("64 running, pool of 100k pages full of reusable cache, evicting", times, 50);
}

// Many prompts wait that do not fit; 64 run.
void waiting() {
  constexpr std::size_t kRunning = 64;
  Bench bench(config(kRunning * 40, kRunning + 64));
  for (std::size_t i = 0; i < kRunning; ++i) {
    if (bench.submit(38 * kPage - 10, 900, i) != Admission::kAccepted) std::abort();
  }
  for (int i = 0; i < 20; ++i) bench.step();
  for (std::size_t i = 0; i < 1000; ++i) {
    if (bench.submit(127 * kPage, 8, 5000 + i) != Admission::kAccepted) std::abort();
  }
  std::vector<double> with;
  for (int i = 0; i < 40; ++i) {
    const double start = cpu_us();
    bench.step();
    with.push_back(cpu_us() - start);
  }
  report("64 running, 1000 waiting prompts that do not fit", with, 20);
}

void admitting() {
  std::vector<double> times;
  for (int round = 0; round < 15; ++round) {
    constexpr std::size_t kPages = 20'000;
    Bench bench(config(kPages, 64));
    for (std::uint64_t filled = 0; filled < kPages; filled += 1000) {
      if (bench.submit(1000 * kPage, 1, 77 + filled) != Admission::kAccepted) std::abort();
      bench.step();
    }
    std::vector<Token> prompt(1024);
    double total = 0;
    for (std::size_t i = 0; i < 64; ++i) {
      const double start = cpu_us();
      (void)bench.submit(1024, 100, 900'000 + i);
      total += cpu_us() - start;
    }
    const double start = cpu_us();
    const Plan& plan = bench.step();
    total += cpu_us() - start;
    if (plan.admitted_requests.size() != 64) std::abort();
    times.push_back(total);
  }
  report("admit 64 prompts of 1 K into a full pool, in all", times, 5000);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  const auto wanted = [&](const char* name) {
    return only.empty() || std::strstr(name, only.c_str());
  };
  if (wanted("decode")) {
    contexts();
    report("decode, 64 running, context 4 K", decode(64, 4 << 10, 200).us, 50);
  }
  if (wanted("evicting")) evicting();
  if (wanted("waiting")) waiting();
  if (wanted("admitting")) admitting();
  return 0;
}
