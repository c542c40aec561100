"""One execution of a request: at one decode worker, with or without a prefill worker beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.v1 import inference_pb2 as pb
from baton_router.page_index import PageIndex
from baton_router.usage import AttemptCost
from baton_router.worker_link import Listener, WorkerLink


@dataclass
class Attempt:
    """One execution at one decode worker, with the prefill worker beside it."""

    request_id: str
    number: int
    decode: WorkerLink
    prefill: WorkerLink | None
    cost: AttemptCost
    index: PageIndex
    over: bool = False
    prompt_done: bool = False
    pending: int = 0  # prompt tokens that count as the computing worker's load
    decode_name: str = ""
    prefill_name: str = ""
    prefill_over: bool = field(default=True)

    @property
    def computing(self) -> WorkerLink:
        """Who computes the prompt."""
        return self.prefill or self.decode

    def begin(self, pending: int) -> None:
        """Commands are on their way."""
        self.pending = pending
        self.computing.pending_tokens += pending
        self.decode_name = self.decode.name
        self.prefill_name = self.prefill.name if self.prefill else ""
        self.prefill_over = self.prefill is None

    def prompt_computed(self) -> None:
        """The first token is here."""
        self.prompt_done = True
        self._unburden()

    def prefill_finished(self) -> None:
        """The prefill worker has nothing left to do for this attempt."""
        self.prefill_over = True
        if self.prefill is not None:
            self.prefill.detach(self.request_id, self.number)
        self._unburden()

    def prefill_gone(self) -> None:
        """It died or refused: the decode worker computes what has not arrived."""
        self.prefill_finished()
        if not self.over:
            self.decode.prefill_lost(self.request_id, self.number)

    def done(self) -> None:
        """The decode worker has said its last word."""
        self.over = True
        self.decode.detach(self.request_id, self.number)
        self._unburden()
        cost = self.cost.decode
        if cost is not None and cost.computed_tokens and self.prefill and not self.prefill_over:
            # It did without the hand-over, so nobody will come for the pages.
            self.prefill.cancel(self.request_id, self.number)

    def abandon(self) -> None:
        """The decode worker is gone or has refused."""
        self.over = True
        self.decode.detach(self.request_id, self.number)
        self._unburden()
        if self.prefill is not None and not self.prefill_over:
            self.prefill.cancel(self.request_id, self.number)

    def cancel(self, afterword: Listener | None = None) -> None:
        """Nobody wants it any more; `afterword` hears what the decode worker has yet to say."""
        self.abandon()
        self.decode.cancel(self.request_id, self.number, afterword)

    def leave(self, pages: Sequence[bytes], prompt: Sequence[bytes]) -> None:
        """The request is over. It leaves `pages` where it was decoded and those of its `prompt`
        where that was computed; none when it did not end well."""
        if self.prefill is not None:
            self.prefill.detach(self.request_id, self.number)
        # The directory says so too, but perhaps after the session's next turn has come.
        self._hint(self.decode, pages)
        if self.prefill is not None and self.cost.took == pb.ROUTE_REMOTE:
            self._hint(self.prefill, prompt)

    def _hint(self, link: WorkerLink, pages: Sequence[bytes]) -> None:
        if link.holder is not None:
            self.index.hint(link.holder, pages)

    def _unburden(self) -> None:
        # A link that broke in between has forgotten the figure.
        computing = self.computing
        computing.pending_tokens = max(0, computing.pending_tokens - self.pending)
        self.pending = 0
