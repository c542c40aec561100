"""The front door: API, sessions, tokenising, routing, failover."""

from baton_router.config import RouterConfig
from baton_router.serve import serve

__all__ = ["RouterConfig", "serve"]
