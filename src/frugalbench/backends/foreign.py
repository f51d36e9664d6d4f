"""Devices that torch reaches through its out-of-tree interface (the dispatch key PrivateUse1).

``stand-in`` is the one of ``kernels/torch/stand_in.cpp``: host memory that torch takes for another device's. ``npu``
and ``musa`` are vendors' adapters, used where they are installed. A process can open one device, once.
"""

import ctypes
import importlib
import types
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from frugalbench.backends.native import ABI_VERSION
from frugalbench.native_build import Built, build
from frugalbench.schema import FrugalbenchError

SOURCE = "torch/stand_in.cpp"
NAME = "standin"
"""What torch calls the stand-in; it allows letters only."""
ADAPTERS = {"npu": "torch_npu", "musa": "torch_musa"}
KEY = "PrivateUse1"

REQUIRED = (
    "empty.memory_format", "empty_strided", "as_strided", "view", "_reshape_alias", "resize_", "_copy_from",
    "_copy_from_and_resize", "_local_scalar_dense", "set_.source_Tensor", "set_.source_Storage",
    "set_.source_Storage_storage_offset",
)  # fmt: skip
"""What torch's documentation requires of an adapter beside a fallback (docs.pytorch.org, accelerator/operators, table
"Operator Set", updated 2025-10-24)."""
_MOVES = ("aten::_to_copy", "aten::copy", "aten::clone")
"""Core operators that carry data between devices; torch composes them from the required ones."""
_OPTIONS = ("dtype", "layout", "device", "pin_memory", "memory_format")


@dataclass(frozen=True)
class Tally:
    """How often an operator ran, and the bytes that this copied between device and host."""

    calls: int
    copied_bytes: int | None
    """``None`` where the adapter does not tell."""


@dataclass
class Device:
    """An open device."""

    name: str
    """Torch's name for its type."""
    adapter: str
    registered: tuple[str, ...] = ()
    """Operators of the stand-in, beyond the required ones."""
    _warned: list[str] = field(default_factory=list)

    def fallbacks(self) -> int:
        """Calls so far that the host answered, as the adapter itself counts them."""
        return len(self._warned)

    def tallies(self) -> tuple[dict[str, Tally], dict[str, Tally]]:
        """What ran on the device and what the host did for it, by operator, since :meth:`reset`."""
        return {}, {}

    def reset(self) -> None:
        """Begin to count anew."""

    def synchronize(self) -> None:
        """Wait until the device is done."""
        getattr(torch, self.name).synchronize()

    def listen(self) -> AbstractContextManager[None]:
        """While open, the adapter's warnings of a fallback are kept and counted."""
        return _warnings(self._warned)


class StandIn(Device):
    """The device of ``kernels/torch/stand_in.cpp``, which counts for itself."""

    def fallbacks(self) -> int:
        return int(_library().fb_stand_in_fallbacks())

    def tallies(self) -> tuple[dict[str, Tally], dict[str, Tally]]:
        found: dict[str, dict[str, Tally]] = {"device": {}, "host": {}}
        for line in _library().fb_stand_in_report().decode().splitlines():
            where, name, calls, copied = line.split("\t")
            found[where][name] = Tally(int(calls), int(copied))
        return found["device"], found["host"]

    def reset(self) -> None:
        _library().fb_stand_in_reset()

    def synchronize(self) -> None:
        """A call returns when it is done."""


@contextmanager
def _warnings(found: list[str]) -> Iterator[None]:
    """Adds to ``found``, at once, the warnings that say that the host computes in the device's place."""

    def keep(message: object, *_: object, **__: object) -> None:
        if is_fallback(str(message)):
            found.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = keep
        yield


def is_fallback(warning: str) -> bool:
    """Whether an adapter's warning says that an operator runs on the host."""
    text = warning.lower()
    return "fall back" in text or "fallback" in text


def built() -> Built:
    """The stand-in, compiled against the headers of this torch. Raises :class:`FrugalbenchError` when it cannot be."""
    home = Path(torch.__file__).parent
    include = home / "include"
    flags = (
        "-std=c++20", "-O1", "-w", f"-DTORCH='{torch.__version__}'", f"-I{include}",
        f"-I{include / 'torch/csrc/api/include'}", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        "-Wl,--no-as-needed", f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10",
    )  # fmt: skip
    return build(SOURCE, flags)


