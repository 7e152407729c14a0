"""`make bench-decode`: how fast other decoders are than the Pillow that scores rest on, and whether pixels are equal."""

from __future__ import annotations

import importlib.metadata
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_image

from benchmarks.images import gather
from benchmarks.meter import Meter
from benchmarks.options import parse, parser
from benchmarks.report import publish, significant
from cflow_ray.config import DetectorConfig
from cflow_ray.data.images import decode, prepare

_JPEG = {"quality": 90, "subsampling": "4:2:0"}
_IMAGES = 20
_OPENCV = "opencv-python-headless"


def _pillow(content: bytes) -> NDArray[np.uint8]:
    return np.array(decode(content))


def _torchvision(content: bytes) -> NDArray[np.uint8]:
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return decode_image(encoded, ImageReadMode.RGB).permute(1, 2, 0).numpy()


def _opencv(content: bytes) -> NDArray[np.uint8]:
    pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


DECODERS: dict[str, Callable[[bytes], NDArray[np.uint8]]] = {
    "pillow": _pillow,
    "torchvision": _torchvision,
    "opencv": _opencv,
}


def main() -> None:
    """Every decoder in turn on the same images, as they are (PNG) and as JPEG."""
    options = parse(parser("decoders"))
    cv2.setNumThreads(options.threads)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        images = gather(Path(folder), 2, 4 if options.quick else _IMAGES, options.data)
        pngs = [(images.root / file).read_bytes() for file in images.files("test")[:_IMAGES]]
    figures = {"png": _compared(pngs, options.rounds), "jpeg": _compared(list(map(_as_jpeg, pngs)), options.rounds)}
    whole = _seconds(lambda content: prepare(content, DetectorConfig().input), pngs, options.rounds)
    publish(_result(figures, whole, images.source), options, figures)


def _as_jpeg(png: bytes) -> bytes:
    buffer = io.BytesIO()
    decode(png).save(buffer, "JPEG", **_JPEG)
    return buffer.getvalue()


def _compared(contents: list[bytes], rounds: int) -> dict[str, Any]:
    """Of each decoder CPU-ms an image and how far its pixels are from Pillow's, in levels of 255."""
    right = [_pillow(content).astype(int) for content in contents]
    return {
        name: {
            "cpu_ms": significant(1000 * _seconds(decoder, contents, rounds)),
            "farthest_pixel": max(
                int(np.abs(decoder(content) - pixels).max()) for content, pixels in zip(contents, right, strict=True)
            ),
        }
        for name, decoder in DECODERS.items()
    }


def _seconds(decoder: Callable[[bytes], Any], contents: list[bytes], rounds: int) -> float:
    """CPU-seconds of an image, the median of the rounds."""
    taken = []
    for _ in range(rounds):
        with Meter() as meter:
            for content in contents:
                decoder(content)
        taken.append(meter.cpu / len(contents))
    return median(taken)


def _result(figures: dict[str, Any], prepare_seconds: float, source: str) -> dict[str, Any]:
    pillow = figures["png"]["pillow"]["cpu_ms"]
    equal = [
        name for name in DECODERS if name != "pillow" and not any(of[name]["farthest_pixel"] for of in figures.values())
    ]
    fastest = min((figures["png"][name]["cpu_ms"] for name in equal), default=None)
    return {
        "name": "decode",
        "ours": pillow,
        "peer": fastest,
        "ratio": None if fastest is None else significant(fastest / pillow),
        "unit": "CPU-ms an image",
        "conditions": {
            "ours": "Pillow, PNG",
            "peer": f"the fastest decoder with the same pixels of PNG and JPEG; of {', '.join(equal) or 'none'}",
            "cpu_ms": {kind: {name: one["cpu_ms"] for name, one in of.items()} for kind, of in figures.items()},
            "farthest_pixel": {
                kind: {name: one["farthest_pixel"] for name, one in of.items()} for kind, of in figures.items()
            },
            "prepare_cpu_ms": significant(1000 * prepare_seconds),
            "versions": {name: importlib.metadata.version(name) for name in ("pillow", "torchvision", _OPENCV)},
            "jpeg": _JPEG,
            "data": source,
        },
    }


if __name__ == "__main__":
    main()
