"""Export of the graph set's modules by torch's current exporter, and their quantised forms by ONNX Runtime's tools.

Runs as a program of its own: ``python -m`` this module makes one file in the cache, with what is known of its making
beside it. A failed export is a finding: it is remembered with the exporter's own reason in one line.
"""

import importlib.metadata
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frugalbench import apart
from frugalbench.backends.base import content_key, locked, recall, remember
from frugalbench.specs.graph_inputs import make_feed
from frugalbench.workloads.layers.onnx_inspect import file_hash

EXPORTERS = ("torch", "onnx", "onnxscript", "onnxruntime", "transformers")
EXPORTER = "torch.onnx.export(dynamo=True)"
LIMIT_S = 240.0
CALIBRATION = 8
"""Inputs that static quantisation looks at; they are not those that are measured."""
GROUP = 32
_OPERATOR = re.compile(r"<OpOverload\(op='([^']+)'|target: ([\w.]+)|((?:aten|torchvision|prims)[.:]+[\w.]+)")
_USELESS = re.compile(r"^(\W*|Failed to .*|# .*|The error above.*|\(Refer to .*|<class .*|⬆️.*|#* ?.*Summary.*)$", re.I)


class ExportError(RuntimeError):
    """The framework's exporter, or the tool that quantises, made no ONNX file of the model."""


def made_file(params: Mapping[str, Any], cache_dir: Path) -> tuple[Path, dict[str, Any]]:
    """The exported file and the facts of its making, from the cache if it is there; raises :class:`ExportError`."""
    key = content_key({"export": params["export"], "versions": _versions(), "code": _code()})
    path = cache_dir / "onnx_graphs" / f"{params['graph']}-{key}.onnx"
    with locked(path.with_suffix(".lock")):
        facts = recall(path.with_suffix(".json"))
        cached = facts is not None and (path.exists() or "failed" in facts)
        if facts is None or not cached:
            answer = apart.ask(__name__, {"export": params["export"], "path": str(path)}, LIMIT_S)
            facts = answer.value if answer.outcome == "done" else _failure(answer.reason)
            remember(path.with_suffix(".json"), facts)
    if "failed" in facts:
        raise ExportError(facts["failed"])
    return path, {**facts, "cached": cached}


def _failure(reason: str) -> dict[str, Any]:
    return {"failed": reason}


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in EXPORTERS}


def _code() -> str:
    from frugalbench.workloads.layers import graph_models

    return file_hash(Path(str(graph_models.__file__)), Path(__file__))


def make(request: Mapping[str, Any]) -> dict[str, Any]:
    """Export, quantise where asked, and move the file to its place; its facts are the answer."""
    wanted, path = request["export"], Path(request["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / "float.onnx"
        started = time.perf_counter()
        _export(wanted, made)
        export_s = time.perf_counter() - started
        started = time.perf_counter()
        final = _QUANTISERS[wanted["precision"]](made, Path(folder), wanted)
        quantise_s = time.perf_counter() - started
        facts = {"export_s": export_s, "quantise_s": quantise_s, "exporter": EXPORTER, "versions": _versions()}
        facts |= _graph_facts(final)
        final.replace(path)
    return facts


def _export(wanted: Mapping[str, Any], path: Path) -> None:
    import torch

    from frugalbench.workloads.layers.graph_models import module

    feed = make_feed(wanted["example"], seed=1)
    dynamic = tuple(dict.fromkeys(item["free"], torch.export.Dim.DYNAMIC) for item in wanted["example"])
    model = module(wanted["model"])
    shapes = {"dynamic_shapes": _nested(wanted["model"], dynamic)} if any(dynamic) else {}
    try:
        program = torch.onnx.export(
            model,
            tuple(torch.from_numpy(value) for value in feed.values()),
            dynamo=True,
            opset_version=wanted["opset"],
            input_names=list(feed),
            output_names=list(wanted["outputs"]),
            verbose=False,
            **shapes,
        )
    except Exception as problem:
        raise ExportError(reason_of(problem)) from None
    program.save(str(path), external_data=False)


def _nested(model: str, dynamic: tuple[dict[int, Any], ...]) -> Any:
    """The exporter wants the form of ``forward``'s arguments: one tuple within where it takes ``*inputs``."""
    return dynamic if model in ("dense-ffn", "attention-kv") else (dynamic,)


def reason_of(problem: BaseException) -> str:
    """The innermost cause in one line, with the operator that it names."""
    chain = [problem]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None and deeper not in chain:
        chain.append(deeper)
    lines = [line.strip() for line in str(chain[-1]).splitlines()]
    said = next((line for line in lines if line and not _USELESS.match(line)), type(chain[-1]).__name__)
    text = "\n".join(str(item) for item in reversed(chain))
    operator = next((next(filter(None, match)) for match in _OPERATOR.findall(text)), "")
    named = f" (operator {operator})" if operator and operator not in said else ""
    return f"{EXPORTER}: {type(chain[-1]).__name__}: {said[:300]}{named}"


def _graph_facts(path: Path) -> dict[str, Any]:
    import onnx

    from frugalbench.workloads.layers.onnx_exact import nodes_of

    model = onnx.load(str(path))
    kinds = Counter(node.op_type for node in nodes_of(model.graph))
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ir_version": model.ir_version,
        "operators": dict(kinds.most_common()),
        "local_functions": len(model.functions),
        "file_bytes": path.stat().st_size,
    }


def _as_is(path: Path, _folder: Path, _wanted: Mapping[str, Any]) -> Path:
    return path


def _int8_dynamic(path: Path, folder: Path, _wanted: Mapping[str, Any]) -> Path:
    """Weights int8, activations rounded over their range at each call."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(_prepared(path, folder), folder / "int8.onnx", weight_type=QuantType.QInt8)
    return folder / "int8.onnx"


def _int8_qdq(path: Path, folder: Path, wanted: Mapping[str, Any]) -> Path:
    """Weights int8, activations uint8 over ranges seen in calibration, as QuantizeLinear and DequantizeLinear pairs."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([make_feed(wanted["example"], seed=2, index=index) for index in range(CALIBRATION)])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    quantize_static(
        _prepared(path, folder), folder / "qdq.onnx", Reader(), quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"],
    )  # fmt: skip
    return folder / "qdq.onnx"


def _int4(path: Path, folder: Path, _wanted: Mapping[str, Any]) -> Path:
    """MatMulNBits: stored matrices in 4 bits with a float scale per 32 weights, activations untouched."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(block_size=GROUP, is_symmetric=True, accuracy_level=0)
    tool = MatMulNBitsQuantizer(onnx.load(str(path)), algo_config=config)
    tool.process()
    tool.model.save_model_to_file(str(folder / "int4.onnx"), use_external_data_format=False)
    return folder / "int4.onnx"


def _prepared(path: Path, folder: Path) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = folder / "prepared.onnx"
    quant_pre_process(path, ready, skip_symbolic_shape=True, skip_optimization=True)
    return ready


_QUANTISERS = {"fp32": _as_is, "int8-dynamic": _int8_dynamic, "int8-qdq": _int8_qdq, "int4": _int4}


if __name__ == "__main__":
    apart.serve(make)
