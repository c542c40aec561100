// The scheduler, its steps and completions.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <string>
#include <variant>

#include "arrays.h"
#include "baton/scheduler.h"
#include "bindings.h"

namespace baton::binding {
namespace {

// A step and a completion seen from Python keep their scheduler alive, whose memory they show.
struct PyStep {
  Step step;
  nb::object home;
};
struct PyCompletion {
  const Completion* completion;
  nb::object home;
};
struct PyLease {
  LeaseId id;
  nb::object pages;
};

[[noreturn]] void refuse(const std::string& text) {
  throw nb::value_error(text.c_str());
}

[[noreturn]] void refuse(Refusal refusal, const Step& step, std::size_t tokens, std::size_t flags,
                         std::span<const std::int32_t> accepted) {
  const std::string name = "step " + std::to_string(step.sequence());
  if (refusal.misuse == Misuse::kSpent) {
    refuse(name + " was completed or abandoned before: a step is completed once");
  }
  if (refusal.misuse == Misuse::kForeign) {
    refuse(name + " belongs to another scheduler: complete it there");
  }
  if (refusal.misuse == Misuse::kOrder) {
    refuse(name + " is not the oldest in flight: complete or abandon the one before it first");
  }
  if (refusal.misuse == Misuse::kVoid) {
    refuse(name +
           " follows a step that was abandoned: it computed on what never happened; "
           "abandon it too");
  }
  const std::string rows = std::to_string(step.plan().sampling_rows);
  const std::string row = "sampling row " + std::to_string(refusal.row) + " of " + name;
  const std::string count =
      accepted.empty() ? std::string("1") : std::to_string(accepted[refusal.row]);
  switch (refusal.misuse) {
    case Misuse::kTokenCount:
      refuse("tokens has " + std::to_string(tokens) + " entries: " + name + " has " + rows +
             " sampling rows, and takes for each the tokens that are accepted, one unless said");
    case Misuse::kFlagCount:
      refuse("flags has " + std::to_string(flags) + " entries: " + name + " has " + rows +
             " sampling rows, and takes one flag for each");
    case Misuse::kAcceptedCount:
      refuse("accepted has " + std::to_string(accepted.size()) + " entries: " + name + " has " +
             rows + " sampling rows, and takes one count for each");
    case Misuse::kToken:
      refuse("tokens has a negative token id in " + row +
             ": flag the row 2 (poisoned) if it has none");
    case Misuse::kFlag:
      refuse("flags has a value above 2 for " + row + ": 0 go on, 1 finish, 2 poisoned");
    case Misuse::kAccepted:
      refuse("accepted is " + count + " for " + row +
             ": must be at least 1 and at most the samples that were planned for it");
    case Misuse::kNotDrafted:
      refuse("tokens has another token than was drafted in " + row +
             ": all accepted tokens but the last are those that the row was fed");
    default:
      refuse(name + " was refused");
  }
}

std::size_t count(std::int64_t value, const char* name, std::int64_t least) {
  if (value < least || value > 0x7fffffff) {
    refuse(std::string(name) + " is " + std::to_string(value) + ": must be at least " +
           std::to_string(least) + " and below 2^31");
  }
  return static_cast<std::size_t>(value);
}

// The request that is meant, 0 for none.
RequestId session(std::optional<RequestId> request, const char* name) {
  if (request == RequestId{0}) refuse(std::string(name) + " is 0: no request has this handle");
  return request.value_or(0);
}

Admission submit(Scheduler& self, RequestId request, const nb::object& tokens,
                 std::int64_t max_new_tokens, const nb::bytes& key, Goal goal,
                 std::int64_t fetch_pages, std::int32_t priority, Micros park_us,
                 std::optional<RequestId> resumes, std::optional<RequestId> fork_of,
                 std::optional<Micros> deadline, Micros) {
  const auto ids = int32_vector(tokens, "tokens");
  if (ids.empty()) refuse("tokens is empty: a request has at least one token");
  for (const Token id : ids) {
    if (id < 0) refuse("tokens has " + std::to_string(id) + ": token ids are not negative");
  }
  if (park_us < 0) refuse("park_us is " + std::to_string(park_us) + ": must not be negative");
  if (park_us > 0 && goal == Goal::kHandOver) {
    refuse("park_us is " + std::to_string(park_us) +
           ": a HAND_OVER request has no turn to park, its pages are held for hold_us");
  }
  if (deadline && *deadline < 1) {
    refuse("deadline_us is " + std::to_string(*deadline) + ": must be at least 1; None for none");
  }
  if (resumes && fork_of) {
    refuse("resumes and fork_of are both given: a request goes on with a session or shares it");
  }
  const Terms terms{.priority = priority,
                    .park_us = park_us,
                    .resumes = session(resumes, "resumes"),
                    .fork_of = session(fork_of, "fork_of"),
                    .deadline = deadline.value_or(0)};
  return self.submit({request, ids, count(max_new_tokens, "max_new_tokens", 1), sip_key(key), goal,
                      count(fetch_pages, "fetch_pages", 0), terms});
}

nb::object plan(nb::handle self, Micros now) {
  Scheduler& scheduler = nb::cast<Scheduler&>(self);
  if (!scheduler.can_plan()) {
    refuse(scheduler.config().overlap == 0
               ? "plan: a step is still in flight: complete or abandon it first"
               : "plan: as many steps are in flight as overlap allows, or one that can only be "
                 "abandoned: complete or abandon the oldest first");
  }
  return nb::cast(PyStep{scheduler.plan(now), nb::borrow(self)});
}

nb::object complete(nb::handle self, PyStep& step, const nb::object& tokens,
                    const nb::object& flags, Micros now, const nb::object& accepted) {
  const auto ids = int32_vector(tokens, "tokens");
  const auto row_flags = uint8_vector(flags, "flags");
  std::span<const std::int32_t> counts;
  if (!accepted.is_none()) counts = int32_vector(accepted, "accepted");
  auto outcome = nb::cast<Scheduler&>(self).complete(step.step, ids, row_flags, now, counts);
  if (const Refusal* refusal = std::get_if<Refusal>(&outcome)) {
    refuse(*refusal, step.step, ids.size(), row_flags.size(), counts);
  }
  return nb::cast(PyCompletion{*std::get_if<const Completion*>(&outcome), nb::borrow(self)});
}

void abandon(Scheduler& self, PyStep& step) {
  if (const auto misuse = self.abandon(step.step)) refuse({*misuse}, step.step, 0, 0, {});
}

std::size_t group_of(const Scheduler& scheduler, std::int64_t group) {
  if (group < 0 || static_cast<std::size_t>(group) >= scheduler.groups()) {
    refuse("group is " + std::to_string(group) + ": this scheduler has groups 0 to " +
           std::to_string(scheduler.groups() - 1));
  }
  return static_cast<std::size_t>(group);
}

PyLease grant(Scheduler& self, const nb::object& hashes, Micros now, Micros ttl,
              std::int64_t group) {
  if (ttl < 1) refuse("ttl_us is " + std::to_string(ttl) + ": must be at least 1");
  std::vector<std::int32_t> pages;
  const LeaseId id = self.grant(digests(hashes, "hashes"), now, ttl, pages, group_of(self, group));
  return {id, copy<std::int32_t, 1>(pages)};
}

nb::object page_hashes(const nb::object& tokens, std::int64_t page_size, const nb::bytes& key,
                       bool tail, std::int64_t group) {
  const auto ids = int32_vector(tokens, "tokens");
  const std::size_t size = count(page_size, "page_size", 1);
  const SipKey sip = sip_key(key);
  std::vector<Digest> identities;
  identities.reserve(pages_for(ids.size(), size));
  Digest parent = kRoot;
  std::size_t at = 0;
  for (; at + size <= ids.size(); at += size) {
    identities.push_back(parent = page_identity(sip, parent, ids.subspan(at, size)));
  }
  if (tail && at < ids.size()) identities.push_back(page_identity(sip, parent, ids.subspan(at)));
  for (Digest& identity : identities) identity = in_group(identity, count(group, "group", 0));
  return copy<std::uint8_t, sizeof(Digest)>(identities);
}

nb::object in_group_of(const nb::object& hashes, std::int64_t group) {
  const auto of = digests(hashes, "hashes");
  std::vector<Digest> identities(of.begin(), of.end());
  for (Digest& identity : identities) identity = in_group(identity, count(group, "group", 0));
  return copy<std::uint8_t, sizeof(Digest)>(identities);
}

// One read-only property per array of the plan.
template <class Scalar, std::size_t Columns, auto Member>
nb::object plan_view(PyStep& self) {
  return view<Scalar, Columns>(self.step.plan().*Member, self.home);
}
template <class Scalar, std::size_t Columns, auto Member>
nb::object completion_view(PyCompletion& self) {
  return view<Scalar, Columns>(self.completion->*Member, self.home);
}

// [R, S, 2]: S state groups.
nb::object state_pages(PyStep& self) {
  static const std::int32_t nothing[1] = {};
  const Plan& plan = self.step.plan();
  const std::size_t states = nb::cast<const Scheduler&>(self.home).config().state_groups();
  const auto* data = !plan.state_pages.empty() ? &plan.state_pages.front().read : nothing;
  return nb::ndarray<nb::numpy, const std::int32_t>(data, {plan.rows.size(), states, 2}, self.home)
      .cast();
}

void bind_step(nb::module_& m) {
  nb::class_<PyStep>(m, "Step")
      .def_prop_ro("rows", plan_view<std::int32_t, 6, &Plan::rows>)
      .def_prop_ro("requests", plan_view<std::uint64_t, 1, &Plan::requests>)
      .def_prop_ro("token_ids", plan_view<std::int32_t, 1, &Plan::token_ids>)
      .def_prop_ro("page_deltas", plan_view<std::int32_t, 3, &Plan::page_deltas>)
      .def_prop_ro("side_deltas", plan_view<std::int32_t, 4, &Plan::side_deltas>)
      .def_prop_ro("state_pages", state_pages)
      .def_prop_ro("slot_resets", plan_view<std::int32_t, 1, &Plan::slot_resets>)
      .def_prop_ro("copies", plan_view<std::int32_t, 2, &Plan::copies>)
      .def_prop_ro("side_copies", plan_view<std::int32_t, 3, &Plan::side_copies>)
      .def_prop_ro("fetch_requests", plan_view<std::uint64_t, 1, &Plan::fetch_requests>)
      .def_prop_ro("fetch_pages", plan_view<std::int32_t, 2, &Plan::fetch_pages>)
      .def_prop_ro("fetch_groups", plan_view<std::int32_t, 1, &Plan::fetch_groups>)
      .def_prop_ro("fetch_hashes", plan_view<std::uint8_t, 16, &Plan::fetch_hashes>)
      .def_prop_ro("restore_requests", plan_view<std::uint64_t, 1, &Plan::restore_requests>)
      .def_prop_ro("restore_pages", plan_view<std::int32_t, 3, &Plan::restore_pages>)
      .def_prop_ro("offloads", plan_view<std::uint64_t, 1, &Plan::offloads>)
      .def_prop_ro("offload_pages", plan_view<std::int32_t, 2, &Plan::offload_pages>)
      .def_prop_ro("admitted_requests", plan_view<std::uint64_t, 1, &Plan::admitted_requests>)
      .def_prop_ro("admitted", plan_view<std::int32_t, 2, &Plan::admitted>)
      .def_prop_ro("started_requests", plan_view<std::uint64_t, 1, &Plan::started_requests>)
      .def_prop_ro("finished_requests", plan_view<std::uint64_t, 1, &Plan::finished_requests>)
      .def_prop_ro("finished_reasons", plan_view<std::int32_t, 1, &Plan::finished_reasons>)
      .def_prop_ro("retracted", plan_view<std::uint64_t, 1, &Plan::retracted>)
      .def_prop_ro("expired_requests", plan_view<std::uint64_t, 1, &Plan::expired_requests>)
      .def_prop_ro("demoted_requests", plan_view<std::uint64_t, 1, &Plan::demoted_requests>)
      .def_prop_ro("evicted_hashes", plan_view<std::uint8_t, 16, &Plan::evicted_hashes>)
      .def_prop_ro("sequence", [](const PyStep& self) { return self.step.sequence(); });
  nb::class_<PyCompletion>(m, "Completion")
      .def_prop_ro("sealed_pages", completion_view<std::int32_t, 1, &Completion::sealed_pages>)
      .def_prop_ro("sealed_hashes", completion_view<std::uint8_t, 16, &Completion::sealed_hashes>)
      .def_prop_ro("sealed_requests",
                   completion_view<std::uint64_t, 1, &Completion::sealed_requests>)
      .def_prop_ro("sealed_indices", completion_view<std::int32_t, 1, &Completion::sealed_indices>)
      .def_prop_ro("sealed_groups", completion_view<std::int32_t, 1, &Completion::sealed_groups>)
      .def_prop_ro("finished_requests",
                   completion_view<std::uint64_t, 1, &Completion::finished_requests>)
      .def_prop_ro("finished_reasons",
                   completion_view<std::int32_t, 1, &Completion::finished_reasons>)
      .def_prop_ro("prefilled_requests",
                   completion_view<std::uint64_t, 1, &Completion::prefilled_requests>);
  nb::class_<PyLease>(m, "Lease")
      .def_prop_ro("id", [](const PyLease& self) { return self.id; })
      .def_prop_ro("pages", [](const PyLease& self) { return self.pages; });
}

}  // namespace

void bind_scheduler(nb::module_& m) {
  bind_step(m);
  nb::class_<Scheduler>(m, "Scheduler")
      .def(nb::init<const Config&>(), nb::arg("config"))
      .def("submit", submit, nb::arg("request"), nb::arg("tokens"), nb::kw_only(),
           nb::arg("max_new_tokens"), nb::arg("key"), nb::arg("goal"), nb::arg("fetch_pages") = 0,
           nb::arg("priority") = 0, nb::arg("park_us") = 0, nb::arg("resumes").none() = nb::none(),
           nb::arg("fork_of").none() = nb::none(), nb::arg("deadline_us").none() = nb::none(),
           nb::arg("now_us"))
      .def("cancel", &Scheduler::cancel, nb::arg("request"))
      .def("renew_park", &Scheduler::renew_park, nb::arg("request"), nb::arg("deadline_us"))
      .def(
          "draft",
          [](Scheduler& self, RequestId request, std::int64_t position, const nb::object& tokens) {
            const auto ids = int32_vector(tokens, "tokens");
            for (const Token id : ids) {
              if (id < 0) {
                refuse("tokens has " + std::to_string(id) + ": token ids are not negative");
              }
            }
            if (ids.size() > self.config().max_draft_tokens) {
              refuse("tokens has " + std::to_string(ids.size()) + " entries: max_draft_tokens is " +
                     std::to_string(self.config().max_draft_tokens));
            }
            return self.draft(request, count(position, "position", 1), ids);
          },
          nb::arg("request"), nb::arg("position"), nb::arg("tokens"))
      .def("plan", plan, nb::arg("now_us"))
      .def("complete", complete, nb::arg("step"), nb::arg("tokens"), nb::arg("flags"),
           nb::arg("now_us"), nb::kw_only(), nb::arg("accepted").none() = nb::none())
      .def("abandon", abandon, nb::arg("step"))
      .def(
          "pages_arrived",
          [](Scheduler& self, RequestId request, std::int64_t first_index, std::int64_t pages,
             std::int64_t group) {
            return self.pages_arrived(request, count(first_index, "first_index", 0),
                                      count(pages, "count", 0), group_of(self, group));
          },
          nb::arg("request"), nb::arg("first_index"), nb::arg("count"), nb::arg("group") = 0)
      .def(
          "fetch_ended",
          [](Scheduler& self, RequestId request, std::optional<Token> first_token, Micros now,
             bool finish) {
            if (first_token && *first_token < 0) {
              refuse("first_token is " + std::to_string(*first_token) +
                     ": token ids are not negative; None if there is none");
            }
            return self.fetch_ended(request, first_token, finish, now);
          },
          nb::arg("request"), nb::arg("first_token").none(), nb::arg("now_us"), nb::kw_only(),
          nb::arg("finish") = false)
      .def("offload_ended", &Scheduler::offload_ended, nb::arg("offload"), nb::arg("complete"))
      .def("host_stats", &Scheduler::host_stats)
      .def("grant", grant, nb::arg("hashes"), nb::arg("now_us"), nb::arg("ttl_us"),
           nb::arg("group") = 0)
      .def("renew", &Scheduler::renew, nb::arg("lease"), nb::arg("now_us"), nb::arg("ttl_us"))
      .def("release", &Scheduler::release, nb::arg("lease"), nb::arg("now_us"))
      .def("handed_over", &Scheduler::handed_over, nb::arg("request"))
      .def(
          "forget",
          [](Scheduler& self, const nb::object& hashes) {
            return self.forget(digests(hashes, "hashes"));
          },
          nb::arg("hashes"))
      .def(
          "lookup",
          [](const Scheduler& self, const nb::object& tokens, const nb::bytes& key) {
            return self.lookup(int32_vector(tokens, "tokens"), sip_key(key));
          },
          nb::arg("tokens"), nb::arg("key"))
      .def("stats", &Scheduler::stats)
      .def("held_hashes",
           [](const Scheduler& self) {
             return copy<std::uint8_t, sizeof(Digest)>(self.held_identities());
           })
      .def(
          "state",
          [](const Scheduler& self, RequestId request) -> nb::object {
            const std::string_view name = self.state_of(request);
            return name.empty() ? nb::object(nb::none()) : nb::str(name.data(), name.size());
          },
          nb::arg("request"))
      .def(
          "pages",
          [](const Scheduler& self, RequestId request, std::int64_t group) {
            return copy<std::int32_t, 1>(self.pages_of(request, group_of(self, group)));
          },
          nb::arg("request"), nb::arg("group") = 0)
      .def(
          "free_pages",
          [](const Scheduler& self, std::int64_t group) {
            const std::vector<PageId>& free = self.free_pages(group_of(self, group));
            std::vector<std::int32_t> ids;
            ids.reserve(free.size());
            for (const PageId page : free) ids.push_back(raw(page));
            return copy<std::int32_t, 1>(ids);
          },
          nb::arg("group") = 0)
      .def(
          "pool_stats",
          [](const Scheduler& self, std::int64_t group) {
            return self.pool_stats(group_of(self, group));
          },
          nb::arg("group"))
      .def("check_invariants", &Scheduler::check_invariants);
  m.def("page_hashes", page_hashes, nb::arg("tokens"), nb::arg("page_size"), nb::arg("key"),
        nb::kw_only(), nb::arg("tail") = false, nb::arg("group") = 0);
  m.def("in_group", in_group_of, nb::arg("hashes"), nb::arg("group"));
}

}  // namespace baton::binding
