// A step in flight. The token is move-only and only `Scheduler::complete` or `abandon` takes it
// back; until then the claims of its rows keep slots and pages from being freed. How many steps
// may be in flight is a bound in the type of the queue.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "baton/plan.h"
#include "baton/record.h"

namespace baton {

class Scheduler;

class [[nodiscard]] Step {
 public:
  Step(Step&& other) noexcept
      : home_(std::exchange(other.home_, nullptr)),
        plan_(other.plan_),
        sequence_(other.sequence_) {}
  Step& operator=(Step&& other) noexcept {
    home_ = std::exchange(other.home_, nullptr);
    plan_ = other.plan_;
    sequence_ = other.sequence_;
    return *this;
  }
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;
  ~Step() = default;

  const Plan& plan() const { return *plan_; }
  std::uint64_t sequence() const { return sequence_; }
  // Completed, abandoned or moved from.
  bool spent() const { return home_ == nullptr; }

 private:
  friend class Scheduler;
  Step(Scheduler& home, const Plan& plan, std::uint64_t sequence)
      : home_(&home), plan_(&plan), sequence_(sequence) {}

  Scheduler* home_;
  const Plan* plan_;
  std::uint64_t sequence_;
};

// Claims of the steps in flight, oldest first.
template <std::size_t Depth>
class StepQueue {
 public:
  struct Flight {
    std::uint64_t sequence = 0;
    std::vector<RowClaim> rows;
    // Pages that its copies read, and requests that own such pages.
    std::vector<SealedPage> pins;
    std::vector<RowClaim> sources;
  };

  void reserve(std::size_t rows) {
    for (Flight& flight : flights_) flight.rows.reserve(rows);
  }
  bool full() const { return size_ == Depth; }
  bool empty() const { return size_ == 0; }
  Flight& spare() { return flights_[(first_ + size_) % Depth]; }
  void launch(std::uint64_t sequence) {
    spare().sequence = sequence;
    ++size_;
  }
  Flight& oldest() { return flights_[first_]; }
  const Flight& oldest() const { return flights_[first_]; }
  void land() {
    oldest().rows.clear();
    oldest().pins.clear();
    oldest().sources.clear();
    first_ = (first_ + 1) % Depth;
    --size_;
  }

 private:
  std::array<Flight, Depth> flights_;
  std::size_t first_ = 0;
  std::size_t size_ = 0;
};

}  // namespace baton
