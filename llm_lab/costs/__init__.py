"""What a model costs: parameters, floating-point operations, memory, time and money.

Arithmetic on sizes, without torch. Where a function takes a `Size`, this is a configuration or a
plain number of parameters, so published models that have no configuration here can be counted too.

Units: bytes (1 GB = 10**9, 1 GiB = 2**30), seconds, FLOPs (floating-point operations: an addition
and a multiplication are two), FLOP/s and bytes/s. A *row* is one sequence of tokens in a batch.
"""

from llm_lab.costs.machines import (
    DEVICES,
    Bound,
    Device,
    decode_bound,
    lower_bound,
    training_cost,
    utilisation,
)
from llm_lab.costs.sizes import (
    FLOAT_BITS,
    activation_bytes,
    cache_bytes,
    count_parameters,
    decode_flops,
    forward_flops,
    kv_cache_bytes,
    largest_finite,
    parameter_table,
    rough_parameters,
    six_nd,
    training_bytes,
    training_flops,
    weight_bytes,
)

__all__ = [
    "DEVICES",
    "FLOAT_BITS",
    "Bound",
    "Device",
    "activation_bytes",
    "cache_bytes",
    "count_parameters",
    "decode_bound",
    "decode_flops",
    "forward_flops",
    "kv_cache_bytes",
    "largest_finite",
    "lower_bound",
    "parameter_table",
    "rough_parameters",
    "six_nd",
    "training_bytes",
    "training_cost",
    "training_flops",
    "utilisation",
    "weight_bytes",
]
