"""The demo model for training: DeepSeek-V3's architecture in plain PyTorch.

Multi-head latent attention, a dense first layer, then mixtures of experts with
a shared expert and bias-balanced sigmoid routing, and one multi-token
prediction layer (DeepSeek-V3 Technical Report, arXiv:2412.19437). Parameters
have the checkpoint's names, except that a layer's experts are stacked.

All conversations of a batch begin with the same tokens, the system prompt, so
these are computed once: a batch is one prefix of P tokens and B rows of T
tokens that continue it. Token-wise parts see all N = P + B * T tokens flat.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the model. Query and value heads are equally wide."""

    vocabulary: int = 2048
    hidden: int = 192
    layers: int = 4
    dense_layers: int = 1
    heads: int = 4
    query_rank: int = 96
    latent: int = 128
    nope: int = 32
    rope: int = 16
    value: int = 48
    dense_width: int = 512
    expert_width: int = 96
    experts: int = 8
    chosen: int = 2
    routed_scale: float = 1.5
    theta: float = 10000.0
    eps: float = 1e-6


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def linear(inputs: int, outputs: int, scale: float = 1.0) -> nn.Linear:
    """A projection without bias, initialised by its fan-in."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=scale * inputs**-0.5)
    return layer


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs, laid out as halves afterwards.

    x: [N, ..., R], angles: [N, R / 2]. Queries and keys are laid out alike, so
    their products do not depend on the layout.
    """
    angles = angles.view(angles.shape[0], *([1] * (x.dim() - 2)), angles.shape[1])
    cos, sin = angles.cos(), angles.sin()
    even, odd = x.view(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)


class Attention(nn.Module):
    """Multi-head latent attention, latents expanded (there is no cache in training)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.nope + shape.rope
        self.q_a_proj = linear(shape.hidden, shape.query_rank)
        self.q_a_layernorm = RMSNorm(shape.query_rank, shape.eps)
        self.q_b_proj = linear(shape.query_rank, shape.heads * width)
        self.kv_a_proj_with_mqa = linear(shape.hidden, shape.latent + shape.rope)
        self.kv_a_layernorm = RMSNorm(shape.latent, shape.eps)
        self.kv_b_proj = linear(shape.latent, shape.heads * (shape.nope + shape.value))
        self.o_proj = linear(shape.heads * shape.value, shape.hidden, scale=0.0)

    def forward(self, x: Tensor, angles: Tensor, prefix: int, rows: int, mask: Tensor) -> Tensor:
        """x: [P + B * T, hidden]; mask: bool [T, P + T], True where a row's token may look."""
        s = self.shape
        heads = (x.shape[0], s.heads, -1)
        query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(heads)
        q_nope, q_rope = query.split([s.nope, s.rope], dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([s.latent, s.rope], dim=-1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent)).view(heads)
        k_nope, value = expanded.split([s.nope, s.value], dim=-1)
        query = torch.cat([q_nope, rotate(q_rope, angles)], dim=-1)
        k_rope = rotate(k_rope, angles)[:, None].expand(-1, s.heads, -1)
        key = torch.cat([k_nope, k_rope], dim=-1)
        y: Tensor = self.o_proj(self._attend(query, key, value, prefix, rows, mask))
        return y

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: int, rows: int, mask: Tensor
    ) -> Tensor:
        heads = self.shape.heads

        def of_prefix(x: Tensor) -> Tensor:
            return x[:prefix].transpose(0, 1)[None]

        def of_rows(x: Tensor) -> Tensor:
            return x[prefix:].view(rows, -1, heads, x.shape[-1]).transpose(1, 2)

        def both(x: Tensor) -> Tensor:
            return torch.cat([of_prefix(x).expand(rows, -1, -1, -1), of_rows(x)], dim=2)

        own = F.scaled_dot_product_attention(of_rows(query), both(key), both(value), attn_mask=mask)
        flat = own.transpose(1, 2).reshape(-1, heads * self.shape.value)
        if not prefix:
            return flat
        first = F.scaled_dot_product_attention(
            of_prefix(query), of_prefix(key), of_prefix(value), is_causal=True
        )
        return torch.cat([first[0].transpose(0, 1).reshape(prefix, -1), flat])


class MLP(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = linear(hidden, width)
        self.up_proj = linear(hidden, width)
        self.down_proj = linear(width, hidden, scale=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, hidden], and so is the result."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Gate(nn.Module):
    """Chooses experts: sigmoid scores, a bias for the choice but not for the weight."""

    e_score_correction_bias: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.randn(shape.experts, shape.hidden) * shape.hidden**-0.5)
        self.register_buffer("e_score_correction_bias", torch.zeros(shape.experts))
        self.register_buffer("load", torch.zeros(shape.experts), persistent=False)
        self.load: Tensor  # tokens per expert since the last balancing

    def forward(self, x: Tensor) -> Tensor:
        """[N, hidden] to weights [N, experts]: zero for experts that were not chosen."""
        scores = F.linear(x.float(), self.weight.float()).sigmoid()
        chosen = (scores + self.e_score_correction_bias).topk(self.shape.chosen, dim=-1).indices
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.shape.routed_scale
        routed = torch.zeros_like(scores).scatter(1, chosen, weights)
        if self.training:
            self.load += (routed.detach() > 0).sum(0)
        return routed.to(x.dtype)

    @torch.no_grad()
    def balance(self, step: float) -> None:
        """Moves the bias towards experts with less than their share (section 2.1.2)."""
        self.e_score_correction_bias += step * (self.load.mean() - self.load).sign()
        self.load.zero_()


