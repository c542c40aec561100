// Movements: fetches and restores into target pages, copies to the host tier.
#include <algorithm>

#include "world.h"

namespace baton::world {

void World::take_movements(const Plan& plan) {
  const auto fill = [this](int a, const Fetch::Target& target) {
    int& writer = remote_writer(target.group, target.page);
    Fetch& fetch = fetches_[a];
    fetch.beside.resize(scheduler_.groups() - 1);
    if (writer >= 0 && (target.group == 0 || writer != a)) {
      fail("a fetch targets a page that another fetch may still write");
    }
    writer = a;
    auto& blank = content(target.group, target.page);
    std::fill(blank.begin(), blank.end(), kGarbage);
    if (target.group > 0) {
      fetch.beside[target.group - 1].push_back(target);
      return;
    }
    for (const Offload& offload : offloads_) {
      if (offload.pages.page == target.page) fail("a fetch targets a page that is being copied");
      if (offload.pages.host_page == target.host) fail("a restore reads what is being written");
    }
    fetch.pages.push_back(target);
  };
  for (std::size_t i = 0; i < plan.restore_requests.size(); ++i) {
    const RestorePage& page = plan.restore_pages[i];
    fill(script_of(plan.restore_requests[i]), {page.page_index, page.page, page.host_page});
  }
  for (std::size_t i = 0; i < plan.fetch_requests.size(); ++i) {
    const FetchPage& page = plan.fetch_pages[i];
    fill(script_of(plan.fetch_requests[i]),
         {page.page_index, page.page, -1, static_cast<std::size_t>(plan.fetch_groups[i])});
  }
  for (std::size_t i = 0; i < plan.offloads.size(); ++i) {
    const OffloadPage pages = plan.offload_pages[i];
    for (const auto& [a, fetch] : fetches_) {
      for (const Fetch::Target& target : fetch.pages) {
        if (target.host == pages.host_page) fail("a copy goes to a page that is being restored");
      }
    }
    auto& host = host_contents_[static_cast<std::size_t>(pages.host_page)];
    std::fill(host.begin(), host.end(), kGarbage);
    offloads_.push_back({plan.offloads[i], pages, content(0, pages.page)});
  }
}

void World::do_offload_end(std::size_t index, bool done) {
  const Offload offload = std::move(offloads_[index]);
  offloads_.erase(offloads_.begin() + static_cast<std::ptrdiff_t>(index));
  // The executor may have read the page at any time until now.
  if (content(0, offload.pages.page) != offload.content) fail("a page changed while being copied");
  if (done) host_contents_[static_cast<std::size_t>(offload.pages.host_page)] = offload.content;
  if (scheduler_.offload_ended(offload.id, done) != Reply::kAccepted) {
    fail("the end of a copy was not accepted");
  }
  if (scheduler_.offload_ended(offload.id, done) != Reply::kIgnored) {
    fail("the end of a copy was accepted twice");
  }
}

}  // namespace baton::world
