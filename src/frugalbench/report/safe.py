"""One way for text into each output format, so that what a stranger wrote in a file stays text.

Case ids, reasons, names and notes come from run directories. A terminal must not obey them, a page not run them, a
spreadsheet not compute them, a forge not render them.
"""

import re
from html import escape
from typing import Any

from frugalbench.untrusted import shown

MOST_CELL = 2000
"""Characters of a cell; what is longer ends in an ellipsis, except in files made for programs."""

_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
_JSON_CONTROL = re.compile(
    "[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def terminal(text: object) -> str:
    """One line without control characters; markup is not interpreted where this text is put into ``rich.text.Text``."""
    return " ".join(shown(text, MOST_CELL).split()) if _has_breaks(text) else shown(text, MOST_CELL)


def _has_breaks(text: object) -> bool:
    return any(character in str(text) for character in "\n\r\t")


def html(text: object) -> str:
    """Text for an element or a quoted attribute."""
    return escape(shown(text, MOST_CELL), quote=True)


def csv_value(value: Any) -> Any:
    """Numbers as they are; text so that no spreadsheet takes it for a formula."""
    if not isinstance(value, str):
        return value
    text = shown(value, len(value))
    return f"'{text}" if _FORMULA.match(text) else text


def markdown(text: object) -> str:
    """One line that breaks no table and turns into no markup, image, link or link definition."""
    flat = " ".join(shown(text, MOST_CELL).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "\\|*`":
        flat = flat.replace(character, "\\" + character)
    return re.sub(r"\](?=[(:\[])", r"\]", flat)


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}", "≥": r"$\geq$",
    "≤": r"$\leq$", "×": r"$\times$", "·": r"$\cdot$", "µ": r"$\mu$", "Φ": r"$\Phi$", "√": r"$\surd$", "–": "--",
    "—": "---", "…": r"\ldots{}", "°": r"$^\circ$", "→": r"$\to$", "±": r"$\pm$", "²": "$^2$",
    "`": r"\textasciigrave{}", '"': "''", "|": r"\textbar{}",
}  # fmt: skip


def latex(text: object) -> str:
    """One line in which nothing is a command; symbols that plain fonts lack become those of mathematics."""
    flat = " ".join(shown(text, MOST_CELL).split())
    return "".join(_LATEX.get(character, character) for character in flat)


def latex_comment(text: object) -> str:
    """One line behind a per cent sign."""
    return " ".join(shown(text, MOST_CELL).split())


def json_text(document: str) -> str:
    """JSON with every character spelled out that a terminal could obey; the document says the same as before."""
    if document.isprintable():
        return document
    return _JSON_CONTROL.sub(lambda match: _escaped(ord(match[0])), document)


def script(document: str) -> str:
    """JSON for a script element, which no text in it can end; it says the same as before."""
    return json_text(document).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _escaped(code: int) -> str:
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
