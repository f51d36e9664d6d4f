"""A group of ranks on this machine: this process is rank 0, the others are its children.

Rank 0 starts the followers, meets them over loopback, changes what they do and sends them away. How they keep in step:
:mod:`frugalbench.cluster.emulate.lockstep`.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from frugalbench.cluster.emulate.lockstep import Order, note, ready_mark

Answer = TypeVar("Answer")

_PARTING_S = 5.0
_GLANCE_S = 0.02
_LAST_WORDS_S = 1.0
"""A rank that fails is seen to be gone a little before it has ended."""


class Group:
    """The ranks, seen from rank 0."""

    def __init__(
        self, name: str, program: str, ranks: int, words: Sequence[object], scratch_dir: Path, text: bytes = b""
    ):
        """Start ``python -m program RANK RANKS STORE words... PARENT`` for every rank but this one.

        ``text`` lies beside the store, for programs that need more than words.
        """
        scratch_dir.mkdir(parents=True, exist_ok=True)
        self.folder = tempfile.TemporaryDirectory(prefix=f"{name}-", dir=scratch_dir)
        note(self.store).write_bytes(text)
        self.ranks, self.done, self.fault = ranks, 0, ""
        self.dist: Any = None
        self.current: Callable[[], object] | None = None
        """What all ranks do in a call; the followers wait inside the next one."""
        self.children = [self._start(program, rank, words) for rank in range(1, ranks)]

    @property
    def store(self) -> Path:
        """The file through which the ranks meet."""
        return Path(self.folder.name) / "store"

    @property
    def pids(self) -> tuple[int, ...]:
        """The followers: their CPU time and run delay are this arm's own, not foreign."""
        return tuple(child.pid for child in self.children)

    @property
    def transport(self) -> str:
        """What the ranks talk over, in words."""
        return f"gloo over {os.environ.get('GLOO_SOCKET_IFNAME', 'the default interface')}"

    def meet(self) -> Any:
        """Wait for the followers and join them; ``torch.distributed``, ready for use.

        Raises ``RuntimeError`` with what a follower said when one does not come.
        """
        from frugalbench.cluster.emulate.rank import join

        for rank, child in enumerate(self.children, start=1):
            while not ready_mark(self.store, rank).exists():
                if child.poll() is not None:
                    raise RuntimeError(f"gloo rank {rank} ended before it joined: {self._last_words(rank)}")
                time.sleep(_GLANCE_S)
        try:
            self.dist = join(0, self.ranks, self.store)
        except Exception as problem:
            raise RuntimeError(f"the gloo ranks did not meet: {self._who_ended() or problem}") from problem
        return self.dist

    def turn_to(self, work: int, position: int, make: Callable[[], Callable[[], object]]) -> None:
        """Have all ranks turn to ``work``, from ``position`` on; ``make`` prepares rank 0's own side of it."""
        self._order(work, position)
        self.current = self._guarded(make)

    def run(self) -> Any:
        """One call of the current work, which all ranks perform.

        Raises ``RuntimeError`` naming the rank that ended, if one did.
        """
        assert self.current is not None
        answer = self._guarded(self.current)
        self.done += 1
        return answer

    def close(self) -> None:
        """Send the followers away, ending those that do not leave, and remove the meeting file."""
        if not self.fault and self.dist is not None and all(child.poll() is None for child in self.children):
            with contextlib.suppress(RuntimeError):
                self._order(0, 0)
        while self.children:
            _end(self.children.pop(), 0.0 if self.fault else _PARTING_S)
        if self.dist is not None:
            with contextlib.suppress(RuntimeError, ValueError):
                self.dist.destroy_process_group()
            self.dist = None
        self.folder.cleanup()

    def _order(self, work: int, position: int) -> None:
        """The followers wait inside the next call: the order holds after it, and doing it releases them."""
        text = Order(after=self.done + (self.current is not None), work=work, position=position).pack()
        self._guarded(lambda: self._tell(text))
        if self.current is not None:
            self.run()

    def _tell(self, text: bytes) -> None:
        for child in self.children:
            assert child.stdin is not None
            child.stdin.write(text)

    def _guarded(self, call: Callable[[], Answer]) -> Answer:
        if self.fault:
            raise RuntimeError(self.fault)
        try:
            return call()
        except Exception as problem:
            self.fault = self._who_ended() or f"the ranks fell out of step: {problem}"
            raise RuntimeError(self.fault) from problem

    def _start(self, program: str, rank: int, words: Sequence[object]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-P", "-m", program]
        command += [str(word) for word in (rank, self.ranks, self.store, *words, os.getpid())]
        with self._log(rank).open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, bufsize=0)

    def _log(self, rank: int) -> Path:
        return Path(self.folder.name) / f"rank-{rank}.log"

    def _last_words(self, rank: int) -> str:
        lines = self._log(rank).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _who_ended(self) -> str:
        """The follower that ended first, in words; empty when all live. One takes the others with it."""
        stop = time.monotonic() + _LAST_WORDS_S
        while not (gone := [r for r, child in enumerate(self.children, start=1) if child.poll() is not None]):
            if time.monotonic() > stop:
                return ""
            time.sleep(_GLANCE_S)
        rank = min(gone, key=lambda r: self._log(r).stat().st_mtime_ns)
        status = self.children[rank - 1].returncode
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"gloo rank {rank} {how}: {self._last_words(rank)}"


def _end(child: "subprocess.Popen[bytes]", patience_s: float) -> None:
    with contextlib.suppress(OSError):
        if child.stdin is not None:
            child.stdin.close()
    try:
        child.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
