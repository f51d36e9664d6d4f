"""Published totals recomputed from shapes. Every miss above 3% is listed here with its size; a new one fails."""

import csv

import pytest

from frugalbench import paths
from frugalbench.specs.shapes import ModelShape, load_shapes

LIMIT = 0.03
TOTAL_MISSES: dict[str, float] = {}
ACTIVE_MISSES = {
    # The sources count active parameters with or without the input embedding; the nearer of the two is compared.
    "qwen3-next-80b-a3b": 0.186,  # the name rounds 3.6 B down to 3
    "glm-4.5-air-106b-a12b": 0.067,
    "glm-4.7-flash-30b-a3b": 0.193,  # the name rounds 3.6 B down to 3
    "minimax-m2": 0.042,
}
HYBRIDS = {"kimi-linear-48b-a3b", "qwen3-next-80b-a3b", "qwen3.5-35b-a3b"}
"""The CSV's own calculation gives their linear layers the size of their full ones."""

with paths.data("model_shapes.csv").open(newline="", encoding="utf-8") as file:
    ROWS = {row["model"]: row for row in csv.DictReader(file)}


def miss(computed: int, published_b: float) -> float:
    return computed / 1e9 / published_b - 1


def active_miss(shape: ModelShape) -> float:
    counts = (shape.active_parameters, shape.active_parameters_with_embedding)
    return min((miss(count, shape.published_active_b) for count in counts), key=abs)


def large(misses: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in misses.items() if abs(value) > LIMIT}


def test_all_rows_load_and_have_a_source():
    assert len(load_shapes()) == len(ROWS) == 34
    for shape in load_shapes().values():
        assert shape.source
        assert shape.read_or_recalled in {"read", "recalled"}


def test_published_totals_are_reproduced():
    misses = {name: miss(shape.parameters, shape.published_total_b) for name, shape in load_shapes().items()}
    assert large(misses) == TOTAL_MISSES


def test_published_active_parameters_are_reproduced():
    assert large({name: active_miss(shape) for name, shape in load_shapes().items()}) == ACTIVE_MISSES


@pytest.mark.parametrize("name", sorted(ROWS))
def test_agrees_with_the_independent_calculation(name):
    shape, row = load_shapes()[name], ROWS[name]
    pairs = (
        (shape.parameters, "computed_total_b"),
        (shape.active_parameters_with_embedding, "computed_active_b"),
        (shape.active_parameters, "computed_active_no_input_emb_b"),
    )
    agrees = all(abs(count / 1e9 - float(row[column])) < 0.011 for count, column in pairs)
    assert agrees == (name not in HYBRIDS)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_cache_growth_agrees_with_the_independent_calculation(name):
    assert load_shapes()[name].kv_bytes_per_token() == int(ROWS[name]["kv_bytes_per_token_bf16"])


def test_latent_cache_saves_what_deepseek_v2_derives():
    """34,560 against 194,560 elements per token: the part of DeepSeek-V2's 93.3% saving that is not fewer bits."""
    shapes = load_shapes()
    mla, gqa = (shapes[name].kv_bytes_per_token(1) for name in ("deepseek-v2-236b", "deepseek-llm-67b"))
    assert (mla, gqa) == (34_560, 194_560)


def test_parameters_of_a_small_decoder_match_a_real_one():
    """An independent count: the weights that transformers allocates for the same shape (query/key norms left out)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64}
    experts = {"moe_intermediate_size": 16, "num_experts": 6, "num_experts_per_tok": 2, "mlp_only_layers": [0]}
    config = transformers.Qwen3MoeConfig(num_hidden_layers=3, intermediate_size=48, **sizes, **experts)
    with torch.device("meta"):
        model = transformers.Qwen3MoeForCausalLM(config)
    held = sum(p.numel() for name, p in model.named_parameters() if "q_norm" not in name and "k_norm" not in name)
    shape = small(n_layers=3, n_dense_layers=1)
    assert shape.parameters == held
    unused = 2 * (6 - 2) * 3 * 32 * 16
    assert shape.active_parameters_with_embedding == held - unused
    assert shape.active_parameters == held - unused - 64 * 32


def small(**changes: object) -> ModelShape:
    zero = dict.fromkeys(
        ("q_lora_rank", "kv_lora_rank", "qk_nope_dim", "qk_rope_dim", "v_head_dim", "sliding_window"), 0
    )
    attention = {"attn": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "n_full_attn_layers": 3}
    ffn = {"d_model": 32, "d_ff_dense": 48, "d_ff_expert": 16, "n_experts": 6, "top_k": 2, "n_shared": 0}
    rest = {"model": "small", "vocab_size": 64, "tied": False, "source": "test", "read_or_recalled": "read"}
    published = {"published_total_b": 0.0, "published_active_b": 0.0}
    return ModelShape(**{**zero, **attention, **ffn, **rest, **published, **changes})
