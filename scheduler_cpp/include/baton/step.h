// A step in flight. The token is move-only and only `Scheduler::complete` or `abandon` takes it
// back; until then the claims of its rows keep slots and pages from being freed. How many steps
// may be in flight is a bound in the type of the queue.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <utility>
#include <variant>
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

// A step that was planned: what the executor reads, and what keeps that from changing.
struct Flight {
  std::uint64_t sequence = 0;
  Plan plan;
  std::vector<RowClaim> rows;
  // The decode rows, by number, that feed the last token of a page.
  std::vector<std::uint32_t> filling;
  // Pages that its copies read, and requests that own such pages.
  std::vector<SealedPage> pins;
  std::vector<RowClaim> sources;
  // A step before it did not happen, so this one can only be abandoned.
  bool is_void = false;
};

// The steps in flight, oldest first: at most Depth.
template <std::size_t Depth>
class StepQueue {
 public:
  static constexpr std::size_t kDepth = Depth;

  std::size_t size() const { return size_; }
  Flight& at(std::size_t index) { return flights_[(first_ + index) % Depth]; }
  const Flight& at(std::size_t index) const { return flights_[(first_ + index) % Depth]; }
  // Where the next step is planned. There must be room.
  Flight& spare() { return at(size_); }
  void launch() { ++size_; }
  void land() {
    Flight& flight = at(0);
    flight.rows.clear();
    flight.filling.clear();
    flight.pins.clear();
    flight.sources.clear();
    flight.is_void = false;
    first_ = (first_ + 1) % Depth;
    --size_;
  }
  std::span<Flight> all() { return flights_; }

 private:
  std::array<Flight, Depth> flights_;
  std::size_t first_ = 0;
  std::size_t size_ = 0;
};

// The queue whose depth the config asks for: a step is completed before the next is planned
// (overlap 0), or one more may be planned before (overlap 1).
class StepsInFlight {
 public:
  explicit StepsInFlight(std::size_t overlap) {
    if (overlap > 0) queue_.emplace<StepQueue<2>>();
  }

  bool empty() const { return size() == 0; }
  bool full() const {
    return std::visit([](const auto& queue) { return queue.size() == queue.kDepth; }, queue_);
  }
  std::size_t size() const {
    return std::visit([](const auto& queue) { return queue.size(); }, queue_);
  }
  Flight& at(std::size_t index) {
    return std::visit([index](auto& queue) -> Flight& { return queue.at(index); }, queue_);
  }
  const Flight& at(std::size_t index) const {
    return std::visit([index](const auto& queue) -> const Flight& { return queue.at(index); },
                      queue_);
  }
  Flight& oldest() { return at(0); }
  const Flight& oldest() const { return at(0); }
  Flight& spare() {
    return std::visit([](auto& queue) -> Flight& { return queue.spare(); }, queue_);
  }
  std::span<Flight> all() {
    return std::visit([](auto& queue) { return queue.all(); }, queue_);
  }
  void launch() {
    std::visit([](auto& queue) { queue.launch(); }, queue_);
  }
  void land() {
    std::visit([](auto& queue) { queue.land(); }, queue_);
  }

 private:
  std::variant<StepQueue<1>, StepQueue<2>> queue_;
};

}  // namespace baton
