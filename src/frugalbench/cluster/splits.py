"""Which ways of cutting a training step exist on a cluster, and which of them is fastest."""

import itertools
from collections.abc import Iterator

from frugalbench.cluster import parallel
from frugalbench.cluster.hardware import nearest
from frugalbench.cluster.layout import Schedule, Split
from frugalbench.cluster.topology import Cluster, Values
from frugalbench.schema import Frozen, FrugalbenchError
from frugalbench.specs.shapes import ModelShape, load_shapes

SEQUENCE = 4096
"""Tokens of a sequence unless asked otherwise."""
MOST_PIPELINE, MOST_EXPERT, MOST_MICRO = 128, 512, 4
INTERLEAVES = (1, 2, 4)
UNIT = 1e9
PADDING = "raise TP, PP or EP, or use more devices"


class Wanted(Frozen, frozen=True, kw_only=True):
    """Degrees that are given; ``None`` leaves one to the search."""

    tensor: int | None = None
    pipeline: int | None = None
    data: int | None = None
    expert: int | None = None
    context: int = 1
    zero: int = 1
    schedule: Schedule = "1f1b"
    sequence: int = SEQUENCE
    """Tokens."""


def known_shape(name: str) -> ModelShape:
    """A published shape. Raises :class:`FrugalbenchError` naming the nearest."""
    shapes = load_shapes()
    if name not in shapes:
        raise FrugalbenchError(f"unknown model '{name}'" + nearest(name, list(shapes)))
    return shapes[name]


def candidates(cluster: Cluster, shape: ModelShape, devices: int, batch: int, wanted: Wanted) -> list[Split]:
    """Every cut that exists and fits. Raises :class:`FrugalbenchError` naming what is wrong and the nearest choice."""
    check(cluster, shape, devices, batch, wanted)
    every = list(_every(cluster, shape, devices, batch, wanted))
    room = cluster.hardware().require("memory_bytes").value
    fits = [split for split in every if parallel.memory_bytes(shape, split) <= room]
    if fits:
        return fits
    if not every:
        raise FrugalbenchError(
            f"no cut of {devices} devices into TP, PP, EP and replicas gives each replica a sequence of "
            f"{batch}; give fewer degrees, or fewer devices"
        )
    need = min(parallel.memory_bytes(shape, split) for split in every)
    raise FrugalbenchError(
        f"{shape.model} does not fit: at least {need / UNIT:.0f} GB of {room / UNIT:.0f} GB a device; {PADDING}"
    )


def ranked(cluster: Cluster, shape: ModelShape, splits: list[Split], values: Values) -> list[Split]:
    """Fastest first; one per degrees: the fastest of its microbatches, chunks, orders and recomputation."""
    timed = sorted(splits, key=lambda split: parallel.step(cluster, shape, split, values).step_s)
    best: dict[tuple[int, ...], Split] = {}
    for split in timed:
        best.setdefault((split.tensor, split.pipeline, split.expert), split)
    return list(best.values())


def described(split: Split) -> str:
    """The degrees in a few words."""
    degrees = f"TP {split.tensor}, PP {split.pipeline}, DP {split.data}, EP {split.expert}"
    more = f", CP {split.context}" * (split.context > 1) + f", ZeRO {split.zero}" * (split.zero > 1)
    more += f", {split.schedule}" * (split.schedule != "1f1b")
    again = ", recomputed" if split.recompute else ""
    return f"{degrees}{more}, {split.micro} x {split.sequence} tokens a microbatch, {split.interleave} chunks{again}"


