"""Refusing requests before any work is done on them."""

from __future__ import annotations

from baton_engine.config import EngineConfig
from baton_engine.events import FailReason
from baton_engine.request import EngineRequest
from baton_scheduler import Admission


class EngineRefusal(Exception):
    """The engine will not take this request. `reason` names a baton.v1.ErrorReason."""

    def __init__(self, reason: FailReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def validate(request: EngineRequest, vocab_size: int) -> None:
    """Raise EngineRefusal(INVALID_PROMPT) for tokens and lengths that no model could serve."""
    tokens = request.token_ids
    if tokens.ndim != 1 or len(tokens) == 0:
        _invalid(f"token_ids has shape {list(tokens.shape)}; it must be [n] with n >= 1")
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocab_size:
        bad = int(tokens[(tokens < 0) | (tokens >= vocab_size)][0])
        _invalid(f"token id {bad} is outside the vocabulary of {vocab_size}")
    if not 1 <= request.prompt_tokens <= len(tokens):
        _invalid(f"prompt_tokens is {request.prompt_tokens}; it must be 1 to {len(tokens)}")
    if request.max_new_tokens < 1:
        _invalid(f"max_new_tokens is {request.max_new_tokens}; it must be at least 1")
    if len(request.cache_key) != 16:
        _invalid(f"cache_key has {len(request.cache_key)} bytes; it must have 16")


def _invalid(message: str) -> None:
    raise EngineRefusal(FailReason.INVALID_PROMPT, message)


def refuse_admission(
    admission: Admission, request: EngineRequest, config: EngineConfig, max_context: int
) -> EngineRefusal:
    """The scheduler's refusal in words."""
    tokens, new = len(request.token_ids), request.max_new_tokens
    if admission is Admission.TOO_LONG:
        return EngineRefusal(
            FailReason.PROMPT_TOO_LONG,
            f"{tokens} tokens and up to {new} new ones exceed the context of {max_context}",
        )
    if admission is Admission.NEVER_FITS:
        return EngineRefusal(
            FailReason.OUT_OF_PAGES,
            f"{tokens} tokens and up to {new} new ones need more than the pool's "
            f"{config.num_pages} pages of {config.page_size} tokens",
        )
    if admission is Admission.QUEUE_FULL:
        return EngineRefusal(
            FailReason.OVERLOADED,
            f"{config.max_waiting} requests are waiting already; try again later",
        )
    if admission is Admission.FOREIGN:
        return EngineRefusal(
            FailReason.INVALID_PROMPT,
            f"attempt {request.key} goes on with a request of another tenant",
        )
    return EngineRefusal(FailReason.DUPLICATE_REQUEST, f"attempt {request.key} is already here")
