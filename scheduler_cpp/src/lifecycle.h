// The scheduler's only ways to change a record's state, shared by its source files.
#pragma once

#include <utility>

#include "baton/scheduler.h"

namespace baton {

template <class Next>
void Scheduler::become(Record& record, Next&& next) {
  --population_[record.state.index()];
  record.state = std::forward<Next>(next);
  ++population_[record.state.index()];
}

template <class S>
void Scheduler::stop(Record& record, FinishReason reason, std::vector<RequestId>& requests,
                     std::vector<std::int32_t>& reasons) {
  requests.push_back(record.id);
  reasons.push_back(static_cast<std::int32_t>(reason));
  running_.remove(record);
  become(record, std::move(record.as<S>()).on(Stopped{reason}));
  settle(record);
}

// What ends a park.
template <class Event>
void Scheduler::unpark(Record& record, Event&& event) {
  Parked& parked = record.as<Parked>();
  parked_.erase({parked.deadline(), record.id});
  become(record, std::move(parked).on(std::forward<Event>(event)));
  drop(record);
}

template <class S>
void Scheduler::retract(Record& record) {
  next_.retracted.push_back(record.id);
  ++retractions_;
  become(record, std::move(record.as<S>()).on(Retract{*record.idle()}));
  retracted_.insert_by_rank(record);
}

}  // namespace baton
