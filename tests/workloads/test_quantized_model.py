"""Whole models under every scheme: right answers, caught corruption, models of strangers, one line for faults."""

import json
from importlib import metadata

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from frugalbench.run import protocol  # noqa: E402
from frugalbench.run.worker import Session  # noqa: E402
from frugalbench.schema import FrugalbenchError  # noqa: E402
from frugalbench.specs import quantized_model as spec  # noqa: E402
from frugalbench.specs.base import Settings  # noqa: E402
from frugalbench.specs.model_schemes import BASELINE, SCHEMES  # noqa: E402
from frugalbench.workloads import quantized_model as builder  # noqa: E402
from frugalbench.workloads.base import Context  # noqa: E402
from frugalbench.workloads.layers import model_schemes  # noqa: E402
from workloads.fake_machine import Machine  # noqa: E402

pytestmark = pytest.mark.real
SMALL = {"d_model": 64, "layers": 1, "heads": 2, "d_ff": 128, "seq": 32, "steps": 4, "items": 12, "batch": 4}
HEAVY = {"bnb-int8", "ort-int8", "ort-int4", "llama-q4_k"}
"""Slow to load, like another one, or made for wider layers."""
WORDS = ["the", "red", "cat", "dog", "sat", "ran", "on", "a", "mat", "with", "big", "hat"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def installed(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def arm_of(variant, model="tiny-lm", **options):
    found = spec.expand(
        Settings(
            "quantized_model", "cpu", 2, 7, {**SMALL, "models": [model], "variants": [variant], **options}, "c.toml"
        ),
        Machine(),
    )
    assert not found.skipped
    return found.comparisons[0].arms[0]


def session(arm, folder, cache, replicate=1, threads=2):
    job = protocol.Job(
        arm=arm, seed=7, replicate=replicate, threads=threads, device="cpu", cache_dir=str(cache),
        scratch_dir=str(folder), start_s=0.0,
    )  # fmt: skip
    made = Session(job)
    assert isinstance(made.answer(protocol.Prepare()), protocol.Finished)
    made.paths = made.answer(protocol.Reference()).paths
    made.reply = made.answer(protocol.Load())
    return made


def verified(made):
    return {name: made.answer(protocol.Verify(name, made.paths[name], 60.0)) for name in made.paths}


@pytest.mark.parametrize("variant", [name for name in SCHEMES if name not in HEAVY])
def test_every_scheme_answers_what_it_stores(variant, tmp_path, cache):
    if missing := [name for name in SCHEMES[variant].packages if not installed(name)]:
        pytest.skip(f"{missing[0]} is not installed")
    arm = arm_of(variant)
    made = session(arm, tmp_path, cache)
    (case,) = arm.cases
    assert made.reply.problems == {} and made.reply.capped == {}
    reply = verified(made)[case.id]
    assert reply.verification.passed, reply.verification
    facts, details = made.reply.facts[case.id], made.reply.details[case.id]
    assert facts["weight_bytes"].value == case.cost.weight_bytes
    assert facts["bf16_bytes"].value == 2 * case.cost.parameters
    assert details["items"] == 12 * 32
    assert details["note"].endswith("no evidence on larger ones")
    assert facts["perplexity"].value > 1
    if variant == BASELINE:
        assert "divergence" not in facts and facts["quantised_share"].value == 0
    else:
        assert facts["divergence"].value >= 0 and 0 < facts["agreement"].value <= 1
        assert reply.facts["output_error"].value > 0


@pytest.mark.parametrize("variant", ["rtn-int8", "rtn-int4"])
def test_a_corrupt_code_or_scale_is_caught(variant, tmp_path, cache):
    for damage in ("code", "scale"):
        folder = tmp_path / damage
        folder.mkdir()
        made = session(arm_of(variant), folder, cache)
        layer = next(iter(made.loaded.applied.layers.values()))
        codes, scales, _ = layer.linear._held[0]
        if damage == "code":
            codes.view(-1)[5] ^= 64
        else:
            scales.view(-1)[3] *= 1.5
        reply = made.answer(protocol.Verify(*next(iter(made.paths.items())), 60.0))
        assert isinstance(reply, protocol.Problem) and "more than its format allows" in reply.reason


def test_a_layer_that_answers_wrongly_is_caught(tmp_path, cache, monkeypatch):
    made = session(arm_of("rtn-int8"), tmp_path, cache)
    layer = list(made.loaded.applied.layers.values())[-1]
    true = layer.linear.run

    def wrong(copy, x):
        y = true(copy, x).clone()
        y[:, 3] *= 1.01
        return y

    monkeypatch.setattr(layer.linear, "run", wrong)
    (reply,) = verified(made).values()
    assert not reply.verification.passed


def test_later_replicates_answer_an_eighth_again(tmp_path, cache):
    arm = arm_of("rtn-int8")
    (name,) = (case.id for case in arm.cases)
    first = session(arm, tmp_path, cache)
    again = session(arm, tmp_path, cache, replicate=2)
    details = again.reply.details[name]
    assert details["repeated"] == details["same"] == 4 * 32
    assert "correct" not in details
    assert again.reply.facts[name]["accuracy"] == first.reply.facts[name]["accuracy"]
    layer = next(iter(again.loaded.applied.layers.values()))
    layer.linear._held[0][1].mul_(1.2)
    (case,) = arm.cases
    outcome = builder.kept.read(again.loaded._file(case.id))
    told = again.loaded._again(case, *again.loaded._tasks[case.id], builder.Answers.of(outcome))
    assert told["same"] < told["repeated"]


def test_later_workers_do_not_open_the_unquantised_model_again_and_still_catch_a_wrong_layer(tmp_path, cache):
    arm, other = arm_of("rtn-int8"), arm_of("rtn-int4")
    first = verified(session(arm, tmp_path, cache))
    again = session(arm, tmp_path, cache, replicate=2)
    assert verified(again) == first
    assert "original" not in vars(again.loaded)
    assert all(reply.verification.passed for reply in verified(session(other, tmp_path, cache)).values())
    files = [
        made.loaded._file(f"{case.id} sizes {index}")
        for made, case in ((again, arm.cases[0]), (session(other, tmp_path, cache, replicate=2), other.cases[0]))
        for index in range(builder.POSITIONS)
    ]
    assert len(set(files)) == 4 and all(file.exists() for file in files)
    next(iter(again.loaded.applied.layers.values())).linear._held[0][1].mul_(1.2)
    assert not any(reply.verification.passed for reply in verified(again).values())


def test_a_hopeless_scheme_is_capped_without_answers(tmp_path, cache):
    arm = arm_of("rtn-int4", cap_s=1e-6)
    made = session(arm, tmp_path, cache)
    (name,) = (case.id for case in arm.cases)
    assert "more than the cap of 1e-06 s" in made.reply.capped[name]
    assert "correct" not in made.reply.details[name] and "accuracy" not in made.reply.facts[name]
    assert "weight_bytes" in made.reply.facts[name]


# Models of strangers, small and made here


def words_tokenizer(folder, extra=0):
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["[UNK]", *WORDS, *(f"extra{n}" for n in range(extra))]
    tool = Tokenizer(models.WordLevel({word: n for n, word in enumerate(names)}, unk_token="[UNK]"))
    tool.pre_tokenizer = pre_tokenizers.Whitespace()
    tool.save(str(folder / "tokenizer.json"))


SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 16,
    "max_position_embeddings": 64,
}


def saved(folder, kind):
    import transformers

    torch.manual_seed(1)
    if kind == "llama":
        config = transformers.LlamaConfig(
            **SIZES, intermediate_size=64, num_key_value_heads=1, tie_word_embeddings=True
        )
        model = transformers.LlamaForCausalLM(config)
    elif kind == "gpt2":
        config = transformers.GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=16, n_positions=64)
        model = transformers.GPT2LMHeadModel(config)
    else:
        model = transformers.BertModel(transformers.BertConfig(**SIZES, intermediate_size=64))
    model.save_pretrained(folder)
    words_tokenizer(folder)
    return folder


