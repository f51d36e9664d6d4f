"""The program that builds a network, starts the ranks in it and is their switch until the end.

``python -m frugalbench.workloads.scene_ranks DESCRIPTION PARENT SOCKET...``: the description is the JSON of
:class:`Described`; each rank answers on one socket. All ranks are forked from one process that has imported torch and
computed nothing. Orders and answers are lines of JSON; a rank that fails answers with its problem.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from frugalbench.cluster.emulate.lockstep import REFILL, rank_input
from frugalbench.cluster.emulate.namespaces import NoNetwork, enter, isolate
from frugalbench.cluster.emulate.network import INTERFACE, Built, build
from frugalbench.cluster.emulate.rank import die_with
from frugalbench.gloo import Work
from frugalbench.workloads.scene import Described

PATIENCE = timedelta(minutes=10)


def main(argv: Sequence[str]) -> int:
    """Build, fork the ranks, serve the delay line until the parent closes its end of standard input."""
    die_with(int(argv[1]))
    described = msgspec.json.decode(Path(argv[0]).read_bytes(), type=Described)
    sockets = [socket.socket(fileno=int(word)) for word in argv[2:]]
    try:
        isolate()
        built = build(described.network, described.congestion)
    except NoNetwork as problem:
        _say({"problem": str(problem)})
        return 1
    import torch.distributed  # noqa: F401

    pids = [_fork(rank, described, built, sockets) for rank in range(len(sockets))]
    _say({"pids": pids, "facts": built.facts})
    for end in sockets:
        end.close()
    _serve(built)
    return 0


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _serve(built: Built) -> None:
    """Carry packets, or wait, until standard input ends."""
    if built.line is None:
        sys.stdin.read()
        return
    built.line.serve(sys.stdin.fileno())


def _fork(rank: int, described: Described, built: Built, sockets: Sequence[socket.socket]) -> int:
    parent = os.getpid()
    if pid := os.fork():
        return pid
    code = 1
    try:
        die_with(parent)
        enter(built.ranks[rank])
        for number, end in enumerate(sockets):
            if number != rank:
                end.close()
        code = _rank(rank, described, sockets[rank])
    finally:
        os._exit(code)


def _rank(rank: int, described: Described, end: socket.socket) -> int:
    lines = end.makefile("rw")
    try:
        ranks = Rank(rank, described)
        print(json.dumps({"ready": rank}), file=lines, flush=True)
        for line in lines:
            print(json.dumps(ranks.obey(json.loads(line))), file=lines, flush=True)
    except (RuntimeError, OSError, ValueError) as problem:
        print(json.dumps({"problem": f"rank {rank}: {str(problem).splitlines()[0]}"}), file=lines, flush=True)
        return 1
    return 0


class Reduced:
    """One buffer that is all-reduced again and again, in place; the input is put back before it overflows."""

    def __init__(self, dist: Any, source: Any):
        self.dist, self.source, self.buffer, self.uses = dist, source, source.clone(), 0

    def __call__(self, later: bool = False) -> Any:
        """One all-reduce. The buffer, or with ``later`` what to wait for."""
        if self.uses == REFILL:
            self.buffer.copy_(self.source)
            self.uses = 0
        self.uses += 1
        wait = self.dist.all_reduce(self.buffer, async_op=later)
        return wait if later else self.buffer


class Rank:
    """One rank's side of all works."""

    def __init__(self, rank: int, described: Described):
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        os.environ["GLOO_SOCKET_IFNAME"] = INTERFACE
        ranks = len(described.network.ports)
        store = dist.FileStore(described.store, ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=PATIENCE)
        self.rank, self.described, self.torch, self.dist = rank, described, torch, dist
        self.pace = described.network.ports[rank].pace
        self.calls: dict[int, Callable[[], Any]] = {}

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Some calls of one work, then how long they took; or one call on the original input, written to a file."""
        number = int(order["work"])
        if path := order.get("write"):
            self.calls.pop(number, None)
            held, most = self._call(number)().numpy(), self.described.works[number].most_held()
            np.save(f"{path}-{self.rank}.npy", np.pad(held, (0, most - len(held))))
            return {"written": self.rank}
        call = self._call(number)
        begin_s = time.perf_counter()
        for _ in range(int(order["calls"])):
            call()
        return {"time_s": time.perf_counter() - begin_s}

    def _call(self, number: int) -> Callable[[], Any]:
        if number not in self.calls:
            work = self.described.works[number]
            make: dict[str, Callable[[Work], Callable[[], Any]]] = {
                "all_reduce": self._all_reduce,
                "all_to_all": self._all_to_all,
                "step": self._step,
            }
            self.calls[number] = make[work.kind](work)
        return self.calls[number]

    def _input(self, elements: int) -> Any:
        return self.torch.from_numpy(rank_input(self.described.seed, self.rank, elements))

    def _all_reduce(self, work: Work) -> "Reduced":
        return Reduced(self.dist, self._input(work.elements))

    def _all_to_all(self, work: Work) -> Callable[[], Any]:
        """Pairwise exchange: in step i a rank sends to the i-th rank after it and receives from the i-th before it."""
        sends, receives = list(work.blocks[self.rank]), [row[self.rank] for row in work.blocks]
        source, target = self._input(sum(sends)), self.torch.empty(sum(receives))
        gone, come = source.split(sends), target.split(receives)
        come[self.rank].copy_(gone[self.rank])
        ranks = len(sends)
        steps = [((self.rank - step) % ranks, (self.rank + step) % ranks) for step in range(1, ranks)]

        def call() -> Any:
            for before, after in steps:
                waits = [self.dist.irecv(come[before], before), self.dist.isend(gone[after], after)]
                for wait in waits:
                    wait.wait()
            return target

        return call

    def _step(self, work: Work) -> Callable[[], Any]:
        """Compute, here a sleep of the time that computing would take, then exchange; or both beside each other."""
        compute_s = work.steps * work.compute_s * self.pace * (work.shares[self.rank] if work.shares else 1.0)
        exchange = self._all_reduce(work)

        def call() -> Any:
            begin_s = time.perf_counter()
            if not work.overlap:
                _sleep_until(begin_s + compute_s)
                return exchange()
            wait = exchange(True)
            _sleep_until(begin_s + compute_s)
            wait.wait()
            return exchange.buffer

        return call


def _sleep_until(end_s: float) -> None:
    while (left_s := end_s - time.perf_counter()) > 0:
        time.sleep(left_s)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
