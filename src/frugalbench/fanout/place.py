"""What the driver asks of a cluster, whatever runs it: its nodes, and one job that holds a whole node."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_MOST_NAME = 60
RESERVED = frozenset({"report.html", "jobs"})
"""Names in the folder of a fanned-out run that are no node's."""


@dataclass(frozen=True)
class Node:
    """One machine of the cluster."""

    name: str
    """Safe as the name of a folder, and no other node's."""
    key: str
    """What the cluster calls it."""
    resources: tuple[tuple[str, float], ...] = ()
    """All that the cluster hands out of it."""


class Lost(Exception):
    """A job will say no more; the text is the reason."""


class LeftOut(Exception):
    """The cluster does not give this node to us; the text is the reason."""


class Job(Protocol):
    """A node that was asked for, and from its first word on is ours alone."""

    def heard(self) -> Sequence[dict[str, Any]]:
        """Messages since the last call, none while the node is not free: ``{"hello": …}`` first, then
        ``{"report": …}`` as :meth:`agent.Agent.poll` gives it. Never waits long. Raises :class:`Lost`."""
        ...

    def begin(self, request: dict[str, Any]) -> None:
        """Start measuring."""
        ...

    def stop(self) -> None:
        """Ask the program to keep what it has and end."""
        ...

    def release(self) -> None:
        """End whatever still runs there, and give the node back. Never raises."""
        ...

    def waiting(self) -> str:
        """Why the node is not ours yet, as far as the cluster tells."""
        ...


class Place(Protocol):
    """A cluster."""

    def nodes(self) -> list[Node]:
        """Machines that could be measured, in the order in which they are taken."""
        ...

    def occupy(self, node: Node) -> Job:
        """Ask for the whole of ``node``; raises :class:`LeftOut`."""
        ...

    def close(self) -> None:
        """Take leave of the cluster, which goes on."""
        ...


def safe_names(names: Iterable[str]) -> list[str]:
    """Names of folders: letters, digits, ``.``, ``_`` and ``-``, no two alike in any spelling."""
    taken = {name.lower() for name in RESERVED}
    made = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:_MOST_NAME] or "node"
        numbered = (plain if number == 1 else f"{plain}-{number}" for number in range(1, len(taken) + 3))
        chosen = next(item for item in numbered if item.lower() not in taken)
        taken.add(chosen.lower())
        made.append(chosen)
    return made
