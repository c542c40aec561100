"""Moves pages between processes: leases over TCP, bytes by NIXL READ.

Imports no torch. `configure_ucx` must run before the first Exporter or PageReader.
"""

from baton_transfer.arena import MemoryType, PageArena
from baton_transfer.cache_reader import CacheReader
from baton_transfer.exporter import Exporter
from baton_transfer.following import Follower, HolderLost
from baton_transfer.fragments import Cut
from baton_transfer.holder import LeaseGrant, PageHolder
from baton_transfer.identity import WIRE_VERSION, cache_identity, differing_field, new_epoch
from baton_transfer.lease_desk import LeaseAnswer
from baton_transfer.leases import LeaseBook
from baton_transfer.outcome import Pulled, PullFailure, ReadFailure, ReadOutcome, together
from baton_transfer.page_file import FileQueue, PageFile, PageFileError
from baton_transfer.publisher import DirectoryPublisher
from baton_transfer.puller import Puller, PullSettings
from baton_transfer.reader import PageReader
from baton_transfer.seals import SealTable
from baton_transfer.servicer import KvPeerServicer
from baton_transfer.share import Stop
from baton_transfer.ucx import Transport, configure_ucx

__all__ = [
    "CacheReader",
    "Cut",
    "DirectoryPublisher",
    "Exporter",
    "FileQueue",
    "Follower",
    "HolderLost",
    "KvPeerServicer",
    "LeaseAnswer",
    "LeaseBook",
    "LeaseGrant",
    "MemoryType",
    "PageArena",
    "PageFile",
    "PageFileError",
    "PageHolder",
    "PageReader",
    "PullFailure",
    "PullSettings",
    "Pulled",
    "Puller",
    "ReadFailure",
    "ReadOutcome",
    "SealTable",
    "Stop",
    "Transport",
    "WIRE_VERSION",
    "cache_identity",
    "configure_ucx",
    "differing_field",
    "new_epoch",
    "together",
]
