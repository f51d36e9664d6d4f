"""What gloo's collectives take on a network of given links. Pure Python, for both wings.

gloo is not a textbook ring. Read in its source (pytorch/gloo, ``gloo/allreduce.cc``, ``alltoall.cc`` and
``transport/tcp/pair.cc``):

- an all-reduce cuts the buffer into segments of at most 1 MiB, at least two for each rank, keeps two in flight, sends
  towards the rank before, and begins the all-gather only when its own reduce-scatter is over;
- a segment leaves only when the word that its receiver is ready has come back over the network;
- what a rank has said waits behind the bulk that it sends on the same connection, so ranks that send before they post
  their receives, as ``alltoall.cc`` does, now and then serialise the two directions.

So a ring is computed segment by segment here, and all-to-alls are pairwise exchanges, receives first. A link is a token
bucket, as the kernel's ``tbf`` is one: idle, it lets a burst pass at once. Two constants are fitted (:class:`Costs`);
everything else is what the network was given. Streams that meet on a link are taken in the order in which they began;
TCP would share it, so a collective in which many do is not for this model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from frugalbench.schema import Frozen

SEGMENT_BYTES = 1 << 20
IN_FLIGHT = 2
FRAME_BYTES = 9014
"""Jumbo frame on the link: 9,000 bytes of IP and the Ethernet header."""
PAYLOAD_BYTES = 9000 - 20 - 32
"""Of a frame: without the headers of IP and of TCP with its timestamps."""
BURST_BYTES = 4 * FRAME_BYTES
"""What an idle link lets pass at once: enough that a kernel timer that comes late loses no rate."""

Blocks = Sequence[Sequence[float]]
"""Bytes that each rank (row) sends to each rank (column)."""


class Port(Frozen, frozen=True, kw_only=True):
    """One rank and its link to the switch of its site."""

    rate_bytes_per_s: float
    """Each direction, headers included."""
    site: int = 0
    pace: float = 1.0
    """Time that this rank needs to compute, over that of a rank of pace 1."""


class Wan(Frozen, frozen=True, kw_only=True):
    """The one link between two sites, the same in both directions."""

    rate_bytes_per_s: float
    delay_s: float
    """One way."""


class Network(Frozen, frozen=True, kw_only=True):
    """Ranks in their order, and what joins their sites."""

    ports: tuple[Port, ...]
    wan: Wan | None = None
    buffer_bytes: float = 256 * 1024
    """That a sender may leave with the kernel of its machine and go on."""

    def delay_s(self, source: int, target: int) -> float:
        """One-way delay between two ranks."""
        far = self.ports[source].site != self.ports[target].site
        return self.wan.delay_s if far and self.wan else 0.0


class Work(Frozen, frozen=True, kw_only=True):
    """One thing that the ranks do together."""

    kind: str
    """``all_reduce``, ``all_to_all`` or ``step`` (compute, then all-reduce)."""
    elements: int
    """Float32 values that a rank holds."""
    blocks: tuple[tuple[int, ...], ...] = ()
    """Elements that each rank (row) sends to each rank (column) in an all-to-all."""
    compute_s: float = 0.0
    """Of one local step, at pace 1."""
    steps: int = 1
    """Local steps before the ranks exchange."""
    overlap: bool = False
    """Exchange what the last local steps gave while the next ones compute."""
    shares: tuple[float, ...] = ()
    """Of local computing, each rank's over the mean one's; empty: all alike."""

    def most_held(self) -> int:
        """Elements that the rank with most has afterwards."""
        return max(map(sum, zip(*self.blocks, strict=True)), default=self.elements)


class Costs(Frozen, frozen=True, kw_only=True):
    """What is fitted."""

    message_s: float
    """From the moment that a message could be received to the moment that its receiver goes on, on an idle link."""
    payload: float
    """Share of a link's rate that carries tensors."""


FRAMED = PAYLOAD_BYTES / FRAME_BYTES


@dataclass
class _Bucket:
    """A link in one direction."""

    bytes_per_s: float
    empty_s: float = -math.inf
    """When a bucket without burst would have sent everything that was offered so far."""

    def sent_s(self, offered_s: float, size_bytes: float) -> float:
        """When the last byte has passed."""
        self.empty_s = max(self.empty_s, offered_s) + size_bytes / self.bytes_per_s
        return max(offered_s, self.empty_s - BURST_BYTES / self.bytes_per_s)


