"""Types of the compiled scheduler core. Page and slot numbers index the executor's arrays.

Rules of use: one caller at a time (guard it with a lock); never block on it, every call costs
what it changes. Time is whatever monotonic microseconds the caller passes; a smaller value than
one seen before counts as the one seen before. Wrong dtypes, shapes, sizes and values raise
ValueError; events that arrive late, twice or for a request that is gone are answered by value.
"""

import enum
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class Role(enum.Enum):
    """A role is a policy of the same machine."""

    PREFILL = 0
    """Several prompt chunks may share a step; each is at most `max_chunk_tokens`."""
    DECODE = 1
    """All prompt chunks of a step together are at most `max_chunk_tokens`, for decode's pace."""
    FUSED = 2
    """Chunks as in PREFILL; for a worker that does both."""

class Goal(enum.Enum):
    GENERATE = 0
    """Compute what is missing, then decode."""
    HAND_OVER = 1
    """Compute the prompt, sample one token, hold the pages for their reader (Prefilled)."""
    AWAIT = 2
    """Pages and first token come from a prefill worker; Fetching until `fetch_ended`."""

class Admission(enum.Enum):
    ACCEPTED = 0
    DUPLICATE = 1
    QUEUE_FULL = 2
    TOO_LONG = 3
    """prompt + max_new_tokens > max_context"""
    NEVER_FITS = 4
    """needs more pages than the pool has"""
    FOREIGN = 5
    """the request that it resumes or forks belongs to another key (tenant)"""

class Verdict(enum.Enum):
    VALID = 0
    EXPIRED = 1

class Reply(enum.Enum):
    """The (state, event) table's answer."""

    ACCEPTED = 0
    IGNORED = 1
    """Late or duplicate, or the request is gone: nothing changed, nothing is wrong."""
    REJECTED = 2
    """The event does not belong to this state: nothing changed, the caller is confused."""

class FinishReason(enum.IntEnum):
    """Values of `finished_reasons`."""

    LENGTH = 0
    FLAG = 1
    POISONED = 2
    DEADLINE = 3
    """In plans only."""

class RowKind(enum.IntEnum):
    """Values of the last column of `Step.rows`."""

    PREFILL = 0
    DECODE = 1

class Retention(enum.Enum):
    WINDOW = 0
    """The pages that overlap the last `tokens` tokens."""
    STATE = 1
    """One recurrent state, and a snapshot of it every `tokens` tokens."""

class CacheGroup:
    """A group of layers beside full attention, with its own pool of pages."""

    @staticmethod
    def window(tokens: int, *, pages: int) -> CacheGroup:
        """A query sees `tokens` tokens, itself one of them."""
    @staticmethod
    def state(*, every: int, pages: int) -> CacheGroup:
        """A page is one state. `every`: a multiple of page_size."""
    keeps: Retention
    tokens: int
    pages: int

class Config:
    def __init__(
        self,
        *,
        role: Role,
        page_size: int,
        num_pages: int,
        max_running: int,
        max_step_tokens: int,
        max_chunk_tokens: int,
        max_context: int,
        max_waiting: int,
        hold_us: int,
        max_draft_tokens: int = 0,
        overlap: int = 0,
        side_groups: Sequence[CacheGroup] = (),
        host_pages: int = 0,
    ) -> None:
        """max_running: slots (fetching, prefilling and decoding requests). max_step_tokens: token
        budget of a step, at least max_running. max_waiting: queued requests before QUEUE_FULL.
        hold_us: how long Prefilled pages wait for their reader. num_pages: of group 0, full
        attention. max_draft_tokens: guesses a row may carry, at most 64; 0 with side_groups.
        overlap: 0, or 1: one more step may be planned before the one in flight is completed; 0 with
        side_groups. side_groups: the groups beside full attention, numbered from 1.
        host_pages: of the host tier; 0: there is none. Raises ValueError."""
    role: Role
    page_size: int
    num_pages: int
    max_running: int
    max_step_tokens: int
    max_chunk_tokens: int
    max_context: int
    max_waiting: int
    hold_us: int
    max_draft_tokens: int
    overlap: int
    side_groups: list[CacheGroup]
    host_pages: int

class PoolStats:
    """Pages of one group, as in Stats."""

    total: int
    free: int
    cached: int
    owned: int
    referenced: int
    leased: int

