"""Whether a checkpoint can be served with speculation, said before its weights are read."""

from __future__ import annotations

import torch

from baton_engine.config import EngineConfig
from baton_modeling import GroupKind, Mesh
from baton_modeling.description import read_model_description
from baton_modeling.model import build_family


def refuse_speculation(config: EngineConfig) -> None:
    """ValueError when `speculative` is asked for and this checkpoint cannot have it."""
    if config.speculative is None:
        return
    description = read_model_description(config.model_path)
    family = build_family(description, torch.float32)
    if family.drafting is None:
        raise ValueError(
            f"speculative.method is {config.speculative.method!r}, but {config.model_path} "
            f"({description.family}) has no multi-token-prediction layer that this build drafts "
            f"with; leave speculative out"
        )
    sides = [g.name for g in family.cache(Mesh({})).groups if g.kind is not GroupKind.FULL]
    if sides:
        raise ValueError(
            f"speculative.method is {config.speculative.method!r}, but {config.model_path} "
            f"({description.family}) keeps cache groups {sides} beside its token pages, and a "
            f"guess that does not stand cannot be taken back there; leave speculative out"
        )
