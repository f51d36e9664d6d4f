"""Lines of writing as the recogniser takes them: drawn with Pillow's own font (Aileron, CC0), or read from a file.

A drawn line is spoilt by what its text and nothing else decides: size, ink and paper, softness, grain.
"""

import hashlib
import io
from typing import Any

import numpy as np

HEIGHT, WIDTH = 48, 320
_MARGIN = 8
_SIZES = (20, 30)
"""Of the font, in pixels."""
_SOFTNESS = (0.6, 1.7)
"""Standard deviation of the blur, in pixels."""
_GRAIN = (10.0, 45.0)
"""Standard deviation of the noise, of 255."""


def drawn(text: str) -> Any:
    """A grey image of ``text``; the same text gives the same image."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    random = np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))
    font = ImageFont.load_default(float(random.uniform(*_SIZES)))
    left, top, right, bottom = font.getbbox(text)
    ink, paper = random.uniform(0, 100), random.uniform(170, 255)
    image = Image.new("L", (int(right - left) + 2 * _MARGIN, HEIGHT), round(paper))
    place = (_MARGIN - left, (HEIGHT - bottom - top) / 2)
    ImageDraw.Draw(image).text(place, text, fill=round(ink), font=font)
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(random.uniform(*_SOFTNESS))), np.float64)
    grain = random.standard_normal(soft.shape) * random.uniform(*_GRAIN)
    return Image.fromarray(np.clip(np.rint(soft + grain), 0, 255).astype(np.uint8))


def opened(content: bytes) -> Any:
    """The image in a file, in colours. Raises ``RuntimeError`` when it is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as problem:
        raise RuntimeError(f"an item's image cannot be read: {problem}") from None


def pixels(image: Any) -> np.ndarray:
    """float32 (3, HEIGHT, WIDTH) between -1 and 1, blue first; what is left of the width is 0."""
    width = min(WIDTH, max(1, -(-HEIGHT * image.width // image.height)))
    scaled = image.convert("RGB").resize((width, HEIGHT))
    found = np.zeros((3, HEIGHT, WIDTH), np.float32)
    found[:, :, :width] = np.asarray(scaled, np.float32)[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1
    return found
