"""Handlers of the scheduler service, made from its descriptor.

The package's own `*_pb2_grpc` modules refuse to be imported by a grpcio older
than the one they were generated with (1.81), though they need nothing new; the
messages have no such opinion.
"""

from typing import Any, Final

import grpc
from google.protobuf.message_factory import GetMessageClass
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as wire

SERVICE: Final = wire.DESCRIPTOR.services_by_name["TokenSpeedScheduler"]


def add_scheduler_to_server(servicer: Any, server: Any) -> None:
    """As a generated `add_..._to_server`. What `servicer` lacks is UNIMPLEMENTED."""
    handlers = {
        method.name: _handler(method, getattr(servicer, method.name))
        for method in SERVICE.methods
        if hasattr(servicer, method.name)
    }
    generic = grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)
    server.add_generic_rpc_handlers((generic,))
    server.add_registered_method_handlers(SERVICE.full_name, handlers)


def _handler(method: Any, behaviour: Any) -> Any:
    make = (
        grpc.unary_stream_rpc_method_handler
        if method.server_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    return make(
        behaviour,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )
