"""A training step of a published shape on a cluster under tensor, pipeline, data, context and expert parallelism.

``step = (m + (p - 1) / v) x slowest stage + exposed sends between stages + exposed gradient exchange + optimizer``: see
:mod:`frugalbench.cluster.training`, whose fitted constants hold here too, for one pipeline of ``m`` microbatches, ``p``
stages and ``v`` chunks a device. On top of it come mixtures of experts: the busiest rank of an expert group sets the
pace of products and exchanges, tokens cross the group twice a pass, and gradients of experts meet only their copies.
What is stored and exchanged under ZeRO: :mod:`frugalbench.cluster.zero`. Zero-bubble schedules (arXiv 2401.10241,
table 2): with ``F``, ``B`` and ``W`` for forward, gradients of inputs and of weights, the bubble of ``p`` stages is
``(p - 1)(F + B + W)`` under 1F1B, ``(p - 1)(F + B - W)`` in ZB-H1 and ``(p - 1)(F + B - 2W)`` in ZB-H2, which holds the
activations of ``2p - 1`` microbatches. Context parallelism cuts a sequence over ranks that gather each other's keys and
values in every layer (arXiv 2407.21783, section 3.3.2), and their gradients back.
Products of small groups of tokens run at the rate of large ones here, and nothing fails: both flatter.
"""

import math

from frugalbench.cluster import training, zero
from frugalbench.cluster.collectives import Span, all_reduce_s, all_to_all_s, shards_s
from frugalbench.cluster.layout import Split
from frugalbench.cluster.published.constants import shipped
from frugalbench.cluster.published.training_rows import USUAL_SHARE
from frugalbench.cluster.ranges import Range, exact
from frugalbench.cluster.topology import Cluster, Values
from frugalbench.schema import Frozen
from frugalbench.specs.shapes import ModelShape

KV_BYTES = 2
"""Of a key or value that is sent."""
ACTIVATION_BYTES = 34.0
"""Per token, layer and hidden value with fused attention and sequence parallelism (arXiv 2205.05198)."""
ROUTED_BYTES = 4.0
"""Per token, chosen expert and hidden value: the copy that is sent and the one that comes back."""


class Share(Frozen, frozen=True, kw_only=True):
    """Where a step's seconds go, and what it needs."""

    products_s: float
    memory_s: float
    tensor_s: float
    expert_s: float
    """Exchange of tokens between experts that does not hide."""
    context_s: float
    """Keys and values gathered from the other parts of a sequence, and their gradients."""
    bubble_s: float
    stages_s: float
    """Sends between stages that do not hide."""
    gradient_s: float
    optimizer_s: float
    token: float
    flop: float
    """What the model needs, recomputation apart."""

    @property
    def step_s(self) -> float:
        """The whole step."""
        work = self.products_s + self.memory_s + self.optimizer_s
        return work + self.exposed_s + self.bubble_s

    @property
    def exposed_s(self) -> float:
        """Communication that nothing hides."""
        return self.tensor_s + self.expert_s + self.context_s + self.stages_s + self.gradient_s

    @property
    def token_per_s(self) -> float:
        """Throughput of the whole machine."""
        return self.token / self.step_s


def inputs(cluster: Cluster, shape: ModelShape) -> dict[str, Range]:
    """What a step reads of a cluster, with bounds: links, software, and for mixtures the experts' load and overlap.

    Raises :class:`frugalbench.schema.FrugalbenchError` for a device without memory or peak figures.
    """
    device, constants = cluster.hardware(), shipped()
    peak, achieved = (device.deciding(f"{kind}bf16_dense_flop_per_s") for kind in ("", "achieved_"))
    usual = exact(USUAL_SHARE) * (peak or device.require("bf16_dense_flop_per_s"))
    stack, width = constants.training.stack["other"], constants.spread["training elsewhere"].width_95
    found = {name: item for name, item in cluster.inputs().items() if not name.startswith(("training.", "device."))}
    found |= {name: cluster.inputs()[name] for name in ("training.overlap", "training.gradient_bytes_per_parameter")}
    found |= {
        "device.product_flop_per_s": exact(constants.training.product) * (achieved or usual),
        "device.bf16_dense_flop_per_s": device.require("bf16_dense_flop_per_s"),
        "device.memory_bytes": device.require("memory_bytes"),
        "device.memory_bytes_per_s": device.require("memory_bytes_per_s"),
        "software": Range(value=stack, low=stack * math.exp(-width), high=stack * math.exp(width)),
    }
    return found | (EXPERTS if shape.n_experts else {})


