"""The Triton expert kernels in Triton's interpreter, on the CPU: the same text that a GPU would compile."""

import pytest

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="needs the extra 'triton'; its interpreter runs without a GPU")

from frugalbench.workloads.layers import ffn, triton_ffn  # noqa: E402
from kernels import triton_interpreter  # noqa: E402

inside = pytest.mark.skipif(not triton_interpreter.ON, reason="runs in a process of its own, see the first test")
SHAPES = 220
LARGEST_ERROR = {torch.float32: 1e-5, torch.float16: 2.0**-7, torch.bfloat16: 2.0**-4}
"""Of the largest value, over the rms of the answer; for 16 bits 16 roundings, as a case is allowed."""
if triton_interpreter.ON:
    triton_interpreter.mend()


@pytest.mark.skipif(triton_interpreter.ON, reason="is the process of its own")
def test_all_of_this_file_in_the_interpreter():
    triton_interpreter.run(__file__, 9)


@pytest.fixture(scope="module")
def kernel():
    return triton_ffn.kernel()


def definition(x, chosen, weight, gate_up, down):
    x, weight, gate_up, down = (item.double() for item in (x, weight, gate_up, down))
    y = torch.zeros_like(x)
    for t in range(len(x)):
        for k in range(chosen.shape[1]):
            if chosen[t, k] >= 0:
                gate, up = (gate_up[chosen[t, k]] @ x[t]).chunk(2)
                y[t] += weight[t, k] * (down[chosen[t, k]] @ (torch.nn.functional.silu(gate) * up))
    return y


def distance(found, wanted):
    return float((found.double() - wanted).abs().max() / wanted.pow(2).mean().sqrt().clamp(min=1e-12))


def layer_of(gate_up, down, router, **params):
    E = len(router)
    shared = len(down) - E
    common = {"gate": "softmax", "normalise": True, "routed_scale": 1.0, "experts": E, "n_shared": shared}
    return triton_ffn.TritonMoe({"gate_up": gate_up, "down": down, "router": router}, {**common, **params})


def pick(random, *values):
    return values[int(torch.randint(len(values), (), generator=random))]


def drawn_shape(random, kernel):
    """A shape, a routing and tiles at random; about one in six is one token, one in four leaves most experts empty."""
    size = {"generator": random}
    dtype = pick(random, torch.float32, torch.float16, torch.bfloat16)
    T = 1 if torch.rand((), **size) < 1 / 6 else int(torch.randint(2, 12, (), **size))
    E = int(torch.randint(1, 6, (), **size))
    K = int(torch.randint(1, min(E, 3) + 1, (), **size))
    D, F = (int(torch.randint(1, 34, (), **size)) for _ in range(2))
    if torch.rand((), **size) < 0.3:
        D, F = 32, 16
    order = torch.rand(T, E, **size) + (torch.arange(E) * 2.0 if torch.rand((), **size) < 0.25 else 0.0)
    chosen = order.argsort(1)[:, :K]
    if torch.rand((), **size) < 0.2:
        chosen = torch.where(torch.rand(T, K, **size) < 0.3, -1, chosen)
    wide = torch.randn(T, D + 5, **size).to(dtype)
    x = pick(random, wide[:, :D], wide[:, 3 : D + 3], wide[:, :D].t().contiguous().t())
    weight = torch.rand(T, K, **size).to(dtype)
    gate_up, down = (torch.randn(E, *s, **size).to(dtype) for s in ((2 * F, D), (D, F)))
    tiles = [kernel.Tiles(pick(random, 16, 32), pick(random, 16, 32), 4, 2) for _ in range(2)]
    plan = kernel.Plan(pick(random, 16, 32), *tiles, pick(random, 1, 3))
    return (x, chosen, weight, gate_up / D**0.5, down / F**0.5), plan


