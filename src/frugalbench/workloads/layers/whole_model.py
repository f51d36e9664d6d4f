"""Whole networks with their tokenizers: the packaged encoder, the tiny language model, and a user's own folder.

Only safetensors are opened, nothing of a model folder is executed, and a fast tokenizer is read as plain data.
Shape suffixes: B batch, S sequence, D model width, V vocabulary.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frugalbench.schema import Artefact, Case
from frugalbench.specs import checkpoints, lm_quality
from frugalbench.specs.whole_models import ENCODER, LM, MINILM, TINY
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers import attention, tiny_lm

MOST_HASHED_BYTES = 256 * 2**20
_DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""What is fetched of a hub model: no pickled weights, no code."""


@dataclass
class Network:
    """A model that answers: an encoder's embeddings, or a language model's logits."""

    module: Any
    kind: str
    encode: Callable[[Sequence[str]], list[list[int]]]
    """Token ids of each text, cut to the longest that an encoder takes here."""
    vocabulary: int
    device: str
    digest: str
    """Hash of the weights' bytes: all of a small model, the beginning of each file of a large one."""
    keep: frozenset[str] = frozenset()
    """Linear layers that stay as loaded: an output head tied to a look-up table."""
    arrays: dict[str, np.ndarray] | None = None
    """The weights by name, where the model is our own."""
    artefacts: tuple[Artefact, ...] = ()

    def embed(self, ids_BS: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
        """Sentence embeddings (B, D), of length 1."""
        with torch.inference_mode():
            parts = (torch.from_numpy(part).to(self.device) for part in (ids_BS, mask_BS))
            return _finite(self.module(*parts)[1].double().cpu().numpy())

    def logits(self, ids_BS: np.ndarray) -> Any:
        """A tensor (B, S, V) on the device, in the precision that the module computes in."""
        with torch.inference_mode():
            found = self.module(torch.from_numpy(ids_BS).to(self.device))
            return found if torch.is_tensor(found) else found.logits


def _finite(answers: np.ndarray) -> np.ndarray:
    if not np.isfinite(answers).all():
        raise RuntimeError("the model's answers are not finite numbers")
    return answers


def open_network(case: Case, context: Context, exact: bool = False) -> Network:
    """The unquantised model of a case; ``exact`` computes in double precision, with attention written out.

    Raises ``RuntimeError`` or ``FrugalbenchError`` in one line: weights that are not finite, a tokenizer of another
    model, a model that is no language model, a folder that cannot be used.
    """
    params = case.params
    network = _open(params, context, exact)
    for name, weight in network.module.named_parameters():
        if not torch.isfinite(weight).all():
            raise RuntimeError(f"{params['model']}: {name} holds weights that are NaN or infinite")
    network.module.to(context.device)
    return network


def made_ready(case: Case, context: Context) -> str:
    """Train or fetch the model of a case where that has not been done; the hash of its weights. Nothing is loaded."""
    if case.params["model"] == TINY:
        return _digest_of(tiny_lm.trained(case.params, context.threads, context.cache_dir)[0])
    if case.params["model"] == MINILM:
        return _digest(attention.minilm_folder())
    return _digest(fetched(case.params["model"]))


def _open(params: dict[str, Any], context: Context, exact: bool) -> Network:
    if params["model"] == TINY:
        return _tiny(params, context, exact)
    if params["model"] == MINILM:
        folder = attention.minilm_folder()
        return _encoder(attention.minilm(folder, exact), folder, params, context)
    return _own(params, context, exact)


def _tiny(params: dict[str, Any], context: Context, exact: bool) -> Network:
    arrays, artefact = tiny_lm.trained(params, context.threads, context.cache_dir)
    module = tiny_lm.TinyLm(arrays, params).eval()
    return Network(
        module=module.double() if exact else module,
        kind=LM,
        encode=lambda texts: [list(text.encode()) for text in texts],
        vocabulary=lm_quality.VOCABULARY,
        device=context.device,
        digest=_digest_of(arrays),
        arrays=arrays,
        artefacts=(artefact,),
    )


def fetched(name: str) -> Path:
    """The folder of a user's model; one on the hub is fetched first, weights as safetensors only."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        return Path(snapshot_download(name, allow_patterns=_DOWNLOADED))
    except Exception as problem:
        told = " ".join(str(problem).split())[:200]
        raise RuntimeError(f"{name}: cannot be fetched from the hub ({told}); give a local folder") from None


def _own(params: dict[str, Any], context: Context, exact: bool) -> Network:
    folder = fetched(params["model"])
    found = checkpoints.read(folder)
    if (params["kind"] == LM) is not found.causal:
        wanted = "a causal language model" if params["kind"] == LM else "an encoder"
        raise RuntimeError(f"{params['model']}: {found.architecture} is not {wanted}")
    module = _pretrained(folder, found.causal, exact)
    if not found.causal:
        return _encoder(_pooled(module, exact), folder, params, context)
    _linearised(module)
    return Network(
        module=module,
        kind=LM,
        encode=_tokenizer(folder, module.get_input_embeddings().num_embeddings, None),
        vocabulary=module.config.vocab_size,
        device=context.device,
        digest=_digest(folder),
        keep=_tied(module),
    )


def _pretrained(folder: Path, causal: bool, exact: bool) -> Any:
    """transformers' own class for the architecture, in float32 (float64 where ``exact``)."""
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.utils import logging as chatter

    chatter.disable_progress_bar()
    chatter.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    kind = AutoModelForCausalLM if causal else AutoModel
    try:
        module = kind.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
            attn_implementation="eager" if exact else "sdpa",
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as problem:
        told = " ".join(str(problem).split())[:200]
        raise RuntimeError(f"{folder}: transformers cannot load it ({told})") from None
    if hasattr(module.config, "use_cache"):
        module.config.use_cache = False
    return (module.double() if exact else module).eval()


def _linearised(module: Any) -> None:
    """GPT-2 and its kin keep their linear layers transposed; made ``torch.nn.Linear``, so that schemes find them."""
    from transformers.pytorch_utils import Conv1D

    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv1D):
                layer = torch.nn.Linear(*child.weight.shape, bias=True, device="meta")
                layer.weight = torch.nn.Parameter(child.weight.detach().T.contiguous(), requires_grad=False)
                layer.bias = torch.nn.Parameter(child.bias.detach(), requires_grad=False)
                setattr(parent, name, layer)


