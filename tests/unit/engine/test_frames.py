import socket
import threading

import numpy as np
import pytest

from baton_engine.batch import StepInput
from baton_engine.ranks.frames import (
    FrameSocket,
    HashOrder,
    Kind,
    PeerGone,
    PullOrder,
    pack_hash,
    pack_hashed,
    pack_pull,
    pack_pulled,
    pack_step,
    unpack_draft,
    unpack_hash,
    unpack_hashed,
    unpack_pull,
    unpack_pulled,
    unpack_step,
)
from baton_transfer import ReadFailure, ReadOutcome


def pair() -> tuple[FrameSocket, FrameSocket]:
    left, right = socket.socketpair()
    return FrameSocket(left), FrameSocket(right)


def random_step(rng: np.random.Generator) -> StepInput:
    def ints(*shape: int) -> np.ndarray:
        return rng.integers(-(2**31), 2**31 - 1, shape, dtype=np.int32)

    sizes = rng.integers(0, 40, 6).tolist()
    return StepInput(
        ints(sizes[0], 6),
        ints(sizes[1]),
        ints(sizes[2], 3),
        ints(sizes[3]),
        ints(sizes[4], 2),
        ints(sizes[5], 2),
    )


@pytest.mark.parametrize("seed", range(10))
def test_a_step_survives_the_wire(seed: int) -> None:
    step = random_step(np.random.default_rng(seed))
    back = unpack_step(b"".join(pack_step(step)))
    for name in ("rows", "token_ids", "page_deltas", "slot_resets", "copies", "states"):
        sent, received = getattr(step, name), getattr(back, name)
        assert sent.shape == received.shape and (sent == received).all(), name


def test_what_to_draft_survives_the_wire() -> None:
    rows = np.arange(12, dtype=np.int32).reshape(4, 3)
    assert (unpack_draft(rows.tobytes()).rows == rows).all()
    with pytest.raises(ValueError, match="reshape"):
        unpack_draft(rows.tobytes()[:-4])


def test_a_cut_step_is_refused() -> None:
    payload = b"".join(pack_step(random_step(np.random.default_rng(1))))
    with pytest.raises(ValueError, match="announces"):
        unpack_step(payload[:-4])


@pytest.mark.parametrize("with_sums", [True, False])
def test_pulls_and_their_ends_survive_the_wire(with_sums: bool) -> None:
    sums = np.array([2**64 - 1, 0, 5], np.uint64) if with_sums else None
    order = PullOrder(9, 1.5, 2, b"memory", np.arange(3, dtype=np.int32), np.arange(3, 6), sums)
    back = unpack_pull(b"".join(pack_pull(order)))
    assert (back.pull_id, back.seconds, back.group, back.memory) == (9, 1.5, 2, b"memory")
    assert back.source_pages.tolist() == [0, 1, 2] and back.target_pages.tolist() == [3, 4, 5]
    assert (back.checksums is None) == (sums is None)
    if sums is not None and back.checksums is not None:
        assert back.checksums.tolist() == sums.tolist()
    for failure in (None, ReadFailure.DEADLINE):
        outcome = ReadOutcome(2, 1 << 40, 0.25, failure, "größer\nals", failure is None)
        assert unpack_pulled(b"".join(pack_pulled(9, outcome))) == (9, outcome)


def test_frames_from_many_senders_arrive_whole() -> None:
    left, right = pair()
    payloads = [bytes([i]) * (1 << 16) for i in range(8)]
    senders = [threading.Thread(target=left.send, args=(Kind.STEP, p)) for p in payloads]
    for sender in senders:
        sender.start()
    received = sorted(right.receive()[1] for _ in payloads)
    assert received == payloads
    for sender in senders:
        sender.join()


def test_a_closed_end_is_noticed_by_both_directions() -> None:
    left, right = pair()
    left.close()
    with pytest.raises(PeerGone):
        right.receive()
    with pytest.raises(PeerGone):
        for _ in range(100):
            right.send(Kind.STEP, b"x" * 4096)


def test_checksums_are_asked_for_and_told() -> None:
    pages = np.array([5, 0, 2**31 - 1], np.int32)
    order = unpack_hash(b"".join(pack_hash(HashOrder(7, 1, pages))))
    assert (order.hash_id, order.group, order.pages.tolist()) == (7, 1, pages.tolist())
    sums = np.array([2**64 - 1, 0, 5], np.uint64)
    told, back = unpack_hashed(b"".join(pack_hashed(7, sums)))
    assert (told, back.tolist()) == (7, sums.tolist())
    none = unpack_hash(b"".join(pack_hash(HashOrder(8, 0, pages[:0]))))
    assert none.pages.tolist() == []