@inside
def test_it_is_the_definition_at_any_shape_routing_stride_and_tile(kernel):
    random = torch.Generator().manual_seed(5)
    seen = set()
    for number in range(SHAPES):
        given, plan = drawn_shape(random, kernel)
        x, chosen, _, _, down = given
        error = distance(kernel.mixture(*given, plan=plan), definition(*given))
        assert error < LARGEST_ERROR[x.dtype], (number, tuple(x.shape), tuple(down.shape), tuple(chosen.shape), plan)
        empty = set(range(len(down))) - set(chosen.flatten().tolist())
        seen |= {"empty" if empty else "", "one" if len(x) == 1 else "", "dropped" if (chosen < 0).any() else ""}
        seen |= {x.dtype, "apart" if not x.is_contiguous() else "", f"k{chosen.shape[1]}"}
    assert {"empty", "one", "dropped", "apart", "k1", torch.float32, torch.float16, torch.bfloat16} <= seen


@inside
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_plan_of_every_block_size_is_the_definition(kernel, dtype):
    torch.manual_seed(2)
    tried = set()
    for T, E in ((1, 2), (16, 2), (80, 2), (230, 1)):
        D, F = 24, 40
        x, weight, chosen = torch.randn(T, D).to(dtype), torch.rand(T, 1).to(dtype), torch.randint(E, (T, 1))
        gate_up, down = (torch.randn(E, 2 * F, D) / D**0.5).to(dtype), (torch.randn(E, D, F) / F**0.5).to(dtype)
        tried.add(kernel.plans(T, E, dtype)[0].tokens)
        found = kernel.mixture(x, chosen, weight, gate_up, down)
        assert distance(found, definition(x, chosen, weight, gate_up, down)) < LARGEST_ERROR[dtype]
    assert tried == ({16, 32, 64} if dtype is torch.float32 else {16, 64, 128})


@inside
def test_choices_are_the_commonly_computed_ones(kernel):
    torch.manual_seed(3)
    for T, E, K, shared, gate, normalise, scale, dtype in (
        (1, 8, 2, 0, "softmax", True, 1.0, torch.float32), (9, 10, 3, 2, "sigmoid", True, 2.5, torch.float32),
        (5, 33, 6, 1, "softmax", False, 16.0, torch.float16), (300, 3, 3, 0, "sigmoid", False, 1.0, torch.float32),
    ):  # fmt: skip
        logits = torch.randn(T, E).to(dtype)
        found, weight = kernel.choose(logits, K, gate, normalise, scale, shared, dtype)
        wanted = ffn.chosen(logits, torch.eye(E, dtype=dtype), K, gate, normalise, scale)
        assert torch.equal(found[:, :K].long(), wanted[0])
        assert torch.allclose(weight[:, :K], wanted[1], rtol=2e-6 if dtype is torch.float32 else 2e-3)
        assert (found[:, K:] == torch.arange(E, E + shared)).all()
        assert (weight[:, K:] == 1).all()


@inside
@pytest.mark.parametrize("shared", [0, 2])
def test_a_capacity_drops_what_the_other_mixtures_drop(shared):
    torch.manual_seed(shared)
    T, D, F, E = 19, 24, 20, 4
    weights = torch.randn(E + shared, 2 * F, D) / D**0.5, torch.randn(E + shared, D, F) / F**0.5, torch.randn(E, D)
    for factor in (0.5, 1.0):
        layer = layer_of(*weights, top_k=2, capacity_factor=factor)
        x = torch.randn(T, D)
        with torch.inference_mode():
            token, expert, weight = layer.copies(x)
            wanted = torch.zeros(T, D, dtype=torch.float64)
            answers = definition(x[token], expert[:, None], weight[:, None], *weights[:2])
            wanted.index_add_(0, token, answers)
            assert len(token) < T * (2 + shared)
            assert distance(layer(x), wanted) < 1e-5
            assert distance(layer.mix_copies(x, token, expert, weight), wanted) < 1e-5


