"""All-reduce over gloo ranks: this process is rank 0 and is timed, the other ranks are its children.

A timed call is one ``torch.distributed.all_reduce`` in place and nothing else, except that every 32nd call first puts
the original input back (see :mod:`frugalbench.cluster.emulate.lockstep`). The followers are already waiting in it, so
what is timed is the collective as its last arriver sees it. Changing the size costs one untimed all-reduce of the old
size in the first call of a turn, which is always a lead-in.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from frugalbench.cluster.emulate.lockstep import REFILL, Order, rank_input, ready_mark
from frugalbench.schema import Arm, Artefact, Case
from frugalbench.workloads.base import Arrays, Bound, Context

_PARTING_S = 5.0
_GLANCE_S = 0.02


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


class Ranks:
    """The group, seen from rank 0."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, ranks: int, seed: int, scratch_dir: Path):
        scratch_dir.mkdir(parents=True, exist_ok=True)
        self.folder = tempfile.TemporaryDirectory(prefix="allreduce-", dir=scratch_dir)
        store = Path(self.folder.name) / "store"
        self.log: IO[bytes] = (Path(self.folder.name) / "followers.log").open("w+b")
        self.children = [_start(rank, ranks, store, seed, self.log) for rank in range(1, ranks)]
        self.ranks, self.done, self.uses, self.elements = ranks, 0, 0, 0
        self.source: Any = None
        self.buffer: Any = None
        self.dist: Any = None
        try:
            self.dist = self._meet(store)
        except RuntimeError:
            self.close()
            raise

    @property
    def pids(self) -> tuple[int, ...]:
        """The followers: their CPU time and run delay are this arm's own, not foreign."""
        return tuple(child.pid for child in self.children)

    def bind(self, case: Case) -> Bound:
        """One size. Output ``sum``: shape (elements,), float32."""
        elements, seed = int(case.params["elements"]), int(case.params["seed"])

        def call(index: int) -> object:  # noqa: ARG001
            if self.elements != elements:
                self._turn_to(elements, seed)
            return self._all_reduce()

        def output(index: int) -> Arrays:  # noqa: ARG001
            self._turn_to(elements, seed)
            return {"sum": self._all_reduce().numpy().copy()}

        details = {
            "ranks": self.ranks,
            "transport": f"gloo over {os.environ.get('GLOO_SOCKET_IFNAME', 'the default interface')}",
            "followers": list(self.pids),
            "timed": f"all_reduce in place; the input is put back every {REFILL} calls, inside the timed call",
        }
        return Bound(call=call, output=output, rotation=1, details=details)

    def close(self) -> None:
        """Send the followers away, ending those that do not leave, and remove the meeting file."""
        with contextlib.suppress(OSError, RuntimeError):
            if self.children and all(child.poll() is None for child in self.children):
                self._order(0)
        while self.children:
            _end(self.children.pop())
        if self.dist is not None:
            with contextlib.suppress(RuntimeError, ValueError):
                self.dist.destroy_process_group()
            self.dist = None
        self.log.close()
        self.folder.cleanup()

    def _all_reduce(self) -> Any:
        if self.uses == REFILL:
            self.buffer.copy_(self.source)
            self.uses = 0
        self.dist.all_reduce(self.buffer)
        self.done, self.uses = self.done + 1, self.uses + 1
        return self.buffer

    def _turn_to(self, elements: int, seed: int) -> None:
        """Agree on a size, with the original inputs in every buffer."""
        import torch

        self._order(elements)
        self.source = torch.from_numpy(rank_input(seed, 0, elements))
        self.buffer, self.uses, self.elements = self.source.clone(), 0, elements

    def _order(self, elements: int) -> None:
        """Followers wait inside the next all-reduce: the order holds after it, and doing it releases them."""
        release = self.elements > 0
        text = Order(after=self.done + release, elements=elements).pack()
        for child in self.children:
            assert child.stdin is not None
            child.stdin.write(text)
        if release:
            self._all_reduce()

    def _meet(self, store: Path) -> Any:
        from frugalbench.cluster.emulate.rank import join

        for rank, child in enumerate(self.children, start=1):
            while not ready_mark(store, rank).exists():
                if child.poll() is not None:
                    raise RuntimeError(f"gloo rank {rank} ended before it joined: {self._last_words()}")
                time.sleep(_GLANCE_S)
        try:
            return join(0, self.ranks, store)
        except Exception as problem:
            raise RuntimeError(f"the gloo ranks did not meet: {self._last_words() or problem}") from problem

    def _last_words(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _start(rank: int, ranks: int, store: Path, seed: int, log: IO[bytes]) -> "subprocess.Popen[bytes]":
    program = [sys.executable, "-P", "-m", "frugalbench.cluster.emulate.rank"]
    words = [str(word) for word in (rank, ranks, store, seed, os.getpid())]
    return subprocess.Popen([*program, *words], stdin=subprocess.PIPE, stdout=log, stderr=log, bufsize=0)


def _end(child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(OSError):
        if child.stdin is not None:
            child.stdin.close()
    try:
        child.wait(timeout=_PARTING_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
