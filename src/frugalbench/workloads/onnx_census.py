"""The test cases that the installed ``onnx`` carries, written once as files and listed with what each of them uses.

The layout is ONNX's own: a folder per case with ``model.onnx`` and ``test_data_set_0/input_0.pb``, ``output_0.pb`` ...;
``data.json`` has the tolerances. Node cases draw inputs from numpy's global generator while they are made, so it is
seeded first and the same versions give the same files. onnx is imported late.
"""

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from frugalbench.schema import Artefact
from frugalbench.specs.onnx_conformance import own_cases
from frugalbench.workloads.onnx_safety import check_model

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
"""As ``onnx.backend.test`` names them; ``real`` are the light image classifiers."""
RTOL, ATOL = 1e-3, 1e-7
"""Of cases that give none, as in ``onnx.backend.test``."""
_LAYOUT = 1
_LIGHT = "onnx/backend/test/data/light/"


class Entry(msgspec.Struct, frozen=True):
    """A case of the census, and what it uses."""

    name: str
    kind: str
    """One of :data:`KINDS`, or ``own``."""
    subject: str
    """The operator that a node case was written for, also where it is expanded into others; else the kind."""
    operators: tuple[str, ...]
    domains: tuple[str, ...]
    """``ai.onnx`` or another, of all operators and operator sets."""
    opset: int
    """Of ``ai.onnx``; 0 where it is not used."""
    ir: int
    types: tuple[str, ...]
    """Element types of inputs, outputs and initializers, as ``onnx.TensorProto.DataType`` names them."""


class Census(msgspec.Struct, frozen=True):
    """The cases under ``folder``; ``without_data`` names those whose files the package does not carry."""

    folder: str
    suite: str
    entries: tuple[Entry, ...]
    without_data: tuple[str, ...] = ()
    build_s: float = 0.0

    def drawn(self, seed: int, sample: int) -> tuple[Entry, ...]:
        """All entries, or ``sample`` of them drawn by ``seed``, in the order of the census."""
        if not sample or sample >= len(self.entries):
            return self.entries
        chosen = set(random.Random(seed).sample([entry.name for entry in self.entries], sample))
        return tuple(entry for entry in self.entries if entry.name in chosen)


def shipped(cache_dir: Path, seed: int) -> tuple[Census, Artefact]:
    """The census of the installed onnx, from the cache where it has been written before."""
    import onnx

    from frugalbench.backends.base import locked

    name = f"onnx-{onnx.__version__}-numpy-{np.__version__}-{seed}-v{_LAYOUT}"
    home = cache_dir / "onnx_census"
    folder = home / name
    with locked(home / f"{name}.lock"):
        cached = (folder / "index.json").is_file()
        if not cached:
            _write(folder, f"onnx {onnx.__version__}", seed)
    census = msgspec.json.decode((folder / "index.json").read_bytes(), type=Census)
    artefact = Artefact(name="census of ONNX test cases", build_s=census.build_s, cached=cached)
    return msgspec.structs.replace(census, folder=str(folder / "cases")), artefact


def own(folder: Path) -> Census:
    """Cases of the user's. Raises :class:`UnsafeModel` for what is no model, and for data missing or elsewhere."""
    import onnx

    entries = []
    for name in own_cases(folder):
        path = folder / name / "model.onnx"
        check_model(path)
        model = onnx.load_model(str(path), load_external_data=False)
        entries.append(_entry(name, "own", model, ""))
    return Census(str(folder), folder.name, tuple(entries))


