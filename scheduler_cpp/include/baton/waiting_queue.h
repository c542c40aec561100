// New requests and whose turn it is: higher priority first; within a priority, tenants share by
// the tokens they were admitted with (start-time fair queueing: Goyal, Vin, Cheng 1996); within a
// tenant, first come, first served. A tenant is a hash key: the one that keeps its pages apart.
//
// A tenant that was idle starts at the present, so it neither saves up nor pays twice; one that was
// just served and comes back with its next request stands behind what it has had.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "baton/ids.h"
#include "baton/prefix_hash.h"
#include "baton/record.h"

namespace baton {

class WaitingQueue {
 public:
  std::size_t size() const { return size_; }

  Record* front() const {
    return turns_.empty() ? nullptr : std::get<Tenant*>(*turns_.begin())->requests.front();
  }

  void push(Record& record, SipKey key) {
    const Id id{-record.terms.priority, key.k0, key.k1};
    const auto [found, fresh] = tenants_.try_emplace(id);
    Tenant& tenant = found->second;
    if (fresh) tenant.number = record.arrival;
    if (tenant.requests.size() == 0) {
      idle_.erase({tenant.served, id});
      tenant.served = std::max(tenant.served, present_[-record.terms.priority]);
      turns_.insert(turn(id, tenant));
    }
    tenant.requests.push_back(record);
    ++size_;
  }

  // It leaves unserved.
  void remove(Record& record, SipKey key) { take(record, key, 0); }

  // It is admitted, with so many tokens.
  void serve(Record& record, SipKey key, std::size_t tokens) {
    const Id id{-record.terms.priority, key.k0, key.k1};
    std::uint64_t& present = present_[-record.terms.priority];
    present = std::max(present, tenants_.at(id).served);
    take(record, key, tokens);
    // Nobody needs to be remembered who has had no more than the present.
    while (!idle_.empty()) {
      const auto& [served, idle_id] = *idle_.begin();
      if (served > present_[std::get<0>(idle_id)]) break;
      tenants_.erase(idle_id);
      idle_.erase(idle_.begin());
    }
  }

 private:
  using Id = std::tuple<std::int64_t, std::uint64_t, std::uint64_t>;  // -priority, key
  struct Tenant {
    RecordList requests;
    std::uint64_t served = 0;  // tokens, in virtual time
    std::uint64_t number = 0;  // breaks ties, the same way every time
  };
  using Turn = std::tuple<std::int64_t, std::uint64_t, std::uint64_t, Tenant*>;

  static Turn turn(const Id& id, Tenant& tenant) {
    return {std::get<0>(id), tenant.served, tenant.number, &tenant};
  }

  void take(Record& record, SipKey key, std::size_t tokens) {
    const Id id{-record.terms.priority, key.k0, key.k1};
    Tenant& tenant = tenants_.at(id);
    turns_.erase(turn(id, tenant));
    tenant.requests.remove(record);
    tenant.served += tokens;
    --size_;
    if (tenant.requests.size() > 0) {
      turns_.insert(turn(id, tenant));
    } else {
      idle_.insert({tenant.served, id});
    }
  }

  std::map<Id, Tenant> tenants_;
  std::set<Turn> turns_;                           // tenants with requests, the next one first
  std::set<std::pair<std::uint64_t, Id>> idle_;    // tenants without, remembered for a while
  std::map<std::int64_t, std::uint64_t> present_;  // virtual time, by -priority
  std::size_t size_ = 0;
};

}  // namespace baton