EXPERTS = {
    "experts.imbalance": Range(value=6688 / 5655, low=1.0, high=1.5),
    "experts.overlap": Range(value=0.5, low=0.0, high=0.9),
}
SOURCES = {
    "experts.imbalance": "busiest over mean rank: prefill with perfect over default balance, points.csv P0431 and "
    "P0432; upper end assumed",
    "experts.overlap": "assumed: none where exchanges wait for products, most where two microbatches alternate",
    "software": "factor on the step's time: geometric mean over published training stacks, 95% of those left out",
    "device.product_flop_per_s": "achieved rate of large products times the fitted share of it that training reaches",
}
"""Sources of the inputs that no cluster file gives."""


def step(cluster: Cluster, shape: ModelShape, split: Split, values: Values) -> Share:
    """One step with one value for each of :func:`inputs`."""
    passes = 4.0 if split.recompute else 3.0
    layers = math.ceil(shape.n_layers / split.pipeline)
    software, m = values["software"], split.microbatches
    products = software * _products_s(shape, split, values, passes)
    memory = software * layers * _traffic_s(shape, split, values, passes)
    plane = 2.0 * split.token * shape.d_model
    tensor = layers * passes * 2 * all_reduce_s(plane, cluster.spans(1, split.tensor, values))
    expert = layers * _expert_s(cluster, shape, split, values, plane, passes) * (1 - values.get("experts.overlap", 0.0))
    context = layers * _context_s(cluster, shape, split, values, passes)
    stage = products + memory + tensor + expert + context
    sends = split.interleave * 2 * _send_s(plane / split.tensor, _link(cluster, split, values))
    gradients = _gradient_s(cluster, shape, split, values)
    return Share(
        products_s=m * products,
        memory_s=m * memory,
        tensor_s=m * tensor,
        expert_s=m * expert,
        context_s=m * context,
        bubble_s=_bubble_s(split, stage, software * _weights_s(shape, split, values)),
        stages_s=m * _exposed_s(sends, stage, values) if split.pipeline > 1 else 0.0,
        gradient_s=_exposed_s(gradients, m * stage * (1 if split.zero == 3 else 2 / 3), values),
        optimizer_s=_optimizer_s(shape, split, values),
        token=float(split.batch * split.sequence),
        flop=split.batch * split.sequence * flop_per_token(shape, split.sequence),
    )


def mfu(found: Share, split: Split, values: Values) -> float:
    """Share of the devices' peak that the model's own operations take."""
    return found.flop / found.step_s / split.devices / values["device.bf16_dense_flop_per_s"]


def flop_per_token(shape: ModelShape, sequence: int) -> float:
    """Forward and backward: six per active weight, and scores and values over the lower half of the square."""
    return 6.0 * shape.active_parameters + 3.0 * shape.n_layers * _core_flop(shape, sequence)


def memory_bytes(shape: ModelShape, split: Split) -> float:
    """Per device: states and the activations of the first stage, which holds most microbatches."""
    common, experts = _own_parameters(shape, split)
    layers = math.ceil(shape.n_layers / split.pipeline)
    states = zero.state_bytes(common, split.replicas, split.zero) + zero.state_bytes(experts, split.copies, split.zero)
    if split.zero == 3:
        states += zero.gathered_bytes(common, layers, split.replicas)
        states += zero.gathered_bytes(experts, layers, split.copies)
    deepest = 2 * split.pipeline - 1 if split.schedule == "zb-h2" else split.pipeline
    kept = 2.0 if split.recompute else _activation_bytes(shape)
    plane = split.token * shape.d_model / split.tensor
    return states + min(split.microbatches, deepest) * layers * kept * plane


def exchanged_bytes(shape: ModelShape, split: Split) -> float:
    """Bytes of gradients and weights that a device sends in a step, at two bytes a parameter."""
    common, experts = _own_parameters(shape, split)
    groups = ((common, split.replicas), (experts, split.copies))
    return sum(zero.sent_bytes(own, ranks, split.zero, split.microbatches) for own, ranks in groups)


def expert_parameters(shape: ModelShape) -> int:
    """Weights of all routed experts."""
    return (shape.n_layers - shape.n_dense_layers) * shape.n_experts * 3 * shape.d_model * shape.d_ff_expert


def _own_parameters(shape: ModelShape, split: Split) -> tuple[float, float]:
    """Weights of one device: those that every replica has, and those of its experts."""
    cut, experts = split.tensor * split.pipeline, expert_parameters(shape)
    return (shape.parameters - experts) / cut, experts / (cut * split.expert)


def _core_flop(shape: ModelShape, sequence: int) -> float:
    """Per token and layer, forward."""
    return float(sequence * shape.n_heads * (shape.head_dim + (shape.v_head_dim or shape.head_dim)))


def _products_s(shape: ModelShape, split: Split, values: Values, passes: float) -> float:
    """One microbatch through one stage on the busiest rank."""
    routed = 0.0
    if shape.n_experts:
        routed = expert_parameters(shape) * shape.top_k / shape.n_experts
    busy = values["experts.imbalance"] if split.expert > 1 else 1.0
    weights = shape.active_parameters + routed * (busy - 1)
    flop = 2 * weights + shape.n_layers * _core_flop(shape, split.sequence)
    return passes * split.token * flop * _share(shape, split) / values["device.product_flop_per_s"]


