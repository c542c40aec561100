"""The page directory, and a DRAM tier that keeps copies of workers' pages. Imports no torch."""

from baton_kvstore.config import KvstoreConfig
from baton_kvstore.serve import serve

__all__ = ["KvstoreConfig", "serve"]
