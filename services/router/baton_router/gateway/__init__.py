"""The router as a worker of SMG: the TokenSpeed scheduler protocol of `smg-grpc-proto`.

To the gateway the whole cluster looks like one fast worker. Everything runs on
the router's one path (`running.py`); here messages are translated, no more.
"""

from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as wire

from baton_router.gateway.service import SchedulerServicer
from baton_rpc import adder

add_scheduler_to_server = adder(wire.DESCRIPTOR.services_by_name["TokenSpeedScheduler"])

__all__ = ["SchedulerServicer", "add_scheduler_to_server"]
