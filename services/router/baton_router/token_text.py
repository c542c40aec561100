"""Token ids to text, one at a time, never half a character.

Byte-level vocabularies (GPT-2's and its descendants') are decoded here, byte by
byte, at a constant cost a token. `tokenizers.DecodeStream`, which serves all
others, decodes again everything since its last whole character: a model that
emits broken UTF-8 for long makes it quadratic.
"""

import codecs
from collections.abc import Sequence
from typing import Final, Protocol

from tokenizers import Tokenizer, decoders
from tokenizers.decoders import DecodeStream

# What a decoder that looks at its left neighbours (Metaspace, WordPiece) needs of the prompt.
_CONTEXT_TOKENS: Final = 8
# A run of tokens this long without one whole character is not going to have one.
_HOPELESS_TOKENS: Final = 128


class TokenDecoder(Protocol):
    """The text of one sequence."""

    def push(self, token_id: int) -> str:
        """Adds a token; returns the characters that are now whole."""


class TokenTexts:
    """Makes decoders for one tokenizer; special tokens have no text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._table = _ByteTable(tokenizer, {i for i, token in added.items() if token.special})
        self._byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)

    def decoder(self, prompt_tail: Sequence[int]) -> TokenDecoder:
        """A decoder of what follows a prompt. Some treat the first token of a text specially,
        and an output is not a beginning; bytes need no such context."""
        if self._byte_level:
            return _ByteDecoder(self._table)
        return _StreamDecoder(self._tokenizer, prompt_tail)


class _ByteTable:
    """The bytes of each token, looked up once."""

    def __init__(self, tokenizer: Tokenizer, special: set[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._alphabet = _byte_alphabet()
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        found = self._known.get(token_id)
        if found is None:
            found = self._known[token_id] = self._look_up(token_id)
        return found

    def _look_up(self, token_id: int) -> bytes:
        symbols = self._tokenizer.id_to_token(token_id)
        if symbols is None or token_id in self._special:
            return b""
        try:
            return bytes(self._alphabet[symbol] for symbol in symbols)
        except KeyError:  # an added token is its own text
            return symbols.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's: printable bytes of Latin-1 stand for themselves, the others for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return alphabet


class _ByteDecoder:
    def __init__(self, table: _ByteTable) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._table[token_id])


class _StreamDecoder:
    def __init__(self, tokenizer: Tokenizer, prompt_tail: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._recent = list(prompt_tail)[-_CONTEXT_TOKENS:]
        self._stream = DecodeStream(self._recent, skip_special_tokens=True)
        self._silent = 0

    def push(self, token_id: int) -> str:
        self._recent = [*self._recent[-_CONTEXT_TOKENS + 1 :], token_id]
        text = self._stream.step(self._tokenizer, token_id)
        if text:
            self._silent = 0
            return text
        self._silent += 1
        if self._silent >= _HOPELESS_TOKENS:
            self._silent = 0
            self._stream = DecodeStream(self._recent, skip_special_tokens=True)
        return ""
