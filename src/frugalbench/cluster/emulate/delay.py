"""A delay between two namespaces, for kernels without ``netem``: from one TUN device to another, some time later.

Packets pass as the kernel's large segments (virtio header, TCP segmentation left to the far side), so that a process in
Python carries them: one read and one write for up to 64 KiB. Order is kept; nothing is dropped. TCP runs end to end
through it.
"""

import fcntl
import heapq
import os
import select
import struct
import time
from dataclasses import dataclass, field

from frugalbench.cluster.emulate.namespaces import NoNetwork, inside

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_OFFLOADS = 0x01 | 0x02 | 0x04
"""Checksums, and TCP segmentation for both versions of IP."""
_MOST_BYTES = 1 << 17
_BATCH = 64
"""Packets that one device may hand over before the other gets its turn."""


def tun(namespace: int | None, name: str) -> int:
    """Descriptor of a new TUN device in ``namespace``. Raises :class:`NoNetwork`."""
    try:
        with inside(namespace):
            descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _OFFLOADS)
    except OSError as problem:
        raise NoNetwork(f"no TUN device: {problem.strerror}; load the module 'tun' or run as root") from None
    return descriptor


@dataclass
class DelayLine:
    """Two devices, and the packets between them."""

    ends: tuple[int, int]
    delay_s: float
    late_s: list[float] = field(default_factory=list)
    """By how much packets left after their time, latest :data:`_KEPT` of them."""
    packets: int = 0
    _queue: list[tuple[float, int, int, bytes]] = field(default_factory=list)

    def serve(self, until: int) -> None:
        """Carry packets until ``until`` has something to read (or its other end is gone)."""
        poll = select.epoll()
        for descriptor in (*self.ends, until):
            poll.register(descriptor, select.EPOLLIN)
        while True:
            ready = [found for found, _ in poll.poll(self._patience_s())]
            if until in ready:
                return
            for number, end in enumerate(self.ends):
                if end in ready:
                    self._take(number)
            self._release()

    def _patience_s(self) -> float:
        if not self._queue:
            return -1.0
        return max(0.0, self._queue[0][0] - time.monotonic())

    def _take(self, number: int) -> None:
        for _ in range(_BATCH):
            try:
                packet = os.read(self.ends[number], _MOST_BYTES)
            except BlockingIOError:
                return
            self.packets += 1
            heapq.heappush(self._queue, (time.monotonic() + self.delay_s, self.packets, 1 - number, packet))

    def _release(self) -> None:
        while self._queue and self._queue[0][0] <= time.monotonic():
            due_s, _, end, packet = heapq.heappop(self._queue)
            self.late_s.append(time.monotonic() - due_s)
            del self.late_s[:-_KEPT]
            try:
                os.write(self.ends[end], packet)
            except OSError:
                continue


_KEPT = 1000
