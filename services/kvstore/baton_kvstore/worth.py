"""What a page is worth to a tier: the seconds that its loss would cost, per byte of it.

Pure. Recompute cost x likelihood / bytes. To lose page i of a chain of n is to compute pages i to
n-1 again, since nothing after a gap can be used: so the tail of a chain goes before its head.
A page costs its tokens' share of the layers, which is the same for all, and their attention, which
grows with its position.
"""

from dataclasses import dataclass

# Position at which a token's attention costs as much as the rest of it. It only has to be of
# the right size: it says by how much the far end of a long chain is dearer than a short one.
_EVEN_TOKENS = 8192.0
# How likely an agent's next turn finds its session again: the hit rate of public agent traces.
_SESSION_RETURNS = 0.96
# What reading a page back from the disk costs, in computed pages: a lost copy is not a lost page.
_COPY_COST = 0.05


@dataclass(slots=True)
class Sighting:
    """What has been seen of a page, whether or not it is held."""

    uses: int = 0  # turns that had it in their chain, and readers that asked for it
    shared: bool = False  # sessions that are no forks had it at once: a system prompt
    tenant: bytes = b""  # empty: nobody has said
    index: int = 0  # its place in the chain
    length: int = 1  # pages of the longest chain seen with it


def recompute_cost(index: int, length: int, page_tokens: int) -> float:
    """Of pages [index, length) of a chain, in pages computed at position 0."""
    first, last = min(index, length - 1), length
    slope = page_tokens / _EVEN_TOKENS
    return (last - first) + slope * (last * (last - 1) - first * (first - 1)) / 2


def likelihood(sighting: Sighting, live_sessions: int) -> float:
    """That the page is asked for again."""
    if live_sessions or sighting.shared:
        return _SESSION_RETURNS
    return sighting.uses / (sighting.uses + 2.0)


def worth(
    sighting: Sighting, live_sessions: int, page_tokens: int, page_bytes: int, *, copy: bool = False
) -> float:
    """Cost per MiB. `copy`: another tier has the page too, so that only a read is lost."""
    if copy:
        cost = _COPY_COST * (sighting.length - min(sighting.index, sighting.length - 1))
    else:
        cost = recompute_cost(sighting.index, sighting.length, page_tokens)
    return cost * likelihood(sighting, live_sessions) / (page_bytes / (1 << 20))