def _share(shape: ModelShape, split: Split) -> float:
    """Of the model's products, one device's."""
    return math.ceil(shape.n_layers / split.pipeline) / shape.n_layers / split.tensor


def _weights_s(shape: ModelShape, split: Split, values: Values) -> float:
    """``W``: the gradients of the weights of one microbatch in one stage; the core of attention has none."""
    flop = 2 * shape.active_parameters * split.token * _share(shape, split)
    return flop / values["device.product_flop_per_s"]


def _bubble_s(split: Split, stage_s: float, weights_s: float) -> float:
    """Zero-bubble schedules move ``W`` into the waiting: once the same as ``B`` saves, twice with more in flight."""
    moved = {"1f1b": 0.0, "zb-h1": 2 * weights_s, "zb-h2": 3 * weights_s}[split.schedule]
    return (split.pipeline - 1) / split.interleave * max(stage_s - moved, 0.0)


def _activation_bytes(shape: ModelShape) -> float:
    """Per token, layer and hidden value."""
    return ACTIVATION_BYTES + ROUTED_BYTES * (shape.top_k if shape.n_experts else 0)


def _traffic_s(shape: ModelShape, split: Split, values: Values, passes: float) -> float:
    plane = split.token * shape.d_model / split.tensor
    moved = shipped().training.traffic * passes / 3 * _activation_bytes(shape) * plane
    return moved / values["device.memory_bytes_per_s"]


def _expert_s(
    cluster: Cluster, shape: ModelShape, split: Split, values: Values, plane_bytes: float, passes: float
) -> float:
    """Mean over layers of all exchanges of one microbatch: out and back, in each of forward, backward and again.

    The backward pass counts once here: it exchanges gradients of as many bytes.
    """
    if split.expert < 2:
        return 0.0
    sparse = (shape.n_layers - shape.n_dense_layers) / shape.n_layers
    sent = plane_bytes / split.tensor * shape.top_k * values["experts.imbalance"]
    group = cluster.spans(split.replica_stride, split.expert, values)
    return sparse * (passes - 1) * 2 * all_to_all_s(sent, group)


def _context_s(cluster: Cluster, shape: ModelShape, split: Split, values: Values, passes: float) -> float:
    """Mean over layers: keys and values gathered forward, backward and in recomputation, gradients scattered once."""
    if split.context < 2:
        return 0.0
    heads = 1 if shape.kv_lora_rank else min(split.tensor, max(shape.n_kv_heads, 1))
    size = split.micro * split.sequence * shape.kv_bytes_per_token(KV_BYTES) / shape.n_layers / heads
    return passes * shards_s(size, cluster.spans(split.replica_stride, split.context, values))


def _link(cluster: Cluster, split: Split, values: Values) -> Span | None:
    """The widest-reaching level that a stage's neighbours are joined by."""
    crossed = [s for s in cluster.spans(split.stage_stride, split.pipeline, values) if s.ranks > 1]
    return crossed[-1] if crossed else None


def _send_s(size_bytes: float, link: Span | None) -> float:
    return link.hop_s + size_bytes / (link.bytes_per_s * link.efficiency) if link else 0.0


def _gradient_s(cluster: Cluster, shape: ModelShape, split: Split, values: Values) -> float:
    common, experts = _own_parameters(shape, split)
    stride = split.replica_stride
    own_s = _shared_s(common, cluster.spans(stride, split.replicas, values), split, values)
    if not experts:
        return own_s
    return own_s + _shared_s(experts, cluster.spans(stride * split.expert, split.copies, values), split, values)


def _shared_s(parameters: float, spans: list[Span], split: Split, values: Values) -> float:
    """Gradients added up, and weights spread, over the ranks that share them."""
    gradients = parameters * values["training.gradient_bytes_per_parameter"]
    if split.zero == 1:
        return all_reduce_s(gradients, spans)
    scatters, gathers = zero.passes(split.zero, split.microbatches)
    return scatters * shards_s(gradients, spans) + gathers * shards_s(parameters * zero.WEIGHT_BYTES, spans)


def _exposed_s(total_s: float, behind_s: float, values: Values) -> float:
    """What of a transfer neither the overlapping share nor the work beside it hides."""
    overlap = values["training.overlap"]
    return total_s * (1 - overlap) + max(overlap * total_s - behind_s, 0.0)


def _optimizer_s(shape: ModelShape, split: Split, values: Values) -> float:
    common, experts = _own_parameters(shape, split)
    own = common / split.replicas + experts / split.copies
    return own * training.OPTIMIZER_TRAFFIC / values["device.memory_bytes_per_s"]
