"""Tokens to the messages of a client's stream: plain text, or a conversation's turn."""

import secrets
from typing import Protocol, TypeVar

from baton.v1 import inference_pb2 as pb
from baton_router.chat_output import ChatOutputParser, ChatPiece
from baton_router.ledger import NewTokens
from baton_router.text_stream import TextStream

Message_co = TypeVar("Message_co", covariant=True)


class Answer(Protocol[Message_co]):
    """One kind of stream: a first message, deltas, a last one; None for what is not said.

    `tokens` counts what was delivered.
    """

    tokens: int

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the text, once one has."""

    def accepted(self, request_id: str, prompt_tokens: int) -> Message_co | None:
        """The first message."""

    def delta(self, new: NewTokens) -> Message_co | None:
        """The message for new tokens; after those that complete a stop string, none count."""

    def rest(self) -> Message_co | None:
        """No more tokens: the message for what was held back, if there is any."""

    def reason(self, reason: pb.FinishReason) -> pb.FinishReason:
        """Why the answer ended, given why the tokens did."""

    def finished(
        self, reason: pb.FinishReason, matched_stop: str, usage: pb.Usage
    ) -> Message_co | None:
        """The last message."""


class AnswerText:
    """What all kinds share: which tokens are delivered, and the text they make certain."""

    def __init__(self, text: TextStream, stop_ids: frozenset[int]) -> None:
        self._text = text
        self._stop_ids = stop_ids
        self.tokens = 0

    @property
    def matched_stop(self) -> str | None:
        return self._text.matched_stop

    def reason(self, reason: pb.FinishReason) -> pb.FinishReason:
        return reason

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


class TextAnswer(AnswerText):
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


class ChatAnswer(AnswerText):
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

    def reason(self, reason: pb.FinishReason) -> pb.FinishReason:
        turn_ended = reason in (pb.FINISH_REASON_EOS, pb.FINISH_REASON_STOP_TOKEN)
        return pb.FINISH_REASON_TOOL_CALLS if self._called and turn_ended else reason

    def finished(
        self, reason: pb.FinishReason, matched_stop: str, usage: pb.Usage
    ) -> pb.ChatResponse:
        finished = pb.Finished(reason=self.reason(reason), matched_stop=matched_stop, usage=usage)
        return pb.ChatResponse(finished=finished)
