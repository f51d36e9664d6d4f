"""Models that are a file alone: what stands before and behind them, and answers paired with float64's."""

import importlib.util
import io
import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from frugalbench.backends import onnxruntime as runtime
from frugalbench.specs import graph_set, packaged_tasks, spoken_words, tasks
from frugalbench.specs import onnx_task as spec
from frugalbench.specs.base import Settings
from frugalbench.specs.tasks import Example
from frugalbench.workloads import onnx_task as builder
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers import packaged_models
from frugalbench.workloads.layers.packaged_models import kept_characters
from workloads.fake_machine import Machine

TYPES = ["ascii", "other"]


def classifier(folder):
    """Of 2048 bytes the first: above 127 it is ``other``."""
    ends = [numpy_helper.from_array(np.array([value]), name) for name, value in (("zero", 0), ("one", 1))]
    half = numpy_helper.from_array(np.array([127.5], np.float32), "half")
    signs = numpy_helper.from_array(np.array([[-1.0, 1.0]], np.float32), "signs")
    nodes = [
        helper.make_node("Slice", ["bytes", "zero", "one", "one"], ["first"]),
        helper.make_node("Cast", ["first"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["number", "half"], ["above"]),
        helper.make_node("MatMul", ["above", "signs"], ["scores"]),
    ]
    inputs = [helper.make_tensor_value_info("bytes", TensorProto.INT32, ("batch", 2048))]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ("batch", 2))]
    graph = helper.make_graph(nodes, "bytes", inputs, outputs, [*ends, half, signs])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    settings = {"beg_size": 1024, "end_size": 1024, "block_size": 4096, "padding_token": 256}
    (folder / "config.min.json").write_text(json.dumps({**settings, "target_labels_space": TYPES}))


@pytest.fixture
def task(tmp_path, monkeypatch):
    classifier(tmp_path)
    stand_in = graph_set.Packaged("magika", "magika", "model.onnx")
    monkeypatch.setattr(graph_set.Packaged, "path", lambda _self: tmp_path / "model.onnx")
    monkeypatch.setitem(graph_set.PACKAGED, "magika", stand_in)
    packaged_tasks.labels.cache_clear()
    lines = []
    for number in range(11):
        (tmp_path / f"{number}.bin").write_bytes(b"\n" + bytes([10 * number + (100 if number % 2 else 33)] * 9))
        lines.append({"path": f"{number}.bin", "label": TYPES[10 * number + (100 if number % 2 else 33) > 127]})
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "own.toml").write_text(
        'name = "own"\nkind = "file-type"\nsays = "x"\nsource = "x"\nlicence = "x"\nitems = "items.jsonl"\n'
    )
    yield str(tmp_path / "own.toml")
    packaged_tasks.labels.cache_clear()


def bound(task, variant, folder, replicate=1):
    options = {"backends": ["onnxruntime", "torch-eager"], "tasks": [task], "batch": 4}
    found = spec.expand(Settings("onnx_task", "cpu", 2, 7, options, "c.toml"), Machine()).comparisons
    assert [item.arms[0].cases[0].variant for item in found] == ["onnx-float64", "onnxruntime"]
    arm = next(item.arms[0] for item in found if item.arms[0].cases[0].variant == variant)
    context = Context(7, 2, "cpu", folder, folder, replicate)
    return builder.load(arm, context).bind(arm.cases[0])


@pytest.mark.real
def test_a_runtime_answers_what_float64_answers_and_again(task, tmp_path):
    exact, ours = (bound(task, variant, tmp_path) for variant in (spec.FILE_BASELINE, "onnxruntime"))
    assert exact.settled and ours.settled and ours.facts["accuracy"].value == 1.0
    names = ("items", "correct", "starts", "model_digest")
    assert [exact.details[name] for name in names] == [ours.details[name] for name in names]
    assert ours.details["items"] == 11 and ours.details["placement"]
    again = bound(task, "onnxruntime", tmp_path, replicate=2)
    assert again.details["repeated"] == again.details["same"] == 4 and "correct" not in again.details


@pytest.mark.real
def test_a_wrong_runtime_loses_items(task, tmp_path, monkeypatch):
    fetch = runtime.OnnxRuntimeRunnable.fetch
    monkeypatch.setattr(
        runtime.OnnxRuntimeRunnable, "fetch", lambda self, outputs: {k: -v for k, v in fetch(self, outputs).items()}
    )
    assert bound(task, "onnxruntime", tmp_path).facts["accuracy"].value == 0.0


def test_a_type_that_the_model_does_not_know_is_refused(task, tmp_path):
    (tmp_path / "items.jsonl").write_text(json.dumps({"path": "1.bin", "label": "asci"}))
    with pytest.raises(tasks.FrugalbenchError, match="unknown label 'asci'; did you mean 'ascii'"):
        tasks.load(task)


