"""The program of a follower: ``python -m frugalbench.workloads.expert_rank RANK RANKS STORE PARENT``.

The arm's cases lie as JSON beside the store. How a follower lives: :mod:`frugalbench.cluster.emulate.rank`.
"""

import os
import sys
from collections.abc import Sequence

import msgspec

from frugalbench.cluster.emulate.lockstep import note, ready_mark
from frugalbench.cluster.emulate.rank import arrive, follow, join
from frugalbench.schema import Case


def main(argv: Sequence[str]) -> None:
    """Load this rank's share, join the group and follow orders."""
    rank, ranks, store, _ = arrive(argv)
    from frugalbench.workloads.layers.expert_works import Part, Turn

    part = Part(rank, msgspec.json.decode(note(store).read_bytes(), type=list[Case]))
    ready_mark(store, rank).touch()
    part.meet(join(rank, ranks, store))
    follow(lambda order: Turn(part, order))
    # Without the teardown of torch, which may wait for ranks that are already gone.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
