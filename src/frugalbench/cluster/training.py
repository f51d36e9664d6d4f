"""One training step of a transformer under data, tensor, pipeline, context and sequence parallelism, in closed form.

``step = (m + (p - 1) / v) x slowest stage + exposed gradient exchange + optimizer``: ``m`` microbatches, ``p`` stages,
``v`` interleaved chunks per device (arXiv 2104.04473). Bytes of activations per layer and what recomputation repeats:
arXiv 2205.05198. Matrix products run at a share of the published *achieved* rate, the core of attention at its own
where products have 8 bits, elementwise work at the memory's, collectives of a layer at
:mod:`frugalbench.cluster.pipelined`'s time. Ranks that share a sequence gather each other's keys and values in every
layer and pass (arXiv 2407.21783, section 3.3.2), and scatter the gradients of them once; nothing hides that.
"""

from frugalbench.cluster import pipelined as p
from frugalbench.schema import Frozen, FrugalbenchError

GRADIENT_BYTES = 2.0
STATE_BYTES = 16.0
"""Weights, gradient, master copy and two moments per parameter: 2 + 2 + 4 + 4 + 4."""
KV_BYTES = 2.0
"""Of a key or value that is sent."""
OPTIMIZER_TRAFFIC = 30.0
"""Bytes read and written per parameter by a fused update in mixed precision."""


class Model(Frozen, frozen=True, kw_only=True):
    """Shape of a decoder-only transformer."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab: int
    kv_heads: int | None = None
    gated: bool = False
    """Three matrices in the feed-forward part instead of two."""

    @property
    def layer_parameters(self) -> float:
        """Weights of one layer."""
        kv = 2 * (self.kv_heads or self.heads) / self.heads
        return self.hidden**2 * (2 + kv) + (3 if self.gated else 2) * self.hidden * self.ffn

    @property
    def parameters(self) -> float:
        """All weights; embedding and output projection shared or not, counted once."""
        return self.layers * self.layer_parameters + self.hidden * self.vocab

    def flop_per_token(self, sequence: int, causal: bool = False) -> float:
        """Forward and backward pass: six per weight; attention over the square or, causal, its lower half."""
        layer = 2 * self.layer_parameters + (2 if causal else 4) * sequence * self.hidden
        return 3 * (self.layers * layer + 2 * self.hidden * self.vocab)


class Layout(Frozen, frozen=True, kw_only=True):
    """How one step is cut."""

    devices: int
    batch: int
    """Sequences of one step over all devices."""
    sequence: int
    micro: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    """Ranks that share a sequence, next to those of tensor parallelism."""
    interleave: int = 1
    recompute: str = "none"
    """``none``, ``selective`` (the attention core) or ``full``."""
    sequence_parallel: bool = False
    fused_attention: bool = False
    """The scores are never written to memory; the lower half of the square is computed, at half the products' rate."""
    overlap: float = 0.5
    """Share of the gradient exchange that hides behind computation."""
    sharded: bool = False
    """Weights are sharded over the data-parallel group and gathered twice a step."""

    @property
    def data(self) -> int:
        """Data-parallel replicas."""
        return self.devices // (self.tensor * self.pipeline * self.context)

    @property
    def copies(self) -> int:
        """Ranks with the same weights: those of all replicas and of all parts of a sequence."""
        return self.data * self.context

    @property
    def microbatches(self) -> float:
        """Per pipeline and step."""
        return max(self.batch / (self.data * self.micro), 1.0)


class Machine(Frozen, frozen=True, kw_only=True):
    """What one device and its links achieve."""

    flop_per_s: float
    """Matrix products, achieved."""
    core_flop_per_s: float
    """The core of attention, achieved: in 16 bits whatever the products have."""
    memory_bytes_per_s: float
    fabric: p.Fabric
    inside: p.Constants
    """Collectives inside a node."""
    between: p.Constants
    memory_bytes: float | None = None


class Share(Frozen, frozen=True, kw_only=True):
    """Where a step's seconds go."""

    compute_s: float
    memory_s: float
    tensor_s: float
    context_s: float
    """Keys and values gathered from the other parts of a sequence, and their gradients."""
    bubble_s: float
    exchange_s: float
    optimizer_s: float

    @property
    def step_s(self) -> float:
        """The whole step."""
        work = self.compute_s + self.memory_s + self.optimizer_s
        return work + self.tensor_s + self.context_s + self.bubble_s + self.exchange_s


def check(model: Model, layout: Layout, machine: Machine) -> None:
    """Raises :class:`FrugalbenchError` for a layout that cannot exist, with the nearest that can."""
    cut = layout.tensor * layout.pipeline * layout.context
    if layout.devices % cut:
        near = max(1, round(layout.devices / cut)) * cut
        raise FrugalbenchError(f"{layout.devices} devices do not divide into TP x PP x CP = {cut}; use {near}")
    if layout.tensor > machine.fabric.node:
        raise FrugalbenchError(f"TP {layout.tensor} exceeds the scale-up domain of {machine.fabric.node} devices")
    if model.heads % layout.tensor:
        fits = [n for n in range(1, model.heads + 1) if model.heads % n == 0]
        near = min(fits, key=lambda n: abs(n - layout.tensor))
        raise FrugalbenchError(f"{model.heads} heads do not divide by TP {layout.tensor}; the nearest is {near}")
    if layout.pipeline > model.layers:
        raise FrugalbenchError(f"PP {layout.pipeline} exceeds the {model.layers} layers; use at most {model.layers}")
    need = memory_bytes(model, layout)
    if machine.memory_bytes is not None and need > machine.memory_bytes:
        raise FrugalbenchError(
            f"weights, optimizer and activations take {need / 1e9:.0f} GB of {machine.memory_bytes / 1e9:.0f} GB; "
            "raise TP or PP, shard the optimizer or recompute"
        )


