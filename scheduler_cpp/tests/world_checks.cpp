// What must hold after every event, coming to rest, and telling worlds apart.
#include <algorithm>

#include "world.h"

namespace baton::world {

void World::check_all() {
  if (!fault_.empty() || !checking_) return;
  const std::string broken = scheduler_.check_invariants();
  if (!broken.empty()) return fail(broken);
  const Stats stats = scheduler_.stats();
  if (stats.free_pages + stats.cached_pages + stats.owned_pages + stats.referenced_pages !=
      stats.total_pages) {
    return fail("pages are not conserved");
  }
  for (std::size_t group = 0; group < scheduler_.groups(); ++group) {
    const PoolStats pool = scheduler_.pool_stats(group);
    if (pool.free + pool.cached + pool.owned + pool.referenced != pool.total) {
      return fail("pages of group " + std::to_string(group) + " are not conserved");
    }
  }
  // A page under a remote write belongs to the request that asked for it, and to nobody else.
  for (std::size_t group = 0; group < remote_writer_.size(); ++group) {
    for (std::size_t page = 0; page < remote_writer_[group].size(); ++page) {
      const int writer = remote_writer_[group][page];
      if (writer < 0) continue;
      for (std::size_t a = 0; a < requests_.size(); ++a) {
        const auto pages = scheduler_.pages_of(a + 1, group);
        const bool holds =
            std::find(pages.begin(), pages.end(), static_cast<std::int32_t>(page)) != pages.end();
        if (holds != (static_cast<int>(a) == writer)) {
          return fail("a page under a remote write changed hands");
        }
      }
    }
  }
  for (std::size_t a = 0; a < requests_.size(); ++a) {
    const auto state = scheduler_.state_of(a + 1);
    const bool gone = state.empty() || state == "Draining" || state == "Parked";
    if (requests_[a].submitted && requests_[a].over != gone && state != "Prefilled" && !gone) {
      return fail("a request that is over still lives");
    }
    if (requests_[a].submitted && !requests_[a].over && gone &&
        // Told by the next plan.
        setup_.scripts[a].goal != Goal::kAwait) {
      return fail("a request is gone and nobody was told");
    }
  }
}

void World::drain() {
  for (int round = 0; round < 10'000 && fault_.empty(); ++round) {
    if (!steps_.empty()) {
      apply({void_ ? Kind::kAbandon : Kind::kComplete, 0});
      continue;
    }
    while (!fetches_.empty() && fault_.empty()) {
      apply({Kind::kFetchLost, static_cast<std::uint8_t>(fetches_.begin()->first)});
    }
    while (!offloads_.empty() && fault_.empty()) apply({Kind::kOffloadDone, 0});
    while (!leases_.empty() && fault_.empty()) apply({Kind::kRelease, 0});
    now_ += kLongTime;
    apply({Kind::kPlan, 0});
    const Stats stats = scheduler_.stats();
    if (stats.waiting + stats.running + stats.fetching + stats.prefilled + stats.parked +
                stats.draining ==
            0 &&
        steps_.empty() && offloads_.empty()) {
      for (std::size_t group = 0; group < scheduler_.groups(); ++group) {
        const PoolStats pool = scheduler_.pool_stats(group);
        if (pool.free + pool.cached != pool.total) fail("pages leaked");
      }
      const PoolStats host = scheduler_.host_stats();
      if (host.free + host.cached != host.total) fail("host pages leaked");
      return;
    }
  }
  fail("the world does not come to rest");
}

std::vector<std::uint64_t> World::fingerprint() const {
  std::vector<std::uint64_t> print = scheduler_.fingerprint();
  for (std::size_t a = 0; a < requests_.size(); ++a) {
    const Request& request = requests_[a];
    print.push_back(request.submitted | request.over << 1 | request.emitted << 2);
    print.push_back(request.draft.size());
    const auto fetch = fetches_.find(static_cast<int>(a));
    print.push_back(fetch == fetches_.end() ? 0 : fetch->second.arrived + 1);
    if (fetch == fetches_.end()) continue;
    print.push_back(fetch->second.complete);
    for (const auto& left : fetch->second.beside) print.push_back(left.size());
  }
  print.push_back(offloads_.size());
  for (const LeaseSeen& lease : leases_) {
    print.push_back(lease.deadline >= now_ ? static_cast<std::uint64_t>(lease.deadline - now_) + 1
                                           : 0);
    print.push_back(lease.pages.size());
  }
  return print;
}

}  // namespace baton::world
