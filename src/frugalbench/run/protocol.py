"""What the parent and a worker say to each other: one typed message each way, length-prefixed msgpack.

A worker only ever acts on a request and answers it with one reply, so holding the right to send
the next request *is* the baton: at most one worker computes, all others block in ``recv``.
"""

import socket
import struct
from typing import Any

import msgspec

from frugalbench.config import Energy
from frugalbench.schema import Arm, Artefact, Environment, FirstStart, Quantity, Reading, Verification, Warmup

_LENGTH = struct.Struct("<Q")


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Everything a fresh worker must know."""

    arm: Arm
    seed: int
    threads: int
    device: str
    cache_dir: str
    scratch_dir: str
    start_s: float
    """``time.monotonic()`` at which the run started."""
    energy: Energy = Energy(meter="none")
    template_id: str | None = None
    replicate: int = 0
    memory_limit_bytes: float | None = None
    """Most that this worker may hold."""
    plugin: str = ""
    """Code outside of this package that is the builder, where the user allowed it: see ``specs.plugin``."""


class Reference(msgspec.Struct, frozen=True, tag=True):
    """Compute and store the float64 references of the arm's cases (once per run, in a worker of its own)."""

    others: tuple[Arm, ...] = ()
    """Arms of the comparison that have none yet."""


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Export and compile what is not cached yet; accounted apart from measuring."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """Load the arm: allocate, fill, quantise, export, compile."""


class Verify(msgspec.Struct, frozen=True, tag=True):
    """Check a case's outputs; nothing may be timed before this passed."""

    case: str
    reference: str
    limit_s: float
    least: int = 2
    """Positions of the rotation that are checked whatever the time limit."""


class Calibrate(msgspec.Struct, frozen=True, tag=True):
    """Warm a case up until its call time is steady."""

    case: str
    limit_s: float


class Turn(msgspec.Struct, frozen=True, tag=True):
    """Take a turn: wait for quiet, run the lead-in, time ``calls`` calls."""

    case: str
    calls: int
    lead_in_s: float
    quiet_limit_s: float
    previous_pid: int | None
    energy: bool = False
    place: int = 0
    """Equal for all arms of a round: which core a single busy thread is put on."""
    least_s: float = 0.0
    """Calls are added, where they got faster since calibration, to fill this much."""
    fill_s: float = 0.0
    """An energy window goes on until it is this long: enough updates of the meter."""


class Idle(msgspec.Struct, frozen=True, tag=True):
    """Compute nothing and read the meters: wait for quiet and ``settle_s``, then keep still for ``window_s``."""

    window_s: float
    settle_s: float
    quiet_limit_s: float
    previous_pid: int | None


class Finish(msgspec.Struct, frozen=True, tag=True):
    """Release everything and exit."""


Request = Job | Prepare | Reference | Load | Verify | Calibrate | Turn | Idle | Finish


class Referenced(msgspec.Struct, frozen=True, tag=True):
    paths: dict[str, str]
    """Case id to the folder that holds its reference arrays; of other arms too where theirs are the same and nothing
    is to be prepared for them, so that they need no worker for it."""


class Loaded(msgspec.Struct, frozen=True, tag=True):
    pid: int
    load_s: float
    pss_bytes: float | None
    threads: int | None
    libraries: dict[str, str]
    artefacts: tuple[Artefact, ...]
    facts: dict[str, dict[str, Quantity]]
    details: dict[str, dict[str, Any]]
    problems: dict[str, str]
    """Case id to why it could not be bound."""
    capped: dict[str, str] = {}
    """Case id to why it proved hopelessly slow."""
    settled: tuple[str, ...] = ()
    """Case ids of which loading found out all there is to know."""
    update_period_s: float | None = None
    """Slowest update period of the meters in reach; ``None`` without a measuring meter."""
    first_starts: dict[str, FirstStart] = {}
    """By case id, where the workload tells the steps of a start apart."""


class Verified(msgspec.Struct, frozen=True, tag=True):
    verification: Verification
    facts: dict[str, Quantity] = {}


class Calibrated(msgspec.Struct, frozen=True, tag=True):
    warmup: Warmup


class Turned(msgspec.Struct, frozen=True, tag=True):
    calls: int
    time_s: float
    start_s: float
    environment: Environment
    void: str | None = None
    readings: tuple[Reading, ...] = ()
    device_s: float | None = None
    compilations: int = 0
    """Kernels that were compiled or tuned inside the window."""


class Idled(msgspec.Struct, frozen=True, tag=True):
    readings: tuple[Reading, ...]


class Finished(msgspec.Struct, frozen=True, tag=True):
    """Done; nothing to tell."""


class Problem(msgspec.Struct, frozen=True, tag=True):
    """The request could not be carried out; the worker lives on."""

    reason: str
    no_path: bool = False
    """What was asked for has no kernel here: to be skipped, not failed."""


Reply = Referenced | Loaded | Verified | Calibrated | Turned | Idled | Finished | Problem

ANSWERS: dict[type, type] = {
    Job: Finished,
    Prepare: Finished,
    Reference: Referenced,
    Load: Loaded,
    Verify: Verified,
    Calibrate: Calibrated,
    Turn: Turned,
    Idle: Idled,
    Finish: Finished,
}
"""What each request is answered with, unless with a :class:`Problem`."""

MOST_MESSAGE_BYTES = 64 * 2**20
"""A length beyond this is no length but something that was written into the pipe by mistake."""


class Garbled(Exception):
    """What came over the pipe is no message; says what it looked like."""


class Inbox:
    """Puts one reply together from the pieces in which it arrives."""

    def __init__(self) -> None:
        self._parts = bytearray()

    def feed(self, part: bytes) -> Reply | None:
        """The reply, once it is whole. Raises :class:`Garbled` when the bytes cannot be one, or are more than one."""
        self._parts += part
        if len(self._parts) < _LENGTH.size:
            return None
        size = _LENGTH.size + _checked(_LENGTH.unpack_from(self._parts)[0], self._parts)
        if len(self._parts) > size:
            raise Garbled(f"{len(self._parts) - size} bytes after the end of the message")
        return decode(bytes(self._parts[_LENGTH.size :]), Reply) if len(self._parts) == size else None


def send(channel: socket.socket, message: Any) -> None:
    """Send one message."""
    body = msgspec.msgpack.encode(message)
    channel.sendall(_LENGTH.pack(len(body)) + body)


def receive(channel: socket.socket, kind: Any) -> Any:
    """Block for one message of type ``kind``; raises ``EOFError`` when the other side is gone, or :class:`Garbled`."""
    head = _exactly(channel, _LENGTH.size)
    return decode(_exactly(channel, _checked(_LENGTH.unpack(head)[0], head)), kind)


def decode(body: bytes, kind: Any) -> Any:
    """A message's body as ``kind``; raises :class:`Garbled`."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise Garbled(f"{problem}: {_shown(body)}") from None


def _checked(size: int, start: bytes | bytearray) -> int:
    if size > MOST_MESSAGE_BYTES:
        raise Garbled(f"no message begins with {_shown(start)}")
    return size


def _shown(start: bytes | bytearray) -> str:
    return ascii(bytes(start[:24]))


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        try:
            part = channel.recv(min(size, 1 << 20))
        except ConnectionError:
            part = b""
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
