// Memory for arrays that are large and read at random, such as the index of all pages. In memory
// pages of 4 KiB each read also waits for the address to be translated, longer than for the data;
// so the system is asked for large ones. It may refuse: then reads are slower, and nothing else.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>

namespace baton {

template <class T>
struct LargePages {
  using value_type = T;

  LargePages() = default;
  template <class U>
  LargePages(const LargePages<U>&) {}

  [[nodiscard]] T* allocate(std::size_t count) {
    if (!is_large(count)) return static_cast<T*>(::operator new(count * sizeof(T)));
    const std::size_t bytes = (count * sizeof(T) + kPage - 1) / kPage * kPage;
    void* const memory = ::operator new(bytes, std::align_val_t{kPage});
#ifdef MADV_HUGEPAGE
    (void)madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return static_cast<T*>(memory);
  }

  void deallocate(T* memory, std::size_t count) noexcept {
    if (is_large(count)) {
      ::operator delete(memory, std::align_val_t{kPage});
    } else {
      ::operator delete(memory);
    }
  }

  bool operator==(const LargePages&) const = default;

 private:
  static constexpr std::size_t kPage = std::size_t{2} << 20;
  static bool is_large(std::size_t count) { return count * sizeof(T) >= kPage; }
};

}  // namespace baton
