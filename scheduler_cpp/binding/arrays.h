// Between numpy and the core: checked views in, uncopied views out.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <span>
#include <vector>

#include "baton/ids.h"
#include "baton/prefix_hash.h"

namespace baton::binding {

namespace nb = nanobind;

// ValueError naming the argument unless it is a C-contiguous one-dimensional CPU array of the
// dtype.
std::span<const Token> int32_vector(const nb::object& array, const char* name);
std::span<const std::uint8_t> uint8_vector(const nb::object& array, const char* name);
// uint8 [n, 16].
std::vector<Digest> digests(const nb::object& array, const char* name);
// 16 bytes.
SipKey sip_key(const nb::bytes& key);

// A view of `rows` as [rows.size(), Columns]; `owner` keeps the memory alive.
template <class Scalar, std::size_t Columns, class T>
nb::object view(const std::vector<T>& rows, nb::handle owner) {
  static_assert(sizeof(T) == Columns * sizeof(Scalar));
  // numpy wants a pointer even for no elements.
  static const Scalar nothing[1] = {};
  const auto* data = rows.empty() ? nothing : reinterpret_cast<const Scalar*>(rows.data());
  if constexpr (Columns == 1) {
    return nb::ndarray<nb::numpy, const Scalar>(data, {rows.size()}, owner).cast();
  } else {
    return nb::ndarray<nb::numpy, const Scalar>(data, {rows.size(), Columns}, owner).cast();
  }
}

// A new array that owns a copy.
template <class Scalar, std::size_t Columns, class T>
nb::object copy(const std::vector<T>& rows) {
  auto* kept = new std::vector<T>(rows);
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return view<Scalar, Columns>(*kept, owner);
}

}  // namespace baton::binding