class Stats:
    """Pages, of group 0: free + cached + owned + referenced = total, always."""

    total_pages: int
    free_pages: int
    cached_pages: int
    """Sealed, indexed, referenced by nobody: reusable and evictable."""
    owned_pages: int
    """Writable, one owner."""
    referenced_pages: int
    """Sealed and in use by requests or leases."""
    leased_pages: int
    """Under at least one lease (a part of referenced)."""
    quarantined_pages: int
    """Held by Draining requests whose fetch has not ended (a part of owned and referenced)."""
    waiting: int
    """Queued and Retracted."""
    running: int
    """Prefilling and Decoding."""
    fetching: int
    prefilled: int
    parked: int
    draining: int
    leases: int
    offloading: int
    """Pages on their way to the host tier."""
    computed_tokens: int
    """Prompt tokens computed here (recomputation after retraction included)."""
    generated_tokens: int
    reused_tokens: int
    """Prompt tokens found in local pages at admission."""
    restored_tokens: int
    """Tokens that arrived from the host tier."""
    fetched_tokens: int
    """Prompt tokens that arrived from peers."""
    retractions: int
    demotions: int
    """Parks that ended by their deadline or gave way."""

class Lease:
    id: int
    """0: nothing of the asked pages is held."""
    pages: NDArray[np.int32]
    """[m], m <= n: the longest held prefix of the asked hashes."""

class Step:
    """What the executor does next: a token that `complete` takes back.

    Every array is a view of the scheduler's memory, int32 unless said, valid until its `complete`
    (or, of a step without rows, until the next `plan`). Apply in this order: slot_resets,
    page_deltas, side_deltas, copies, side_copies, then the rows. A step without rows need not be
    completed (it may be).
    """

    rows: NDArray[np.int32]
    """[R, 6]: slot, query_tokens, context_tokens (in KV before this step), samples (how many of its
    last tokens want logits: 0, 1, or 1 + guesses), token_offset (into token_ids), kind. Decode rows
    come first."""
    requests: NDArray[np.uint64]
    """[R]"""
    token_ids: NDArray[np.int32]
    """[T]: -1 (overlap 1 only): the token that this slot's row in the step before samples."""
    page_deltas: NDArray[np.int32]
    """[D, 3]: slot, page_index, page: what changed in the executor's page table."""
    slot_resets: NDArray[np.int32]
    """[S]: slots whose table row is void; a slot may be given out again in the same step."""
    side_deltas: NDArray[np.int32]
    """[E, 4]: group, slot, page_index, page of a window group; page -1: the entry is void."""
    state_pages: NDArray[np.int32]
    """[R, S, 2]: for each row and each state group: page to read the state from (-1: the zero
    state), page to write it to."""
    copies: NDArray[np.int32]
    """[C, 2]: source page, target page: whole-page copies (forks) due before the rows. Like the
    deltas they are not repeated if the step is abandoned: make them in any case."""
    side_copies: NDArray[np.int32]
    """[C, 3]: group, source page, target page: the same in window groups."""
    fetch_requests: NDArray[np.uint64]
    """[F]: start reading these pages; end every fetch by `fetch_ended`."""
    fetch_pages: NDArray[np.int32]
    """[F, 2]: page_index, target page. A state is named by the page of tokens after whose last one
    it stands. Rows of a request that share a target are alternatives, the best first: one of them
    is wanted."""
    fetch_groups: NDArray[np.int32]
    """[F]: 0, or the number of the group beside full attention. Of each request group 0 comes
    first; of an AWAIT request a state group's first row is the state at the prompt's end, and a
    second one a snapshot that is only kept as cache."""
    fetch_hashes: NDArray[np.uint8]
    """[F, 16]"""
    restore_requests: NDArray[np.uint64]
    """[N]: start copying these from the host tier, and report as of a fetch: `pages_arrived`, and
    one `fetch_ended` when restores and fetches of the request are all over. A request's restored
    pages come before its fetched ones."""
    restore_pages: NDArray[np.int32]
    """[N, 3]: page_index, host page, target page"""
    offloads: NDArray[np.uint64]
    """[O]: copy these to the host tier; end each by `offload_ended`."""
    offload_pages: NDArray[np.int32]
    """[O, 2]: page, host page"""
    admitted_requests: NDArray[np.uint64]
    """[A]: got a slot now; a retracted request appears again when it is readmitted. An AWAIT
    request listed here waits for `fetch_ended` even if it has no fetch entries."""
    admitted: NDArray[np.int32]
    """[A, 2]: slot, reused_tokens"""
    started_requests: NDArray[np.uint64]
    """AWAIT requests that became Decoding since the last plan: their first token is official."""
    finished_requests: NDArray[np.uint64]
    """AWAIT requests whose first token was also their last (they are in started_requests too), and
    requests whose deadline passed."""
    finished_reasons: NDArray[np.int32]
    retracted: NDArray[np.uint64]
    """Lost slot and pages, keep their tokens, come back by themselves."""
    expired_requests: NDArray[np.uint64]
    """Prefilled requests held past hold_us: gone."""
    demoted_requests: NDArray[np.uint64]
    """Parked requests whose deadline passed, or whose pages others needed: gone. Their full pages
    are cache from now on."""
    evicted_hashes: NDArray[np.uint8]
    """[E, 16]: left the index since the last plan; withdraw them from the directory."""
    sequence: int
    """Counts plans."""

