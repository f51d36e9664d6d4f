"""TOML configs to typed settings. An unknown key is an error that names file, key and nearest valid key."""

import difflib
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from frugalbench.paths import shipped
from frugalbench.schema import Frozen, FrugalbenchError
from frugalbench.specs import lm_eval_tasks, plugin
from frugalbench.untrusted import MOST_TOML_BYTES, brief, fault, read_toml, shown


class Measure(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a comparison is measured. Defaults are those of a careful run; ``smoke`` overrides some."""

    looks: tuple[int, ...] = (6, 10, 16, 24)
    """Numbers of replicates after which the data are looked at: by n of at most N, alpha × (n / N)^1.5 is spent."""
    alpha: float = 0.05
    rounds: int = 9
    """Rounds per regime in a replicate."""
    pilot_rounds: int = 2
    sample_s: float = 0.02
    """Length of one timed window; calls are repeated to fill it."""
    lead_in_s: float = 0.002
    warmup_limit_s: float = 0.25
    quiet_limit_s: float = 0.25
    slow_call_s: float = 0.25
    """A call longer than this, and 20 times longer than the fastest arm's, makes a case ``capped``: one round each."""
    cap_call_s: float = 10.0
    """A call longer than this is not timed at all."""
    load_limit_s: float = 180.0
    memory_limit_bytes: int = 4 * 2**30
    """Most that the workers of a comparison may hold together."""
    worker_memory_limit_bytes: int | None = None
    """Most that one worker may hold with its children, all its life; by default as much as all of them together."""
    time_budget_s: float = 1200.0
    overdraft: float = 0.25
    """Share of the remaining time that a comparison may take from those after it to reach its first look; with 1 the
    first comparisons are decided where there is too little time for all."""
    energy_rounds: int = 1

    @property
    def worker_limit_bytes(self) -> int:
        """What one worker may hold."""
        return self.worker_memory_limit_bytes or self.memory_limit_bytes


class Energy(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which meter to read, and the declared model that stands in (tier ``modelled``) where none can be read."""

    meter: str = "auto"
    """``auto`` climbs the ladder of meters until the device is covered; ``declared`` takes only the watts below;
    ``none`` reads nothing; the others name one source."""
    idle_w_per_core: float | None = None
    tdp_w_per_core: float | None = None
    source: str = ""
    """Where the two come from."""
    csv: str = ""
    """Log of an external meter: columns ``time_s`` or ``time``, and ``watts`` or ``joules``."""
    command: tuple[str, ...] = ()
    """Program and arguments that print what an external meter shows. Code: needs ``--allow-code``."""
    prometheus_url: str = ""
    prometheus_query: str = ""
    unit: str = "W"
    """What ``command`` or the query yields: ``W``, or ``J`` for a counter."""
    scope: str = "machine"
    """What an external meter covers."""
    update_period_s: float | None = None
    """How often a meter that cannot tell it changes; energy turns last 20 of these."""


class Config(Frozen, frozen=True, kw_only=True):
    """A whole config file."""

    name: str
    description: str
    seed: int
    measure: Measure
    energy: Energy
    workloads: tuple[dict[str, Any], ...]
    path: str


METERS = (
    "auto", "powercap", "nvml", "amdsmi", "hwmon", "battery", "ipmi", "csv", "command", "prometheus", "declared",
    "none",
)  # fmt: skip
METER_SCOPES = ("cpu-package", "cpu-dram", "gpu-board", "platform", "machine")
"""What an external meter may be said to cover."""
_METER_KEYS = {"csv": ("csv",), "command": ("command",), "prometheus": ("prometheus_url", "prometheus_query")}
"""External meters and the keys that each of them needs; ``auto`` takes those that are given."""
_POSITIVE = (
    "rounds", "pilot_rounds", "sample_s", "warmup_limit_s", "slow_call_s", "cap_call_s", "load_limit_s",
    "memory_limit_bytes", "time_budget_s",
)  # fmt: skip
_TOP = ("name", "description", "seed", "measure", "energy", "workload")

MOST_LOOKS = 20
MOST_WORKLOADS = 100
_MOST = {
    "rounds": 1000, "pilot_rounds": 1000, "energy_rounds": 1000, "overdraft": 1.0, "sample_s": 3600.0,
    "lead_in_s": 3600.0, "warmup_limit_s": 3600.0, "quiet_limit_s": 3600.0, "slow_call_s": 1e6, "cap_call_s": 1e6,
    "load_limit_s": 1e6, "memory_limit_bytes": 2**50, "worker_memory_limit_bytes": 2**50, "time_budget_s": 1e7,
}  # fmt: skip
"""What nobody waits for or has; a config beyond it is a mistake or a trap."""
MOST_REPLICATES = 1000
_NAME = re.compile(r"[^./\\\s][^/\\\n\t]{0,99}")


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Read a config by path, or by the bare name of a shipped one, and apply ``KEY=VALUE`` overrides.

    Raises :class:`FrugalbenchError` when it does not exist, is not TOML, or holds an unknown key or a wrong type.
    """
    path = find_config(name)
    raw = read_toml(path)
    for override in overrides:
        _apply(raw, override)
    return parse(raw, str(path) if path == Path(name) else f"configs/{path.name}")


def find_config(name: str) -> Path:
    """The file that ``name`` stands for."""
    path = Path(name)
    try:
        if path.exists() and not path.is_dir():
            return path
    except OSError as problem:
        raise FrugalbenchError(f"{shown(name, 200)}: cannot be read: {problem.strerror}") from None
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise FrugalbenchError(f"{path}: no such config file; shipped configs: {', '.join(shipped_names())}")
    candidate = shipped("configs") / f"{name}.toml"
    if candidate.is_file():
        return candidate
    near = difflib.get_close_matches(name, shipped_names(), n=1, cutoff=0)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise FrugalbenchError(f"no config named '{name}'{hint} Give a path, or one of: {', '.join(shipped_names())}")


def shipped_names() -> list[str]:
    """Bare names of the configs that come with the package."""
    return sorted(path.stem for path in shipped("configs").glob("*.toml"))


def parse(raw: Mapping[str, Any], where: str) -> Config:
    """Validate a decoded TOML document."""
    if reason := fault(raw):
        raise FrugalbenchError(f"{where}: holds {reason}")
    _known_keys(raw, _TOP, where)
    workloads = raw.get("workload", [])
    if not isinstance(workloads, list) or not all(isinstance(item, dict) for item in workloads):
        raise FrugalbenchError(f"{where}: 'workload' must be a list of tables; write [[workload]]")
    if len(workloads) > MOST_WORKLOADS:
        raise FrugalbenchError(f"{where}: {len(workloads)} [[workload]] tables, more than {MOST_WORKLOADS}")
    for number, item in enumerate(workloads, 1):
        if not isinstance(item.get("name"), str):
            raise FrugalbenchError(f"{where}: [[workload]] number {number} has no 'name'")
    measure = _table(raw, "measure", Measure, where)
    energy = _table(raw, "energy", Energy, where)
    seed = _typed(raw.get("seed", 0), int, where, "seed")
    _check_ranges(measure, energy, seed, where)
    return Config(
        name=_name(raw, where),
        description=_typed(raw.get("description", ""), str, where, "description"),
        seed=seed,
        measure=measure,
        energy=energy,
        workloads=tuple(workloads),
        path=where,
    )


def _name(raw: Mapping[str, Any], where: str) -> str:
    """The run directory is named after it, so it may not lead out of its folder."""
    name = _typed(raw.get("name", Path(where).stem), str, where, "name")
    if "name" in raw and not _NAME.fullmatch(name):
        raise FrugalbenchError(
            f"{where}: 'name' {brief(name)} names a run directory: up to 100 characters, no slash, no dot in front"
        )
    return str(name)


def runs_code(config: Config) -> list[str]:
    """What ``config`` would execute beside this package, in words; empty for a config that only holds settings."""
    found = [f"code from {place}" for place in plugin.references(config).values()]
    command = config.energy.command
    found += [f"templates of {shown(name, 300)}" for name in lm_eval_tasks.files(config.workloads)]
    return found + ([f"the command {brief(' '.join(command))} ([energy] command)"] if command else [])


def require_permission(config: Config, allow_code: bool) -> None:
    """Raise :class:`FrugalbenchError` when ``config`` runs code and nobody allowed it."""
    if not allow_code and (found := runs_code(config)):
        raise FrugalbenchError(
            f"{config.path}: would run {', '.join(found[:3])}.\n"
            "Read that code first; if you trust it, add --allow-code."
        )


def _check_ranges(measure: Measure, energy: Energy, seed: int, where: str) -> None:
    looks = measure.looks
    increasing = all(first < second for first, second in itertools.pairwise(looks))
    if not looks or looks[0] < 2 or not increasing:
        raise FrugalbenchError(
            f"{where}: [measure] 'looks' must be increasing numbers from 2 on, not {brief(list(looks))}"
        )
    if len(looks) > MOST_LOOKS or looks[-1] > MOST_REPLICATES:
        raise FrugalbenchError(
            f"{where}: [measure] 'looks' are at most {MOST_LOOKS}, up to {MOST_REPLICATES} replicates"
        )
    for name, most in _MOST.items():
        if (value := getattr(measure, name, None)) is not None and not 0 <= value <= most:
            raise FrugalbenchError(f"{where}: [measure] '{name}' must lie between 0 and {most:g}, not {value:g}")
    if seed < 0:
        raise FrugalbenchError(f"{where}: 'seed' must not be negative, not {seed}")
    if not 1e-9 < measure.alpha < 1:
        raise FrugalbenchError(f"{where}: [measure] 'alpha' must lie between 0 and 1, not {measure.alpha}")
    for name in _POSITIVE:
        if getattr(measure, name) <= 0:
            raise FrugalbenchError(f"{where}: [measure] '{name}' must be above 0, not {getattr(measure, name)}")
    if (limit := measure.worker_memory_limit_bytes) is not None and limit <= 0:
        raise FrugalbenchError(f"{where}: [measure] 'worker_memory_limit_bytes' must be above 0, not {limit}")
    _check_energy(energy, f"{where}: [energy]")


def _check_energy(energy: Energy, where: str) -> None:
    if energy.meter not in METERS:
        near = difflib.get_close_matches(energy.meter, METERS, n=1, cutoff=0)
        raise FrugalbenchError(f"{where} unknown meter '{energy.meter}'; did you mean '{near[0]}'?")
    for kind, keys in _METER_KEYS.items():
        _check_external(energy, kind, keys, where)
    for key, allowed in (("unit", ("W", "J")), ("scope", METER_SCOPES)):
        if (value := getattr(energy, key)) not in allowed:
            raise FrugalbenchError(f"{where} '{key}' must be one of {', '.join(allowed)}, not {brief(value)}")
    if (period_s := energy.update_period_s) is not None and not 0 < period_s <= 3600:
        raise FrugalbenchError(f"{where} 'update_period_s' must lie between 0 and 3600, not {period_s:g}")
    if energy.prometheus_url and not energy.prometheus_url.startswith(("http://", "https://")):
        raise FrugalbenchError(f"{where} 'prometheus_url' must begin with http:// or https://")
    _check_declared(energy, where)


def _check_external(energy: Energy, kind: str, keys: Sequence[str], where: str) -> None:
    """Each key that an external meter needs is there, and none that nothing reads."""
    given = [key for key in keys if getattr(energy, key)]
    missing = [key for key in keys if key not in given]
    if given and energy.meter not in (kind, "auto"):
        raise FrugalbenchError(f'{where} \'{given[0]}\' is only read with meter = "{kind}" or "auto"')
    if missing and (given or energy.meter == kind):
        raise FrugalbenchError(f"{where} meter = \"{energy.meter}\" needs '{missing[0]}' too")


def _check_declared(energy: Energy, where: str) -> None:
    given = [watt for watt in (energy.idle_w_per_core, energy.tdp_w_per_core) if watt is not None]
    if any(not 0 <= watt < float("inf") for watt in given) or given != sorted(given):
        raise FrugalbenchError(f"{where} watts must not be negative, nor 'idle_w_per_core' above 'tdp_w_per_core'")
    if energy.meter == "declared" and not given:
        raise FrugalbenchError(f"{where} meter = \"declared\" needs 'idle_w_per_core', 'tdp_w_per_core' or both")
    if given and not energy.source:
        raise FrugalbenchError(f"{where} declared watts need a 'source': where they come from")


def _typed(value: Any, kind: type, where: str, key: str) -> Any:
    if type(value) is not kind:
        raise FrugalbenchError(f"{where}: '{key}' must be {kind.__name__}, not {brief(value)}")
    return value


def _table(raw: Mapping[str, Any], key: str, kind: Any, where: str) -> Any:
    table = raw.get(key, {})
    if not isinstance(table, dict):
        raise FrugalbenchError(f"{where}: '{key}' must be a table; write [{key}]")
    _known_keys(table, kind.__struct_fields__, f"{where}: [{key}]")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as problem:
        field = re.search(r"\$\.(\w+)", str(problem))
        named = f" '{field.group(1)}'" if field else ""
        raise FrugalbenchError(f"{where}: [{key}]{named}: {str(problem).split(' - at')[0]}") from None


def from_stored(document: Mapping[str, Any], where: str) -> Config:
    """The config that a manifest holds, checked like a file; raises like :func:`load_config`."""
    known = ("name", "description", "seed", "measure", "energy")
    raw = {key: document[key] for key in known if key in document}
    config = parse({**raw, "workload": document.get("workloads", [])}, where)
    return msgspec.structs.replace(config, path=str(document.get("path", where)))


def _known_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)
            raise FrugalbenchError(f"{where}: unknown key '{key}'; did you mean '{near[0]}'?")


def _apply(raw: dict[str, Any], override: str) -> None:
    if len(override) > MOST_TOML_BYTES:
        raise FrugalbenchError(f"--set {override[:60]}…: {len(override)} characters are more than anything here takes")
    key, equals, text = override.partition("=")
    if not equals:
        raise FrugalbenchError(f"--set {override}: write KEY=VALUE, e.g. --set measure.rounds=5")
    *tables, last = key.strip().split(".")
    for table in _targets(raw, tables, override):
        table[last] = _value(text)


def _targets(raw: dict[str, Any], tables: list[str], override: str) -> list[dict[str, Any]]:
    if tables[:1] == ["workload"]:
        items = raw.get("workload", [])
        known = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
        named = [item for item in known if len(tables) == 2 and item.get("name") == tables[1]]
        if not named:
            names = ", ".join(sorted({str(item.get("name")) for item in known}))
            raise FrugalbenchError(f"--set {override}: write workload.NAME.KEY=VALUE with one of: {names}")
        return named
    table = raw
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise FrugalbenchError(f"--set {override}: '{name}' is not a table")
    return [table]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
