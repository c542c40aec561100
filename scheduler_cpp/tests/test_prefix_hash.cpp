// SipHash-2-4-128 against the authors' vectors; chaining; sensitivity to every input.
#include <array>
#include <cstring>
#include <numeric>

#include "baton/prefix_hash.h"
#include "check.h"
#include "siphash_vectors.h"

using namespace baton;

namespace {
SipKey reference_key() {
  std::array<std::uint8_t, 16> bytes;
  std::iota(bytes.begin(), bytes.end(), std::uint8_t{0});
  SipKey key;
  std::memcpy(&key, bytes.data(), sizeof(key));
  return key;
}
}  // namespace

TEST(siphash_agrees_with_the_authors_vectors) {
  std::array<std::uint8_t, 64> input;
  std::iota(input.begin(), input.end(), std::uint8_t{0});
  for (std::size_t length = 0; length < 64; ++length) {
    const Digest digest = siphash128(reference_key(), std::span(input).first(length));
    CHECK_EQ(std::memcmp(&digest, kSipHash128Vectors[length], sizeof(digest)), 0);
  }
}

TEST(page_identity_is_the_hash_of_parent_and_tokens) {
  std::vector<Token> tokens = {5, 1 << 30, 0, 77, 3};
  for (std::size_t n = 0; n <= tokens.size(); ++n) {
    const Digest parent{0x0123456789abcdef, 0xfedcba9876543210};
    std::vector<std::uint8_t> bytes(sizeof(Digest) + n * sizeof(Token));
    std::memcpy(bytes.data(), &parent, sizeof(parent));
    if (n) std::memcpy(bytes.data() + sizeof(parent), tokens.data(), n * sizeof(Token));
    CHECK(page_identity(reference_key(), parent, std::span(tokens).first(n)) ==
          siphash128(reference_key(), bytes));
  }
}

TEST(page_identity_depends_on_key_parent_order_and_length) {
  const std::vector<Token> tokens = {1, 2, 3, 4}, swapped = {2, 1, 3, 4};
  const SipKey key = reference_key(), other{key.k0 ^ 1, key.k1};
  const Digest base = page_identity(key, kRoot, tokens);
  CHECK(base != page_identity(other, kRoot, tokens));
  CHECK(base != page_identity(key, base, tokens));
  CHECK(base != page_identity(key, kRoot, swapped));
  CHECK(base != page_identity(key, kRoot, std::span(tokens).first(3)));
}
