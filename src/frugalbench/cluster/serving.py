"""Decoding and prefill of a mixture of experts with multi-head latent attention, experts spread over many ranks.

A rank is what runs one copy of attention: a device, or one die of a package. Attention and everything dense is
replicated on every rank, routed experts are spread, and the shared expert too where ranks are set aside for it; each
expert layer sends tokens out in 8 bits and back in 16. A step is the core of attention, the products of what every
token meets, those of experts and the exchanges, one after the other, each of the former the slower of operations and
bytes; less what two interleaved microbatches gain, times the software's factor. Attention in decoding works on the
latent cache, and a decoding step drafts a token with one more layer and the output head again (DeepSeek-V3, arXiv
2412.19437, section 2.2; recalled). Prefill may cut attention by heads over ranks that gather each other's latents
first and swap their outputs after it. The exchange is that of :mod:`frugalbench.cluster.published.exchange_rows`, with
its fitted constants, for few tokens, and bytes at the rate of large transfers for many: the cheaper of the two.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

from frugalbench.cluster import parallel
from frugalbench.cluster.published import exchange_rows
from frugalbench.cluster.published.constants import shipped
from frugalbench.cluster.ranges import Range, exact
from frugalbench.cluster.topology import Cluster, Serving, Values
from frugalbench.schema import FrugalbenchError
from frugalbench.specs.shapes import ModelShape, load_shapes

Phase = Literal["decode", "prefill"]

CONTEXT = 4096
"""Tokens of each cache and each prompt: the published prefill's."""
PREFILL_TOKEN = 16384
"""Tokens that one rank takes through at a time: four prompts."""
SCALE_BLOCK, SCALE_BYTES = 128, 4
"""One float32 scale per 128 values of 8 bits."""
LATENT_BYTES = 2
"""Of a latent, or of a head's output, that ranks swap in prefill."""
DECODE_GAIN = (0.058 + 0.094 + 0.069) / 3
PREFILL_GAIN = (0.23 + 0.31) / 2
MOST_GAIN = 0.35
SHARED: dict[Phase, dict[str, Range]] = {
    "decode": {
        "decode.gain": Range(value=DECODE_GAIN, low=0.0, high=MOST_GAIN),
        "decode.accepted": Range(value=0.7, low=0.5, high=0.9),
        "decode.start_share": Range(value=0.5, low=0.0, high=1.0),
    },
    "prefill": {"prefill.gain": Range(value=PREFILL_GAIN, low=0.0, high=MOST_GAIN)},
}
"""Inputs that no cluster file gives and that go by one name in two systems; software does not."""
_ELSEWHERE = "for CloudMatrix 384 (arXiv 2506.12708 v2, read in notes on it), assumed alike elsewhere"
SOURCES = {
    "serving.imbalance": "busiest over mean rank, solved from prefill with perfect over default balance, points.csv "
    "P0431 and P0432 (data/network/constants.json); upper end assumed",
    "decode.gain": f"of two microbatches: 5.8, 9.4 and 6.9% at 64, 96 and 128 sequences a device {_ELSEWHERE}; upper "
    "end: 35%, quoted there for H100",
    "prefill.gain": f"of two microbatches: 23 to 31% {_ELSEWHERE}; upper end: 35%, quoted there for decoding on H100",
    "decode.accepted": f"of the tokens drafted, one a step, that are kept: 70% {_ELSEWHERE}; bounds assumed",
    "decode.start_share": "assumed: share of an exchange's start-up that does not grow with its tokens; all published "
    "tables are of 128, so that they leave it open, and the range is all that is possible",
    "software": parallel.SOURCES["software"],
    "exchange": "factor on the fitted exchange: 95% of rows left out of the fit",
}
"""Sources of the inputs that no cluster file gives; the files give achieved shares and layouts."""


def inputs(cluster: Cluster, phase: Phase) -> dict[str, Range]:
    """What a phase reads of a cluster, with bounds.

    Raises :class:`FrugalbenchError` for a cluster without ``[serving]`` or a device without the figures.
    """
    known = shipped()
    found = figures(cluster, known.exchange)
    stack, width = known.training.stack["other"], known.spread["training elsewhere"].width_95
    exchange, busiest = known.spread["exchange rows"].width_95, known.serving["imbalance"]
    return {
        "serving.imbalance": Range(value=busiest, low=1.0, high=busiest**2),
        **SHARED[phase],
        **found,
        f"{cluster.name}.software": Range(value=stack, low=stack * math.exp(-width), high=stack * math.exp(width)),
        f"{cluster.name}.exchange": Range(value=1.0, low=math.exp(-exchange), high=math.exp(exchange)),
    }


