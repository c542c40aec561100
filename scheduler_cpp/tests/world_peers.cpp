// Peers: fetches that write into target pages, leases that watch theirs, and events nobody awaits.
#include <algorithm>

#include "world.h"

namespace baton::world {

void World::do_arrive(int a) {
  Fetch& fetch = fetches_[a];
  const auto [index, page, host, group] = fetch.pages[fetch.arrived];
  const Request& request = requests_[static_cast<std::size_t>(a)];
  const std::size_t first = static_cast<std::size_t>(index) * setup_.config.page_size;
  if (host >= 0) content(0, page) = host_contents_[static_cast<std::size_t>(host)];
  for (std::size_t i = 0; i < setup_.config.page_size; ++i) {
    if (host >= 0) {
      if (content(0, page)[i] != request.tags[first + i]) fail("another page was restored");
    } else if (first + i < request.prompt) {
      content(0, page)[i] = request.tags[first + i];
    }
  }
  remote_writer(0, page) = -1;
  ++fetch.arrived;
  const bool fetching = scheduler_.state_of(static_cast<RequestId>(a + 1)) == "Fetching";
  const Reply reply =
      scheduler_.pages_arrived(static_cast<RequestId>(a + 1), static_cast<std::size_t>(index), 1);
  if (fetching != (reply == Reply::kAccepted)) fail("an arrival was answered wrongly");
}

const std::vector<World::Fetch::Target>* World::still_to_come(int which) const {
  const auto n = static_cast<int>(requests_.size());
  const auto fetch = fetches_.find(which % n);
  if (fetch == fetches_.end()) return nullptr;
  const auto group = static_cast<std::size_t>(which / n);
  if (group > fetch->second.beside.size()) return nullptr;
  const auto& left = fetch->second.beside[group - 1];
  return left.empty() ? nullptr : &left;
}

// The next page of a window, the state after a prompt or the first snapshot of those that serve; or
// the peer does not have that one.
void World::do_side_arrival(int which, bool missing) {
  const auto n = static_cast<int>(requests_.size());
  const int a = which % n;
  Fetch& fetch = fetches_[a];
  auto& left = fetch.beside[static_cast<std::size_t>(which / n) - 1];
  const Fetch::Target target = left.front();
  const Request& request = requests_[static_cast<std::size_t>(a)];
  const std::size_t page_size = setup_.config.page_size;
  const bool state = side(target.group).keeps == Retention::kState;
  const std::size_t first = static_cast<std::size_t>(target.index) * page_size;
  const bool at_end = first + page_size >= request.prompt;
  left.erase(left.begin());
  if (missing) {
    // Snapshots further back may still come; a prompt's end is what its reader needs.
    fetch.complete &= !(fetch.awaits ? at_end : left.empty());
    return;
  }
  auto& held = content(target.group, target.page);
  if (state) {
    held[0] = request.tags[std::min(first + page_size, request.prompt) - 1];
    if (!fetch.awaits) left.clear();  // one snapshot is enough
  } else {
    for (std::size_t i = 0; i < page_size && first + i < request.prompt; ++i) {
      held[i] = request.tags[first + i];
    }
  }
  remote_writer(target.group, target.page) = -1;
  const auto id = static_cast<RequestId>(a + 1);
  const bool fetching = scheduler_.state_of(id) == "Fetching";
  const auto index = static_cast<std::size_t>(target.index);
  if (fetching && scheduler_.pages_arrived(id, index + 7, 1, target.group) == Reply::kAccepted) {
    fail("a page that was not asked for was accepted");
  }
  const Reply reply = scheduler_.pages_arrived(id, index, 1, target.group);
  if (fetching != (reply == Reply::kAccepted)) fail("a side arrival was answered wrongly");
}

void World::do_fetch_end(int a, bool done) {
  Fetch fetch = std::move(fetches_[a]);
  fetches_.erase(a);
  for (auto& group : remote_writer_) std::replace(group.begin(), group.end(), a, -1);
  const auto id = static_cast<RequestId>(a + 1);
  Request& request = requests_[static_cast<std::size_t>(a)];
  const bool fetching = scheduler_.state_of(id) == "Fetching";
  const std::size_t running = scheduler_.stats().generated_tokens;
  std::optional<Token> first;
  if (done && fetch.awaits) first = next_token(request, request.tokens.size() - 1);
  if (scheduler_.fetch_ended(id, first, false, now_) != Reply::kAccepted) {
    fail("the end of a fetch was not accepted");
  }
  // A snapshot that was only kept may be missing.
  const bool started = scheduler_.stats().generated_tokens > running;
  if (fetching && first && fetch.whole() && !started) fail("all has come, and it does not decode");
  if (started && !fetch.complete) fail("a state is missing, and it decodes");
  if (started) {
    append(request, *first, setup_.scripts[static_cast<std::size_t>(a)].tenant);
    ++request.emitted;
  }
}

void World::do_grant(int which) {
  const int a = which % static_cast<int>(requests_.size());
  const std::size_t group = static_cast<std::size_t>(which) / requests_.size();
  const Request& request = requests_[static_cast<std::size_t>(a)];
  const std::size_t page_size = setup_.config.page_size;
  const std::size_t prompt = request.prompt;
  const bool state = group > 0 && side(group).keeps == Retention::kState;
  const std::size_t first = group == 0 ? 0
                            : state    ? (prompt - 1) / page_size
                                       : side(group).first_needed(prompt, page_size);
  std::vector<Digest> identities;
  Digest parent = kRoot;
  for (std::size_t at = 0; at < prompt; at += page_size) {
    const std::size_t n = std::min(page_size, prompt - at);
    parent = page_identity(key(a), parent, std::span(request.tokens).subspan(at, n));
    if (at / page_size >= first) identities.push_back(in_group(parent, group));
  }
  std::vector<std::int32_t> pages;
  const LeaseId id = scheduler_.grant(identities, now_, setup_.lease_ttl, pages, group);
  if ((id == 0) != pages.empty()) fail("a lease without pages, or pages without a lease");
  if (id == 0) return;
  LeaseSeen lease{id, now_ + setup_.lease_ttl, pages, {}, group};
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const auto& held = content(group, pages[i]);
    for (std::size_t k = 0; k < (state ? 1 : page_size); ++k) {
      const std::size_t position = state ? prompt - 1 : (first + i) * page_size + k;
      if (position < prompt && held[k] != request.tags[position]) {
        fail("a leased page does not hold what its identity says");
      }
    }
    lease.contents.push_back(held);
  }
  leases_.push_back(std::move(lease));
}

