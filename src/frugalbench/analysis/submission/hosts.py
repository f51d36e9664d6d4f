"""Names of hosts in texts: where file servers, logs of network libraries, schedulers and proxies tell them.

A bare word is not known for a host's name. One that stands where names of hosts do is, and goes everywhere else too.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from frugalbench.paths import data, shipped

MOST_OF_A_LIST = 4096
LEAST_LEARNT = 3
"""Characters of a name that is looked for wherever it stands."""
_NAME = r"[A-Za-z][\w-]*(?:\.[\w-]+)*"
_FILE = r"(?!\S*\.(?:py|cpp|cc|c|h|hpp|cu|cuh|rs|go|so|toml|json|onnx|gguf|md|txt)\b)"
_EVERYWHERE = "/(?:proc|sys|dev|onnxruntime_src)/"
_DOMAINS = "com|org|net|edu|gov|mil|biz|cloud"
_COUNTRIES = "eu|de|fr|uk|ch|at|nl|it|es|se|no|fi|dk|pl|cz|cn|jp|kr|in|au|ca|us|br|sg|tw|ru|be|pt|gr|ie|il|za"
_VARIABLES = (
    r"(?:HTTPS?|FTP|ALL|NO|SOCKS|RSYNC)_PROXY|(?:HF|AWS|S3|MINIO|OTEL_\w+)_ENDPOINT(?:_URL)?"
    r"|(?:PIP|UV)_(?:EXTRA_)?INDEX_URL|CONDA_CHANNEL(?:S|_ALIAS)|MASTER_ADDR|HOSTFILE"
    r"|NODELIST|NODE_?NAME|POD_NAME|(?:SLURM|PBS|LSB|OAR|COBALT|FLUX|KUBERNETES|RAY)_\w+"
)
PLACES: tuple[re.Pattern[str], ...] = (
    re.compile(rf"(?<![\w./:<-])(?P<maybe>{_NAME}):(?=/[\w.])(?!{_EVERYWHERE})(?:/[\w.+@%=,~-]*)+"),
    re.compile(r"(?<![\w:/\\])//(?P<host>[A-Za-z][\w.-]*)/[^\s\"'<>,;]+"),
    re.compile(rf"(?<![\w.+-])[A-Za-z][\w.+-]*@(?!cuda|cpu|sim|xpu)(?P<host>{_NAME})(?=:|\s*$|['\"])"),
    re.compile(rf"(?<![\w./:<-]){_FILE}(?P<maybe>{_NAME}):\d{{4,5}}(?![\w:.])"),
    re.compile(rf"(?<![\w./:<-])(?P<host>{_NAME}):\d+:\d+ \[\d+\] (?=NCCL|RCCL)"),
    re.compile(rf"\[(?!rank\d)(?P<host>{_NAME})\]:\d{{2,5}}\b"),
    re.compile(
        r"(?i:\b(?:connect|socket|address|listen|resolve|server|peer|store)[a-z]*\b)[^()\n]{0,60}"
        rf"\(['\"]?(?P<host>{_NAME})['\"]?, ?\d{{2,5}}\)"
    ),
    re.compile(
        r"(?i:\b(?:host(?:name)?|node_?(?:name|list)|fqdn|proxy)['\"]?\s*[:=]\s*['\"]?)(?!None\b)"
        rf"(?P<host>{_NAME})"
    ),
    re.compile(rf"(?i:\bon (?:host|server|machine) )(?=\S*[\d.-]\w)(?P<host>{_NAME})"),
    re.compile(rf"(?i:\b(?:ssh|scp|rsync|sftp)\s+(?:-\S+\s+)*)(?P<host>{_NAME})"),
    re.compile(
        rf"(?<![\w.@/-])(?P<host>(?:[A-Za-z0-9-]+\.)+(?:{_DOMAINS})|(?:[A-Za-z0-9-]+\.){{2,}}(?:{_COUNTRIES}))"
        r"(?![\w-]|\.\w)"
    ),
    re.compile(r"(?<![\w.-])(?P<list>[A-Za-z][\w-]*\[\d+(?:-\d+)(?:,\d+(?:-\d+)?)*\])"),
    re.compile(rf"(?i)(?<![A-Za-z0-9])(?:{_VARIABLES})['\"]?(?:=|\s*:\s*)['\"]?(?!<)(?P<value>[^\s;'\"]+)"),
)
"""Each match goes as a whole; its named part tells the name of a host (``maybe``: or another word), a list of them, or
a value that holds some."""
_IN_ENVIRONMENT = re.compile(
    r"(?i)\w*(?:NODELIST|NODE_?NAME|HOSTNAME|_HOST|MASTER_ADDR|PROXY|ENDPOINT(?:_URL)?|INDEX_URL|CHANNEL_ALIAS)"
)
KEYS = re.compile(
    rf"(?i)(?:{_VARIABLES}|proxy|proxies|channels?|endpoint|hosts?|peers?|fqdn|nodename|node_?list|master_addr"
    r"|(?:ssh|pdu|bmc)_?host)"
)
"""Keys of tables whose texts name hosts."""
PUBLIC = re.compile(
    r"(?i)(?:[\w-]+\.)*(?:github\.com|githubusercontent\.com|arxiv\.org|huggingface\.co|pypi\.org|pythonhosted\.org"
    r"|pytorch\.org|anaconda\.org|nvidia\.com|amd\.com|intel\.com|arm\.com|onnx\.ai|doi\.org|wikipedia\.org|localhost)"
)
"""Sites that everybody uses."""
_UNLIKE_A_WORD = re.compile(r"[\d.-]")
_SITE = re.compile(rf"(?:[A-Za-z0-9-]+\.)+(?:{_DOMAINS}|{_COUNTRIES})\b")
_KEPT = frozenset(
    {
        *("id", "cpu_model", "gpus", "name", "kernel", "workload", "variant", "backend", "scope", "method", "status"),
        *("tier", "role", "unit", "regime", "shape", "dtype", "start_method", "arm", "comparison", "state", "meter"),
        *("imports", "peaks", "device", "kind", "what"),
    }
)
"""Keys of texts in which no word is replaced because it is the name of a host as well."""
_WORDS = frozenset(
    {
        *("localhost", "localdomain", "loopback", "host", "node", "rank", "server", "root", "none", "true", "false"),
        *("null", "auto", "default", "cpu", "cuda", "gpu", "xpu", "sim", "open", "file", "torch", "onnx", "triton"),
        *("nccl", "gloo", "error", "warning"),
    }
)
"""Words that stand where names do and are none."""


def names_nobody(text: str) -> bool:
    """Whether what a place matched names public sites, this very host or no host at all."""
    found = list(names_in(text))
    return bool(found) and not any(map(_is_name, found))


def _is_name(name: str) -> bool:
    known = len(name) < LEAST_LEARNT or name.lower() in _WORDS or bool(PUBLIC.fullmatch(name))
    return not known and not ("." in name and name.lower() in cited())


@cache
def cited() -> frozenset[str]:
    """Sites that the package's own figures have as their sources, which modelled rows repeat."""
    folders = (data("hardware"), data("network"), shipped("configs"))
    files = [data("prices.toml"), *(file for folder in folders for file in folder.rglob("*.toml"))]
    texts = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    return frozenset(found.lower() for text in texts for found in _SITE.findall(text))


