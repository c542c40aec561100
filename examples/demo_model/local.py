"""The demo model through transformers, many conversations at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .agent import Turn
from .chat import Encoder, render
from .tasks import Message
from .tokenizer import END_OF_TURN, PAD

_CALL = re.compile(r"\n?<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


def parse_turn(text: str, tokens: int) -> Turn:
    """Splits an assistant's text into content and well-formed calls."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def take(match: re.Match[str]) -> str:
        try:
            call = json.loads(match[1])
        except ValueError:
            return match[0]
        if not (isinstance(call, dict) and call.keys() == {"name", "arguments"}):
            return match[0]
        if not (isinstance(call["name"], str) and isinstance(call["arguments"], dict)):
            return match[0]
        calls.append((call["name"], call["arguments"]))
        return ""

    content = _CALL.sub(take, text)
    return Turn(content, tuple(calls), tokens)


class TransformersModel:
    """Greedy decoding by `transformers`, in float32."""

    def __init__(
        self, directory: Path, device: str, batch: int = 64, max_tokens: int = 200
    ) -> None:
        from transformers import AutoModelForCausalLM

        self._encoder = Encoder(directory)
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self._model = model.to(device).eval()
        self._device = device
        self._batch = batch
        self._max_tokens = max_tokens
        self._end, self._pad = self._encoder.token(END_OF_TURN), self._encoder.token(PAD)

    def reply(self, conversations: Sequence[Sequence[Message]]) -> list[Turn]:
        """The next assistant turn of each conversation."""
        prompts = [self._encoder.encode(render(c, prompt=True)) for c in conversations]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        turns: dict[int, Turn] = {}
        for begin in range(0, len(order), self._batch):
            some = order[begin : begin + self._batch]
            for i, ids in zip(some, self._generate([prompts[i] for i in some]), strict=True):
                ended = ids[:-1] if ids and ids[-1] == self._end else ids
                text = self._encoder.tokenizer.decode(ended, skip_special_tokens=False)
                turns[i] = parse_turn(text, len(ids))
        return [turns[i] for i in range(len(prompts))]

    def _generate(self, prompts: Sequence[Any]) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self._pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, width - len(prompt) :] = 1
        with torch.inference_mode():
            out = self._model.generate(
                ids.to(self._device),
                attention_mask=mask.to(self._device),
                max_new_tokens=self._max_tokens,
                do_sample=False,
            )
        rows: list[list[int]] = out[:, width:].tolist()
        return [row[: row.index(self._end) + 1] if self._end in row else row for row in rows]
