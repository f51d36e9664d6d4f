"""Packaged models that are no encoders: what an item becomes before them, and what their numbers say after them.

Each follows its package's own way: magika's first choice among its types (``BEST_GUESS``), the greedy reading of
PP-OCR's steps, silero-vad's 0.5 in any step of 32 ms. Shape suffixes: B batch, T steps, C classes, S samples.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from frugalbench.specs import packaged_tasks, spoken_words
from frugalbench.specs.tasks import Example
from frugalbench.workloads.base import Arrays
from frugalbench.workloads.layers import line_images
from frugalbench.workloads.layers.answers import Answers, group_starts

Run = Callable[[Arrays], Arrays]
"""A model in some runtime: inputs by name to outputs by name."""


class Answerer(Protocol):
    """A packaged model with what stands before and behind it."""

    @property
    def batch(self) -> int:
        """Items of a call."""
        ...

    def example(self) -> Arrays:
        """Inputs of the shape that every call has."""
        ...

    def answer(self, run: Run, items: Sequence[Example]) -> list[str]:
        """What the model makes of at most a batch of items, in words."""
        ...


def answerer(kind: str, path: Path, batch: int) -> Answerer:
    """The one for a kind of task. Raises ``RuntimeError`` where the file is not the model that is known."""
    known: dict[str, Callable[[Path, int], Answerer]] = {
        packaged_tasks.FILE_TYPE: FileTypes, packaged_tasks.TEXT_LINE: TextLines, packaged_tasks.SPEECH: Speech,
    }  # fmt: skip
    return known[kind](path, batch)


def batches(items: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """Neighbours; the last batch may be short."""
    return (items[start : start + size] for start in range(0, len(items), size))


def judged(kind: str, items: Sequence[Example], said: Sequence[str]) -> Answers:
    """One bit an item; of a line of text one a character."""
    if kind == packaged_tasks.TEXT_LINE:
        return _read(items, said)
    right = [answer == item.label for item, answer in zip(items, said, strict=True)]
    return Answers(np.array(right), group_starts(items))


def _read(items: Sequence[Example], said: Sequence[str]) -> Answers:
    right = [kept_characters(_solid(item.text), answer) for item, answer in zip(items, said, strict=True)]
    starts = [start and place == 0 for start, bits in zip(group_starts(items), right, strict=True)
              for place in range(len(bits))]  # fmt: skip
    return Answers(np.array([bit for bits in right for bit in bits]), np.array(starts))


def _solid(text: str) -> str:
    return "".join(text.split())


def kept_characters(text: str, read: str) -> list[bool]:
    """Which characters of ``text`` an alignment of fewest edits pairs with their like in ``read``; more does not
    matter."""
    edits = np.zeros((len(text) + 1, len(read) + 1), int)
    edits[:, 0], edits[0] = np.arange(len(text) + 1), np.arange(len(read) + 1)
    for row, wanted in enumerate(text, 1):
        for column, found in enumerate(read, 1):
            changed = edits[row - 1, column - 1] + (wanted != found)
            edits[row, column] = min(changed, edits[row - 1, column] + 1, edits[row, column - 1] + 1)
    return _traced(edits, text, read)


def _traced(edits: np.ndarray, text: str, read: str) -> list[bool]:
    kept, row, column = [False] * len(text), len(text), len(read)
    while row and column:
        same = text[row - 1] == read[column - 1]
        if edits[row, column] == edits[row - 1, column - 1] + (not same):
            row, column = row - 1, column - 1
            kept[row] = same
        elif edits[row, column] == edits[row - 1, column] + 1:
            row -= 1
        else:
            column -= 1
    return kept


def _filled(rows: Sequence[np.ndarray], batch: int) -> np.ndarray:
    """Stacked to a full batch; the last row stands in where items are short."""
    return np.stack([*rows, *[rows[-1]] * (batch - len(rows))])


@dataclass(frozen=True)
class FileTypes:
    """magika: the first and last bytes of a file, without the blanks around it, to one of its types."""

    path: Path
    batch: int

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the package says of its model."""
        file = packaged_tasks.settings_of(self.path)
        if file is None:
            raise RuntimeError(f"{self.path}: no config.min.json beside it")
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def example(self) -> Arrays:
        """Of a file of one line."""
        return {"bytes": _filled([self.tokens(b"print('one line')\n")], self.batch)}

    def tokens(self, content: bytes) -> np.ndarray:
        """int32 (2048): bytes from the beginning and from the end, 256 where there are none."""
        first, last = self.settings["beg_size"], self.settings["end_size"]
        block, none = self.settings["block_size"], self.settings["padding_token"]
        begin = content[:block].lstrip()[:first]
        end = content[-block:].rstrip()[-last:]
        found = np.full(first + last, none, np.int32)
        found[: len(begin)] = list(begin)
        found[first + last - len(end) :] = list(end)
        return found

    def answer(self, run: Run, items: Sequence[Example]) -> list[str]:
        """The type with the highest score."""
        tokens = [self.tokens(packaged_tasks.content(item.match)) for item in items]
        (scores_BC,) = run({"bytes": _filled(tokens, self.batch)}).values()
        names = self.settings["target_labels_space"]
        return [names[number] for number in scores_BC[: len(items)].argmax(axis=1)]


