"""Which devices of a scene are alike in themselves and in all that surrounds them, so that one can stand for many.

Groups are compared from the inside out: two nodes are alike when they hold the same numbers of alike devices, two
sites when they hold the same numbers of alike nodes. Devices that are alike, in alike groups all the way out, make
one :class:`Leaf`. Unfolded, every device is a leaf of its own and every group is itself.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from frugalbench.schema import FrugalbenchError

Path = tuple[int, ...]
"""A group, with everything around it: its class, the class of the group around it, and so on outwards; () is all."""


@dataclass(frozen=True, slots=True)
class Device:
    """What tells devices apart."""

    job: int
    kind: str
    pace: float = 1.0
    """Its time for a given work, over that of others of its kind."""
    links: tuple[float, ...] = ()
    """By level: its link's rate is divided by it. Empty where no link is slow."""


@dataclass(slots=True)
class Leaf:
    """Devices that are alike, as far as anybody can tell."""

    device: Device
    groups: tuple[Path, ...]
    """By level, innermost first, without the outermost, which is one."""
    copies: int = 0
    first: int = 0
    """The lowest number among them."""


@dataclass(slots=True)
class Folded:
    """Leaves, and how groups are made up."""

    leaves: list[Leaf] = field(default_factory=list)
    copies: dict[Path, int] = field(default_factory=dict)
    """How many groups a path stands for."""
    fan_out: dict[tuple[int, int, Path], int] = field(default_factory=dict)
    """Parts of one group that hold devices of a job, by job, level and group."""


def fold(devices: list[Device], fan_outs: list[int], alike: bool = True) -> Folded:
    """Leaves of ``devices`` in groups of ``fan_outs``, innermost first; the outermost level is one group, ``()``.

    Raises :class:`FrugalbenchError` where a job's devices do not spread evenly over the groups.
    """
    rooms, room = [], 1
    for fan_out in fan_outs[:-1]:
        room *= fan_out
        rooms.append(room)
    groups = _paths(devices, rooms, alike)
    found, by_key = Folded(), dict[Hashable, Leaf]()
    for number, device in enumerate(devices):
        mine = tuple(paths[number // room] for paths, room in zip(groups, rooms, strict=True))
        key: Hashable = (device, mine) if alike else number
        leaf = by_key.get(key)
        if leaf is None:
            leaf = by_key[key] = Leaf(device=device, groups=mine, first=number)
        leaf.copies += 1
    found.leaves = list(by_key.values())
    found.copies = {**Counter(path for paths in groups for path in paths), (): 1}
    _count_parts(found, devices, groups, rooms)
    return found


def _paths(devices: list[Device], rooms: list[int], alike: bool) -> list[list[Path]]:
    """The path of every group, by level."""
    classes, inside, per = [], _classes(devices), 1
    for room in rooms:
        size = room // per
        chunks = [inside[start : start + size] for start in range(0, len(inside), size)]
        inside = (
            _classes([frozenset(Counter(chunk).items()) for chunk in chunks]) if alike else list(range(len(chunks)))
        )
        classes.append(inside)
        per = room
    found: list[list[Path]] = []
    outside: list[Path] = [()]
    for level in range(len(rooms) - 1, -1, -1):
        per = rooms[level + 1] // rooms[level] if level + 1 < len(rooms) else len(classes[level])
        outside = [(name, *outside[number // per]) for number, name in enumerate(classes[level])]
        found.insert(0, outside)
    return found


def _classes(items: Sequence[Hashable]) -> list[int]:
    """A number for each item, equal for equal items."""
    known: dict[Hashable, int] = {}
    return [known.setdefault(item, len(known)) for item in items]


def _count_parts(found: Folded, devices: list[Device], groups: list[list[Path]], rooms: list[int]) -> None:
    inner_of = [1, *rooms]
    for level, inner in enumerate(inner_of):
        parts: dict[tuple[int, int], set[int]] = defaultdict(set)
        outer = rooms[level] if level < len(rooms) else len(devices)
        for number, device in enumerate(devices):
            if device.job >= 0:
                parts[device.job, number // outer].add(number // inner)
        for (job, group), members in parts.items():
            path = groups[level][group] if level < len(rooms) else ()
            if found.fan_out.setdefault((job, level, path), len(members)) != len(members):
                raise _uneven(found.fan_out[job, level, path], len(members))
        _check_even(found.fan_out, level)


def _check_even(fan_out: dict[tuple[int, int, Path], int], level: int) -> None:
    by_job: dict[int, set[int]] = defaultdict(set)
    for (job, of, _), parts in fan_out.items():
        if of == level:
            by_job[job].add(parts)
    for found in by_job.values():
        if len(found) > 1:
            raise _uneven(min(found), max(found))


def _uneven(some: int, others: int) -> FrugalbenchError:
    return FrugalbenchError(
        f"the devices of one job make groups of {some} and of {others} parts; give it whole groups, all alike"
    )
