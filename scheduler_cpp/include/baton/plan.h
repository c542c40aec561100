// What a step tells the executor and what its completion tells the engine: flat arrays, allocated
// once, that Python views without copies. Columns are named here and nowhere else.
#pragma once

#include <cstdint>
#include <vector>

#include "baton/ids.h"
#include "baton/page_pool.h"
#include "baton/prefix_hash.h"
#include "baton/side_tables.h"

namespace baton {

// In `token_ids`: the token that this slot's row in the step before samples.
inline constexpr Token kSampledLast = -1;

enum class RowKind : std::int32_t { kPrefill = 0, kDecode = 1 };

struct Row {
  std::int32_t slot;
  std::int32_t query_tokens;
  std::int32_t context_tokens;  // in KV before this step
  std::int32_t samples;         // logits wanted, of its last tokens
  std::int32_t token_offset;    // into token_ids
  RowKind kind;
};
static_assert(sizeof(Row) == 6 * sizeof(std::int32_t));

struct PageDelta {
  std::int32_t slot;
  std::int32_t page_index;
  std::int32_t page;
};
static_assert(sizeof(PageDelta) == 3 * sizeof(std::int32_t));

// The same for a window group; page -1: the entry is void.
struct SideDelta {
  std::int32_t group;
  std::int32_t slot;
  std::int32_t page_index;
  std::int32_t page;
};
static_assert(sizeof(SideDelta) == 4 * sizeof(std::int32_t));

// A whole-page copy in a window group, due before the rows.
struct SideCopy {
  std::int32_t group;
  std::int32_t source;
  std::int32_t target;
};
static_assert(sizeof(SideCopy) == 3 * sizeof(std::int32_t));

// Rows of a request that share a target are alternatives, the best first: one of them is wanted.
struct FetchPage {
  std::int32_t page_index;
  std::int32_t page;
};

// A movement from the host tier: tell of its end as of a fetch's.
struct RestorePage {
  std::int32_t page_index;
  std::int32_t host_page;
  std::int32_t page;
};
static_assert(sizeof(RestorePage) == 3 * sizeof(std::int32_t));

// A movement to the host tier.
struct OffloadPage {
  std::int32_t page;
  std::int32_t host_page;
};
static_assert(sizeof(OffloadPage) == 2 * sizeof(std::int32_t));

struct AdmittedRow {
  std::int32_t slot;
  std::int32_t reused_tokens;
};

struct Plan {
  std::vector<Row> rows;
  std::vector<RequestId> requests;
  std::vector<Token> token_ids;
  std::vector<PageDelta> page_deltas;
  std::vector<SideDelta> side_deltas;
  std::vector<StateRow> state_pages;  // of each row, one for each state group
  std::vector<std::int32_t> slot_resets;
  std::vector<PageCopy> copies;
  std::vector<SideCopy> side_copies;
  std::vector<RequestId> fetch_requests;
  std::vector<FetchPage> fetch_pages;
  std::vector<std::int32_t> fetch_groups;
  std::vector<Digest> fetch_hashes;
  std::vector<RequestId> restore_requests;
  std::vector<RestorePage> restore_pages;
  std::vector<std::uint64_t> offloads;
  std::vector<OffloadPage> offload_pages;
  std::vector<RequestId> admitted_requests;
  std::vector<AdmittedRow> admitted;
  std::vector<RequestId> started_requests;
  std::vector<RequestId> finished_requests;
  std::vector<std::int32_t> finished_reasons;
  std::vector<RequestId> retracted;
  std::vector<RequestId> expired_requests;
  std::vector<RequestId> demoted_requests;
  std::vector<Digest> evicted_hashes;
  std::size_t sampling_rows = 0;

  void reserve(std::size_t running, std::size_t step_tokens, std::size_t side_groups) {
    rows.reserve(running);
    side_deltas.reserve(side_groups * 2 * running);
    state_pages.reserve(side_groups * running);
    requests.reserve(running);
    token_ids.reserve(step_tokens);
    page_deltas.reserve(running + step_tokens);
    slot_resets.reserve(running);
    evicted_hashes.reserve(side_groups * 2 * running);
  }

  void clear() {
    rows.clear();
    requests.clear();
    token_ids.clear();
    page_deltas.clear();
    side_deltas.clear();
    state_pages.clear();
    slot_resets.clear();
    copies.clear();
    side_copies.clear();
    fetch_requests.clear();
    fetch_pages.clear();
    fetch_groups.clear();
    fetch_hashes.clear();
    restore_requests.clear();
    restore_pages.clear();
    offloads.clear();
    offload_pages.clear();
    admitted_requests.clear();
    admitted.clear();
    started_requests.clear();
    finished_requests.clear();
    finished_reasons.clear();
    retracted.clear();
    expired_requests.clear();
    demoted_requests.clear();
    evicted_hashes.clear();
    sampling_rows = 0;
  }
};

struct Completion {
  std::vector<std::int32_t> sealed_pages;
  std::vector<Digest> sealed_hashes;
  std::vector<RequestId> sealed_requests;
  std::vector<std::int32_t> sealed_indices;
  std::vector<std::int32_t> sealed_groups;
  std::vector<RequestId> finished_requests;
  std::vector<std::int32_t> finished_reasons;
  std::vector<RequestId> prefilled_requests;

  void reserve(std::size_t running, std::size_t sealed) {
    sealed_pages.reserve(sealed);
    sealed_hashes.reserve(sealed);
    sealed_requests.reserve(sealed);
    sealed_indices.reserve(sealed);
    sealed_groups.reserve(sealed);
    finished_requests.reserve(running);
    finished_reasons.reserve(running);
    prefilled_requests.reserve(running);
  }

  void clear() {
    sealed_pages.clear();
    sealed_hashes.clear();
    sealed_requests.clear();
    sealed_indices.clear();
    sealed_groups.clear();
    finished_requests.clear();
    finished_reasons.clear();
    prefilled_requests.clear();
  }
};

}  // namespace baton
