"""Laws of the closed form, of training steps and of training across sites."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.cluster import pipelined as p
from frugalbench.cluster import training, wan
from frugalbench.schema import FrugalbenchError

CONSTANTS = p.Constants(up_s=3.7e-6, net_s=15e-6, latency=1.0, pipelining=0.9, efficiency=0.85)
SIZES = st.floats(1.0, 1e11)
RANKS = st.integers(2, 2048)
OPERATIONS = st.sampled_from(["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"])


def fabric(ranks: int, node: int = 8) -> p.Fabric:
    return p.Fabric(ranks=ranks, node=node, up_bytes_per_s=450e9, out_bytes_per_s=50e9)


def time_s(operation: str, size: float, ranks: int) -> float:
    algorithm = "pairwise" if operation == "all_to_all" else "ring"
    return p.collective_s(operation, algorithm, size, fabric(ranks), CONSTANTS, over_net=ranks > 8)


@given(OPERATIONS, SIZES, RANKS)
def test_more_bytes_take_longer_and_one_rank_takes_nothing(operation: str, size: float, ranks: int) -> None:
    assert time_s(operation, 2 * size, ranks) > time_s(operation, size, ranks) > 0
    assert time_s(operation, size, 1) == 0


@given(st.sampled_from(["all_reduce", "all_gather", "reduce_scatter"]), SIZES, RANKS)
def test_busbw_stays_below_the_wire(operation: str, size: float, ranks: int) -> None:
    busbw = size * p.bus_factor(operation, ranks) / time_s(operation, size, ranks)
    assert busbw <= (450e9 if ranks <= 8 else 8 * 50e9) * (1 + 1e-9)


@given(SIZES, st.integers(2, 7))
def test_all_reduce_is_no_shorter_than_its_halves_and_ranks_only_add(size: float, doublings: int) -> None:
    ranks = 8 * 2**doublings
    whole = time_s("all_reduce", size, ranks)
    assert whole >= time_s("reduce_scatter", size, ranks)
    assert whole <= time_s("all_reduce", size, 2 * ranks)


@given(RANKS)
def test_trees_have_fewer_hops_than_rings_on_many_nodes(ranks: int) -> None:
    ring, tree = (p.hops("all_reduce", name, fabric(ranks)) for name in ("ring", "tree"))
    assert tree.up + tree.net <= ring.up + ring.net or fabric(ranks).nodes <= 2


SHAPE = training.Model(layers=96, hidden=12288, heads=96, ffn=49152, vocab=51200)
MACHINE = training.Machine(
    flop_per_s=230e12,
    core_flop_per_s=250e12,
    memory_bytes_per_s=2e12,
    fabric=fabric(64),
    inside=CONSTANTS,
    between=CONSTANTS,
    memory_bytes=80e9,
)


def layout(**changes: object) -> training.Layout:
    base: dict[str, object] = {
        "devices": 64, "batch": 64, "sequence": 2048, "tensor": 8, "pipeline": 8, "recompute": "full",
        "sequence_parallel": True,
    }  # fmt: skip
    return training.Layout(**(base | changes))  # type: ignore[arg-type]


def test_parameters_and_flop_are_the_published_model_s() -> None:
    assert SHAPE.parameters == pytest.approx(175e9, rel=0.01)
    formula = 72 * 2048 * 96 * 12288**2 * (1 + 2048 / (6 * 12288) + 51200 / (12 * 12288 * 96))
    assert SHAPE.flop_per_token(2048) * 2048 == pytest.approx(formula, rel=0.01)


def test_what_a_step_is_made_of() -> None:
    plain, chunks, selective = (
        training.step(SHAPE, layout(**c), MACHINE, 6.0) for c in ({}, {"interleave": 3}, {"recompute": "selective"})
    )
    assert plain.bubble_s == pytest.approx(3 * chunks.bubble_s)
    assert selective.compute_s < plain.compute_s and selective.step_s < plain.step_s
    whole = plain.compute_s + plain.memory_s + plain.tensor_s
    assert plain.bubble_s == pytest.approx(whole * 7 / 64)


def test_parts_of_a_sequence_gather_its_keys_and_values() -> None:
    """Four passes of an all-gather over nodes: 65,536 tokens, 12 heads a rank of 128 values, two of each, two bytes."""
    cut = layout(devices=128, batch=8, sequence=65536, context=2, pipeline=8)
    found = training.step(SHAPE, cut, MACHINE, 6.0)
    size = 65536 * 12 * 128 * 2 * 2.0
    group = p.Fabric(ranks=2, node=1, up_bytes_per_s=MACHINE.fabric.up_bytes_per_s, out_bytes_per_s=50e9)
    gather_s = p.collective_s("all_gather", "ring", size, group, CONSTANTS, over_net=True)
    assert found.context_s == pytest.approx(8 * 12 * 4 * gather_s)
    assert training.step(SHAPE, layout(), MACHINE, 6.0).context_s == 0
    near = training.step(SHAPE, layout(devices=64, batch=8, sequence=65536, context=2, tensor=4), MACHINE, 6.0)
    assert 0 < near.context_s < found.context_s


def test_the_core_of_attention_runs_at_its_own_rate() -> None:
    slow, fast = (
        training.step(SHAPE, layout(), msgspec.structs.replace(MACHINE, core_flop_per_s=rate), 6.0).compute_s
        for rate in (100e12, 200e12)
    )
    core = 12 * 4 * 2048 * 4 * 2048 * 12288 / 8
    assert slow - fast == pytest.approx(64 * core / 200e12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": 60}, "do not divide"),
        ({"tensor": 16, "pipeline": 4}, "scale-up domain of 8"),
        ({"tensor": 5, "pipeline": 1, "devices": 5}, "do not divide by TP 5"),
        ({"pipeline": 128, "tensor": 1, "devices": 128}, "exceeds the 96 layers"),
        ({"pipeline": 1, "devices": 8}, "GB of 80 GB"),
    ],
)
def test_impossible_layouts_are_named(changes: dict[str, object], words: str) -> None:
    with pytest.raises(FrugalbenchError, match=words):
        training.check(SHAPE, layout(**changes), MACHINE)
    training.check(SHAPE, layout(), MACHINE)


SCHEMES = st.builds(
    wan.Exchange,
    parameters=st.floats(1e8, 1e12), layers=st.integers(3, 120), step_s=st.floats(0.05, 10.0),
    every=st.integers(1, 500), streaming=st.booleans(), overlap_steps=st.integers(0, 2),
)  # fmt: skip


@given(SCHEMES, st.floats(1e8, 1e12))
def test_more_bandwidth_and_rarer_exchange_never_hurt(scheme: wan.Exchange, rate: float) -> None:
    share = wan.utilisation(scheme, rate)
    assert 0 < share <= 1
    assert wan.utilisation(scheme, 2 * rate) >= share
    rarer = wan.Exchange(**{f: getattr(scheme, f) for f in scheme.__struct_fields__} | {"every": scheme.every + 1})
    assert wan.utilisation(rarer, rate) >= share - 1e-12


@given(SCHEMES, st.sampled_from([0.5, 0.8, 0.95]))
def test_the_bandwidth_found_is_the_least_that_suffices(scheme: wan.Exchange, target: float) -> None:
    rate = wan.bit_per_s_for(scheme, target)
    assert wan.utilisation(scheme, rate * 1.001) >= target
