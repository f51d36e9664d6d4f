"""Seeded damage to configs and run directories: of their bytes, of their structure, and of the files themselves."""

import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTILE_TEXT = (
    "", " ", "\x1b[31mred\x1b[0m", "\x9b31m", "\x00", "a\nb", "a\tb", "\u202egnp.exe", "[red]x[/red]", "[/nothing]",
    "=1+1", "@SUM(A1)", "<script>alert(1)</script>", "javascript:alert(1)", "](http://x)", "|", "`", "../../x", "/etc",
    "é" * 50, "x" * 5000, "nan", "inf", "1e999", "\u2028", "%s%n", "{0}", "🙂", "-", "*", "file.py:Class", "os:system",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 10**400, -(10**30), 0.0, -0.0, 1e-320, 1e-30, 1e-12,
    0.5, 1e9, 1e30, 1e300, 1.7976931348623157e308, -1e308, 1_000_000, 10**12,
)  # fmt: skip
Dice = random.Random


def scalar(dice: Dice) -> Any:
    """Any value that a document can hold, and that nobody expects."""
    return dice.choice([dice.choice(HOSTILE_TEXT), dice.choice(NUMBERS), None, True, False, [], {}, nested(dice)])


def nested(dice: Dice) -> Any:
    """Brackets in brackets."""
    value: Any = dice.choice([1, "x", None])
    for _ in range(dice.choice([1, 5, 40, 200])):
        value = [value] if dice.random() < 0.5 else {"a": value}
    return value


def structure(dice: Dice, document: Any, times: int) -> Any:
    """``document`` (changed in place) with ``times`` of its parts replaced, removed, doubled or renamed."""
    for _ in range(times):
        if not (places := by_path(document)):
            return document
        holder, key = dice.choice(places[dice.choice(list(places))])
        _change(dice, holder, key)
    return document


def retype(dice: Dice, documents: list[Any]) -> None:
    """Put one and the same new value of the right type into the same place of all ``documents``: readers let it in."""
    places = by_path(documents)
    plain = [path for path, found in places.items() if isinstance(found[0][0][found[0][1]], int | float | str)]
    if not plain:
        return
    found = places[dice.choice(plain)]
    value = _like(dice, found[0][0][found[0][1]])
    for holder, key in found:
        holder[key] = value if dice.random() < 0.9 or holder[key] is None else _like(dice, holder[key])


def by_path(document: Any) -> dict[tuple[str, ...], list[tuple[Any, Any]]]:
    """``(container, key or index)`` of everything in ``document``, by the names on the way: rare ones count alike."""
    found: dict[tuple[str, ...], list[tuple[Any, Any]]] = {}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), document)]
    while waiting:
        path, value = waiting.pop()
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in list(items):
            inner = (*path, key if isinstance(key, str) else "[]")
            found.setdefault(inner, []).append((value, key))
            waiting.append((inner, item))
    return found


def _change(dice: Dice, holder: Any, key: Any) -> None:
    value = holder[key]
    if dice.random() < 0.7 and isinstance(value, (int, float, str, list)):
        holder[key] = _like(dice, value)
    else:
        _break(dice, holder, key)


