"""What surrounds two runs and is not the same: machine, versions, revision, config."""

from collections.abc import Iterable, Mapping

from frugalbench.analysis.load import Run
from frugalbench.schema import Frozen


class Difference(Frozen, frozen=True, kw_only=True):
    """Something in the environment that the two runs do not share."""

    what: str
    base: str
    new: str


def differences(base: Run, new: Run) -> Iterable[Difference]:
    """Machine, versions, revision and config, flattened; what only one run has counts too."""
    sides = [_environment(run) for run in (base, new)]
    for what in dict.fromkeys([*sides[0], *sides[1]]):
        before, after = (side.get(what) for side in sides)
        if before != after:
            yield Difference(what=what, base=_shown(before), new=_shown(after))


def _shown(value: object) -> str:
    return "–" if value is None else str(value)[:200]


_FLEETING = ("machine.load_average", "machine.throttle_count")
"""Parts of a machine's description that differ from minute to minute."""


def _environment(run: Run) -> dict[str, object]:
    manifest = run.manifest
    whole = {
        "machine": manifest.machine_before,
        "version": manifest.versions,
        "revision": manifest.revision,
        "config": asked(run),
    }
    flat = dict(_flat("", whole))
    return {name: value for name, value in flat.items() if name not in _FLEETING}


def asked(run: Run) -> dict[str, object]:
    """What was asked, without the words about it and where they lay."""
    return {name: value for name, value in run.manifest.config.items() if name not in ("description", "path")}


def _flat(prefix: str, value: object) -> Iterable[tuple[str, object]]:
    """Leaves by their dotted path; tables of a list (workloads, boards) by their number, from 1."""
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        value = {str(number): item for number, item in enumerate(value, 1)}
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), item)
    else:
        yield prefix, value
