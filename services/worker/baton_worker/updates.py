"""What the engine says, as the wire says it."""

from __future__ import annotations

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as inference
from baton.v1 import worker_pb2 as wire
from baton_engine import (
    Admitted,
    Cost,
    Done,
    Event,
    Failed,
    FailReason,
    FinishReason,
    PoolState,
    TokensEmitted,
)
from baton_engine.logprobs import logprob_message

_FINISHED = {
    FinishReason.EOS: inference.FINISH_REASON_EOS,
    FinishReason.STOP_TOKEN: inference.FINISH_REASON_STOP_TOKEN,
    FinishReason.STOP_STRING: inference.FINISH_REASON_STOP_STRING,
    FinishReason.LENGTH: inference.FINISH_REASON_LENGTH,
    # The prefill worker's end says nothing about why the text ended.
    FinishReason.HANDED_OVER: inference.FINISH_REASON_UNSPECIFIED,
}
_REASONS: dict[FailReason, errors.ErrorReason] = {
    reason: getattr(errors, f"ERROR_REASON_{reason.value}") for reason in FailReason
}


def error_reason(reason: FailReason) -> errors.ErrorReason:
    """The wire's name of the engine's reason."""
    return _REASONS[reason]


def update_of(event: Event) -> wire.RequestUpdate | None:
    """None for what only readers of pages are told, by another stream."""
    update = wire.RequestUpdate(request_id=event.request_id, attempt=event.attempt)
    match event:
        case TokensEmitted():
            tokens = update.tokens
            tokens.first_position = event.first_position
            tokens.token_ids.extend(event.token_ids)
            tokens.logprobs.extend(map(logprob_message, event.logprobs))
            if event.cost is not None:
                tokens.cost.CopyFrom(cost_message(event.cost))
        case Admitted():
            update.admitted.reused_tokens = event.reused_tokens
            update.admitted.SetInParent()  # zero is an answer too
        case Done():
            update.done.reason = _FINISHED[event.reason]
            update.done.matched_stop = event.matched_stop
            update.done.cost.CopyFrom(cost_message(event.cost))
        case Failed():
            update.failed.reason = error_reason(event.reason)
            update.failed.message = event.message
        case _:
            return None
    return update


def refused(
    request_id: str, attempt: int, reason: errors.ErrorReason, message: str
) -> wire.RequestUpdate:
    """An attempt that was never begun."""
    failed = wire.RequestFailed(reason=reason, message=message)
    return wire.RequestUpdate(request_id=request_id, attempt=attempt, failed=failed)


def cost_message(cost: Cost) -> wire.RequestCost:
    """What an attempt has cost."""
    return wire.RequestCost(
        reused_tokens=cost.reused_tokens,
        fetched_tokens=cost.fetched_tokens,
        computed_tokens=cost.computed_tokens,
        pages_moved=cost.pages_moved,
        bytes_moved=cost.bytes_moved,
        queue_us=cost.queue_us,
        prefill_us=cost.prefill_us,
        handover_us=cost.handover_us,
        first_token=cost.first_token,
    )


def pool_message(pool: PoolState) -> wire.PoolState:
    """What routers want to know of the pool."""
    return wire.PoolState(
        total_pages=pool.total_pages,
        free_pages=pool.free_pages,
        running=pool.running,
        waiting=pool.waiting,
        computed_tokens=pool.computed_tokens,
    )
