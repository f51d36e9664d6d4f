"""The GPU arms of whole models, run by the same code on a CPU: right answers, at a place that stays, faults caught."""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from frugalbench.run.worker import relative_error, rms_error  # noqa: E402
from frugalbench.schema import Case  # noqa: E402
from frugalbench.specs.decode_on_device import ON_DEVICE, UNRECORDED, stored_bytes  # noqa: E402
from frugalbench.specs.decoder_shape import EPSILON, ROTARY_BASE, DecoderShape  # noqa: E402
from frugalbench.workloads import device  # noqa: E402
from frugalbench.workloads import model_decode as builder  # noqa: E402
from frugalbench.workloads.base import Context  # noqa: E402
from frugalbench.workloads.layers import decode_exact as exact  # noqa: E402
from frugalbench.workloads.layers import decode_on_device as arms  # noqa: E402
from frugalbench.workloads.layers import decode_reference as float64  # noqa: E402
from frugalbench.workloads.layers.decode_weights import NEXT_TOKENS, PROMPTS, tokens_of  # noqa: E402

SHAPE = DecoderShape(layers=3, d_model=256, heads=8, kv_heads=4, head_dim=32, d_ff=512, vocabulary=300)
PARAMS = {
    **SHAPE.params(), "seed": 5, "context": 20, "prompt_tokens": 24, "epsilon": EPSILON, "rotary_base": ROTARY_BASE,
}  # fmt: skip
WEIGHTS = exact.DeviceWeights(SHAPE, 5, "cpu")
BNB = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
VARIANTS = [pytest.param(name, marks=BNB if name.startswith("bnb") else ()) for name in ON_DEVICE]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """One thread is enough; and bitsandbytes rearranges NF4 for its AVX-512 kernel, which no GPU has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    if find_spec("bitsandbytes"):
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    yield
    torch.set_num_threads(before)


def made(variant, launch="graph"):
    case = SimpleNamespace(params={**PARAMS, "scheme": ON_DEVICE[variant].scheme, "launch": launch})
    model = arms.make(case, WEIGHTS, tokens_of(PARAMS), None)
    model.fill()
    return model


@pytest.fixture(scope="module")
def plain():
    return exact.answers(PARAMS, exact.Drawn(WEIGHTS))


class InNumpy:
    """The same numbers for the reference that a CPU run uses."""

    def gain(self, layer, name):
        return WEIGHTS.gain(layer, name).double().numpy()

    def last_gain(self):
        return WEIGHTS.last_gain().double().numpy()

    def product(self, layer, name, x):
        return x @ WEIGHTS.matrix(layer, name).double().numpy().T

    def embedding(self, tokens):
        return WEIGHTS.table().double().numpy()[tokens]

    def logits(self, x):
        return x @ WEIGHTS.table().double().numpy().T


def test_both_float64_references_agree(plain):
    other = float64.answers(PARAMS, InNumpy())
    assert all(relative_error({"x": plain[name]}, {"x": other[name]}) < 1e-12 for name in other)
    assert {name: len(found) for name, found in plain.items()} == {"decode": NEXT_TOKENS, "prefill": PROMPTS}


@pytest.mark.parametrize(
    ("variant", "launch"), [*((item.values[0], "graph") for item in VARIANTS), ("transformers-fp16", "eager")]
)
def test_each_arm_computes_what_it_stores_near_the_unquantised_answer(variant, launch, plain):
    if variant.startswith("bnb"):
        pytest.importorskip("bitsandbytes")
    model, fmt = made(variant, launch), ON_DEVICE[variant]
    own = exact.answers(PARAMS, model.held())
    for regime, step in (("decode", model.decode), ("prefill", model.prefill)):
        for index in range(len(own[regime])):
            found = {"x": model.logits(step(index))}
            assert relative_error(found, {"x": own[regime][index]}) < fmt.tolerance(SHAPE.layers)
            assert rms_error(found, {"x": plain[regime][index]}) < fmt.format_tolerance(SHAPE.layers)
    first = model.logits(model.decode(0))
    model.decode(1)
    assert np.array_equal(model.logits(model.decode(0)), first)
    assert model.loaded_bytes() == stored_bytes(fmt, SHAPE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_matrix_of_another_layer_is_noticed(variant):
    model = made(variant)
    layers = model.module.model.layers
    layers[0].mlp.up_proj, layers[1].mlp.up_proj = layers[1].mlp.up_proj, layers[0].mlp.up_proj
    with pytest.raises(RuntimeError, match="weights of up of layer 0 lie farther from the drawn ones"):
        exact.answers(PARAMS, model.held())


@pytest.mark.parametrize("variant", ["transformers-fp16", "torch-int4"])
def test_a_wrong_step_exceeds_the_tolerance(variant):
    model = made(variant)
    own = exact.answers(PARAMS, model.held())
    model.module.model.layers[1].self_attn.o_proj.register_forward_hook(lambda _layer, _given, y: 0 * y)
    wrong = relative_error({"x": model.logits(model.decode(0))}, {"x": own["decode"][0]})
    assert wrong > ON_DEVICE[variant].tolerance(SHAPE.layers)


def test_the_first_code_of_a_pair_lies_in_the_upper_half_on_cuda(monkeypatch):
    packed = []
    fake = SimpleNamespace(_convert_weight_to_int4pack=lambda pairs, tiles: packed.append((pairs, tiles)))
    monkeypatch.setattr(arms.torch.ops, "aten", fake)
    codes = torch.tensor([[1, 2, 3, 15]], dtype=torch.int32)
    arms.pack_int4(OnCuda(codes))
    assert packed[0][0].tolist() == [[0x12, 0x3F]]


class OnCuda:
    """Codes that say they lie on a GPU."""

    device = torch.device("cuda")

    def __init__(self, codes):
        self.codes = codes

    def __getitem__(self, key):
        return self.codes[key]


class FakeDevice:
    """Records like a GPU: a position's call happens once, replays only compute it again in place."""

    waits = 0

    def captured(self, call, rotation):
        return (lambda index: call(index % rotation)), "CUDA graph, one for each"

    def synchronize(self):
        FakeDevice.waits += 1


@pytest.mark.parametrize(
    ("variant", "launch", "how"),
    [
        ("transformers-fp16", "graph", "CUDA graph, one for each"),
        ("transformers-fp16", "eager", "eager"),
        pytest.param("bnb-int8", "graph", f"eager: {UNRECORDED['llm.int8']}", marks=BNB),
    ],
)
def test_the_builder_records_what_can_be_recorded_and_says_how(variant, launch, how, monkeypatch, tmp_path):
    monkeypatch.setattr(device, "of", lambda _name: FakeDevice())
    case = Case(
        id="x", workload="model_decode", variant=variant, shape="x", regime="decode", backend="transformers",
        device="cuda", dtype="", params={**PARAMS, "scheme": ON_DEVICE[variant].scheme, "launch": launch},
    )  # fmt: skip
    context = Context(5, 2, "cpu", tmp_path, tmp_path)
    loaded = builder.LoadedModel(arms.make(case, WEIGHTS, tokens_of(PARAMS), context), context)
    bound = loaded.bind(case)
    assert bound.details["launch"] == how
    assert isinstance(bound.device, FakeDevice)
    assert bound.output(0)["logits"].shape == (SHAPE.vocabulary,)