def _write(folder: Path, suite: str, seed: int) -> None:
    """Write all cases beside ``folder`` and move them there, whole."""
    begin = time.perf_counter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as text:
        made, lacking = Path(text) / "made", list[str]()
        (made / "cases").mkdir(parents=True)
        entries = tuple(_written(made / "cases", seed, lacking))
        census = Census("", suite, entries, tuple(lacking), time.perf_counter() - begin)
        (made / "index.json").write_bytes(msgspec.json.encode(census))
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def _written(folder: Path, seed: int, lacking: list[str]) -> Iterator[Entry]:
    subjects: dict[str, str] = {}
    for kind, case in _package_cases(seed):
        target = folder / case.name
        try:
            model = _write_node(case, target) if kind == "node" else _copy(case, target)
        except FileNotFoundError:
            lacking.append(case.name)
            shutil.rmtree(target, ignore_errors=True)
            continue
        subject = _subject(case.name, model, subjects) if kind == "node" else kind
        (target / "data.json").write_text(json.dumps({"rtol": case.rtol, "atol": case.atol}))
        yield _entry(case.name, kind, model, subject)


def _package_cases(seed: int) -> Iterator[tuple[str, Any]]:
    from onnx.backend.test.loader import load_model_tests

    state = np.random.get_state()
    np.random.seed(seed)
    try:
        for kind in KINDS:
            yield from ((kind, case) for case in sorted(load_model_tests(kind=kind), key=lambda case: case.name))
    finally:
        np.random.set_state(state)


def _subject(name: str, model: Any, subjects: dict[str, str]) -> str:
    """Names sort ``test_x`` before ``test_x_expanded``, which has the body of x's function in place of x."""
    origin = name.split("_expanded")[0]
    return subjects.setdefault(origin, model.graph.node[0].op_type)


def _write_node(case: Any, target: Path) -> Any:
    values = target / "test_data_set_0"
    values.mkdir(parents=True)
    model = case.model
    (target / "model.onnx").write_bytes(model.SerializeToString())
    for what, infos, given in zip(
        ("input", "output"), (model.graph.input, model.graph.output), case.data_sets[0], strict=True
    ):
        for number, (info, value) in enumerate(zip(infos, given, strict=True)):
            (values / f"{what}_{number}.pb").write_bytes(_proto(value, info.type).SerializeToString())
    return model


def _proto(value: Any, kind: Any) -> Any:
    import onnx
    from onnx import numpy_helper

    if kind.HasField("optional_type"):
        element = kind.optional_type.elem_type
        inner = onnx.OptionalProto.SEQUENCE if element.HasField("sequence_type") else onnx.OptionalProto.TENSOR
        return numpy_helper.from_optional(_plain(value), dtype=None if value is not None else inner)
    if kind.HasField("sequence_type"):
        return numpy_helper.from_list([_plain(item) for item in value], dtype=onnx.SequenceProto.TENSOR)
    return value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value))


def _plain(value: Any) -> Any:
    from onnx import TensorProto, numpy_helper

    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return value if value is None else np.asarray(value)


def _copy(case: Any, target: Path) -> Any:
    """A model with its data; a light one gets its input, ``arange(n) / n``, as the suite's own runner makes it."""
    import onnx

    if case.model_dir is not None:
        shutil.copytree(case.model_dir, target)
        return onnx.load_model(str(target / "model.onnx"), load_external_data=False)
    if not case.url.startswith(_LIGHT):
        raise FileNotFoundError(case.url)
    source = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / case.url.removeprefix(_LIGHT)
    model = onnx.load_model(str(source))
    values = target / "test_data_set_0"
    values.mkdir(parents=True)
    shutil.copy(source, target / "model.onnx")
    for number, info in enumerate(_fed(model)):
        shape = tuple(dim.dim_value or 1 for dim in info.type.tensor_type.shape.dim)
        ramp = (np.arange(np.prod(shape)).reshape(shape) / np.prod(shape)).astype(np.float32)
        (values / f"input_{number}.pb").write_bytes(onnx.numpy_helper.from_array(ramp).SerializeToString())
    for number in range(len(model.graph.output)):
        shutil.copy(source.with_name(f"{source.stem}_output_{number}.pb"), values / f"output_{number}.pb")
    return model


