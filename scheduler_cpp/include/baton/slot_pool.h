// Rows of the executor's page table, handed out one owner at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "baton/ids.h"

namespace baton {

class SlotPool;

class [[nodiscard]] Slot {
 public:
  Slot(Slot&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}
  Slot& operator=(Slot&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(id_, other.id_);
    return *this;
  }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;
  inline ~Slot();

  SlotId id() const { return id_; }

 private:
  friend class SlotPool;
  Slot(SlotPool& pool, SlotId id) : pool_(&pool), id_(id) {}

  SlotPool* pool_;
  SlotId id_;
};

class SlotPool {
 public:
  // `resets` is told every slot that comes back: its row in the executor's table is void.
  SlotPool(std::size_t slots, std::vector<std::int32_t>& resets) : resets_(&resets), total_(slots) {
    free_.reserve(slots);
    for (std::size_t i = slots; i-- > 0;) free_.push_back(static_cast<SlotId>(i));
  }
  SlotPool(const SlotPool&) = delete;
  SlotPool& operator=(const SlotPool&) = delete;

  [[nodiscard]] std::optional<Slot> take() {
    if (free_.empty()) return std::nullopt;
    const SlotId id = free_.back();
    free_.pop_back();
    return Slot(*this, id);
  }

  bool empty() const { return free_.empty(); }
  std::size_t free() const { return free_.size(); }
  std::size_t total() const { return total_; }

 private:
  friend class Slot;
  void give_back(SlotId id) {
    free_.push_back(id);
    resets_->push_back(raw(id));
  }

  std::vector<SlotId> free_;
  std::vector<std::int32_t>* resets_;
  std::size_t total_;
};

inline Slot::~Slot() {
  if (pool_) pool_->give_back(id_);
}

}  // namespace baton
