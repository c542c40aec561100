"""The checkpoint's tokenizer files as one zip, for a gateway on another machine."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smg_grpc_proto.generated import common_pb2 as common

_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
_CHUNK_BYTES: Final = 1 << 20
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # zip's own: the same files make the same bytes


@dataclass(frozen=True)
class TokenizerBundle:
    """The zip and its SHA-256, in hexadecimal."""

    data: bytes
    sha256: str

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> "TokenizerBundle":
        """Those of the known files that there are."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in _FILES:
                if (checkpoint / name).is_file():
                    entry = zipfile.ZipInfo(name, _EPOCH)
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(entry, (checkpoint / name).read_bytes())
        data = buffer.getvalue()
        return cls(data, hashlib.sha256(data).hexdigest())

    def chunks(self) -> Iterator[common.GetTokenizerChunk]:
        """In pieces; the last one carries the fingerprint."""
        for begin in range(0, len(self.data), _CHUNK_BYTES):
            piece = self.data[begin : begin + _CHUNK_BYTES]
            last = begin + _CHUNK_BYTES >= len(self.data)
            yield common.GetTokenizerChunk(data=piece, sha256=self.sha256 if last else "")
