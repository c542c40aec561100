"""Multi-head latent attention over the paged cache (DeepSeek-V2, section 2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from baton_kernels import ops
from baton_modeling.binding import Binding, Step
from baton_modeling.graph import Compute, Module, Signature
from baton_modeling.placements import OWN_TOKENS, Shard
from baton_modeling.weights import Weight


@dataclass(frozen=True)
class LatentShape:
    """Sizes of latent attention: heads, and per head or token the dims named in configs."""

    heads: int
    nope: int
    rope: int
    value: int
    rank: int

    @property
    def query(self) -> int:
        """Elements of one head's query."""
        return self.nope + self.rope

    @property
    def entry(self) -> int:
        """Elements of a cache entry: the latent, then the rotated key."""
        return self.rank + self.rope


class LatentAttention(Module):
    """Attention of queries [T, heads * (nope + rope)] over latents; heads are cut over the axis.

    Inputs: queries; the normed latent [T, rank] and the unrotated key [T, rope], the same on all
    ranks (so is the cache); cos and sin. Output [T, heads * value]. Decode reads the latents only
    (absorbed); prompt chunks take whichever form costs less.
    """

    def __init__(
        self,
        name: str,
        shape: LatentShape,
        *,
        scale: float,
        interleaved: bool,
        layer: int,
        group: str = "full",
        axis: str = "attn_tp",
    ) -> None:
        self.name, self.shape, self.scale = name, shape, scale
        self.interleaved, self.layer, self.group, self.axis = interleaved, layer, group, axis

    def signature(self) -> Signature:
        heads = {self.axis: Shard(1), **OWN_TOKENS}
        return Signature((heads, *[OWN_TOKENS] * 4), (heads,))

    def features(self) -> tuple[int, ...]:
        return (self.shape.heads * self.shape.value,)

    def weights(self) -> Mapping[str, Weight]:
        shape = self.shape
        rows = shape.heads * (shape.nope + shape.value)
        cut = {self.axis: Shard(0)}
        return {"kv_b": Weight.of(f"{self.name}.kv_b_proj.weight", rows, shape.rank, shards=cut)}

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        shape, scale, interleaved = self.shape, self.scale, self.interleaved
        nope, rank = shape.nope, shape.rank
        heads = binding.local(shape.heads, self.axis)
        cache = binding.cache(self.group, self.layer)
        sizes = {"heads": heads, "rank": rank, "rope": shape.rope}
        sizes |= {"converts": int(binding.converts_cache)}
        rotate = binding.operator(ops.rotate)
        write = binding.cache_write((rank, shape.rope))
        attend_one = binding.decoding(ops.mla_decode, None, **sizes)
        attend_chunk = binding.operator(ops.mla_prefill, None, **sizes)
        up = weights["kv_b"].view(heads, nope + shape.value, rank)
        w_uk, w_uv = up[:, :nope].contiguous(), up[:, nope:].contiguous()
        w_out = w_uv.transpose(1, 2)

        def decode(step: Step, queries: Tensor, rotated: Tensor) -> Tensor:
            latent = torch.bmm(queries[..., :nope].transpose(0, 1), w_uk).transpose(0, 1)
            absorbed = torch.cat([latent, rotated], -1)
            attended = attend_one(absorbed, cache.tensor, step.decode, rank, scale)
            return torch.bmm(attended.transpose(0, 1), w_out).transpose(0, 1).flatten(1)

        def attend(
            step: Step, queries: Tensor, latent: Tensor, key: Tensor, cos: Tensor, sin: Tensor
        ) -> Tensor:
            queries = queries.view(-1, heads, shape.query)
            both = torch.cat([queries[..., nope:], key[:, None]], 1)
            both = rotate(both, cos, sin, interleaved)
            rotated, entries = both[:, :heads], torch.cat([latent, both[:, heads]], -1)
            write(cache.tensor, entries, step.write_pages, step.write_offsets)
            n = step.decode_rows
            if not step.has_prefill:
                return decode(step, queries, rotated)
            chunk = torch.cat([queries[n:, :, :nope], rotated[n:]], -1)
            out = attend_chunk(chunk, w_uk, w_uv, cache.tensor, step.prefill, scale).flatten(1)
            if n == 0:
                return out
            return torch.cat([decode(step, queries[:n], rotated[:n]), out])

        return attend