def _tied(module: Any) -> frozenset[str]:
    """Names of linear layers whose weights are those of the input look-up table."""
    table = module.get_input_embeddings().weight
    return frozenset(
        name
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer.weight.data_ptr() == table.data_ptr()
    )


def _pooled(encoder: Any, exact: bool) -> Any:
    """An encoder as a module of (ids, mask) to the hidden state and its mean over real tokens, scaled to length 1."""

    class Pooled(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden_BSD = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask_BS1 = attention_mask.unsqueeze(-1).to(hidden_BSD.dtype)
            mean_BD = (hidden_BSD * mask_BS1).sum(1) / mask_BS1.sum(1)
            return hidden_BSD, torch.nn.functional.normalize(mean_BD, dim=-1)

    module = Pooled().eval()
    return module.double() if exact else module


def _encoder(module: Any, folder: Path, params: dict[str, Any], context: Context) -> Network:
    table = module.encoder.get_input_embeddings()
    return Network(
        module=module,
        kind=ENCODER,
        encode=_tokenizer(folder, table.num_embeddings, params["seq"]),
        vocabulary=table.num_embeddings,
        device=context.device,
        digest=_digest(folder),
    )


def _tokenizer(folder: Path, rows: int, most_tokens: int | None) -> Callable[[Sequence[str]], list[list[int]]]:
    """``tokenizer.json`` as a function. It must not know more tokens than the model's look-up table has rows."""
    from tokenizers import Tokenizer

    try:
        tool = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as problem:
        told = " ".join(str(problem).split())[:200]
        raise RuntimeError(f"{folder}/tokenizer.json cannot be read ({told})") from None
    known = max(tool.get_vocab(with_added_tokens=True).values(), default=0) + 1
    if known > rows:
        raise RuntimeError(
            f"{folder}: the tokenizer knows {known} tokens, the model {rows}: they do not belong together"
        )
    tool.no_padding()
    tool.no_truncation()
    if most_tokens is not None:
        tool.enable_truncation(most_tokens)
    special = most_tokens is not None
    return lambda texts: [item.ids for item in tool.encode_batch(list(texts), add_special_tokens=special)]


def _digest_of(arrays: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()[:16]


def _digest(folder: Path) -> str:
    """Of every weight file: its size and its first 256 MiB."""
    state = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        state.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as stream:
            left = MOST_HASHED_BYTES
            while left and (part := stream.read(min(left, 2**20))):
                state.update(part)
                left -= len(part)
    return state.hexdigest()[:16]
