"""KvPeerService of the kvstore: what the disk has is brought into DRAM before it is leased."""

from baton.v1 import kv_pb2 as pb
from baton_kvstore.directory import HASH_BYTES, split_hashes
from baton_kvstore.nvme import NvmeTier
from baton_kvstore.tier import TierHolder
from baton_transfer import KvPeerServicer, LeaseAnswer


class TierServicer(KvPeerServicer):
    """As every holder's, and waits for the disk; `disk` is set once there is one."""

    def __init__(self, holder: TierHolder, me: pb.Peer) -> None:
        super().__init__(holder, me)
        self.disk: NvmeTier | None = None

    def answer(self, request: pb.LeaseRequest) -> LeaseAnswer:
        """As every holder's."""
        wanted = request.acquire.page_hashes
        if self.disk is None or not wanted or len(wanted) % HASH_BYTES:
            return self.answer_now(request)
        return self._loaded(self.disk, request)

    async def _loaded(self, disk: NvmeTier, request: pb.LeaseRequest) -> pb.LeaseResponse:
        unpin = await disk.load(split_hashes(request.acquire.page_hashes))
        try:
            return self.answer_now(request)
        finally:
            unpin()
