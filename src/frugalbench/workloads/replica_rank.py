"""The program of a follower: ``python -m frugalbench.workloads.replica_rank RANK RANKS STORE PARENT``.

What to train lies as JSON beside the store. How a follower lives: :mod:`frugalbench.cluster.emulate.rank`.
"""

import os
import sys
from collections.abc import Sequence

import msgspec

from frugalbench.cluster.emulate.lockstep import note, ready_mark
from frugalbench.cluster.emulate.rank import arrive, follow, join


def main(argv: Sequence[str]) -> None:
    """Make this rank's replica, join the group and follow orders."""
    rank, ranks, store, _ = arrive(argv)
    from frugalbench.workloads.layers.replica import Replica, Told

    replica = Replica(rank, msgspec.json.decode(note(store).read_bytes(), type=Told))
    ready_mark(store, rank).touch()
    replica.meet(join(rank, ranks, store))
    follow(replica.turn_to)
    # Without the teardown of torch, which may wait for ranks that are already gone.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
