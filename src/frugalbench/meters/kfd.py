"""AMD GPUs as the kernel describes them (``/sys/class/kfd``): what ROCm's torch calls ``cuda``. Loads no library.

Each GPU, or partition of one, is a node of the topology: ``properties``, ``mem_banks/*/properties`` (bytes) and
``caches/*/properties`` (level and size in KiB, one entry for each instance).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DEVICE = Path("/dev/kfd")
NODES = Path("/sys/class/kfd/kfd/topology/nodes")
VISIBLE = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
_L2, _L3 = 2, 3
_NO_LARGE_CACHE = ((0, 90_400), (100_100, 100_300))
"""Versions of the instruction set (gfx942 is 90402) whose L2 is the last level: up to MI200, and RDNA 1. All others
have an Infinity Cache (MI300, RDNA 2 and later; recalled, 2026-11), which the topology lists as level 3 where the
kernel knows it."""


@dataclass(frozen=True)
class Gpu:
    """One node. ``None`` where the kernel does not tell."""

    name: str
    isa: str
    """``gfx942``."""
    uuid: str
    multiprocessors: int | None
    memory_bytes: int | None
    most_clock_hz: float | None
    cache_bytes: int | None
    """All instances of the last level that there is, which is not always the last one that is told."""


def gpus(environ: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The GPUs that HIP may use, in its order as far as the variables tell it; empty without the driver."""
    if not DEVICE.exists():
        return []
    try:
        folders = sorted(NODES.iterdir(), key=lambda folder: int(folder.name))
    except (OSError, ValueError):
        return []
    return visible([gpu for folder in folders if (gpu := _gpu(folder)) is not None], environ)


def visible(found: Sequence[Gpu], environ: Mapping[str, str]) -> list[Gpu]:
    """Those that ``ROCR_VISIBLE_DEVICES`` leaves, and of these those that HIP's own variable names."""
    left = list(found)
    for names in (VISIBLE[:1], VISIBLE[1:]):
        given = next((environ[name] for name in names if name in environ), None)
        if given is not None:
            left = [gpu for name in given.split(",") if (gpu := _named(name.strip(), left)) is not None]
    return left


def _named(name: str, found: Sequence[Gpu]) -> Gpu | None:
    if name.isdigit():
        return found[int(name)] if int(name) < len(found) else None
    return next((gpu for gpu in found if name and gpu.uuid == name), None)


def _gpu(folder: Path) -> Gpu | None:
    told = _numbers(folder / "properties")
    version = told.get("gfx_target_version", 0)
    if not told.get("simd_count") or not version:
        return None  # a processor
    isa = f"gfx{version // 10_000}{version // 100 % 100:x}{version % 100:x}"
    each, clock_mhz = told.get("simd_per_cu"), told.get("max_engine_clk_fcompute")
    return Gpu(
        name=f"AMD {_product(told) or isa}",
        isa=isa,
        uuid=f"GPU-{told.get('unique_id', 0):016x}",
        multiprocessors=told["simd_count"] // each if each else None,
        memory_bytes=_sum(folder / "mem_banks", "size_in_bytes") or None,
        most_clock_hz=clock_mhz * 1e6 if clock_mhz else None,
        cache_bytes=_cache_bytes(folder, version),
    )


def _product(told: Mapping[str, int]) -> str:
    """What the board calls itself, by its render node."""
    minor = told.get("drm_render_minor", 0)
    try:
        return Path(f"/sys/class/drm/renderD{minor}/device/product_name").read_text().strip()
    except OSError:
        return ""


def _cache_bytes(folder: Path, version: int) -> int | None:
    levels: dict[int, int] = {}
    for cache in _folders(folder / "caches"):
        told = _numbers(cache / "properties")
        levels[told.get("level", 0)] = levels.get(told.get("level", 0), 0) + told.get("size", 0) * 1024
    if levels.get(_L3):
        return levels[_L3]
    return levels.get(_L2) or None if any(low <= version < high for low, high in _NO_LARGE_CACHE) else None


def _sum(folder: Path, key: str) -> int:
    return sum(_numbers(item / "properties").get(key, 0) for item in _folders(folder))


def _folders(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _numbers(file: Path) -> dict[str, int]:
    """Lines of a name and a whole number."""
    try:
        pairs = (line.split() for line in file.read_text().splitlines())
    except (OSError, UnicodeDecodeError):
        return {}
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def ailment(found: Sequence[Gpu], environ: Mapping[str, str] = os.environ) -> str | None:
    """Why no run on an AMD GPU could succeed, with what to do; ``None`` where nothing is known against it."""
    if not found:
        hiding = " and ".join(name for name in VISIBLE if name in environ)
        if hiding:
            return f"{hiding} hides every AMD GPU; unset it, or name one that `rocminfo` lists"
        return f"{DEVICE} is there, and the kernel lists no GPU; see `dmesg`"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"{DEVICE} may not be opened: join the groups render and video (sudo usermod -aG render,video $USER)"
    if found[0].cache_bytes is None:
        return (
            f"the kernel does not tell the size of the Infinity Cache of {found[0].name} ({found[0].isa}), and weights "
            "must rotate through more bytes than it holds; a newer kernel's KFD lists it as a cache of level 3"
        )
    return None
