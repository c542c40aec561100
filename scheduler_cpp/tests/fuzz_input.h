// Bytes as a world and what happens in it: the first four choose the configuration and the
// requests, every later one the next event among those that mean something then.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "setups.h"
#include "world.h"

namespace baton::world {

// What broke, and after which events; empty when nothing did.
inline std::string run_input(std::span<const std::uint8_t> bytes) {
  std::uint64_t seed = 0;
  for (std::size_t i = 0; i < 4 && i < bytes.size(); ++i) seed = seed << 8 | bytes[i];
  Random random(seed + 1);
  for (int i = 0; i < 20; ++i) (void)random.below(2);
  World world(random_setup(random));
  std::string story;
  for (std::size_t i = 4; i < bytes.size() && world.fault().empty(); ++i) {
    const std::vector<Event> enabled = world.enabled();
    // The last byte value stands for time going by, which is always possible.
    const Event event =
        bytes[i] == 0xff ? Event{Kind::kTick, 0} : enabled[bytes[i] % enabled.size()];
    world.apply(event);
    story += " [" + text(event) + "]";
  }
  if (world.fault().empty()) world.drain();
  return world.fault().empty() ? std::string() : world.fault() + "; after" + story;
}

}  // namespace baton::world
