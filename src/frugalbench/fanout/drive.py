"""The driver: asks for nodes, starts each as it comes free, and brings its records home while it measures.

No machine carries two timings: a job holds all of a node, and nodes that turn out to be one machine (two Ray nodes on a
host, pods beside each other) are measured one after the other.
"""

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frugalbench.fanout.gather import Gathered
from frugalbench.fanout.place import Job, LeftOut, Lost, Node, Place

TICK_S = 0.5
REMIND_S = 30.0
STOP_S = 90.0
"""How long interrupted machines have to send what they measured."""
_ENDS = {0: "measured", 1: "measured", 2: "refused", 3: "refused", 130: "interrupted"}
_WORSE = (0, 1, 3, 2, 130)


@dataclass
class Seat:
    """One node, from the request for it to its end."""

    node: Node
    job: Job
    gathered: Gathered
    asked_s: float
    state: str = "waiting"
    """``waiting``, ``held``, ``measuring``; then ``measured``, ``interrupted``, ``refused``, ``lost``, ``not free``."""
    boot: str = ""
    same_as: str = ""
    """An earlier node that turned out to be the same machine."""
    told_s: float = 0.0
    code: int = 0
    reason: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.state not in ("waiting", "held", "measuring")

    @property
    def folder(self) -> Path | None:
        """The run directory that came home, if any."""
        return self.gathered.folder if self.gathered.any else None


@dataclass(frozen=True)
class Hooks:
    """Where words go: ``show`` for progress, ``tell`` for what should stay to be read."""

    show: Callable[[str], None]
    tell: Callable[[str], None]


