"""Two processes exchange pages: lease, NIXL read, checksum, release, verdict."""

import asyncio

import numpy as np
import pytest

from baton.v1 import kv_pb2 as pb
from baton.v1.kv_pb2_grpc import KvPeerServiceStub
from baton_rpc import Refusal, channel
from baton_transfer import HolderLost, PullFailure, PullSettings, ReadFailure
from baton_transfer.lease_stream import LeaseStream, Unreachable

from .transfer_holder import hashes, identity
from .transfer_rig import check_pages, holder, reading


def scattered(count: int, of: int = 64) -> np.ndarray:
    return np.random.default_rng(7).permutation(of)[:count].astype(np.int32)


async def test_pages_arrive_whole_at_scattered_targets() -> None:
    with holder() as peer:
        async with reading() as mine:
            targets = scattered(40)
            pulled = await mine.puller.pull(peer.peer, hashes(1, 40), targets)
            assert (pulled.arrived, pulled.failure) == (40, None)
            assert pulled.moved_bytes == 40 * 65536
            check_pages(mine.arena, targets, 1)
            untouched = np.setdiff1d(np.arange(64), targets)
            assert not mine.arena.pages[untouched].any()


async def test_each_cache_group_is_pulled_into_its_own_arena() -> None:
    sizes = (65536, 4096 * 41)
    with holder(page_bytes=sizes) as peer:
        async with reading(page_bytes=sizes) as mine:
            targets = scattered(20), scattered(9)[::-1].copy()
            both = await asyncio.gather(
                mine.puller.pull(peer.peer, hashes(1, 20), targets[0]),
                mine.puller.pull(peer.peer, hashes(1, 9, group=1), targets[1], group=1),
            )
            for pulled, pages, arena, seed in zip(both, targets, mine.arenas, (1, 2), strict=True):
                assert (pulled.arrived, pulled.failure) == (len(pages), None), pulled
                check_pages(arena, pages, seed)
                assert not arena.pages[np.setdiff1d(np.arange(64), pages)].any()
            other = await mine.puller.pull(peer.peer, hashes(1, 1), targets[0][:1], group=1)
            assert other.failure is PullFailure.NOT_HELD, "identities are of one group"
            with pytest.raises(ValueError, match="group 2"):
                await mine.puller.pull(peer.peer, hashes(1, 1), targets[0][:1], group=2)


async def test_a_holder_that_has_fewer_pages_gives_its_prefix() -> None:
    with holder(pages=8) as peer:
        async with reading() as mine:
            pulled = await mine.puller.pull(peer.peer, hashes(1, 12), scattered(12))
            assert (pulled.arrived, pulled.failure) == (8, PullFailure.NOT_HELD)
            none = await mine.puller.pull(peer.peer, hashes(2, 3), scattered(3))
            assert (none.arrived, none.failure) == (0, PullFailure.NOT_HELD)


async def test_a_page_that_differs_from_its_checksum_is_rejected_with_what_follows() -> None:
    with holder(corrupt=[5]) as peer:
        async with reading() as mine:
            targets = scattered(16)
            pulled = await mine.puller.pull(peer.peer, hashes(1, 16), targets)
            assert pulled.arrived == 5
            assert pulled.failure is PullFailure.READ
            assert pulled.read_failure is ReadFailure.CHECKSUM
            check_pages(mine.arena, targets[:5], 1)


async def test_an_expired_lease_discards_what_no_checksum_proves() -> None:
    # The lease is over before it could be released: the holder may have reused the pages.
    with holder(ttl_cap_ms=0, checksums=False) as peer:
        async with reading() as mine:
            pulled = await mine.puller.pull(peer.peer, hashes(1, 4), scattered(4))
            assert (pulled.arrived, pulled.failure) == (0, PullFailure.EXPIRED)


async def test_pages_that_prove_themselves_need_no_verdict_and_its_answer_is_counted() -> None:
    with holder(ttl_cap_ms=0) as peer:
        async with reading() as mine:
            targets = scattered(4)
            pulled = await mine.puller.pull(peer.peer, hashes(1, 4), targets)
            assert (pulled.arrived, pulled.failure) == (4, None)
            check_pages(mine.arena, targets, 1)
            await mine.puller.released()
            assert mine.puller.outlived == 1


async def test_who_has_no_ticket_is_not_answered() -> None:
    with holder() as peer:
        async with channel(peer.peer.address) as link:
            hello = pb.HandshakeRequest(reader=pb.Peer(name="r"), cache=identity(65536))
            hands = await KvPeerServiceStub(link).Handshake(hello)
        epoch = peer.peer.epoch
        acquire = pb.AcquireRequest(reader="r", epoch=epoch, page_hashes=bytes(16), ttl_ms=1000)
        for ticket, answered in ((bytes(16), False), (hands.lease_ticket, True)):
            stream = await LeaseStream.dial(peer.peer.address, hands.lease_port, ticket, 5.0)
            asking = stream.ask(pb.LeaseRequest(acquire=acquire), 5.0)
            if answered:
                assert (await asking).acquire.lease_id == 0
            else:
                with pytest.raises(Unreachable, match="ended"):
                    await asking
            stream.close()


