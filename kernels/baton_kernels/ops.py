"""The operators' public face, with every implementation of this package registered.

from baton_kernels import Site, ops

norm = ops.rms_norm.bind(Site.on("cpu", torch.float32, hidden=4096))   # chosen once
y = norm(x, weight, 1e-6)                                             # then called directly
"""

from baton_kernels import portable as _portable  # registers
from baton_kernels import triton as _triton  # registers
from baton_kernels.operators import (
    OPERATORS,
    add_rms_norm,
    cache_write,
    cache_write_as,
    conv_decode,
    conv_prefill,
    delta_decode,
    delta_gates,
    delta_prefill,
    embedding,
    gated_rms_norm,
    gqa_decode,
    gqa_prefill,
    linear,
    mla_decode,
    mla_prefill,
    moe_experts,
    moe_experts_clamped,
    rms_norm,
    rotary_table,
    rotate,
    route_sigmoid,
    route_softmax,
    sigmoid_mul,
    silu_mul,
)

__all__ = [
    "OPERATORS",
    "add_rms_norm",
    "cache_write",
    "cache_write_as",
    "conv_decode",
    "conv_prefill",
    "delta_decode",
    "delta_gates",
    "delta_prefill",
    "embedding",
    "gated_rms_norm",
    "gqa_decode",
    "gqa_prefill",
    "linear",
    "mla_decode",
    "mla_prefill",
    "moe_experts",
    "moe_experts_clamped",
    "rms_norm",
    "rotary_table",
    "rotate",
    "route_sigmoid",
    "route_softmax",
    "sigmoid_mul",
    "silu_mul",
]

del _portable, _triton
