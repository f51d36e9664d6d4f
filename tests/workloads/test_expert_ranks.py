"""How groups of expert ranks begin and end. One group lives at a time, so these are apart from those of one group."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frugalbench.run.worker import relative_error
from frugalbench.schema import Arm
from frugalbench.specs import expert_parallel as spec
from frugalbench.specs.base import Settings
from frugalbench.workloads.base import Context

pytest.importorskip("torch")
pytestmark = pytest.mark.real

from frugalbench.workloads import expert_parallel as builder  # noqa: E402

OWN = {
    "shape": "own", "d_model": 32, "d_expert": 16, "experts": 8, "top_k": 1, "routing": "one", "stream_bytes": 1,
    "regimes": ["decode"], "decode_tokens": 2, "sizes_kib": [1, 8],
}  # fmt: skip


def ranks_arm() -> Arm:
    machine: Any = SimpleNamespace(
        logical_cores=2, last_level_cache_bytes=2**20, installed=lambda _: "1", has_cuda=lambda: False
    )
    return spec.expand(Settings("expert_parallel", "cpu", 2, 5, OWN), machine).comparisons[0].arms[0]


def context(folder: Path) -> Context:
    return Context(seed=5, threads=2, device="cpu", cache_dir=folder, scratch_dir=folder)


def test_a_rank_that_gets_no_rows_takes_part_and_one_that_dies_is_named(tmp_path: Path) -> None:
    arm = ranks_arm()
    ranks = builder.load(arm, context(tmp_path))
    try:
        for case in arm.cases:
            bound, expected = ranks.bind(case), builder.reference(case, context(tmp_path))
            for index in range(bound.rotation):
                answer = {name: array[index] for name, array in expected.items()}
                assert relative_error(bound.output(index), answer) <= case.tolerance
        assert all(0 in received for received in bound.details["rows_received"])
        assert bound.facts["rank_imbalance"].value == 2
        _kill_and_call(ranks, arm)
    finally:
        ranks.close()
    assert list(tmp_path.iterdir()) == []


def _kill_and_call(ranks: Any, arm: Arm) -> None:
    """A dead follower is an error that names it, again and again, and not a hang."""
    bound = ranks.bind(next(case for case in arm.cases if case.variant == spec.STEP))
    bound.call(0)
    ranks.children[0].kill()
    for again in (bound.call, bound.call, bound.output):
        with pytest.raises(RuntimeError, match="gloo rank 1 was ended by signal 9: it said nothing"):
            again(0)


def test_a_follower_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "encode", lambda _: b'[{"id": 1}]')
    with pytest.raises(RuntimeError, match=r"gloo rank 1 ended before it joined: .*ValidationError"):
        builder.load(ranks_arm(), context(tmp_path))
    assert list(tmp_path.iterdir()) == []
