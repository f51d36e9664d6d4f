"""Sizes of a decoder: weights as the table of shapes counts them, FLOPs as torch counts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.specs.decoder_shape import DecoderShape
from frugalbench.specs.model_decode import DENSE
from frugalbench.specs.shapes import load_shapes

DENSE_MODELS = [shape for shape in load_shapes().values() if not shape.n_experts and shape.attn in DENSE]
sizes = st.integers(1, 6)
shapes = st.builds(
    lambda layers, d, kv, ratio, head, f, v: DecoderShape(layers, 8 * d, kv * ratio, kv, 2 * head, f, 10 * v),
    *[sizes] * 7,
)


@pytest.mark.parametrize("model", DENSE_MODELS, ids=lambda model: model.model)
def test_weights_are_those_of_the_published_shape(model):
    shape = DecoderShape.of_model(model, 0, 0)
    own_embedding = 0 if model.tied else model.vocab_size * model.d_model
    assert shape.parameters == model.parameters - own_embedding
    assert shape.cache_bytes(1, 2) == model.kv_bytes_per_token()


def test_fewer_layers_and_a_smaller_vocabulary_are_taken_as_asked():
    shape = DecoderShape.of_model(load_shapes()["qwen3-0.6b"], 4, 1000)
    assert (shape.layers, shape.vocabulary, shape.d_model) == (4, 1000, 1024)
    assert DecoderShape.of_params({**shape.params(), "seed": 1}) == shape


@given(shapes, st.integers(1, 9), st.integers(0, 9))
def test_a_prompt_costs_what_its_tokens_cost_one_by_one_less_the_heads_that_nobody_reads(shape, tokens, position):
    alone = sum(shape.attention_flop(1, position + done) for done in range(tokens))
    assert shape.attention_flop(tokens, position) == alone
    spared = (tokens - 1) * 2 * shape.table_weights
    assert shape.matrix_flop(tokens) == tokens * shape.matrix_flop(1) - spared
    assert shape.cache_bytes(tokens, 2) == tokens * shape.cache_bytes(1, 2)


@pytest.mark.real
def test_flop_are_those_that_torch_counts():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode

    shape = DecoderShape(layers=2, d_model=64, heads=4, kv_heads=2, head_dim=16, d_ff=96, vocabulary=128)
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.d_model, intermediate_size=shape.d_ff,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(config).eval()
    cache = transformers.DynamicCache(config=config)
    context, full_square = 24, shape.layers * 4 * 24 * 24 * shape.queries
    counted = []
    for ids in (torch.arange(context)[None], torch.tensor([[5]])):
        with FlopCounterMode(display=False) as counter:
            module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        counted.append(counter.get_total_flops())
    assert counted[0] == shape.matrix_flop(context) + full_square
    assert counted[1] == shape.matrix_flop(1) + shape.attention_flop(1, context)
