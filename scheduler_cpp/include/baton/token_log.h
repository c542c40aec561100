// The tokens of a request. New ones gather beside the counters that a decode step touches anyway,
// and move to the long array when there is a page of them: its end is never in the cache, so it is
// touched once a page and not every step, whatever the context's length.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "baton/ids.h"
#include "baton/prefetch.h"

namespace baton {

class TokenLog {
 public:
  // Room for `most` tokens, so that appending never allocates.
  TokenLog(std::span<const Token> tokens, std::size_t most) {
    settled_.reserve(most);
    settled_.assign(tokens.begin(), tokens.end());
  }

  std::size_t size() const { return settled_.size() + fresh_count_; }

  void push_back(Token token) {
    if (fresh_count_ == kFresh) settle();
    fresh_[fresh_count_++] = token;
  }

  // Before `all`: where the new tokens go in the long array.
  void prefetch_end() const {
    prefetch(settled_.data() + settled_.size(), fresh_count_ * sizeof(Token));
  }

  // All tokens, in one piece.
  std::span<const Token> all() {
    settle();
    return settled_;
  }

 private:
  static constexpr std::size_t kFresh = 64;  // a page of the usual size

  void settle() {
    settled_.insert(settled_.end(), fresh_.begin(),
                    fresh_.begin() + static_cast<std::ptrdiff_t>(fresh_count_));
    fresh_count_ = 0;
  }

  std::vector<Token> settled_;
  std::uint32_t fresh_count_ = 0;
  std::array<Token, kFresh> fresh_;
};

}  // namespace baton
