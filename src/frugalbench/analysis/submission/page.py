"""Whether a page from a stranger is as inert as the ones that ``frugalbench report`` writes."""

from html.parser import HTMLParser

_ACTIVE = frozenset(
    ("script", "iframe", "frame", "object", "embed", "applet", "base", "form", "input", "button", "link", "portal")
)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fault: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _ACTIVE:
            self.fault = self.fault or f"a <{tag}> element"
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
    return reader.fault
