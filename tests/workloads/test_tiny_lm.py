"""The tiny language model: its definition in float64, training once per cache, a rounded cache of keys and values."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from frugalbench.workloads.layers import tiny_lm  # noqa: E402

pytestmark = pytest.mark.real
PARAMS = {"d_model": 64, "layers": 2, "heads": 2, "d_ff": 64, "seq": 32, "steps": 6, "seed": 3}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def arrays(cache):
    return tiny_lm.trained(PARAMS, 2, cache)[0]


@pytest.mark.parametrize(("bits", "close"), [(0, 1e-4), (8, 2e-2), (4, 0.2)])
def test_the_model_is_its_definition(arrays, bits, close):
    tokens = np.random.default_rng(1).integers(0, 256, (2, 32))
    model = tiny_lm.TinyLm(arrays, PARAMS).eval()
    model.round_cache(bits)
    with torch.inference_mode():
        logits = model(torch.from_numpy(tokens)).numpy()
    for row, ids in zip(logits, tokens, strict=True):
        wanted = tiny_lm.answer(arrays, PARAMS, ids, bits)
        assert np.abs(row - wanted).max() <= close * np.sqrt((wanted**2).mean())
    if bits:
        assert np.abs(logits[0] - tiny_lm.answer(arrays, PARAMS, tokens[0])).max() > 1e-4


def test_tokens_to_come_do_not_matter(arrays):
    tokens = np.arange(20)
    first = tiny_lm.answer(arrays, PARAMS, tokens)
    assert np.allclose(first[:10], tiny_lm.answer(arrays, PARAMS, tokens[:10]))


def test_training_is_done_once_and_learns(arrays, cache):
    again, artefact = tiny_lm.trained(PARAMS, 2, cache)
    assert artefact.cached and artefact.build_s > 0 and artefact.size_bytes > 0
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
    other, artefact = tiny_lm.trained({**PARAMS, "seed": 4}, 2, cache)
    assert not artefact.cached
    assert not np.array_equal(other["head"], arrays["head"])


def test_a_damaged_file_is_trained_again(tmp_path):
    params = {**PARAMS, "steps": 1}
    tiny_lm.trained(params, 2, tmp_path)
    (file,) = (tmp_path / "tiny_lm").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert not tiny_lm.trained(params, 2, tmp_path)[1].cached


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_keeps_what_its_levels_can_hold(bits):
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((1, 2, 5, 16)).astype(np.float32))
    found = tiny_lm.rounded(x, bits)
    step = x.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((found - x).abs() <= 0.5001 * step).all()
    assert torch.allclose(tiny_lm.rounded(found, bits), found, atol=1e-5)
    assert not tiny_lm.rounded(torch.zeros(1, 1, 1, 4), bits).any()


def test_bytes_of_the_cache():
    assert tiny_lm.kv_bytes_per_token(PARAMS, 0) == 2 * 2 * 64 * 4
    assert tiny_lm.kv_bytes_per_token(PARAMS, 8) == 2 * 2 * 64 + 2 * 2 * 2 * 4
    assert tiny_lm.kv_bytes_per_token(PARAMS, 4) == 2 * 2 * 32 + 2 * 2 * 2 * 4
