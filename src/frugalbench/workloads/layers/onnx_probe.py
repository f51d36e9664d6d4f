"""One run of one ONNX file in one backend, as a program of its own: a crash of the runtime is an answer, not an end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench import apart
from frugalbench.backends import backend
from frugalbench.backends.base import Options, Placement
from frugalbench.workloads.base import SilentFallback
from frugalbench.workloads.layers.onnx_inspect import load_feed


def run(request: Mapping[str, Any]) -> dict[str, Any]:
    """Load ``path`` in ``backend``, run it on the inputs in ``feed`` and keep its outputs in ``answers`` (``.npz``).

    ``placed``: nodes must run where asked, which a part of a graph without float arithmetic cannot show. The answer's
    ``outcome`` is ``done``, ``not here``, ``fallback`` or ``failed``, with the runtime's reason.
    """
    runtime = backend(request["backend"])
    version, reason = runtime.available()
    if version is None or runtime.TAKES != "onnx":
        return {"outcome": "not here", "reason": reason or f"{request['backend']} takes no ONNX file"}
    if not request["placed"]:
        setattr(Placement, "require", _anywhere)  # noqa: B010
    feed = load_feed(request["feed"])
    options = Options(
        threads=request["threads"], device=request["device"], cache_dir=Path(request["cache"]), key=request["key"],
        inputs=tuple(feed), outputs=tuple(request["outputs"]),
    )  # fmt: skip
    try:
        runnable = runtime.load(Path(request["path"]), options, [feed])
        outputs = runnable.fetch(runnable.run(runnable.prepare(feed)))
    except SilentFallback as problem:
        return {"outcome": "fallback", "reason": str(problem)}
    except Exception as problem:
        return {"outcome": "failed", "reason": " ".join(str(problem).split())[:500] or type(problem).__name__}
    values: dict[str, Any] = {f"value{n}": outputs[name] for n, name in enumerate(request["outputs"])}
    np.savez(request["answers"], **values)
    return {"outcome": "done", "reason": ""}


def _anywhere(_placement: Placement, _runtime: str) -> None:
    """Only values are on trial."""


if __name__ == "__main__":
    apart.serve(run)
