"""What executes a model: one module per runtime, imported only when it is used."""

import difflib
import importlib
from typing import TYPE_CHECKING, cast

from frugalbench.schema import FrugalbenchError

if TYPE_CHECKING:
    from frugalbench.backends.base import Backend

BACKENDS: dict[str, str] = {
    "torch-eager": "frugalbench.backends.torch_eager",
    "torch-compile": "frugalbench.backends.torch_compile",
    "onnxruntime": "frugalbench.backends.onnxruntime",
    "openvino": "frugalbench.backends.openvino",
    "onnx-reference": "frugalbench.backends.onnx_reference",
    "tract": "frugalbench.backends.tract",
    "tinygrad": "frugalbench.backends.tinygrad",
    "iree": "frugalbench.backends.iree",
    "mnn": "frugalbench.backends.mnn",
}
"""Runtimes that execute a whole model: name to module. Each module keeps the protocol of ``backends.base``."""

LIBRARIES: dict[str, str] = {"native": "frugalbench.backends.native"}
"""Backends that call kernels one by one and take no model."""


def backend(name: str) -> "Backend":
    """The backend called ``name``; :class:`FrugalbenchError` naming the nearest one when there is none."""
    if name not in BACKENDS:
        near = difflib.get_close_matches(name, list(BACKENDS), n=1, cutoff=0)
        raise FrugalbenchError(f"unknown backend '{name}'; did you mean '{near[0]}'?")
    return cast("Backend", importlib.import_module(BACKENDS[name]))
