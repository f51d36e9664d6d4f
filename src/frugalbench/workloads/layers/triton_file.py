"""Loads a file of Triton kernels; they lie outside the package's folder of Python code, as all kernels do."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

from frugalbench.backends.base import content_key
from frugalbench.paths import shipped
from frugalbench.schema import FrugalbenchError


@cache
def load(name: str) -> Any:
    """The module ``kernels/triton/NAME.py``. Raises :class:`FrugalbenchError` where it is missing."""
    path = _path(name)
    module_name = f"frugalbench_triton_{name}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FrugalbenchError(f"Triton kernel {path} is missing; install frugalbench again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


def tools(name: str, device: Any) -> dict[str, str]:
    """What a tuned choice depends on beside its shape: the card, Triton's version and the kernels' own text."""
    import torch
    import triton

    source = content_key({"source": _path(name).read_text(encoding="utf-8")})
    return {"device": torch.cuda.get_device_name(device), "triton": triton.__version__, "source": source}


def _path(name: str) -> Path:
    return shipped("kernels") / "triton" / f"{name}.py"
