"""The models of ``onnx_model``, and their export to one ONNX file that every portable runtime shares.

The export runs in a process of its own, so that a runtime's worker never holds the framework; the file lies in the
cache, named after everything that made it, and every arm and run that wants the same one finds it there.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from frugalbench.backends.base import content_key, locked, recall, remember
from frugalbench.schema import Artefact
from frugalbench.workloads.layers import attention

BLOCK, MINILM = "transformer-block", "all-minilm-l6-v2"
INPUTS = {BLOCK: ("x",), MINILM: ("input_ids", "attention_mask")}
OUTPUTS = {BLOCK: ("hidden",), MINILM: ("last_hidden_state", "sentence_embedding")}
_PR_SET_PDEATHSIG = 1
_EXPORTERS = ("torch", "onnx", "onnxscript", "transformers")


def module(params: dict[str, Any]) -> Any:
    """The model as a ``torch.nn.Module`` in fp32; the block also in float16, where the parameters say so."""
    if params["model"] == BLOCK:
        block = attention.block(weights(params), params["heads"])
        return block.half() if params.get("dtype") == "float16" else block
    return attention.minilm(attention.minilm_folder())


def weights(params: dict[str, Any]) -> attention.Arrays:
    """Seeded weights of the block."""
    return attention.block_weights(params["d_model"], params["d_ff"], params["weight_seed"])


def model_key(params: dict[str, Any]) -> str:
    """Names everything that an exported file depends on: weights, sizes, opset, this code, the exporters' versions."""
    shared = {key: value for key, value in params.items() if key not in ("batch", "rotation", "launch")}
    stored = "seeded" if params["model"] == BLOCK else _file_hash(attention.minilm_folder() / "model.safetensors")
    code = [_file_hash(Path(source)) for source in (str(attention.__file__), __file__)]
    return content_key(
        {"params": shared, "weights": stored, "code": code, "versions": _versions(), "precision": "fp32"}
    )


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _EXPORTERS}


def _file_hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def exported(params: dict[str, Any], cache_dir: Path, key: str) -> tuple[Path, Artefact, dict[str, Any]]:
    """The ONNX file, made if it is not in the cache, with what is known of its making."""
    path = cache_dir / "onnx_model" / f"{params['model']}-{key}.onnx"
    with locked(path.with_suffix(".lock")):
        facts = recall(path.with_suffix(".json"))
        cached = facts is not None and path.exists()
        if facts is None or not cached:
            facts = _export_apart(params, path)
    size = float(path.stat().st_size)
    return path, Artefact(name="onnx", build_s=facts["export_s"], cached=cached, size_bytes=size), facts


def _export_apart(params: dict[str, Any], path: Path) -> dict[str, Any]:
    """Run this module as a program; raises ``RuntimeError`` with the last thing it said when it fails."""
    job = json.dumps({"params": params, "path": str(path)})
    program = [sys.executable, "-P", "-m", __spec__.name, job]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    facts = recall(path.with_suffix(".json"))
    if done.returncode or facts is None:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"the ONNX export of {params['model']} failed: {said[-1]}")
    return facts


def export(model: Any, params: dict[str, Any], path: Path) -> dict[str, Any]:
    """Export ``model`` with torch's current exporter to a file at ``path``, its facts beside it; both appear whole."""
    import onnx
    import torch

    names = INPUTS[params["model"]]
    batch = torch.export.Dim.DYNAMIC
    started = time.perf_counter()
    program = torch.onnx.export(
        model,
        _example(params),
        dynamo=True,
        opset_version=params["opset"],
        input_names=list(names),
        output_names=list(OUTPUTS[params["model"]]),
        dynamic_shapes=tuple({0: batch} for _ in names),
        verbose=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        program.save(str(temporary), external_data=False)
        export_s = time.perf_counter() - started
        facts = {"export_s": export_s, **_graph_facts(onnx.load(str(temporary)))}
        temporary.replace(path)
    remember(path.with_suffix(".json"), facts)
    return facts


def _example(params: dict[str, Any]) -> tuple[Any, ...]:
    """Inputs to trace with: two sequences, the second half padded, so that neither batch nor mask is a special case."""
    import torch

    if params["model"] == BLOCK:
        dtype = getattr(torch, params.get("dtype", "float32"))
        return (torch.ones(2, params["seq"], params["d_model"], dtype=dtype),)
    mask = torch.ones(2, params["seq"], dtype=torch.int64)
    mask[1, params["seq"] // 2 :] = 0
    return torch.ones_like(mask), mask


def _graph_facts(model: Any) -> dict[str, Any]:
    operators = [node.op_type for node in model.graph.node]
    return {
        "exporter": "torch.onnx.export(dynamo=True)",
        "batch_axis": "dynamic",
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ir_version": model.ir_version,
        "operators": {name: operators.count(name) for name in sorted(set(operators))},
        "versions": _versions(),
    }


def _die_with_parent() -> None:
    """Ask the kernel to end this process with the worker that waits for it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    _die_with_parent()
    task = json.loads(sys.argv[1])
    export(module(task["params"]), task["params"], Path(task["path"]))
