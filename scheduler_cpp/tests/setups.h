// Small configurations in which everything is scarce.
#pragma once

#include <cstdint>

#include "world.h"

namespace baton::world {

inline SideGroup window(std::size_t tokens, std::size_t pages) {
  return {Retention::kWindow, tokens, pages};
}
inline SideGroup state(std::size_t every, std::size_t pages) {
  return {Retention::kState, every, pages};
}

inline Config small_config(std::size_t pages, std::size_t running, std::size_t chunk, Role role) {
  Config config;
  config.role = role;
  config.page_size = 2;
  config.num_pages = pages;
  config.max_running = running;
  config.max_step_tokens = running + chunk;
  config.max_chunk_tokens = chunk;
  config.max_context = 64;
  config.max_waiting = 8;
  config.hold_us = 10;
  return config;
}

// A number stream that tests can replay.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 2 + 1) {}
  std::uint64_t below(std::uint64_t n) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return (state_ >> 11) % n;
  }

 private:
  std::uint64_t state_;
};

// Requests that share prefixes, of all goals, in a pool that cannot hold them all.
inline Setup random_setup(Random& random) {
  Setup setup;
  const std::size_t pages = 4 + random.below(9);
  const std::size_t running = 1 + random.below(4);
  setup.config =
      small_config(pages, running, 1 + random.below(6), static_cast<Role>(random.below(3)));
  setup.config.page_size = 1 + random.below(3);
  setup.max_leases = 1 + random.below(3);
  const bool beside = random.below(2) == 0;  // groups beside full attention
  while (beside && setup.config.side_groups.size() < 2 && random.below(3)) {
    SideGroup group;
    group.keeps = random.below(2) ? Retention::kState : Retention::kWindow;
    group.tokens = group.keeps == Retention::kState ? setup.config.page_size * (1 + random.below(3))
                                                    : 1 + random.below(9);
    group.pages = group.least_pages(setup.config.page_size) + random.below(6);
    setup.config.side_groups.push_back(group);
  }
  if (!beside && random.below(3) == 0) setup.config.max_draft_tokens = 1 + random.below(4);
  if (setup.config.side_groups.empty() && random.below(2)) {
    setup.config.host_pages = 1 + random.below(8);
  }
  if (!beside) setup.config.overlap = random.below(2);
  const std::size_t requests = 2 + random.below(6);
  for (std::size_t i = 0; i < requests; ++i) {
    Script script;
    const std::size_t length = 1 + random.below(10);
    const std::uint64_t family = random.below(2);
    for (std::size_t t = 0; t < length; ++t) {
      script.prompt.push_back(static_cast<Token>(t < 6 ? family : random.below(3)));
    }
    script.max_new_tokens = 1 + random.below(8);
    script.goal = static_cast<Goal>(random.below(3));
    script.fetch_pages = random.below(3) ? 0 : random.below(6);
    script.tenant = random.below(6) ? 0 : 1;
    script.priority = random.below(4) ? 0 : static_cast<std::int32_t>(random.below(3)) - 1;
    script.time = random.below(4) ? 0 : 3 + random.below(20);
    script.park_us = random.below(3) ? 0 : 10;
    if (i > 0 && random.below(2) == 0) {
      (random.below(2) ? script.resumes : script.fork_of) = 1 + random.below(i);
      script.tenant = setup.scripts[script.parent() - 1].tenant;
      script.prompt.resize(random.below(3));
    }
    setup.scripts.push_back(std::move(script));
  }
  return setup;
}

}  // namespace baton::world
