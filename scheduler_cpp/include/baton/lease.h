// Promises to remote readers: the leased pages do not change before the deadline or the release.
// Whether that held is said at release, never before.
#pragma once

#include <algorithm>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "baton/ids.h"
#include "baton/page_pool.h"

namespace baton {

enum class Verdict : std::uint8_t { kValid, kExpired };

class LeaseTable {
 public:
  // `pages` must not be empty.
  LeaseId grant(std::vector<LeasedPage> pages, Micros deadline) {
    const LeaseId id = ++last_;
    leases_.emplace(id, Lease{std::move(pages), deadline});
    push({deadline, id});
    return id;
  }

  bool renew(LeaseId id, Micros now, Micros deadline) {
    expire(now);
    const auto found = leases_.find(id);
    if (found == leases_.end()) return false;
    found->second.deadline = std::max(found->second.deadline, deadline);
    return true;
  }

  Verdict release(LeaseId id, Micros now) {
    expire(now);
    return leases_.erase(id) ? Verdict::kValid : Verdict::kExpired;
  }

  // Drops every lease whose deadline has passed; costs only those.
  void expire(Micros now) {
    while (!timers_.empty() && timers_.front().deadline < now) {
      std::pop_heap(timers_.begin(), timers_.end(), later);
      const Timer timer = timers_.back();
      timers_.pop_back();
      const auto found = leases_.find(timer.id);
      if (found == leases_.end()) continue;
      if (found->second.deadline < now) {
        leases_.erase(found);
      } else {
        push({found->second.deadline, timer.id});  // renewed since: one timer a lease
      }
    }
  }

  std::size_t size() const { return leases_.size(); }

  // f(lease, deadline), oldest lease first.
  template <class F>
  void for_each(F&& f) const {
    std::vector<LeaseId> ids;
    for (const auto& [id, lease] : leases_) ids.push_back(id);
    std::sort(ids.begin(), ids.end());
    for (const LeaseId id : ids) f(leases_.at(id).pages, leases_.at(id).deadline);
  }

  template <class F>
  void for_each_page(F&& f) const {
    for (const auto& [id, lease] : leases_) {
      for (const LeasedPage& page : lease.pages) f(page.group(), page.id());
    }
  }

 private:
  struct Lease {
    std::vector<LeasedPage> pages;
    Micros deadline;
  };
  struct Timer {
    Micros deadline;
    LeaseId id;
  };

  static bool later(const Timer& a, const Timer& b) {
    return std::pair(a.deadline, a.id) > std::pair(b.deadline, b.id);
  }
  void push(Timer timer) {
    timers_.push_back(timer);
    std::push_heap(timers_.begin(), timers_.end(), later);
  }

  std::unordered_map<LeaseId, Lease> leases_;
  std::vector<Timer> timers_;  // a heap; one entry a lease, checked against the lease when due
  LeaseId last_ = 0;
};

}  // namespace baton