class Fanout:
    """One request on every node of a place."""

    def __init__(
        self,
        place: Place,
        request: dict[str, Any],
        folder: Path,
        mine: dict[str, str],
        hooks: Hooks,
        wait_s: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``mine`` is the caller's own identity; ``wait_s`` limits how long a node may stay in others' hands."""
        self.place, self.request, self.folder, self.mine, self.hooks = place, request, folder, mine, hooks
        self.wait_s, self._sleep = wait_s, sleep
        self.seats: list[Seat] = []
        self.left_out: list[tuple[Node, str]] = []
        self._interrupts = 0

    def run(self, nodes: Sequence[Node], most: int | None = None) -> list[Seat]:
        """Measure on ``most`` of ``nodes`` (all), and return how each ended. Ctrl-C keeps what was measured; a second
        one does not wait for it."""
        with self._listening():
            try:
                self._occupy(nodes, most)
                self._until(lambda: self._interrupts > 0)
                if self._interrupts and any(not seat.over for seat in self.seats):
                    self._stop()
            finally:
                for seat in self.seats:
                    seat.job.release()
        return self.seats

    def _occupy(self, nodes: Sequence[Node], most: int | None) -> None:
        for node in nodes:
            if self._interrupts or len(self.seats) == most:
                return
            try:
                job = self.place.occupy(node)
            except LeftOut as why:
                self.left_out.append((node, str(why)))
                self.hooks.tell(f"{node.name}: left out: {why}")
                continue
            now = time.monotonic()
            self.seats.append(Seat(node, job, Gathered(self.folder / node.name), now, told_s=now - REMIND_S + 5))

    def _until(self, enough: Callable[[], bool]) -> None:
        while any(not seat.over for seat in self.seats) and not enough():
            for seat in self.seats:
                if not seat.over:
                    self._step(seat)
            self._sleep(TICK_S)

    def _step(self, seat: Seat) -> None:
        try:
            for message in seat.job.heard():
                self._take(seat, message)
            if seat.state == "waiting":
                self._remind(seat)
            elif seat.state == "held" and not self._machine_taken(seat) and not self._interrupts:
                seat.job.begin({**self.request, "host": seat.node.name})
                seat.state = "measuring"
                self.hooks.tell(f"{seat.node.name}: measuring")
        except Lost as why:
            self._end(seat, "lost", 1, str(why))

    def _machine_taken(self, seat: Seat) -> bool:
        return any(other.state == "measuring" and other.boot == seat.boot != "" for other in self.seats)

    def _take(self, seat: Seat, message: dict[str, Any]) -> None:
        if seat.over:
            return
        if (hello := message.get("hello")) is not None:
            self._greet(seat, hello)
        if (report := message.get("report")) is not None:
            seat.gathered.add(report)
            for line in report.get("lines", ()):
                self._say(seat, line)
            if (code := report.get("code")) is not None:
                self._ended(seat, code)

    def _greet(self, seat: Seat, hello: dict[str, Any]) -> None:
        """Only a node that runs this very program is measured."""
        if "problem" in hello:
            wanted = f"install frugalbench {self.mine['version']} there"
            self._end(seat, "refused", 2, f"no frugalbench on this node ({hello['problem']}); {wanted}")
        elif any(hello.get(name) != self.mine[name] for name in ("version", "code")):
            self._end(
                seat, "refused", 2,
                f"frugalbench {_named(hello)} on this node, {_named(self.mine)} here; install the same on both",
            )  # fmt: skip
        else:
            self._know(seat, str(hello.get("boot", "")))
            seat.state, seat.boot = "held", str(hello.get("boot", ""))

    def _know(self, seat: Seat, boot: str) -> None:
        """Two nodes of the cluster may be one machine: its containers, or several daemons of the scheduler on it."""
        seat.same_as = next((other.node.name for other in self.seats if other.boot == boot != ""), "")
        if seat.same_as:
            self.hooks.tell(f"{seat.node.name}: is the same machine as {seat.same_as}; they take turns")

    def _say(self, seat: Seat, line: str) -> None:
        seat.lines = [*seat.lines[-20:], line]
        speak = self.hooks.tell if line.startswith("frugalbench: ") else self.hooks.show
        speak(f"{seat.node.name}: {line.removeprefix('frugalbench: ')}")

    def _ended(self, seat: Seat, code: int) -> None:
        last = next((line for line in reversed(seat.lines) if line.startswith("frugalbench: ")), "")
        last = (last or (seat.lines or ["no reason given"])[-1]).removeprefix("frugalbench: ")
        if code < 0:
            with suppress(ValueError):
                last = f"its program was killed by {signal.Signals(-code).name}"
        state = _ENDS.get(code, "lost")
        self._end(seat, state, code if code in _ENDS else 1, last if state in ("refused", "lost") else "")

    def _end(self, seat: Seat, state: str, code: int, reason: str = "") -> None:
        seat.state, seat.code, seat.reason = state, code, reason
        kept = "" if state == "measured" or seat.folder is None else f"; what it sent is kept in {seat.folder}"
        self.hooks.tell(f"{seat.node.name}: {state}{': ' if reason else ''}{reason}{kept}")
        seat.job.release()

    def _remind(self, seat: Seat) -> None:
        now = time.monotonic()
        if self.wait_s is not None and now - seat.asked_s > self.wait_s:
            self._end(seat, "not free", 3, f"in others' hands for {self.wait_s:g} s; {seat.job.waiting()}")
        elif now - seat.told_s >= REMIND_S:
            seat.told_s = now
            self.hooks.show(f"{seat.node.name}: {seat.job.waiting()}")

    def _stop(self) -> None:
        """Those who measure send what they have; the others are given back at once."""
        busy = [seat for seat in self.seats if seat.state == "measuring"]
        for seat in self.seats:
            if seat.state in ("waiting", "held"):
                self._end(seat, "interrupted", 130, "before it began")
        if busy:
            self.hooks.tell(f"interrupted: {len(busy)} machines send what they have; Ctrl-C again: do not wait for it")
        for seat in busy:
            with suppress(Lost):
                seat.job.stop()
        limit_s = time.monotonic() + STOP_S
        self._until(lambda: self._interrupts > 1 or time.monotonic() > limit_s)
        for seat in self.seats:
            if not seat.over:
                self._end(seat, "interrupted", 130, "did not end in time")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Ctrl-C is counted, not thrown: nothing that a node sent gets lost between two lines of code."""

        def count(*_: Any) -> None:
            self._interrupts += 1
            if self._interrupts > 2:
                raise KeyboardInterrupt

        try:
            before = signal.signal(signal.SIGINT, count)
        except ValueError:  # not the main thread: whoever calls from there has no Ctrl-C
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _named(identity: dict[str, Any]) -> str:
    return f"{identity.get('version', 'of no version')} (code {identity.get('code', 'unknown')})"


def worst(codes: Iterable[int]) -> int:
    """The exit code of all: interrupted before a wrong request before nodes that cannot before failed cases."""
    return max(codes, key=_WORSE.index, default=3)
