// Events: which mean something now, and what each does.
#include "world.h"

namespace baton::world {
namespace {

std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t x = a * 0x9e3779b97f4a7c15ULL + b + 0x632be59bd9b4e019ULL;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 32;
  return x | 1;  // never garbage
}

}  // namespace

std::string text(const Event& event) {
  static const char* const names[] = {
      "submit",     "plan",       "complete",   "abandon",      "cancel",       "arrive",
      "missing",    "fetch-done", "fetch-lost", "grant",        "release",      "handed-over",
      "renew-park", "draft",      "tick",       "offload-done", "offload-lost", "stray"};
  return std::string(names[static_cast<int>(event.kind)]) + " " + std::to_string(event.a);
}

World::World(const Setup& setup)
    : setup_(setup),
      scheduler_(setup.config),
      requests_(setup.scripts.size()),
      tables_(scheduler_.groups(),
              std::vector<std::vector<std::int32_t>>(setup.config.max_running)) {
  const std::vector<Tag> blank(setup.config.page_size, kGarbage);
  host_contents_.assign(setup.config.host_pages, blank);
  contents_.emplace_back(setup.config.num_pages, blank);
  remote_writer_.emplace_back(setup.config.num_pages, -1);
  for (const SideGroup& group : setup.config.side_groups) {
    contents_.emplace_back(group.pages, blank);
    remote_writer_.emplace_back(group.pages, -1);
  }
}

void World::fail(const std::string& what) {
  if (fault_.empty()) fault_ = what;
}

SipKey World::key(int request) const {
  return {setup_.scripts[static_cast<std::size_t>(request)].tenant, 7};
}

void World::append(Request& request, Token token, std::uint64_t tenant) const {
  const Tag before = request.tags.empty() ? mix(tenant, 99) : request.tags.back();
  request.tokens.push_back(token);
  request.tags.push_back(mix(before, static_cast<std::uint64_t>(token)));
}

// What "the model" says after `position`: it depends on all tokens so far, and only on them.
Token World::next_token(const Request& request, std::size_t position) const {
  return static_cast<Token>(request.tags[position] >> 7 & 3);
}

bool World::is_parked(std::size_t request) const {
  return scheduler_.state_of(request + 1) == "Parked";
}

bool World::has_parent(std::size_t request) const {
  const std::size_t parent = setup_.scripts[request].parent();
  return parent == 0 || requests_[parent - 1].submitted;
}

bool World::has_deadline() const {
  for (std::size_t a = 0; a < requests_.size(); ++a) {
    if (setup_.scripts[a].time && requests_[a].submitted && !requests_[a].over) return true;
  }
  return false;
}

// ---------------------------------------------------------------- events

bool World::is_enabled(Event event) const {
  const auto a = static_cast<std::size_t>(event.a);
  const bool known = a < requests_.size();
  switch (event.kind) {
    case Kind::kSubmit:
      return known && !requests_[a].submitted && has_parent(a);
    case Kind::kPlan:
      return scheduler_.can_plan();
    case Kind::kComplete:
      return !steps_.empty() && !void_ && (event.a == 0 || running().sampling_rows > 0);
    case Kind::kAbandon:
      return !steps_.empty();
    case Kind::kCancel:
      return known && requests_[a].submitted && (!requests_[a].over || is_parked(a));
    case Kind::kArrive: {
      if (a >= requests_.size()) return still_to_come(event.a) != nullptr;
      const auto fetch = fetches_.find(event.a);
      return fetch != fetches_.end() && fetch->second.arrived < fetch->second.pages.size();
    }
    case Kind::kMissing:
      return a >= requests_.size() && still_to_come(event.a) &&
             side(a / requests_.size()).keeps == Retention::kState;
    case Kind::kFetchDone: {
      const auto fetch = fetches_.find(event.a);
      return fetch != fetches_.end() && fetch->second.arrived == fetch->second.pages.size();
    }
    case Kind::kFetchLost:
      return fetches_.contains(event.a);
    case Kind::kGrant:
      return a / requests_.size() < scheduler_.groups() &&
             requests_[a % requests_.size()].submitted && leases_.size() < setup_.max_leases;
    case Kind::kRelease:
      return a < leases_.size();
    case Kind::kHandedOver:
      return known && scheduler_.state_of(a + 1) == "Prefilled";
    case Kind::kRenewPark:
      return known && is_parked(a);
    case Kind::kDraft:
      return known && steps_.empty() && setup_.config.max_draft_tokens > 0 &&
             scheduler_.state_of(a + 1) == "Decoding" && requests_[a].draft.empty();
    case Kind::kTick:
      return event.a == 0 || !leases_.empty() || scheduler_.stats().prefilled > 0 ||
             scheduler_.stats().parked > 0 || has_deadline();
    case Kind::kOffloadDone:
    case Kind::kOffloadLost:
      return a < offloads_.size();
    case Kind::kStray:
      return known && requests_[a].submitted && !fetches_.contains(event.a);
  }
  return false;
}

