"""What SMG asks about a worker: the model, the server, the load. Here: of the whole cluster."""

import json
from datetime import UTC, datetime
from importlib.metadata import version

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as wire

from baton_router.config import RouterConfig
from baton_router.pool import WorkerPool
from baton_router.requests import RequestReader

VERSION = f"baton-{version('baton-serve')}"


def model_info(config: RouterConfig, reader: RequestReader) -> wire.GetModelInfoResponse:
    """The served model."""
    card = reader.card
    path = str(config.model.path.resolve())
    defaults = MessageToDict(card.defaults, preserving_proto_field_name=True)
    return wire.GetModelInfoResponse(
        model_path=path,
        tokenizer_path=path,
        served_model_name=card.name,
        model_type=card.architecture,
        max_context_length=reader.max_context,
        max_req_input_len=reader.max_context - 1,
        vocab_size=card.vocab_size,
        eos_token_ids=card.eos_token_ids,
        default_sampling_params_json=json.dumps(defaults),
    )


def server_info(config: RouterConfig, pool: WorkerPool, started: datetime) -> (
    wire.GetServerInfoResponse
):  # fmt: skip
    """The cluster behind this router."""
    arguments = Struct()
    arguments.update(
        {
            "router": config.name,
            "page_size": pool.cache.page_size if pool.cache else 0,
            "decode_workers": sum(link.hello is not None for link in pool.decode),
            "prefill_workers": sum(link.hello is not None for link in pool.prefill),
        }
    )
    info = wire.GetServerInfoResponse(
        server_args=arguments,
        active_requests=sum(link.pool.running for link in pool.decode),
        uptime_seconds=(datetime.now(UTC) - started).total_seconds(),
        max_total_num_tokens=_tokens(pool, sum(link.pool.total_pages for link in pool.decode)),
        tokenspeed_version=VERSION,
        constrained_decoding="requested",
    )
    info.start_time.FromDatetime(started)
    return info


def loads(pool: WorkerPool) -> wire.GetLoadsResponse:
    """One scheduler's worth of load: pages and running requests of the decode workers, waiting
    ones of all."""
    links = [link for link in pool.decode if link.hello is not None]
    everyone = [link for link in (*links, *pool.prefill) if link.hello is not None]
    total = sum(link.pool.total_pages for link in links)
    used = total - sum(link.pool.free_pages for link in links)
    running = sum(link.pool.running for link in links)
    waiting = sum(link.pool.waiting for link in everyone)
    most = sum(link.hello.max_running for link in links if link.hello is not None)
    usage = used / total if total else 0.0
    load = wire.SchedulerLoad(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_total_reqs=running + waiting,
        num_used_tokens=_tokens(pool, used),
        max_total_num_tokens=_tokens(pool, total),
        max_running_requests=most,
        num_waiting_uncached_tokens=sum(link.pending_tokens for link in everyone),
        token_usage=usage,
        active_token_usage=usage,  # a page that is only cached counts as free
        utilization=running / most if most else 0.0,
        memory=wire.MemoryMetrics(token_capacity=_tokens(pool, total)),
        queues=wire.QueueMetrics(waiting=waiting),
    )
    return wire.GetLoadsResponse(
        timestamp=datetime.now(UTC).isoformat(),
        version=VERSION,
        dp_rank_count=1,
        loads=[load],
        aggregate=wire.AggregateMetrics(
            total_running_reqs=running,
            total_waiting_reqs=waiting,
            total_reqs=running + waiting,
            avg_token_usage=usage,
            avg_utilization=load.utilization,
        ),
    )


def _tokens(pool: WorkerPool, pages: int) -> int:
    return pages * (pool.cache.page_size if pool.cache else 0)
