"""Every backend in the table runs the same small block; a new one is covered by being listed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from frugalbench.backends import BACKENDS, backend
from frugalbench.backends.base import Options
from frugalbench.schema import FrugalbenchError
from frugalbench.workloads.layers import attention, onnx_export

PARAMS = {"model": "transformer-block", "seq": 16, "d_model": 64, "heads": 4, "d_ff": 96, "opset": 20}
TOLERANCE = 1e-4

pytestmark = pytest.mark.real


@dataclass
class Block:
    """A block's weights, and the same block in each form that a backend may take."""

    weights: dict[str, np.ndarray]
    folder: Path

    def take(self, kind: str):
        model = attention.block(self.weights, PARAMS["heads"])
        if kind == "module":
            return model
        path = self.folder / "block.onnx"
        if not path.exists():
            onnx_export.export(model, PARAMS, path)
        return path


def changed(weights, how):
    altered = {name: value.copy() for name, value in weights.items()}
    if how == "one weight":
        altered["down"][3, 5] += 0.5
    if how == "no attention":
        altered["merge"][:] = 0
    if how == "no feed-forward":
        altered["down"][:] = 0
    return altered


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    weights = attention.block_weights(PARAMS["d_model"], PARAMS["d_ff"], seed=0)
    return {
        how: Block(changed(weights, how), tmp_path_factory.mktemp("block"))
        for how in ("as it is", "one weight", "no attention", "no feed-forward")
    }


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=list(BACKENDS))
def runtime(request):
    found = backend(request.param)
    version, reason = found.available()
    if version is None:
        pytest.skip(reason)
    return found


def options(cache_dir, device="cpu"):
    return Options(threads=2, device=device, cache_dir=cache_dir, key="test", inputs=("x",), outputs=("hidden",))


def feed(batch, seed=0):
    shape = (batch, PARAMS["seq"], PARAMS["d_model"])
    return {"x": np.random.default_rng([seed, batch]).standard_normal(shape, dtype=np.float32)}


def error(runnable, blocks, inputs):
    answer = attention.block_answer(blocks["as it is"].weights, PARAMS["heads"], inputs["x"])
    output = runnable.fetch(runnable.run(runnable.prepare(inputs)))["hidden"]
    assert output.shape == answer.shape
    return np.abs(output - answer).max() / np.sqrt(np.mean(answer**2))


@pytest.mark.parametrize("name", list(BACKENDS))
def test_names_itself(name):
    found = backend(name)
    assert name == found.NAME
    assert found.TAKES in ("module", "onnx")
    assert found.FAMILY
    assert found.MOST_THREADS is None or found.MOST_THREADS >= 1
    assert "cpu" in found.DEVICES
    version, reason = found.available()
    assert (version is None) == bool(reason)


def test_right_answer_where_asked(runtime, blocks, cache_dir):
    examples = [feed(1), feed(3)]
    runnable = runtime.load(blocks["as it is"].take(runtime.TAKES), options(cache_dir), examples)
    assert max(error(runnable, blocks, inputs) for inputs in [*examples, feed(3, seed=1)]) < TOLERANCE
    placement = runnable.placement()
    assert placement.ran_as_asked
    assert placement.share_asked == 1.0
    assert sum(sum(kinds.values()) for kinds in placement.histogram().values()) == len(placement.nodes) > 0
    assert runnable.details["threads"] == min(2, runtime.MOST_THREADS or 2)
    summary = placement.summary(50)
    assert summary["executed"] == len(placement.nodes) >= sum(summary["inserted"].values())
    assert set(placement.time_s) <= set(placement.nodes)
    assert placement.share_time_asked in (None, 1.0)
    runnable.synchronize()
    start = runnable.first_start
    assert start.first_inference_s > 0 and start.note
    assert (start.load_s is None) == (runtime.TAKES == "module")
    assert start.cached or start.cached_compile_s is None


def test_outputs_outlive_the_next_call(runtime, blocks, cache_dir):
    runnable = runtime.load(blocks["as it is"].take(runtime.TAKES), options(cache_dir), [feed(1)])
    first = runnable.fetch(runnable.run(runnable.prepare(feed(1))))["hidden"]
    kept = first.copy()
    runnable.run(runnable.prepare(feed(1, seed=9)))
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("how", ["one weight", "no attention", "no feed-forward"])
def test_tolerance_bites(runtime, blocks, cache_dir, how):
    runnable = runtime.load(blocks[how].take(runtime.TAKES), options(cache_dir), [feed(1)])
    assert error(runnable, blocks, feed(1)) > 10 * TOLERANCE


def wrong_operator(graph):
    """The gate's sigmoid becomes a tanh."""
    next(node for node in graph.node if node.op_type == "Sigmoid").op_type = "Tanh"


def one_percent(graph):
    """The output is scaled by 1.01 at the end."""
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    last.output[0] = "before"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(1.01, np.float32), "factor"))
    graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], [graph.output[0].name]))


@pytest.mark.parametrize("injure", [wrong_operator, one_percent])
def test_an_injured_graph_exceeds_the_tolerance(runtime, blocks, cache_dir, tmp_path, injure):
    if runtime.TAKES != "onnx":
        pytest.skip("takes no graph")
    model = onnx.load(blocks["as it is"].take("onnx"))
    injure(model.graph)
    onnx.save(model, tmp_path / "injured.onnx")
    runnable = runtime.load(tmp_path / "injured.onnx", options(cache_dir), [feed(1)])
    assert error(runnable, blocks, feed(1)) > 10 * TOLERANCE


def test_unknown_device_is_refused(runtime, blocks, cache_dir):
    with pytest.raises(RuntimeError, match=r"runs on cpu.* not on abacus"):
        runtime.load(blocks["as it is"].take(runtime.TAKES), options(cache_dir, "abacus"), [feed(1)])


def test_second_compile_comes_from_the_cache(blocks, tmp_path):
    compiled = backend("torch-compile")
    if compiled.available()[0] is None:
        pytest.skip("no compiler")
    (first,), (second,) = (
        compiled.load(blocks["as it is"].take("module"), options(tmp_path), [feed(2)]).artefacts for _ in range(2)
    )
    assert (first.cached, second.cached) == (False, True)
    assert second.build_s == first.build_s > 0


def test_unknown_backend():
    with pytest.raises(FrugalbenchError, match="did you mean 'openvino'"):
        backend("openvin")