def _fed(model: Any) -> list[Any]:
    """Inputs of the graph that no initializer fills."""
    filled = {tensor.name for tensor in model.graph.initializer}
    return [info for info in model.graph.input if info.name not in filled]


def _entry(name: str, kind: str, model: Any, subject: str) -> Entry:
    nodes = list(_nodes([model.graph.node, *(function.node for function in model.functions)]))
    opsets = {item.domain or "ai.onnx": item.version for item in model.opset_import}
    operators = tuple(sorted({node.op_type for node in nodes}))
    return Entry(
        name=name,
        kind=kind,
        subject=subject or (operators[0] if len(operators) == 1 else kind),
        operators=operators,
        domains=tuple(sorted({*opsets, *(node.domain or "ai.onnx" for node in nodes)})),
        opset=opsets.get("ai.onnx", 0),
        ir=model.ir_version,
        types=tuple(sorted(_types(model.graph))),
    )


def _nodes(lists: Sequence[Iterable[Any]]) -> Iterator[Any]:
    """Every node, those of graphs within nodes included."""
    waiting = [node for nodes in lists for node in nodes]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            waiting += [*attribute.g.node, *(inner for graph in attribute.graphs for inner in graph.node)]


def _types(graph: Any) -> Iterator[str]:
    import onnx

    name = onnx.TensorProto.DataType.Name
    for info in (*graph.input, *graph.output):
        kind = info.type
        while not kind.HasField("tensor_type"):
            inner = [field for field in ("optional_type", "sequence_type") if kind.HasField(field)]
            if not inner:
                break
            kind = getattr(kind, inner[0]).elem_type
        yield name(kind.tensor_type.elem_type) if kind.HasField("tensor_type") else str(kind.WhichOneof("value"))
    yield from (name(tensor.data_type) for tensor in graph.initializer)


# --- reading a case ---------------------------------------------------------------------------------------------------


class Given(msgspec.Struct):
    """One data set of a case: inputs by name, expected outputs in the graph's order."""

    inputs: dict[str, Any]
    outputs: list[Any]


class Loaded(msgspec.Struct):
    """A case as its files have it."""

    path: Path
    model: Any
    sets: list[Given]
    rtol: float
    atol: float


def read(folder: Path) -> Loaded:
    """The case in ``folder``. Values are numpy arrays (small floats by ``ml_dtypes``), lists of them, or ``None``."""
    import onnx

    model = onnx.load_model(str(folder / "model.onnx"))
    limits = _limits(folder / "data.json")
    sets = [_given(place, model) for place in sorted(folder.glob("test_data_set_*"))]
    if not sets:
        raise FileNotFoundError(f"{folder.name}: no test_data_set_* beside its model")
    return Loaded(folder / "model.onnx", model, sets, *limits)


def _limits(file: Path) -> tuple[float, float]:
    found = json.loads(file.read_text()) if file.exists() else {}
    return float(found.get("rtol", RTOL)), float(found.get("atol", ATOL))


def _given(place: Path, model: Any) -> Given:
    fed, outputs = _fed(model), model.graph.output
    counts = [len([name for name in os.listdir(place) if name.startswith(start)]) for start in ("input_", "output_")]  # noqa: PTH208
    if counts[0] > len(fed):
        fed = list(model.graph.input)
    inputs = {info.name: _value(place / f"input_{i}.pb", info.type) for i, info in enumerate(fed[: counts[0]])}
    return Given(inputs, [_value(place / f"output_{i}.pb", info.type) for i, info in enumerate(outputs[: counts[1]])])


def _value(file: Path, kind: Any) -> Any:
    import onnx
    from onnx import numpy_helper

    content = file.read_bytes()
    if kind.HasField("optional_type"):
        optional = onnx.OptionalProto.FromString(content)
        held = any(field.name.endswith("_value") for field, _ in optional.ListFields())
        return numpy_helper.to_optional(optional) if held else None
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))
