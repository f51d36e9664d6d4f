"""Max-min fair rates of transfers that meet on links.

A transfer has one rate and puts ``weight`` times that on each link it uses: 1 for a plain flow, more where several of
its streams cross one link. Rates are raised together until a link is full; who crosses it keeps that rate, the others
go on (progressive filling: Bertsekas and Gallager, *Data Networks*, 2nd ed., section 6.5.2). So every transfer has
a full link on which no other has a higher rate.
"""

from collections.abc import Collection, Mapping, Sequence
from heapq import heapify, heappop, heappush

Uses = tuple[tuple[int, float], ...]
"""Links of a transfer with its weight on each; no link twice."""


def fill(
    links: Collection[int],
    users: Sequence[Mapping[int, float]],
    uses: Sequence[Uses],
    capacity: Sequence[float],
) -> dict[int, tuple[float, int]]:
    """Rate of every transfer on ``links`` (bytes/s) and the link that limits it.

    ``users`` holds the transfers on each link with their weights, ``uses`` the same by transfer. ``links`` must hold
    every link of every transfer that crosses one of them: a whole component.
    """
    room = {link: capacity[link] for link in links}
    load = {link: sum(users[link].values()) for link in links}
    open_users = {link: len(users[link]) for link in links}
    heap = [(room[link] / load[link], link) for link in links if open_users[link]]
    heapify(heap)
    found: dict[int, tuple[float, int]] = {}
    while heap:
        _, link = heappop(heap)
        if not open_users[link]:
            continue
        share = max(room[link], 0.0) / load[link]
        # A link's share only grows while others fill up: one that is no longer the smallest goes back.
        if heap and share > heap[0][0]:
            heappush(heap, (share, link))
            continue
        for task in users[link]:
            if task in found:
                continue
            found[task] = (share, link)
            for other, weight in uses[task]:
                room[other] -= weight * share
                load[other] -= weight
                open_users[other] -= 1
    return found
