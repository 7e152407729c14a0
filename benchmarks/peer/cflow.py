"""anomalib's Cflow at its defaults, but with our encoder, its weights and the normalisation that they want."""

from __future__ import annotations

import logging
from typing import Any

import torch
from anomalib.engine import Engine
from anomalib.models import Cflow
from anomalib.pre_processing import PreProcessor
from lightning import Callback
from torchvision.transforms.v2 import Compose, Normalize, Resize

SIDE = 256
_LAYERS = ("blocks.2", "blocks.4", "blocks.6")  # strides 8, 16, 32 of tf_efficientnet_lite0


def quiet() -> None:
    """Leave stderr to errors and to our own lines."""
    logging.disable(logging.WARNING)


def engine(callback: Callback, folder: str, epochs: int, device: str, **options: Any) -> Engine:
    """anomalib's Engine at its defaults but for `options`, with its files in a folder."""
    return Engine(
        callbacks=[callback],
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator=device,
        devices=1,
        enable_progress_bar=False,
        **options,
    )


def build(encoder: dict[str, Any], *, visualizer: bool) -> Cflow:
    """The Lightning module; `visualizer` as anomalib's argument (its default, True, writes a picture an image)."""
    transform = Compose([Resize((SIDE, SIDE), antialias=True), Normalize(mean=encoder["mean"], std=encoder["std"])])
    module = Cflow(
        backbone=encoder["name"],
        layers=_LAYERS,
        pre_trained=False,
        pre_processor=PreProcessor(transform=transform),
        visualizer=visualizer,
    )
    network = module.model.encoder.feature_extractor
    state = torch.load(encoder["weights"], weights_only=True)
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return module
