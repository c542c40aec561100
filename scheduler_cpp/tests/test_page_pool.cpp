// Pages: conservation, eviction order, sharing, adoption of the first holder, leases.
#include <vector>

#include "baton/lease.h"
#include "baton/page_pool.h"
#include "baton/page_table.h"
#include "check.h"

using namespace baton;

namespace {
Digest digest(std::uint64_t n) {
  return {n * 0x9e3779b97f4a7c15ULL, n};
}

OwnedPage take(PagePool& pool) {
  return *pool.allocate();
}

// Seals a page of this content and lets go of it.
PageId cache(PagePool& pool, std::uint64_t content) {
  const SealedPage page = take(pool).seal(digest(content));
  return page.id();
}
}  // namespace

TEST(an_owned_page_returns_when_its_handle_dies) {
  PagePool pool(2);
  {
    const OwnedPage page = take(pool);
    CHECK_EQ(pool.free(), 1);
    CHECK_EQ(pool.owned(), 1);
  }
  CHECK_EQ(pool.free(), 2);
  CHECK_EQ(pool.owned(), 0);
}

TEST(moving_a_handle_moves_the_page) {
  PagePool pool(2);
  OwnedPage a = take(pool);
  OwnedPage b = take(pool);
  const PageId kept = b.id();
  a = std::move(b);
  CHECK_EQ(a.id(), kept);
  CHECK_EQ(pool.owned(), 1);
}

TEST(a_forgotten_page_is_free_at_once_or_with_its_last_user) {
  PagePool pool(3);
  cache(pool, 1);
  const PageId used = cache(pool, 2);
  {
    const auto user = pool.find(digest(2));
    CHECK(pool.forget(digest(1)));
    CHECK(pool.forget(digest(2)));
    CHECK(!pool.forget(digest(2)));
    CHECK(!pool.forget(digest(3)));
    CHECK(!pool.find(digest(2)));
    CHECK_EQ(user->id(), used);
    CHECK_EQ(pool.free(), 2);
    // The same content again, while the forgotten page still has its user.
    cache(pool, 2);
    CHECK(pool.holds(digest(2)));
  }
  CHECK_EQ(pool.free(), 2);
  CHECK_EQ(pool.cached(), 1);
  CHECK(pool.evicted() == std::vector({digest(1), digest(2)}));
  CHECK_EQ(pool.audit({0, 0, 0}), std::string_view());
}

TEST(sealed_pages_are_kept_and_evicted_coldest_first) {
  PagePool pool(3);
  for (std::uint64_t content = 1; content <= 3; ++content) cache(pool, content);
  CHECK_EQ(pool.cached(), 3);
  {
    const auto warmed = pool.find(digest(1));
  }
  const OwnedPage first = take(pool), second = take(pool);
  CHECK(pool.holds(digest(1)));
  CHECK(!pool.holds(digest(2)));
  CHECK(!pool.holds(digest(3)));
  CHECK(pool.evicted() == std::vector({digest(2), digest(3)}));
}

TEST(a_referenced_page_is_never_evicted) {
  PagePool pool(1);
  const SealedPage page = take(pool).seal(digest(1));
  CHECK(!pool.allocate());
  const SealedPage shared = page.share();
  CHECK_EQ(shared.id(), page.id());
  CHECK_EQ(pool.referenced(), 1);
}

TEST(sealing_what_is_held_adopts_the_holder) {
  PagePool pool(2);
  const SealedPage first = take(pool).seal(digest(1));
  const SealedPage second = take(pool).seal(digest(1));
  CHECK_EQ(first.id(), second.id());
  CHECK_EQ(pool.free(), 1);
}

TEST(a_tail_can_be_found_while_held_and_is_not_cache) {
  PagePool pool(2);
  {
    const SealedPage tail = take(pool).seal_tail(digest(9));
    CHECK(pool.holds(digest(9)));
    CHECK(pool.held().empty());
  }
  CHECK(!pool.holds(digest(9)));
  CHECK_EQ(pool.free(), 2);
  CHECK(pool.evicted().empty());
}

TEST(copy_on_write_names_both_pages_and_lets_go_of_the_source) {
  PagePool pool(2);
  SealedPage page = take(pool).seal(digest(1));
  PageCopy copy{};
  const PageId source = page.id();
  const OwnedPage written = std::move(page).copy_on_write(take(pool), copy);
  CHECK_EQ(copy.source, source);
  CHECK_EQ(copy.target, written.id());
  CHECK_EQ(pool.cached(), 1);
}

TEST(suspect_pages_are_forgotten_unless_shared) {
  PagePool pool(2);
  const SealedPage mine = take(pool).seal(digest(1));
  const SealedPage ours = take(pool).seal(digest(2));
  const SealedPage theirs = ours.share();
  pool.forget_unshared(mine);
  pool.forget_unshared(ours);
  CHECK(!pool.holds(digest(1)));
  CHECK(pool.holds(digest(2)));
}

TEST(a_table_releases_continuations_before_prefixes) {
  PagePool pool(3);
  {
    PageTable table;
    for (int i = 0; i < 3; ++i) table.append(take(pool));
    for (std::uint64_t i = 1; i <= 3; ++i) (void)table.seal_next(digest(i));
  }
  const OwnedPage first = take(pool), second = take(pool);
  CHECK(pool.holds(digest(1)));
  CHECK(!pool.holds(digest(2)));
}

TEST(the_index_survives_any_order_of_inserts_and_erases) {
  constexpr std::uint64_t kEntries = 200;
  PrefixIndex index(kEntries);
  std::vector<bool> held(kEntries, false);
  std::uint64_t random = 12345;
  for (int i = 0; i < 20000; ++i) {
    random = random * 6364136223846793005ULL + 1442695040888963407ULL;
    const std::uint64_t n = (random >> 33) % kEntries;
    // Few distinct homes, so that probe paths collide and wrap.
    const auto identity = [](std::uint64_t k) { return Digest{k % 7 + 505, k}; };
    if (held[n]) {
      index.erase(identity(n));
    } else {
      index.insert(identity(n), static_cast<PageId>(n));
    }
    held[n] = !held[n];
    if (i % 100) continue;
    for (std::uint64_t k = 0; k < kEntries; ++k) {
      CHECK_EQ(index.find(identity(k)), held[k] ? static_cast<std::int32_t>(k) : -1);
    }
  }
}

TEST(a_lease_pins_until_release_or_deadline) {
  PagePool pool(1);
  LeaseTable leases;
  cache(pool, 1);
  const auto lease = [&](Micros deadline) {
    std::vector<LeasedPage> pages;
    pages.emplace_back(*pool.find(digest(1)));
    return leases.grant(std::move(pages), deadline);
  };
  const LeaseId first = lease(10);
  CHECK_EQ(pool.leased(), 1);
  CHECK(!pool.allocate());
  CHECK_EQ(leases.release(first, 10), Verdict::kValid);
  CHECK_EQ(leases.release(first, 10), Verdict::kExpired);

  const LeaseId second = lease(20);
  CHECK(leases.renew(second, 15, 30));
  CHECK(leases.renew(second, 15, 25));  // never shortens
  leases.expire(30);
  CHECK_EQ(pool.leased(), 1);
  leases.expire(31);
  CHECK_EQ(pool.leased(), 0);
  CHECK(!leases.renew(second, 31, 99));
  CHECK_EQ(leases.release(second, 31), Verdict::kExpired);
  CHECK(pool.allocate());
}
