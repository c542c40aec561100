// Random worlds and random events. A failure is shrunk to a short list of events before it is
// shown.
#include <cstdlib>
#include <functional>
#include <string>

#include "check.h"
#include "setups.h"
#include "world.h"

using namespace baton;
using namespace baton::world;

namespace {

std::string replay(const Setup& setup, const std::vector<Event>& events, bool drain) {
  World world(setup);
  for (const Event& event : events) {
    world.apply(event);
    if (!world.fault().empty()) return world.fault();
  }
  if (drain) world.drain();
  return world.fault();
}

// Drops events, ever smaller runs of them, as long as some fault remains.
std::vector<Event> shrink(const Setup& setup, std::vector<Event> events) {
  for (std::size_t run = events.size() / 2 + 1; run > 0; run /= 2) {
    for (std::size_t at = 0; at + run <= events.size();) {
      std::vector<Event> fewer = events;
      fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(at),
                  fewer.begin() + static_cast<std::ptrdiff_t>(at + run));
      if (replay(setup, fewer, true).empty()) {
        ++at;
      } else {
        events = std::move(fewer);
      }
    }
  }
  return events;
}

Event draw(Random& random, const World& world, const Setup& setup) {
  // Mostly steps, so that worlds get far; the rest is trouble.
  if (random.below(10) < 5) {
    const std::uint64_t variant = random.below(30);
    const Event complete{Kind::kComplete, static_cast<std::uint8_t>(variant < 2 ? 1 + variant : 0)};
    const auto enabled = world.enabled();
    for (const Event& event : enabled) {
      if (event.kind == Kind::kPlan) return event;
    }
    if (random.below(20)) return complete;
  }
  const auto enabled = world.enabled();
  for (int attempt = 0; attempt < 8; ++attempt) {
    const Event event = enabled[random.below(enabled.size())];
    const bool rare = event.kind == Kind::kCancel || event.kind == Kind::kAbandon ||
                      event.kind == Kind::kTick || event.kind == Kind::kFetchLost;
    if (!rare || random.below(6) == 0) return event;
  }
  (void)setup;
  return {Kind::kTick, 0};
}

void run_seed(std::uint64_t seed, std::size_t length) {
  Random random(seed + 1000);
  for (int i = 0; i < 20; ++i) (void)random.below(2);
  const Setup setup = random_setup(random);
  World world(setup);
  std::vector<Event> events;
  for (std::size_t i = 0; i < length && world.fault().empty(); ++i) {
    const Event event = draw(random, world, setup);
    events.push_back(event);
    world.apply(event);
  }
  if (world.fault().empty()) world.drain();
  if (world.fault().empty()) return;
  std::string text_of_failure = "seed " + std::to_string(seed) + ": " + world.fault() + "; after";
  const auto shortest = shrink(setup, events);
  for (const Event& event : shortest) text_of_failure += " [" + text(event) + "]";
  text_of_failure += " -> " + replay(setup, shortest, true);
  check::fail(__FILE__, __LINE__, text_of_failure);
}

}  // namespace

TEST(random_worlds_keep_every_invariant_and_come_to_rest) {
  const char* more = std::getenv("BATON_RANDOM_SEEDS");
  const std::uint64_t seeds = more ? std::strtoull(more, nullptr, 10) : 4000;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) run_seed(seed, 60 + seed % 200);
}
