"""A kvstore process: directory with resync and expiry, offload and restore, death and return."""

import socket

import grpc
import numpy as np
import pytest

from baton.v1 import errors_pb2 as errors
from baton.v1 import kv_pb2 as pb
from baton.v1 import kv_pb2_grpc
from baton_rpc import channel, refusal_of

from .kvstore_process import healthy, kvstore, publishing, until, watching
from .transfer_holder import hashes, identity, page_hash
from .transfer_rig import check_pages, holder, reading


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def names(seed: int, count: int, first: int = 0) -> set[bytes]:
    return {page_hash(seed, i) for i in range(first, first + count)}


def worker(name: str, epoch: int = 7) -> pb.Peer:
    return pb.Peer(name=name, address="127.0.0.1:1", epoch=epoch)


async def test_watchers_hear_what_is_published_and_withdrawn(port: int) -> None:
    with kvstore(port, capacity_mb=0) as store:
        await healthy(store.address)
        async with watching(store.address) as view:
            async with publishing(store.address, worker("w"), lambda: hashes(1, 3)) as publisher:
                await until(lambda: view.pages.get("w") == names(1, 3))
                publisher.publish(hashes(1, 2, first=3), hashes(1, 1))
                await until(lambda: view.pages["w"] == names(1, 4, first=1))
                async with channel(store.address) as link:
                    stub = kv_pb2_grpc.KvDirectoryServiceStub(link)
                    chain = hashes(1, 10, first=1).tobytes()
                    found = await stub.Locate(pb.LocateRequest(page_hashes=chain))
                    assert [(at.holder.name, at.pages) for at in found.locations] == [("w", 4)]
            # An orderly end withdraws everything.
            await until(lambda: not view.pages.get("w"))
            assert view.snapshots == 1


async def test_a_silent_holder_is_forgotten_and_a_gap_ends_in_a_resync(port: int) -> None:
    with kvstore(port, capacity_mb=0, holder_timeout_s=1.0) as store:
        await healthy(store.address)
        async with watching(store.address) as view, channel(store.address) as link:
            stub = kv_pb2_grpc.KvDirectoryServiceStub(link)
            first = pb.PublishRequest(
                holder=worker("w"), sequence=0, added=hashes(1, 2).tobytes(), cache=identity(65536)
            )
            assert not (await stub.Publish(first)).resync
            gap = pb.PublishRequest(holder=worker("w"), sequence=2, added=hashes(1, 9).tobytes())
            assert (await stub.Publish(gap)).resync
            other_life = pb.PublishRequest(holder=worker("w", epoch=8), sequence=1)
            assert (await stub.Publish(other_life)).resync
            await until(lambda: view.pages.get("w") == names(1, 2))
            await until(lambda: "w" not in view.pages, timeout_s=4.0)


async def test_what_cannot_be_kept_is_refused_by_name(port: int) -> None:
    with kvstore(port, capacity_mb=0) as store:
        await healthy(store.address)
        async with channel(store.address) as link:
            stub = kv_pb2_grpc.KvDirectoryServiceStub(link)
            await stub.Publish(
                pb.PublishRequest(holder=worker("a"), sequence=0, cache=identity(65536))
            )
            other = identity(65536, dtype="bfloat16")
            cases = [
                ({"holder": worker("b"), "cache": other}, errors.ERROR_REASON_INCOMPATIBLE_PEER),
                ({"holder": worker("b")}, errors.ERROR_REASON_MISSING_FIELD),
                (
                    {"holder": worker("b"), "cache": identity(65536), "added": b"odd"},
                    errors.ERROR_REASON_MALFORMED_MESSAGE,
                ),
            ]
            for fields, reason in cases:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Publish(pb.PublishRequest(sequence=0, **fields))
                refusal = refusal_of(caught.value)
                assert refusal is not None
                assert refusal.reason == reason, refusal
                if reason == errors.ERROR_REASON_INCOMPATIBLE_PEER:
                    assert "groups[full].dtype" in refusal.message


async def test_pages_are_offloaded_and_restored_when_the_worker_is_gone(port: int) -> None:
    with kvstore(port) as store:
        await healthy(store.address)
        async with watching(store.address) as view, reading() as mine:
            with holder(pages=32) as peer:
                async with publishing(store.address, peer.peer, lambda: hashes(1, 32)):
                    await until(lambda: view.pages.get("kvstore") == names(1, 32))
            assert view.storage == {"kvstore"}
            targets = np.random.default_rng(3).permutation(64)[:32].astype(np.int32)
            pulled = await mine.puller.pull(view.peers["kvstore"], hashes(1, 32), targets)
            assert (pulled.arrived, pulled.failure) == (32, None)
            check_pages(mine.arena, targets, 1)