@cache
def _library() -> ctypes.CDLL:
    path = built().path
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise FrugalbenchError(f"cannot load {path} ({error}); delete it and run again") from error
    if (found := loaded.fb_abi_version()) != ABI_VERSION:
        raise FrugalbenchError(f"native kernels have ABI {found}, not {ABI_VERSION}; install frugalbench again")
    loaded.fb_stand_in_register.argtypes = [ctypes.c_char_p]
    loaded.fb_stand_in_report.restype = ctypes.c_char_p
    loaded.fb_stand_in_fallbacks.restype = ctypes.c_int64
    return loaded


def open_device(name: str, core: bool) -> Device:
    """``stand-in`` (with ``core`` operators, or the required ones alone), ``npu`` or ``musa``.

    Raises ``RuntimeError`` where an adapter is missing or finds no device.
    """
    return _stand_in(core) if name == "stand-in" else _adapter(name)


def _stand_in(core: bool) -> StandIn:
    library = _library()
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    torch.utils.generate_methods_for_privateuse1_backend()
    names = tuple(core_operators()) if core else ()
    for operator in names:
        if library.fb_stand_in_register(operator.removeprefix("aten::").encode()):
            raise RuntimeError(f"torch refused a kernel of the stand-in device for {operator}")
    return StandIn(NAME, f"stand-in, torch {torch.__version__}", names)


def _module() -> types.ModuleType:
    """What torch asks of ``torch.<device>``."""
    module = types.ModuleType(f"torch.{NAME}")
    answers = {"is_available": True, "device_count": 1, "current_device": 0, "_is_in_bad_fork": False}
    for name, answer in answers.items():
        setattr(module, name, lambda answer=answer: answer)
    for name in ("manual_seed_all", "synchronize", "set_device"):
        setattr(module, name, lambda *_: None)
    return module


def _adapter(name: str) -> Device:
    package = ADAPTERS[name]
    try:
        adapter = importlib.import_module(package)
    except (ImportError, OSError) as problem:
        raise RuntimeError(f"{package} does not load: {str(problem).splitlines()[0]}") from problem
    if not getattr(torch, name).is_available():
        raise RuntimeError(f"{package} finds no device")
    return Device(name, f"{package} {getattr(adapter, '__version__', 'of unknown version')}")


def core_operators() -> Iterator[str]:
    """Every operator that this torch tags ``core`` (the Core ATen set, which it documents as what a backend is to
    support), with its in-place and out forms, but for: the required ones; views; what moves data between devices; what
    torch itself spells out for all backends."""
    families = _families()
    core = {_family(op): None for name, op in _overloads() if torch.Tag.core in op.tags and _takes_kernel(name, op)}
    for family in core:
        yield from (name for name, op in families[family] if _takes_kernel(name, op))


def _takes_kernel(name: str, op: Any) -> bool:
    is_view = any(result.alias_info and not result.alias_info.is_write for result in op._schema.returns)
    has_tensor_result = any("Tensor" in str(result.type) for result in op._schema.returns)
    spelled_out = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
    apart = name in _MOVES or name.removeprefix("aten::") in REQUIRED
    return has_tensor_result and not (is_view or spelled_out or apart)


@cache
def _overloads() -> tuple[tuple[str, Any], ...]:
    """Operators of aten by full name."""
    found = []
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        base, _, overload = name.removeprefix("aten::").partition(".")
        packet = getattr(torch.ops.aten, base, None) if name.startswith("aten::") else None
        if (op := getattr(packet, overload or "default", None)) is not None:
            found.append((name, op))
    return tuple(found)


@cache
def _families() -> dict[tuple[object, ...], list[tuple[str, Any]]]:
    """Forms of the same operator: equal names but for the mark of the in-place form, equal inputs."""
    found: dict[tuple[object, ...], list[tuple[str, Any]]] = {}
    for name, op in _overloads():
        found.setdefault(_family(op), []).append((name, op))
    return found


def _family(op: Any) -> tuple[object, ...]:
    name = op._schema.name.removeprefix("aten::")
    inputs = [
        (argument.name, str(argument.type))
        for argument in op._schema.arguments
        if not argument.is_out and argument.name not in _OPTIONS
    ]
    return name if name.startswith("__") else name.removesuffix("_"), *inputs
