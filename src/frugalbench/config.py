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


class Measure(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a comparison is measured. Defaults are those of a careful run; ``smoke`` overrides some."""

    looks: tuple[int, ...] = (6, 10, 16, 24)
    """Numbers of replicates after which the data are looked at; alpha is split evenly over the looks."""
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
    time_budget_s: float = 1200.0
    energy_rounds: int = 1


class Energy(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which meter to read, and the declared model that stands in (tier ``modelled``) where none can be read."""

    meter: str = "auto"
    """``auto``, ``powercap``, ``nvml`` or ``none``."""
    idle_w_per_core: float | None = None
    tdp_w_per_core: float | None = None
    source: str = ""


class Config(Frozen, frozen=True, kw_only=True):
    """A whole config file."""

    name: str
    description: str
    seed: int
    measure: Measure
    energy: Energy
    workloads: tuple[dict[str, Any], ...]
    path: str


METERS = ("auto", "powercap", "nvml", "declared", "none")
_POSITIVE = (
    "rounds", "pilot_rounds", "sample_s", "warmup_limit_s", "slow_call_s", "cap_call_s", "load_limit_s",
    "memory_limit_bytes", "time_budget_s",
)  # fmt: skip
_TOP = ("name", "description", "seed", "measure", "energy", "workload")


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Read a config by path, or by the bare name of a shipped one, and apply ``KEY=VALUE`` overrides.

    Raises :class:`FrugalbenchError` when it does not exist, is not TOML, or holds an unknown key or a wrong type.
    """
    path = find_config(name)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise FrugalbenchError(f"{path}: not valid TOML: {problem}") from None
    except OSError as problem:
        raise FrugalbenchError(f"{path}: cannot be read: {problem.strerror}") from None
    for override in overrides:
        _apply(raw, override)
    return parse(raw, str(path) if path == Path(name) else f"configs/{path.name}")


def find_config(name: str) -> Path:
    """The file that ``name`` stands for."""
    path = Path(name)
    if path.is_file():
        return path
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
    _known_keys(raw, _TOP, where)
    workloads = raw.get("workload", [])
    if not isinstance(workloads, list) or not all(isinstance(item, dict) for item in workloads):
        raise FrugalbenchError(f"{where}: 'workload' must be a list of tables; write [[workload]]")
    for number, item in enumerate(workloads, 1):
        if not isinstance(item.get("name"), str):
            raise FrugalbenchError(f"{where}: [[workload]] number {number} has no 'name'")
    measure = _table(raw, "measure", Measure, where)
    energy = _table(raw, "energy", Energy, where)
    seed = _typed(raw.get("seed", 0), int, where, "seed")
    _check_ranges(measure, energy, seed, where)
    return Config(
        name=_typed(raw.get("name", Path(where).stem), str, where, "name"),
        description=_typed(raw.get("description", ""), str, where, "description"),
        seed=seed,
        measure=measure,
        energy=energy,
        workloads=tuple(workloads),
        path=where,
    )


def _check_ranges(measure: Measure, energy: Energy, seed: int, where: str) -> None:
    looks = measure.looks
    increasing = all(first < second for first, second in itertools.pairwise(looks))
    if not looks or looks[0] < 2 or not increasing:
        raise FrugalbenchError(f"{where}: [measure] 'looks' must be increasing numbers from 2 on, not {list(looks)}")
    if seed < 0:
        raise FrugalbenchError(f"{where}: 'seed' must not be negative, not {seed}")
    if not 0 < measure.alpha < 1:
        raise FrugalbenchError(f"{where}: [measure] 'alpha' must lie between 0 and 1, not {measure.alpha}")
    for name in _POSITIVE:
        if getattr(measure, name) <= 0:
            raise FrugalbenchError(f"{where}: [measure] '{name}' must be above 0, not {getattr(measure, name)}")
    if energy.meter not in METERS:
        near = difflib.get_close_matches(energy.meter, METERS, n=1, cutoff=0)
        raise FrugalbenchError(f"{where}: [energy] unknown meter '{energy.meter}'; did you mean '{near[0]}'?")
    if (energy.idle_w_per_core or 0) < 0 or (energy.tdp_w_per_core or 0) < 0:
        raise FrugalbenchError(f"{where}: [energy] watts must not be negative")


def _typed(value: Any, kind: type, where: str, key: str) -> Any:
    if type(value) is not kind:
        raise FrugalbenchError(f"{where}: '{key}' must be {kind.__name__}, not {value!r}")
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


def _known_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)
            raise FrugalbenchError(f"{where}: unknown key '{key}'; did you mean '{near[0]}'?")


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise FrugalbenchError(f"--set {override}: write KEY=VALUE, e.g. --set measure.rounds=5")
    *tables, last = key.strip().split(".")
    for table in _targets(raw, tables, override):
        table[last] = _value(text)


def _targets(raw: dict[str, Any], tables: list[str], override: str) -> list[dict[str, Any]]:
    if tables[:1] == ["workload"]:
        named = [item for item in raw.get("workload", []) if len(tables) == 2 and item.get("name") == tables[1]]
        if not named:
            names = ", ".join(sorted({str(item.get("name")) for item in raw.get("workload", [])}))
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
    except tomllib.TOMLDecodeError:
        return text
