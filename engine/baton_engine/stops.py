"""Which token ends a request: eos, stop tokens, and the token that completes a stop string.

The router finds stop strings too, because it cuts the text there; a worker that knows them stops
computing at that very token instead of a round trip later. A worker must never stop earlier than
the router would: text is matched within runs of ordinary tokens only, since what a special token
becomes in the text is the router's decision.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from baton_engine.events import FinishReason
from baton_engine.ports import StopMatch
from baton_engine.request import StopParams

log = logging.getLogger(__name__)

_NO_TOKEN = -1
_NO_TOKENS = np.empty(0, np.int32)
# A run of tokens this long without one whole character is not going to have one. The stream
# decodes all of the run again with every token, so it must end somewhere.
_HOPELESS_TOKENS = 128


class TokenStopMatcher:
    """Implements baton_engine.ports.StopMatcher. Not thread-safe; the step loop owns it.

    Token ids are compared for the whole batch at once; only rows with stop strings are decoded.
    """

    def __init__(self, max_slots: int, tokenizer: Tokenizer | None = None) -> None:
        """Without a tokenizer, stop strings are left to the router."""
        self._tokenizer = tokenizer
        self._special = _special_ids(tokenizer)
        self._ids = np.full((max_slots, 4), _NO_TOKEN, np.int32)  # eos ids, then stop tokens
        self._eos = np.zeros(max_slots, np.int64)  # how many of the ids are eos
        self._texts: dict[int, StopText] = {}
        self._has_text = np.zeros(max_slots, np.bool_)

    @classmethod
    def of_checkpoint(cls, checkpoint: Path, max_slots: int) -> TokenStopMatcher:
        """With the checkpoint's tokenizer.json, when it has one."""
        path = checkpoint / "tokenizer.json"
        if not path.is_file():
            log.warning("%s does not exist: stop strings are left to the router", path)
            return cls(max_slots)
        return cls(max_slots, Tokenizer.from_file(str(path)))

    def add(
        self, slot: int, params: StopParams, output_tokens: NDArray[np.int32] = _NO_TOKENS
    ) -> None:
        """Start a slot, replacing what was there. `output_tokens` were generated before: a stop
        string may have begun in them."""
        self.drop(slot)
        ids = (*params.eos_token_ids, *params.stop_token_ids)
        if len(ids) > self._ids.shape[1]:
            wider = np.full((len(self._ids), len(ids)), _NO_TOKEN, np.int32)
            wider[:, : self._ids.shape[1]] = self._ids
            self._ids = wider
        self._ids[slot, : len(ids)] = ids
        self._eos[slot] = len(params.eos_token_ids)
        if params.stop and self._tokenizer is not None:
            text = StopText(self._tokenizer, params.stop, self._special)
            for token in output_tokens.tolist():
                text.push(token)
            self._texts[slot] = text
            self._has_text[slot] = True

    def drop(self, slot: int) -> None:
        """Forget a slot; unknown slots are ignored."""
        self._ids[slot] = _NO_TOKEN
        self._has_text[slot] = False
        self._texts.pop(slot, None)

    def remembers(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[L] which slots look for text that several tokens make up."""
        return self._has_text[slots]

    def check(
        self, slots: NDArray[np.int64], tokens: NDArray[np.int32]
    ) -> tuple[NDArray[np.uint8], dict[int, StopMatch]]:
        """Per row 1 where the token ends the request; for those rows (by index) why."""
        hits = self._ids[slots] == tokens[:, None]
        ended = hits.any(axis=1)
        matches: dict[int, StopMatch] = {}
        for row in np.flatnonzero(ended).tolist():
            is_eos = hits[row].argmax() < self._eos[slots[row]]
            matches[row] = StopMatch(FinishReason.EOS if is_eos else FinishReason.STOP_TOKEN)
        if self._texts:
            for row in np.flatnonzero(self._has_text[slots] & ~ended).tolist():
                matched = self._texts[int(slots[row])].push(int(tokens[row]))
                if matched is not None:
                    ended[row] = True
                    matches[row] = StopMatch(FinishReason.STOP_STRING, matched)
        return ended.astype(np.uint8), matches


class StopText:
    """The text of one request, searched for its stop strings as it grows."""

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], special: frozenset[int] = frozenset()
    ) -> None:
        self._tokenizer = tokenizer
        self._special = special
        # Of stop strings that end together the longest wins, as at the router.
        self._stops = sorted(stops, key=len, reverse=True)
        self._keep = max(map(len, stops)) - 1
        self._begin()

    def _begin(self) -> None:
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tail = ""
        self._silent = 0  # tokens since the last whole character

    def push(self, token: int) -> str | None:
        """The stop string that this token completes, or None."""
        if token in self._special:
            self._begin()
            return None
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception as error:  # noqa: BLE001 - tokenizers knows no narrower one
            # Its decoder rewrote what it had said before. The router still finds the stop string.
            log.warning("stop strings begin anew: token %d: %s", token, error)
            self._begin()
            return None
        if not text:
            self._silent += 1
            if self._silent >= _HOPELESS_TOKENS:
                self._begin()
            return None
        self._silent = 0
        text = self._tail + text
        found = _first_to_end(text, self._stops)
        self._tail = text[-self._keep :] if self._keep else ""
        return found


def _first_to_end(text: str, stops: Sequence[str]) -> str | None:
    """The stop string whose occurrence ends first, of several the first in `stops`."""
    best, best_end = None, len(text) + 1
    for stop in stops:
        begin = text.find(stop)
        if begin >= 0 and begin + len(stop) < best_end:
            best, best_end = stop, begin + len(stop)
    return best


def _special_ids(tokenizer: Tokenizer | None) -> frozenset[int]:
    if tokenizer is None:
        return frozenset()
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(token for token, info in added.items() if info.special)
