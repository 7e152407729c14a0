"""An encoder's weights as a plain state dict, with timm's normalisation: what a peer loads to be alike."""

from __future__ import annotations

import timm
import torch

from benchmarks.meter import answer
from cflow_ray.config import EncoderConfig
from cflow_ray.store.weights import read_weights


def export(path: str, name: str = EncoderConfig().name) -> dict[str, object]:
    """Write the state dict; returns how the network wants its input. Another than the default's is drawn by timm."""
    network, default = timm.create_model(name), EncoderConfig()
    torch.save(read_weights(default) if name == default.name else network.state_dict(), path)
    wanted = timm.data.resolve_model_data_config(network)
    return {"name": name, "weights": path, "mean": wanted["mean"], "std": wanted["std"]}


if __name__ == "__main__":
    answer(export)
