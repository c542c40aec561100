// Page identity: a chained, keyed 128-bit hash over (parent identity, token ids).
//
// Reuse across requests and isolation between tenants both rest on it, so it is a PRF
// (SipHash-2-4 with 128-bit output: Aumasson and Bernstein, "SipHash: a fast short-input PRF",
// 2012, and the authors' 128-bit variant), keyed per tenant and model by the caller.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <span>

#include "baton/ids.h"

namespace baton {

static_assert(std::endian::native == std::endian::little, "identities are little-endian bytes");

struct SipKey {
  std::uint64_t k0 = 0;
  std::uint64_t k1 = 0;
  bool operator==(const SipKey&) const = default;
};

struct Digest {
  std::uint64_t lo = 0;
  std::uint64_t hi = 0;
  friend bool operator==(const Digest&, const Digest&) = default;
};
static_assert(sizeof(Digest) == 16);

// SipHash-2-4-128 of arbitrary bytes; the digest's memory is the reference output.
[[nodiscard]] Digest siphash128(SipKey key, std::span<const std::uint8_t> bytes);

// Identity of a page (or of a partial tail) under its parent. The first page's parent is `kRoot`.
inline constexpr Digest kRoot{};
[[nodiscard]] Digest page_identity(SipKey key, const Digest& parent, std::span<const Token> tokens);

}  // namespace baton
