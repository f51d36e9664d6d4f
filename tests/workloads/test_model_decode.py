"""Whole models on real runtimes: right answers at a place that stays, and what is wrong is caught."""

import time
from dataclasses import replace
from importlib.util import find_spec

import msgspec
import numpy as np
import pytest

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")

from frugalbench import native_build  # noqa: E402
from frugalbench.run import protocol  # noqa: E402
from frugalbench.run.worker import Session, relative_error, rms_error  # noqa: E402
from frugalbench.schema import Arm  # noqa: E402
from frugalbench.specs import model_decode as spec  # noqa: E402
from frugalbench.specs.base import Settings  # noqa: E402
from frugalbench.specs.decode_formats import FORMATS, LLAMA, NATIVE, gguf_types, stored_bytes  # noqa: E402
from frugalbench.specs.decoder_shape import EPSILON, ROTARY_BASE, DecoderShape  # noqa: E402
from frugalbench.workloads import model_decode as builder  # noqa: E402
from frugalbench.workloads.base import Context  # noqa: E402
from frugalbench.workloads.layers import decode_reference as float64  # noqa: E402
from frugalbench.workloads.layers.decode_weights import NEXT_TOKENS, PROMPTS, Weights, tokens_of  # noqa: E402
from workloads.fake_machine import Machine  # noqa: E402

SHAPE = DecoderShape(layers=3, d_model=256, heads=8, kv_heads=4, head_dim=32, d_ff=512, vocabulary=300)
CONTEXT, PROMPT = 20, 24


def needs(variant):
    library = FORMATS[variant].library
    if library is NATIVE:
        return pytest.mark.skipif(native_build.find_compiler() is None, reason="no C++ compiler")
    modules = ("llama_cpp", "gguf") if library is LLAMA else ("transformers",)
    return pytest.mark.skipif(None in map(find_spec, modules), reason=f"{modules} are not all installed")


VARIANTS = [pytest.param(name, marks=needs(name)) for name in FORMATS]
LOSSY = [item for item in VARIANTS if FORMATS[item.values[0]].lossy]
GGUF = [item for item in VARIANTS if FORMATS[item.values[0]].library is LLAMA]


@pytest.fixture
def context(tmp_path):
    for name in ("cache", "scratch"):
        (tmp_path / name).mkdir()
    return Context(5, 2, "cpu", tmp_path / "cache", tmp_path / "scratch")


def make_arm(variant, context=CONTEXT, prompt=PROMPT):
    """The arm as the spec makes it, its sizes replaced by small ones."""
    options = {"variants": [variant], "context": context, "prompt_tokens": prompt}
    arm = spec.expand(Settings("model_decode", "cpu", 2, 5, options), Machine()).comparisons[0].arms[0]
    fmt = FORMATS[variant]
    small = {**SHAPE.params(), "format_tolerance": fmt.format_tolerance(SHAPE.layers)}
    cases = tuple(
        msgspec.structs.replace(case, params=case.params | small, tolerance=fmt.tolerance(SHAPE.layers))
        for case in arm.cases
    )
    return Arm(id=arm.id, cases=cases, imports=arm.imports)


def bind(arm, context):
    loaded = builder.load(arm, context)
    return loaded, [(case, loaded.bind(case)) for case in arm.cases]


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_arm_computes_what_it_stores_near_the_unquantised_answer(variant, context):
    loaded, bound = bind(make_arm(variant), context)
    for case, made in bound:
        exact = builder.reference(case, context)
        assert made.rotation == {"decode": NEXT_TOKENS, "prefill": PROMPTS}[case.regime] == len(exact["logits"])
        for index in range(made.rotation):
            found, plain = made.output(index), {"logits": exact["logits"][index]}
            own = made.own_definition(index) if made.own_definition else plain
            assert relative_error(found, own) < case.tolerance
            assert rms_error(found, plain) < case.params["format_tolerance"]
    loaded.close()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_call_leaves_the_place_as_it_found_it(variant, context):
    loaded, ((_, decode), (_, prefill)) = bind(make_arm(variant), context)
    first = [(made, index, made.output(index)) for made in (decode, prefill) for index in (0, 1)]
    decode.call(2)
    prefill.call(1)
    for made, index, before in first:
        assert np.array_equal(made.output(index)["logits"], before["logits"])
    for (_, _, one), (_, _, other) in (first[:2], first[2:]):
        assert rms_error(one, other) > 0.1
    loaded.close()