@pytest.mark.usefixtures("task")
def test_what_the_classifier_gets_is_both_ends_without_blanks(tmp_path):
    model = packaged_models.FileTypes(tmp_path / "model.onnx", 2)
    short = model.tokens(b"  ab \n")
    assert [*short[:5]] == [*b"ab \n", 256] and [*short[-5:]] == [256, *b"  ab"]
    long = model.tokens(bytes(range(33, 126)) * 100)
    assert list(long[:3]) == [33, 34, 35] and list(long[-2:]) == [124, 125] and len(long) == 2048
    assert model.example()["bytes"].shape == (2, 2048)


@pytest.mark.parametrize(
    ("text", "read", "kept"),
    [("abc", "abc", "111"), ("abc", "xabc", "111"), ("abc", "ac", "101"), ("abc", "axc", "101"), ("abc", "", "000"),
     ("aab", "ab", "011"), ("ab", "ba", "00")],
)  # fmt: skip
def test_characters_are_aligned_with_fewest_edits(text, read, kept):
    assert kept_characters(text, read) == [bit == "1" for bit in kept]


class Reader(packaged_models.TextLines):
    characters = ["", "a", "b", " "]


def test_a_line_is_read_step_by_step_and_repeats_count_once():
    pytest.importorskip("PIL")
    steps = [1, 1, 0, 1, 3, 2, 2, 0]
    scores = np.eye(4)[[steps, [0] * 8]]
    model = Reader(None, 2)
    items = [Example(text="aa b", group="1"), Example(text="b", group="2")]
    said = model.answer(lambda feed: {"y": scores} if feed["x"].shape == (2, 3, 48, 320) else {}, items)
    assert said == ["aab", ""]
    found = packaged_models.judged("text-line", items, said)
    assert found.correct.tolist() == [True] * 3 + [False]
    assert found.starts.tolist() == [True, False, False, True]


def test_a_drawn_line_is_the_same_again_and_an_image_of_ones_own_fits():
    pytest.importorskip("PIL")
    from PIL import Image

    from frugalbench.workloads.layers import line_images

    first, again = (line_images.pixels(line_images.drawn("deque:42")) for _ in range(2))
    assert (first == again).all() and first.shape == (3, 48, 320) and 0.05 < first.std() < 1
    stream = io.BytesIO()
    Image.new("RGB", (1000, 20), (255, 0, 0)).save(stream, "PNG")
    wide = line_images.pixels(line_images.opened(stream.getvalue()))
    assert wide[:, 20, 300].tolist() == [-1.0, -1.0, 1.0]
    with pytest.raises(RuntimeError, match="image cannot be read"):
        line_images.opened(b"no image")


def sound(*levels):
    return packaged_models.Example(
        text="x", label="speech", match=spoken_words.written(np.repeat(levels, 512)).decode("latin-1"), group="g"
    )


def test_speech_is_one_loud_step_and_the_state_is_carried_on():
    seen = []

    def run(feed):
        seen.append(feed["state"].max())
        assert feed["input"].shape == (3, 576) and feed["sr"] == 16_000
        return {"output": np.abs(feed["input"][:, 64:]).max(axis=1)[:, None], "stateN": feed["state"] + 1}

    model = packaged_models.Speech(None, 3)
    assert model.answer(run, [sound(0.1, 0.1), sound(0.1, 0.7, 0.1, 0.1)]) == ["silence", "speech"]
    assert seen == [0, 1, 2, 3]
    assert model.answer(run, [sound(0.4)]) == ["silence"]


@pytest.mark.real
@pytest.mark.parametrize("kind", packaged_tasks.KINDS)
def test_real_models_answer_their_tasks(kind):
    """Where the packages are: most items are right, and the classifier's first choices are its own package's."""
    name = packaged_tasks.MODEL_OF[kind]
    path = graph_set.PACKAGED[name].path()
    task = next(task for task, kinds in packaged_tasks.BUILT_IN.items() if kind in kinds)
    if path is None or packaged_tasks.missing(task) or importlib.util.find_spec("PIL") is None:
        pytest.skip(f"{name} or what its task needs is not installed")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    model = packaged_models.answerer(kind, path, 8)
    items = tasks.split_of(task, 40).test
    said = [
        text
        for part in packaged_models.batches(items, 8)
        for text in model.answer(lambda feed: dict(zip(names, session.run(names, feed), strict=True)), part)
    ]
    assert packaged_models.judged(kind, items, said).correct.mean() > 0.7
    if kind == packaged_tasks.FILE_TYPE:
        from magika import Magika

        own = Magika()
        theirs = [str(own.identify_bytes(packaged_tasks.content(item.match)).dl.label) for item in items]
        assert said == theirs
