"""Experts split over ranks: the law that a split layer is the layer, and real gloo ranks."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench.run.worker import relative_error
from frugalbench.schema import Arm, Case, FrugalbenchError
from frugalbench.specs import expert_parallel as spec
from frugalbench.specs.base import Settings
from frugalbench.specs.moe_inputs import expert_weights, token_batches
from frugalbench.workloads.base import Context

torch = pytest.importorskip("torch")

from frugalbench.workloads import expert_parallel as builder  # noqa: E402
from frugalbench.workloads.layers.expert_shard import Exchange, Shard  # noqa: E402
from frugalbench.workloads.layers.expert_works import Computes  # noqa: E402

SEED = 5
OWN = {
    "shape": "own", "d_model": 32, "d_expert": 16, "experts": 8, "top_k": 2, "n_shared": 1, "routing": "zipf-1",
    "stream_bytes": 100_000, "decode_tokens": 4, "batch_tokens": 8, "prefill_tokens": 32, "sizes_kib": [1, 8],
}  # fmt: skip


def arms(**options: Any) -> tuple[Arm, ...]:
    machine: Any = SimpleNamespace(
        logical_cores=8, last_level_cache_bytes=2**20, installed=lambda _: "1", has_cuda=lambda: False
    )
    settings_ = Settings("expert_parallel", "cpu", 2, SEED, {**OWN, **options})
    return spec.expand(settings_, machine).comparisons[0].arms


def context(folder: Path) -> Context:
    return Context(seed=SEED, threads=2, device="cpu", cache_dir=folder, scratch_dir=folder)


class Post:
    """``torch.distributed`` among threads of one process."""

    def __init__(self, ranks: int):
        self.ranks, self.meeting = ranks, threading.Barrier(ranks, timeout=20)
        self.slots: dict[Any, torch.Tensor] = {}

    def rank(self, number: int) -> Any:
        def all_to_all_single(out: Any, blocks: Any, received: Any = None, sent: Any = None) -> None:
            parts = blocks.split(sent or [len(blocks) // self.ranks] * self.ranks)
            self.slots.update({(number, target): part for target, part in enumerate(parts)})
            self.meeting.wait()
            found = [self.slots[source, number] for source in range(self.ranks)]
            assert received is None or [len(part) for part in found] == received
            out.copy_(torch.cat(found))
            self.meeting.wait()

        def broadcast(tensor: Any, source: int) -> None:
            if number == source:
                self.slots["all"] = tensor
            self.meeting.wait()
            tensor.copy_(self.slots["all"])
            self.meeting.wait()

        return SimpleNamespace(
            get_rank=lambda: number, get_world_size=lambda: self.ranks, all_to_all_single=all_to_all_single,
            broadcast=broadcast, barrier=self.meeting.wait,
        )  # fmt: skip

    def together(self, work: Callable[[int], Any]) -> list[Any]:
        answers: dict[int, Any] = {}

        def run(number: int) -> None:
            with torch.inference_mode():
                answers[number] = work(number)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [answers[number] for number in range(self.ranks)]


def layer(x_TD: np.ndarray, expert_TK: np.ndarray, weight_TK: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """The whole layer in float64, token by token."""
    whole = {name: array.astype(np.float64) for name, array in expert_weights(SEED, params, 0).items()}
    F, y_TD = params["d_expert"], np.zeros(x_TD.shape)
    shared = [(params["experts"] + number, 1.0) for number in range(params["n_shared"])]
    for token, x_D in enumerate(x_TD.astype(np.float64)):
        for expert, weight in [*zip(expert_TK[token], weight_TK[token], strict=True), *shared]:
            both = whole["gate_up"][expert] @ x_D
            hidden = both[:F] / (1 + np.exp(-both[:F])) * both[F:]
            y_TD[token] += weight * (whole["down"][expert] @ hidden)
    return y_TD


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.integers(1, 4), own=st.integers(1, 4), tokens=st.integers(1, 6), chosen=st.integers(1, 4),
    shared=st.integers(0, 2), hot=st.integers(1, 16), seed=st.integers(0, 2**31), native=st.booleans(),
)  # fmt: skip
def test_dispatch_and_combine_of_any_routing_is_the_layer_on_one_rank(
    ranks: int, own: int, tokens: int, chosen: int, shared: int, hot: int, seed: int, native: bool
) -> None:
    E, random = ranks * own, np.random.default_rng(seed)
    K, T, hot = min(chosen, E), ranks * tokens, max(min(hot, E), min(chosen, E))
    params = {
        "d_model": 8, "d_expert": 4, "experts": E, "top_k": K, "n_shared": shared, "copies": 1, "ranks": ranks,
        "seed": SEED, "gate": "softmax", "normalise": True, "routed_scale": 1.0,
        "expert_arm": spec.NATIVE if native else spec.TORCH,
    }  # fmt: skip
    popular = random.permutation(E)[:hot]
    expert_TK = np.stack([random.permutation(popular)[:K] for _ in range(T)])
    weight_TK, x_TD = random.random((T, K), dtype=np.float32), random.standard_normal((T, 8), dtype=np.float32)
    post = Post(ranks)

    def rank(number: int) -> Any:
        mine = slice(number * tokens, (number + 1) * tokens)
        with torch.inference_mode(False):
            shard = Shard(params, number)
        shard.exchange = Exchange(post.rank(number))
        return shard.mix(*(torch.from_numpy(array[mine]) for array in (x_TD, expert_TK, weight_TK)), 0)

    found = torch.cat(post.together(rank)).numpy()
    np.testing.assert_allclose(found, layer(x_TD, expert_TK, weight_TK, params), rtol=1e-4, atol=1e-5)


class Counted(Computes):
    """Notes where it was called."""

    def __init__(self, dist: Any):
        self.exchange, self.positions = Exchange(dist), []

    def once(self, position: int) -> Any:
        self.positions.append(position)


def test_in_a_window_of_experts_alone_every_rank_does_as_many_calls_as_rank_0_says() -> None:
    post = Post(3)
    works = [Counted(post.rank(number)) for number in range(3)]
    done = post.together(lambda number: works[number].advance(4, 1 if number else 5))
    assert [calls for calls, _ in done] == [5, 5, 5]
    assert [work.positions for work in works] == [[4, 5, 6, 7, 8]] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def answers(folder: Path) -> Callable[[Case], Any]:
    kept: dict[str, Any] = {}

    def look(case: Case) -> Any:
        key = builder.reference_key(case)
        if key not in kept:
            kept[key] = builder.reference(case, context(folder))
        return kept[key]

    return look


@pytest.fixture(scope="module")
def group(folder: Path) -> Iterator[tuple[Any, tuple[Case, ...]]]:
    arm = arms()[0]
    builder.prepare(arm, context(folder))
    ranks = builder.load(arm, context(folder))
    yield ranks, arm.cases
    ranks.close()


def error(output: Any, expected: Any, index: int) -> float:
    return relative_error(output, {name: array[index] for name, array in expected.items()})


@pytest.mark.real
def test_every_case_is_right_at_every_position_whatever_came_before(group: Any, answers: Any) -> None:
    ranks, cases = group
    bound = {case.id: ranks.bind(case) for case in cases}
    order = [*cases, *reversed(cases)]
    for turn, case in enumerate(order):
        mine = bound[case.id]
        for index in range(mine.rotation):
            assert error(mine.output(index), answers(case), index) <= case.tolerance, (case.id, index)
        for index in range(turn, turn + 3):
            mine.call(index)
        if mine.batch:
            mine.batch(turn + 3, 5)
            mine.batch(turn + 8, 2)


@pytest.mark.real
def test_a_timed_step_is_this_ranks_share_of_the_position_asked_for(group: Any, answers: Any) -> None:
    ranks, cases = group
    case = next(case for case in cases if case.variant == spec.STEP and case.regime == "decode")
    bound, own = ranks.bind(case), case.params["tokens"] // 2
    for index in (0, 1, 2, 7, 8, 3):
        expected = answers(case)["y"][index % bound.rotation][:own]
        np.testing.assert_allclose(bound.call(index).numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.real
def test_the_load_on_record_is_that_of_the_float64_routing(group: Any) -> None:
    ranks, cases = group
    case = next(case for case in cases if case.variant == spec.EXCHANGE and case.regime == "prefill")
    bound, params = ranks.bind(case), case.params
    sent, own, half = [], params["experts"] // 2, params["tokens"] // 2
    for x_TD in token_batches(SEED, params, "prefill"):
        mixing_TE = builder.moe_ffn.route(params, SEED, x_TD.astype(float))[:, : params["experts"]]
        chosen_TR = np.stack([(mixing_TE[:, :own] > 0).sum(1), (mixing_TE[:, own:] > 0).sum(1)], axis=1)
        sent.append([chosen_TR[:half].sum(0).tolist(), chosen_TR[half:].sum(0).tolist()])
    assert bound.details["rows_sent"] == sent
    assert bound.details["rows_received"] == [np.sum(item, axis=0).tolist() for item in sent]
    row_bytes = 4 * params["d_model"]
    moved = [2 * row_bytes * max(item[0][1], item[1][0]) + 8 * own for item in sent]
    assert bound.facts["exchange_bytes"].value == np.mean(moved)
    assert bound.facts["exchange_steps"].value == 3
    assert bound.facts["rank_imbalance"].value == np.mean([2 * max(r) / sum(r) for r in np.sum(sent, axis=1)])


@pytest.mark.real
@pytest.mark.parametrize("variant", [spec.STEP, spec.COMPUTE, spec.EXCHANGE])
def test_a_wrong_weight_or_row_is_caught(group: Any, answers: Any, variant: str) -> None:
    ranks, cases = group
    case = next(case for case in cases if case.variant == variant and case.regime == "prefill")
    bound, shard = ranks.bind(case), ranks.part.shard
    wrong = shard.batches("prefill", 32)[0].sent.rows if variant == spec.EXCHANGE else shard.experts[0].down[1]
    kept = wrong.clone()
    with torch.inference_mode():
        wrong.copy_(kept.flip(0))
        assert error(bound.output(0), answers(case), 0) > 100 * case.tolerance
        wrong.copy_(kept)
    assert error(bound.output(0), answers(case), 0) <= case.tolerance


@pytest.mark.real
def test_one_rank_with_everything_gives_the_same_answers(folder: Path, answers: Any) -> None:
    arm = arms()[1]
    single = builder.load(arm, context(folder))
    for case in arm.cases:
        bound = single.bind(case)
        assert all(error(bound.output(i), answers(case), i) <= case.tolerance for i in range(bound.rotation))


@pytest.mark.real
def test_followers_use_no_cpu_between_calls(group: Any) -> None:
    ranks, cases = group
    follower = psutil.Process(ranks.children[0].pid)
    for case in cases:
        bound = ranks.bind(case)
        (bound.batch or (lambda first, _, call=bound.call: call(first)))(0, 2)
    threading.Event().wait(0.1)
    before = sum(follower.cpu_times()[:2])
    threading.Event().wait(0.3)
    assert sum(follower.cpu_times()[:2]) - before <= 0.02


def test_a_layer_that_cannot_be_split_is_refused_before_anything_starts() -> None:
    with pytest.raises(FrugalbenchError, match="do not divide over 3 ranks"):
        arms(ranks=3)


@pytest.mark.real
def test_a_dead_follower_ends_a_window_of_experts_alone(group: Any) -> None:
    """Last in the file: it leaves the group broken."""
    ranks, cases = group
    bound = ranks.bind(next(case for case in cases if case.variant == spec.COMPUTE))
    bound.batch(0, 3)
    ranks.children[0].kill()
    with pytest.raises(RuntimeError, match="gloo rank 1 was ended by signal 9"):
        bound.batch(3, 3)
    folder = Path(ranks.folder.name)
    ranks.close()
    assert not folder.exists()
