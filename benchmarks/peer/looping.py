"""anomalib's fits of several categories as its users run them: a loop of `Engine.fit` at its defaults."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from anomalib.data import MVTecAD
from lightning import Callback, LightningModule, Trainer, seed_everything

from benchmarks.meter import Meter, answer
from benchmarks.peer.cflow import build, engine, quiet


class Epochs(Callback):
    """Seconds of all epochs, with the validation and the checkpoints that belong to them."""

    def __init__(self) -> None:
        self.meter = Meter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.meter.start()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it."""
        self.meter.stop()


def measure(root: str, categories: list[str], encoder: dict[str, Any], epochs: int, device: str) -> dict[str, Any]:
    """Of every category: seconds of an epoch, and of all else from the model's construction to its last file.

    CPU seconds are those of the process without its data loading, which has processes of its own.
    """
    quiet()
    seed_everything(0, verbose=False)
    return {"epochs": epochs, "fits": {name: _fit(root, name, encoder, epochs, device) for name in categories}}


def _fit(root: str, category: str, encoder: dict[str, Any], epochs: int, device: str) -> dict[str, Any]:
    epoch = Epochs()
    with tempfile.TemporaryDirectory() as folder, Meter() as meter:
        data = MVTecAD(root=root, category=category)
        engine(epoch, folder, epochs, device).fit(build(encoder, visualizer=True), datamodule=data)
    trained, whole = epoch.meter.as_dict(), meter.as_dict()
    seconds = {
        "epoch": {unit: round(trained[unit] / epochs, 2) for unit in trained},
        "other": {unit: round(whole[unit] - trained[unit], 2) for unit in whole},
    }
    print(category, seconds, file=sys.stderr, flush=True)
    return seconds


if __name__ == "__main__":
    answer(measure)