def story(folder):
    rng = np.random.default_rng(5)
    (folder / "story.txt").write_text(" ".join(rng.choice(WORDS, 700)))
    return write_task(folder, "story", "lm", "story.txt")


def pairs(folder, kind="classify"):
    rng = np.random.default_rng(6)
    lines = [
        {"text": " ".join(rng.choice(WORDS, 6)), "label": "ab"[n % 2], "match": " ".join(rng.choice(WORDS, 6))}
        for n in range(60)
    ]
    (folder / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return write_task(folder, kind, kind, f"{kind}.jsonl", labels=["a", "b"] if kind == "classify" else [])


def write_task(folder, name, kind, items, **more):
    values = {"name": name, "kind": kind, "says": "s", "source": "made up", "licence": "CC0", "items": items, **more}
    path = folder / f"{name}.toml"
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items()))
    return str(path)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_folder_of_the_users_is_quantised_and_answers(kind, tmp_path, cache):
    chosen = [pairs(tmp_path), pairs(tmp_path, "similarity")] if kind == "bert" else [story(tmp_path)]
    folder = saved(tmp_path / kind, kind)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    arm = arm_of("rtn-int4", str(folder), tasks=chosen)
    made = session(arm, scratch, cache)
    assert made.reply.problems == {}
    for name, reply in verified(made).items():
        assert reply.verification.passed, reply
        facts = made.reply.facts[name]
        assert facts["weight_bytes"].value < 4 * facts["bf16_bytes"].value / 2
        assert 0.2 < facts["quantised_share"].value < 1
        outside = 4 * (1 - facts["quantised_share"].value) * facts["bf16_bytes"].value / 2
        assert facts["unquantised_bytes"].value == pytest.approx(outside)  # held as float32
    if kind == "llama":
        assert "lm_head" not in made.loaded.applied.layers
    assert len(made.reply.facts) == len(chosen)


