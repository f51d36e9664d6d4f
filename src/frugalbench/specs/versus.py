"""Whatever the user names, against each other: Python callables or commands. Nothing of them runs here."""

import ast
import importlib.util
import shlex
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError, Plan
from frugalbench.specs.environments import holds, site_of

WORKLOAD = "versus"
REGIME = "calls"
CHECK_TOLERANCE = 1e-5
"""Largest difference of two answers over their root mean square that ``--check`` lets pass: fp32 sums in any order."""
SHELL_CHARACTERS = frozenset("|&;<>()$`*?[]#~{}\n")
"""A command line with any of these means something only to a shell."""


@dataclass(frozen=True)
class Options:
    """What all arms share."""

    commands: bool
    setups: tuple[str, ...]
    check: bool
    ignore_failure: bool
    threads: int
    seed: int
    envs: tuple[str, ...] = ()
    """Virtual environments or folders to import from: one arm in each of them, or one for each arm."""
    tokens: float = 1.0
    """Units of work in one call."""


def plan(arms: list[str], options: Options, least: int = 2) -> Plan:
    """One comparison of all arms; they are named as the user named them.

    Raises :class:`FrugalbenchError` for fewer than ``least`` arms, and for one that cannot be found.
    """
    arms, names, sites = _in_environments(arms, options)
    if len(arms) < least:
        raise FrugalbenchError(f"versus {arms[0]}: name at least two arms to compare")
    if options.setups and options.commands:
        raise FrugalbenchError("--setup: works with callables only; put a command's preparation into a file of its own")
    if len(options.setups) not in (0, 1, len(arms)):
        raise FrugalbenchError(f"--setup: given {len(options.setups)} times; give it once, or once for each arm")
    setups = options.setups * len(arms) if len(options.setups) == 1 else options.setups or ("",) * len(arms)
    shell = options.commands and any(SHELL_CHARACTERS & set(text) for text in arms)
    made = [_command(text, shell, options) if options.commands else _callable(text, setup, site)
            for text, setup, site in zip(arms, setups, sites, strict=True)]  # fmt: skip
    named = tuple(_arm(name, made[index], options) for index, name in enumerate(_names(names)))
    return Plan(
        seed=options.seed, comparisons=(Comparison(id=WORKLOAD, workload=WORKLOAD, arms=named, competes=False),)
    )


def _in_environments(arms: list[str], options: Options) -> tuple[list[str], list[str], list[str]]:
    """Arms, what to call them, and the folder that each imports from (empty: no environment of its own)."""
    envs = options.envs
    if not envs:
        return arms, arms, [""] * len(arms)
    if options.commands:
        raise FrugalbenchError("--env: works with callables only; a command names its own interpreter")
    if len(arms) == 1:
        arms = arms * len(envs)
    if len(envs) != len(arms):
        raise FrugalbenchError(f"--env: given {len(envs)} times for {len(arms)} arms; give one arm, or one for each")
    return arms, [f"{arm} @ {env}" for arm, env in zip(arms, envs, strict=True)], [site_of(env) for env in envs]


def _names(arms: list[str]) -> list[str]:
    """The arms as named; an arm named again gets a number."""
    names: list[str] = []
    for text in arms:
        again = (f"{text} #{number}" for number in count(2))
        names.append(text if text not in names else next(name for name in again if name not in names))
    return names


def _arm(name: str, found: tuple[dict[str, object], tuple[str, ...]], options: Options) -> Arm:
    params, imports = found
    case = Case(
        id=f"{WORKLOAD}/{name}",
        workload=WORKLOAD,
        variant=name,
        shape="",
        regime=REGIME,
        backend="command" if options.commands else "python",
        device="cpu",
        dtype="",
        params={"threads": options.threads, **params},
        tolerance=CHECK_TOLERANCE if options.check else None,
        cost=Cost(token=options.tokens, flop=0.0, weight_bytes=0.0, traffic_bytes=0.0),
    )
    return Arm(id=name, cases=(case,), imports=imports)


def _command(text: str, shell: bool, options: Options) -> tuple[dict[str, object], tuple[str, ...]]:
    try:
        words = ["/bin/sh", "-c", text] if shell else shlex.split(text)
    except ValueError as problem:
        raise FrugalbenchError(f"{text}: not a command line ({problem}); mind the quotes") from None
    if not words:
        raise FrugalbenchError("versus: an empty command")
    if shutil.which(words[0]) is None:
        raise FrugalbenchError(f"{text}: '{words[0]}' is not on the path")
    return {"command": words, "ignore_failure": options.ignore_failure}, ()


def _callable(text: str, setup: str, site: str) -> tuple[dict[str, object], tuple[str, ...]]:
    call, imports = _locate(text, "file.py:function or module:function", site)
    found: dict[str, object] = {"call": call, **({"site": site} if site else {})}
    if not setup:
        return found, _elsewhere(imports, site)
    prepare, more = _locate(setup, "--setup file.py:function or module:function", site)
    return {**found, "setup": prepare}, _elsewhere((*imports, *more), site)


def _elsewhere(imports: tuple[str, ...], site: str) -> tuple[str, ...]:
    """What a template may import for all arms: nothing that an environment has a version of."""
    return tuple(dict.fromkeys(name for name in imports if not (site and holds(site, name))))


def _locate(text: str, wanted: str, site: str) -> tuple[list[str], tuple[str, ...]]:
    """``[file or module, function]``, and what its template may import beforehand."""
    place, colon, function = text.rpartition(":")
    if not colon or not all(part.isidentifier() for part in function.split(".")):
        raise FrugalbenchError(f"{text}: write {wanted}, or add --command for command lines")
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise FrugalbenchError(f"{text}: there is no file {path}")
        return [str(path.resolve()), function], _imports(path, function)
    if site and holds(site, place):
        return [place, function], ()
    sys.path[:0] = [""] if "" not in sys.path else []
    try:
        found = importlib.util.find_spec(place.partition(".")[0])
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise FrugalbenchError(f"{text}: no module '{place}' here; for a file write {place}.py:{function}")
    return [place, function], ()


def _imports(path: Path, function: str) -> tuple[str, ...]:
    """Installed packages that the file imports at its top, so that each fresh process need not; and a check of it."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as problem:
        raise FrugalbenchError(f"{path}: not valid Python: {problem}") from None
    first = function.partition(".")[0]
    defined = {name for node in ast.walk(tree) for name in _defined(node)}
    if not defined & {first, "*"}:
        raise FrugalbenchError(f"{path}: defines no '{first}'")
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return tuple(dict.fromkeys(name for name in names if is_installed(name)))


def _defined(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.alias):
        return [(node.asname or node.name).partition(".")[0]]
    return [node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else []


def is_installed(name: str) -> bool:
    """Whether a module comes from an installed distribution or the standard library, not from beside the file."""
    top = name.partition(".")[0]
    return top in _distributed() or (top in sys.stdlib_module_names and top != "__future__")


@cache
def _distributed() -> frozenset[str]:
    """Top-level modules of all installed distributions; slow to find."""
    from importlib.metadata import packages_distributions

    return frozenset(packages_distributions())
