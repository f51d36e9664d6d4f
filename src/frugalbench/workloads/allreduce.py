"""All-reduce over gloo ranks: this process is rank 0 and is timed, the other ranks are its children.

A timed call is one ``torch.distributed.all_reduce`` in place and nothing else, except that every 32nd call first puts
the original input back (see :mod:`frugalbench.cluster.emulate.lockstep`). The followers are already waiting in it, so
what is timed is the collective as its last arriver sees it. Changing the size costs one untimed all-reduce of the old
size in the first call of a turn, which is always a lead-in.
"""

from pathlib import Path

import numpy as np

from frugalbench.cluster.emulate.lockstep import REFILL, rank_input
from frugalbench.schema import Arm, Artefact, Case
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.ranks import Group


def load(arm: Arm, context: Context) -> "Ranks":
    """Start the followers and meet them. Raises ``RuntimeError`` with what a follower said when one does not come."""
    params = arm.cases[0].params
    return Ranks(int(params["ranks"]), int(params["seed"]), context.scratch_dir)


def reference(case: Case, context: Context) -> Arrays:  # noqa: ARG001
    """``sum``: the float64 sum of every rank's input, shape (1, elements)."""
    params = case.params
    parts = (rank_input(params["seed"], rank, params["elements"]) for rank in range(params["ranks"]))
    return {"sum": np.sum([part.astype(np.float64) for part in parts], axis=0)[None]}


def reference_key(case: Case) -> str:
    """Ranks, size and seed."""
    params = case.params
    return f"allreduce-{params['ranks']}-{params['elements']}-{params['seed']}"


class Ranks(Group):
    """The group, seen from rank 0."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, ranks: int, seed: int, scratch_dir: Path):
        super().__init__("allreduce", "frugalbench.cluster.emulate.rank", ranks, (seed,), scratch_dir)
        self.elements = 0
        try:
            self.meet()
        except RuntimeError:
            self.close()
            raise

    def bind(self, case: Case) -> Bound:
        """One size. Output ``sum``: shape (elements,), float32."""
        elements, seed = int(case.params["elements"]), int(case.params["seed"])

        def call(index: int) -> object:  # noqa: ARG001
            if self.elements != elements:
                self._agree(elements, seed)
            return self.run()

        def output(index: int) -> Arrays:  # noqa: ARG001
            self._agree(elements, seed)
            return {"sum": self.run().numpy().copy()}

        details = {
            "ranks": self.ranks,
            "transport": self.transport,
            "followers": list(self.pids),
            "timed": f"all_reduce in place; the input is put back every {REFILL} calls, inside the timed call",
        }
        return Bound(call=call, output=output, rotation=1, details=details)

    def _agree(self, elements: int, seed: int) -> None:
        """Agree on a size, with the original inputs in every buffer."""
        from frugalbench.cluster.emulate.rank import Reduction

        self.turn_to(elements, 0, lambda: Reduction(self.dist, seed, 0, elements))
        self.elements = elements