@pytest.mark.parametrize("variant", VARIANTS)
def test_loaded_bytes_are_those_of_the_formula(variant, context):
    arm = make_arm(variant)
    loaded, bound = bind(arm, context)
    facts = bound[0][1].facts
    formula = stored_bytes(FORMATS[variant], SHAPE)
    if (
        FORMATS[variant].library is LLAMA
    ):  # reported to a hundredth of a MiB; a table beside a repacked head comes on top
        table = SHAPE.table_weights * stored_bytes(FORMATS[variant], SHAPE) / SHAPE.parameters
        assert formula - 20_000 < facts["weight_bytes"].value < formula + table * 1.5 + 20_000
    else:
        assert facts["weight_bytes"].value == formula
    assert facts["bf16_bytes"].value == 2 * SHAPE.parameters
    assert bound[0][1].details["threads"] >= 1
    loaded.close()


@pytest.mark.parametrize("variant", LOSSY)
def test_a_second_load_takes_what_the_first_one_made(variant, context):
    arm = make_arm(variant)
    builder.prepare(arm, context)
    answers = sorted((context.cache_dir / "model_decode").glob("answers-*.npz"))
    begin = [file.stat().st_mtime_ns for file in answers]
    loaded, ((_, decode), _) = bind(arm, context)
    decode.own_definition(0)
    assert len(answers) == 1
    assert [file.stat().st_mtime_ns for file in answers] == begin
    assert all(item.cached and item.size_bytes for item in loaded.artefacts)
    assert bool(loaded.artefacts) == (not variant.startswith("transformers"))
    loaded.close()


@pytest.mark.parametrize(
    "variant", [item for item in VARIANTS if item.values[0] in ("native-w4a8", "transformers-bf16")]
)
def test_a_worker_verifies_it_and_times_it(variant, tmp_path):
    arm = make_arm(variant)
    job = protocol.Job(
        arm=arm, seed=5, threads=2, device="cpu", cache_dir=str(tmp_path), scratch_dir=str(tmp_path),
        start_s=time.monotonic(),
    )  # fmt: skip
    session = Session(job)
    assert isinstance(session.answer(protocol.Prepare()), protocol.Finished)
    paths = session.answer(protocol.Reference()).paths
    assert session.answer(protocol.Load()).problems == {}
    for case in arm.cases:
        verified = session.answer(protocol.Verify(case.id, paths[case.id], 60.0))
        assert verified.verification.passed, verified.verification
        assert 0 < verified.facts["output_error"].value < case.params["format_tolerance"]
        assert session.answer(protocol.Calibrate(case.id, 0.05)).warmup.call_s > 0


# --- what is wrong is caught ------------------------------------------------------------------------------------


class Wrong(float64.Unquantised):
    """The model as drawn, with a fault: two layers swapped, or the stream dropped behind attention of one."""

    def __init__(self, weights, fault):
        super().__init__(weights)
        self.fault, self.stream = fault, None

    def layer(self, layer):
        return {0: 1, 1: 0}.get(layer, layer) if self.fault == "swapped layers" else layer

    def gain(self, layer, name):
        return super().gain(self.layer(layer), name)

    def embedding(self, tokens):
        self.stream = super().embedding(tokens)
        return self.stream

    def product(self, layer, name, x):
        y = super().product(self.layer(layer), name, x)
        if self.fault == "no residual" and (layer, name) == (1, "o"):
            y = y - self.stream
        if name in ("o", "down"):
            self.stream = self.stream + y
        return y


FAULTS = ("swapped layers", "no residual", "another rotary base", "a position too many")


def with_fault(fault, params, weights, monkeypatch):
    if fault == "a position too many":
        right = float64.rows_of
        monkeypatch.setattr(float64, "rows_of", lambda tokens: moved(right(tokens)))
    base = 1e4 if fault == "another rotary base" else ROTARY_BASE
    return float64.answers(params | {"rotary_base": base}, Wrong(weights, fault))


