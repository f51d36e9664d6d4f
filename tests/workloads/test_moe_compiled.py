"""The compiled mixture: right, one graph for all copies, nothing eager in its place."""

import pytest

from workloads.moe_sessions import Bench

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")

OPTIONS = {
    "shape": "own", "d_model": 32, "d_expert": 16, "experts": 8, "top_k": 2, "n_shared": 1, "stream_bytes": 200_000,
    "variants": ["moe-compiled"], "regimes": ["decode"], "decode_tokens": [3],
}  # fmt: skip


def test_it_gives_the_reference_from_one_graph_that_is_built_once(tmp_path):
    from frugalbench.backends import torch_compile

    if torch_compile.available()[0] is None:
        pytest.skip(torch_compile.available()[1])
    from torch._dynamo.utils import counters

    bench, before = Bench(tmp_path, **OPTIONS), counters["stats"]["unique_graphs"]
    session = bench.load("moe-compiled")
    case = bench.case("moe-compiled", "decode")
    assert case.params["copies"] >= 3
    assert bench.verify(session, "moe-compiled", "decode").verification.error < 1e-5
    (artefact,) = session.loaded.artefacts
    assert artefact.name == "inductor/3-tokens" and not artefact.cached and artefact.build_s > 0
    assert counters["stats"]["unique_graphs"] == before + 1
    session.loaded.layers[1].weights["gate_up"].data[:, 0] += 5.0
    assert not bench.passes(session, "moe-compiled", "decode")
    torch._dynamo.reset()
    (again,) = bench.load("moe-compiled").loaded.artefacts
    assert again.cached and again.build_s == artefact.build_s
