"""What-if on how a model is cut over a cluster: rows for ``frugalbench simulate --model``. Measures nothing."""

from pathlib import Path

from frugalbench.cluster import parallel, splits
from frugalbench.cluster.layout import Split
from frugalbench.cluster.parallel import Share
from frugalbench.cluster.ranges import Range, propagate
from frugalbench.cluster.splits import Wanted
from frugalbench.cluster.topology import Cluster, Values, load
from frugalbench.schema import Frozen, FrugalbenchError
from frugalbench.specs.shapes import ModelShape

MOST_ROWS = 8


class Cut(Frozen, frozen=True, kw_only=True):
    """One way of cutting a step, with its modelled throughput. Ranges hold what the inputs' bounds allow."""

    cluster: str
    model: str
    devices: int
    tensor: int
    pipeline: int
    data: int
    expert: int
    context: int
    """Ranks that share a sequence."""
    zero: int
    """Stage of ZeRO."""
    schedule: str
    """Of the pipeline: ``1f1b``, ``zb-h1`` or ``zb-h2``."""
    micro: int
    """Sequences of a microbatch."""
    interleave: int
    """Chunks of layers a device."""
    recompute: bool
    sequence_token: int
    batch_token: int
    token_per_s: Range
    mfu: Range
    exposed_share: Range
    """Communication that nothing hides, over the step."""
    bubble_share: Range
    exchanged_bytes: float
    """Gradients and weights that a device sends in a step."""
    memory_bytes: float
    """Weights, gradients, optimizer and activations of one device."""
    memory_limit_bytes: float


def cuts(cluster: str | Path, model: str, devices: int | None, wanted: Wanted) -> list[Cut]:
    """The fastest cuts that the degrees in ``wanted`` leave, at most eight; ``devices``: the cluster's unless given.

    Raises :class:`FrugalbenchError` for an unknown model or cluster, and for degrees, devices or memory that do not
    go together, naming the nearest that do.
    """
    found, shape = load(cluster), splits.known_shape(model)
    count = devices or _product(wanted) or found.last_devices
    if not 1 <= count <= found.last_devices:
        raise FrugalbenchError(f"{count} devices: '{found.name}' has 1 to {found.last_devices}")
    batch = max(1, round(found.training.batch_token.value / wanted.sequence))
    every = splits.candidates(found, shape, count, batch, wanted)
    centre = {name: item.value for name, item in parallel.inputs(found, shape).items()}
    ranked = splits.ranked(found, shape, every, centre)[:MOST_ROWS]
    return [_cut(found, shape, split) for split in ranked]


def _product(wanted: Wanted) -> int | None:
    """Devices that the degrees make, where all are given."""
    if wanted.tensor and wanted.pipeline and wanted.data:
        return wanted.tensor * wanted.pipeline * wanted.data * wanted.context
    return None


def _cut(cluster: Cluster, shape: ModelShape, split: Split) -> Cut:
    def results(values: Values) -> list[float]:
        found = parallel.step(cluster, shape, split, values)
        return [found.token_per_s, parallel.mfu(found, split, values), *_shares(found)]

    token_per_s, mfu, exposed, bubble = propagate(results, parallel.inputs(cluster, shape))
    return Cut(
        cluster=cluster.name,
        model=shape.model,
        devices=split.devices,
        tensor=split.tensor,
        pipeline=split.pipeline,
        data=split.data,
        expert=split.expert,
        context=split.context,
        zero=split.zero,
        schedule=split.schedule,
        micro=split.micro,
        interleave=split.interleave,
        recompute=split.recompute,
        sequence_token=split.sequence,
        batch_token=split.batch * split.sequence,
        token_per_s=token_per_s,
        mfu=mfu,
        exposed_share=exposed,
        bubble_share=bubble,
        exchanged_bytes=parallel.exchanged_bytes(shape, split),
        memory_bytes=parallel.memory_bytes(shape, split),
        memory_limit_bytes=cluster.hardware().require("memory_bytes").value,
    )


def _shares(found: Share) -> tuple[float, float]:
    return found.exposed_s / found.step_s, found.bubble_s / found.step_s
