"""Training of a trillion parameters, dense and as a mixture of experts, on a fragmented fabric over a uniform one.

Each fabric gets the cut that is fastest there at the central inputs; the bounds are those of this cut.
"""

from functools import cache

from frugalbench.cluster import model, parallel, splits
from frugalbench.cluster.layout import Split
from frugalbench.cluster.ranges import Range, propagate
from frugalbench.cluster.topology import Cluster, Values, load
from frugalbench.schema import Quantity
from frugalbench.specs.shapes import ModelShape

MIXTURE = "kimi-k2"
DENSE = ModelShape(
    model="dense-1t", attn="gqa", n_layers=128, n_dense_layers=128, d_model=24576, d_ff_dense=90112, d_ff_expert=0,
    n_experts=0, top_k=0, n_shared=0, n_heads=192, n_kv_heads=8, head_dim=128, q_lora_rank=0, kv_lora_rank=0,
    qk_nope_dim=0, qk_rope_dim=0, v_head_dim=0, n_full_attn_layers=128, sliding_window=0, vocab_size=128256, tied=False,
    published_total_b=0.0, published_active_b=0.0, read_or_recalled="chosen",
    source="chosen: blocks as in Llama 3, as many of that width as Kimi K2 has parameters in total",
)  # fmt: skip
"""No published model: the scenario of the claim. Its published totals are 0 because there are none."""


def ratio(fragmented: str, uniform: str) -> dict[str, Quantity]:
    """Facts of the claim: the dense model's ratio, the mixture's beside it, and what each reaches on each fabric."""
    ours, theirs = load(fragmented), load(uniform)
    dense, facts = _one(ours, theirs, DENSE, "dense")
    mixture, beside = _one(ours, theirs, splits.known_shape(MIXTURE), "mixture")
    what = f"{ours.says} / {theirs.says}, {ours.last_devices} devices, the fastest cut of each"
    return {
        "ratio": dense.quantity("1", f"dense 1T: {what}"),
        "mixture_ratio": mixture.quantity("1", f"{MIXTURE}: {what}"),
        **facts,
        **beside,
    }


@cache
def fastest(cluster: Cluster, shape: ModelShape, devices: int) -> Split:
    """The cut with the highest throughput at the central inputs.

    Raises :class:`frugalbench.schema.FrugalbenchError` where no cut fits.
    """
    every = splits.candidates(cluster, shape, devices, _batch(cluster), splits.Wanted())
    return splits.ranked(cluster, shape, every, _centre(cluster, shape))[0]


def described(name: str) -> dict[str, str]:
    """The cuts that the facts rest on, by model."""
    cluster = load(name)
    shapes = (DENSE, splits.known_shape(MIXTURE))
    return {shape.model: splits.described(fastest(cluster, shape, cluster.last_devices)) for shape in shapes}


def _one(ours: Cluster, theirs: Cluster, shape: ModelShape, name: str) -> tuple[Range, dict[str, Quantity]]:
    def rate(cluster: Cluster, values: Values) -> list[float]:
        split = fastest(cluster, shape, cluster.last_devices)
        found = parallel.step(cluster, shape, split, values)
        return [found.token_per_s, parallel.mfu(found, split, values)]

    both, _ = model.compare(ours, theirs, rate, lambda cluster: parallel.inputs(cluster, shape))
    facts = {}
    for role, cluster in (("fragmented", ours), ("uniform", theirs)):
        split = fastest(cluster, shape, cluster.last_devices)
        tokens, mfu = propagate(lambda v, c=cluster: rate(c, v), parallel.inputs(cluster, shape))  # type: ignore[misc]
        facts[f"{name}_{role}_token_per_s"] = tokens.quantity("token/s", splits.described(split))
        facts[f"{name}_{role}_mfu"] = mfu.quantity("1", splits.described(split))
    return both, facts


def _batch(cluster: Cluster) -> int:
    return round(cluster.training.batch_token.value / splits.SEQUENCE)


def _centre(cluster: Cluster, shape: ModelShape) -> Values:
    return {name: item.value for name, item in parallel.inputs(cluster, shape).items()}
