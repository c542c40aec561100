"""The operators: each made from its reference and given its input generator."""

from __future__ import annotations

from typing import Any

from baton_kernels import generators
from baton_kernels.reference import delta, dense, gqa, mla, moe
from baton_kernels.registry import Operator

linear = Operator(dense.linear)
rms_norm = Operator(dense.rms_norm)
add_rms_norm = Operator(dense.add_rms_norm)
gated_rms_norm = Operator(dense.gated_rms_norm)
silu_mul = Operator(dense.silu_mul)
sigmoid_mul = Operator(dense.sigmoid_mul)
embedding = Operator(dense.embedding)
rotary_table = Operator(dense.rotary_table)
rotate = Operator(dense.rotate)
cache_write = Operator(mla.cache_write)
cache_write_as = Operator(mla.cache_write_as)
gqa_decode = Operator(gqa.gqa_decode, reads_host=True)
gqa_prefill = Operator(gqa.gqa_prefill, reads_host=True)
mla_decode = Operator(mla.mla_decode, reads_host=True)
mla_prefill = Operator(mla.mla_prefill, reads_host=True)
route_sigmoid = Operator(moe.route_sigmoid)
route_softmax = Operator(moe.route_softmax)
moe_experts = Operator(moe.moe_experts, reads_host=True)
moe_experts_clamped = Operator(moe.moe_experts_clamped, reads_host=True)
conv_decode = Operator(delta.conv_decode, reads_host=True)
conv_prefill = Operator(delta.conv_prefill, reads_host=True)
delta_gates = Operator(delta.delta_gates)
delta_decode = Operator(delta.delta_decode, reads_host=True)
delta_prefill = Operator(delta.delta_prefill, reads_host=True)

OPERATORS: dict[str, Operator[..., Any]] = {
    operator.name: operator
    for operator in (
        linear,
        rms_norm,
        add_rms_norm,
        gated_rms_norm,
        silu_mul,
        sigmoid_mul,
        embedding,
        rotary_table,
        rotate,
        cache_write,
        cache_write_as,
        gqa_decode,
        gqa_prefill,
        mla_decode,
        mla_prefill,
        route_sigmoid,
        route_softmax,
        moe_experts,
        moe_experts_clamped,
        conv_decode,
        conv_prefill,
        delta_gates,
        delta_decode,
        delta_prefill,
    )
}

for _name, _operator in OPERATORS.items():
    _operator.generator(generators.GENERATORS[_name])
