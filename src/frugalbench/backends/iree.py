"""IREE: an MLIR compiler and a small runtime. The whole graph becomes one module for this processor, ahead of time.

Import and compilation (10 to 20 s) run in a process of their own, so that a worker holds the runtime only; the module
lies in ``cache_dir/iree``, named after the model, IREE's version and the processor's features.
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frugalbench.backends.base import (
    Arrays,
    Options,
    Placement,
    Steps,
    check_device,
    file_key,
    installed,
    locked,
    recall,
    remember,
)
from frugalbench.schema import Artefact, FirstStart

NAME = "iree"
DISTRIBUTION = "iree-base-compiler"
RUNTIME = "iree-base-runtime"
FAMILY = "iree"
TAKES = "onnx"
DEVICES = ("cpu",)
MOST_THREADS = None

_DRIVER = "local-task"
_FLAGS = ("--iree-llvmcpu-target-cpu=host", "--iree-opt-level=O2")


def available() -> tuple[str | None, str]:
    """Version of the compiler, or which half is missing."""
    version, reason = installed(DISTRIBUTION)
    runtime_version, runtime_reason = installed(RUNTIME)
    return (version if runtime_version else None), reason or runtime_reason


def load(model: Path, options: Options, examples: Sequence[Arrays]) -> "IreeRunnable":
    """Compile, or take from the cache, and call once."""
    check_device("IREE", options.device, DEVICES)
    module, artefact = _compiled(model, options)
    steps = Steps()
    try:
        from iree import runtime

        with steps.step("load"):
            runnable = IreeRunnable(module, options, runtime)
        prepared = runnable.prepare(examples[0])
        with steps.step("first_inference"):
            runnable.run(prepared)
    except Exception as problem:
        reason = (str(problem).strip() or type(problem).__name__).split("\n")[0]
        raise RuntimeError(f"IREE cannot run the compiled model: {reason}") from problem
    runnable.artefacts = (artefact,)
    runnable.first_start = steps.told(
        "compiling ahead of time in a process of its own; opening what it made", artefact.build_s, artefact.cached
    )
    return runnable


def _compiled(model: Path, options: Options) -> tuple[Path, Artefact]:
    parts = {"model": options.key, "iree": installed(DISTRIBUTION)[0], "flags": _FLAGS, "processor": _processor()}
    path = options.cache_dir / "iree" / f"{file_key(model, parts)}.vmfb"
    with locked(path.with_suffix(".lock")):
        facts = recall(path.with_suffix(".json"))
        cached = facts is not None and path.exists()
        if facts is None or not cached:
            facts = _compile_apart(model, path)
    return path, Artefact(name="iree", build_s=facts["build_s"], cached=cached, size_bytes=float(path.stat().st_size))


def _processor() -> str:
    """What ``target-cpu=host`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _compile_apart(model: Path, path: Path) -> dict[str, Any]:
    """Run this module as a program; raises ``RuntimeError`` with the compiler's first complaint when it fails."""
    started = time.perf_counter()
    job = json.dumps({"model": str(model), "path": str(path)})
    program = [sys.executable, "-P", "-m", __spec__.name, job]
    done = subprocess.run(program, capture_output=True, text=True, check=False, errors="replace")
    if done.returncode or not path.exists():
        raise RuntimeError(f"IREE cannot compile the model: {_complaint(done.stderr, done.returncode)}")
    facts = {"build_s": time.perf_counter() - started}
    remember(path.with_suffix(".json"), facts)
    return facts


def _complaint(said: str, code: int) -> str:
    """The compiler's first error, else the last thing said."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
    return [*errors, *reversed(lines), f"exit code {code}"][0][:300]


def compile_model(model: Path, path: Path) -> None:
    """Import the ONNX file and compile it for the CPU of this machine into ``path``, which appears whole."""
    import onnx
    from iree import compiler
    from iree.compiler.extras import onnx_importer
    from iree.compiler.ir import Context

    loaded = onnx.shape_inference.infer_shapes(onnx.load(str(model)), data_prop=True)
    with Context() as context:
        info = onnx_importer.ModelInfo(loaded)
        module = info.create_module(context=context).operation
        onnx_importer.NodeImporter.define_function(info.main_graph, module).import_all()
        text = module.get_asm()
    made = compiler.compile_str(text, input_type="onnx", target_backends=["llvm-cpu"], extra_args=list(_FLAGS))
    temporary = path.with_suffix(".part")
    temporary.write_bytes(made)
    temporary.replace(path)


class IreeRunnable:
    """A loaded module with one function. Outputs come in the order of the file's graph."""

    def __init__(self, module: Path, options: Options, runtime: Any) -> None:
        runtime.flags.parse_flags(f"--task_topology_group_count={options.threads}")
        self._options, self._runtime = options, runtime
        config = runtime.Config(_DRIVER)
        self._device = config.device
        context = runtime.SystemContext(config=config)
        loaded = runtime.VmModule.copy_buffer(context.instance, module.read_bytes())
        context.add_vm_module(loaded)
        self._name = next(name for name in loaded.function_names if not name.startswith("_") and "$" not in name)
        self._function = getattr(context.modules, loaded.name)[self._name]
        self.artefacts: tuple[Artefact, ...] = ()
        self.first_start: FirstStart | None = None
        self.details: dict[str, Any] = {"threads": options.threads, "driver": _DRIVER, "flags": list(_FLAGS)}

    def prepare(self, inputs: Arrays) -> list[Any]:
        """Arrays in IREE's own buffers, in the order of the model's inputs."""
        return [self._runtime.asdevicearray(self._device, inputs[name]) for name in self._options.inputs]

    def run(self, prepared: list[Any]) -> Any:
        """One call; it returns when the result is there."""
        return self._function(*prepared)

    def fetch(self, outputs: Any) -> Arrays:
        """Results by name."""
        values = outputs if isinstance(outputs, tuple | list) else (outputs,)
        return {name: value.to_host().copy() for name, value in zip(self._options.outputs, values, strict=True)}

    def placement(self) -> Placement:
        """The whole graph, compiled ahead of time for one driver; the runtime tells of no nodes."""
        return Placement(_DRIVER, {self._name: _DRIVER}, grain="graph", copied_bytes=0)

    def synchronize(self) -> None:
        """Nothing to wait for: calls are synchronous."""


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    compile_model(Path(task["model"]), Path(task["path"]))