std::vector<Event> World::enabled() const {
  std::vector<Event> events;
  const auto offer = [&](Kind kind, std::size_t most) {
    for (std::size_t a = 0; a < most; ++a) {
      const Event event{kind, static_cast<std::uint8_t>(a)};
      if (is_enabled(event)) events.push_back(event);
    }
  };
  const std::size_t n = requests_.size();
  offer(Kind::kPlan, 1);
  offer(Kind::kComplete, 3);
  offer(Kind::kAbandon, 1);
  offer(Kind::kSubmit, n);
  offer(Kind::kCancel, n);
  offer(Kind::kArrive, n * scheduler_.groups());
  offer(Kind::kMissing, n * scheduler_.groups());
  offer(Kind::kFetchDone, n);
  offer(Kind::kFetchLost, n);
  offer(Kind::kGrant, n * scheduler_.groups());
  offer(Kind::kRelease, leases_.size());
  offer(Kind::kHandedOver, n);
  offer(Kind::kRenewPark, n);
  offer(Kind::kDraft, n);
  if (is_enabled({Kind::kTick, 1})) events.push_back({Kind::kTick, 1});
  offer(Kind::kOffloadDone, offloads_.size());
  offer(Kind::kOffloadLost, offloads_.size());
  offer(Kind::kStray, n);
  return events;
}

void World::do_submit(int a) {
  Request& request = requests_[static_cast<std::size_t>(a)];
  const Script& script = setup_.scripts[static_cast<std::size_t>(a)];
  request.submitted = true;
  if (const std::size_t parent = script.parent()) {
    for (const Token token : requests_[parent - 1].tokens) {
      append(request, token, script.tenant);
    }
  }
  for (const Token token : script.prompt) append(request, token, script.tenant);
  request.prompt = request.tokens.size();
  const Terms terms{script.priority, script.park_us, script.resumes, script.fork_of,
                    script.time ? now_ + script.time : 0};
  const Admission admission =
      scheduler_.submit({static_cast<RequestId>(a + 1), request.tokens, script.max_new_tokens,
                         key(a), script.goal, script.fetch_pages, terms});
  request.over = admission != Admission::kAccepted;
}

void World::do_draft(int a) {
  Request& request = requests_[static_cast<std::size_t>(a)];
  const std::size_t most = setup_.config.max_draft_tokens;
  Request ahead = request;
  for (std::size_t i = 0; i < most; ++i) {
    const Token right = next_token(ahead, ahead.tokens.size() - 1);
    request.draft.push_back(2 * i < most ? right : right ^ 1);
    append(ahead, request.draft.back(), 0);
  }
  const std::size_t position = request.tokens.size();
  const auto id = static_cast<RequestId>(a + 1);
  if (scheduler_.draft(id, position + 1, request.draft) != Reply::kRejected ||
      scheduler_.draft(id, position - 1, request.draft) != Reply::kIgnored ||
      scheduler_.draft(id, position, request.draft) != Reply::kAccepted) {
    fail("a draft was answered wrongly");
  }
}

bool World::apply(Event event) {
  if (!fault_.empty() || !is_enabled(event)) return false;
  const int a = event.a;
  const auto id = static_cast<RequestId>(a + 1);
  switch (event.kind) {
    case Kind::kSubmit:
      do_submit(a);
      break;
    case Kind::kPlan:
      do_plan();
      break;
    case Kind::kComplete:
      do_complete(a);
      break;
    case Kind::kAbandon:
      do_abandon();
      break;
    case Kind::kCancel:
      (void)scheduler_.cancel(id);
      requests_[static_cast<std::size_t>(a)].over = true;
      break;
    case Kind::kArrive:
      if (static_cast<std::size_t>(a) < requests_.size()) {
        do_arrive(a);
      } else {
        do_side_arrival(a, false);
      }
      break;
    case Kind::kMissing:
      do_side_arrival(a, true);
      break;
    case Kind::kFetchDone:
      do_fetch_end(a, true);
      break;
    case Kind::kFetchLost:
      do_fetch_end(a, false);
      break;
    case Kind::kGrant:
      do_grant(a);
      break;
    case Kind::kRelease:
      do_release(static_cast<std::size_t>(a));
      break;
    case Kind::kHandedOver:
      if (scheduler_.handed_over(id) != Reply::kAccepted) fail("a hand-over was not accepted");
      requests_[static_cast<std::size_t>(a)].over = true;
      break;
    case Kind::kRenewPark:
      if (scheduler_.renew_park(id, now_ + setup_.scripts[static_cast<std::size_t>(a)].park_us) !=
          Reply::kAccepted) {
        fail("a park was not renewed");
      }
      break;
    case Kind::kDraft:
      do_draft(a);
      break;
    case Kind::kTick:
      now_ += a ? kLongTime : 1;
      break;
    case Kind::kOffloadDone:
    case Kind::kOffloadLost:
      do_offload_end(static_cast<std::size_t>(a), event.kind == Kind::kOffloadDone);
      break;
    case Kind::kStray:
      do_stray(a);
      break;
  }
  check_all();
  return true;
}

}  // namespace baton::world
