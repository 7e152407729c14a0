"""The main job from beginning to end on data that need no download: what a newcomer runs first."""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from cflow_ray.client import Client
from cflow_ray.config import (
    DataConfig,
    DemoConfig,
    DetectorConfig,
    EvaluateConfig,
    FitConfig,
    PackConfig,
    ScoreConfig,
    ServeConfig,
)
from cflow_ray.data import elpv, synthetic
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.images import decode_map, prepare
from cflow_ray.data.samples import TEST, DataSet, Sample
from cflow_ray.errors import FitError
from cflow_ray.evaluation.evaluate import evaluate, read_mask
from cflow_ray.evaluation.figures import Metrics
from cflow_ray.evaluation.heat_maps import heat_map_panel
from cflow_ray.evaluation.report import metrics_table
from cflow_ray.progress import ProgressBoard
from cflow_ray.score.packing import pack
from cflow_ray.score.run import score
from cflow_ray.serve import Server
from cflow_ray.store.registry import Registry
from cflow_ray.store.results import read_maps, read_results
from cflow_ray.store.storage import Storage
from cflow_ray.train.display import watch_on
from cflow_ray.train.run import fit
from cflow_ray.train.task import Outcome

log = logging.getLogger(__name__)

PARITY_BOUND = 1e-5
_WRITTEN = "_written.json"


@dataclass
class DemoSummary:
    """What the demo found; `demo/summary.json`."""

    output: str
    categories: dict[str, dict[str, float | None]] = field(default_factory=dict)
    rows: int = 0
    errors: int = 0
    parity_max_abs_diff: float = 0.0
    """Largest difference between the online, the archive's and the library's score of one image a category."""
    seconds: float = 0.0
    seconds_by_step: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the three paths agree."""
        return self.parity_max_abs_diff <= PARITY_BOUND

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON."""
        return asdict(self)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times a step."""
        start = time.monotonic()
        yield
        self.seconds_by_step[name] = round(time.monotonic() - start, 1)


def run_demo(config: DemoConfig) -> tuple[DemoSummary, dict[str, Metrics]]:
    """Write data, fit, pack, score, serve and compare; everything lands below `output`. Steps already done are kept.

    Raises a CflowRayError where a step cannot be done; a FitError names the categories that failed.
    """
    start = time.monotonic()
    root = Storage(config.output, config.storage_options)
    summary = DemoSummary(config.output)
    with summary.step("data"):
        data = _write_data(config, root)
    with summary.step("fit"):
        outcomes = _fit(config, root, data)
    versions = _promoted(root, outcomes)
    of_fit = f"{zlib.crc32(json.dumps(versions).encode()):08x}"  # other data or a new fit get shards and a table of their own
    shards, scores = f"shards/{of_fit}", f"scores/{of_fit}"
    with summary.step("pack"):
        _pack(config, root, data, shards)
    with summary.step("score"):
        _score(config, root, shards, scores)
    with summary.step("evaluate"):
        metrics = evaluate(
            EvaluateConfig(
                data=data, only=tuple(versions), results=root.join(scores), storage_options=config.storage_options
            )
        )
    rows = read_results(root.child(scores)).to_pylist()
    data_set = read_data_set(DataConfig(data=data), config.storage_options)
    shown = _shown_samples(data_set, list(versions), {row["key"] for row in rows if row["error"] is None})
    with summary.step("serve"):
        summary.parity_max_abs_diff = _compare_paths(config, root, data_set, shown, rows)
    with summary.step("heat maps"):
        _draw_heat_maps(root, root.child(scores), data_set, shown, rows)
    summary.rows, summary.errors = len(rows), sum(row["error"] is not None for row in rows)
    summary.categories = {name: _figures(of_category, outcomes[name].seconds) for name, of_category in metrics.items()}
    summary.seconds = round(time.monotonic() - start, 1)
    root.write("summary.json", json.dumps(summary.as_dict(), indent=2).encode())
    return summary, metrics


def demo_text(summary: DemoSummary, metrics: Mapping[str, Metrics]) -> list[str | Table]:
    """What the command prints at the end."""
    steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in summary.seconds_by_step.items())
    agree = "agree" if summary.ok else "DIFFER"
    return [
        metrics_table(metrics),
        f"online, archive and library scores {agree}: largest difference {summary.parity_max_abs_diff:.1e} "
        f"(bound {PARITY_BOUND:.0e})",
        f"{summary.rows} rows, {summary.errors} with error; {summary.seconds:.0f} s in all ({steps})",
        f"checkpoints {summary.output}/registry, score table {summary.output}/scores, heat maps {summary.output}/heatmaps, "
        f"summary {summary.output}/summary.json",
    ]


def _write_data(config: DemoConfig, root: Storage) -> str:
    """Write the demo's images unless they are there; returns the root of the data set."""
    files: Iterable[tuple[str, bytes]]
    if config.data == "textures":
        files = synthetic.demo_files(config.only or synthetic.CATEGORIES, seed=config.seed)
    elif config.data == "elpv":
        log.info("%s", elpv.LICENCE)
        files = elpv.elpv_files(config.only or elpv.CATEGORIES, seed=config.seed)
    else:
        return config.data
    folder = f"data/{config.data}"
    wanted = json.dumps({"only": config.only, "seed": config.seed}).encode()
    if root.read_if_there(f"{folder}/{_WRITTEN}") == wanted:
        return root.join(folder)
    with ProgressBoard("writing images") as board:
        for number, (path, content) in enumerate(files, start=1):
            root.write(f"{folder}/{path}", content)
            board.update("images and masks", number, 0)
    root.write(f"{folder}/{_WRITTEN}", wanted)
    return root.join(folder)


