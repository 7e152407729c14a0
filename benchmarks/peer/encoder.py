"""timm's network as people run it: eager, default memory format, features of strides 8, 16 and 32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from benchmarks.meter import Meter, answer


@torch.no_grad()
def measure(root: str, files: list[str], encoder: dict[str, Any], batch: int, device: str) -> dict[str, Any]:
    """CPU and wall seconds of one pass over normalised images after a warm-up; nothing but the network's forward."""
    network = timm.create_model(encoder["name"], features_only=True, out_indices=(2, 3, 4)).eval().to(device)
    state = torch.load(encoder["weights"], weights_only=True)
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    mean, std = (torch.tensor(encoder[name]).view(3, 1, 1) for name in ("mean", "std"))
    batches = torch.split(
        torch.stack([(_decoded(Path(root) / file, encoder["side"]) - mean) / std for file in files]).to(device), batch
    )
    network(batches[0])
    with Meter() as meter:
        for images_B3HW in batches:
            network(images_B3HW)
    return {**meter.as_dict(), "images": len(files)}


def _decoded(file: Path, side: int) -> torch.Tensor:
    with Image.open(file) as image:
        pixels = np.array(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


if __name__ == "__main__":
    answer(measure)
