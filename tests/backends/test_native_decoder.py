"""The own decoder against a float64 model of the weights that it stores, on every instruction set of this machine."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")

from frugalbench import native_build  # noqa: E402
from frugalbench.backends import native_decoder, native_quant  # noqa: E402
from frugalbench.backends.native import Operation, peaks  # noqa: E402
from frugalbench.specs.decode_formats import FORMATS  # noqa: E402
from frugalbench.specs.decoder_shape import EPSILON, ROTARY_BASE, DecoderShape  # noqa: E402
from frugalbench.workloads.layers.decode_native import _SOURCES, NativeHeld  # noqa: E402
from frugalbench.workloads.layers.decode_reference import Rows, forward  # noqa: E402
from frugalbench.workloads.layers.decode_weights import Weights  # noqa: E402

if native_build.find_compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

KNOWN = [peaks().which(Operation.INT8, number) for number in range(6)]
HERE = [isa for isa in ("portable", "avx2", "avx512_vnni") if isa == "portable" or isa in KNOWN]
SMALL = DecoderShape(layers=2, d_model=96, heads=4, kv_heads=2, head_dim=32, d_ff=80, vocabulary=100)
LIMIT = {32: FORMATS["native-fp32"], 8: FORMATS["native-w8a8"], 4: FORMATS["native-w4a8"]}
CONTEXT = 40

shapes = st.builds(
    lambda layers, kv, ratio, head, model, width: DecoderShape(layers, 8 * model, kv * ratio, kv, head, width, 90),
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 4), st.sampled_from([16, 32, 48]), st.integers(1, 12),
    st.integers(1, 150),
)  # fmt: skip


def made(weights, bits, isa=None, pack=False):
    """A decoder of drawn weights; ``pack`` gives it matrices that were packed before."""
    s = weights.shape
    decoder = native_decoder.Decoder(
        native_decoder.Dimensions(
            layers=s.layers, model=s.d_model, heads=s.heads, kv_heads=s.kv_heads, head=s.head_dim, width=s.d_ff,
            vocabulary=s.vocabulary, context=CONTEXT, epsilon=EPSILON, base=ROTARY_BASE,
        ),
        bits, isa,
    )  # fmt: skip

    def given(matrix):
        tensor = torch.from_numpy(np.array(matrix))
        return native_quant.kernel(isa).pack(tensor, bits) if pack else tensor

    for layer in range(s.layers):
        gains = {name: torch.from_numpy(weights.gain(layer, name)) for name in ("norm", "ffn_norm")}
        matrices = {
            name: given(np.vstack([weights.matrix(layer, part) for part in parts])) for name, parts in _SOURCES.items()
        }
        decoder.add_layer(gains | matrices)
    decoder.finish(torch.from_numpy(weights.last_gain()), given(weights.table()))
    return decoder


def text(weights, count):
    return torch.from_numpy(np.random.default_rng(count).integers(0, weights.shape.vocabulary, count, dtype=np.int32))


def wanted(weights, decoder, tokens, rows):
    stream = Rows(tokens.numpy(), np.arange(len(tokens)), np.tri(len(tokens), dtype=bool), rows, rows)
    return forward(weights.shape, NativeHeld(weights, decoder), stream, rows, EPSILON, ROTARY_BASE)


def generated(decoder, tokens, prompt):
    """Logits after the prompt, then after each further token."""
    found = [decoder.step(tokens[:prompt], 0)]
    found += [decoder.step(tokens[at : at + 1], at) for at in range(prompt, len(tokens))]
    return torch.stack(found).double().numpy()


def error(found, expected):
    return float(np.abs(found - expected).max() / np.sqrt((expected**2).mean()))


@pytest.mark.parametrize(("isa", "bits"), [*itertools.product(HERE, native_quant.BITS)])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=shapes, prompt=st.integers(1, 12), more=st.integers(0, 4))
def test_steps_are_those_of_the_stored_weights(tmp_path, isa, bits, shape, prompt, more):
    weights = Weights(shape, 1, tmp_path)
    decoder, tokens = made(weights, bits, isa), text(weights, prompt + more)
    rows = np.arange(prompt - 1, prompt + more)
    # Widths of a few values average little of what rounding does to them.
    limit = LIMIT[bits].tolerance(shape.layers) * (1 + 8 / np.sqrt(shape.d_model))
    assert error(generated(decoder, tokens, prompt), wanted(weights, decoder, tokens, rows)) < limit


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("bits", native_quant.BITS)
def test_same_bits_on_any_number_of_threads(tmp_path, isa, bits):
    weights = Weights(SMALL, 1, tmp_path)
    tokens, before, found = text(weights, 20), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(generated(made(weights, bits, isa), tokens, 13))
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_every_instruction_set_gives_the_same_answer(tmp_path):
    weights = Weights(SMALL, 1, tmp_path)
    found = [generated(made(weights, 32, isa), text(weights, 20), 13) for isa in HERE]
    assert all(error(other, found[0]) < 2e-3 for other in found)


def test_tokens_read_at_once_and_one_by_one_give_the_same_answer(tmp_path):
    weights = Weights(SMALL, 1, tmp_path)
    decoder, tokens = made(weights, 32), text(weights, 20)
    alone = generated(decoder, tokens, 1)
    assert error(generated(decoder, tokens, 20), alone[-1:]) < 2e-3
    assert error(alone[:-1], alone[1:]) > 0.1


def test_a_cache_of_its_own_leaves_the_models_alone(tmp_path):
    weights = Weights(SMALL, 1, tmp_path)
    decoder, tokens = made(weights, 32), text(weights, 20)
    before = generated(decoder, tokens, 13)[-1]
    decoder.step(text(weights, 30), 0, decoder.new_cache())
    assert np.array_equal(decoder.step(tokens[19:], 19).double().numpy(), before)


def test_a_token_at_the_same_place_again_takes_the_place_of_the_one_before(tmp_path):
    weights = Weights(SMALL, 1, tmp_path)
    decoder, tokens = made(weights, 32), text(weights, 20)
    decoder.step(tokens[:13], 0)
    first, other = (decoder.step(tokens[at : at + 1], 13) for at in (13, 14))
    assert not torch.equal(first, other)
    assert torch.equal(decoder.step(tokens[13:14], 13), first)


@pytest.mark.parametrize("bits", native_quant.BITS)
def test_matrices_that_were_packed_before_are_held_as_they_are(tmp_path, bits):
    weights = Weights(SMALL, 1, tmp_path)
    tokens = text(weights, 9)
    fresh, packed = made(weights, bits), made(weights, bits, pack=True)
    assert np.array_equal(generated(fresh, tokens, 5), generated(packed, tokens, 5))
    assert fresh.stored_bytes() == packed.stored_bytes()


@pytest.mark.parametrize("token", [-1, SMALL.vocabulary])
def test_tokens_that_do_not_exist_are_refused(tmp_path, token):
    decoder = made(Weights(SMALL, 1, tmp_path), 8)
    with pytest.raises(RuntimeError, match="size does not fit"):
        decoder.step(torch.tensor([1, token], dtype=torch.int32), 0)


@pytest.mark.parametrize(("count", "position"), [(1, -1), (1, CONTEXT), (2, CONTEXT - 1), (CONTEXT + 1, 0)])
def test_positions_outside_of_the_cache_are_refused(tmp_path, count, position):
    decoder = made(Weights(SMALL, 1, tmp_path), 8)
    with pytest.raises(RuntimeError, match="size does not fit"):
        decoder.step(torch.zeros(count, dtype=torch.int32), position)


def test_a_model_that_is_not_whole_does_not_step(tmp_path):
    weights = Weights(SMALL, 1, tmp_path)
    whole = made(weights, 8)
    part = native_decoder.Decoder(whole.dimensions, 8)
    with pytest.raises(RuntimeError, match="not finished"):
        part.step(torch.zeros(1, dtype=torch.int32), 0)
    with pytest.raises(RuntimeError, match="0 layers of 2"):
        part.finish(torch.from_numpy(weights.last_gain()), torch.from_numpy(np.array(weights.table())))
    with pytest.raises(RuntimeError, match="int32"):
        whole.step(torch.zeros(1, dtype=torch.int64), 0)


def test_matrices_of_another_size_or_width_are_refused(tmp_path):
    weights = Weights(SMALL, 1, tmp_path)
    whole = made(weights, 8)
    for dimensions, bits in ((replace(whole.dimensions, width=96), 8), (whole.dimensions, 4)):
        other = native_decoder.Decoder(dimensions, bits)
        other.layers = whole.layers
        with pytest.raises(RuntimeError, match="does not have the size"):
            other.finish(torch.from_numpy(weights.last_gain()), whole.end["head"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, bad):
    weights = Weights(SMALL, 1, tmp_path)
    table = torch.from_numpy(np.array(weights.table()))
    table[3, 5] = bad
    decoder = made(weights, 8)
    with pytest.raises(RuntimeError, match="not a finite number"):
        decoder.finish(torch.from_numpy(weights.last_gain()), table)


@pytest.mark.parametrize("field", ["heads", "head", "kv_heads", "layers", "context"])
def test_sizes_that_the_kernel_cannot_compute_are_refused(tmp_path, field):
    whole = made(Weights(SMALL, 1, tmp_path), 8)
    odd = {"heads": 3, "head": 10, "kv_heads": 3, "layers": 0, "context": 0}[field]
    decoder = native_decoder.Decoder(replace(whole.dimensions, **{field: odd}), 8)
    decoder.layers, decoder.end, decoder._table = whole.layers, whole.end, whole._table
    with pytest.raises(RuntimeError, match="size does not fit"):
        decoder.step(torch.zeros(1, dtype=torch.int32), 0)