async def test_a_full_tier_lets_the_least_recently_used_go(port: int) -> None:
    # 16 pages of 64 KiB.
    with kvstore(port, capacity_mb=1) as store:
        await healthy(store.address)
        async with watching(store.address) as view, reading() as mine:
            with holder(pages=40) as peer:
                async with publishing(store.address, peer.peer, lambda: hashes(1, 12)) as publisher:
                    await until(lambda: view.pages.get("kvstore") == names(1, 12))
                    used = await mine.puller.pull(
                        view.peers["kvstore"], hashes(1, 4), np.arange(4, dtype=np.int32)
                    )
                    assert used.failure is None
                    publisher.publish(hashes(1, 10, first=12))
                    await until(lambda: names(1, 10, first=12) <= view.pages["kvstore"])
            # The four that were read outlive the eight that were not, six of which had to go.
            assert names(1, 4) <= view.pages["kvstore"]
            assert len(view.pages["kvstore"]) == 16


async def test_a_kvstore_that_dies_is_rebuilt_from_its_workers(port: int) -> None:
    with holder(pages=16) as peer:
        async with publishing(f"127.0.0.1:{port}", peer.peer, lambda: hashes(1, 16)) as publisher:
            # Nothing is there yet: publishing fails quietly.
            await until(lambda: publisher.failures > 0)
            with kvstore(port) as store:
                await healthy(store.address)
                async with watching(store.address) as view:
                    await until(lambda: view.pages.get("kvstore") == names(1, 16))
                    first = view.peers["kvstore"].epoch
                    store.kill()
            publisher.publish(hashes(1, 1))
            with kvstore(port) as store:
                await healthy(store.address)
                async with watching(store.address) as view:
                    await until(lambda: view.pages.get("kvstore") == names(1, 16))
                    assert view.pages["holder"] == names(1, 16)
                    assert view.peers["kvstore"].epoch != first
                    assert publisher.synchronised


async def test_what_is_used_once_is_not_taken_and_a_sessions_pages_are_dropped_at_its_end(
    port: int,
) -> None:
    with kvstore(port, admission="reuse") as store, holder(pages=8) as peer:
        await healthy(store.address)
        async with watching(store.address) as view, channel(store.address) as link:
            stub = kv_pb2_grpc.KvSessionServiceStub(link)

            async def turn(count: int, session: bytes = b"", family: bytes = b"") -> None:
                chain = hashes(1, count).tobytes()
                told = pb.SessionTurn(
                    session=session, page_hashes=chain, ttl_ms=60_000, family=family
                )
                await stub.RenewSessions(pb.RenewSessionsRequest(turns=[told]))

            async def close(session: bytes) -> set[bytes]:
                request = pb.CloseSessionsRequest(sessions=[session])
                free = (await stub.CloseSessions(request)).page_hashes
                return {free[i : i + 16] for i in range(0, len(free), 16)}

            a, b = b"a" * 16, b"b" * 16
            async with publishing(store.address, peer.peer, lambda: hashes(1, 8)):
                await turn(8)
                await turn(2)
                await until(lambda: view.pages.get("kvstore") == names(1, 2))
                await turn(4, session=a)
                await until(lambda: view.pages.get("kvstore") == names(1, 4))
                # A fork: what it shares goes with the last of them.
                await turn(5, session=b, family=a)
                await until(lambda: view.pages.get("kvstore") == names(1, 5))
                assert await close(a) == set()
                assert await close(b) == names(1, 5)
                await until(lambda: not view.pages["kvstore"])
                # What two unrelated sessions have had is a system prompt: it stays.
                await turn(3, session=a)
                await turn(2, session=b)
                await until(lambda: view.pages.get("kvstore") == names(1, 3))
                assert await close(a) == names(1, 1, first=2)
                assert await close(b) == set()
                await until(lambda: view.pages["kvstore"] == names(1, 2))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await turn(1, session=b"short")
            refusal = refusal_of(caught.value)
            assert refusal is not None
            assert "turns.session has 5 bytes" in refusal.message
