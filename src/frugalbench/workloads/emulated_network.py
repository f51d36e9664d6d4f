"""Builder of emulated networks: a program of its own holds the network and the ranks, this process only gives orders.

A timed call is an order to every rank and ends when the last has answered; several calls of a window are one order, so
that the way of the order (some 0.1 ms) is not in each of them. The ranks need no more in step than their collectives
keep them.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from frugalbench.cluster.emulate.lockstep import rank_input
from frugalbench.gloo import Network, Work
from frugalbench.schema import Arm, Artefact, Case
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.scene import Described

_START_S = 120.0
_ANSWER_S = 300.0
_PARTING_S = 5.0


def load(arm: Arm, context: Context) -> "Scene":
    """Build the network and start its ranks. Raises ``RuntimeError`` with what is missing."""
    scene = Scene(arm, context)
    try:
        scene.start()
    except BaseException:
        scene.close()
        raise
    return scene


class Scene:
    """A network with its ranks, seen from outside."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, arm: Arm, context: Context):
        params = arm.cases[0].params
        context.scratch_dir.mkdir(parents=True, exist_ok=True)
        self.folder = tempfile.TemporaryDirectory(prefix="scene-", dir=context.scratch_dir)
        self.works = {case.id: number for number, case in enumerate(arm.cases)}
        self.network = msgspec.convert(params["network"], Network)
        self.described = Described(
            network=self.network,
            works=tuple(_work(case) for case in arm.cases),
            seed=params["seed"],
            store=str(self._path("store")),
            congestion=params["congestion"],
        )
        self.program: subprocess.Popen[str] | None = None
        self.sockets: list[socket.socket] = []
        self.lines: list[IO[str]] = []
        self.pids: tuple[int, ...] = ()
        self.facts: dict[str, Any] = {}
        self.fault = ""

    def start(self) -> None:
        """Start the program and wait until all ranks have met."""
        self._path("description").write_bytes(msgspec.json.encode(self.described))
        pairs = [socket.socketpair() for _ in self.network.ports]
        self.sockets = [near for near, _ in pairs]
        theirs = [far.fileno() for _, far in pairs]
        words = [self._path("description"), os.getpid(), *theirs]
        command = [sys.executable, "-P", "-m", "frugalbench.workloads.scene_ranks", *map(str, words)]
        with self._path("log").open("w") as log:
            self.program = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, pass_fds=theirs, text=True
            )
        for _, far in pairs:
            far.close()
        assert self.program.stdout is not None
        said = self._understood(self.program.stdout.readline())
        self.pids, self.facts = (self.program.pid, *said["pids"]), said["facts"]
        for near in self.sockets:
            near.settimeout(_START_S)
        self.lines = [near.makefile("rw") for near in self.sockets]
        self._answers()
        for near in self.sockets:
            near.settimeout(_ANSWER_S)

    def bind(self, case: Case) -> Bound:
        """One case. Output ``held``: what every rank holds afterwards, R x elements, float32."""
        number = self.works[case.id]

        def call(index: int) -> object:
            return batch(index, 1)

        def batch(first: int, calls: int) -> object:  # noqa: ARG001
            return self._order({"work": number, "calls": calls})

        def output(index: int) -> Arrays:  # noqa: ARG001
            self._order({"work": number, "write": str(self._path("held"))})
            return {
                "held": np.stack(
                    [np.load(self._path(f"held-{rank}.npy"), allow_pickle=False) for rank in range(len(self.lines))]
                )
            }

        details = {
            "ranks": len(self.network.ports),
            "followers": list(self.pids),
            "network": self.facts,
            "timed": "orders to all ranks until the last answer; computing is a sleep",
        }
        return Bound(
            call=call, output=output, batch=batch, details=details, most_cpu_share=case.params["most_cpu_share"]
        )

    def close(self) -> None:
        """End the program, and with it the ranks and the network."""
        for line in self.lines:
            with contextlib.suppress(OSError):
                line.close()
        for near in self.sockets:
            near.close()
        if self.program is not None:
            assert self.program.stdin is not None
            assert self.program.stdout is not None
            with contextlib.suppress(OSError):
                self.program.stdin.close()
            try:
                self.program.wait(timeout=_PARTING_S)
            except subprocess.TimeoutExpired:
                self.program.kill()
                self.program.wait()
            self.program.stdout.close()
        self.folder.cleanup()

    def _path(self, name: str) -> Path:
        return Path(self.folder.name) / name

    def _order(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        if self.fault:
            raise RuntimeError(self.fault)
        text = json.dumps(order)
        try:
            for line in self.lines:
                print(text, file=line, flush=True)
        except OSError:
            pass
        return self._answers()

    def _answers(self) -> list[dict[str, Any]]:
        try:
            return [self._understood(line.readline()) for line in self.lines]
        except TimeoutError:
            self.fault = f"no answer from the ranks within {_ANSWER_S:.0f} s"
            raise RuntimeError(self.fault) from None

    def _understood(self, line: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(line) if line.strip() else {"problem": self._last_words()}
        if problem := answer.get("problem"):
            self.fault = str(problem)
            raise RuntimeError(self.fault)
        return answer

    def _last_words(self) -> str:
        lines = self._path("log").read_text(errors="replace").strip().splitlines()
        return f"the emulated ranks ended: {lines[-1] if lines else 'they said nothing'}"


def _work(case: Case) -> Work:
    return msgspec.convert(case.params["work"], Work)


def reference_key(case: Case) -> str:
    """What is exchanged, whatever the network."""
    work, params = case.params["work"], case.params
    what = work["blocks"] if work["kind"] == "all_to_all" else "sum"
    return json.dumps(["emulated", what, params["ranks"], work["elements"], params["seed"]])


def reference(case: Case, context: Context) -> Arrays:  # noqa: ARG001
    """``held``: what every rank must hold, float64, 1 x R x elements."""
    work, params = _work(case), case.params
    inputs = [rank_input(params["seed"], rank, work.elements).astype(np.float64) for rank in range(params["ranks"])]
    if work.kind != "all_to_all":
        return {"held": np.broadcast_to(np.sum(inputs, axis=0), (1, params["ranks"], work.elements))}
    cuts = [np.split(held, np.cumsum(row)[:-1]) for held, row in zip(inputs, work.blocks, strict=True)]
    return {"held": _stacked([np.concatenate([row[rank] for row in cuts]) for rank in range(params["ranks"])])[None]}


def _stacked(held: list[np.ndarray]) -> np.ndarray:
    """Ranks that get less than others are filled up with zeros."""
    most = max(map(len, held))
    return np.stack([np.pad(values, (0, most - len(values))) for values in held])
