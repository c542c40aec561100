// What a request is, apart from where it stands: its tokens, its page identities, its limits.
// It travels by pointer through all states and is never shared.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "baton/ids.h"
#include "baton/prefetch.h"
#include "baton/prefix_hash.h"
#include "baton/slab.h"
#include "baton/token_log.h"

namespace baton {

enum class Goal : std::uint8_t { kGenerate, kHandOver, kAwait };

struct Sequence {
  Sequence(RequestId id, Goal goal, SipKey key, std::size_t page_size,
           std::span<const Token> prompt, std::size_t max_new_tokens, std::size_t fetch_pages)
      : prompt_tokens(prompt.size()),
        max_new_tokens(max_new_tokens),
        page_size(page_size),
        id(id),
        tokens(prompt, prompt.size() + max_new_tokens),
        key(key),
        fetch_pages(fetch_pages),
        goal(goal) {
    identities.reserve((prompt.size() + max_new_tokens) / page_size);
    if (const std::size_t full = full_pages()) (void)identity(full - 1);
  }

  // What every decode step reads comes first.
  const std::size_t prompt_tokens;
  const std::size_t max_new_tokens;
  const std::size_t page_size;
  const RequestId id;
  TokenLog tokens;                 // prompt, then generated
  std::vector<Digest> identities;  // of full pages, each computed once
  std::vector<Token> draft;        // guesses at the next tokens, valid while it says so itself
  const SipKey key;
  const std::size_t fetch_pages;  // leading full pages that peers are said to hold
  const Goal goal;

  std::size_t generated() const { return tokens.size() - prompt_tokens; }
  std::size_t full_pages() const { return tokens.size() / page_size; }

  // Before the next page is named: what that reads and writes.
  void prefetch_identity() const {
    tokens.prefetch_end();
    const std::size_t parent = identities.size() - !identities.empty();
    prefetch(identities.data() + parent, 2 * sizeof(Digest));
  }

  // Identity of full page `index`; those before it are known already or become so.
  const Digest& identity(std::size_t index) {
    while (identities.size() <= index) {
      const std::size_t next = identities.size();
      identities.push_back(page_identity(key, next ? identities.back() : kRoot,
                                         tokens.all().subspan(next * page_size, page_size)));
    }
    return identities[index];
  }

  // Identity of the partial page at the end of the prompt. There must be one.
  Digest prompt_tail_identity() {
    const std::size_t full = prompt_tokens / page_size;
    const Digest parent = full ? identity(full - 1) : kRoot;
    return page_identity(key, parent,
                         tokens.all().subspan(full * page_size, prompt_tokens - full * page_size));
  }
};

using SequencePtr = Slab<Sequence>::Ptr;

}  // namespace baton
