"""Builder of expert parallelism: a group of gloo ranks, of which this process is rank 0, or one rank with everything.

A timed call of ``ep-step`` and ``ep-exchange`` is one call on every rank; the followers run the same loop and wait in
its first all-to-all, so that its time is that of the last rank. Several calls of ``ep-compute`` go between one start
and one end (see :class:`~frugalbench.workloads.layers.expert_works.Computes`), so that its time is that of the slowest
rank over all of them. Changing the case costs one untimed call of the old one in the first call of a turn, which is
always a lead-in.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from frugalbench.cluster.emulate.lockstep import Order, rank_input
from frugalbench.schema import Arm, Artefact, Case, Quantity, Tier, encode
from frugalbench.specs import expert_parallel as spec
from frugalbench.specs import moe_ffn as moe_spec
from frugalbench.specs.moe_inputs import BATCHES, probe, token_batches
from frugalbench.workloads import moe_ffn
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.layers.expert_shard import EXCHANGES, Batch
from frugalbench.workloads.layers.expert_works import Part, Turn
from frugalbench.workloads.ranks import Group


def prepare(arm: Arm, context: Context) -> None:
    """Compile the own kernel, where the arm needs it and the cache lacks it."""
    if (layer := _whole_arm(arm)).cases:
        moe_ffn.prepare(layer, context)


def load(arm: Arm, context: Context) -> "Ranks | Single":
    """The ranks with their shares, or the whole layer in this process.

    Raises ``RuntimeError`` with what a follower said when one does not come.
    """
    single = arm.cases[0].variant == spec.SINGLE
    return Single(arm, context) if single else Ranks(arm.cases, context.scratch_dir)


class Single:
    """The layer of ``moe_ffn`` that computes as the ranks do."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, arm: Arm, context: Context):
        self.loaded = moe_ffn.load(_whole_arm(arm), context)

    def bind(self, case: Case) -> Bound:
        """One regime. Output ``y``: T x D."""
        return self.loaded.bind(whole(case))

    def close(self) -> None:
        """Release the layer."""
        self.loaded.close()


def whole(case: Case) -> Case:
    """The same layer and tokens as a case of ``moe_ffn``."""
    return msgspec.structs.replace(case, workload=moe_spec.WORKLOAD, variant=case.params["expert_arm"])


def _whole_arm(arm: Arm) -> Arm:
    """The arm of ``moe_ffn`` that computes as this one does; without cases where this one only moves blocks."""
    cases = tuple(whole(case) for case in arm.cases if case.variant != spec.CALIBRATION)
    return msgspec.structs.replace(arm, cases=cases)


