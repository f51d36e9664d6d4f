"""Model folders of strangers: what a header tells, and what is refused before anything is loaded."""

import json
import struct

import pytest

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import checkpoints


def weights(path, shapes, cut=0, more=0):
    """A safetensors file of zeros, ``cut`` bytes short or ``more`` too long."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(at + more)
    path.write_bytes(content[: len(content) - cut])


def folder(path, architecture="LlamaForCausalLM", **config):
    (path / "config.json").write_text(json.dumps({"architectures": [architecture], "model_type": "x", **config}))
    (path / "tokenizer.json").write_text("{}")
    weights(path / "model.safetensors", {"a": (3, 4), "b": (5,)})
    return path


def refused(path):
    with pytest.raises(FrugalbenchError) as problem:
        checkpoints.read(path)
    assert "\n" not in str(problem.value)
    return str(problem.value)


@pytest.mark.parametrize(
    ("architecture", "causal"),
    [("LlamaForCausalLM", True), ("GPT2LMHeadModel", True), ("BertModel", False), ("BertForMaskedLM", False)],
)
def test_the_header_tells_how_large_a_model_is(tmp_path, architecture, causal):
    found = checkpoints.read(folder(tmp_path, architecture))
    assert (found.parameters, found.causal, found.architecture) == (17, causal, architecture)
    assert found.stored_bytes == (tmp_path / "model.safetensors").stat().st_size


def test_a_model_in_several_files_must_be_whole(tmp_path):
    folder(tmp_path)
    weights(tmp_path / "more.safetensors", {"c": (2, 2)})
    index = {"weight_map": {"a": "model.safetensors", "c": "more.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert checkpoints.read(tmp_path).parameters == 21
    (tmp_path / "more.safetensors").unlink()
    assert "more.safetensors is missing" in refused(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    assert "is damaged" in refused(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl"])
def test_pickled_weights_are_refused_unopened(tmp_path, name):
    folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "holds no weights" in refused(tmp_path)
    (tmp_path / name).write_bytes(b"\x80\x04.")
    message = refused(tmp_path)
    assert f"only pickled weights ({name}), which can run code" in message


@pytest.mark.parametrize(
    ("cut", "more", "why"),
    [(1, 0, "holds 67 bytes of weights where its header names 68"), (0, 9, "holds 77 bytes"), (70, 0, "a damaged one"),
     (10**6, 0, "no safetensors file")],
)  # fmt: skip
def test_a_file_that_is_cut_short_or_too_long_is_refused(tmp_path, cut, more, why):
    folder(tmp_path)
    weights(tmp_path / "model.safetensors", {"a": (3, 4), "b": (5,)}, cut, more)
    assert why in refused(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}x",
        b'{"a": 3}',
        b'{"a": {"shape": "x", "data_offsets": [0, 0]}}',
        b'{"a": {"shape": [1]}}',
        b"\xff" * 9,
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path, header):
    folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "model.safetensors" in refused(tmp_path)


def test_an_endless_header_is_not_read(tmp_path):
    folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "no safetensors file" in refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not JSON"),
        ("[]", "is no model's configuration"),
        ('{"auto_map": {"AutoModel": "x"}}', "code of its own"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(tmp_path, text, why):
    folder(tmp_path)
    (tmp_path / "config.json").write_text(text)
    assert why in refused(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_what_is_missing_is_named(tmp_path, name):
    folder(tmp_path)
    (tmp_path / name).unlink()
    assert name in refused(tmp_path)


def test_the_hubs_cache_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert checkpoints.cached("owner/model") is None
    base = tmp_path / "models--owner--model"
    (base / "refs").mkdir(parents=True)
    (base / "snapshots" / "abc123").mkdir(parents=True)
    (base / "refs" / "main").write_text("abc123")
    assert checkpoints.cached("owner/model") == base / "snapshots" / "abc123"
    (base / "refs" / "main").write_text("../../..")
    assert checkpoints.cached("owner/model") is None


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("Qwen/Qwen3-0.6B", True), ("gpt2", False), ("a/b/c", False), ("../x", False), ("a/..", False), ("a b/c", False)],
)
def test_hub_ids(name, is_one):
    assert checkpoints.is_hub_id(name) is is_one
