// Objects side by side in large chunks, so that walking all requests of a step stays within few
// memory pages, however much each of them has allocated elsewhere.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace baton {

template <class T>
class Slab {
 public:
  Slab() = default;
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;

  // Gives the object's place back to its slab.
  struct Return {
    Slab* slab = nullptr;
    void operator()(T* object) const noexcept {
      object->~T();
      slab->free_.push_back(reinterpret_cast<Place*>(object));
    }
  };
  using Ptr = std::unique_ptr<T, Return>;

  // Every pointer must be gone before the slab is.
  template <class... Args>
  [[nodiscard]] Ptr make(Args&&... args) {
    if (free_.empty()) add_chunk();
    Place* place = free_.back();
    free_.pop_back();
    return Ptr(new (place) T(std::forward<Args>(args)...), Return{this});
  }

 private:
  struct alignas(alignof(T) > 64 ? alignof(T) : 64) Place {
    std::byte bytes[sizeof(T)];
  };

  // Each chunk doubles what there is, within bounds.
  void add_chunk() {
    const std::size_t places = places_ < 8 ? 8 : places_ > 256 ? 256 : places_;
    places_ += places;
    chunks_.push_back(std::make_unique_for_overwrite<Place[]>(places));
    free_.reserve(places_);
    for (std::size_t i = places; i-- > 0;) free_.push_back(&chunks_.back()[i]);
  }

  std::vector<std::unique_ptr<Place[]>> chunks_;
  std::vector<Place*> free_;
  std::size_t places_ = 0;
};

}  // namespace baton
