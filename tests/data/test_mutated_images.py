"""Ten thousand damaged files through the decoder: an image or an ImageError, never anything else."""

from __future__ import annotations

import io
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from cflow_ray.config import DetectorConfig
from cflow_ray.data.images import FORMATS, prepare
from cflow_ray.errors import ImageError

FILES = 10_000
INPUT = DetectorConfig(input_size=32).input
MAX_PIXELS = 10_000


def whole_files() -> dict[str, bytes]:
    """One small file of every format and some modes."""
    pixels = np.random.default_rng(0).integers(0, 255, (12, 17, 3), dtype=np.uint8)
    files = {}
    for form in FORMATS:
        for mode in ("RGB", "L"):
            buffer = io.BytesIO()
            Image.fromarray(pixels).convert(mode).save(buffer, form)
            files[f"{form} {mode}"] = buffer.getvalue()
    return files


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The file with a few bytes changed, cut, doubled or moved; most often near its start, where the structure is."""
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        near = min(len(damaged), draw.choice((32, 64, len(damaged))))
        at = draw.randrange(max(1, near))
        match draw.randrange(6):
            case 0:
                damaged[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                damaged[at : at + 4] = draw.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
            case 2:
                del damaged[at : at + draw.randint(1, 16)]
            case 3:
                damaged[at:at] = damaged[at : at + draw.randint(1, 64)]
            case 4:
                del damaged[draw.randrange(len(damaged) + 1) :]
            case 5:
                damaged[at:at] = draw.randbytes(draw.randint(1, 16))
    return bytes(damaged)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what it reads
def test_a_damaged_file_is_an_image_or_an_image_error() -> None:
    files, draw = list(whole_files().values()), random.Random(0)
    outcomes = Counter[str]()
    for number in range(FILES):
        content = mutated(files[number % len(files)], draw)
        try:
            image = prepare(content, INPUT, MAX_PIXELS)
            assert image.pixels_3HW.shape == (3, 32, 32)
            assert image.width * image.height <= MAX_PIXELS
            outcomes["image"] += 1
        except ImageError as error:
            outcomes[error.kind] += 1
    assert outcomes.keys() == {"image", "empty_file", "no_image", "damaged_image", "too_large"}, outcomes
    assert min(outcomes[kind] for kind in ("image", "no_image", "damaged_image", "too_large")) > 50, outcomes
