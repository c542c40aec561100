"""Tokens of one request to text, one token at a time, stopping at stop strings."""

from collections.abc import Mapping, Sequence

from baton_router.stop_strings import StopMatcher
from baton_router.token_text import TokenDecoder


class TextStream:
    """Incremental detokenisation. Never emits half a character, nor part of a stop string.

    `markers` are special tokens whose text is wanted all the same (tool call tags).
    """

    def __init__(
        self,
        decoder: TokenDecoder,
        *,
        stops: Sequence[str] = (),
        markers: Mapping[int, str] | None = None,
    ) -> None:
        self._decoder = decoder
        self._stops = StopMatcher(stops)
        self._markers = markers or {}

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the text, once one has."""
        return self._stops.matched

    def push(self, token_id: int) -> str:
        """Adds one token; returns the text that became certain, often empty."""
        text = self._markers.get(token_id) or self._decoder.push(token_id)
        return self._stops.feed(text) if text else ""

    def finish(self) -> str:
        """No more tokens: what was held back for a stop string. Half a character is dropped."""
        return "" if self._stops.matched is not None else self._stops.finish()
