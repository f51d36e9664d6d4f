"""A user's model folder, as Hugging Face writes it, judged before anything of it is loaded. No torch, nothing executed.

Weights must be safetensors: pickled ones can run code when they are opened, so they are refused. The header of such a
file (8 bytes of length, then JSON: type, shape and place of each tensor) says how many parameters there are and how
long the file has to be; see the format's specification at huggingface/safetensors.
"""

import json
import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frugalbench.schema import FrugalbenchError
from frugalbench.untrusted import fault, read_bounded, shown

MOST_HEADER_BYTES = 100 * 2**20
"""The format's own limit."""
MOST_CONFIG_BYTES = 2**20
_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds."""

    folder: Path
    architecture: str
    causal: bool
    """Whether it is a language model that predicts the next token."""
    parameters: int
    stored_bytes: int


def is_hub_id(name: str) -> bool:
    """Whether ``name`` can be ``owner/model`` on the hub."""
    return bool(_HUB.fullmatch(name)) and ".." not in name


def cached(hub_id: str) -> Path | None:
    """Where the hub's own cache keeps the newest snapshot of a model, if it does."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    folder = hub / f"models--{hub_id.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text().strip()
    except OSError:
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if re.fullmatch(r"\w{1,64}", commit) and snapshot.is_dir() else None


def read(folder: Path) -> Checkpoint:
    """Judge a model folder.

    Raises :class:`FrugalbenchError` in one line: no ``config.json`` or a damaged one, code of its own, no weights,
    pickled weights, a weight file that is damaged or cut short, no ``tokenizer.json``.
    """
    config = _config(folder)
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    files = _weights(folder)
    parameters = sum(map(_parameters, files))
    if not (folder / "tokenizer.json").is_file():
        raise FrugalbenchError(f"{folder}: has no tokenizer.json; save the model's fast tokenizer beside it")
    return Checkpoint(
        folder=folder,
        architecture=shown(named or config.get("model_type", "unknown"), 100),
        causal=isinstance(named, str) and named.endswith(("ForCausalLM", "LMHeadModel")),
        parameters=parameters,
        stored_bytes=sum(path.stat().st_size for path in files),
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(read_bounded(path, MOST_CONFIG_BYTES))
    except OSError as problem:
        raise FrugalbenchError(f"{path}: cannot be read ({problem.strerror}); a model folder has one") from None
    except (ValueError, RecursionError):
        raise FrugalbenchError(f"{path}: is not JSON; fetch the model again") from None
    if not isinstance(config, dict) or fault(config):
        raise FrugalbenchError(f"{path}: is no model's configuration")
    if config.get("auto_map"):
        raise FrugalbenchError(f"{folder}: needs code of its own (auto_map in config.json), which is not run")
    return config


def _weights(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
        if pickled:
            raise FrugalbenchError(
                f"{folder}: holds only pickled weights ({pickled[0]}), which can run code; convert them to safetensors"
            )
        raise FrugalbenchError(f"{folder}: holds no weights; *.safetensors was looked for")
    missing = sorted(_indexed(folder) - {path.name for path in found})
    if missing:
        raise FrugalbenchError(f"{folder}: {shown(missing[0], 100)} is missing; fetch the model again")
    return found


def _indexed(folder: Path) -> set[str]:
    """Files that a model in several parts must have."""
    try:
        index = json.loads(read_bounded(folder / "model.safetensors.index.json", MOST_HEADER_BYTES))
        return {str(name) for name in index["weight_map"].values()}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FrugalbenchError(f"{folder}/model.safetensors.index.json: is damaged; fetch the model again") from None


def _parameters(path: Path) -> int:
    """How many values a weight file holds; it must be exactly as long as they need."""
    try:
        tensors, data_bytes = _tensors(path)
        ends = [int(tensor["data_offsets"][1]) for tensor in tensors]
        counts = [math.prod(map(int, tensor["shape"])) for tensor in tensors]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error, RecursionError):
        raise FrugalbenchError(f"{path}: is no safetensors file, or a damaged one; fetch the model again") from None
    if max(ends, default=0) != data_bytes:
        raise FrugalbenchError(
            f"{path}: holds {data_bytes} bytes of weights where its header names {max(ends, default=0)}; "
            "fetch the model again"
        )
    return sum(counts)


def _tensors(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The header's entries, and how many bytes follow it."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > MOST_HEADER_BYTES:
            raise ValueError
        header = json.loads(stream.read(length))
    tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
    return tensors, path.stat().st_size - 8 - length
