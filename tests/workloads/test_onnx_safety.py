"""What an ONNX file may refer to: data beside it, and nothing else; looked at without any runtime."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frugalbench.workloads import onnx_safety
from frugalbench.workloads.onnx_safety import UnsafeModel, check_model

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def external(place: str, name: str = "w") -> "TensorProto":
    """A tensor whose values lie at ``place``."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", place), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(*initializers: "TensorProto", nodes=(), name="g"):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    return helper.make_graph([*nodes, helper.make_node("Identity", ["x"], ["y"])], name, [x], [y], list(initializers))


def saved(path: Path, model) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model's folder, with data in it and a secret outside."""
    (tmp_path / "secret").write_bytes(b"s" * 16)
    inside = tmp_path / "model"
    (inside / "data").mkdir(parents=True)
    (inside / "data" / "w.bin").write_bytes(bytes(16))
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "folder-link").symlink_to(tmp_path)
    (inside / "good-link").symlink_to(inside / "data" / "w.bin")
    return inside


def test_a_model_without_external_data(folder) -> None:
    tensor = numpy_helper.from_array(np.arange(1000, dtype=np.float32), "w")
    assert check_model(saved(folder / "m.onnx", helper.make_model(graph(tensor)))) == ()


@pytest.mark.parametrize("place", ["data/w.bin", "./data/w.bin", "good-link"])
def test_data_beside_the_model(folder, place) -> None:
    path = saved(folder / "m.onnx", helper.make_model(graph(external(place))))
    assert check_model(path) == (folder / "data" / "w.bin",)


OUTSIDE = (
    "/etc/passwd", "../secret", "data/../../secret", "link", "folder-link/secret", "C:\\x", "\\\\host\\x", "..\\secret",
    "nowhere", "data", "", "\0", "x" * 3000, "data/w.bin\0", "m\x1b[2J",
)  # fmt: skip


@pytest.mark.parametrize("place", OUTSIDE, ids=ascii)
def test_anything_else_is_refused_in_one_line(folder, place) -> None:
    path = saved(folder / "m.onnx", helper.make_model(graph(external(place))))
    with pytest.raises(UnsafeModel) as problem:
        check_model(path)
    message = str(problem.value)
    assert "m.onnx" in message and "\n" not in message and "\x1b" not in message and len(message) < 600


def hidden(place: str):
    """The same reference, at each place of a model that can hold a tensor."""
    tensor = external(place)
    attribute = helper.make_node("Constant", [], ["c"], value=tensor)
    several = helper.make_node("Own", [], ["c"], tensors=[tensor])
    inner = graph(tensor, name="inner")
    branch = helper.make_node("If", ["x"], ["c"], then_branch=inner, else_branch=graph(name="e"))
    deep = helper.make_node("If", ["x"], ["c"], then_branch=graph(nodes=[branch], name="d"), else_branch=inner)
    sparse = helper.make_sparse_tensor(tensor, helper.make_tensor("i", TensorProto.INT64, [4], [0, 1, 2, 3]), [9])
    function = helper.make_function("own", "F", ["a"], ["b"], [attribute], [helper.make_opsetid("", 20)])
    with_sparse = graph()
    with_sparse.sparse_initializer.add().CopyFrom(sparse)
    with_training = helper.make_model(graph())
    with_training.training_info.add().algorithm.CopyFrom(inner)
    yield "attribute", helper.make_model(graph(nodes=[attribute]))
    yield "list", helper.make_model(graph(nodes=[several]))
    yield "branch", helper.make_model(graph(nodes=[branch]))
    yield "branch in a branch", helper.make_model(graph(nodes=[deep]))
    yield "sparse", helper.make_model(with_sparse)
    yield "function", helper.make_model(graph(), functions=[function])
    yield "training", with_training


@pytest.mark.parametrize("name", [name for name, _ in hidden("data/w.bin")])
def test_wherever_a_tensor_can_be(folder, name) -> None:
    assert check_model(saved(folder / "m.onnx", dict(hidden("data/w.bin"))[name])) == (folder / "data" / "w.bin",)
    with pytest.raises(UnsafeModel, match="leads out"):
        check_model(saved(folder / "m.onnx", dict(hidden("../secret"))[name]))


def test_the_last_of_two_values_counts_as_in_protobuf(folder) -> None:
    """A second value of one field overrides the first, so the check must read the same one as the runtime."""
    entry = onnx.StringStringEntryProto(key="location", value="data/w.bin").SerializeToString()
    entry += onnx.StringStringEntryProto(value="../secret").SerializeToString()
    tensor = external("data/w.bin")
    tensor.ClearField("external_data")
    raw = tensor.SerializeToString() + bytes([13 << 3 | 2, len(entry)]) + entry
    reread = TensorProto.FromString(raw)
    assert reread.external_data[0].value == "../secret"
    with pytest.raises(UnsafeModel):
        check_model(saved(folder / "m.onnx", helper.make_model(graph(reread))))


def test_sizes_are_bounded(folder, monkeypatch) -> None:
    path = saved(folder / "m.onnx", helper.make_model(graph(external("data/w.bin"))))
    with pytest.raises(UnsafeModel, match="bytes"):
        check_model(path, most_bytes=10)
    monkeypatch.setattr(onnx_safety, "MOST_DATA_BYTES", 15)
    with pytest.raises(UnsafeModel, match="external data have 16 bytes"):
        check_model(path)
    (folder / "empty.onnx").touch()
    for bad in (folder / "empty.onnx", folder / "none.onnx", folder):
        with pytest.raises(UnsafeModel):
            check_model(bad)


@given(data=st.binary(min_size=1, max_size=200), cut=st.integers(0, 400))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_damaged_models_are_refused_or_read(folder, data, cut) -> None:
    whole = helper.make_model(graph(external("../secret"))).SerializeToString()
    (folder / "m.onnx").write_bytes(whole[:cut] + data)
    try:
        check_model(folder / "m.onnx")
    except UnsafeModel:
        return


def test_nothing_is_imported_for_it() -> None:
    names = {name for name, module in vars(onnx_safety).items() if getattr(module, "__name__", "") in sys.modules}
    assert not names & {"onnx", "torch", "onnxruntime", "numpy"}