void World::do_release(std::size_t index) {
  const LeaseSeen lease = std::move(leases_[index]);
  leases_.erase(leases_.begin() + static_cast<std::ptrdiff_t>(index));
  const Verdict verdict = scheduler_.release(lease.id, now_);
  if ((verdict == Verdict::kValid) != (now_ <= lease.deadline)) fail("a wrong verdict");
  if (verdict != Verdict::kValid) return;
  for (std::size_t i = 0; i < lease.pages.size(); ++i) {
    if (content(lease.group, lease.pages[i]) != lease.contents[i]) {
      fail("a page changed under a lease that was judged valid");
    }
  }
}

// Events nobody waits for.
void World::do_stray(int a) {
  const auto id = static_cast<RequestId>(a + 1);
  const Stats before = scheduler_.stats();
  const auto pages = scheduler_.pages_of(id);
  if (scheduler_.pages_arrived(id, 0, 1) == Reply::kAccepted) fail("a stray arrival was accepted");
  if (scheduler_.fetch_ended(id, 3, false, now_) == Reply::kAccepted) {
    fail("a stray end of a fetch was accepted");
  }
  if (scheduler_.fetch_ended(id, std::nullopt, false, now_) == Reply::kAccepted) {
    fail("a stray loss of a fetch was accepted");
  }
  if (scheduler_.offload_ended(12345, true) == Reply::kAccepted) fail("a stray copy was accepted");
  if (scheduler_.state_of(id) != "Prefilled" && scheduler_.handed_over(id) == Reply::kAccepted) {
    fail("a stray hand-over was accepted");
  }
  if (!is_parked(static_cast<std::size_t>(a)) &&
      scheduler_.renew_park(id, now_ + 9) == Reply::kAccepted) {
    fail("a stray renewal of a park was accepted");
  }
  const std::vector<Token> guess = {1};
  if (scheduler_.state_of(id) != "Decoding" && scheduler_.draft(id, 1, guess) == Reply::kAccepted) {
    fail("a stray draft was accepted");
  }
  const Stats after = scheduler_.stats();
  if (before.free_pages != after.free_pages || before.owned_pages != after.owned_pages ||
      pages != scheduler_.pages_of(id)) {
    fail("a stray event changed something");
  }
}

}  // namespace baton::world
