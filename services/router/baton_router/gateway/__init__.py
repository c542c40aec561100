"""The router as a worker of SMG: the TokenSpeed scheduler protocol of `smg-grpc-proto`.

To the gateway the whole cluster looks like one fast worker. Everything runs on
the router's one path (`running.py`); here messages are translated, no more.
"""

from baton_router.gateway.mounting import add_scheduler_to_server
from baton_router.gateway.service import SchedulerServicer

__all__ = ["SchedulerServicer", "add_scheduler_to_server"]
