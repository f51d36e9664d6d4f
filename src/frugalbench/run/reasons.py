"""Reasons of failed records: one line each that a person can act on."""

import contextlib
import os
import signal
from importlib import metadata, util
from pathlib import Path

_EXTRAS = {
    "openvino": "frugalbench[openvino]", "torchao": "frugalbench[torchao]", "llama_cpp": "frugalbench[llama]",
    "tract": "frugalbench[tract]", "tinygrad": "frugalbench[tinygrad]", "iree": "frugalbench[iree]",
    "MNN": "frugalbench[mnn]", "altair": "frugalbench[report]", "pyarrow": "frugalbench[report]",
}  # fmt: skip
_DISTRIBUTIONS = {
    "cv2": "opencv-python", "PIL": "pillow", "pynvml": "nvidia-ml-py", "sklearn": "scikit-learn", "yaml": "pyyaml",
    "google.protobuf": "protobuf",
}  # fmt: skip
_GPU = {
    "out of memory": "the GPU's memory is full; take fewer arms, or make the shape smaller",
    "busy or unavailable": "the GPU takes no further process (exclusive mode?); sudo nvidia-smi -c DEFAULT",
    "driver version is insufficient": "the NVIDIA driver is too old for this torch; `frugalbench doctor` names one",
    "no kernel image": "this torch has no kernels for this GPU; install a build for it",
    "GPU is lost": "the GPU was lost; see `dmesg` for Xid, and reset it or restart",
    "device is lost": "the GPU was lost; see `dmesg` for Xid, and reset it or restart",
    "ALLOC_FAILED": "the GPU's memory is full; take fewer arms, or make the shape smaller",
    "no CUDA-capable device": "CUDA sees no GPU; `frugalbench doctor` says what hides it",
    "invalid device ordinal": "CUDA sees fewer GPUs than asked for; see CUDA_VISIBLE_DEVICES",
    "no NVIDIA driver": "the driver is missing (a container needs its libraries too); `nvidia-smi` must work",
    "not compiled with CUDA": "this torch was built without CUDA; `frugalbench doctor` names the wheel",
    "forward compatibility": "the driver was updated and not loaded anew, or serves no such CUDA; restart",
    "uncorrectable ECC": "the GPU's memory is broken; see `nvidia-smi -q -d ECC`, and reset it or restart",
    "unspecified launch failure": "a kernel crashed on the GPU, and with it this worker's context",
    "illegal memory access": "a kernel crashed on the GPU, and with it this worker's context",
}
"""Words in what CUDA or torch says (some recalled, 2026-11) to what it means here."""
_LONGEST = 500
_TAIL_BYTES = 4096


def one_line(problem: BaseException) -> str:
    """An exception in one line; a missing package with the command that gets it."""
    if isinstance(problem, ModuleNotFoundError) and problem.name:
        return missing_package(problem.name)
    text = " ".join(str(problem).split())
    if told := _of_a_gpu(type(problem).__name__, text):
        return told
    return f"{type(problem).__name__}: {text}"[:_LONGEST] if text else type(problem).__name__


def _of_a_gpu(name: str, text: str) -> str:
    """What to do about CUDA's own messages; nothing where it is none of those."""
    if "CUDA" not in text and "NVIDIA" not in text and name != "OutOfMemoryError":
        return ""
    return next((f"{said}: {brief[:_LONGEST]}" for words, said in _GPU.items() if words in text
                 for brief in [text.partition(". ")[0]]), "")  # fmt: skip


def missing_package(module: str) -> str:
    """Which package a module that cannot be found belongs to, and how to get it."""
    top = module.split(".")[0]
    package = next((_DISTRIBUTIONS[name] for name in (module, top) if name in _DISTRIBUTIONS), top)
    wanted = _EXTRAS.get(top, package)
    quoted = f"'{wanted}'" if "[" in wanted else wanted
    if top != module and _installed(top):
        return f"module {module} is missing from the installed {package} {_version(package)}: pip install -U {quoted}"
    return f"package {package} is missing (no module named '{module}'): pip install {quoted}"


def _installed(module: str) -> bool:
    with contextlib.suppress(ImportError, ValueError):
        return util.find_spec(module) is not None
    return False


def _version(package: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return "(version unknown)"


def describe_exit(code: int, oom_kills: int | None, memory: str) -> str:
    """How a worker ended. ``oom_kills``: by the kernel's count, how many processes lack of memory cost meanwhile
    (``None``: it does not count); ``memory``: what the worker held when last looked at."""
    if code >= 0:
        return f"worker exited with code {code}"
    name = f"signal {-code}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
    if code != -signal.SIGKILL:
        return f"worker killed by {name}"
    if oom_kills is None:
        return f"worker killed by {name}, probably out of memory ({memory})"
    why = "the machine ran out of memory" if oom_kills else "by someone else: memory had not run out"
    return f"worker killed by {name}, {why} ({memory})"


def last_line(log: Path) -> str:
    """The last thing that was printed into ``log``; however long the file, only its tail is read."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL_BYTES))
            lines = stream.read(_TAIL_BYTES).decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return _printable(lines[-1])[:300] if lines else ""


def _printable(text: str) -> str:
    """Without control characters: a worker's last words end up on a terminal."""
    return "".join(char if char.isprintable() else "�" for char in text)