def check(cluster: Cluster, shape: ModelShape, devices: int, batch: int, wanted: Wanted) -> None:
    """Raises :class:`FrugalbenchError` for degrees that cannot be, with the nearest that can."""
    domain = cluster.level[0].fan_out or cluster.last_devices
    tensor = [n for n in _divisors(shape.n_heads) if n <= domain]
    _among("TP", wanted.tensor, tensor, f"{shape.n_heads} heads in a scale-up domain of {domain} devices")
    _among("PP", wanted.pipeline, range(1, shape.n_layers + 1), f"{shape.n_layers} layers")
    if wanted.context < 1 or wanted.sequence % wanted.context:
        near = max(1, round(wanted.sequence / wanted.context)) * wanted.context
        raise FrugalbenchError(f"{wanted.sequence} tokens do not divide by CP {wanted.context}; use --sequence {near}")
    cut = (wanted.tensor or 1) * (wanted.pipeline or 1) * (wanted.data or 1) * wanted.context
    if devices % cut or (wanted.data and wanted.tensor and wanted.pipeline and devices != cut):
        near = max(1, round(devices / cut)) * cut
        product = "TP x PP x DP" + " x CP" * (wanted.context > 1)
        raise FrugalbenchError(f"{devices} devices do not divide into {product} = {cut}; use --devices {near}")
    if wanted.data is not None and wanted.data > batch:
        raise FrugalbenchError(f"{wanted.data} replicas are more than the {batch} sequences of a step; use {batch}")
    if wanted.expert is None:
        return
    if not shape.n_experts:
        _among("EP", wanted.expert, [1], f"{shape.model}, which has no experts")
        return
    replicas = (wanted.data or devices // cut) * wanted.context
    _among("EP", wanted.expert, [n for n in _divisors(shape.n_experts) if replicas % n == 0], _experts(shape, replicas))


def _experts(shape: ModelShape, replicas: int) -> str:
    return f"{shape.n_experts} experts over {replicas} replicas"


def _among(name: str, value: int | None, valid: "range | list[int]", what: str) -> None:
    if value is not None and value not in valid:
        near = min(valid, key=lambda n: abs(n - value))
        raise FrugalbenchError(f"{name} {value} does not go with {what}; the nearest that does is {near}")


def _every(cluster: Cluster, shape: ModelShape, devices: int, batch: int, wanted: Wanted) -> Iterator[Split]:
    for tensor, pipeline in itertools.product(_tensors(cluster, shape, wanted), _pipelines(shape, wanted)):
        data, left = divmod(devices, tensor * pipeline * wanted.context)
        if left or data < 1 or (wanted.data not in (None, data)):
            continue
        for expert, micro, interleave in itertools.product(
            _degrees(shape, data * wanted.context, wanted), _powers(MOST_MICRO), _chunks(shape, pipeline, wanted)
        ):
            if batch % (data * micro):
                continue
            for recompute, inner in itertools.product((False, True), (False, True) if pipeline > 1 else (False,)):
                yield Split(
                    devices=devices, sequence=wanted.sequence, batch=batch, tensor=tensor, pipeline=pipeline,
                    expert=expert, context=wanted.context, zero=wanted.zero, schedule=wanted.schedule, micro=micro,
                    interleave=interleave, recompute=recompute, pipeline_inner=inner,
                )  # fmt: skip


def _tensors(cluster: Cluster, shape: ModelShape, wanted: Wanted) -> list[int]:
    if wanted.tensor is not None:
        return [wanted.tensor]
    domain = cluster.level[0].fan_out or cluster.last_devices
    return [n for n in _powers(min(domain, 16)) if shape.n_heads % n == 0]


def _pipelines(shape: ModelShape, wanted: Wanted) -> list[int]:
    return [wanted.pipeline] if wanted.pipeline is not None else _powers(min(shape.n_layers, MOST_PIPELINE))


def _degrees(shape: ModelShape, replicas: int, wanted: Wanted) -> list[int]:
    if wanted.expert is not None:
        return [wanted.expert] if replicas % wanted.expert == 0 else []
    return [n for n in _powers(min(replicas, shape.n_experts or 1, MOST_EXPERT)) if (shape.n_experts or 1) % n == 0]


def _chunks(shape: ModelShape, pipeline: int, wanted: Wanted) -> list[int]:
    """Zero-bubble schedules have one chunk of layers a device."""
    if wanted.schedule != "1f1b":
        return [1]
    return [n for n in INTERLEAVES if n == 1 or (1 < pipeline * n <= shape.n_layers and pipeline > 1)]


def _powers(most: int) -> list[int]:
    return [2**n for n in range(most.bit_length()) if 2**n <= most]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