def failing(arm, tmp_path, cache):
    context = Context(7, 2, "cpu", cache, tmp_path)
    with pytest.raises((RuntimeError, FrugalbenchError)) as problem:
        builder.load(arm, context).bind(arm.cases[0])
    assert "\n" not in str(problem.value)
    return str(problem.value)


def test_weights_that_are_not_numbers_are_refused(tmp_path, cache):
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path / "m", "llama")
    held = load_file(folder / "model.safetensors")
    held["model.layers.0.mlp.up_proj.weight"][3, 4] = float("inf")
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    message = failing(arm_of("rtn-int8", str(folder), tasks=[story(tmp_path)]), tmp_path, cache)
    assert "up_proj.weight holds weights that are NaN or infinite" in message


def test_a_tokenizer_of_another_model_is_refused(tmp_path, cache):
    folder = saved(tmp_path / "m", "llama")
    words_tokenizer(folder, extra=9)
    message = failing(arm_of("rtn-int8", str(folder), tasks=[story(tmp_path)]), tmp_path, cache)
    assert "the tokenizer knows 22 tokens, the model 16: they do not belong together" in message
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json cannot be read" in failing(
        arm_of("rtn-int8", str(folder), tasks=[story(tmp_path)]), tmp_path, cache
    )


def test_an_encoder_is_no_language_model(tmp_path, cache):
    folder = saved(tmp_path / "m", "bert")
    arm = arm_of("rtn-int8", str(folder), tasks=[pairs(tmp_path)])
    case = replace_params(arm.cases[0], kind="lm")
    assert "BertModel is not a causal language model" in failing(replace_cases(arm, case), tmp_path, cache)


def replace_params(case, **changes):
    import msgspec

    return msgspec.structs.replace(case, params={**case.params, **changes})


def replace_cases(arm, *cases):
    import msgspec

    return msgspec.structs.replace(arm, cases=cases)


def test_a_model_that_transformers_cannot_build_is_told_in_one_line(tmp_path, cache):
    folder = saved(tmp_path / "m", "llama")
    arm = arm_of("rtn-int8", str(folder), tasks=[story(tmp_path)])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no-such-model"}))
    assert "transformers cannot load it" in failing(arm, tmp_path, cache)


def test_a_model_that_is_nowhere_is_told_in_one_line(tmp_path, cache, monkeypatch):
    import huggingface_hub

    def offline(*_args, **_kwargs):
        raise OSError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    arm = arm_of("rtn-int8", "owner/model")
    assert "cannot be fetched from the hub (no network at all); give a local folder" in failing(arm, tmp_path, cache)


def test_sums_of_a_layer_catch_one_wrong_token():
    sums = model_schemes.signs(50)
    y = np.zeros((50, 3))
    y[17, 2] = 1.0
    assert np.abs(sums @ y)[:, 2].min() == 1.0