async def test_a_refusal_of_one_request_leaves_the_connection_to_the_others() -> None:
    with holder() as peer:
        async with channel(peer.peer.address) as link:
            hello = pb.HandshakeRequest(reader=pb.Peer(name="r"), cache=identity(65536))
            hands = await KvPeerServiceStub(link).Handshake(hello)
        port, ticket = hands.lease_port, hands.lease_ticket
        stream = await LeaseStream.dial(peer.peer.address, port, ticket, 5.0)
        stale = pb.AcquireRequest(reader="r", epoch=7, page_hashes=bytes(16))
        cut = pb.AcquireRequest(reader="r", epoch=peer.peer.epoch, page_hashes=bytes(15))
        right = pb.AcquireRequest(reader="r", epoch=peer.peer.epoch, page_hashes=bytes(16))
        told = await asyncio.gather(
            *(stream.ask(pb.LeaseRequest(acquire=what), 5.0) for what in (stale, cut, right)),
            stream.ask(pb.LeaseRequest(), 5.0),
            return_exceptions=True,
        )
        names = [e.reason_name if isinstance(e, Refusal) else None for e in told]
        assert names == [
            "ERROR_REASON_STALE_EPOCH",
            "ERROR_REASON_MALFORMED_MESSAGE",
            None,
            "ERROR_REASON_MISSING_FIELD",
        ]
        assert told[0].metadata == {"epoch": str(peer.peer.epoch)}
        stream.close()


async def test_without_checksums_the_verdict_is_enough() -> None:
    with holder(checksums=False) as peer:
        async with reading() as mine:
            targets = scattered(4)
            pulled = await mine.puller.pull(peer.peer, hashes(1, 4), targets)
            assert (pulled.arrived, pulled.failure) == (4, None)
            check_pages(mine.arena, targets, 1)


@pytest.mark.parametrize("difference", ["fingerprint", "page_bytes"])
async def test_caches_that_differ_are_refused_by_name(difference: str) -> None:
    held = {"fingerprint": "other model"} if difference == "fingerprint" else {"page_bytes": 4096}
    with holder(**held) as peer:
        async with reading() as mine:
            pulled = await mine.puller.pull(peer.peer, hashes(1, 4), scattered(4))
            assert pulled.failure is PullFailure.REFUSED
            assert "INCOMPATIBLE_PEER" in pulled.detail
            assert difference in pulled.detail


async def test_pulls_larger_than_the_credit_go_in_parts() -> None:
    with holder() as peer:
        async with reading(settings=PullSettings(credit_bytes=10 * 65536)) as mine:
            targets = scattered(64)
            pulled = await mine.puller.pull(peer.peer, hashes(1, 64), targets)
            assert (pulled.arrived, pulled.failure) == (64, None)
            check_pages(mine.arena, targets, 1)


async def test_handovers_are_followed_to_the_first_token_and_handed_over() -> None:
    with holder() as peer:
        async with reading() as mine:
            seen = [h async for h in mine.puller.follow(peer.peer, "r1", 1)]
            assert seen[-1].first_token.token_id == 42
            assert seen[-1].sealed_pages == 3
            waiting = mine.puller.follow(peer.peer, "r2", 1)
            await mine.puller.pull(peer.peer, hashes(1, 3), scattered(3), handed_over=("r1", 1))
            # The holder says so only once it heard that r1 is handed over.
            assert [h.failed async for h in waiting] == [40]


async def test_a_follower_learns_of_a_lost_or_restarted_holder() -> None:
    async with reading() as mine:
        with holder() as peer:
            waiting = mine.puller.follow(peer.peer, "r3", 1)
            await anext(mine.puller.follow(peer.peer, "r1", 1))
            peer.process.kill()
            with pytest.raises(HolderLost, match=peer.peer.address):
                await anext(waiting)
        with holder() as again:
            past = pb.Peer(name="holder", address=again.peer.address, epoch=peer.peer.epoch)
            with pytest.raises(HolderLost, match="STALE_EPOCH"):
                await anext(mine.puller.follow(past, "r1", 1))


@pytest.mark.parametrize("listed", [False, True])
async def test_a_restarted_holder_is_read_in_its_new_life(listed: bool) -> None:
    async with reading() as mine:
        with holder(listed=listed) as first:
            pulled = await mine.puller.pull(first.peer, hashes(1, 4), scattered(4))
            assert pulled.failure is None
        gone = await mine.puller.pull(first.peer, hashes(1, 4), scattered(4))
        assert gone.failure in (PullFailure.UNREACHABLE, PullFailure.READ)
        assert gone.arrived == 0
        with holder(listen=first.peer.address, listed=listed) as second:
            assert second.peer.epoch != first.peer.epoch
            targets = scattered(6)
            pulled = await mine.puller.pull(first.peer, hashes(1, 6), targets)
            assert (pulled.arrived, pulled.failure) == (6, None), pulled
            check_pages(mine.arena, targets, 1)
