"""What tells who or where somebody is, found in a run's texts and replaced by a placeholder.

Equal texts get equal placeholders (``<path-1>``), keys of tables included, so that ids still match each other.
What cannot be told from a secret goes: a wrong placeholder costs a word, a leak cannot be taken back.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

from frugalbench.analysis.submission import hosts

_UUID = re.compile(r"(?i)\b(?:GPU-|MIG-(?:GPU-)?)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_MAC = re.compile(r"(?i)(?<![\w:-])(?:[0-9a-f]{2}([:-]))(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}(?![\w:-])")
_ADDRESS = re.compile(
    r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){1,6}:)?\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)"
    r"|(?<![\w:.])[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}(?![\w:]|\.\d)"
)
_HOST = re.compile(
    r"(?i)(?<![\w.-])(?:[\w-]+\.)+(?:local|lan|corp|intranet|localdomain|home\.arpa|compute\.internal)(?![\w.-]*\w)"
    r"|\bip-\d{1,3}(?:-\d{1,3}){3}\b"
)
_MAIL = re.compile(
    r"(?<![\w.+-])(?:[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}|[A-Za-z][\w.+-]*@(?!cuda|cpu|sim)[A-Za-z][\w.]*[-\d][\w.-]*)(?![\w@])"
)
_URL = re.compile(r"(?i)\b[a-z][a-z0-9+.-]{1,15}://[^\s\"'<>,;]+")
_ROOTS = r"/(?:home|Users|root|mnt|media|scratch|gpfs|lustre|nfs|export/home|var/folders)/"
_PATH = re.compile(
    rf"(?<!\w){_ROOTS}[^\s\"'<>,;:()]+|(?<=[-A-Z][ILB]){_ROOTS}[^\s\"'<>,;:()]+"
    r"|(?<![\w.:/<>\\-])~[A-Za-z][\w.-]*/[^\s\"'<>,;]*|(?<![\w/.])(?:\.\./)+[\w.+@%=,:~/-]+"
    r"|(?<=[a-z]:)(?=/\w)(?:/[\w.+@%=,:~-]+)+/?"
    r"|(?<![\w.:/~<>\\-])(?:~(?=/)|(?=/))(?:/[\w.+@%=,:~-]+)+/?"
    r"|\b[A-Za-z]:\\(?:Users|Documents and Settings)\\[^\"'<>|;:*?\n]+"
    r"|\b[A-Za-z]:[\\/](?![\\/])[^\s\"'<>|;]+|\\\\[\w.-]+\\[^\s\"'<>|;]+"
)
_VARIABLE = re.compile(
    r"(?<![A-Za-z0-9])(?:HOSTNAME|HOST|MASTER_ADDR|USER|USERNAME|LOGNAME|SUDO_USER|HOME|PWD|OLDPWD|SSH_[A-Z]+"
    r"|SLURM_[A-Z_]+|[A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIALS?)[A-Z0-9_]*)"
    r"=(?!<)[^\s,;'\"]+"
)
_SERIAL = re.compile(r"(?i)\b(?:serial(?:[ _-]?(?:number|no\.?))?|s/n)\s*[:=#]?\s*((?=[A-Z-]*\d)[A-Z0-9-]{5,})")
_CREDENTIAL = re.compile(
    r"\b(?:hf_|sk-|sk_live_|gh[pousr]_|github_pat_|glpat-|xox[abeps]-|AKIA|ASIA|AIza|npm_|pypi-|eyJ)[A-Za-z0-9_.-]{12,}"
    r"|(?i:\b(?:password|passwd|secret|api[_-]?key|bearer|(?:access|auth|api|hf)[_-]?token)\s*[:= ]\s*)(?!<)\S{4,}"
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
_NUMBERED_KEYS = frozenset({"serial", "serial_number", "board_serial", "machine_id", "asset_tag"})
"""Those whose values may be plain numbers."""
_VERSION_KEYS = frozenset({"versions", "libraries"})
"""Version numbers of four parts look like addresses."""
_PACKED_KEYS = frozenset({"correct", "starts"})
"""Bits in base64, in which a slash begins no path."""
_GLOB_KEYS = frozenset({"only"})
"""Globs on ids, which hold slashes and name no file."""
_GLOB = re.compile(r"[\w*?\[][\w.*?\[\]!@+ /-]*")
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_REPLACED = re.compile(r"<[a-z]+-\d+>")
_COMMON_WORDS = frozenset({"root", "user", "admin", "localhost", "ubuntu", "runner", "linux", "machine", "test", "cpu"})
MOST_KEPT = 100_000
_PLAIN = frozenset({float, bool, type(None)})
LEAST_NAME = 3
"""Shorter host and user names would hit words that have nothing to do with them."""


class Scrubber:
    """Replaces what identifies; counts what it found in ``removed`` (kind to texts and their numbers)."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """``names``: of this host and its user, known only where the file is packed."""
        self.removed: dict[str, Counter[str]] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        self._harmless: tuple[set[str], set[str]] = (set(), set())
        """Without and with version numbers."""
        chosen = sorted({n for n in names if len(n) >= LEAST_NAME and n.lower() not in _COMMON_WORDS}, key=len)
        words = "|".join(re.escape(name) for name in reversed(chosen))
        self._names = re.compile(rf"(?i)(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])") if words else None

    def clean(self, value: Any, key: str = "", versions: bool = False) -> Any:
        """``value`` (plain data of a JSON document) without what identifies."""
        if isinstance(value, dict):
            return {
                self._text(name, versions): item
                if item.__class__ in _PLAIN  # most of a run, so not even asked
                else self.clean(item, name, versions or name in _VERSION_KEYS)
                for name, item in value.items()
            }
        if _tells(_spelled(key), value):
            return self._note("field", str(value))
        if isinstance(value, list | tuple):
            return [self.clean(item, key, versions) for item in value]
        if not isinstance(value, str) or (key in _PACKED_KEYS and _BASE64.fullmatch(value)):
            return value
        if key in _GLOB_KEYS and _GLOB.fullmatch(value):
            return self._names.sub(self._replacing("name", _never), value) if self._names is not None else value
        return self._text(value, versions)

    def _text(self, text: str, versions: bool) -> str:
        """Records repeat their keys and words: what was found harmless is not looked at again."""
        if text in self._harmless[versions]:
            return text
        cleaned = text
        for kind, pattern, keep in _PATTERNS:
            if kind == "address" and versions:
                continue
            cleaned = pattern.sub(self._replacing(kind, keep), cleaned)
        if self._names is not None:
            cleaned = self._names.sub(self._replacing("name", _never), cleaned)
        if cleaned == text and len(self._harmless[versions]) < MOST_KEPT:
            self._harmless[versions].add(text)
        return cleaned

    def _replacing(self, kind: str, keep: Callable[[str], bool]) -> Callable[[re.Match[str]], str]:
        def replace(match: re.Match[str]) -> str:
            return match[0] if keep(match[0]) else self._note(kind, match[0])

        return replace

    def _note(self, kind: str, text: str) -> str:
        self.removed.setdefault(kind, Counter())[text] += 1
        number = self._numbers.setdefault((kind, text), 1 + sum(kind == known for known, _ in self._numbers))
        return f"<{kind}-{number}>"


@lru_cache(MOST_KEPT)
def _spelled(key: str) -> str:
    return re.sub(r"[ -]", "_", key.lower())


def _tells(key: str, value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return key in _NUMBERED_KEYS and value != 0
    if not isinstance(value, str) or not value or _REPLACED.fullmatch(value):
        return False
    return key in _PRIVATE_KEYS or (bool(hosts.KEYS.fullmatch(key)) and not hosts.PUBLIC.fullmatch(value))


def _never(_: str) -> bool:
    return False


def _is_no_address(text: str) -> bool:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return True
    return found.is_loopback or found.is_unspecified or len(text) < 6


def _is_no_path(text: str) -> bool:
    if text.startswith(("~", "..")):
        return False
    return text.startswith(_PUBLIC_PATHS) or (text.count("/") + text.count("\\") < 2 and text[1:2] != ":")


_PATTERNS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("credential", _CREDENTIAL, _never),
    *(("host", place, hosts.names_nobody) for place in hosts.PLACES),
    ("variable", _VARIABLE, _never),
    ("url", _URL, lambda text: text.startswith(("https://github.com/", "https://arxiv.org/"))),
    ("mail", _MAIL, _never),
    ("uuid", _UUID, _never),
    ("mac", _MAC, _never),
    ("serial", _SERIAL, _never),
    ("path", _PATH, _is_no_path),
    ("address", _ADDRESS, _is_no_address),
    ("host", _HOST, _never),
)


def secrets(*documents: Any) -> Iterator[tuple[str, str]]:
    """Kind and text of whatever in a stranger's documents would have been removed."""
    scrubber = Scrubber()
    for document in documents:
        scrubber.clean(document)
    for kind, texts in scrubber.removed.items():
        for text in texts:
            yield kind, text
