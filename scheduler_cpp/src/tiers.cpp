// The host tier: what is copied there before it must be evicted, and what a prompt finds there.
#include <algorithm>

#include "lifecycle.h"

namespace baton {

// Copies of pages `first` to `most` of a prompt, as far as they follow each other.
std::vector<HostPage> Scheduler::match_host(Sequence& sequence, std::size_t first,
                                            std::size_t most) {
  std::vector<HostPage> held;
  if (config_.host_pages == 0) return held;
  while (first + held.size() < most) {
    std::optional<HostPage> page = host_.find(sequence.identity(first + held.size()));
    if (!page) break;
    held.push_back(std::move(*page));
  }
  return held;
}

// When free pages get few, the coldest cache that has no copy is copied, so that evicting it loses
// nothing. A page that is being copied cannot be evicted: enough others must be left, so that no
// request waits for a copy.
void Scheduler::plan_offloads() {
  if (config_.host_pages == 0) return;
  while (offloads_.size() < kMostOffloads && pool_.free() <= pool_.total() / 4 &&
         pool_.available() > 1 + running_.size()) {
    std::optional<SealedPage> source = pool_.coldest_unbacked();
    if (!source) break;
    const Digest identity = pool_.identity(*source);
    if (host_.holds(identity)) {  // from an earlier life of the page
      pool_.mark_backed(identity, true);
      continue;
    }
    // A copy makes way only when its page is gone here: else two pages would chase each other.
    const std::optional<Digest> overwritten = host_.next_out();
    if (overwritten && pool_.holds(*overwritten)) break;
    std::optional<BlankHostPage> target = host_.allocate();
    if (!target) break;
    next_.offloads.push_back(++last_offload_);
    next_.offload_pages.push_back({raw(source->id()), target->id()});
    offloads_.try_emplace(last_offload_, std::move(*source), std::move(*target), identity);
  }
  for (const Digest& identity : host_.evicted()) pool_.mark_backed(identity, false);
  host_.evicted().clear();
}

Reply Scheduler::offload_ended(OffloadId offload, bool complete) {
  const auto found = offloads_.find(offload);
  if (found == offloads_.end()) return Reply::kIgnored;
  const Digest identity = found->second.identity();
  if (complete) std::move(found->second).land();
  offloads_.erase(found);
  if (complete) pool_.mark_backed(identity, true);
  return Reply::kAccepted;
}

PoolStats Scheduler::host_stats() const {
  const PagePool& of = host_.pages();
  return {of.total(), of.free(), of.cached(), of.owned(), of.referenced(), of.leased()};
}

}  // namespace baton