def _like(dice: Dice, value: Any) -> Any:
    """Another value of the same type: what a typed reader lets through."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return dice.choice([value[::-1], value[:1], value * 2, []])
    if isinstance(value, str):
        return dice.choice([dice.choice(HOSTILE_TEXT), value + dice.choice(HOSTILE_TEXT), value.upper(), value[:-1]])
    if dice.random() < 0.6:
        near = [value + 1, 2 * value, value // 3, 0, 1, -value]
        return dice.choice(near) if isinstance(value, int) else dice.choice([*near, value / 3, 1e6 * value, 1e-12])
    if isinstance(value, int):
        return dice.choice([n for n in NUMBERS if isinstance(n, int)])
    return dice.choice([float(n) for n in NUMBERS if abs(n) < 10**309])


def _break(dice: Dice, holder: Any, key: Any) -> None:
    kind = dice.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[dice.choice([*HOSTILE_TEXT, "name", "id", "x" * 300])] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder.extend([holder[key]] * dice.choice([1, 2, 50]))
    elif kind == 3 and type(holder[key]) in (int, float):
        holder[key] = dice.choice(NUMBERS)
    elif kind == 4 and isinstance(holder[key], str):
        holder[key] = dice.choice([holder[key] + dice.choice(HOSTILE_TEXT), holder[key][: len(holder[key]) // 2]])
    else:
        holder[key] = scalar(dice)


def raw(dice: Dice, data: bytes, times: int) -> bytes:
    """``data`` with bytes flipped, cut, doubled and put in."""
    for _ in range(times):
        at, length = dice.randrange(len(data) + 1), dice.choice([1, 1, 2, 8, 64, 1000])
        put = dice.choice([b"", bytes([dice.randrange(256)]), b"\xff\xfe", b"[" * 5000, b"{" * 50, b"\x00", b"9" * 5000,
                           b"\n", b"1e999", b'"', b"\\ud800", b".a" * 3000, data[at : at + length] * 3])  # fmt: skip
        data = data[:at] + put + data[at + (length if dice.random() < 0.6 else 0) :]
    return data


# Configs


def toml(document: dict[str, Any]) -> str:
    """A TOML document from plain values; ``None`` has no form there and becomes the text "null"."""
    lines = [f"{_key(k)} = {_value(v)}" for k, v in document.items() if not _is_tables(k, v)]
    for key, value in document.items():
        if _is_tables(key, value):
            head = f"[[{_key(key)}]]" if isinstance(value, list) else f"[{_key(key)}]"
            for table in value if isinstance(value, list) else [value]:
                lines += [head, *(f"{_key(k)} = {_value(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _is_tables(key: str, value: Any) -> bool:
    tables = isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
    return tables or (isinstance(value, dict) and key in ("measure", "energy"))


def _key(key: str) -> str:
    return json.dumps(key) if key != "\x7f" else '"\\u007f"'


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, float) and value in (1.7976931348623157e308,):
        return "inf"
    return "nan" if value is None else json.dumps(value)


def config(dice: Dice, document: dict[str, Any]) -> bytes:
    """A damaged config file."""
    if dice.random() < 0.6:
        for _ in range(dice.choice([1, 2, 3])):
            retype(dice, [document])
        return toml(document).encode("utf-8", "surrogatepass")
    if dice.random() < 0.4:
        return raw(dice, toml(document).encode("utf-8", "replace"), dice.choice([1, 2, 5]))
    text = toml(structure(dice, document, dice.choice([1, 1, 2, 4, 8])))
    return text.encode("utf-8", "surrogatepass")


# Run directories


def run(dice: Dice, folder: Path) -> None:
    """Damage the run directory ``folder``: one of its files, or what kind of file it is."""
    kind = dice.choice(["manifest"] * 3 + ["typed"] * 8 + ["record", "records", "bytes", "bytes", "files"])
    manifest, records = folder / "manifest.json", folder / "records.jsonl"
    if kind == "manifest":
        document = json.loads(manifest.read_bytes())
        manifest.write_bytes(_json(structure(dice, document, dice.choice([1, 2, 4, 16]))))
    elif kind == "typed":
        documents = [json.loads(line) for line in records.read_bytes().splitlines()]
        name = dice.choice(documents)["case"]["id"]
        for _ in range(dice.choice([1, 1, 2, 3])):
            retype(dice, [item for item in documents if item["case"].get("id") == name or dice.random() < 0.05])
        records.write_bytes(b"".join(_json(item) + b"\n" for item in documents))
    elif kind in ("record", "records"):
        lines = records.read_bytes().splitlines()
        for number in dice.sample(range(len(lines)), min(len(lines), dice.choice([1, 2]) if kind == "record" else 20)):
            lines[number] = _json(structure(dice, json.loads(lines[number]), dice.choice([1, 1, 2, 4])))
        records.write_bytes(b"\n".join(lines) + b"\n")
    elif kind == "bytes":
        file = dice.choice([manifest, records])
        file.write_bytes(raw(dice, file.read_bytes(), dice.choice([1, 3])))
    else:
        dice.choice(FILES)(dice.choice([manifest, records]))


def _json(value: Any) -> bytes:
    """With what JSON does not have now and then, as Python writes it."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _link(target: str) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        file.unlink()
        file.symlink_to(target)

    return make


def _socket(file: Path) -> None:
    file.unlink()
    here = Path.cwd()
    os.chdir(file.parent)  # a socket's path may have a hundred characters only
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(file.name)
    os.chdir(here)


def _sparse(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(2**40)


FILES: tuple[Callable[[Path], None], ...] = (
    _fifo, _directory, _socket, _sparse, _link("/nowhere"), _link("/dev/zero"), _link("/dev/stdin"), _link("."),
    _link("manifest.json"), _link("/proc/self/environ"), _link("/proc/self/mem"),
    lambda file: file.write_bytes(b""), lambda file: file.unlink(), lambda file: file.write_bytes(b"\n" * 1000),
    lambda file: file.write_bytes(b"\x00" * 100_000), lambda file: file.write_bytes(b"[" * 100_000),
    lambda file: file.write_bytes(b'{"a":' * 100_000), lambda file: file.write_bytes(b'"' + b"x" * 20_000_000),
)  # fmt: skip
