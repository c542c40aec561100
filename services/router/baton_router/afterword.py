"""What a decode worker still says of an attempt after the router has cancelled it.

Tokens that were on their way then are nobody's, and so are the pages that only they complete: no
session will ask for those. A worker seals no page without having told its tokens, so at its last
word of the attempt all of them can be named.
"""

import logging
from collections.abc import Callable, Sequence

from baton.v1 import worker_pb2 as wire
from baton_router.ledger import Gap, Ledger
from baton_router.worker_link import WorkerLink

log = logging.getLogger("baton.router")


class Afterword:
    """A `worker_link.Listener` of one attempt, from its cancellation to its last word."""

    def __init__(self, ledger: Ledger, ended: Callable[[Ledger], None]) -> None:
        """`ledger`: a record that starts where the request's ends; `ended` is told of it once."""
        self._ledger = ledger
        self._ended = ended
        self.over = False

    def read(self, link: WorkerLink, mail: Sequence[wire.RequestUpdate | WorkerLink]) -> None:
        """What had come already when the attempt was cancelled, and nobody had read."""
        for item in mail:
            if isinstance(item, WorkerLink):
                self.lost(item)
            else:
                self.updated(link, item)

    def updated(self, link: WorkerLink, update: wire.RequestUpdate) -> None:
        """Tokens are noted; the last word ends it."""
        if self.over:
            return
        if update.HasField("tokens"):
            try:
                self._ledger.accept(update.tokens)
            except Gap as gap:
                log.error("%s at %s, cancelled: %s", update.request_id, link.name, gap)
        elif update.HasField("done") or update.HasField("failed"):
            self.over = True
            link.detach(update.request_id, update.attempt)
            self._ended(self._ledger)

    def lost(self, link: WorkerLink) -> None:
        """What the worker had is gone with it, or out of reach."""
        self.over = True