@inside
def test_every_copy_has_one_place_in_a_block_of_its_expert(kernel):
    chosen = torch.tensor([[2, 0], [2, 1], [2, 3], [-1, 2]] * 9, dtype=torch.int32)
    for tokens in (16, 32):
        places, owner = kernel.blocks_of(chosen, 5, tokens)
        flat = chosen.flatten()
        live = owner.repeat_interleave(tokens) >= 0
        real = live & (places < len(flat))
        assert sorted(places[real].tolist()) == (flat >= 0).nonzero()[:, 0].tolist()
        assert (flat[places[real].long()] == owner.repeat_interleave(tokens)[real]).all()
        assert sorted(owner[owner >= 0].tolist()) == sorted(
            expert for expert in range(5) for _ in range(-(-int((flat == expert).sum()) // tokens))
        )


@inside
def test_equal_calls_give_equal_bits(kernel):
    given, plan = drawn_shape(torch.Generator().manual_seed(8), kernel)
    assert torch.equal(kernel.mixture(*given, plan=plan), kernel.mixture(*given, plan=plan))


def test_weights_that_would_have_to_be_copied_are_refused():
    down = torch.zeros(2, 8, 4)
    with pytest.raises(ValueError, match="contiguous"):
        triton_ffn.kernel().mixture(
            torch.zeros(1, 8), torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(2, 8, 8).transpose(1, 2), down
        )


class NoKernel:
    """In a kernel's place: takes any launch."""

    def __getitem__(self, grid):
        return lambda *_, **__: None


@pytest.mark.skipif(triton_interpreter.ON, reason="launches nothing")
@pytest.mark.parametrize("capacity_factor", [0.0, 1.25])
@pytest.mark.parametrize("tokens", [1, 40, 4096])
def test_nothing_but_sizes_decides_what_is_launched(monkeypatch, tokens, capacity_factor):
    """A meta tensor has no values: whoever asks for one, as a wait for the device would, fails."""
    for name in ("_choose", "_place", "_expand", "_reduce", "_add"):
        monkeypatch.setattr(triton_ffn.kernel(), name, NoKernel())
    D, F, E = 64, 32, 16
    sizes = (E + 1, 2 * F, D), (E + 1, D, F), (E, D)
    weights = [torch.empty(size, device="meta", dtype=torch.bfloat16) for size in sizes]
    x_TD = torch.empty(tokens, D, device="meta", dtype=torch.bfloat16)
    assert layer_of(*weights, top_k=4, capacity_factor=capacity_factor)(x_TD).shape == (tokens, D)


@pytest.mark.skipif(triton_interpreter.ON, reason="runs no kernel")
def test_blocks_that_are_made_room_for_suffice_and_waste_little():
    kernel = triton_ffn.kernel()
    random = torch.Generator().manual_seed(1)
    for _ in range(300):
        copies, experts = (int(torch.randint(1, most, (), generator=random)) for most in (500, 40))
        tokens = pick(random, 16, 32, 64, 128)
        sizes = torch.bincount(torch.randint(experts, (copies,), generator=random) // pick(random, 1, 7))
        room = kernel.most_blocks(copies, experts, tokens)
        assert int((-(-sizes // tokens)).sum()) <= room <= copies // tokens + experts


@pytest.mark.skipif(triton_interpreter.ON, reason="runs no kernel")
def test_the_quickest_plan_that_fits_is_taken_and_remembered(monkeypatch, tmp_path):
    from triton.runtime.errors import OutOfResources

    sizes = (16, 64, 64), (16, 64, 32), (16, 64)
    layer = layer_of(*(torch.empty(size, dtype=torch.bfloat16) for size in sizes), top_k=4)
    plans = triton_ffn.kernel().plans(160 * 4, 16, torch.bfloat16)
    seconds = dict(zip(plans, (3.0, None, *range(5, 99)), strict=False))
    seconds[plans[2]] = 1.0
    tried = []

    def replayed(_):
        (plan,) = layer.plans.values()
        tried.append(plan)
        if seconds[plan] is None:
            raise OutOfResources(300_000, 200_000, "shared memory")
        return seconds[plan]

    monkeypatch.setattr(triton_ffn, "replay_s", replayed)
    monkeypatch.setattr(triton_ffn.triton_file, "tools", lambda *_: {"device": "a card"})
    batches = [torch.empty(160, 64, dtype=torch.bfloat16)]
    plan, built = triton_ffn.tuned(layer, batches, tmp_path)
    assert (plan, built.cached, tried, layer.plans) == (plans[2], False, plans, {})
    plan, built = triton_ffn.tuned(layer, batches, tmp_path)
    assert (plan, built.cached, len(tried)) == (plans[2], True, len(plans))
    monkeypatch.setattr(triton_ffn.triton_file, "tools", lambda *_: {"device": "another card"})
    seconds.update(dict.fromkeys(seconds))
    with pytest.raises(RuntimeError, match="fits this device: out of resource"):
        triton_ffn.tuned(layer, batches, tmp_path)
