"""anomalib's scoring of decoded images: `Engine.predict` with and without pictures, and its torch model by hand."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from anomalib.data import ImageBatch, ImageItem
from anomalib.engine import Engine
from anomalib.models import Cflow
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from benchmarks.meter import Meter, answer
from benchmarks.peer.cflow import SIDE, build, quiet


def measure(root: str, files: list[str], encoder: dict[str, Any], batch: int, device: str) -> dict[str, Any]:
    """CPU and wall seconds of one pass after a warm-up, by way of scoring."""
    quiet()
    items = [_decoded(str(Path(root) / file)) for file in files]
    images = torch.stack([item.image for item in items])
    module = build(encoder, visualizer=False)
    features = module.model.encoder(module.pre_processor.transform(images[:4]))
    return {
        "predict": _predict(module, items, batch, device),
        "predict_with_pictures": _predict(build(encoder, visualizer=True), items, batch, device),
        "by_hand": _by_hand(module, images, batch, device),
        "images": len(items),
        "feature_norms": [float(level.norm()) for level in features.values()],
    }


def _decoded(file: str) -> ImageItem:
    """An image as anomalib's data set gives it, (3, H, W) in [0, 1], but at the network's size already."""
    with Image.open(file) as image:
        resized = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return ImageItem(image=pil_to_tensor(resized).float() / 255, image_path=file)


def _predict(module: Cflow, items: list[ImageItem], batch: int, device: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(accelerator=device, devices=1, default_root_dir=folder, enable_progress_bar=False)
        engine.predict(module, dataloaders=_loader(items[:batch], batch))
        with Meter() as meter:
            engine.predict(module, dataloaders=_loader(items, batch))
    return meter.as_dict()


def _loader(items: list[ImageItem], batch: int) -> DataLoader:
    return DataLoader(items, batch_size=batch, collate_fn=ImageBatch.collate)


def _by_hand(module: Cflow, images: torch.Tensor, batch: int, device: str) -> dict[str, float]:
    model, transform = module.model.to(device).eval(), module.pre_processor.transform
    model(transform(images[:batch]).to(device))
    with Meter() as meter:
        for group in torch.split(images, batch):
            model(transform(group).to(device)).anomaly_map.cpu()
    return meter.as_dict()


if __name__ == "__main__":
    answer(measure)