def figures(cluster: Cluster, exchange: Mapping[str, Mapping[str, float]]) -> dict[str, Range]:
    """What a rank has and what its library's exchanges cost. ``exchange``: fitted constants by library.

    Raises :class:`FrugalbenchError` like :func:`inputs`.
    """
    served, device = serving(cluster), cluster.hardware()
    fitted, per_rank = exchange[served.exchange], exact(float(served.ranks_per_device))
    names = ("bf16_dense_flop_per_s", "memory_bytes", "memory_bytes_per_s", "scaleup_unidirectional_bytes_per_s")
    return {
        **{f"rank.{name}": device.require(name) / per_rank for name in names},
        "rank.product_flop_per_s": device.require(served.product_figure) / per_rank * served.product_share.range(),
        "rank.start_s": exact(fitted["dispatch_s"] + fitted["combine_s"]),
        "rank.doubling_s": exact(2 * fitted["doubling_s"]),
        "rank.wire_share": exact(fitted["achieved"] * (1.0 if served.exchange == "cann" else exchange_rows.INSIDE)),
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
    step_s, yielded = decode_step_s(cluster, values), 1 + values["decode.accepted"]
    low, high = 0.0, room(cluster, values)
    if step_s(1.0) > limit_s * yielded or high < 1:
        raise FrugalbenchError(f"{cluster.name}: no sequence gets a token every {limit_s} s; allow more time or ranks")
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if step_s(middle) <= limit_s * yielded else (low, middle)
    return _ranks(cluster) * low * yielded / step_s(low)


def prefill_token_per_s(cluster: Cluster, values: Values) -> float:
    """The whole machine's input in prompts of :data:`CONTEXT` tokens. Only a prompt's last token meets the head."""
    served, shape = serving(cluster), _shape(cluster)
    group, token = served.prefill_ranks or served.expert_ranks, float(PREFILL_TOKEN)
    core = shape.n_layers * (shape.head_dim + shape.v_head_dim) * shape.n_heads * float(CONTEXT)
    met = _met(shape) - _head(shape) + _sparse(shape) * (shape.n_shared + _chosen(shape, values)) * _expert(shape)
    work = token * (2 * met / values["rank.product_flop_per_s"] + core / _core_flop_per_s(cluster, values))
    sent = _sent_bytes(shape, _chosen(shape, values), group)
    exchange = _sparse(shape) * _many_s(cluster, sent, group, values)(token)
    swapped = token * shape.n_layers * _swapped_bytes(shape, served.prefill_split)
    factor = values[f"{cluster.name}.exchange"]
    exchange = factor * (exchange + swapped / _bulk_bytes_per_s(cluster, values))
    return _ranks(cluster) * token / _together_s(cluster, work, exchange, values["prefill.gain"], values)


def room(cluster: Cluster, values: Values) -> float:
    """Sequences whose cache a rank holds beside its weights; the drafting layer is left out."""
    served, shape = serving(cluster), _shape(cluster)
    spread = shape.n_experts + (shape.n_shared if served.shared_ranks else 0)
    held = shape.parameters - _sparse(shape) * (spread - _slots(shape, served)) * _expert(shape)
    return (values["rank.memory_bytes"] - held) / (CONTEXT * shape.kv_bytes_per_token())


def decode_step_s(cluster: Cluster, values: Values) -> Callable[[float], float]:
    """Seconds of one step of a rank by its number of sequences: each one's next token and a drafted one."""
    served, shape = serving(cluster), _shape(cluster)
    sparse, layers, apart = _sparse(shape) + 1, shape.n_layers + 1, bool(served.shared_ranks)
    flop_per_s = values["rank.product_flop_per_s"]
    bytes_per_s = values["rank.memory_bytes_per_s"] * served.memory_share.value
    core = layers * 2 * shape.n_heads * (2 * shape.kv_lora_rank + shape.qk_rope_dim) * float(CONTEXT)
    cache = CONTEXT * shape.kv_bytes_per_token() * layers / shape.n_layers
    attention_s = max(2 * core / _core_flop_per_s(cluster, values), cache / bytes_per_s)
    met = _met(shape) + _drafting(shape) + (0 if apart else sparse * shape.n_shared * _expert(shape))
    copies = _chosen(shape, values) + (shape.n_shared if apart else 0)
    routed, held = (sparse * count * _expert(shape) for count in (copies, _slots(shape, served)))
    exchange_s = _exchange_s(cluster, _sent_bytes(shape, copies, served.expert_ranks), values)

    def step_s(sequences: float) -> float:
        token = 2 * sequences
        products = (max(2 * token * own / flop_per_s, read / bytes_per_s) for own, read in ((met, met), (routed, held)))
        work = sequences * attention_s + sum(products)
        return _together_s(cluster, work, sparse * exchange_s(token), values["decode.gain"], values)

    return step_s


def _together_s(cluster: Cluster, work_s: float, exchange_s: float, gain: float, values: Values) -> float:
    """One after the other, less the gain of microbatches, which cannot hide more than the shorter of the two."""
    shortest = max(work_s, exchange_s)
    return values[f"{cluster.name}.software"] * max((work_s + exchange_s) / (1 + gain), shortest)


def _exchange_s(cluster: Cluster, sent_bytes: float, values: Values) -> Callable[[float], float]:
    """Out and back in one expert layer by a rank's tokens: kernels for few tokens or for many, the cheaper.

    Of the start-up that tables of 128 tokens a rank show, a share grows with the tokens.
    """
    group, share = serving(cluster).expert_ranks, values["decode.start_share"]
    start_s, many_s = _start_s(group, values), _many_s(cluster, sent_bytes, group, values)
    wire = values["rank.scaleup_unidirectional_bytes_per_s"] * values["rank.wire_share"]

    def layer_s(token: float) -> float:
        few = start_s * (share + (1 - share) * token / exchange_rows.TOKENS) + token * sent_bytes / wire
        return values[f"{cluster.name}.exchange"] * min(few, many_s(token))

    return layer_s


def _many_s(cluster: Cluster, sent_bytes: float, group: int, values: Values) -> Callable[[float], float]:
    start_s, bytes_per_s = _start_s(group, values), _bulk_bytes_per_s(cluster, values)
    return lambda token: start_s + token * sent_bytes / bytes_per_s


def _start_s(group: int, values: Values) -> float:
    return values["rank.start_s"] + values["rank.doubling_s"] * math.log2(group)


def _bulk_bytes_per_s(cluster: Cluster, values: Values) -> float:
    return values["rank.scaleup_unidirectional_bytes_per_s"] * serving(cluster).bulk_share.value


def _sent_bytes(shape: ModelShape, copies: float, group: int) -> float:
    """Of a token, out and back, off its rank."""
    scales = shape.d_model / SCALE_BLOCK * SCALE_BYTES
    return copies * (3 * shape.d_model + scales) * (group - 1) / group


def _swapped_bytes(shape: ModelShape, split: int) -> float:
    """Of a token and layer, where attention is cut by heads: every rank's latents to all, outputs back once."""
    latent = shape.q_lora_rank + shape.kv_lora_rank + shape.qk_rope_dim
    return LATENT_BYTES * (split - 1) * (latent + shape.n_heads * shape.v_head_dim / split)


def _core_flop_per_s(cluster: Cluster, values: Values) -> float:
    return values["rank.bf16_dense_flop_per_s"] * serving(cluster).attention_share.value


def _chosen(shape: ModelShape, values: Values) -> float:
    """Routed experts of a token as the busiest rank meets them."""
    return shape.top_k * values["serving.imbalance"]


def _sparse(shape: ModelShape) -> int:
    return shape.n_layers - shape.n_dense_layers


def _expert(shape: ModelShape) -> int:
    return 3 * shape.d_model * shape.d_ff_expert


def _head(shape: ModelShape) -> int:
    return shape.d_model * shape.vocab_size


def _met(shape: ModelShape) -> float:
    """Weights that every token meets, experts apart; the input embedding is looked up, not read."""
    return shape.active_parameters - _sparse(shape) * (shape.top_k + shape.n_shared) * _expert(shape)


def _drafting(shape: ModelShape) -> float:
    """The drafting layer's, experts apart: attention, the product that joins token and hidden state, the head again."""
    attention = _met(shape) - _head(shape) - shape.n_dense_layers * 3 * shape.d_model * shape.d_ff_dense
    return attention / shape.n_layers + 2 * shape.d_model**2 + _head(shape)


def _slots(shape: ModelShape, served: Serving) -> int:
    """Experts that a rank holds in each layer."""
    return math.ceil(shape.n_experts / (served.expert_ranks - served.shared_ranks))


def _ranks(cluster: Cluster) -> int:
    return cluster.last_devices * serving(cluster).ranks_per_device


def _shape(cluster: Cluster) -> ModelShape:
    return load_shapes()[serving(cluster).model]
