"""Builder of trainings with local steps: the ranks train when they load, then exchanges are checked and timed.

This process is rank 0; one thread per rank. See ``specs/local_steps.py``.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frugalbench.cluster.emulate.lockstep import Order, rank_input
from frugalbench.schema import Arm, Artefact, Case, Quantity, Tier, encode
from frugalbench.specs import lm_quality as text
from frugalbench.specs import local_steps as spec
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.layers import tiny_lm
from frugalbench.workloads.layers.replica import EXCHANGE, TRAIN, Replica, Told
from frugalbench.workloads.lm_quality import Model
from frugalbench.workloads.ranks import Group


def load(arm: Arm, context: Context) -> "Replicas":
    """Start the ranks and train. Raises ``RuntimeError`` when a rank does not come, leaves, or training diverges."""
    told = Told(case=arm.cases[0], seed=context.seed, replicate=context.replicate)
    return Replicas(told, context.scratch_dir)


class Replicas(Group):
    """The group, seen from rank 0."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, told: Told, scratch_dir: Path):
        ranks = int(told.case.params["replicas"])
        super().__init__("replicas", "frugalbench.workloads.replica_rank", ranks, (), scratch_dir, encode(told))
        self.told, self.at = told, 0
        try:
            self.replica = Replica(0, told)
            self.replica.meet(self.meet())
            self._turn_to(TRAIN)
            self.run()
            self._check()
        except BaseException:
            self.close()
            raise

    def bind(self, case: Case) -> Bound:
        """One exchange. Outputs: ``exchanged``, after two of them (P), and ``logits`` of untrained weights (S x V)."""

        def call(index: int) -> object:  # noqa: ARG001
            if self.at != EXCHANGE:
                self._turn_to(EXCHANGE)
            return self.run()

        def output(index: int) -> Arrays:  # noqa: ARG001
            self._turn_to(EXCHANGE)
            for _ in range(spec.CHECKED_EXCHANGES):
                found = self.run()
            return {"exchanged": found.numpy().copy(), "logits": _untrained_logits(case, self.told.seed)}

        return Bound(call=call, output=output, facts=self._facts(case), details=self._details(case))

    def _turn_to(self, work: int) -> None:
        self.turn_to(work, 0, lambda: self.replica.turn_to(Order(after=0, work=work)))
        self.at = work

    def _check(self) -> None:
        """Training must have gone somewhere, and all ranks there."""
        for point in self.replica.curve:
            if not math.isfinite(point["loss"]):
                raise RuntimeError(f"training diverged: the loss is {point['loss']} after {point['step']} steps")
        if self.replica.apart != 0.0:
            raise RuntimeError(f"the ranks' weights are up to {self.replica.apart:.2g} apart after the last exchange")

    def _facts(self, case: Case) -> dict[str, Quantity]:
        source = "mean cross-entropy of the averaged weights on held-out text at the end of training"
        sent = "2(n-1)/n of all weights per exchange, over the whole training, by formula"
        loss, sent_bytes = self.replica.curve[-1]["loss"], spec.exchanged_bytes(case.params)
        return {
            "final_loss": Quantity(value=loss, unit="nat/byte", tier=Tier.MEASURED, source=source),
            "exchanged_bytes": Quantity(value=sent_bytes, unit="byte", tier=Tier.MODELLED, source=sent),
        }

    def _details(self, case: Case) -> dict[str, Any]:
        return {
            "ranks": self.ranks,
            "transport": self.transport,
            "followers": list(self.pids),
            "timed": "one exchange over loopback; training is not timed turn by turn",
            "exchanges": case.params["steps"] // case.params["local_steps"],
            "text": "pydoc_data.topics of this Python installation (PSF licence)",
            "curve": self.replica.curve,
        }


def _untrained_logits(case: Case, seed: int) -> np.ndarray:
    model = Model(text.weights(seed, 0, case.params, "dense"), case.params, "dense", "cpu")
    with torch.no_grad():
        return np.asarray(model.logits(torch.from_numpy(_tokens(case)[None]))[0][0].numpy())


def _tokens(case: Case) -> np.ndarray:
    return text.held_out(case.params)[0, :-1]


def reference_key(case: Case) -> str:
    """Each arm its own."""
    return json.dumps([spec.WORKLOAD, case.variant, case.params], sort_keys=True)


def reference(case: Case, context: Context) -> Arrays:
    """In float64 and numpy: the ranks' average, or where the outer steps lead from it; logits of untrained weights."""
    params, seed = case.params, context.seed
    own_RP = np.stack([rank_input(seed, rank, spec.weights(params)) for rank in range(params["replicas"])])
    exchanged_P = own_RP.astype(np.float64).mean(axis=0)
    if case.variant != spec.EVERY_STEP:
        start_P = rank_input(seed, params["replicas"], spec.weights(params)).astype(np.float64)
        exchanged_P = _outer64(start_P, exchanged_P, params)
    arrays = text.weights(seed, 0, params, "dense")
    return {"exchanged": exchanged_P[None], "logits": tiny_lm.answer(arrays, params, _tokens(case))[None]}


def _outer64(weights_P: np.ndarray, mean_P: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """Nesterov's momentum as Sutskever et al. (2013) look ahead: v = mu v + g, then w -= rate (g + mu v)."""
    rate, momentum, velocity_P = params["outer_learning_rate"], params["outer_momentum"], np.zeros_like(weights_P)
    for _ in range(spec.CHECKED_EXCHANGES):
        difference_P = weights_P - mean_P
        velocity_P = momentum * velocity_P + difference_P
        weights_P = weights_P - rate * (difference_P + momentum * velocity_P)
    return weights_P