def memory_bytes(model: Model, layout: Layout) -> float:
    """Per device: states (sharded over replicas where the layout says so) and activations of the deepest stage."""
    own = model.parameters / (layout.tensor * layout.pipeline)
    states = own * STATE_BYTES / (layout.copies if layout.sharded else 1)
    held = min(layout.microbatches, layout.pipeline) if layout.pipeline > 1 else 1.0
    layers = model.layers / layout.pipeline
    plane = layout.micro * layout.sequence * model.hidden / layout.context
    kept = 2 * plane / layout.tensor if layout.recompute == "full" else _activation_bytes(model, layout)
    return states + held * layers * kept


def step(model: Model, layout: Layout, machine: Machine, traffic: float) -> Share:
    """Seconds of one step. ``traffic``: reads and writes per byte of activation and pass, a fitted constant."""
    layers = model.layers / layout.pipeline
    passes = 4.0 if layout.recompute == "full" else 3.0
    tokens = layout.micro * layout.sequence / layout.context
    head = 3 * 2 * tokens * model.hidden * model.vocab / layout.tensor
    flop = layers * passes * tokens * 2 * model.layer_parameters / layout.tensor + head
    again = 1.0 if layout.recompute == "selective" else 0.0
    core = layers * (passes + again) * tokens * 4 * layout.sequence * model.hidden / layout.tensor
    compute = flop / machine.flop_per_s + core / machine.core_flop_per_s
    memory = layers * traffic * passes / 3 * _activation_bytes(model, layout) / machine.memory_bytes_per_s
    tensor = layers * passes * 2 * _all_reduce_s(2 * tokens * model.hidden, layout.tensor, machine)
    context = layers * passes * _gather_s(model, layout, machine)
    m = layout.microbatches
    stage = compute + memory + tensor + context
    return Share(
        compute_s=m * compute,
        memory_s=m * memory,
        tensor_s=m * tensor,
        context_s=m * context,
        bubble_s=(layout.pipeline - 1) / layout.interleave * stage,
        exchange_s=_exchange_s(model, layout, machine, m * stage),
        optimizer_s=_optimizer_s(model, layout, machine),
    )


def _activation_bytes(model: Model, layout: Layout) -> float:
    """Per layer and microbatch: ``sbh (10 + 24/t + 5as/(ht))``; the first term is cut too with sequence parallelism."""
    plane = layout.micro * layout.sequence * model.hidden / layout.context
    outside = 10 / layout.tensor if layout.sequence_parallel else 10.0
    scores = 0.0 if layout.fused_attention else 5 * model.heads * layout.sequence / model.hidden / layout.tensor
    return plane * (outside + 24 / layout.tensor + scores)


def _all_reduce_s(size_bytes: float, ranks: int, machine: Machine) -> float:
    fabric = machine.fabric
    group = p.Fabric(
        ranks=ranks, node=fabric.node, up_bytes_per_s=fabric.up_bytes_per_s, out_bytes_per_s=fabric.out_bytes_per_s
    )
    return p.collective_s("all_reduce", "ring", size_bytes, group, machine.inside)


def _gather_s(model: Model, layout: Layout, machine: Machine) -> float:
    """Keys and values of a whole sequence at every rank that shares it, in one layer."""
    if layout.context < 2:
        return 0.0
    kv_heads = model.kv_heads or model.heads
    heads = max(kv_heads / layout.tensor, 1.0)
    size = layout.micro * layout.sequence * heads * 2 * model.hidden / model.heads * KV_BYTES
    fabric = machine.fabric
    group = p.Fabric(
        ranks=layout.context, node=max(fabric.node // layout.tensor, 1),
        up_bytes_per_s=fabric.up_bytes_per_s, out_bytes_per_s=fabric.out_bytes_per_s,
    )  # fmt: skip
    over_net = group.nodes > 1 and fabric.out_bytes_per_s is not None
    constants = machine.between if over_net else machine.inside
    return p.collective_s("all_gather", "ring", size, group, constants, over_net)


def _exchange_s(model: Model, layout: Layout, machine: Machine, busy_s: float) -> float:
    """Gradients reduced and weights gathered once (twice where weights are sharded); what cannot hide is exposed."""
    if layout.copies < 2:
        return 0.0
    own = model.parameters / (layout.tensor * layout.pipeline)
    size = own * GRADIENT_BYTES * (1.5 if layout.sharded else 1.0)
    fabric = machine.fabric
    inside = layout.devices <= fabric.node
    if inside or fabric.out_bytes_per_s is None:
        total = _all_reduce_s(size, layout.copies, machine)
    else:
        rate = fabric.out_bytes_per_s * machine.between.efficiency
        total = 2 * (layout.copies - 1) / layout.copies * size / rate
    return total * (1 - layout.overlap) + max(layout.overlap * total - busy_s * 2 / 3, 0.0)


def _optimizer_s(model: Model, layout: Layout, machine: Machine) -> float:
    own = model.parameters / (layout.tensor * layout.pipeline)
    return own * OPTIMIZER_TRAFFIC / (layout.copies if layout.sharded else 1) / machine.memory_bytes_per_s
