"""Keeping a document's tables true: text between markers is replaced by what the marker's command prints.

    <!-- BEGIN frugalbench verdicts results/cpu --format md -->
    <!-- END frugalbench verdicts -->

The command stands in the BEGIN marker, so a reader can run it and get the same table.
"""

import re
from collections.abc import Callable
from pathlib import Path

from frugalbench.schema import FrugalbenchError

_BEGIN = re.compile(r"<!-- BEGIN (frugalbench [^\n]*?) -->")
_END = re.compile(r"<!-- END [^\n]*?-->")


def commands(text: str) -> tuple[str, ...]:
    """The commands in the BEGIN markers of ``text``, in order."""
    return tuple(match[1] for match in _BEGIN.finditer(text))


def splice(file: Path, produce: Callable[[str], str]) -> bool:
    """Replace every marked region of ``file`` by ``produce(command)``; returns whether the file changed.

    Raises :class:`FrugalbenchError` if ``file`` cannot be read or written, has no marker, or one without its END.
    """
    try:
        text = file.read_text(encoding="utf-8")
        new = splice_text(text, produce, str(file))
        if new != text:
            file.write_text(new, encoding="utf-8")
    except OSError as error:
        raise FrugalbenchError(
            f"{file}: cannot be spliced ({error.strerror}).\nName a text file with markers."
        ) from None
    return new != text


def splice_text(text: str, produce: Callable[[str], str], where: str = "text") -> str:
    """``text`` with every marked region replaced; raises like :func:`splice`."""
    begins = list(_BEGIN.finditer(text))
    if not begins:
        raise FrugalbenchError(
            f"{where}: no marker found.\nAdd `<!-- BEGIN frugalbench verdicts RUN --format md -->` and its END."
        )
    parts, position = [], 0
    for index, begin in enumerate(begins):
        following = begins[index + 1].start() if index + 1 < len(begins) else len(text)
        end = _END.search(text, begin.end(), following)
        if end is None:
            line = text.count("\n", 0, begin.start()) + 1
            raise FrugalbenchError(
                f"{where}:{line}: BEGIN without END.\nAdd `<!-- END frugalbench verdicts -->` below it."
            )
        parts += [text[position : begin.end()], "\n", produce(begin[1]).strip("\n"), "\n"]
        position = end.start()
    return "".join([*parts, text[position:]])
