"""The frame of every page: one file with its own style and its own script, allowed by its hash; no network."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from frugalbench.report import safe


def page(title: str, body: Iterable[str], data: Mapping[str, Any]) -> str:
    """The document; ``data`` is what the script draws on demand."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">'
    content, stored = "\n".join(body), safe.script(msgspec.json.encode(data).decode())
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}\n<title>{safe.html(title)}</title>\n'
        f"<style>{_file('page.css')}</style></head>\n<body>\n{content}\n"
        f'<script type="application/json" id="data">{stored}</script>\n<script>{_file("page.js")}</script>\n'
        "</body></html>\n"
    )


def anchor(title: str) -> str:
    """An id for a section; a stranger's text gives no more than letters and digits to it."""
    return "s-" + re.sub(r"[^a-z0-9_]+", "-", title.lower()).strip("-")


def section(name: str, title: str, parts: Sequence[str]) -> str:
    """A section with its heading."""
    content, heading = "\n".join(parts), safe.html(title)
    return f'<section id="{safe.html(name)}"><h2>{heading}</h2>\n{content}</section>'


@lru_cache(maxsize=2)
def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _policy() -> str:
    """The page runs its own script and nothing else, and fetches nothing, whatever text it holds."""
    digest = base64.b64encode(hashlib.sha256(_file("page.js").encode()).digest()).decode()
    scripts = f"script-src 'sha256-{digest}'"
    return f"default-src 'none'; {scripts}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
