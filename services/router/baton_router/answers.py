"""Tokens to the messages of a client's stream: plain text, or a conversation's turn."""

import secrets
from typing import Protocol

from baton.v1 import inference_pb2 as pb
from baton_router.chat_output import ChatOutputParser, ChatPiece
from baton_router.ledger import NewTokens
from baton_router.text_stream import TextStream

Response = pb.GenerateResponse | pb.ChatResponse


class Answer(Protocol):
    """One kind of stream: Accepted, Deltas, Finished. `tokens` counts what was delivered."""

    tokens: int

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the text, once one has."""

    def accepted(self, request_id: str, prompt_tokens: int) -> Response:
        """The first message."""

    def delta(self, new: NewTokens) -> Response:
        """The message for new tokens; after those that complete a stop string, none count."""

    def rest(self) -> Response | None:
        """No more tokens: the message for what was held back, if there is any."""

    def finished(self, reason: pb.FinishReason, matched_stop: str, usage: pb.Usage) -> Response:
        """The last message."""


class _Text:
    """The part both kinds share: which tokens are delivered, and the text they make certain."""

    def __init__(self, text: TextStream, stop_ids: frozenset[int]) -> None:
        self._text = text
        self._stop_ids = stop_ids
        self.tokens = 0

    @property
    def matched_stop(self) -> str | None:
        return self._text.matched_stop

    def _take(self, new: NewTokens) -> tuple[str, NewTokens]:
        pieces: list[str] = []
        count = 0
        for token in new.token_ids:
            count += 1
            # A token that ends the text is delivered as a token, and is no text.
            if token not in self._stop_ids:
                pieces.append(self._text.push(token))
                if self._text.matched_stop is not None:
                    break
        self.tokens += count
        if count < len(new.token_ids):
            new = NewTokens(new.token_ids[:count], new.logprobs[:count])
        return "".join(pieces), new


class TextAnswer(_Text):
    """Generate's stream."""

    def accepted(self, request_id: str, prompt_tokens: int) -> pb.GenerateResponse:
        return pb.GenerateResponse(
            accepted=pb.Accepted(request_id=request_id, prompt_tokens=prompt_tokens)
        )

    def delta(self, new: NewTokens) -> pb.GenerateResponse:
        text, new = self._take(new)
        return pb.GenerateResponse(
            delta=pb.Delta(text=text, token_ids=new.token_ids, logprobs=new.logprobs)
        )

    def rest(self) -> pb.GenerateResponse | None:
        text = self._text.finish()
        return pb.GenerateResponse(delta=pb.Delta(text=text)) if text else None

    def finished(
        self, reason: pb.FinishReason, matched_stop: str, usage: pb.Usage
    ) -> pb.GenerateResponse:
        return pb.GenerateResponse(
            finished=pb.Finished(reason=reason, matched_stop=matched_stop, usage=usage)
        )


class ChatAnswer(_Text):
    """Chat's stream."""

    def __init__(
        self, text: TextStream, stop_ids: frozenset[int], parser: ChatOutputParser
    ) -> None:
        super().__init__(text, stop_ids)
        self._parser = parser
        self._called = False

    def accepted(self, request_id: str, prompt_tokens: int) -> pb.ChatResponse:
        return pb.ChatResponse(
            accepted=pb.Accepted(request_id=request_id, prompt_tokens=prompt_tokens)
        )

    def delta(self, new: NewTokens) -> pb.ChatResponse:
        text, new = self._take(new)
        message = self._message(self._parser.feed(text))
        message.delta.token_ids.extend(new.token_ids)
        message.delta.logprobs.extend(new.logprobs)
        return message

    def rest(self) -> pb.ChatResponse | None:
        piece = self._parser.feed(self._text.finish())
        end = self._parser.finish()
        piece.content += end.content
        piece.reasoning += end.reasoning
        piece.calls += end.calls
        if not (piece.content or piece.reasoning or piece.calls):
            return None
        return self._message(piece)

    def _message(self, piece: ChatPiece) -> pb.ChatResponse:
        self._called = self._called or bool(piece.calls)
        message = pb.ChatResponse(
            delta=pb.ChatDelta(content=piece.content, reasoning=piece.reasoning)
        )
        for call in piece.calls:
            message.delta.tool_calls.add(
                id=f"call_{secrets.token_hex(8)}",
                name=call.name,
                arguments_json=call.arguments_json,
            )
        return message

    def finished(
        self, reason: pb.FinishReason, matched_stop: str, usage: pb.Usage
    ) -> pb.ChatResponse:
        turn_ended = reason in (pb.FINISH_REASON_EOS, pb.FINISH_REASON_STOP_TOKEN)
        if self._called and turn_ended:
            reason = pb.FINISH_REASON_TOOL_CALLS
        return pb.ChatResponse(
            finished=pb.Finished(reason=reason, matched_stop=matched_stop, usage=usage)
        )
