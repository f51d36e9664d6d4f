"""What tells who or where somebody is, found in a run's texts and replaced by a placeholder.

Equal texts get equal placeholders (``<path-1>``), keys of tables included, so that ids still match each other.
What cannot be told from a secret goes: a wrong placeholder costs a word, a leak cannot be taken back.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_UUID = re.compile(r"(?i)\b(?:GPU-|MIG-(?:GPU-)?)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_MAC = re.compile(r"(?i)(?<![\w:-])(?:[0-9a-f]{2}([:-]))(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}(?![\w:-])")
_ADDRESS = re.compile(
    r"(?<![\w:.])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7})(?![\w:]|\.\d)"
)
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b")
_URL = re.compile(r"(?i)\b(?:https?|file|ssh|s3|gs)://[^\s\"'<>,;]+")
_PATH = re.compile(
    r"(?<![\w.:/~<>\\-])(?:~(?=/)|(?=/))(?:/[\w.+@%=,:~-]+)+/?|\b[A-Za-z]:\\[^\s\"'<>|;]+|\\\\[\w.-]+\\[^\s\"'<>|;]+"
)
_SERIAL = re.compile(r"(?i)\b(?:serial(?:[ _-]?(?:number|no\.?))?|s/n)\s*[:=#]?\s*((?=[A-Z-]*\d)[A-Z0-9-]{5,})")
_CREDENTIAL = re.compile(
    r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA)[A-Za-z0-9_-]{12,}"
    r"|(?i:\b(?:password|passwd|secret|api[_-]?key|bearer)\s*[:= ]\s*)(?!<)\S{4,}"
)
_PUBLIC_PATHS = ("/proc/", "/sys/", "/dev/null", "/dev/nvidia", "/onnxruntime_src/")
"""Names that every machine has, and the folder that ONNX Runtime's own messages name."""
_PRIVATE_KEYS = frozenset(
    {
        *("serial", "serial_number", "board_serial", "uuid", "gpu_uuid", "machine_id", "boot_id", "asset_tag"),
        *("host", "hostname", "host_name", "fqdn", "user", "username", "user_name", "home", "cwd", "email"),
        *("mac", "mac_address", "ip", "ip_address", "prometheus_url", "pci_bus_id"),
    }
)
_VERSION_KEYS = frozenset({"versions", "libraries"})
"""Version numbers of four parts look like addresses."""
_PACKED_KEYS = frozenset({"correct", "starts"})
"""Bits in base64, in which a slash begins no path."""
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_REPLACED = re.compile(r"<[a-z]+-\d+>")
_COMMON_WORDS = frozenset({"root", "user", "admin", "localhost", "ubuntu", "runner", "linux", "machine", "test", "cpu"})
LEAST_NAME = 3
"""Shorter host and user names would hit words that have nothing to do with them."""


class Scrubber:
    """Replaces what identifies; counts what it found in ``removed`` (kind to texts and their numbers)."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """``names``: of this host and its user, known only where the file is packed."""
        self.removed: dict[str, Counter[str]] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        chosen = sorted({n for n in names if len(n) >= LEAST_NAME and n.lower() not in _COMMON_WORDS}, key=len)
        words = "|".join(re.escape(name) for name in reversed(chosen))
        self._names = re.compile(rf"(?i)(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])") if words else None

    def clean(self, value: Any, key: str = "", versions: bool = False) -> Any:
        """``value`` (plain data of a JSON document) without what identifies."""
        if isinstance(value, dict):
            return {
                self._text(name, versions): self.clean(item, name, versions or name in _VERSION_KEYS)
                for name, item in value.items()
            }
        if key.lower() in _PRIVATE_KEYS and _tells(value):
            return self._note("field", str(value))
        if isinstance(value, list | tuple):
            return [self.clean(item, key, versions) for item in value]
        if not isinstance(value, str) or (key in _PACKED_KEYS and _BASE64.fullmatch(value)):
            return value
        return self._text(value, versions)

    def _text(self, text: str, versions: bool) -> str:
        for kind, pattern, keep in _PATTERNS:
            if kind == "address" and versions:
                continue
            text = pattern.sub(self._replacing(kind, keep), text)
        return text if self._names is None else self._names.sub(self._replacing("name", _never), text)

    def _replacing(self, kind: str, keep: Callable[[str], bool]) -> Callable[[re.Match[str]], str]:
        def replace(match: re.Match[str]) -> str:
            return match[0] if keep(match[0]) else self._note(kind, match[0])

        return replace

    def _note(self, kind: str, text: str) -> str:
        self.removed.setdefault(kind, Counter())[text] += 1
        number = self._numbers.setdefault((kind, text), 1 + sum(kind == known for known, _ in self._numbers))
        return f"<{kind}-{number}>"


def _tells(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and not _REPLACED.fullmatch(value)


def _never(_: str) -> bool:
    return False


def _is_no_address(text: str) -> bool:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return True
    return found.is_loopback or found.is_unspecified or len(text) < 6


def _is_no_path(text: str) -> bool:
    return text.startswith(_PUBLIC_PATHS) or (text.count("/") + text.count("\\") < 2 and not text.startswith("/home"))


_PATTERNS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("credential", _CREDENTIAL, _never),
    ("mail", _MAIL, _never),
    ("url", _URL, lambda text: text.startswith(("https://github.com/", "https://arxiv.org/"))),
    ("uuid", _UUID, _never),
    ("mac", _MAC, _never),
    ("serial", _SERIAL, _never),
    ("path", _PATH, _is_no_path),
    ("address", _ADDRESS, _is_no_address),
)


def secrets(value: Any) -> Iterator[tuple[str, str]]:
    """Kind and text of whatever in a stranger's document would have been removed."""
    scrubber = Scrubber()
    scrubber.clean(value)
    for kind, texts in scrubber.removed.items():
        for text in texts:
            yield kind, text