def moved(rows):
    """Decoded tokens sit one place farther than they should."""
    position = rows.position.copy()
    position[rows.decoded] += 1
    return replace(rows, position=position)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_model_exceeds_the_tolerance_of_every_arm_whose_rounding_does_not_drown_it(fault, context, monkeypatch):
    params = make_arm("native-fp32").cases[0].params
    weights = Weights(SHAPE, 5, context.scratch_dir)
    right = float64.answers(params, float64.Unquantised(weights))
    wrong = with_fault(fault, params, weights, monkeypatch)
    least = min(
        relative_error({"x": found}, {"x": expected})
        for found, expected in zip(wrong["decode"], right["decode"], strict=True)
    )
    for variant, fmt in FORMATS.items():
        if variant != "transformers-int8-dynamic" or fault in FAULTS[:2]:
            assert least > fmt.tolerance(SHAPE.layers), variant


DEEP = DecoderShape(layers=28, d_model=64, heads=4, kv_heads=2, head_dim=16, d_ff=128, vocabulary=300)


class OneWrongLayer(float64.Unquantised):
    """The model as drawn, but that one layer misses its attention, or takes a matrix of the next one."""

    def __init__(self, weights, layer, fault):
        super().__init__(weights)
        self.wrong, self.fault = layer, fault

    def product(self, layer, name, x):
        if layer == self.wrong and (self.fault, name) == ("no attention", "o"):
            return np.zeros((len(x), DEEP.d_model))
        return super().product(layer + (layer == self.wrong and name == self.fault), name, x)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Parameters and weights of a model of 28 layers, and its right answers."""
    params = {**make_arm("native-fp32").cases[0].params, **DEEP.params()}
    weights = Weights(DEEP, 5, tmp_path_factory.mktemp("deep"))
    return params, weights, float64.answers(params, float64.Unquantised(weights))


@pytest.mark.parametrize("fault", ["no attention", "v", "down"])
@pytest.mark.parametrize("layer", [0, 13, 26])
def test_one_wrong_layer_of_28_exceeds_the_tolerance(fault, layer, deep):
    params, weights, right = deep
    wrong = float64.answers(params, OneWrongLayer(weights, layer, fault))
    seen = max(relative_error({"x": a}, {"x": b}) for a, b in zip(wrong["decode"], right["decode"], strict=True))
    told = {name for name, fmt in FORMATS.items() if seen > fmt.tolerance(DEEP.layers)}
    drowned = set() if layer == 0 else {"transformers-int8-dynamic"}
    assert told >= set(FORMATS) - drowned


@pytest.mark.parametrize("variant", [item for item in VARIANTS if item.values[0] == "transformers-bf16"])
def test_an_arm_that_loses_the_attention_of_one_layer_of_28_fails(variant, context, monkeypatch):
    monkeypatch.setitem(globals(), "SHAPE", DEEP)
    loaded, ((case, decode), _) = bind(make_arm(variant), context)
    right, own = decode.output(0), decode.own_definition(0)
    assert relative_error(right, own) < case.tolerance
    loaded.model.module.model.layers[26].self_attn.o_proj.register_forward_hook(lambda _layer, _given, y: 0 * y)
    assert relative_error(decode.output(0), own) > case.tolerance


@pytest.mark.parametrize("variant", [item for item in VARIANTS if item.values[0] == "native-w8a8"])
@pytest.mark.parametrize("damage", ["a byte", "two layers", "the end"])
def test_a_damaged_file_of_packed_weights_is_noticed(variant, damage, context):
    arm = make_arm(variant)
    bind(arm, context)[0].close()
    (file,) = (context.cache_dir / "model_decode").glob("native8-*.bin")
    data = bytearray(file.read_bytes())
    each = sum(n * (k + 4) for n, k in SHAPE.matrices().values())
    if damage == "a byte":
        data[100] ^= 0xFF
    elif damage == "two layers":
        data[:each], data[each : 2 * each] = data[each : 2 * each], data[:each]
    file.write_bytes(data if damage != "the end" else data[:-64])
    loaded, ((_, decode), _) = bind(arm, context)
    if damage == "the end":  # packed again
        decode.own_definition(0)
    else:
        with pytest.raises(RuntimeError, match="more than its format allows"):
            decode.own_definition(0)
    loaded.close()


@pytest.mark.parametrize("variant", [item for item in VARIANTS if "transformers" in item.values[0]])
def test_a_layer_in_another_place_is_noticed(variant, context):
    loaded, ((case, decode), _) = bind(make_arm(variant), context)
    layers = loaded.model.module.model.layers
    layers[0].mlp, layers[1].mlp = layers[1].mlp, layers[0].mlp
    if decode.own_definition is None:
        exact = {"logits": builder.reference(case, context)["logits"][0]}
        assert relative_error(decode.output(0), exact) > case.tolerance
    else:
        with pytest.raises(RuntimeError, match="more than its format allows"):
            decode.own_definition(0)


# --- the parts --------------------------------------------------------------------------------------------------


def test_dynamic_int8_gives_the_head_codes_of_its_own_and_leaves_the_table(context):
    module = bind(make_arm("transformers-int8-dynamic"), context)[0].model.module
    assert module.model.embed_tokens.weight.dtype is torch.float32
    layers = [module.lm_head, module.model.layers[2].mlp.down_proj, module.model.layers[0].self_attn.q_proj]
    assert {type(layer) for layer in layers} == {torch.ao.nn.quantized.dynamic.Linear}


@pytest.mark.parametrize(("context_tokens", "prompt"), [(20, 24), (30, 24), (4, 40), (3, 5), (1, 1)])
def test_one_pass_gives_what_each_text_gives_by_itself(context, context_tokens, prompt):
    params = make_arm("native-fp32", context_tokens, prompt).cases[0].params
    held, tokens = float64.Unquantised(Weights(SHAPE, 5, context.scratch_dir)), tokens_of(params)
    found = float64.answers(params, held)
    texts = [np.append(tokens.context, token) for token in tokens.following] + list(tokens.prompts)
    for text, logits in zip(texts, [*found["decode"], *found["prefill"]], strict=True):
        last = np.array([len(text) - 1])
        rows = float64.Rows(text, np.arange(len(text)), np.tri(len(text), dtype=bool), last, last)
        alone = float64.forward(SHAPE, held, rows, last, EPSILON, ROTARY_BASE)
        np.testing.assert_allclose(logits, alone[0], atol=1e-9)


def test_tokens_vary_and_are_the_same_for_every_arm():
    found = [tokens_of(make_arm(variant).cases[0].params) for variant in ("native-fp32", "llama-q4_0")]
    for first, second in zip(*(vars(item).values() for item in found), strict=True):
        assert np.array_equal(first, second)
    tokens = found[0]
    assert len(set(tokens.following.tolist())) == NEXT_TOKENS
    assert len(set(tokens.context.tolist())) > CONTEXT // 2
    assert (tokens.prompts[0] != tokens.prompts[1]).sum() == 16
    assert np.array_equal(tokens.prompts[0][:CONTEXT], tokens.context)


def test_weights_are_drawn_once_and_have_the_spread_they_should(context):
    weights = Weights(SHAPE, 5, context.scratch_dir)
    assert weights.matrix(1, "down").std() * np.sqrt(SHAPE.d_ff) == pytest.approx(1, rel=0.02)
    assert weights.table().std() == pytest.approx(1, rel=0.02)
    assert 0.5 <= weights.gain(0, "norm").min() < weights.gain(0, "norm").max() <= 1.5
    assert not np.array_equal(weights.matrix(0, "gate"), weights.matrix(0, "up"))
    assert not np.array_equal(weights.gain(0, "norm"), weights.gain(0, "ffn_norm"))
    again = Weights(SHAPE, 5, context.scratch_dir)
    assert np.array_equal(again.matrix(1, "down"), weights.matrix(1, "down"))
    assert Weights(SHAPE, 6, context.scratch_dir).key != weights.key
    assert Weights(replace(SHAPE, layers=2), 5, context.scratch_dir).key != weights.key


@pytest.mark.parametrize("variant", GGUF)
def test_a_model_file_has_the_types_of_the_formula(variant, context):
    from frugalbench.workloads.layers.decode_gguf import tensor_name

    loaded = builder.load(make_arm(variant), context)
    types = loaded.model.held().types()
    *layers, end = gguf_types(FORMATS[variant].scheme, SHAPE.layers)
    for layer, kinds in enumerate(layers):
        assert {name: types[tensor_name(layer, name)] for name in kinds} == kinds
    assert types["token_embd.weight"] == end["table"]
    assert {kind for name, kind in types.items() if "norm" in name} == {"f32"}
    loaded.close()


@pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")
def test_rows_are_dealt_out_as_a_converter_does():
    from frugalbench.workloads.layers.decode_gguf import order

    assert order(SHAPE, "q")[:6].tolist() == [0, 16, 1, 17, 2, 18]
    assert order(SHAPE, "k")[32:36].tolist() == [32, 48, 33, 49]
    assert order(SHAPE, "v").tolist() == list(range(SHAPE.keys))