class Experts(nn.Module):
    """Routed experts, stacked."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        e, w, h = shape.experts, shape.expert_width, shape.hidden
        self.gate_proj = nn.Parameter(torch.randn(e, w, h) * h**-0.5)
        self.up_proj = nn.Parameter(torch.randn(e, w, h) * h**-0.5)
        self.down_proj = nn.Parameter(torch.zeros(e, h, w))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x: [N, hidden], weights: [N, experts]."""
        if x.is_cuda:
            return self._all(x, weights)
        # One gather and one scatter for all experts; unbind, because the gradient of
        # indexing would be a zero-filled stack per expert.
        token, expert = weights.T.nonzero().flip(1).unbind(1)
        sizes = expert.bincount(minlength=weights.shape[1]).tolist()
        parts = torch.split(x.index_select(0, token), sizes)
        stacks = (self.gate_proj.unbind(), self.up_proj.unbind(), self.down_proj.unbind())
        done = [
            F.linear(F.silu(F.linear(part, gate)) * F.linear(part, up), down)
            for part, gate, up, down in zip(parts, *stacks, strict=True)
        ]
        share = weights[token, expert]
        return torch.zeros_like(x).index_add(0, token, torch.cat(done) * share[:, None])

    def _all(self, x: Tensor, weights: Tensor) -> Tensor:
        # Four times the arithmetic, but no wait for the device to say how many tokens.
        y = F.silu(x @ self.gate_proj.mT) * (x @ self.up_proj.mT)
        return torch.bmm(y * weights.T[:, :, None], self.down_proj.mT).sum(0)


class MoE(nn.Module):
    """Routed experts and a shared one."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = Gate(shape)
        self.experts = Experts(shape)
        self.shared_experts = MLP(shape.hidden, shape.expert_width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, hidden], and so is the result."""
        y: Tensor = self.experts(x, self.gate(x)) + self.shared_experts(x)
        return y


class Layer(nn.Module):
    """A decoder layer; the multi-token prediction layer has three modules more."""

    def __init__(self, shape: Shape, *, dense: bool, predicts: bool = False) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape.hidden, shape.dense_width) if dense else MoE(shape)
        self.input_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.eps)
        if predicts:
            self.enorm = RMSNorm(shape.hidden, shape.eps)
            self.hnorm = RMSNorm(shape.hidden, shape.eps)
            self.eh_proj = linear(2 * shape.hidden, shape.hidden)
            self.shared_head = nn.ModuleDict({"norm": RMSNorm(shape.hidden, shape.eps)})

    def forward(self, x: Tensor, angles: Tensor, prefix: int, rows: int, mask: Tensor) -> Tensor:
        """x: [N, hidden], and so is the result."""
        x = x + self.self_attn(self.input_layernorm(x), angles, prefix, rows, mask)
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y


@dataclass(frozen=True)
class Hidden:
    """Normed hidden states of the rows' tokens, [B, T, hidden] each.

    `following[b, t]` goes with the logits of token t + 1 of row b, `second` with
    those of token t + 2 (its last token per row means nothing).
    """

    following: Tensor
    second: Tensor


class DemoModel(nn.Module):
    """The whole model."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)
        self.layers = nn.ModuleList(
            Layer(shape, dense=i < shape.dense_layers) for i in range(shape.layers)
        )
        self.norm = RMSNorm(shape.hidden, shape.eps)
        # Head and embedding are one matrix in training: the model has to copy names, and so
        # what it reads is what it says, for rare words too. The checkpoint has both.
        self.lm_head = linear(shape.hidden, shape.vocabulary)
        self.lm_head.weight = self.embed_tokens.weight
        self.mtp = Layer(shape, dense=False, predicts=True)

    def forward(self, prefix: Tensor, rows: Tensor) -> Hidden:
        """prefix: int64 [P], P >= 0; rows: int64 [B, T]."""
        P, (B, T) = len(prefix), rows.shape
        device = rows.device
        positions = torch.cat([torch.arange(P), torch.arange(P, P + T).repeat(B)]).to(device)
        powers = torch.arange(0, self.shape.rope, 2, device=device) / self.shape.rope
        angles = positions[:, None] * self.shape.theta**-powers
        mask = torch.ones(T, P + T, dtype=torch.bool, device=device).tril(P)
        layout = (angles, P, B, mask)

        tokens = torch.cat([prefix, rows.flatten()])
        embedded = self.embed_tokens(tokens)
        x = embedded
        for layer in self.layers:
            x = layer(x, *layout)
        x = self.norm(x)

        # All rows begin with the same token, which is what follows the prefix.
        follow_prefix = torch.cat([embedded[1:P], embedded[P : P + 1]])[:P]
        follow_rows = embedded[P:].view(B, T, -1).roll(-1, dims=1).flatten(0, 1)
        follow = torch.cat([follow_prefix, follow_rows])
        y = self.mtp.eh_proj(torch.cat([self.mtp.enorm(follow), self.mtp.hnorm(x)], dim=-1))
        y = self.mtp.shared_head["norm"](self.mtp(y, *layout))
        return Hidden(x[P:].view(B, T, -1), y[P:].view(B, T, -1))
