"""Recordings in which somebody speaks, and others of noise alone: seeded, from the loudspeaker test of alsa-utils.

That Debian package (GPL-2+) brings eight recordings of a voice that names a loudspeaker ("front centre"). Each is
lowered to 16 kHz, laid at some place into noise of some colour, loud or faint; as many recordings hold noise alone.
What is right is so by construction. Eight recordings of one voice are a narrow sample of speech: the task tells whether
a runtime hears what float64 hears, not how good the detector is. No torch.
"""

import io
import os
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from frugalbench.schema import FrugalbenchError
from frugalbench.untrusted import read_bounded

PACKAGE = "alsa-utils"
WORDS = tuple(f"{place}_{side}" for place, sides in (("Front", ("Center", "Left", "Right")),
              ("Rear", ("Center", "Left", "Right")), ("Side", ("Left", "Right"))) for side in sides)  # fmt: skip
EACH = 10
"""Recordings with one word, and as many of noise alone."""
RATE = 16_000
SAMPLES = 75 * 512
"""75 steps of the detector, 2.4 s."""
_LOUDEST_DB, _FAINTEST_DB = 10.0, -12.0
"""Speech over noise, rms."""
_NOISE = 0.02
_MOST_BYTES = 2**22
_COARSE = 32_000


def missing() -> str:
    """How to get the recordings; empty when they are here."""
    return "" if _folder() else f"{PACKAGE} is not installed: apt-get install {PACKAGE}"


def _folder() -> Path | None:
    places = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    folders = (Path(place) / "sounds" / "alsa" for place in places.split(":") if place)
    return next((folder for folder in folders if all((folder / f"{word}.wav").is_file() for word in WORDS)), None)


def recordings(seed: int) -> Iterator[tuple[str, str, str, bytes]]:
    """Name, label, group and WAV file. Raises :class:`FrugalbenchError` where the recordings are missing or odd."""
    folder = _folder()
    if folder is None:
        raise FrugalbenchError(missing())
    for place, word in enumerate(WORDS):
        voice = _lowered(folder / f"{word}.wav")
        for number in range(EACH):
            for label in ("silence", "speech"):
                random = np.random.default_rng([seed, place, number, label == "speech"])
                sound = _noise(random) + (_laid(voice, random) if label == "speech" else 0.0)
                group = word if label == "speech" else f"noise {word} {number}"
                yield f"{label} {word} {number}", label, group, written(sound)


def _lowered(path: Path) -> np.ndarray:
    """The voice at 16 kHz, its rms 1."""
    from scipy.signal import resample_poly

    rate, sound = read(read_bounded(path, _MOST_BYTES))
    if rate % RATE:
        raise FrugalbenchError(f"{path}: {rate} Hz; the recordings of {PACKAGE} have a multiple of {RATE}")
    voice = resample_poly(sound, 1, rate // RATE)[:SAMPLES]
    return np.asarray(voice / np.sqrt(np.mean(voice**2)))


def _laid(voice: np.ndarray, random: np.random.Generator) -> np.ndarray:
    sound = np.zeros(SAMPLES)
    start = int(random.integers(0, SAMPLES - len(voice) + 1))
    sound[start : start + len(voice)] = voice * _NOISE * 10 ** (random.uniform(_FAINTEST_DB, _LOUDEST_DB) / 20)
    return sound


def _noise(random: np.random.Generator) -> np.ndarray:
    """White to brown: power falls with the frequency to some power between 0 and 2; below 50 Hz there is none."""
    frequency = np.fft.rfftfreq(SAMPLES, 1 / RATE)
    slope = np.where(frequency < 50, 0.0, np.maximum(frequency, 50.0) ** -random.uniform(0.0, 1.0))
    sound = np.fft.irfft(np.fft.rfft(random.standard_normal(SAMPLES)) * slope, SAMPLES)
    return np.asarray(sound * _NOISE / np.sqrt(np.mean(sound**2)))


def written(sound: np.ndarray) -> bytes:
    """A WAV file of samples between -1 and 1."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.clip(np.rint(sound * _COARSE), -_COARSE, _COARSE).astype("<i2").tobytes())
    return stream.getvalue()


def read(content: bytes) -> tuple[int, np.ndarray]:
    """Rate and samples between -1 and 1 of a WAV file; :class:`FrugalbenchError` unless one channel of 16 bits."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            form = (file.getnchannels(), file.getsampwidth())
            rate, frames = file.getframerate(), file.readframes(file.getnframes())
    except (wave.Error, EOFError) as problem:
        raise FrugalbenchError(f"not a WAV file: {problem}") from None
    if form != (1, 2):
        raise FrugalbenchError(f"a WAV file of {form[0]} channels and {8 * form[1]} bits; one of 16 bits is taken")
    return rate, np.frombuffer(frames, "<i2").astype(np.float64) / 2**15
