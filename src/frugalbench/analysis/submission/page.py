"""Whether a page from a stranger is as inert as the ones that ``frugalbench report`` writes."""

from functools import cache
from html.parser import HTMLParser
from pathlib import Path

_ACTIVE = frozenset(("iframe", "frame", "object", "embed", "applet", "base", "form", "link", "portal"))
_DATA = "application/json"


@cache
def _own_script() -> str:
    """The one script that may run: the page's own, of this version."""
    return (Path(__file__).parents[2] / "report" / "page.js").read_text(encoding="utf-8")


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fault: str | None = None
        self.script: list[str] | None = None

    def handle_data(self, data: str) -> None:
        if self.script is not None:
            self.script.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "script" and self.script is not None:
            if "".join(self.script) != _own_script():
                self.fault = self.fault or "a <script> element that is not of this version's page"
            self.script = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _ACTIVE:
            self.fault = self.fault or f"a <{tag}> element"
        if tag == "script" and dict(attrs).get("type") != _DATA:
            self.script = []
        for name, value in attrs:
            if reason := _attribute_fault(tag, name, value or ""):
                self.fault = self.fault or reason

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)


def _attribute_fault(tag: str, name: str, value: str) -> str | None:
    if name.startswith("on"):
        return f"a script in the attribute {name}"
    if name in ("src", "href", "xlink:href", "action", "srcset", "data") and not value.startswith(("#", "data:image/")):
        return f"a link out of the page in {name}"
    if tag == "meta" and name == "http-equiv" and value.lower() != "content-security-policy":
        return "a <meta> element that commands the browser"
    return None


def page_fault(content: bytes) -> str | None:
    """What the page could do besides being read, or ``None``."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return "text that is not UTF-8"
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.fault if reader.script is None else "a <script> element without an end"
