"""Device memory beside the weights: the cache, and what captured steps hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from baton_modeling.cache import CacheLayout


def cache_bytes(layout: CacheLayout, pages: Mapping[str, int], page_size: int) -> int:
    """Bytes of the arenas of all groups."""
    return sum(pages[group.name] * group.page_bytes(page_size) for group in layout.groups)


def free_bytes(device: torch.device) -> int:
    """What can still be allocated on a CUDA device."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def refuse_overcommit(cache: int, graphs: int, free: int) -> None:
    """ValueError when a cache of so many bytes and the graphs do not fit into what is free."""
    if cache + graphs > free:
        raise ValueError(
            f"the cache takes {_mib(cache)} and captured steps take {_mib(graphs)} (measured), but "
            f"only {_mib(free)} are free: lower num_pages (and state_pages) to leave the cache "
            f"{_mib(max(0, free - graphs))}, lower max_running or max_context, which make captured "
            f"steps smaller, or set execution to eager"
        )


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
