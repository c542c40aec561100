#include "baton/prefix_hash.h"

#include <bit>
#include <cstring>

namespace baton {
namespace {

// One SipHash-2-4 computation with 128-bit output, fed by 64-bit little-endian words.
class SipState {
 public:
  explicit SipState(SipKey key)
      : v0_(key.k0 ^ 0x736f6d6570736575ULL),
        v1_(key.k1 ^ 0x646f72616e646f6dULL ^ 0xee),  // 0xee marks the 128-bit variant
        v2_(key.k0 ^ 0x6c7967656e657261ULL),
        v3_(key.k1 ^ 0x7465646279746573ULL) {}

  void word(std::uint64_t m) {
    v3_ ^= m;
    round();
    round();
    v0_ ^= m;
  }

  // `rest`: the last 0 to 7 bytes in the low end; `length`: of the whole input.
  Digest finish(std::uint64_t rest, std::size_t length) {
    word(rest | static_cast<std::uint64_t>(length & 0xff) << 56);
    v2_ ^= 0xee;
    for (int i = 0; i < 4; ++i) round();
    const std::uint64_t lo = v0_ ^ v1_ ^ v2_ ^ v3_;
    v1_ ^= 0xdd;
    for (int i = 0; i < 4; ++i) round();
    return {lo, v0_ ^ v1_ ^ v2_ ^ v3_};
  }

 private:
  void round() {
    v0_ += v1_;
    v1_ = std::rotl(v1_, 13) ^ v0_;
    v0_ = std::rotl(v0_, 32);
    v2_ += v3_;
    v3_ = std::rotl(v3_, 16) ^ v2_;
    v0_ += v3_;
    v3_ = std::rotl(v3_, 21) ^ v0_;
    v2_ += v1_;
    v1_ = std::rotl(v1_, 17) ^ v2_;
    v2_ = std::rotl(v2_, 32);
  }

  std::uint64_t v0_, v1_, v2_, v3_;
};

}  // namespace

Digest siphash128(SipKey key, std::span<const std::uint8_t> bytes) {
  SipState state(key);
  const std::uint8_t* at = bytes.data();
  std::size_t left = bytes.size();
  for (; left >= 8; left -= 8, at += 8) {
    std::uint64_t m;
    std::memcpy(&m, at, 8);
    state.word(m);
  }
  std::uint64_t rest = 0;
  if (left > 0) std::memcpy(&rest, at, left);
  return state.finish(rest, bytes.size());
}

Digest page_identity(SipKey key, const Digest& parent, std::span<const Token> tokens) {
  SipState state(key);
  state.word(parent.lo);
  state.word(parent.hi);
  const Token* at = tokens.data();
  std::size_t left = tokens.size();
  for (; left >= 2; left -= 2, at += 2) {
    std::uint64_t m;
    std::memcpy(&m, at, 8);
    state.word(m);
  }
  const std::uint64_t rest = left ? static_cast<std::uint32_t>(*at) : 0;
  return state.finish(rest, sizeof(Digest) + tokens.size() * sizeof(Token));
}

}  // namespace baton
