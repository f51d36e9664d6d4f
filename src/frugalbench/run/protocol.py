"""What the parent and a worker say to each other: one typed message each way, length-prefixed msgpack.

A worker only ever acts on a request and answers it with one reply, so holding the right to send
the next request *is* the baton: at most one worker computes, all others block in ``recv``.
"""

import socket
import struct
from typing import Any

import msgspec

from frugalbench.schema import Arm, Artefact, Environment, Quantity, Reading, Verification, Warmup

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
    meter: str = "none"
    idle_w: float | None = None
    tdp_w: float | None = None
    watts_source: str = ""
    template_id: str | None = None


class Reference(msgspec.Struct, frozen=True, tag=True):
    """Compute and store the float64 references of the arm's cases (once per run, in a worker of its own)."""


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


class Finish(msgspec.Struct, frozen=True, tag=True):
    """Release everything and exit."""


Request = Job | Prepare | Reference | Load | Verify | Calibrate | Turn | Finish


class Referenced(msgspec.Struct, frozen=True, tag=True):
    paths: dict[str, str]
    """Case id to the folder that holds its reference arrays."""


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
    update_period_s: float | None = None
    """Slowest update period of the meters in reach; ``None`` without a measuring meter."""


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


class Finished(msgspec.Struct, frozen=True, tag=True):
    """Done; nothing to tell."""


class Problem(msgspec.Struct, frozen=True, tag=True):
    """The request could not be carried out; the worker lives on."""

    reason: str


Reply = Referenced | Loaded | Verified | Calibrated | Turned | Finished | Problem


def send(channel: socket.socket, message: Any) -> None:
    """Send one message."""
    body = msgspec.msgpack.encode(message)
    channel.sendall(_LENGTH.pack(len(body)) + body)


def receive(channel: socket.socket, kind: Any) -> Any:
    """Block for one message of type ``kind``; raises ``EOFError`` when the other side is gone."""
    (length,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size))
    return msgspec.msgpack.decode(_exactly(channel, length), type=kind)


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
