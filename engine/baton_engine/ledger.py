"""The live attempts of an engine: what is known of each beside the scheduler's state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from baton_engine.events import Cost, TokenLogprob
from baton_engine.request import Await, EngineRequest, HandOver, RequestKey


@dataclass(slots=True)
class LiveRequest:
    """One attempt from submit to its last event. Guarded by the engine's lock."""

    handle: int
    request: EngineRequest
    submitted_us: int
    cost: Cost = field(default_factory=Cost)
    emitted: list[int] = field(default_factory=list)  # tokens this attempt generated
    admitted_us: int | None = None  # first admission
    awaiting: bool = False  # Await: pages and first token are still to come
    prefill_lost: bool = False  # Await: the router says that nothing will come
    # Await: what the prefill worker sampled, told once the scheduler has made it official.
    first_token: int | None = None
    first_logprob: TokenLogprob | None = None
    first_known_us: int | None = None
    # HandOver: leading pages of the chain a reader can lease.
    sealed_pages: int = 0
    prefilled: bool = False

    @property
    def key(self) -> RequestKey:
        return self.request.key

    @property
    def hands_over(self) -> bool:
        return isinstance(self.request.goal, HandOver)

    @property
    def next_position(self) -> int:
        """Index in prompt + output of the next token to be generated."""
        return len(self.request.token_ids) + len(self.emitted)

    def token_at(self, position: int) -> int:
        """The token at an index in prompt + output that is known."""
        behind = position - len(self.request.token_ids)
        return self.emitted[behind] if behind >= 0 else int(self.request.token_ids[position])

    def sampling_history(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(prompt tokens, output tokens so far, earlier attempts included)."""
        tokens, prompt = self.request.token_ids, self.request.prompt_tokens
        output = np.concatenate([tokens[prompt:], np.array(self.emitted, np.int32)])
        return tokens[:prompt], output


class Ledger:
    """Live attempts by scheduler handle and by (request_id, attempt)."""

    def __init__(self) -> None:
        self._by_handle: dict[int, LiveRequest] = {}
        self._handles: dict[RequestKey, int] = {}
        self._next_handle = 1

    def __len__(self) -> int:
        return len(self._by_handle)

    def __iter__(self) -> Iterator[LiveRequest]:
        return iter(list(self._by_handle.values()))

    def __contains__(self, key: RequestKey) -> bool:
        return key in self._handles

    def new_handle(self) -> int:
        """A handle never given before."""
        handle = self._next_handle
        self._next_handle += 1
        return handle

    def add(self, handle: int, request: EngineRequest, now_us: int) -> LiveRequest:
        live = LiveRequest(handle, request, now_us, awaiting=isinstance(request.goal, Await))
        self._by_handle[handle] = live
        self._handles[request.key] = handle
        return live

    def get(self, handle: int) -> LiveRequest | None:
        """The attempt, or None when it is over."""
        return self._by_handle.get(handle)

    def find(self, key: RequestKey) -> LiveRequest | None:
        handle = self._handles.get(key)
        return None if handle is None else self._by_handle[handle]

    def end(self, live: LiveRequest) -> None:
        """Forget an attempt whose last event has been written."""
        del self._by_handle[live.handle]
        del self._handles[live.key]
