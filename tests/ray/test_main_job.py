"""The main job through the command line: data, registry, shards and results on one store, and a server over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from cflow_ray.cli import main
from cflow_ray.config import ServeConfig
from cflow_ray.data.images import prepare
from cflow_ray.data.synthetic import CATEGORIES
from cflow_ray.serve import Server
from cflow_ray.store.registry import Registry
from cflow_ray.store.results import read_results
from cflow_ray.store.storage import Storage
from tests.stores import Place, upload

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

BOUND = 1e-5
SIDE = "96"


@pytest.mark.parametrize(
    "place",
    [
        "local",
        pytest.param("moto", marks=[pytest.mark.s3, pytest.mark.slow]),  # tests/store holds both stores to the same
        pytest.param("swift", marks=pytest.mark.s3),
    ],
    indirect=True,
)
def test_the_whole_job_gives_one_score_on_four_paths(place: Place, miniature: Path):
    """Fit's evaluation, archive job at another batch size, library call and HTTP agree on every category."""
    # On the object stores two categories do: what differs there is the store.
    categories = CATEGORIES if place.root.startswith("/") else ("brick", "tissue")
    data = upload(miniature, place, "data", categories)
    registry, shards, scores = (f"{place.root}/{name}" for name in ("registry", "shards", "scores"))

    fitted = run("fit", "--data", data, "--registry", registry, "--recipe", "fast", "--input-size", SIDE, place=place)
    assert list(fitted["categories"]) == sorted(categories)
    assert {outcome["status"] for outcome in fitted["categories"].values()} == {"fitted"}
    curves = [name for name in Storage(registry, place.options).files("_runs") if "tfevents" in name]
    assert {name.split("/")[2] for name in curves} == {"tensorboard"}
    assert {name.split("/")[3] for name in curves} == set(categories)

    packed = run("pack", "--data", data, "--output", shards, "--shard-size", "100KB", place=place)
    assert len(packed["shards"]) > 1
    summary = run(
        *("score", shards, "--registry", registry, "--output", scores, "--maps", "all"),
        *("--batch-size", "5", "--chunk-records", "7"),
        place=place,
    )
    assert summary["rows"] == packed["records"] == 9 * len(categories)
    assert summary["errors"] == 0

    evaluated = run("evaluate", scores, "--data", data, place=place)["categories"]
    for category in categories:
        for name in ("image_auroc", "pixel_auroc", "pixel_f1", "aupro"):
            assert evaluated[category][name] == pytest.approx(fitted["categories"][category][name], abs=1e-3)

    archive = {row["key"]: row for row in read_results(Storage(scores, place.options)).to_pylist()}
    in_fit = scores_of_the_fit(registry, place)
    library = scores_of_the_library(registry, place, miniature, list(archive))
    online = scores_online(registry, place, miniature, list(archive))
    assert set(archive) == set(in_fit)
    for key, row in archive.items():
        found = [row["score"], in_fit[key], library[key], online[key]["score"]]
        assert max(found) - min(found) <= BOUND, key
        assert row["p_value"] == online[key]["p_value"]
        assert row["checkpoint"] == online[key]["checkpoint"]

    again = run("fit", "--data", data, "--registry", registry, "--recipe", "fast", "--input-size", SIDE, place=place)
    assert {outcome["status"] for outcome in again["categories"].values()} == {"reused"}


def run(*arguments: str, place: Place) -> dict[str, Any]:
    """The JSON that a command prints; it must exit with 0."""
    result = CliRunner().invoke(main, [*arguments, *place.flags(), "--json"])
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def scores_of_the_fit(registry: str, place: Place) -> dict[str, float]:
    storage = Storage(registry, place.options)
    opened, scores = Registry(storage), dict[str, float]()
    for category in opened.categories():
        scores |= json.loads(storage.read(f"{category}/{opened.best(category)}/test_scores.json"))
    return scores


def scores_of_the_library(registry: str, place: Place, data: Path, keys: list[str]) -> dict[str, float]:
    """Each image by itself."""
    opened = Registry(Storage(registry, place.options))
    bank, scores = opened.bank(), dict[str, float]()
    for key in keys:
        category = key.split("/")[0]
        checkpoint = (category, opened.best(category))
        image = prepare((data / key).read_bytes(), bank.detector(checkpoint).config.input)
        scores[key] = bank.score_batch([image.pixels_3HW], [checkpoint])[0].score
    return scores


def scores_online(registry: str, place: Place, data: Path, keys: list[str]) -> dict[str, Any]:
    answers = {}
    config = ServeConfig(registry=registry, port=0, storage_options=place.options)
    with Server(config) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        for key in keys:
            response = client.post(f"/v1/score/{key.split('/')[0]}", content=(data / key).read_bytes())
            assert response.status_code == 200, response.text
            answers[key] = response.json()
    return answers
