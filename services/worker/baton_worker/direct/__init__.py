"""A worker that SMG drives without our router (`smg launch --pd-disaggregation`).

The scheduler protocol of `smg-grpc-proto`, straight to the worker's desk. A
prefill and a decode worker meet by the room that the gateway has drawn for the
request. There is no failover here and no routing: that is what a router is for.
"""

from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as smg

from baton_rpc import adder
from baton_worker.direct.rooms import Rooms
from baton_worker.direct.service import DirectServicer

add_scheduler_to_server = adder(smg.DESCRIPTOR.services_by_name["TokenSpeedScheduler"])

__all__ = ["DirectServicer", "Rooms", "add_scheduler_to_server"]
