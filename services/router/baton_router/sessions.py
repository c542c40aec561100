"""Sessions: the lease that names their pages, and the decode worker that they were last on.

A turn renews its session's lease, CloseSession or its expiry ends it. Then the pages that no other
session has are forgotten by every worker and, through KvSessionService, by the kvstore, which
knows the sessions of other routers too. Without a kvstore this router's own knowledge decides.
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence

import grpc

from baton.v1 import errors_pb2 as errors
from baton.v1 import kv_pb2 as kv
from baton.v1 import kv_pb2_grpc
from baton_router.page_index import PageIndex, split_hashes
from baton_router.pool import WorkerPool
from baton_rpc import Refusal, channel
from baton_sessions import SessionTable

log = logging.getLogger("baton.router")

SessionKey = bytes
_RPC_S = 2.0
# Turns that end together are told together.
_BATCH_S = 0.02
# How often an idle router looks for leases that have expired.
_LOOK_S = 5.0
# Turns that wait for a kvstore that does not answer; they are only advice.
_MOST_TURNS = 1024


def session_key(tenant: str, session: str) -> SessionKey:
    """16 bytes that name a session of a tenant; empty for no session."""
    if not session:
        return b""
    framed = len(tenant.encode()).to_bytes(8, "little") + (tenant + session).encode()
    return hashlib.blake2b(framed, digest_size=16).digest()


class Sessions:
    """All sessions of one router. Used on one event loop."""

    def __init__(
        self,
        pool: WorkerPool,
        index: PageIndex,
        kvstores: Sequence[str],
        *,
        capacity: int,
        ttl_s: float,
    ) -> None:
        """`kvstores`: their addresses. `ttl_s`: a session without a turn for so long is over."""
        self._pool = pool
        self._index = index
        self._ttl_s = ttl_s
        self._capacity = capacity
        self._table = SessionTable(capacity)
        self._workers: OrderedDict[SessionKey, str] = OrderedDict()
        self._running: Counter[SessionKey] = Counter()
        self._closing: set[SessionKey] = set()
        self._turns: list[kv.SessionTurn] = []
        self._freed: list[bytes] = []
        self._mail = asyncio.Event()
        # A turn must not be told after the end of its session.
        self._speaking = asyncio.Lock()
        self._stores = {address: channel(address) for address in kvstores}

    # ---- the decode worker

    def worker(self, session: SessionKey) -> str:
        """The worker's name; empty when there is none."""
        return self._workers.get(session, "") if session else ""

    def moved(self, session: SessionKey, worker: str) -> None:
        """The session is on this worker from now on."""
        if not session:
            return
        self._workers[session] = worker
        self._workers.move_to_end(session)
        if len(self._workers) > self._capacity:
            self._workers.popitem(last=False)

    # ---- turns

    def turn_began(self, session: SessionKey) -> None:
        """A turn runs; the session does not end before it."""
        if session:
            self._running[session] += 1

    def turn_ended(self, session: SessionKey, tenant: bytes, chain: bytes) -> None:
        """A turn is over, well or not, and has left the pages of `chain`, n x 16 bytes."""
        pages = list(split_hashes(chain))
        if session:
            self._running[session] -= 1
            if not self._running[session]:
                del self._running[session]
            self._freed += self._table.renew(session, pages, time.monotonic(), self._ttl_s)
        self._tell(session, tenant, chain)

    def strayed(self, pages: Sequence[bytes]) -> None:
        """Pages that a cancelled turn has left and that no turn will name."""
        self._freed += pages
        self._mail.set()

    def _tell(self, session: SessionKey, tenant: bytes, chain: bytes) -> None:
        if self._stores and chain:
            self._turns.append(
                kv.SessionTurn(
                    session=session,
                    tenant=tenant,
                    page_hashes=chain,
                    ttl_ms=int(self._ttl_s * 1000),
                    family=self._table.family(session),
                )
            )
            del self._turns[:-_MOST_TURNS]
        self._mail.set()

    # ---- ends and forks

    async def close(self, session: SessionKey) -> tuple[int, int]:
        """Ends a session: (pages freed, turns that still run and end it when they do)."""
        running = self._running[session]
        if running:
            self._closing.add(session)
            return 0, running
        self._workers.pop(session, None)
        free = await self._release([session], self._table.close(session))
        return len(free), 0

    def fork(self, parent: SessionKey, child: SessionKey, tenant: bytes) -> int:
        """The child has the parent's pages from now on; how many. Raises Refusal."""
        if child in self._table or self._running[child]:
            raise Refusal(
                errors.ERROR_REASON_DUPLICATE_REQUEST,
                "new_session_id names a session that has turns already; fork to a new one",
                {"field": "new_session_id"},
            )
        if not self._table.fork(parent, child, time.monotonic(), self._ttl_s):
            raise Refusal(
                errors.ERROR_REASON_UNKNOWN_SESSION,
                "session_id names no session that this router knows: it has had no turn here, "
                "or is over",
                {"field": "session_id"},
            )
        chain = self._table.chain(child)
        self.moved(child, self.worker(parent))
        self._tell(child, tenant, b"".join(chain))
        return len(chain)

    # ---- telling others

    async def run(self) -> None:
        """Tells the kvstore of turns, ends what has expired. Ends by cancellation."""
        try:
            while True:
                try:
                    async with asyncio.timeout(_LOOK_S):
                        await self._mail.wait()
                    await asyncio.sleep(_BATCH_S)
                except TimeoutError:
                    pass  # only to look at the clock
                self._mail.clear()
                await self._catch_up()
        finally:
            for link in self._stores.values():
                await link.close()

    async def _catch_up(self) -> None:
        self._freed += self._table.expire(time.monotonic())
        over = [s for s in self._closing if not self._running[s]]
        self._closing.difference_update(over)
        freed, self._freed = self._freed, []
        for session in over:
            freed += self._table.close(session)
            self._workers.pop(session, None)
        if freed or over:
            await self._release(over, freed)
        elif self._turns:
            async with self._speaking:
                await self._tell_turns()

    async def _tell_turns(self) -> None:
        turns, self._turns = self._turns, []
        if turns:
            request = kv.RenewSessionsRequest(turns=turns)
            await asyncio.gather(*(self._renew(a, request) for a in self._stores))

    async def _renew(self, address: str, request: kv.RenewSessionsRequest) -> None:
        stub = kv_pb2_grpc.KvSessionServiceStub(self._stores[address])
        try:
            await stub.RenewSessions(request, timeout=_RPC_S)
        except grpc.aio.AioRpcError as error:
            log.debug("kvstore %s did not hear of turns: %s", address, error.code())

    async def _release(
        self, sessions: Sequence[SessionKey], had: Sequence[bytes]
    ) -> Sequence[bytes]:
        """Makes everybody forget what no session has any more; what that was."""
        request = kv.CloseSessionsRequest(sessions=sessions, page_hashes=b"".join(had))
        async with self._speaking:
            await self._tell_turns()
            answers = await asyncio.gather(*(self._end(a, request) for a in self._stores))
        # Each kvstore knows every session, unless it has lost its memory: all must agree.
        heard = [set(split_hashes(answer)) for answer in answers if answer is not None]
        free = list(had)
        if heard:
            named = dict.fromkeys([*had, *(page for pages in heard for page in pages)])
            free = [page for page in named if all(page in pages for pages in heard)]
        free = [p for p in free if not self._table.live(p) and not self._table.shared(p)]
        if free:
            self._index.drop(free)
            hashes = b"".join(free)
            for link in (*self._pool.decode, *self._pool.prefill):
                link.forget(hashes)
        return free

    async def _end(self, address: str, request: kv.CloseSessionsRequest) -> bytes | None:
        stub = kv_pb2_grpc.KvSessionServiceStub(self._stores[address])
        try:
            answer: kv.CloseSessionsResponse = await stub.CloseSessions(request, timeout=_RPC_S)
        except grpc.aio.AioRpcError as error:
            log.debug("kvstore %s did not hear of closed sessions: %s", address, error.code())
            return None
        return answer.page_hashes