class Completion:
    """Valid until the next `complete`. Arrays are views."""

    sealed_pages: NDArray[np.int32]
    """[S]: pages that hold these identities now (another request's, if that one was first)."""
    sealed_hashes: NDArray[np.uint8]
    """[S, 16]"""
    sealed_groups: NDArray[np.int32]
    """[S]: 0, or the number of the group beside full attention that the page is of."""
    sealed_requests: NDArray[np.uint64]
    sealed_indices: NDArray[np.int32]
    """Page index within the request. A Prefilled request's partial tail page is listed too."""
    finished_requests: NDArray[np.uint64]
    finished_reasons: NDArray[np.int32]
    prefilled_requests: NDArray[np.uint64]
    """HAND_OVER requests whose prompt is complete; their first token was in `tokens`."""

class Scheduler:
    def __init__(self, config: Config) -> None: ...
    def submit(
        self,
        request: int,
        tokens: NDArray[np.int32],
        *,
        max_new_tokens: int,
        key: bytes,
        goal: Goal,
        fetch_pages: int = 0,
        priority: int = 0,
        park_us: int = 0,
        resumes: int | None = None,
        fork_of: int | None = None,
        deadline_us: int | None = None,
        now_us: int,
    ) -> Admission:
        """request: a 64-bit handle that is never reused. tokens: [N], N >= 1. key: 16 bytes.
        fetch_pages: how many leading full pages peers are said to hold (GENERATE, HAND_OVER): with
        state groups what lies behind the last snapshot among them is not asked for.
        AWAIT asks for everything that is missing, the partial tail page included.
        priority: 32 bits, higher goes first, also when pages are short; equal ones share fairly
        between keys (tenants).
        park_us: when its turn is over (LENGTH or FLAG) it stays as Parked for so long: its pages,
        the partial one too, are not evicted meanwhile unless others could not run without them.
        It is told as finished all the same. Not for HAND_OVER.
        resumes: a parked request whose session this one goes on. Its park ends when this one is
        admitted; if it is gone already, nothing but its pages is lost.
        fork_of: a request (Decoding, Prefilled or Parked when this one is admitted) whose pages
        are shared as far as the tokens agree, to the token: full pages by reference, the next one
        by a copy (`Step.copies`). The other goes on undisturbed; if it is gone, this one computes.
        `resumes` shares in the same way.
        deadline_us: when it has passed, the next plan ends the request wherever it waits, fetches
        or runs (`Step.finished_requests`, DEADLINE). A turn that was over by then is not concerned,
        nor are pages that are held for a reader or parked."""
    def cancel(self, request: int) -> Reply:
        """Frees at once, or keeps the pages as Draining until step and fetch have let go. Ends a
        park."""
    def renew_park(self, request: int, deadline_us: int) -> Reply:
        """A Parked request is kept until deadline_us instead. REJECTED while its turn runs."""
    def draft(self, request: int, position: int, tokens: NDArray[np.int32]) -> Reply:
        """Guesses [k] at the tokens from `position` on (prompt and output counted), for the next
        plan to verify; k is at most max_draft_tokens. IGNORED when the request is past `position`
        or decodes no more; REJECTED before its last token is known or while a step has a row of
        it. The plan takes as many as budget and free pages allow: nobody makes room for them."""
    def plan(self, now_us: int) -> Step:
        """Also expires leases, holds, parks and deadlines. ValueError while as many steps with rows
        are in flight as overlap allows: one, or two with overlap 1. Steps are executed, and
        completed or abandoned, in the order of their plans. Rows of a request that a completion
        ends are discarded in the step after it: what is said of them then has no effect. When a
        step is abandoned, one planned after it must be abandoned too."""
    def complete(
        self,
        step: Step,
        tokens: NDArray[np.int32],
        flags: NDArray[np.uint8],
        now_us: int,
        *,
        accepted: NDArray[np.int32] | None = None,
    ) -> Completion:
        """flags [L]: for each sampling row, in row order, 0 go on, 1 finish after its last token,
        2 poisoned (fail the request, tokens ignored). accepted [L]: how many tokens the row brings,
        1 to its samples; all but the last must be the guesses it was fed; None: 1 each.
        tokens [sum of accepted]. All of it is checked before any is applied."""
    def abandon(self, step: Step) -> None:
        """The step did not happen (the forward failed): no row advanced, no page was sealed; its
        requests are planned again unless they are cancelled. Raises ValueError as `complete`."""
    def pages_arrived(self, request: int, first_index: int, count: int, group: int = 0) -> Reply:
        """Pages [first_index, first_index + count) of a group are verified and their verdict was
        VALID. They must continue what arrived before in it; pages that arrived already are IGNORED,
        a gap REJECTED. Full pages are sealed and found by others from now on. In a state group they
        are one: any of those that were asked for. Groups may come in any order."""
    def fetch_ended(
        self, request: int, first_token: int | None, now_us: int, *, finish: bool = False
    ) -> Reply:
        """TERMINAL for the fetch: nothing writes into its target pages any more. GENERATE and
        HAND_OVER compute on from what arrived. AWAIT with everything arrived and a first token
        decodes on; otherwise it computes here what is missing. With side groups, what does not fit
        together (tokens without the state there) is kept as cache: the request is retracted and
        goes on where every group can. finish: the first token ends the
        request (eos)."""
    def offload_ended(self, offload: int, complete: bool) -> Reply:
        """TERMINAL for the copy: neither page is touched by it any more. complete: the host page
        holds what the page held, and is found from now on."""
    def host_stats(self) -> PoolStats: ...
    def grant(self, hashes: NDArray[np.uint8], now_us: int, ttl_us: int, group: int = 0) -> Lease:
        """hashes: [n, 16], all of one group. Leases the longest held prefix of them."""
    def renew(self, lease: int, now_us: int, ttl_us: int) -> bool:
        """False: the lease is over."""
    def release(self, lease: int, now_us: int) -> Verdict:
        """VALID: the pages could not change from grant until now."""
    def handed_over(self, request: int) -> Reply:
        """The reader has everything: Prefilled -> Finished."""
    def forget(self, hashes: NDArray[np.uint8]) -> int:
        """hashes: [n, 16], of group 0; forgotten in every group. Their session is over: none of
        these full pages is found again. Unused
        ones are free at once, others with their last user. How many were held. The next plan
        lists them in `evicted_hashes`."""
    def lookup(self, tokens: NDArray[np.int32], key: bytes) -> int:
        """Tokens of this prompt held as full pages (a prefix), and usable in every group."""
    def pool_stats(self, group: int) -> PoolStats: ...
    def stats(self) -> Stats: ...
    def held_hashes(self) -> NDArray[np.uint8]:
        """[n, 16]: full pages in the indices of all groups, for a directory resync. Costs a walk
        of the indices."""
    def state(self, request: int) -> str | None:
        """Name of the request's state; None when it is gone."""
    def pages(self, request: int, group: int = 0) -> NDArray[np.int32]:
        """The request's pages in token order, empty if it holds none. For tests."""
    def free_pages(self, group: int = 0) -> NDArray[np.int32]:
        """Pages of a group that hold nothing and belong to nobody. For debugging."""
    def check_invariants(self) -> str:
        """Empty when every invariant holds, else what is broken. Walks everything: for tests."""

def transitions() -> list[tuple[str, str, Reply, str | None]]:
    """The compiled (state, event) table, row by row: state, event, reply, and where an accepted
    event leads."""

def page_hashes(
    tokens: NDArray[np.int32], page_size: int, key: bytes, *, tail: bool = False, group: int = 0
) -> NDArray[np.uint8]:
    """[n, 16]: chained SipHash-2-4-128 identities, keyed with `key` (16 bytes). Row i identifies
    tokens[0 : (i + 1) * page_size] through its parent. tail appends the identity of the last,
    partial page, if there is one. group: salts them, as that group's pages go by."""

def in_group(hashes: NDArray[np.uint8], group: int) -> NDArray[np.uint8]:
    """[n, 16]: what the pages of group 0 with these identities, [n, 16], go by in another group."""
