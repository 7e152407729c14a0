"""anomalib's fit of one category through its Engine: AUROC on the test images after every epoch, and what it cost."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from anomalib.data import MVTecAD
from lightning import Callback, LightningModule, Trainer, seed_everything

from benchmarks.auroc import Truth
from benchmarks.meter import Meter, answer
from benchmarks.peer.cflow import SIDE, build, engine, quiet


class Trajectory(Callback):
    """Cumulative CPU and wall seconds of training alone, with the AUROCs, after every epoch."""

    def __init__(self, data: MVTecAD, truth: Truth, root: str) -> None:
        self.epochs: list[dict[str, float]] = []
        self._data = data
        self._truth = truth
        self._root = Path(root).resolve()
        self._meter = Meter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._meter.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock, then test."""
        self._meter.stop()
        epoch = {"epoch": trainer.current_epoch + 1, **self._meter.as_dict(), **self._test(pl_module)}
        self.epochs.append(epoch)
        print(json.dumps(epoch), file=sys.stderr, flush=True)

    @torch.no_grad()
    def _test(self, module: Any) -> dict[str, float]:
        """The whole test set as one batch, whose maximum sets the scale: the official code's rule.

        `Engine.test` takes batches of 32 in the order of the folders, most of which hold one label only; as each batch
        sets a scale of its own, that leaks the label (image AUROC .86 after one epoch, .94 after five, then down).
        """
        scores, maps = {}, {}
        for batch in self._data.test_dataloader():
            found = module.model(module.pre_processor.transform(batch.image).to(module.device))
            for path, score, map_1HW in zip(batch.image_path, found.pred_score, found.anomaly_map, strict=True):
                file = str(Path(path).resolve().relative_to(self._root))
                scores[file], maps[file] = float(score), map_1HW.squeeze(0).cpu().numpy()
        return self._truth.aurocs(scores, maps)


def fit(root: str, category: str, encoder: dict[str, Any], epochs: int, device: str) -> dict[str, Any]:
    """Train for some epochs at anomalib's defaults, data loading in the process itself so that its CPU time counts."""
    quiet()
    seed_everything(0, verbose=False)
    module = build(encoder, visualizer=False)
    data = MVTecAD(root=root, category=category, num_workers=0, eval_batch_size=10**6)
    trajectory = Trajectory(data, Truth(root, category, SIDE), root)
    with tempfile.TemporaryDirectory() as folder:
        without_validation = {"limit_val_batches": 0}  # it would cost time that is not training
        engine(trajectory, folder, epochs, device, **without_validation).fit(module, datamodule=data)
    return {"epochs": trajectory.epochs}


if __name__ == "__main__":
    answer(fit)
