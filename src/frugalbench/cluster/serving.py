"""Decoding and prefill of a mixture of experts with multi-head latent attention, experts spread over a whole domain.

A rank is what runs one copy of attention: a device, or one die of a package. Attention and everything dense is
replicated on every rank, routed experts are spread; each expert layer sends tokens out in 8 bits and back in 16. A step
is the slower of operations and bytes for attention and for products each, plus exchanges, less what of the two runs at
the same time, times the software's factor. Attention in decoding works on the latent cache. The exchange is that of
:mod:`frugalbench.cluster.published.exchange_rows`, with its fitted constants.
"""

import math

from frugalbench.cluster import parallel
from frugalbench.cluster.published import exchange_rows
from frugalbench.cluster.published.constants import shipped
from frugalbench.cluster.ranges import Range, exact
from frugalbench.cluster.topology import Cluster, Serving, Values
from frugalbench.schema import FrugalbenchError
from frugalbench.specs.shapes import ModelShape, load_shapes

CONTEXT = 4096
"""Tokens of each cache and each prompt: the published prefill's."""
PREFILL_TOKEN = 16384
"""Tokens that one rank takes through at a time: four prompts."""
SCALE_BLOCK, SCALE_BYTES = 128, 4
"""One float32 scale per 128 values of 8 bits."""
SHARED = {
    "experts.imbalance": Range(value=6688 / 5655, low=1.0, high=1.5),
    "serving.overlap": Range(value=0.5, low=0.0, high=0.9),
    "serving.accepted": Range(value=0.7, low=0.5, high=0.9),
}
SOURCES = {
    "experts.imbalance": parallel.SOURCES["experts.imbalance"],
    "serving.overlap": "assumed, alike for both: share of the shorter of work and exchange that runs beside the other",
    "serving.accepted": "assumed, alike for both: share of drafted tokens, one a step, that are kept",
    "software": parallel.SOURCES["software"],
    "exchange": "factor on the fitted exchange: 95% of rows left out of the fit",
}
"""Sources of the inputs that no cluster file gives; the files give achieved shares."""


def inputs(cluster: Cluster) -> dict[str, Range]:
    """What both phases read of a cluster, with bounds. What two systems share goes by one name, software does not.

    Raises :class:`FrugalbenchError` for a cluster without ``[serving]`` or a device without the figures.
    """
    served, device, known = serving(cluster), cluster.hardware(), shipped()
    stack, width = known.training.stack["other"], known.spread["training elsewhere"].width_95
    exchange = known.spread["exchange rows"].width_95
    names = ("bf16_dense_flop_per_s", "memory_bytes", "memory_bytes_per_s", "scaleup_unidirectional_bytes_per_s")
    per_rank = exact(float(served.ranks_per_device))
    return {
        **SHARED,
        **{f"rank.{name}": device.require(name) / per_rank for name in names},
        "rank.product_flop_per_s": device.require(served.product_figure) / per_rank * served.product_share.range(),
        f"{cluster.name}.software": Range(value=stack, low=stack * math.exp(-width), high=stack * math.exp(width)),
        f"{cluster.name}.exchange": Range(value=1.0, low=math.exp(-exchange), high=math.exp(exchange)),
    }


def serving(cluster: Cluster) -> Serving:
    """The cluster's section; raises :class:`FrugalbenchError` where it has none."""
    if cluster.serving is None:
        raise FrugalbenchError(f"{cluster.name}: serving needs a [serving] section in the cluster's file")
    return cluster.serving


def decode_token_per_s(cluster: Cluster, limit_s: float, values: Values) -> float:
    """The whole machine's output with the largest batch at which a sequence gets a token every ``limit_s``.

    Raises :class:`FrugalbenchError` where not even one sequence a rank gets its tokens in time.
    """
    yielded = 1 + values["serving.accepted"]
    low, high = 0.0, room(cluster, values)
    if _step_s(cluster, 1.0, values) > limit_s * yielded or high < 1:
        raise FrugalbenchError(f"{cluster.name}: no sequence gets a token every {limit_s} s; allow more time or ranks")
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _step_s(cluster, middle, values) <= limit_s * yielded else (low, middle)
    return _ranks(cluster) * low * yielded / _step_s(cluster, low, values)


