"""Text to token ids and back, by the checkpoint's tokenizer.json."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from baton_router.checkpoint import CheckpointError
from baton_router.token_text import TokenTexts

# Longer texts are tokenised on another thread: the event loop has streams to serve.
_INLINE_CHARACTERS = 2_048


class TextCodec:
    """The checkpoint's tokenizer. Safe to use from several threads."""

    def __init__(self, checkpoint: Path) -> None:
        file = checkpoint / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(f"{file} does not exist; the router needs a fast tokenizer")
        try:
            self.tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:
            raise CheckpointError(f"{file} is not a tokenizer: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.texts = TokenTexts(self.tokenizer)

    async def encode(self, text: str, *, special: bool) -> NDArray[np.int32]:
        """Token ids int32 [N]. `special` adds what the tokenizer puts around a bare text."""
        if len(text) <= _INLINE_CHARACTERS:
            return self._encode(text, special)
        return await asyncio.to_thread(self._encode, text, special)

    def _encode(self, text: str, special: bool) -> NDArray[np.int32]:
        # The fast batch form skips character offsets, which nobody here reads.
        encoding = self.tokenizer.encode_batch_fast([text], add_special_tokens=special)[0]
        return np.asarray(encoding.ids, dtype=np.int32)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of a whole sequence; bytes that are not UTF-8 become U+FFFD."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def marker_ids(self, markers: Sequence[str]) -> dict[int, str]:
        """The ids of those `markers` that are single tokens."""
        ids = {marker: self.tokenizer.token_to_id(marker) for marker in markers}
        return {token: marker for marker, token in ids.items() if token is not None}
