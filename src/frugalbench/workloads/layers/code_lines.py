"""Lines of code of what an arm really runs: neither blank nor comment nor docstring."""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterable
from pathlib import Path

_INCLUDED = re.compile(r'^\s*#include\s+"([^"]+)"', re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


def cpp_files(source: Path, root: Path) -> list[Path]:
    """``source`` and all headers that it includes by quotes, found beside the including file or under ``root``."""
    found: list[Path] = []
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.append(path)
            names = _INCLUDED.findall(path.read_text(encoding="utf-8"))
            places = ((path.parent / name, root / name) for name in names)
            waiting += [next(place.resolve() for place in some if place.is_file()) for some in places]
    return found


def of_cpp(paths: Iterable[Path]) -> int:
    """Of all files together."""
    texts = (_COMMENT.sub("", path.read_text(encoding="utf-8")) for path in paths)
    return sum(bool(line.strip()) for text in texts for line in text.splitlines())


def of_python(parts: Iterable[Callable[..., object]]) -> int:
    """Of all functions or classes together."""
    return sum(_of_python(textwrap.dedent(inspect.getsource(part))) for part in parts)


def _of_python(text: str) -> int:
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in skipped]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    return len(lines - _docstring_lines(ast.parse(text)))


def _docstring_lines(tree: ast.Module) -> set[int]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node)]
    return {line for node in first for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