@dataclass(frozen=True)
class TextLines:
    """PP-OCRv4's recogniser: an image of a line to its characters, without blanks."""

    path: Path
    batch: int

    @cached_property
    def characters(self) -> list[str]:
        """By class: nothing, those of the dictionary that the file carries, a blank."""
        import onnx

        held = {entry.key: entry.value for entry in onnx.load(str(self.path)).metadata_props}
        if "character" not in held:
            raise RuntimeError(f"{self.path}: carries no dictionary of characters")
        return ["", *held["character"].splitlines(), " "]

    def example(self) -> Arrays:
        """Of a drawn line."""
        return {"x": _filled([line_images.pixels(line_images.drawn("one-line:1"))], self.batch)}

    def answer(self, run: Run, items: Sequence[Example]) -> list[str]:
        """Each step's likeliest class; what repeats itself counts once."""
        images = [line_images.pixels(_image(item)) for item in items]
        (scores_BTC,) = run({"x": _filled(images, self.batch)}).values()
        if scores_BTC.shape[2] != len(self.characters):
            raise RuntimeError(f"{scores_BTC.shape[2]} classes, and a dictionary of {len(self.characters)}")
        return [self._text(steps) for steps in scores_BTC[: len(items)].argmax(axis=2)]

    def _text(self, steps: np.ndarray) -> str:
        changes = np.flatnonzero(np.diff(steps, prepend=-1))
        return _solid("".join(self.characters[steps[place]] for place in changes))


def _image(item: Example) -> Any:
    return line_images.opened(packaged_tasks.content(item.match)) if item.match else line_images.drawn(item.text)


@dataclass(frozen=True)
class Speech:
    """silero-vad: 16 kHz in steps of 512 samples with 64 of the step before, a state carried on."""

    path: Path
    batch: int
    step: int = 512
    before: int = 64

    def example(self) -> Arrays:
        """Of the first step, silent."""
        return self._feed(np.zeros((self.batch, self.before + self.step)), np.zeros((2, self.batch, 128), np.float32))

    def _feed(self, samples_BS: np.ndarray, state: np.ndarray) -> Arrays:
        return {"input": samples_BS.astype(np.float32), "state": state, "sr": np.array(spoken_words.RATE)}

    def answer(self, run: Run, items: Sequence[Example]) -> list[str]:
        """Whether some step is likelier speech than not."""
        sounds = [_sound(item) for item in items]
        steps = [-(-len(sound) // self.step) for sound in sounds]
        padded_BS = np.zeros((self.batch, self.before + max(steps) * self.step))
        for row, sound in enumerate(sounds):
            padded_BS[row, self.before : self.before + len(sound)] = sound
        state, highest_B = np.zeros((2, self.batch, 128), np.float32), np.zeros(self.batch)
        length_B = np.array([*steps, *[0] * (self.batch - len(steps))])
        for number in range(max(steps)):
            found = run(self._feed(padded_BS[:, number * self.step :][:, : self.before + self.step], state))
            state = found["stateN"]
            chance_B = np.where(number < length_B, found["output"].reshape(self.batch), 0.0)
            highest_B = np.maximum(highest_B, chance_B)
        return ["speech" if chance > 0.5 else "silence" for chance in highest_B[: len(items)]]


def _sound(item: Example) -> np.ndarray:
    rate, sound = spoken_words.read(packaged_tasks.content(item.match))
    if rate != spoken_words.RATE or not len(sound):
        raise RuntimeError(f"'{item.text}': {len(sound)} samples at {rate} Hz; {spoken_words.RATE} Hz are taken")
    return sound
