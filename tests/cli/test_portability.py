"""``portability`` and ``bisect`` as commands: the page, exit codes, and one clear line for every bad file."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_files import WIDTH, chain, made, save, spoilt, weights, with_type

SHORT = ("--backends", "onnxruntime", "--replicates", "1", "--time-budget", "30")


@pytest.fixture
def model(tmp_path):
    return save(chain(), tmp_path / "chain.onnx")


@pytest.mark.real
def test_one_page_on_a_model(call, model):
    found = call("portability", model, *SHORT)
    assert found.code == 0, found.err
    for part in ("chain:", "opset ai.onnx 20", "MatMul 3", "onnxruntime pass", "batch-8", "Φ over 1 backend", "stop",
                 "first start of", "file cache was warm"):  # fmt: skip
        assert part in found.out
    assert max(len(line) for line in found.out.splitlines()) <= 100


@pytest.mark.real
def test_an_operator_that_no_runtime_has_is_a_row_and_a_reason(call, tmp_path):
    model = made([helper.make_node("Mystery", ["x"], ["y"], domain="abroad")], {}, domains=("abroad",))
    found = call("portability", save(model, tmp_path / "custom.onnx"), *SHORT, "--json")
    assert found.code == 1
    answer = found.json
    (row,) = answer["backends"]
    assert row["outcome"] in ("load error", "no reference") and row["passed"] == 0
    assert answer["phi"] == [] or answer["phi"][0]["phi"] == 0
    assert any("abroad.Mystery" in line for line in answer["blockers"])


@pytest.mark.real
def test_the_user_s_own_inputs_are_taken_and_checked(call, model, tmp_path):
    feed = tmp_path / "feed.npz"
    np.savez(feed, x=np.ones((2, WIDTH), np.float32))
    found = call("portability", model, *SHORT, "--input", feed, "--nodes", "--json")
    assert found.code == 0, found.err
    assert [item["regime"] for item in found.json["backends"][0]["latencies"]] == ["as-given"]
    nodes = found.json["nodes"]["onnxruntime"]
    assert {node["operator"] for node in nodes} >= {"MatMul", "Tanh"}
    assert all(node["place"] == "CPUExecutionProvider" and node["dtype"] == "float" for node in nodes)
    assert sum(node["time_share"] for node in nodes) == pytest.approx(1)
    np.savez(feed, z=np.ones(2))
    assert "holds z; the model takes x" in call("portability", model, *SHORT, "--input", feed).is_problem().err
    np.savez(feed, x=np.ones((2, 3), np.float32))
    said = f"'x' is of shape [2, 3]; the model takes [batch, {WIDTH}]"
    assert said in call("bisect", model, "--input", feed).is_problem().err
    assert "no such file" in call("portability", model, *SHORT, "--input", tmp_path / "none.npz").is_problem().err


@pytest.mark.real
def test_bisect_names_the_node_and_exits_with_one(call, model, tmp_path):
    wrong = save(chain(w2=weights()["w2"] * np.float32(1.01)), tmp_path / "wrong.onnx")
    found = call("bisect", wrong, "--against", model, "--json")
    assert (found.code, found.json["node"]["name"]) == (1, "second")
    assert "agrees" in call("bisect", model).out


def bad(kind, folder):
    path = folder / "bad.onnx"
    if kind == "text":
        path.write_text("this is no model")
    elif kind == "truncated":
        path.write_bytes(save(chain(), path).read_bytes()[:900])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "huge":
        with path.open("wb") as stream:
            stream.truncate(3 * 2**30)
    elif kind == "new opset":
        save(chain(), path)
        model = onnx.load(path)
        model.opset_import[0].version = 99
        save(model, path)
    elif kind == "new IR":
        model = chain()
        model.ir_version = 99
        save(model, path)
    elif kind == "zero":
        save(made([helper.make_node("Relu", ["x"], ["y"])], {}, x=("batch", 0)), path)
    elif kind == "vast":
        save(made([helper.make_node("Relu", ["x"], ["y"])], {}, x=("batch", 2**30)), path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        save(spoilt(0, takes="d"), path)
    elif kind == "words":
        save(with_type("input", helper.make_tensor_type_proto(TensorProto.STRING, [2])), path)
    elif kind.startswith("external"):
        save(external("../secret" if kind.endswith("outside") else "missing.bin"), path)
    return path


def external(location):
    model = made([helper.make_node("MatMul", ["x", "w"], ["y"])], {})
    tensor = TensorProto(name="w", dims=(WIDTH, WIDTH), data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    model.graph.initializer.append(tensor)
    return model


BAD = {
    "text": "not an ONNX model",
    "truncated": "not an ONNX model, or a damaged one",
    "empty": "0 bytes",
    "huge": "3221225472 bytes",
    "new opset": "opset 99 is newer",
    "new IR": "IR version 99 is newer",
    "zero": "dimension of 0",
    "vast": "choose smaller sizes",
    "external outside": "leads out of the model's folder",
    "external missing": "where no file is",
    "absent": "no such model file",
    "folder": "is a folder",
    "loop": "its nodes run in a loop: node 1 (MatMul first) waits for itself",
    "words": "its input 'x' holds text; give it with --input",
}


@pytest.mark.real
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_clear_line(call, tmp_path, kind):
    assert BAD[kind] in call("portability", bad(kind, tmp_path), *SHORT).is_problem().err


@pytest.mark.parametrize(
    "options,said",
    [
        (("--dim", "batch"), "write NAME=N"),
        (("--dim", "batch=two"), "write NAME=N"),
        (("--backends", "onnxruntim"), "did you mean 'onnxruntime'"),
        (("--replicates", "0"), "--replicates: must be at least 1"),
        (("--time-budget", "nan"), "--time-budget"),
    ],
)
def test_bad_options(call, tmp_path, options, said):
    assert said in call("portability", tmp_path / "any.onnx", *options).is_problem().err


@pytest.mark.real
def test_bad_requests_of_bisect(call, model, tmp_path):
    assert "above 0" in call("bisect", model, "--tolerance", "0").is_problem().err
    assert "no such file" in call("bisect", model, "--against", tmp_path / "none.onnx").is_problem().err
    assert "did you mean" in call("bisect", model, "--backend", "openvin").is_problem().err
    assert "no such dimension" in call("bisect", model, "--dim", "seq=3").is_problem().err
