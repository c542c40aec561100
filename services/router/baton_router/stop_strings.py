"""Finds stop strings in text that arrives in pieces, and holds back what might become one."""

from collections.abc import Sequence


class StopMatcher:
    """Passes text on as soon as no stop string can begin in it any more.

    The result does not depend on how the text is cut into pieces: the match is
    the one that ends first, and of those that end together the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._prefixes = {stop[:n] for stop in stops for n in range(1, len(stop))}
        self._longest = max((len(prefix) for prefix in self._prefixes), default=0)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Takes the next piece; returns what is certain. After a match, nothing more comes."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = self._first(text)
        if found is not None:
            self._held = ""
            return text[:found]
        hold = self._possible(text)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def finish(self) -> str:
        """The text ends here: returns what was held back."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> int | None:
        best_end = best_begin = -1
        for stop in self._stops:
            begin = text.find(stop)
            end = begin + len(stop)
            if begin >= 0 and (best_begin < 0 or end < best_end):
                best_begin, best_end, self.matched = begin, end, stop
        return best_begin if best_begin >= 0 else None

    def _possible(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for length in range(min(len(text), self._longest), 0, -1):
            if text[-length:] in self._prefixes:
                return length
        return 0
