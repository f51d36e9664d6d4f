"""Tasks as data: the shipped ones, a user's without any code, and files that are refused in one line."""

import itertools
import json

import pytest

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import docstrings, tasks

GOOD = {
    "name": "reviews",
    "kind": "classify",
    "says": "Whether a review is good.",
    "source": "made up",
    "licence": "CC0-1.0",
    "items": "reviews.jsonl",
    "labels": ["bad", "good"],
}
LINES = [
    {"text": f"text {number}", "label": ("bad", "good")[number % 2], "group": f"g{number // 2}"} for number in range(80)
]


def toml(values):
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


def write(folder, lines=LINES, text=None, **changes):
    path = folder / "task.toml"
    path.write_text(toml({**GOOD, **changes}) if text is None else text)
    content = lines if isinstance(lines, str) else "\n".join(json.dumps(line) for line in lines)
    (folder / "reviews.jsonl").write_text(content)
    return str(path)


def refused(call, *args):
    with pytest.raises(FrugalbenchError) as problem:
        call(*args)
    assert "\n" not in str(problem.value)
    return str(problem.value)


@pytest.mark.parametrize("name", tasks.shipped())
def test_shipped_tasks_are_complete(name):
    task = tasks.load(name)
    assert task.name == name
    assert task.licence == {"reviews": "MIT", "spoken-words": "GPL-2.0-or-later"}.get(task.items, "PSF-2.0")
    assert task.items in tasks.BUILT_IN


@pytest.fixture(scope="module")
def some_sentences():
    modules = [module for modules in tasks.load("python-modules").labels.values() for module in modules]
    return [
        docstrings.Sentence(module, f"Sentence {number} of {module} says something.", f"{module}{number // 3}")
        for module in [*modules, "not_listed"]
        for number in range(60)
    ]


def test_the_shipped_classes_come_from_their_modules(monkeypatch, some_sentences):
    monkeypatch.setattr(tasks.docstrings, "sentences", lambda _cache: some_sentences)
    split = tasks.split_of("python-modules")
    assert {item.label for item in split.train} == set(tasks.load("python-modules").classes)
    assert not any("not_listed" in item.text for item in split.test)
    assert not {item.group for item in split.train} & {item.group for item in split.test}
    pairs = tasks.split_of("python-sentences").test
    assert len(pairs) == 1000 and all(item.text != item.match for item in pairs)
    few = tasks.split_of("python-modules", 200)
    assert (len(few.train), len(few.test)) == (200, 200)
    assert few.test == split.test[:200]


def test_a_task_of_ones_own_needs_no_code(tmp_path):
    name = write(tmp_path)
    assert tasks.load(name).classes == ("bad", "good")
    split = tasks.split_of(name)
    assert len(split.train) + len(split.test) == 80
    assert not {item.group for item in split.train} & {item.group for item in split.test}
    groups = [item.group for item in split.test]
    assert sum(a != b for a, b in itertools.pairwise(groups)) == len(set(groups)) - 1
    assert split == tasks.split_of(name)
    assert split.digest == tasks.split_of(name).digest != tasks.split_of(write(tmp_path, LINES[:-1])).digest


def test_the_order_of_lines_does_not_matter(tmp_path):
    first = tasks.split_of(write(tmp_path))
    again = tasks.split_of(write(tmp_path, [*LINES[40:], *LINES[:40]]))
    assert {item.text for item in first.test} == {item.text for item in again.test}


def test_given_splits_are_kept(tmp_path):
    lines = [{**line, "split": "train" if number < 20 else "test"} for number, line in enumerate(LINES)]
    split = tasks.split_of(write(tmp_path, lines))
    assert (len(split.train), len(split.test)) == (20, 60)


def test_running_text_may_be_a_plain_file(tmp_path):
    name = write(tmp_path, "Once upon a time.", kind="lm", items="story.txt", labels=[])
    (tmp_path / "story.txt").write_text("Once upon a time there was a text.")
    (item,) = tasks.split_of(name).test
    assert item.text == "Once upon a time there was a text."


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kind": "classfy"}, "did you mean 'classify'"),
        ({"name": "a/b"}, "'name' 'a/b' must be letters"),
        ({"says": " "}, "'says' is empty"),
        ({"labels": ["one"]}, "'labels' must name 2"),
        ({"labels": ["a", "a"]}, "names a class twice"),
        ({"labels": 3}, "not a task"),
        ({"colour": "red"}, "unknown field `colour`"),
        ({"train": -1}, "must not be negative"),
        ({"candidates": 1}, "'candidates' must lie between"),
        ({"items": "topics"}, "serves lm, not classify"),
        ({"items": "docstrings"}, "must map each label to modules"),
        ({"items": "gone.jsonl"}, "cannot be read: No such file"),
        ({"says": "a\u0007b"}, "a control character"),
    ],
)
def test_a_bad_task_file_is_refused_in_one_line(tmp_path, changes, why):
    name = write(tmp_path, **changes)
    message = refused(tasks.load, name)
    assert why in message and str(tmp_path) in message


@pytest.mark.parametrize(
    ("lines", "changes", "why"),
    [
        ([*LINES, {"text": "x", "label": "neutral"}], {}, "reviews.jsonl:81: label 'neutral' is none of the task's 2"),
        ([{"text": " ", "label": "bad"}], {}, "reviews.jsonl:1: 'text' is empty"),
        ([{"label": "bad"}], {}, "reviews.jsonl:1: not an item"),
        ([{"text": "x", "lable": "bad"}], {}, "unknown field `lable`"),
        ([{"text": "x", "label": "bad", "split": "valid"}], {}, "'split' must be 'train' or 'test'"),
        ("{not json", {}, "reviews.jsonl:1: not an item"),
        ("", {}, "holds no item to test on"),
        ([{**line, "split": "train"} for line in LINES], {}, "holds no item to test on"),
        ([{"text": str(n), "label": "bad"} for n in range(50)], {}, "no train item has the label 'good'"),
        ([{"text": "x"}] * 3, {"kind": "similarity"}, "'match' is empty"),
        ([{"text": "x", "match": "y", "split": "test"}], {"kind": "similarity"}, "needs two items"),
        ("\udcff", {}, "not UTF-8"),
    ],
)
def test_bad_items_are_refused_with_their_line(tmp_path, lines, changes, why):
    if lines == "\udcff":
        name = write(tmp_path, "", **changes)
        (tmp_path / "reviews.jsonl").write_bytes(b"\xff\xfe")
    else:
        name = write(tmp_path, lines, **changes)
    assert why in refused(tasks.load, name)


def test_what_is_no_toml_or_no_task_is_refused(tmp_path):
    assert "not valid TOML" in refused(tasks.load, write(tmp_path, text="name = "))
    assert "did you mean 'python-modules'" in refused(tasks.load, "python-module")
    assert "no such task file" in refused(tasks.load, str(tmp_path / "gone.toml"))
