"""Client messages to what the router runs: validated, tokenised, every default filled in."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton_router.chat_output import CALL, MARKERS, THINK, ChatOutputParser
from baton_router.chat_template import ChatTemplate, TemplateRefused
from baton_router.checkpoint import ModelCard, read_card
from baton_router.config import ModelConfig
from baton_router.conversation import template_messages
from baton_router.ledger import Ledger
from baton_router.placing import Terms
from baton_router.pool import WorkerPool
from baton_router.sampling import (
    first_outside,
    resolve_constraint,
    resolve_logprobs,
    resolve_max_tokens,
    resolve_sampling,
    resolve_stop,
)
from baton_router.sessions import session_key
from baton_router.text_stream import TextStream
from baton_router.tokenizing import TextCodec
from baton_router.tools import check_choice, template_tools
from baton_rpc import Refusal

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Job:
    """A request that may run."""

    ledger: Ledger
    terms: Terms
    text: TextStream


class RequestReader:
    """Reads clients' requests for one model. Every method raises Refusal."""

    def __init__(self, config: ModelConfig, pool: WorkerPool) -> None:
        self.card: ModelCard = read_card(config.path, config.served_name)
        self.codec = TextCodec(config.path)
        self._pool = pool
        self._markers = self.codec.marker_ids(MARKERS)
        card = self.card
        self._template = (
            ChatTemplate(card.chat_template, card.special_tokens) if card.chat_template else None
        )
        self._separator = self._template.call_separator(CALL) if self._template else "\n"

    @property
    def max_context(self) -> int:
        """Prompt and output together, at any worker that is here now."""
        return min(self.card.max_context, self._pool.max_context or self.card.max_context)

    def check_model(self, name: str) -> None:
        """Empty is the one that is served. UNKNOWN_MODEL."""
        if name and name != self.card.name:
            raise Refusal(
                errors.ERROR_REASON_UNKNOWN_MODEL,
                f"model {name!r} is not served here; this router serves {self.card.name!r}",
                {"model": name, "served": self.card.name},
            )

    # ---- prompts

    async def prompt(self, request: pb.GenerateRequest) -> Tokens:
        """The prompt's ids, int32 [N]."""
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise _missing("prompt", "give text or token_ids")
        if kind == "text":
            tokens = await self.codec.encode(request.text, special=True)
        else:
            ids = request.token_ids.ids
            outside = np.fromiter(ids, np.int64, len(ids))
            self.check_ids(outside, "token_ids")
            tokens = outside.astype(np.int32)
        self._check_length(tokens)
        return tokens

    def check_ids(self, ids: NDArray[np.int64], field: str) -> None:
        """INVALID_PROMPT for an id outside the vocabulary."""
        if len(ids) and int(ids.max()) >= self.card.vocab_size:
            index = int(ids.argmax())
            raise Refusal(
                errors.ERROR_REASON_INVALID_PROMPT,
                f"{field}[{index}] is {int(ids[index])}; it must be below the vocabulary's size, "
                f"{self.card.vocab_size}",
                {"field": field, "value": str(int(ids[index]))},
            )

    def _check_length(self, tokens: Tokens) -> None:
        if not len(tokens):
            raise Refusal(
                errors.ERROR_REASON_INVALID_PROMPT,
                "the prompt is empty; it must have at least one token",
                {"field": "prompt"},
            )
        if len(tokens) >= self.max_context:
            raise Refusal(
                errors.ERROR_REASON_PROMPT_TOO_LONG,
                f"the prompt has {len(tokens)} tokens; with at least one new token it must have "
                f"at most {self.max_context - 1}",
                {"prompt_tokens": str(len(tokens)), "max_context": str(self.max_context)},
            )

    def render(self, request: pb.ChatRequest) -> tuple[str, bool]:
        """The conversation as text, and whether the answer may call tools."""
        choice = check_choice(request.tool_choice)
        tools = template_tools(request.tools)
        messages = template_messages(request.messages)
        if self._template is None:
            raise Refusal(
                errors.ERROR_REASON_INVALID_MESSAGES,
                f"model {self.card.name!r} has no chat template; use Generate",
                {"model": self.card.name},
            )
        may_call = choice == "auto" and bool(tools)
        try:
            # With tool_choice none the model is not told of tools it must not call.
            return self._template.render(messages, tools if may_call else None), may_call
        except TemplateRefused as error:
            raise Refusal(
                errors.ERROR_REASON_INVALID_MESSAGES,
                f"the model's chat template refuses the conversation: {error}",
                {"field": "messages"},
            ) from error

    async def chat_prompt(self, request: pb.ChatRequest) -> tuple[Tokens, ChatOutputParser]:
        """The prompt's ids, and the reader of the answer."""
        text, may_call = self.render(request)
        tokens = await self.codec.encode(text, special=False)
        self._check_length(tokens)
        parser = ChatOutputParser(
            tools=may_call,
            reasoning_open=text.rstrip().endswith(THINK),
            separator=self._separator,
        )
        return tokens, parser

    # ---- jobs

    def job(self, prompt: Tokens, request: pb.GenerateRequest | pb.ChatRequest) -> Job:
        """Everything that is left to be checked about a request with this prompt."""
        card = self.card
        stop = resolve_stop(request.stop, card)
        asked = resolve_max_tokens(request.stop, len(prompt), self.max_context)
        terms = Terms(
            sampling=resolve_sampling(request.sampling, card),
            stop=stop,
            logprobs=resolve_logprobs(request.output),
            constraint=resolve_constraint(request.output, stop),
            tenant=request.tenant,
            session=session_key(request.tenant, request.session_id),
        )
        ledger = Ledger(
            prompt=prompt,
            max_tokens=asked if asked is not None else self._most_tokens(len(prompt)),
            stop_ids=frozenset((*stop.eos_token_ids, *stop.stop_token_ids)),
        )
        chat = isinstance(request, pb.ChatRequest)
        text = TextStream(
            self.codec.texts.decoder(prompt[-8:].tolist()),
            stops=stop.stop,
            markers=self._markers if chat else None,
        )
        return Job(ledger, terms, text)

    def _most_tokens(self, prompt_tokens: int) -> int:
        room = min(self.max_context, self._pool.largest_pool_tokens or self.max_context)
        return max(1, room - prompt_tokens)

    async def tokenize(self, request: pb.TokenizeRequest) -> list[int]:
        """The ids of a text, or of a conversation's prompt."""
        kind = request.WhichOneof("input")
        if kind is None:
            raise _missing("input", "give text or chat")
        if kind == "text":
            tokens = await self.codec.encode(request.text, special=True)
        else:
            self.check_model(request.chat.model)
            tokens = await self.codec.encode(self.render(request.chat)[0], special=False)
        ids: list[int] = tokens.tolist()
        return ids

    def detokenize(self, request: pb.DetokenizeRequest) -> str:
        """The text of the ids."""
        outside = first_outside(request.token_ids, self.card)
        if outside is not None:
            self.check_ids(np.asarray([outside]), "token_ids")
        return self.codec.decode(
            list(request.token_ids), skip_special_tokens=request.skip_special_tokens
        )


def _missing(field: str, what: str) -> Refusal:
    return Refusal(
        errors.ERROR_REASON_MISSING_FIELD, f"{field} is not set; {what}", {"field": field}
    )
