// The executor's part in the groups beside full attention: windows of pages, and states.
#include <algorithm>
#include <map>

#include "world.h"

namespace baton::world {

void World::take_side_plan(const Plan& plan) {
  for (const SideDelta& delta : plan.side_deltas) {
    auto& table =
        tables_[static_cast<std::size_t>(delta.group)][static_cast<std::size_t>(delta.slot)];
    const auto index = static_cast<std::size_t>(delta.page_index);
    if (table.size() <= index) table.resize(index + 1, -1);
    table[index] = delta.page;
  }
  for (const SideCopy& copy : plan.side_copies) {
    const auto group = static_cast<std::size_t>(copy.group);
    content(group, copy.target) = content(group, copy.source);
  }
  if (plan.state_pages.size() != plan.rows.size() * setup_.config.state_groups()) {
    fail("rows and states differ in length");
  }
}

namespace {

// f(group, row index) for each page that the rows of `plan` write: f(group, row, page).
template <class Page, class F>
void for_each_written(const Config& config, const Plan& plan, Page&& page_at, F&& f) {
  std::size_t state = 0;
  for (std::size_t group = 1; group <= config.side_groups.size(); ++group) {
    const SideGroup& side = config.side_groups[group - 1];
    for (std::size_t i = 0; i < plan.rows.size(); ++i) {
      const Row& row = plan.rows[i];
      if (side.keeps == Retention::kState) {
        const std::size_t states = plan.state_pages.size() / plan.rows.size();
        f(group, i, plan.state_pages[i * states + state].write);
        continue;
      }
      const auto from = static_cast<std::size_t>(row.context_tokens);
      const auto to = from + static_cast<std::size_t>(row.query_tokens) - 1;
      for (std::size_t p = from / config.page_size; p <= to / config.page_size; ++p) {
        f(group, i, page_at(group, row, p * config.page_size));
      }
    }
    state += side.keeps == Retention::kState;
  }
}

}  // namespace

// A page that a row writes has one holder, no lease, and no other row that reads it.
void World::check_side_writers() {
  const Plan& plan = running();
  const auto at = [this](std::size_t group, const Row& row, std::size_t position) {
    return page_at(group, row, position);
  };
  for_each_written(setup_.config, plan, at,
                   [&](std::size_t group, std::size_t i, std::int32_t page) {
                     if (page < 0)
                       return fail("a row writes where it has no page beside full attention");
                     if (remote_writer(group, page) >= 0)
                       fail("a row writes a side page that a fetch may still write");
                     int holders = 0;
                     for (std::size_t a = 0; a < requests_.size(); ++a) {
                       for (const std::int32_t held : scheduler_.pages_of(a + 1, group))
                         holders += held == page;
                     }
                     if (holders != 1)
                       fail("a row writes a side page of " + std::to_string(holders) + " holders");
                     for (const LeaseSeen& lease : leases_) {
                       if (lease.group == group && lease.deadline >= now_ &&
                           std::count(lease.pages.begin(), lease.pages.end(), page)) {
                         fail("a row writes a leased side page");
                       }
                     }
                     if (side(group).keeps != Retention::kState) return;
                     const std::size_t states = plan.state_pages.size() / plan.rows.size();
                     std::size_t state = 0;
                     for (std::size_t g = 1; g < group; ++g)
                       state += side(g).keeps == Retention::kState;
                     for (std::size_t other = 0; other < plan.rows.size(); ++other) {
                       if (other != i && plan.state_pages[other * states + state].read == page) {
                         fail("a row reads the state that another row writes");
                       }
                     }
                   });
}

// A row reads, in every group, only what was written for exactly its tokens.
void World::check_side_reads(const char* when) {
  const Plan& plan = running();
  std::size_t state = 0;
  for (std::size_t group = 1; group < scheduler_.groups(); ++group) {
    const bool is_state = side(group).keeps == Retention::kState;
    for (std::size_t i = 0; i < plan.rows.size(); ++i) {
      const Row& row = plan.rows[i];
      const Request& request = requests_[static_cast<std::size_t>(script_of(plan.requests[i]))];
      const auto context = static_cast<std::size_t>(row.context_tokens);
      if (is_state) {
        const std::size_t states = plan.state_pages.size() / plan.rows.size();
        const std::int32_t read = plan.state_pages[i * states + state].read;
        if ((read < 0) != (context == 0)) fail("a row starts from no state, or has one too many");
        if (read >= 0 && content(group, read)[0] != request.tags[context - 1]) {
          fail(std::string("a row reads a state that is not its tokens', when ") + when);
        }
        continue;
      }
      const std::size_t window = side(group).tokens;
      for (std::size_t p = context + 1 > window ? context + 1 - window : 0; p < context; ++p) {
        const std::int32_t page = page_at(group, row, p);
        if (page < 0 || content(group, page)[p % setup_.config.page_size] != request.tags[p]) {
          fail(std::string("a row's window holds what was never written, when ") + when);
        }
      }
    }
    state += is_state;
  }
}

// The step ran; or it did not, and may have left anything in the pages it was given to write.
void World::write_sides(bool happened) {
  const Plan& plan = running();
  const auto at = [this](std::size_t group, const Row& row, std::size_t position) {
    return page_at(group, row, position);
  };
  for_each_written(
      setup_.config, plan, at, [&](std::size_t group, std::size_t i, std::int32_t page) {
        const Row& row = plan.rows[i];
        const Request& request = requests_[static_cast<std::size_t>(script_of(plan.requests[i]))];
        const auto from = static_cast<std::size_t>(row.context_tokens);
        const auto to = from + static_cast<std::size_t>(row.query_tokens);
        if (side(group).keeps == Retention::kState) {
          content(group, page)[0] = happened ? request.tags[to - 1] : kGarbage;
          return;
        }
        for (std::size_t p = from; p < to; ++p) {
          if (page_at(group, row, p) != page) continue;
          content(group, page)[p % setup_.config.page_size] = happened ? request.tags[p] : kGarbage;
        }
      });
}

void World::check_side_seal(const Completion& completion, std::size_t entry) {
  const auto group = static_cast<std::size_t>(completion.sealed_groups[entry]);
  const int a = script_of(completion.sealed_requests[entry]);
  const Request& request = requests_[static_cast<std::size_t>(a)];
  const auto& sealed = content(group, completion.sealed_pages[entry]);
  const std::size_t page_size = setup_.config.page_size;
  const auto first = static_cast<std::size_t>(completion.sealed_indices[entry]) * page_size;
  if (side(group).keeps == Retention::kState) {
    const bool handed = scheduler_.state_of(static_cast<RequestId>(a + 1)) == "Prefilled";
    const std::size_t end =
        handed ? std::min(first + page_size, request.prompt) : first + page_size;
    if (sealed[0] != request.tags[end - 1]) fail("a snapshot is not its tokens'");
    return;
  }
  for (std::size_t p = first; p < first + page_size && p + 1 < request.tokens.size(); ++p) {
    if (sealed[p - first] != request.tags[p]) return fail("a side page was sealed unwritten");
  }
}

}  // namespace baton::world