def named(documents: Iterable[Any]) -> set[str]:
    """Names of hosts that the texts of plain documents tell somewhere, to be looked for everywhere: none that stands
    in what has to stay, keys of tables, ids, and what hardware is called. ``documents`` are gone through twice."""
    found: set[str] = set()
    for document in documents:
        for key, text in _texts(document):
            found.update(names_in(text, sure=True))
            if KEYS.fullmatch(key):
                found.update(_of_value(text))
    return apart_from({name for name in found if _is_name(name)}, documents)


def apart_from(names: Iterable[str], documents: Iterable[Any]) -> set[str]:
    """Those of ``names`` that stand in nothing that has to stay."""
    kept = "\n".join({text.lower() for item in documents for key, text in _texts(item) if key in ("", *_KEPT)})
    return {name for name in names if name.lower() not in kept}


def of_environment(environ: Mapping[str, str]) -> set[str]:
    """Names that variables hold which name hosts: of schedulers, proxies, mirrors."""
    values = [value for key, value in environ.items() if _IN_ENVIRONMENT.fullmatch(key)]
    return {name for value in values for name in _of_value(value) if _is_name(name)}


def names_in(text: str, sure: bool = False) -> Iterator[str]:
    """Names of hosts in one text, those of lists such as ``gpu[01-04]`` spelled out, with and without their domain;
    ``sure``: no word that may be another one."""
    for place in PLACES:
        for match in place.finditer(text):
            told = match.groupdict()
            if (name := told.get("host")) is not None:
                yield from _with_short(name)
            elif (name := told.get("maybe")) is not None:
                yield from _with_short(name) if not sure or _UNLIKE_A_WORD.search(name) else ()
            elif (listed := told.get("list") or told.get("value")) is not None:
                yield from _of_value(listed)


def _of_value(text: str) -> Iterator[str]:
    """What a variable's value names: a list of a scheduler, an address of a proxy, a host."""
    bare = re.sub(r"(?i)^[a-z][a-z0-9+.-]*://(?:[^@/]*@)?", "", text)
    for item in re.findall(r"[A-Za-z][\w.-]*(?:\[[\d,-]+\])?", bare.partition("/")[0])[:MOST_OF_A_LIST]:
        for name in _spelled_out(item):
            yield from _with_short(name)


def _with_short(name: str) -> Iterator[str]:
    yield name
    if "." in name and _is_name(name):
        yield name.partition(".")[0]


def _spelled_out(item: str) -> Iterator[str]:
    """``gpu[01-03,7]`` as ``gpu01``, ``gpu02``, ``gpu03``, ``gpu7``."""
    stem, bracket, inside = item.partition("[")
    if not bracket:
        yield item
        return
    for part in inside.rstrip("]").split(","):
        low, _, high = part.partition("-")
        if low.isdecimal() and (high or low).isdecimal():
            numbers = range(int(low), min(int(high or low), int(low) + MOST_OF_A_LIST) + 1)
            yield from (f"{stem}{number:0{len(low)}d}" for number in numbers)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Key and text of each string in a document, keys of tables included."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield "", str(name)
            yield from _texts(item, str(name))
    elif isinstance(value, list | tuple):
        if key == "command":
            yield key, " ".join(map(str, value))
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str):
        yield key, value


def of_machine(hosts_file: str, resolver: str) -> set[str]:
    """Names of other hosts that this machine's own files list: the texts of ``/etc/hosts`` and ``/etc/resolv.conf``."""
    found = {word for line in hosts_file.splitlines() for word in line.partition("#")[0].split()[1:]}
    domains = [line.split()[1:] for line in resolver.splitlines() if line.startswith(("search ", "domain "))]
    found |= {word for words in domains for word in words}
    return {name for name in found if _is_name(name) and not name.lower().startswith(("localhost", "ip6-"))}