def prefill_token_per_s(cluster: Cluster, values: Values) -> float:
    """The whole machine's input in prompts of :data:`CONTEXT` tokens."""
    shape, rate = _shape(cluster), _core_flop_per_s(cluster, values)
    core = shape.n_layers * (shape.head_dim + shape.v_head_dim) * shape.n_heads * float(CONTEXT)
    work = _products_s(cluster, PREFILL_TOKEN, values) + PREFILL_TOKEN * core / rate
    return (
        _ranks(cluster)
        * PREFILL_TOKEN
        / _together_s(cluster, work, _exchange_s(cluster, PREFILL_TOKEN, values), values)
    )


def room(cluster: Cluster, values: Values) -> float:
    """Sequences whose cache a rank holds beside its weights."""
    left = values["rank.memory_bytes"] - _weight_bytes(cluster)
    return left / (CONTEXT * _shape(cluster).kv_bytes_per_token())


def _step_s(cluster: Cluster, sequences: float, values: Values) -> float:
    """One decoding step of a rank: each sequence's next token and a drafted one."""
    shape, token = _shape(cluster), 2 * sequences
    core = shape.n_layers * 2 * shape.n_heads * (2 * shape.kv_lora_rank + shape.qk_rope_dim) * float(CONTEXT)
    bytes_per_s = values["rank.memory_bytes_per_s"] * serving(cluster).memory_share.value
    cache_s = sequences * CONTEXT * shape.kv_bytes_per_token() / bytes_per_s
    attention = max(token * core / _core_flop_per_s(cluster, values), cache_s)
    products = max(_products_s(cluster, token, values), _weight_bytes(cluster) / bytes_per_s)
    return _together_s(cluster, attention + products, _exchange_s(cluster, token, values), values)


def _together_s(cluster: Cluster, work_s: float, exchange_s: float, values: Values) -> float:
    beside = values["serving.overlap"] * min(work_s, exchange_s)
    return values[f"{cluster.name}.software"] * (work_s + exchange_s - beside)


def _products_s(cluster: Cluster, token: float, values: Values) -> float:
    shape = _shape(cluster)
    routed = parallel.expert_parameters(shape) * shape.top_k / shape.n_experts
    weights = shape.active_parameters + routed * (values["experts.imbalance"] - 1)
    return token * 2 * weights / values["rank.product_flop_per_s"]


def _core_flop_per_s(cluster: Cluster, values: Values) -> float:
    return values["rank.bf16_dense_flop_per_s"] * serving(cluster).attention_share.value


def _exchange_s(cluster: Cluster, token: float, values: Values) -> float:
    """Out and back in every expert layer, at the pace of the busiest rank."""
    shape, name, group = _shape(cluster), serving(cluster).exchange, serving(cluster).expert_ranks
    fitted = shipped().exchange[name]
    wire = values["rank.scaleup_unidirectional_bytes_per_s"] * (1.0 if name == "cann" else exchange_rows.INSIDE)
    scales = shape.d_model / SCALE_BLOCK * SCALE_BYTES
    sent = token * shape.top_k * values["experts.imbalance"] * (3 * shape.d_model + scales) * (group - 1) / group
    start = fitted["dispatch_s"] + fitted["combine_s"] + 2 * fitted["doubling_s"] * math.log2(group)
    layers = shape.n_layers - shape.n_dense_layers
    return values[f"{cluster.name}.exchange"] * layers * (start + sent / (wire * fitted["achieved"]))


def _weight_bytes(cluster: Cluster) -> float:
    """Of one rank, a byte each: everything dense, and its share of the experts, rounded up to whole ones."""
    shape = _shape(cluster)
    experts = parallel.expert_parameters(shape)
    held = math.ceil(shape.n_experts / serving(cluster).expert_ranks) / shape.n_experts
    return shape.parameters - experts + experts * held


def _ranks(cluster: Cluster) -> int:
    return cluster.last_devices * serving(cluster).ranks_per_device


def _shape(cluster: Cluster) -> ModelShape:
    return load_shapes()[serving(cluster).model]
