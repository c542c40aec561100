"""KvPeerService of the kvstore: what the disk has is brought into DRAM before it is leased."""

from baton.v1 import kv_pb2 as pb
from baton_kvstore.directory import HASH_BYTES, split_hashes
from baton_kvstore.nvme import NvmeTier
from baton_kvstore.tier import TierHolder
from baton_transfer import KvPeerServicer, LeaseAnswer


class TierServicer(KvPeerServicer):
    """As every holder's, and waits for the disk; `disks`, of each cache group, come later."""

    def __init__(self, holder: TierHolder, me: pb.Peer) -> None:
        super().__init__(holder, me)
        self.disks: list[NvmeTier] = []

    def answer(self, request: pb.LeaseRequest) -> LeaseAnswer:
        """As every holder's."""
        wanted, group = request.acquire.page_hashes, request.acquire.group
        if group >= len(self.disks) or not wanted or len(wanted) % HASH_BYTES:
            return self.answer_now(request)
        return self._loaded(self.disks[group], request)

    async def _loaded(self, disk: NvmeTier, request: pb.LeaseRequest) -> pb.LeaseResponse:
        unpin = await disk.load(split_hashes(request.acquire.page_hashes))
        try:
            return self.answer_now(request)
        finally:
            unpin()
