"""The linear layer as ONNX Runtime offers it: Gemm in float32, MatMulNBits at 8 and 4 bits, int8 dynamic and QDQ.

Each copy has its own session (a session runs all of its nodes, whatever outputs are asked for); all of them share
one thread pool, so that no idle session's threads spin beside the busy one. The weights lie in files beside the
graphs, kept in the cache: one file per copy, its checksum and the time it took to make beside it.
"""

import json
import os
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.schema import Artefact, Case
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers.quant_copies import Copies
from frugalbench.workloads.layers.quant_nbits import nbits_groups
from frugalbench.workloads.layers.quant_ort_graph import STATIC_SCALE, STATIC_ZERO_POINT, Spec, graph
from frugalbench.workloads.layers.quant_stored import (
    Source,
    Stored,
    dense_stored,
    grouped_int8,
    int8_matrix,
    plain,
    static_uint8,
    tensor_uint8,
)

_PROVIDER = "CPUExecutionProvider"


def make(case: Case, source: Source, context: Context) -> "OrtLinear":
    """The layer of a case."""
    return OrtLinear(
        source, case.params["copies"], Spec.of(case), context.threads, context.cache_dir, context.scratch_dir
    )


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
        self.lossy = spec.scheme != "float32"
        self._ran: list[dict[str, str]] | None = None
        self.open()

    @property
    def kernel(self) -> str:
        """The nodes that ran, from the profile of a call."""
        ran = self.placement(np.ones((1, self._spec.k), np.float32))
        level = f", accuracy_level {self._spec.accuracy_level}" if self._spec.accuracy_level else ""
        bits = f" {self._spec.bits} bits" if self._spec.scheme == "nbits" else ""
        return " + ".join(node["op"] for node in ran) + bits + level

    def open(self) -> None:
        """(Re)create the sessions from the files on disk."""
        self._sessions = [self._session(copy) for copy in range(self._copies)]

    def _session(self, copy: int, profile: str = "") -> Any:
        options = self._ort.SessionOptions()
        _share_threads(options, self._threads)
        options.log_severity_level = 3
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        path = self._folder / f"graph{copy}-{self._spec.graph_name}.onnx"
        _write(path, graph(self._spec, copy))
        return self._ort.InferenceSession(str(path), options, providers=[_PROVIDER])

    def _build(self, source: Source) -> Artefact:
        quantised = Copies(source, self._spec.n, self._spec.quantise)
        made = [self._stored_file(copy, quantised) for copy in range(self._copies)]
        return Artefact(
            name=f"{self._spec.name} weights for ONNX Runtime",
            build_s=sum(build_s for build_s, _ in made),
            cached=all(cached for _, cached in made),
            size_bytes=float(sum(self._file(copy).stat().st_size for copy in range(self._copies))),
        )

    def _file(self, copy: int) -> Path:
        return self._folder / f"copy{copy}.bin"

    def _stored_file(self, copy: int, quantised: Copies) -> tuple[float, bool]:
        """Build time of the file of one copy, and whether it came from the cache intact."""
        notes = self._file(copy).with_suffix(".json")
        try:
            known = json.loads(notes.read_text())
            if self._checksum(copy) == known["checksum"]:
                return float(known["build_s"]), True
        except (OSError, ValueError, KeyError):
            pass
        start = time.perf_counter()
        _write(self._file(copy), self._spec.content(quantised.parts(copy)))
        build_s = time.perf_counter() - start
        _write(notes, json.dumps({"checksum": self._checksum(copy), "build_s": build_s}).encode())
        return build_s, False

    def _checksum(self, copy: int) -> int:
        checksum = 0
        for array in self._arrays(copy):
            checksum = zlib.crc32(array.reshape(-1).view(np.uint8).data, checksum)
        return checksum

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
        if self._spec.scheme == "float32":
            return dense_stored(arrays[0], 0.0)
        if self._spec.scheme == "int8-tensor":
            return int8_matrix(arrays[0].T, arrays[1], arrays[2])
        return nbits_groups(arrays[0], arrays[1], arrays[2], self._spec.bits)

    def stored_bytes(self) -> int:
        """Bytes of one stored matrix."""
        return self.stored(0).size_bytes

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """Inputs as the arm rounds them, float64."""
        if self._spec.activations == "tensor":
            return tensor_uint8(x_MK)
        if self._spec.activations == "static":
            return static_uint8(x_MK, STATIC_SCALE, STATIC_ZERO_POINT)
        return grouped_int8(x_MK, self._spec.group) if self._spec.activations == "group" else plain(x_MK)

    def threads(self) -> int:
        """Size of the thread pool that the sessions share."""
        return self._threads

    def synchronize(self) -> None:
        """A CPU call returns when it is done."""

    def placement(self, x_MK: np.ndarray) -> list[dict[str, str]]:
        """Operator and execution provider of every node that ran, from the profile of one call on the first copy."""
        if self._ran is None:
            self._ran = self._profile(x_MK)
        return self._ran

    def _profile(self, x_MK: np.ndarray) -> list[dict[str, str]]:
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


def _share_threads(options: Any, threads: int) -> None:
    """Let a session compute in the one pool of ``threads`` that this process has. The first size stays.

    From then on ONNX Runtime refuses sessions with threads of their own: a worker is one arm, so none is asked for.
    """
    global _shared_threads
    import onnxruntime

    if _shared_threads is None:
        if not hasattr(onnxruntime, "set_global_thread_pool_sizes"):
            raise RuntimeError("this ONNX Runtime cannot share threads between sessions: pip install -U onnxruntime")
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        _shared_threads = threads
    if _shared_threads != threads:
        raise RuntimeError(f"this process already computes with {_shared_threads} threads, not {threads}")
    options.use_per_session_threads = False


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
