"""Nothing in the source turns data into code: no pickle, no eval, no shell, arrays and weights loaded as plain data."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "frugalbench"
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
WRITERS = {"dumps"}  # of pickle and its kin: writing runs nothing
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
_PLAIN = ("allow_pickle", False)
NEEDED = {"np.load": _PLAIN, "numpy.load": _PLAIN, "torch.load": ("weights_only", True)}


def findings(text: str) -> Iterator[str]:
    """What is wrong with a module's text, with the line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} <= WRITERS:
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{node.lineno}: imports {n}" for n in names if n.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.Call):
            yield from _call(node)


def _call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
    if name in FORBIDDEN_CALLS | FORBIDDEN_METHODS:
        yield f"{node.lineno}: calls {name}"
    if given.get("shell") is True:
        yield f"{node.lineno}: starts a shell"
    if name in NEEDED and given.get(NEEDED[name][0]) is not NEEDED[name][1]:
        yield f"{node.lineno}: {name} without {NEEDED[name][0]}={NEEDED[name][1]}"
    if given.get("allow_pickle") is True or given.get("weights_only") is False:
        yield f"{node.lineno}: allows code in data"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_data_becomes_code(path: Path) -> None:
    assert list(findings(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import dumps, loads", "from yaml import load", "eval('1')", "exec(x)",
        "np.load(f)", "np.load(f, allow_pickle=True)", "torch.load(f)", "torch.load(f, weights_only=False)",
        "os.system('x')", "subprocess.run('x', shell=True)",
    ],
)  # fmt: skip
def test_what_it_would_find(text: str) -> None:
    assert list(findings(text))


def test_child_processes_do_not_import_from_the_folder_the_user_stands_in() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for flag in ("-m", "-c"):
            assert f'[sys.executable, "{flag}"' not in text, f"{path}: add -P, or a torch.py lying about is imported"