@dataclass
class _Wires:
    """All links of a network, each in both directions, while a collective runs."""

    network: Network
    costs: Costs
    up: list[_Bucket] = field(init=False)
    down: list[_Bucket] = field(init=False)
    across: dict[int, _Bucket] = field(init=False)

    def __post_init__(self) -> None:
        rates = [port.rate_bytes_per_s * self.costs.payload for port in self.network.ports]
        self.up, self.down = [_Bucket(rate) for rate in rates], [_Bucket(rate) for rate in rates]
        wan = self.network.wan
        sites = {port.site for port in self.network.ports} if wan else set()
        self.across = {site: _Bucket(wan.rate_bytes_per_s * self.costs.payload) for site in sites if wan}

    def way(self, source: int, target: int) -> list[_Bucket]:
        """Links from one rank to another, in their order."""
        site = self.network.ports[source].site
        far = site != self.network.ports[target].site
        return [self.up[source], *([self.across[site]] if far else []), self.down[target]]

    def note_s(self, source: int, target: int) -> float:
        """How long the word that a receiver is ready takes."""
        return self.network.delay_s(source, target) + self.costs.message_s

    def send(self, source: int, target: int, start_s: float, size_bytes: float) -> tuple[float, float]:
        """When the sender is rid of a message, and when its receiver has it.

        Frames are stored and forwarded: each link begins one frame after the link before, and ends one frame after it.
        """
        if size_bytes <= 0:
            return start_s, start_s
        offered_s, passed_s, rid_s = start_s, start_s, start_s
        for number, link in enumerate(self.way(source, target)):
            frame_s = min(size_bytes, PAYLOAD_BYTES) / link.bytes_per_s
            passed_s = max(link.sent_s(offered_s, size_bytes), passed_s + (frame_s if number else 0.0))
            rid_s = rid_s if number else max(start_s, passed_s - self.network.buffer_bytes / link.bytes_per_s)
            offered_s += frame_s
        return rid_s, passed_s + self.note_s(source, target)


def all_reduce_s(network: Network, size_bytes: float, costs: Costs, begin_s: Sequence[float] = ()) -> float:
    """Seconds until the last rank has the sum; rank r joins at ``begin_s[r]`` (0 where it is empty)."""
    ranks = len(network.ports)
    now = list(begin_s) or [0.0] * ranks
    if ranks < 2 or size_bytes <= 0:
        return max(now)
    per_rank, segment_bytes = segments(size_bytes, ranks)
    wires = _Wires(network, costs)
    for first in (1, 0):
        _ring(wires, now, first, per_rank, segment_bytes, size_bytes)
    return max(now)


def segments(size_bytes: float, ranks: int) -> tuple[int, float]:
    """Segments that each rank's share of an all-reduce is cut into, and the bytes of one (float32)."""
    number = max(math.ceil(size_bytes / SEGMENT_BYTES), IN_FLIGHT * ranks)
    number = math.ceil(number / ranks) * ranks
    return number // ranks, 4 * math.ceil(math.ceil(size_bytes / number) / 4)


def _ring(wires: _Wires, now: list[float], first: int, per_rank: int, segment_bytes: float, size_bytes: float) -> None:
    """One half of an all-reduce; ``now`` holds when each rank goes on and is moved forward.

    ``first`` is how many shares beyond its own a rank begins to send with: 1 to reduce and scatter, 0 to gather.
    """
    ranks = len(now)
    steps = per_rank * (ranks - 1)
    waits = [[0.0] * ranks for _ in range(steps)]
    for step in range(steps + IN_FLIGHT):
        if step >= IN_FLIGHT:
            now[:] = map(max, now, waits[step - IN_FLIGHT])
        if step >= steps:
            continue
        for rank in range(ranks):
            target = (rank - 1) % ranks
            offset = ((rank + first) * per_rank + step) * segment_bytes % (per_rank * ranks * segment_bytes)
            start_s = max(now[rank], now[target] + wires.note_s(target, rank))
            rid_s, has_s = wires.send(rank, target, start_s, min(segment_bytes, size_bytes - offset))
            waits[step][rank] = max(waits[step][rank], rid_s)
            waits[step][target] = max(waits[step][target], has_s)


def all_to_all_s(network: Network, blocks: Blocks, costs: Costs) -> float:
    """Seconds until every block is where it belongs, by pairwise exchange: in step i every rank sends to the i-th rank
    after it and receives from the i-th before it, and goes on when both are done."""
    wires, ranks = _Wires(network, costs), len(network.ports)
    now = [0.0] * ranks
    for step in range(1, ranks):
        waits = list(now)
        for rank in range(ranks):
            target = (rank + step) % ranks
            start_s = max(now[rank], now[target] + wires.note_s(target, rank))
            rid_s, has_s = wires.send(rank, target, start_s, blocks[rank][target])
            waits[rank], waits[target] = max(waits[rank], rid_s), max(waits[target], has_s)
        now = waits
    return max(now)


def step_s(
    network: Network,
    size_bytes: float,
    costs: Costs,
    compute_s: float,
    steps: int = 1,
    overlap: bool = False,
    shares: Sequence[float] = (),
) -> float:
    """``steps`` of local computing on every rank at its own pace and one all-reduce, which with ``overlap`` is that of
    the steps before and runs beside them. ``shares``: of computing, by rank; empty: all alike."""
    parts = shares or [1.0] * len(network.ports)
    begin_s = [steps * compute_s * port.pace * part for port, part in zip(network.ports, parts, strict=True)]
    if overlap:
        return max(max(begin_s), all_reduce_s(network, size_bytes, costs))
    return all_reduce_s(network, size_bytes, costs, begin_s)
