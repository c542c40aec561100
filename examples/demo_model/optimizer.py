"""Muon for matrices, AdamW for the rest.

Muon (Keller Jordan et al., 2024): momentum whose singular values are all
pulled to about one by a Newton-Schulz iteration. It trains these small
matrices in a fraction of AdamW's steps, which is what makes an hour of two
CPU cores enough.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(x: Tensor, steps: int = 5) -> Tensor:
    """Nearly the closest matrices with orthonormal rows or columns; x: [..., m, n]."""
    a, b, c = _NEWTON_SCHULZ
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized; for parameters whose last two dimensions are a matrix."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update. `closure` is torch's interface; there is none here."""
        for group in self.param_groups:
            momentum = group["momentum"]
            # Matrices of one shape are orthogonalized together: there are many small ones.
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape[-2:], []).append(p)
            for (m, n), params in by_shape.items():
                updates = []
                for p in params:
                    gradient = p.grad
                    if gradient is None:
                        continue
                    average: Tensor = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    average.lerp_(gradient, 1 - momentum)
                    updates.append(gradient.lerp(average, momentum).view(-1, m, n))
                update = orthogonalize(torch.cat(updates)) * max(1, m / n) ** 0.5
                parts = update.split([len(u) for u in updates])
                for p, part in zip(params, parts, strict=True):
                    p.mul_(1 - group["lr"] * group["decay"])
                    p.add_(part.view_as(p), alpha=-group["lr"])


def make_optimizers(
    model: nn.Module, *, matrix_rate: float, rate: float, decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices; AdamW for embedding, head, router and norms."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        hidden = p.dim() >= 2 and not any(s in name for s in ("embed_tokens", "lm_head", ".gate."))
        (matrices if hidden else others).append(p)
    return [
        Muon(matrices, lr=matrix_rate, decay=decay),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