def _fit(config: DemoConfig, root: Storage, data: str) -> dict[str, Outcome]:
    """Fit what is not fitted yet; the outcome of every category."""
    fit_config = FitConfig(
        data=data,
        registry=root.join("registry"),
        only=config.only,
        defaults=DetectorConfig(
            recipe=config.recipe,
            seed=config.seed,
            target_fpr=config.target_fpr,
            calibration="split",  # folds would take six fits a category; the demo shows the job
        ),
        cluster=config.cluster,
        storage_options=config.storage_options,
    )
    with ProgressBoard("fitting detectors (Ray Train)") as board:
        outcomes = fit(fit_config, watch_on(board))
    failed = [f"{outcome.category}: {outcome.error}" for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise FitError("; ".join(failed))
    return {outcome.category: outcome for outcome in outcomes}


def _promoted(root: Storage, outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """The versions that were asked for, which earlier runs with other settings may have left behind, are the best now."""
    registry = Registry(root.child("registry"))
    versions = {category: str(outcome.version) for category, outcome in outcomes.items()}
    for category, version in versions.items():
        if registry.best(category) != version:
            registry.promote(category, version)
    return versions


def _pack(config: DemoConfig, root: Storage, data: str, shards: str) -> None:
    with ProgressBoard("packing test images") as board:
        pack(
            PackConfig(
                data=data,
                output=root.join(shards),
                only=config.only,
                shard_size=8 * 10**6,
                cluster=config.cluster,
                storage_options=config.storage_options,
            ),
            lambda done, total: board.update("images", done, total),
        )


def _score(config: DemoConfig, root: Storage, shards: str, scores: str) -> None:
    with ProgressBoard("scoring shards (Ray Data)") as board:
        score(
            ScoreConfig(
                inputs=(root.join(shards),),
                registry=root.join("registry"),
                output=root.join(scores),
                maps="all",
                chunk_records=32,
                cluster=config.cluster,
                storage_options=config.storage_options,
            ),
            lambda done, total: board.update("chunks", done, total),
        )


def _shown_samples(data_set: DataSet, categories: Sequence[str], scored: Container[str]) -> dict[str, list[Sample]]:
    """By category, the first test image of every defect that has a score."""
    shown: dict[str, list[Sample]] = {}
    for category in categories:
        first: dict[str | None, Sample] = {}
        for sample in data_set.of(category, TEST):
            if sample.image in scored:
                first.setdefault(sample.defect, sample)
        if not first:
            log.warning("%s has no test image with a score; its scores are not compared", category)
            continue
        shown[category] = sorted(first.values(), key=lambda sample: sample.label == 0)
    return shown


def _compare_paths(
    config: DemoConfig,
    root: Storage,
    data_set: DataSet,
    shown: Mapping[str, Sequence[Sample]],
    rows: Sequence[Mapping[str, Any]],
) -> float:
    """The largest difference between the online, the archive's and the library's score of one image a category."""
    archive = {row["key"]: row["score"] for row in rows}
    registry = Registry(root.child("registry"))
    bank = registry.bank()
    serve_config = ServeConfig(
        registry=root.join("registry"), port=config.port, cluster=config.cluster, storage_options=config.storage_options
    )
    worst = 0.0
    with (
        Server(serve_config) as server,
        Client(server.url, deadline=60) as client,
        ProgressBoard(f"asking the server at {server.url} (Ray Serve)") as board,
    ):
        for number, (category, samples) in enumerate(shown.items(), start=1):
            content = data_set.root.read(samples[0].image)
            key = (category, registry.best(category))
            image = prepare(content, bank.detector(key).config.input)
            library = bank.score_batch([image.pixels_3HW], [key])[0].score
            online = client.score(category, content).score
            found = (library, online, archive[samples[0].image])
            worst = max(worst, max(found) - min(found))
            board.update("categories", number, len(shown), f"{category}: {online:.6f}")
    return worst


def _draw_heat_maps(
    root: Storage,
    results: Storage,
    data_set: DataSet,
    shown: Mapping[str, Sequence[Sample]],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """One panel a category and defect: image, heat map, true outline."""
    by_key = {row["key"]: row for row in rows if row["error"] is None}
    registry = Registry(root.child("registry"))
    inputs = {category: registry.manifest(category, registry.best(category)).detector.input for category in shown}
    for category, samples in shown.items():
        for sample in samples:
            row = by_key[sample.image]
            map_HW = decode_map(read_maps(results, row["map"])[sample.image])
            pixels = prepare(data_set.root.read(sample.image), inputs[category]).pixels_3HW
            mask_HW = read_mask(data_set.root, sample, map_HW.shape)
            caption = f"{sample.image}   score {row['score']:.3f}   p {row['p_value']:.3f}"
            image_HW3 = np.ascontiguousarray(pixels.transpose(1, 2, 0))
            panel = heat_map_panel(image_HW3, map_HW, row["threshold"] or 0.5, mask_HW, caption)
            root.write(f"heatmaps/{category}-{sample.defect}.png", panel)


def _figures(metrics: Metrics, fit_seconds: float) -> dict[str, float | None]:
    return {
        "image_auroc": metrics.image_auroc,
        "pixel_auroc": metrics.pixel_auroc,
        "pixel_f1": metrics.pixel_f1,
        "fit_seconds": round(fit_seconds, 1),
    }
