"""A whole model as transformers runs it: ``LlamaForCausalLM`` in float32, bfloat16, or with dynamic int8 layers.

The cache is the one that ``generate()`` makes by default, attention is torch's own (``sdpa``), and logits are computed
of the last token alone, as ``generate()`` asks for.
"""

import warnings
from typing import Any

import numpy as np
import torch

from frugalbench.schema import Artefact, Case
from frugalbench.specs.decoder_shape import DecoderShape
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers.decode_reference import Quantised
from frugalbench.workloads.layers.decode_weights import Tokens, Weights
from frugalbench.workloads.layers.quant_stored import Stored, dense_stored, int8_matrix

_HOME = {"q": "self_attn", "k": "self_attn", "v": "self_attn", "o": "self_attn"}
"""Where a matrix hangs in a layer; those of the feed-forward network in ``mlp``."""
GAIN_NAMES = {"norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_BFLOAT16_ROUNDOFF = 2.0**-8


def make(case: Case, weights: Weights, tokens: Tokens, context: Context) -> "TransformersModel":  # noqa: ARG001
    """The model of a case."""
    return TransformersModel(case, weights, tokens)


class TransformersModel:
    """The module, and the cache of the text that is continued."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, case: Case, weights: Weights, tokens: Tokens) -> None:
        p = case.params
        self._weights, self._scheme = weights, p["scheme"]
        self.lossy = self._scheme != "float32"
        self.module = empty(p, weights.shape)
        _fill(self.module, weights, torch.bfloat16 if self._scheme == "bfloat16" else torch.float32, self._dynamic)
        self._text = _ids(tokens.context)
        self._following = [_ids(tokens.following[i : i + 1]) for i in range(len(tokens.following))]
        self._prompts = [_ids(prompt) for prompt in tokens.prompts]
        self._cache: Any = None
        engine = f"quantized::linear_dynamic ({torch.backends.quantized.engine})"
        products = engine if self._dynamic else f"aten::linear {self._scheme}"
        self.kernel = f"LlamaForCausalLM, {products}, sdpa, DynamicCache"
        self.details: dict[str, object] = {}

    @property
    def _dynamic(self) -> bool:
        return bool(self._scheme == "int8-dynamic")

    def read(self, count: int) -> None:
        """Read the first ``count`` tokens of the text, for nothing."""
        self._step(self._text[:, :count], self._fresh())

    def fill(self) -> None:
        """Read the text that is continued."""
        self._cache = self._fresh()
        self._step(self._text, self._cache)

    def _fresh(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.module.config)

    def _step(self, ids: Any, cache: Any) -> Any:
        with torch.inference_mode():
            return self.module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    def decode(self, index: int) -> Any:
        """Logits after token ``index`` behind the text; the token is taken out of the cache again."""
        found = self._step(self._following[index], self._cache)
        self._cache.crop(-1)
        return found

    def prefill(self, index: int) -> Any:
        """Logits after prompt ``index``."""
        return self._step(self._prompts[index], self._fresh())

    def logits(self, found: Any) -> np.ndarray:
        """As float64 (V)."""
        return np.asarray(found.reshape(-1).double().numpy())

    def held(self) -> "TransformersHeld":
        """What the module holds."""
        return TransformersHeld(self._weights, self.module)

    def loaded_bytes(self) -> int:
        """Bytes of every parameter, each piece of memory once, and of quantised layers with their scales."""
        return self._float_bytes() + sum(_int8(layer).size_bytes for layer in self._quantised())

    def unquantised_bytes(self) -> int:
        """What stays as it was beside quantised layers: here the look-up table, whose codes the head alone has."""
        return self._float_bytes() if self._quantised() else 0

    def _float_bytes(self) -> int:
        return int(sum({item.data_ptr(): item.nbytes for item in self.module.parameters()}.values()))

    def _quantised(self) -> list[Any]:
        return [layer for layer in self.module.modules() if _is_dynamic(layer)]

    def threads(self) -> int:
        """Threads that torch computes with."""
        return int(torch.get_num_threads())

    def close(self) -> None:
        """Nothing outlives the process."""


def _ids(tokens: np.ndarray) -> Any:
    return torch.from_numpy(tokens.astype(np.int64))[None]


def empty(p: dict[str, Any], shape: DecoderShape) -> Any:
    """The module without memory for its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.d_model, intermediate_size=shape.d_ff,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, rms_norm_eps=p["epsilon"], rope_theta=p["rotary_base"], tie_word_embeddings=True,
        max_position_embeddings=max(p["context"] + 1, p["prompt_tokens"]), bos_token_id=None, eos_token_id=None,
        attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device("meta"):
        module = LlamaForCausalLM(config).eval()
    module.model.rotary_emb = LlamaRotaryEmbedding(config)
    return module


def _fill(module: Any, weights: Weights, dtype: Any, dynamic: bool) -> None:
    """Weights layer by layer; where they are quantised, a layer's float weights are gone before the next one's come."""
    for number, layer in enumerate(module.model.layers):
        for name in weights.shape.matrices():
            _set(linear_of(layer, name), weights.matrix(number, name), dtype)
        for name, theirs in GAIN_NAMES.items():
            _set(getattr(layer, theirs), weights.gain(number, name), dtype)
        if dynamic:
            _quantise(layer)
    _set(module.model.norm, weights.last_gain(), dtype)
    _set(module.model.embed_tokens, weights.table(), dtype)
    module.lm_head.weight = module.model.embed_tokens.weight
    if dynamic:
        _quantise(module)


def linear_of(layer: Any, name: str) -> Any:
    """Matrix ``name`` of a layer as a module."""
    return getattr(getattr(layer, _HOME.get(name, "mlp")), f"{name}_proj")


def _set(layer: Any, values: np.ndarray, dtype: Any) -> None:
    layer.weight = torch.nn.Parameter(torch.from_numpy(np.array(values)).to(dtype), requires_grad=False)


def _quantise(module: Any) -> None:
    """Every ``torch.nn.Linear`` in place. The head gets codes of its own; the look-up table stays as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


def _is_dynamic(layer: Any) -> bool:
    return isinstance(layer, torch.ao.nn.quantized.dynamic.Linear)


def _int8(layer: Any) -> Stored:
    """Codes, scale and zero point, unpacked from the engine's own layout."""
    weight = layer.weight()
    return int8_matrix(weight.int_repr().numpy(), np.array([weight.q_scale()]), np.array([weight.q_zero_point()]))


class TransformersHeld(Quantised):
    """The weights in the module's layers."""

    def __init__(self, weights: Weights, module: Any) -> None:
        super().__init__(weights)
        self._module = module

    def gain(self, layer: int, name: str) -> np.ndarray:
        """In the module's own precision, as float64."""
        return _wide(getattr(self._module.model.layers[layer], GAIN_NAMES[name]).weight)

    def last_gain(self) -> np.ndarray:
        """In the module's own precision, as float64."""
        return _wide(self._module.model.norm.weight)

    def stored(self, layer: int, name: str) -> Stored:
        """Codes, or values in the module's own precision."""
        return _stored(linear_of(self._module.model.layers[layer], name), 1.0)

    def stored_table(self) -> Stored:
        """Those of the head."""
        return _stored(self._module.lm_head, np.sqrt(self._weights.shape.d_model))

    def embedding(self, tokens_T: np.ndarray) -> np.ndarray:
        """Rows of the look-up table, float64."""
        return _wide(self._module.model.embed_tokens.weight[torch.from_numpy(tokens_T.astype(np.int64))])


def _wide(values: Any) -> np.ndarray:
    return np.asarray(values.detach().double().numpy())


def _stored(layer: Any, spread: float) -> Stored:
    """``spread``: standard deviation of the weights over 1/sqrt(K)."""
    if _is_dynamic(layer):
        return _int8(layer)
    return dense_stored(layer.weight.detach().float().numpy(), _BFLOAT16_ROUNDOFF * spread)
