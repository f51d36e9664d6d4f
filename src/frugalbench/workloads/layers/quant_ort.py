"""The linear layer as ONNX Runtime offers it: Gemm in float32, MatMulNBits at 8 and 4 bits.

Each copy has its own session (a session runs all of its nodes, whatever outputs are asked for); all of them share
one thread pool, so that no idle session's threads spin beside the busy one. The weights lie in files beside the
graphs, kept in the cache: one file per copy, its hash and the time it took to make beside it.
"""

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.schema import Artefact
from frugalbench.workloads.layers.quant_stored import (
    Source,
    Stored,
    dense_stored,
    fingerprint,
    grouped_int8,
    nbits_groups,
    plain,
    quantise_nbits,
)

_LAYOUT = 1
"""Changes whenever the bytes in the cached files would."""
_PAGE = 4096
_PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class Spec:
    """What to build: matrices of N x K; ``bits`` 32 is plain float32."""

    n: int
    k: int
    bits: int
    group: int
    accuracy_level: int
    seed: int

    @property
    def name(self) -> str:
        """Folder of the cached weights: everything that determines them."""
        grouped = "" if self.bits == 32 else f"-g{self.group}"
        return f"b{self.bits}{grouped}-{self.n}x{self.k}-seed{self.seed}-v{_LAYOUT}"

    def parts(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shape and type of each stored tensor, in file order."""
        if self.bits == 32:
            return {"w": ((self.n, self.k), np.float32)}
        groups = -(-self.k // self.group)
        return {
            "q": ((self.n, groups, self.group * self.bits // 8), np.uint8),
            "s": ((self.n, groups), np.float32),
            "z": ((self.n, -(-groups * self.bits // 8)), np.uint8),
        }

    def offsets(self) -> dict[str, int]:
        """Where each tensor starts in its file: on a page, as memory mapping wants it."""
        at, result = 0, {}
        for part, (shape, kind) in self.parts().items():
            result[part] = at
            at += -(-int(np.prod(shape)) * np.dtype(kind).itemsize // _PAGE) * _PAGE
        return result


class OrtLinear:
    """Sessions over ``copies`` matrices."""

    def __init__(
        self, source: Source, copies: int, spec: Spec, threads: int, cache_dir: Path, scratch_dir: Path
    ) -> None:
        import onnxruntime

        self._ort, self._spec, self._threads, self._copies = onnxruntime, spec, threads, copies
        self._scratch = scratch_dir
        self._folder = cache_dir / "quantized_linear" / spec.name
        self._folder.mkdir(parents=True, exist_ok=True)
        self.artefacts: tuple[Artefact, ...] = (self._build(source),)
        self.lossy = spec.bits != 32
        level = f" {spec.bits} bits accuracy_level {spec.accuracy_level}" if self.lossy else ""
        self.kernel = f"{self._op}{level}"
        _share_threads(threads)
        self.open()

    @property
    def _op(self) -> str:
        return "Gemm" if self._spec.bits == 32 else "MatMulNBits"

    def open(self) -> None:
        """(Re)create the sessions from the files on disk."""
        self._sessions = [self._session(copy) for copy in range(self._copies)]

    def _session(self, copy: int, profile: str = "") -> Any:
        options = self._ort.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = 3
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        path = self._folder / f"graph{copy}-level{self._spec.accuracy_level}.onnx"
        _write(path, _graph(self._spec, copy))
        return self._ort.InferenceSession(str(path), options, providers=[_PROVIDER])

    def _build(self, source: Source) -> Artefact:
        made = [self._stored_file(copy, source) for copy in range(self._copies)]
        return Artefact(
            name=f"{self._spec.name} weights for ONNX Runtime",
            build_s=sum(build_s for build_s, _ in made),
            cached=all(cached for _, cached in made),
            size_bytes=float(sum(self._file(copy).stat().st_size for copy in range(self._copies))),
        )

    def _file(self, copy: int) -> Path:
        return self._folder / f"copy{copy}.bin"

    def _stored_file(self, copy: int, source: Source) -> tuple[float, bool]:
        """Build time of the file of one copy, and whether it came from the cache intact."""
        notes = self._file(copy).with_suffix(".json")
        try:
            known = json.loads(notes.read_text())
            if fingerprint(*self._arrays(copy)) == known["fingerprint"]:
                return float(known["build_s"]), True
        except (OSError, ValueError, KeyError):
            pass
        start = time.perf_counter()
        _write(self._file(copy), self._bytes(source(copy)))
        build_s = time.perf_counter() - start
        known = {"fingerprint": fingerprint(*self._arrays(copy)), "build_s": build_s}
        _write(notes, json.dumps(known).encode())
        return build_s, False

    def _bytes(self, weights_NK: np.ndarray) -> bytes:
        spec = self._spec
        arrays = (weights_NK,) if spec.bits == 32 else quantise_nbits(weights_NK, spec.bits, spec.group)
        blobs = [np.ascontiguousarray(array).tobytes() for array in arrays]
        return b"".join(blob + bytes(-len(blob) % _PAGE) for blob in blobs)

    def _arrays(self, copy: int) -> tuple[np.ndarray, ...]:
        """The stored tensors of one copy, mapped from its file. ``OSError`` or ``ValueError`` if that is not whole."""
        offsets = self._spec.offsets()
        return tuple(
            np.memmap(self._file(copy), kind, "r", offsets[part], shape)
            for part, (shape, kind) in self._spec.parts().items()
        )

    def prepare(self, x_MK: np.ndarray) -> Any:
        """Inputs as a feed."""
        return {"x": x_MK}

    def run(self, copy: int, x: Any) -> Any:
        """One layer call."""
        return self._sessions[copy].run(None, x)[0]

    def to_numpy(self, y: Any) -> np.ndarray:
        """Result as float32 (m, n)."""
        return np.asarray(y)

    def stored(self, copy: int) -> Stored:
        """Codes, scales and zero points of ``copy``, from the file that the session was made of."""
        arrays = self._arrays(copy)
        if self._spec.bits == 32:
            return dense_stored(arrays[0], 0.0)
        return nbits_groups(arrays[0], arrays[1], arrays[2], self._spec.bits)

    def stored_bytes(self) -> int:
        """Bytes of one stored matrix."""
        return self.stored(0).size_bytes

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """Inputs as the arm rounds them, float64."""
        return grouped_int8(x_MK, self._spec.group) if self._spec.accuracy_level == 4 else plain(x_MK)

    def threads(self) -> int:
        """Size of the thread pool that the sessions share."""
        return self._threads

    def synchronize(self) -> None:
        """A CPU call returns when it is done."""

    def placement(self, x_MK: np.ndarray) -> list[dict[str, str]]:
        """Operator and execution provider of every node that ran, from the profile of one call on the first copy."""
        session = self._session(0, profile=str(self._scratch / f"ort-{os.getpid()}"))
        session.run(None, self.prepare(x_MK))
        path = Path(session.end_profiling())
        events = json.loads(path.read_text())
        path.unlink()
        found = [event["args"] for event in events if event.get("name", "").endswith("_kernel_time")]
        return [{"op": args["op_name"], "provider": args["provider"]} for args in found]

    def close(self) -> None:
        """Let the sessions go."""
        self._sessions = []


_shared_threads: int | None = None


def _share_threads(threads: int) -> None:
    """Give this process one pool of ``threads`` for all sessions that want it. The first size stays."""
    global _shared_threads
    import onnxruntime

    if _shared_threads is None:
        if not hasattr(onnxruntime, "set_global_thread_pool_sizes"):
            raise RuntimeError("this ONNX Runtime cannot share threads between sessions: pip install -U onnxruntime")
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        _shared_threads = threads
    if _shared_threads != threads:
        raise RuntimeError(f"this process already computes with {_shared_threads} threads, not {threads}")


def _graph(spec: Spec, copy: int) -> bytes:
    """A model with input ``x`` (tokens, K) and output ``y`` (tokens, N), the weights of ``copy`` external."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [_node(spec)],
        "quantized_linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", spec.k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", spec.n])],
        _external(spec, copy),
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    return bytes(model.SerializeToString())


def _node(spec: Spec) -> Any:
    from onnx import helper

    inputs = ["x", *spec.parts()]
    if spec.bits == 32:
        return helper.make_node("Gemm", inputs, ["y"], transB=1)
    level = {"accuracy_level": spec.accuracy_level} if spec.accuracy_level else {}
    return helper.make_node(
        "MatMulNBits", inputs, ["y"], domain="com.microsoft",
        K=spec.k, N=spec.n, bits=spec.bits, block_size=spec.group, **level,
    )  # fmt: skip


def _external(spec: Spec, copy: int) -> list[Any]:
    from onnx import TensorProto, helper

    tensors = []
    for part, (shape, kind) in spec.parts().items():
        tensor = TensorProto(name=part, dims=shape, data_location=TensorProto.EXTERNAL)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        length = int(np.prod(shape)) * np.dtype(kind).itemsize
        place = {"location": f"copy{copy}.bin", "offset": spec.offsets()[part], "length": length}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    return tensors


def _write(path: Path, content: bytes) -> None:
    """Write a file so that it is either whole or not there."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
