"""A whole model as llama.cpp runs it, through the C functions of ``llama-cpp-python``: one ``llama_decode`` per step.

Weights are read into memory, not mapped, so that no page of them comes from disk while something is timed. Everything
else (cache in float16, flash attention where it thinks fit, rows repacked for the processor) is its default.
"""

import ctypes
import re
from typing import Any

import numpy as np

from frugalbench.schema import Artefact, Case
from frugalbench.workloads.base import Context, NoPath
from frugalbench.workloads.layers.decode_gguf import GgufFile, GgufHeld
from frugalbench.workloads.layers.decode_weights import Tokens, Weights

_MIB = 2**20
_SAID = re.compile(r"model buffer size|with q\d|Flash Attention")
"""Lines of llama.cpp's log that are kept: sizes of weight buffers, layouts, the kind of attention."""


def make(case: Case, weights: Weights, tokens: Tokens, context: Context) -> "LlamaModel":
    """The model of a case. Raises :class:`~frugalbench.workloads.base.NoPath` where the library lacks a function."""
    return LlamaModel(case, weights, tokens, context)


_LISTENERS: list[Any] = []
"""The library calls the latest one until the process ends."""


class LlamaModel:
    """The model, and two contexts: of the text that is continued, and of the prompts."""

    lossy = True

    def __init__(self, case: Case, weights: Weights, tokens: Tokens, context: Context) -> None:
        import llama_cpp

        self._library, self._log = llama_cpp, list[str]()
        _listen(self._log)
        self._weights, self._scheme, self._threads = weights, case.params["scheme"], context.threads
        self._file = GgufFile(case, weights, context)
        self._file.ready()
        self.artefacts: tuple[Artefact, ...] = (self._file.artefact,)
        self._call("llama_backend_init")
        self._model = self._loaded()
        self._text, self._prompts = _array(tokens.context), [_array(prompt) for prompt in tokens.prompts]
        self._following = [_array(tokens.following[i : i + 1]) for i in range(len(tokens.following))]
        self._decoding = self._context(len(tokens.context) + 1)
        self._prompting = self._context(tokens.prompts.shape[1])
        self.kernel = self._kernel()
        file_bytes = self._file.path.stat().st_size
        self.details = {"llama-cpp-python": llama_cpp.__version__, "file_bytes": file_bytes}

    def _call(self, name: str, *arguments: Any) -> Any:
        function = getattr(self._library, name, None)
        if function is None:
            raise NoPath(f"this llama-cpp-python ({self._library.__version__}) has no function {name}")
        return function(*arguments)

    def _loaded(self) -> Any:
        settings = self._call("llama_model_default_params")
        fields = {field[0] for field in settings._fields_}
        if "load_mode" in fields:
            settings.load_mode = self._library.LLAMA_LOAD_MODE_NONE
        elif "use_mmap" in fields:
            settings.use_mmap = False
        model = self._call("llama_model_load_from_file", str(self._file.path).encode(), settings)
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {self._file.path}; delete it and run again")
        return model

    def _context(self, tokens: int) -> Any:
        settings = self._call("llama_context_default_params")
        settings.n_ctx, settings.n_threads, settings.n_threads_batch = tokens, self._threads, self._threads
        settings.n_batch = max(settings.n_batch, tokens)
        context = self._call("llama_init_from_model", self._model, settings)
        if not context:
            raise RuntimeError(f"llama.cpp has no room for a context of {tokens} tokens")
        return context

    def _kernel(self) -> str:
        layouts = dict.fromkeys(found[1] for line in self._log if (found := re.search(r"with (q\S+)", line)))
        attention = "flash attention" if any("Flash Attention enabled" in line for line in self._log) else "attention"
        repacked = f", repacked {' '.join(layouts)}" if layouts else ""
        return f"llama_decode {self._scheme}{repacked}, {attention}"

    def _step(self, context: Any, tokens: Any) -> Any:
        batch = self._call("llama_batch_get_one", tokens, len(tokens))
        if status := self._call("llama_decode", context, batch):
            raise RuntimeError(f"llama_decode gave status {status}")
        return self._call("llama_get_logits_ith", context, -1)

    def _forget(self, context: Any, position: int) -> None:
        """Take everything from ``position`` on out of the cache."""
        self._call("llama_memory_seq_rm", self._call("llama_get_memory", context), 0, position, -1)

    def read(self, count: int) -> None:
        """Read the first ``count`` tokens of the text, for nothing."""
        self._forget(self._decoding, 0)
        self._step(self._decoding, _array(np.array(self._text[:count])))
        self._forget(self._decoding, 0)

    def fill(self) -> None:
        """Read the text that is continued."""
        self._step(self._decoding, self._text)

    def decode(self, index: int) -> Any:
        """Logits after token ``index`` behind the text, whose last cache cell is emptied for it first."""
        self._forget(self._decoding, len(self._text))
        return self._step(self._decoding, self._following[index])

    def prefill(self, index: int) -> Any:
        """Logits after prompt ``index``."""
        self._forget(self._prompting, 0)
        return self._step(self._prompting, self._prompts[index])

    def logits(self, found: Any) -> np.ndarray:
        """As float64 (V); the library overwrites its own copy in the next step."""
        return np.ctypeslib.as_array(found, (self._weights.shape.vocabulary,)).astype(np.float64)

    def held(self) -> GgufHeld:
        """What the file says."""
        return GgufHeld(self._weights, self._file.path, self._scheme)

    def loaded_bytes(self) -> int:
        """Buffers of weights, as the library reports them to a hundredth of a MiB, a look-up table beside a head that
        was laid out anew included. Raises ``RuntimeError`` where it reports none."""
        found = [float(size[1]) for line in self._log if (size := re.search(r"buffer size = +([\d.]+) MiB", line))]
        if not found:
            raise RuntimeError("llama.cpp did not say how large its weights are")
        return round(sum(found) * _MIB)

    def threads(self) -> int:
        """Threads that a step computes with."""
        return int(self._call("llama_n_threads", self._decoding))

    def close(self) -> None:
        """Free contexts and model."""
        for context in (self._decoding, self._prompting):
            self._call("llama_free", context)
        self._call("llama_model_free", self._model)


def _array(tokens: np.ndarray) -> Any:
    return (ctypes.c_int32 * len(tokens))(*tokens.tolist())


def _listen(log: list[str]) -> None:
    """Keep what matters of the library's log in ``log``; the rest, thousands of lines, is dropped."""
    import llama_cpp

    def heard(_level: int, text: bytes, _data: Any) -> None:
        line = text.decode(errors="replace")
        if _SAID.search(line):
            log.append(line)

    _LISTENERS.append(llama_cpp.llama_log_callback(heard))
    llama_cpp.llama_log_set(_LISTENERS[-1], ctypes.c_void_p(0))