class Ranks(Group):
    """The group, seen from rank 0."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, cases: tuple[Case, ...], scratch_dir: Path):
        ranks, note = int(cases[0].params["ranks"]), encode(cases)
        super().__init__("experts", "frugalbench.workloads.expert_rank", ranks, (), scratch_dir, note)
        self.numbers = {case.id: number for number, case in enumerate(cases)}
        self.at: tuple[int, bool] | None = None
        try:
            self.part = Part(0, cases)
            self.part.meet(self.meet())
        except Exception:
            self.close()
            raise

    def bind(self, case: Case) -> Bound:
        """One case. Outputs, of all ranks: ``y`` (T x D), ``arrived`` and ``returned`` rows times a fixed vector
        (R x all rows), or ``blocks`` (R x elements)."""
        number = self.numbers[case.id]

        def call(index: int) -> object:
            return self._turn(number, index).run()

        def batch(first: int, calls: int) -> object:
            turn = self._turn(number, first).turn
            turn.calls, answer = calls, None
            try:
                answer = self.run()
            finally:
                turn.calls = 1
            return answer

        def output(index: int) -> Arrays:
            self._turn_to(number, index, telling=True)
            found: Arrays = self.run()
            return found

        self._turn_to(number, 0, telling=False)
        return Bound(
            call=call,
            output=output,
            rotation=rotation(case),
            batch=batch if case.variant == spec.COMPUTE else None,
            facts=self._facts(case),
            details=self._details(case),
        )

    @property
    def turn(self) -> Turn:
        """The current one."""
        assert isinstance(self.current, Turn)
        return self.current

    def _turn(self, number: int, index: int) -> "Ranks":
        """Have the ranks at ``index`` of case ``number``, where they usually are."""
        if self.at != (number, False) or self.turn.position != index:
            self._turn_to(number, index, telling=False)
        return self

    def _turn_to(self, number: int, index: int, telling: bool) -> None:
        order = Order(after=0, work=Turn.code(number, telling), position=index)
        self.turn_to(order.work, order.position, lambda: Turn(self.part, order))
        self.at = (number, telling)

    def _batches(self, case: Case) -> list[Batch]:
        assert self.part.shard is not None
        return self.part.shard.batches(case.regime, case.params["tokens"])

    def _facts(self, case: Case) -> dict[str, Quantity]:
        if case.variant == spec.CALIBRATION:
            return {}
        batches = self._batches(case)
        return {
            "exchange_steps": _fact(batches[0].terms()[0], f"start-ups of {EXCHANGES} all-to-alls"),
            "exchange_bytes": _fact(
                float(np.mean([batch.terms()[1] for batch in batches])),
                "what the busiest rank sends or receives in a step, counts and rows both ways; mean over batches",
                "byte",
            ),
            "rank_imbalance": _fact(
                imbalance(batches),
                "rows of the busiest rank over the mean of all ranks; mean over batches",
            ),
        }

    def _details(self, case: Case) -> dict[str, Any]:
        details: dict[str, Any] = {"ranks": self.ranks, "transport": self.transport, "followers": list(self.pids)}
        if case.variant == spec.CALIBRATION:
            return details | {"timed": "all_to_all_single of equal blocks"}
        batches = self._batches(case)
        return details | {
            "implementation": self.part.implementation,
            "rows_received": [batch.counts.sum((1, 2)).tolist() for batch in batches],
            "rows_sent": [batch.counts.sum(2).T.tolist() for batch in batches],
            "router_histogram": sum(batch.counts.sum(1).flatten() for batch in batches).tolist(),
        }


def _fact(value: float, source: str, unit: str = "1") -> Quantity:
    return Quantity(value=value, unit=unit, tier=Tier.MEASURED, source=source)


def imbalance(batches: Sequence[Batch]) -> float:
    """Rows of the busiest rank over the mean of all ranks; mean over batches."""
    rows_R = [batch.counts.sum((1, 2)).double() for batch in batches]
    return float(np.mean([float(found.max() / found.mean()) for found in rows_R]))


def rotation(case: Case) -> int:
    """Positions of a case that differ in tokens or weights."""
    if case.variant == spec.CALIBRATION:
        return 1
    return BATCHES[case.regime] if case.variant == spec.EXCHANGE else moe_spec.rotation(case.params, case.regime)


def reference_key(case: Case) -> str:
    """The step, its experts and one rank compute the same function; of an exchange only where rows go matters."""
    if case.variant in (spec.STEP, spec.COMPUTE, spec.SINGLE):
        return moe_ffn.reference_key(whole(case))
    kind = case.variant if case.variant == spec.EXCHANGE else "blocks"
    return json.dumps([spec.WORKLOAD, kind, case.regime, case.params], sort_keys=True)


def reference(case: Case, context: Context) -> Arrays:
    """Float64 answers of the whole layer, or where every row must arrive; leading axis = rotation."""
    if case.variant == spec.CALIBRATION:
        return {"blocks": _exchanged(case)[None]}
    if case.variant != spec.EXCHANGE:
        return moe_ffn.reference(whole(case), context)
    rows = [_rows(case, x_TD) for x_TD in token_batches(case.params["seed"], case.params, case.regime)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _exchanged(case: Case) -> np.ndarray:
    """R x elements: block i of every rank, at rank i."""
    ranks, elements = case.params["ranks"], case.params["elements"]
    held = np.stack([rank_input(case.params["seed"], rank, elements) for rank in range(ranks)]).astype(np.float64)
    return held.reshape(ranks, ranks, -1).swapaxes(0, 1).reshape(ranks, elements)


def _rows(case: Case, x_TD: np.ndarray) -> Arrays:
    """Products with the fixed vector of the rows that each rank gets, by sender, expert and token, and that it sent."""
    ranks, params = case.params["ranks"], case.params
    mixing_TE = moe_ffn.route(params, params["seed"], x_TD.astype(np.float64))[:, : params["experts"]]
    product_T = x_TD.astype(np.float64) @ probe(params["seed"], params["d_model"])
    own_tokens, own_experts = len(x_TD) // ranks, params["experts"] // ranks
    arrived, returned = np.zeros((2, ranks, params["tokens"] * params["top_k"]))
    blocks = [
        [_block(mixing_TE, product_T, sender * own_tokens, own_tokens, owner * own_experts, own_experts)
         for owner in range(ranks)] for sender in range(ranks)
    ]  # fmt: skip
    for rank in range(ranks):
        for found, parts in ((arrived, [row[rank] for row in blocks]), (returned, blocks[rank])):
            values = np.concatenate(parts)
            found[rank, : len(values)] = values
    return {"arrived": arrived, "returned": returned}


def _block(
    mixing_TE: np.ndarray, product_T: np.ndarray, token: int, tokens: int, expert: int, experts: int
) -> np.ndarray:
    """What one rank sends to another: expert by expert, the tokens that chose it in their order."""
    chosen_TE = mixing_TE[token : token + tokens, expert : expert + experts] > 0
    return product_T[token + np.nonzero(chosen_TE.T)[1]]
