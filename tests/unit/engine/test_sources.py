"""What a source has of a chain, whole or its part of it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from baton.v1.kv_pb2 import Peer
from baton_engine.request import Source


@given(st.integers(0, 40), st.sets(st.integers(0, 39)), st.lists(st.integers(0, 60), max_size=20))
def test_a_source_has_its_part_of_the_leading_pages(
    pages: int, part: set[int], asked: list[int]
) -> None:
    bits = np.isin(np.arange(40), list(part))
    packed = np.packbits(bits, bitorder="little").tobytes()
    indices = np.array(asked, np.int64)
    whole, shard = Source(Peer(), pages), Source(Peer(), pages, packed)
    assert whole.has(indices).tolist() == [i < pages for i in asked]
    assert shard.has(indices).tolist() == [i < pages and i in part for i in asked]
