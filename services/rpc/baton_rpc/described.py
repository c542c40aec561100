"""A service from its descriptor, for packages whose generated handlers cannot be imported.

The `*_pb2_grpc` modules of `smg-grpc-proto` refuse a grpcio older than the one
they were generated with (1.81), though they need nothing new; its messages have
no such opinion.
"""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass


def adder(service: Any) -> Callable[[Any, Any], None]:
    """What a generated `add_..._to_server` is, for a ServiceDescriptor. Methods that the servicer
    lacks are UNIMPLEMENTED."""

    def add(servicer: Any, server: Any) -> None:
        handlers = {
            method.name: _handler(method, getattr(servicer, method.name))
            for method in service.methods
            if hasattr(servicer, method.name)
        }
        generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
        server.add_generic_rpc_handlers((generic,))
        server.add_registered_method_handlers(service.full_name, handlers)

    return add


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
