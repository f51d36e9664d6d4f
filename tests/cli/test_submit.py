"""A run packed on one machine is taken on another, and holds nothing that tells whose it was."""

import io
import json
import zipfile
from pathlib import Path

import pytest

from frugalbench.analysis.submission.scrub import Scrubber, secrets
from frugalbench.cli import output, submit

FIXTURE = Path(__file__).parents[1] / "fixtures/submission/small-selftest.zip"
SECRETS = {
    "at /home/zhang/models/llama.gguf:12": ("/home/zhang",),
    r"C:\Users\zhang\x.onnx": ("zhang",),
    "~/work/model.onnx": ("work/model",),
    "rank 3 on lab-7.example.org": ("lab-7",),
    "10.24.3.17 and fe80::1ff:fe23:4567:890a": ("10.24", "fe80"),
    "00:1a:2b:3c:4d:5e": ("1a:2b",),
    "GPU-1b4e28ba-2fa1-11d2-883f-0016d3cca427": ("1b4e28ba",),
    "serial number: 1320A2991": ("1320A2991",),
    "zhang@lab.example.org": ("zhang",),
    "https://metrics.internal:9090/q": ("internal",),
    "token hf_abcdefghijklmnopqrst": ("hf_abc",),
    "connect to 10.24.3.17:29500 failed, [2001:db8::17]:29500 too": ("10.24", "2001:db8"),
    "::ffff:10.24.3.17 and tcp://10.24.3.18:1": ("10.24",),
    "cannot open:/home/zhang/a.so, built with -I/home/zhang/include": ("zhang",),
    "../../home/wang/models/x.gguf and ~wang/models/y.gguf": ("wang",),
    r"C:\Users\Wei Wang\models\x.onnx": ("Wang",),
    "/home/wei/a (copy)/x.onnx": ("/home/wei",),
    "wang@gpu-node-03: refused": ("wang", "node-03"),
    "ip-10-24-3-17.eu-west-1.compute.internal and node17.cluster.local": ("10-24", "node17"),
    "HOSTNAME=node17 WANDB_API_KEY=0123456789abcdef MASTER_ADDR=node18": ("node17", "0123456789", "node18"),
    "postgres://wang:pw@db/x": ("wang",),
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0": ("eyJhbGci",),
    "auth_token: 5f2a9c": ("5f2a9c",),
    "filer:/vol/quokka/x.gguf is stale": ("filer", "quokka"),
    "read //wombat.corp/numbat/x.onnx": ("wombat", "numbat"),
    "wang@titan: Permission denied": ("wang", "titan"),
    "titan:4021:4033 [0] NCCL WARN Call to connect returned Connection refused": ("titan",),
    "[W socket.cpp:464] The server socket on [atlas]:29500 is not yet listening": ("atlas",),
    "The client socket has timed out after 60s while trying to connect to (hydra, 29500)": ("hydra",),
    "HTTPSConnectionPool(host='models.corp.example', port=443): Max retries exceeded": ("models.corp",),
    "connection to hydra:29500 refused": ("hydra",),
    "SLURM_JOB_NODELIST=gpu[01-04,07] SLURM_SUBMIT_HOST=login-2": ("gpu[", "04,07", "login-2"),
    "{'SLURMD_NODENAME': 'atlas9', 'no_proxy': 'localhost,.corp.lab,10.1.2.3'}": ("corp.lab", "atlas9"),
    "https_proxy=http://wang:pw@squid.corp.lab:3128": ("squid", "wang"),
    "HF_ENDPOINT=https://hub.corp.lab": ("hub.corp",),
    "conda: https://conda.corp.lab/own is not reachable": ("corp.lab",),
    "mirror.example.edu answered late": ("mirror",),
    "nodes gpu[17-19] left": ("gpu[17",),
    "ssh -q pdu-3 cat power": ("pdu-3",),
}
PLAIN = (
    "moe_ffn/qwen3-30b-a3b@0.25/moe-native/decode/native/cpu",
    "at::native::addmm and aten::mm",
    "H100 / B200",
    "12/30 of",
    "2026-11-22T09:15:28Z",
    "127.0.0.1",
    "/proc/cpuinfo",
    "50 GB/s/core",
    "1.24.4",
    "0.1.0+cpu",
    "arXiv 2006.16668",
    "moe_ffn/qwen3-30b-a3b@1-bfloat16/dense-equal-total/prefill-4096/torch/cuda",
    "README.md @744d01e",
    "16 tokens: 3 of 4, token 16: 1.2 s",
    "time: 09:15:28 and 1:2:3",
    "H100 nodes of 8, joined by 200 Gbit/s per node / H100 nodes of 8, one 400 Gbit/s fabric",
    "powercap energy_uj: intel-rapl:0",
    "com.microsoft.MatMulNBits of ai.onnx.ml 5",
    "no kernel for node_3 on machine learning's com.microsoft",
    "layers[0], weights[1,2] and x[:4]",
    "localhost:29500 refused",
    "could not reach huggingface.co and docs.nvidia.com",
    "torch.nn.functional.linear in engine.cpp:1024",
    "host: None",
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished, measured run, into whose notes the owner's traces have been put."""
    folder = tmp_path / "run"
    folder.mkdir()
    with zipfile.ZipFile(FIXTURE) as found:
        manifest = json.loads(found.read("manifest.json"))
        (folder / "records.jsonl").write_bytes(found.read("records.jsonl"))
    manifest["notes"] += list(SECRETS)
    manifest["config"]["path"] = "/home/zhang/bench/my.toml"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_submitted_and_checked(call, run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(submit, "_names", lambda: {"lab-7", "zhang"})
    file = tmp_path / "one.zip"
    answer = call("submit", run, "--out", file, "--page", "--yes")
    assert answer.code == 0 and "/home/zhang/bench/my.toml" in answer.out and "written" in answer.err
    with zipfile.ZipFile(file) as found:
        everything = b"".join(found.read(name) for name in found.namelist()).decode()
        assert set(found.namelist()) == {"submission.json", "manifest.json", "records.jsonl", "report.html"}
    assert not [trace for traces in SECRETS.values() for trace in traces if trace in everything]
    checked = call("check", file, "--unpack", tmp_path / "in")
    assert checked.code == 0 and "accepted" in checked.out and "no self-test" in checked.out
    assert call("verdicts", tmp_path / "in", "--json").code == 0
    report = call("check", file, "--json").json
    assert report["accepted"] and report["refusals"] == [] and report["contents"]["records"] == 42


def test_the_same_run_gives_the_same_bytes(call, run, tmp_path) -> None:
    for name in ("one.zip", "two.zip"):
        assert call("submit", run, "--out", tmp_path / name, "--yes").code == 0
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert call("submit", run, "--out", tmp_path / "one.zip", "--yes").code == 0
    (tmp_path / "two.zip").write_bytes(b"mine")
    assert "differs" in call("submit", run, "--out", tmp_path / "two.zip", "--yes").err
    assert (tmp_path / "two.zip").read_bytes() == b"mine"


def test_nothing_is_asked_or_written_without_a_terminal(call, run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    answer = call("submit", run, "--out", tmp_path / "one.zip", "--json")
    assert answer.code == 2 and "--yes" in answer.err and not (tmp_path / "one.zip").exists()
    assert answer.json["removed"]["path"] and answer.json["accepted"]


def test_a_run_that_would_be_refused_is_not_packed(call, stored, tmp_path) -> None:
    answer = call("submit", stored, "--out", tmp_path / "one.zip", "--yes")
    assert answer.code == 1 and "refused (resolution)" in answer.out and not (tmp_path / "one.zip").exists()


def test_bad_requests(call, tmp_path) -> None:
    call("check", tmp_path / "absent.zip").is_problem()
    call("submit", tmp_path / "absent").is_problem()
    (tmp_path / "x.zip").write_bytes(b"PK\x05\x06 no zip")
    answer = call("check", tmp_path / "x.zip")
    assert answer.code == 1 and "refused (archive)" in answer.out
    full = tmp_path / "full"
    full.mkdir()
    (full / "a").touch()
    call("check", FIXTURE, "--unpack", full).is_problem()


@pytest.mark.parametrize("text", SECRETS)
def test_what_identifies_goes(text) -> None:
    cleaned = json.dumps(Scrubber({"lab-7", "zhang"}).clean({"note": [text]}))
    assert not [trace for trace in SECRETS[text] if trace in cleaned]
    assert list(secrets(json.loads(cleaned))) == []


def test_equal_texts_get_equal_names_and_keys_too() -> None:
    scrubber = Scrubber()
    found = scrubber.clean({"/home/a/x.onnx": 1, "b": ["/home/a/x.onnx", "/home/a/y.onnx"], "hostname": "lab-7"})
    assert found == {"<path-1>": 1, "b": ["<path-1>", "<path-2>"], "hostname": "<field-1>"}
    assert scrubber.removed["path"]["/home/a/x.onnx"] == 2


@pytest.mark.parametrize("text", PLAIN)
def test_what_does_not_identify_stays(text) -> None:
    assert Scrubber({"root", "cpu"}).clean({"note": text, "versions": {"cublas": "12.8.4.1"}}) == {
        "note": text, "versions": {"cublas": "12.8.4.1"}
    }  # fmt: skip


def test_numbers_and_spellings_of_private_keys() -> None:
    found = Scrubber().clean({"Serial Number": 1652921034567, "gpu-uuid": "a", "host": ["a", "b"], "mac": None})
    assert found == {
        "Serial Number": "<field-1>",
        "gpu-uuid": "<field-2>",
        "host": ["<field-2>", "<field-3>"],
        "mac": None,
    }


def test_secrets_of_the_environment_are_names_too(monkeypatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    assert "correct-horse-battery" in submit._names()


def test_a_host_that_is_named_once_goes_everywhere(call, run, tmp_path, monkeypatch) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["notes"] += ["SLURM_JOB_NODELIST=hydra[07-09]", "hydra08 was slow", "compute-bound:29500"]
    manifest["config"]["energy"]["command"] = ["ssh", "pdu-rack4", "watts"]
    manifest["notes"] += ["pdu-rack4 gave nothing", "read from larder", "came through squid3"]
    manifest["notes"] += ["load failed:/home/wang/x.so", "user@ok: host=measured"]  # words that records hold
    (run / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("https_proxy", "http://squid3.corp.lab:3128")
    monkeypatch.setattr(submit, "_HOST_FILES", (tmp_path / "hosts", tmp_path / "absent"))
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n10.0.0.9 larder  # the file server\n")
    answer = call("submit", run, "--out", tmp_path / "one.zip", "--yes", "--json")
    assert answer.code == 0 and "hydra08" in answer.json["removed"]["name"]
    with zipfile.ZipFile(tmp_path / "one.zip") as found:
        everything = b"".join(found.read(name) for name in found.namelist()).decode()
    assert not [name for name in ("hydra", "pdu-rack4", "larder", "squid3", "corp.lab") if name in everything]
    assert "selftest/compute-bound" in everything  # what ids are made of is no name of a host
    assert call("check", tmp_path / "one.zip").code == 0


def test_a_check_that_takes_long_says_what_it_asks(call, monkeypatch) -> None:
    monkeypatch.setattr(output.late_progress, "__defaults__", (0.0,))
    said = call("check", FIXTURE).err
    assert "small-selftest.zip: rule 1 of " in said and ", turns" in said


def test_globs_of_a_selection_are_no_paths() -> None:
    config = {"only": "*/decode/*", "path": "/data/wang/x.toml"}
    assert Scrubber().clean(config) == {"only": "*/decode/*", "path": "<path-1>"}


def test_packed_answers_stay_as_they_are() -> None:
    packed = {"correct": "/9m9/klxqA6/H++8x+i9x/4=", "starts": "gAAA/w=="}
    assert Scrubber().clean(packed) == packed
