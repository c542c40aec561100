"""Releases whose verdict no pull waits for."""

import asyncio
import logging

from baton_rpc import Refusal
from baton_transfer.lease_stream import Unreachable
from baton_transfer.peers import Holder

log = logging.getLogger("baton.transfer")


class _Batch:
    """Leases of one life of a holder that end together."""

    def __init__(self) -> None:
        self.leases: list[int] = []
        self.handed_over: list[tuple[str, int]] = []


class Releases:
    """Sent when the loop comes round, after the pull has returned: in one message for all the
    leases of a holder that have gathered. Unheard, the holder lets go by its own clock."""

    def __init__(self) -> None:
        self._due: dict[tuple[Holder, int, bool], _Batch] = {}  # by holder, epoch, proven
        self._running: set[asyncio.Task[None]] = set()
        self.outlived = 0  # leases that had ended though the pages that were read are whole

    def proven(
        self, holder: Holder, epoch: int, lease: int, handed_over: list[tuple[str, int]]
    ) -> None:
        """Ends a lease whose pages are accepted already."""
        batch = self._batch(holder, epoch, True)
        batch.leases.append(lease)
        batch.handed_over += handed_over

    def unleased(self, holder: Holder, epoch: int, handed_over: tuple[str, int]) -> None:
        """There was no lease to end; the request is told of all the same."""
        self._batch(holder, epoch, True).handed_over.append(handed_over)

    def unwanted(self, holder: Holder, epoch: int, lease: int) -> None:
        """Ends a lease of which nothing is used."""
        self._batch(holder, epoch, False).leases.append(lease)

    async def ended(self) -> None:
        """When every one is answered."""
        while self._due or self._running:
            self._send()
            await asyncio.wait(self._running)

    def _batch(self, holder: Holder, epoch: int, proven: bool) -> _Batch:
        if not self._due:
            asyncio.get_running_loop().call_soon(self._send)
        key = (holder, epoch, proven)
        batch = self._due.get(key)
        if batch is None:
            batch = self._due[key] = _Batch()
        return batch

    def _send(self) -> None:
        due, self._due = self._due, {}
        for (holder, epoch, proven), batch in due.items():
            sending = asyncio.create_task(self._release(holder, epoch, batch, proven))
            self._running.add(sending)
            sending.add_done_callback(self._running.discard)

    async def _release(self, holder: Holder, epoch: int, batch: _Batch, proven: bool) -> None:
        try:
            valid = await holder.release(epoch, batch.leases, batch.handed_over, proven=proven)
        except (Refusal, Unreachable) as error:
            log.info("leases of %s were not released: %s", holder.address, error)
            return
        late = len(batch.leases) - sum(valid)
        if proven and late:
            self.outlived += late
            log.info(
                "%d leases of %s ended during reads; every page was whole", late, holder.address
            )
