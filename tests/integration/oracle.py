"""What the right answer is, from things that share no code with Baton."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


class Reference:
    """transformers on the same checkpoint, float32, greedy."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.vocab_size = int(self.model.config.vocab_size)

    @torch.inference_mode()
    def greedy(self, prompt: list[int], max_tokens: int) -> list[int]:
        """Exactly max_tokens tokens; end-of-sequence is a token like any other."""
        output = self.model(torch.tensor([prompt]), use_cache=True)
        tokens = [int(output.logits[0, -1].argmax())]
        while len(tokens) < max_tokens:
            output = self.model(
                torch.tensor([[tokens[-1]]]), past_key_values=output.past_key_values, use_cache=True
            )
            tokens.append(int(output.logits[0, -1].argmax()))
        return tokens


class PageRadix:
    """Which prompt tokens a cache of whole pages can serve, by plain tuples in a set.

    A prompt reuses the longest run of leading whole pages whose tokens were all
    run through the model before, and never its own last token.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._pages: set[tuple[int, ...]] = set()

    def reusable(self, prompt: list[int]) -> int:
        """Tokens of the prompt that need not be computed."""
        tokens = 0
        while tokens + self.page_size < len(prompt):
            if tuple(prompt[: tokens + self.page_size]) not in self._pages:
                break
            tokens += self.page_size
        return tokens

    def served(self, prompt: list[int], generated: list[int]) -> None:
        """After a turn: all tokens but the last one generated have been computed."""
        computed = [*prompt, *generated][:-1]
        for end in range(self.page_size, len(computed) + 1, self.page_size):
            self._pages.add(tuple(computed[:end]))
