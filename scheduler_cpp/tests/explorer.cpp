// Walks the real core breadth-first: from every reachable state of a small configuration, every
// enabled event, until a bound on the states. A state is reached by replaying its shortest path,
// so what is checked is the shipped scheduler and no model of it. The first fault found is hence
// also a shortest counterexample.
//
//   scheduler_explorer [--states N]   N: in all, 1 050 000 unless told
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_set>
#include <vector>

#include "setups.h"
#include "world.h"

using namespace baton;
using namespace baton::world;

namespace {

struct Named {
  const char* name;
  Setup setup;
};

Script script(std::initializer_list<Token> prompt, std::size_t max_new, Goal goal,
              std::size_t fetch_pages = 0) {
  Script s;
  s.prompt = prompt;
  s.max_new_tokens = max_new;
  s.goal = goal;
  s.fetch_pages = fetch_pages;
  return s;
}

Script parked(Script s) {
  s.park_us = 10;
  return s;
}

Script resumed(Script s, std::size_t parent) {
  s.resumes = parent;
  return s;
}

Script forked(Script s, std::size_t parent) {
  s.fork_of = parent;
  return s;
}

Script timed(Script s) {
  s.time = 20;
  return s;
}

std::vector<Named> configurations() {
  const Goal generate = Goal::kGenerate, hand_over = Goal::kHandOver, await = Goal::kAwait;
  std::vector<Named> all;
  all.push_back({"decode under pressure: 3 requests, 4 pages",
                 {small_config(4, 3, 2, Role::kDecode),
                  {script({0, 0, 0}, 4, generate), script({0, 0, 1}, 3, generate),
                   script({1, 1}, 4, generate)}}});
  all.push_back({"awaited hand-overs: 3 requests, 5 pages",
                 {small_config(5, 2, 1, Role::kDecode),
                  {script({0, 0, 1}, 3, await), script({0, 0, 2, 2}, 2, await),
                   script({0, 0, 0}, 2, generate)}}});
  all.push_back({"prefill for readers: 3 requests, 5 pages",
                 {small_config(5, 2, 2, Role::kPrefill),
                  {script({0, 0, 1}, 2, hand_over), script({0, 0, 1}, 2, hand_over),
                   script({1, 1, 1, 1}, 2, hand_over)}}});
  all.push_back({"fetched prefixes: 3 requests, 6 pages",
                 {small_config(6, 3, 1, Role::kFused),
                  {script({0, 0, 1, 1, 2}, 2, generate, 2), script({0, 0, 1, 1}, 1, hand_over, 2),
                   script({0, 0, 1, 1, 2}, 2, await)}}});
  all.push_back(
      {"parked sessions: 4 requests, 5 pages",
       {small_config(5, 2, 2, Role::kDecode),
        {parked(script({0, 0, 1}, 2, generate)), parked(resumed(script({1}, 2, generate), 1)),
         parked(script({0, 1}, 3, await)), script({1, 1, 1}, 3, generate)}}});
  all.push_back({"forks: 4 requests, 6 pages",
                 {small_config(6, 3, 2, Role::kFused),
                  {parked(script({0, 0, 1}, 3, generate)), forked(script({}, 2, generate), 1),
                   forked(script({1}, 2, hand_over), 1), forked(script({2}, 2, generate), 3)}}});
  Config guessing = small_config(5, 2, 4, Role::kDecode);
  guessing.max_draft_tokens = 3;
  all.push_back({"guesses: 3 requests, 5 pages",
                 {guessing,
                  {script({0, 0}, 5, generate), forked(script({1}, 4, generate), 1),
                   parked(script({1, 1}, 5, generate))}}});
  all.push_back(
      {"deadlines: 4 requests, 4 pages",
       {small_config(4, 2, 1, Role::kFused),
        {timed(script({0, 0, 0}, 3, generate)), timed(script({0, 0}, 2, await)),
         timed(parked(script({1}, 2, generate))), timed(script({1, 1}, 2, hand_over, 1))}}});
  const auto overlapped = [](Config config) {
    config.overlap = 1;
    return config;
  };
  all.push_back({"overlapped: decode under pressure",
                 {overlapped(small_config(4, 3, 2, Role::kDecode)),
                  {script({0, 0, 0}, 4, generate), script({0, 0, 1}, 3, generate),
                   parked(script({1, 1}, 4, generate))}}});
  all.push_back({"overlapped: forks, fetches, hand-overs",
                 {overlapped(small_config(6, 3, 2, Role::kFused)),
                  {script({0, 0, 1}, 4, generate), forked(script({1}, 3, generate), 1),
                   script({0, 0, 1, 1}, 2, await), script({0, 0, 1}, 1, hand_over)}}});
  all.push_back({"everything at once: 4 requests, 4 pages",
                 {small_config(4, 2, 1, Role::kFused),
                  {script({0, 0, 0}, 3, generate), script({0, 0}, 2, await),
                   script({0, 0, 0}, 1, hand_over), script({1}, 3, generate, 1)}}});
  const auto beside = [](Config config, std::vector<SideGroup> groups) {
    config.side_groups = std::move(groups);
    return config;
  };
  const auto with_host = [](Config config, std::size_t pages) {
    config.host_pages = pages;
    return config;
  };
  all.push_back({"a host tier: 3 requests, 5 pages",
                 {with_host(small_config(5, 2, 2, Role::kFused), 3),
                  {script({0, 0, 1, 1, 2}, 2, generate), script({0, 0, 1, 1, 2}, 3, generate),
                   script({1, 1, 1, 1}, 2, generate)}}});
  all.push_back({"a scarce host tier, fetches and retractions",
                 {with_host(small_config(4, 2, 2, Role::kDecode), 2),
                  {script({0, 0, 1}, 4, await), script({0, 0, 1, 1, 2}, 2, generate, 2),
                   script({1, 1}, 4, generate)}}});
  all.push_back({"a window beside full attention: 3 requests",
                 {beside(small_config(6, 3, 3, Role::kFused), {window(3, 3)}),
                  {script({0, 0, 1, 1, 2}, 3, generate), script({0, 0, 1, 1}, 2, generate),
                   script({0, 0, 1, 1, 2}, 1, hand_over)}}});
  all.push_back({"snapshots beside full attention: 3 requests",
                 {beside(small_config(6, 3, 3, Role::kFused), {state(2, 4)}),
                  {script({0, 0, 1, 1, 2}, 3, generate), script({0, 0, 1}, 3, generate),
                   script({0, 0, 1, 1, 2}, 1, hand_over)}}});
  all.push_back({"awaited states: 3 requests, 4 states",
                 {beside(small_config(6, 2, 2, Role::kDecode), {state(2, 4)}),
                  {script({0, 0, 1}, 3, await), script({0, 0, 1, 1}, 2, await),
                   script({0, 0, 1, 1, 2}, 2, generate)}}});
  all.push_back({"restored snapshots: 3 requests, 3 states",
                 {beside(small_config(7, 2, 3, Role::kFused), {state(2, 3)}),
                  {script({0, 0, 1, 1, 2, 2, 0}, 2, generate, 3),
                   script({0, 0, 1, 1, 2}, 1, hand_over, 2), script({0, 0, 1}, 2, await)}}});
  all.push_back({"awaited windows and states",
                 {beside(small_config(6, 2, 3, Role::kFused), {window(3, 4), state(4, 3)}),
                  {script({0, 0, 1, 1, 2}, 2, await), script({0, 0, 1, 1}, 2, await),
                   script({0, 0, 1, 1, 2}, 1, generate, 2)}}});
  all.push_back({"window and snapshots, both scarce: 3 requests",
                 {beside(small_config(5, 2, 4, Role::kDecode), {window(2, 2), state(4, 2)}),
                  {script({0, 0, 1, 1, 2}, 4, generate), script({0, 0, 1, 1, 2}, 3, generate),
                   script({0, 1}, 4, generate)}}});
  return all;
}

struct Node {
  std::uint32_t parent;
  Event event;
};

std::vector<Event> path_to(const std::vector<Node>& nodes, std::uint32_t node) {
  std::vector<Event> path;
  for (; node != 0; node = nodes[node].parent) path.push_back(nodes[node].event);
  std::reverse(path.begin(), path.end());
  return path;
}

std::uint64_t hash_of(const std::vector<std::uint64_t>& print) {
  const std::span bytes(reinterpret_cast<const std::uint8_t*>(print.data()), print.size() * 8);
  return siphash128({0x5eed, 0xbead}, bytes).lo;
}

// Number of states found; negative after a fault.
long explore(const Named& configuration, std::size_t most) {
  std::vector<Node> nodes = {{0, {}}};
  std::unordered_set<std::uint64_t> seen;
  seen.reserve(most);
  std::size_t depth = 0;
  std::size_t next = 0, transitions = 0;
  for (; next < nodes.size() && nodes.size() < most; ++next) {
    const std::vector<Event> path = path_to(nodes, static_cast<std::uint32_t>(next));
    depth = path.size();
    const auto arrive = [&](World& world) {
      world.set_checking(false);
      for (const Event& event : path) world.apply(event);
      world.set_checking(true);
    };
    World here(configuration.setup);
    arrive(here);
    for (const Event& event : here.enabled()) {
      World there(configuration.setup);
      arrive(there);
      there.apply(event);
      ++transitions;
      const auto print = there.fingerprint();
      if (!there.fault().empty()) {
        std::printf("FAULT in \"%s\": %s\n  after", configuration.name, there.fault().c_str());
        for (const Event& e : path) std::printf(" [%s]", text(e).c_str());
        std::printf(" [%s]\n", text(event).c_str());
        return -1;
      }
      if (!seen.insert(hash_of(print)).second) continue;
      nodes.push_back({static_cast<std::uint32_t>(next), event});
      // Wherever it stands, the world can come to rest with every page accounted for.
      if (nodes.size() % 64 == 0) {
        there.drain();
        if (!there.fault().empty()) {
          std::printf("FAULT in \"%s\" while draining: %s\n  after", configuration.name,
                      there.fault().c_str());
          for (const Event& e : path) std::printf(" [%s]", text(e).c_str());
          std::printf(" [%s]\n", text(event).c_str());
          return -1;
        }
      }
    }
  }
  const bool all = next == nodes.size();
  std::printf("%-45s %9zu states, %9zu transitions, depth %2zu%s\n", configuration.name,
              nodes.size(), transitions, depth, all ? " (all there are)" : "");
  std::fflush(stdout);
  return static_cast<long>(nodes.size());
}

}  // namespace

int main(int argc, char** argv) {
  std::size_t states = 1'050'000;
  if (argc == 3 && std::strcmp(argv[1], "--states") == 0) {
    states = std::strtoull(argv[2], nullptr, 10);
  } else if (argc != 1) {
    std::fprintf(stderr, "usage: %s [--states N]\n", argv[0]);
    return 2;
  }
  const auto start = std::chrono::steady_clock::now();
  const auto all = configurations();
  long explored = 0;
  std::size_t left = all.size();
  for (const Named& configuration : all) {
    // What a small configuration does not use, the later ones may.
    const std::size_t share = (states - static_cast<std::size_t>(explored)) / left--;
    const long found = explore(configuration, share);
    if (found < 0) return 1;
    explored += found;
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf("%ld states explored in %.1f s, no fault\n", explored, took.count());
  return 0;
}
