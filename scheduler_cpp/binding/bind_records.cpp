// Enums and plain records.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <utility>
#include <vector>

#include "baton/scheduler.h"
#include "bindings.h"

namespace baton::binding {
namespace {

nb::str text(std::string_view name) {
  return nb::str(name.data(), name.size());
}

std::size_t count(std::int64_t value) {
  return static_cast<std::size_t>(value < 0 ? 0 : value);  // problem() refuses 0
}

// The constexpr table, cell by cell: (state, event, reply, state it leads to or None).
nb::list transitions() {
  nb::list cells;
  for (std::size_t s = 0; s < kStateNames.size(); ++s) {
    for (std::size_t e = 0; e < kEventNames.size(); ++e) {
      const std::size_t target = kTargets[s][e];
      nb::object leads_to = nb::none();
      if (target < kStateNames.size()) leads_to = text(kStateNames[target]);
      cells.append(
          nb::make_tuple(text(kStateNames[s]), text(kEventNames[e]), kTable.at(s, e), leads_to));
    }
  }
  return cells;
}

}  // namespace

void bind_records(nb::module_& m) {
  nb::enum_<Role>(m, "Role")
      .value("PREFILL", Role::kPrefill)
      .value("DECODE", Role::kDecode)
      .value("FUSED", Role::kFused);
  nb::enum_<Goal>(m, "Goal")
      .value("GENERATE", Goal::kGenerate)
      .value("HAND_OVER", Goal::kHandOver)
      .value("AWAIT", Goal::kAwait);
  nb::enum_<Admission>(m, "Admission")
      .value("ACCEPTED", Admission::kAccepted)
      .value("DUPLICATE", Admission::kDuplicate)
      .value("QUEUE_FULL", Admission::kQueueFull)
      .value("TOO_LONG", Admission::kTooLong)
      .value("NEVER_FITS", Admission::kNeverFits)
      .value("FOREIGN", Admission::kForeign);
  nb::enum_<Verdict>(m, "Verdict")
      .value("VALID", Verdict::kValid)
      .value("EXPIRED", Verdict::kExpired);
  nb::enum_<Reply>(m, "Reply")
      .value("ACCEPTED", Reply::kAccepted)
      .value("IGNORED", Reply::kIgnored)
      .value("REJECTED", Reply::kRejected);
  nb::enum_<FinishReason>(m, "FinishReason", nb::is_arithmetic())
      .value("LENGTH", FinishReason::kLength)
      .value("FLAG", FinishReason::kFlag)
      .value("POISONED", FinishReason::kPoisoned)
      .value("DEADLINE", FinishReason::kDeadline);
  nb::enum_<RowKind>(m, "RowKind", nb::is_arithmetic())
      .value("PREFILL", RowKind::kPrefill)
      .value("DECODE", RowKind::kDecode);

  nb::enum_<Retention>(m, "Retention")
      .value("WINDOW", Retention::kWindow)
      .value("STATE", Retention::kState);
  nb::class_<SideGroup>(m, "CacheGroup")
      .def_static(
          "window",
          [](std::int64_t tokens, std::int64_t pages) {
            return SideGroup{Retention::kWindow, count(tokens), count(pages)};
          },
          nb::arg("tokens"), nb::kw_only(), nb::arg("pages"))
      .def_static(
          "state",
          [](std::int64_t every, std::int64_t pages) {
            return SideGroup{Retention::kState, count(every), count(pages)};
          },
          nb::kw_only(), nb::arg("every"), nb::arg("pages"))
      .def_ro("keeps", &SideGroup::keeps)
      .def_ro("tokens", &SideGroup::tokens)
      .def_ro("pages", &SideGroup::pages);

  m.def("transitions", transitions);

  nb::class_<Config>(m, "Config")
      .def(
          "__init__",
          [](Config* self, Role role, std::int64_t page_size, std::int64_t num_pages,
             std::int64_t max_running, std::int64_t max_step_tokens, std::int64_t max_chunk_tokens,
             std::int64_t max_context, std::int64_t max_waiting, std::int64_t hold_us,
             std::int64_t max_draft_tokens, std::int64_t overlap,
             std::vector<SideGroup> side_groups, std::int64_t host_pages) {
            Config config{role,
                          count(page_size),
                          count(num_pages),
                          count(max_running),
                          count(max_step_tokens),
                          count(max_chunk_tokens),
                          count(max_context),
                          count(max_waiting),
                          hold_us,
                          count(max_draft_tokens),
                          count(overlap),
                          std::move(side_groups),
                          count(host_pages)};
            const std::string problem = config.problem();
            if (!problem.empty()) throw nb::value_error(problem.c_str());
            new (self) Config(config);
          },
          nb::kw_only(), nb::arg("role"), nb::arg("page_size"), nb::arg("num_pages"),
          nb::arg("max_running"), nb::arg("max_step_tokens"), nb::arg("max_chunk_tokens"),
          nb::arg("max_context"), nb::arg("max_waiting"), nb::arg("hold_us"),
          nb::arg("max_draft_tokens") = 0, nb::arg("overlap") = 0,
          nb::arg("side_groups") = std::vector<SideGroup>(), nb::arg("host_pages") = 0)
      .def_ro("role", &Config::role)
      .def_ro("page_size", &Config::page_size)
      .def_ro("num_pages", &Config::num_pages)
      .def_ro("max_running", &Config::max_running)
      .def_ro("max_step_tokens", &Config::max_step_tokens)
      .def_ro("max_chunk_tokens", &Config::max_chunk_tokens)
      .def_ro("max_context", &Config::max_context)
      .def_ro("max_waiting", &Config::max_waiting)
      .def_ro("hold_us", &Config::hold_us)
      .def_ro("max_draft_tokens", &Config::max_draft_tokens)
      .def_ro("overlap", &Config::overlap)
      .def_ro("side_groups", &Config::side_groups)
      .def_ro("host_pages", &Config::host_pages);

  nb::class_<PoolStats>(m, "PoolStats")
      .def_ro("total", &PoolStats::total)
      .def_ro("free", &PoolStats::free)
      .def_ro("cached", &PoolStats::cached)
      .def_ro("owned", &PoolStats::owned)
      .def_ro("referenced", &PoolStats::referenced)
      .def_ro("leased", &PoolStats::leased);

  nb::class_<Stats>(m, "Stats")
      .def_ro("total_pages", &Stats::total_pages)
      .def_ro("free_pages", &Stats::free_pages)
      .def_ro("cached_pages", &Stats::cached_pages)
      .def_ro("owned_pages", &Stats::owned_pages)
      .def_ro("referenced_pages", &Stats::referenced_pages)
      .def_ro("leased_pages", &Stats::leased_pages)
      .def_ro("quarantined_pages", &Stats::quarantined_pages)
      .def_ro("waiting", &Stats::waiting)
      .def_ro("running", &Stats::running)
      .def_ro("fetching", &Stats::fetching)
      .def_ro("prefilled", &Stats::prefilled)
      .def_ro("parked", &Stats::parked)
      .def_ro("draining", &Stats::draining)
      .def_ro("leases", &Stats::leases)
      .def_ro("offloading", &Stats::offloading)
      .def_ro("computed_tokens", &Stats::computed_tokens)
      .def_ro("generated_tokens", &Stats::generated_tokens)
      .def_ro("reused_tokens", &Stats::reused_tokens)
      .def_ro("restored_tokens", &Stats::restored_tokens)
      .def_ro("fetched_tokens", &Stats::fetched_tokens)
      .def_ro("retractions", &Stats::retractions)
      .def_ro("demotions", &Stats::demotions);
}

}  // namespace baton::binding
