"""What /metrics says, and that dashboard and alert rules ask for what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.serving import Served, files, serving

pytestmark = pytest.mark.anyio

CLUSTER = Path(__file__).parents[2] / "cluster"
NAME = re.compile(r"\bcflow_ray_\w+")
SELECTOR = re.compile(r"\b(cflow_ray_\w+)\{([^}]*)\}")


def rules() -> list[dict[str, str]]:
    document = yaml.safe_load((CLUSTER / "alerts.yaml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, object]]:
    return json.loads((CLUSTER / "grafana.json").read_text())["panels"]


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [target["expr"] for panel in panels() for target in panel["targets"]]


async def scraped(served: Served) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples by name and labels without the replica's, which all must have."""
    answer = await served.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            assert sample.labels.pop("replica") == "first"
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


async def test_what_was_answered_is_counted_where_it_belongs(fitted_registry: Path, images: list[bytes]) -> None:
    async with serving(fitted_registry) as served:
        post = served.client.post
        answers = [(await post("/v1/score/cat?target_fpr=0.5", content=image)).json() for image in images[3:8]]
        await post("/v1/score/cup", files=files([images[0], b"no image"]))
        await post("/v1/score/zippr", content=images[0])
        await served.client.get("/healthz")
        samples = await scraped(served)

    def count(name: str, **labels: str) -> float:
        return samples["cflow_ray_" + name, tuple(sorted(labels.items()))]

    assert count("requests_total", route="/v1/score/{category}", status="200") == 6
    assert count("requests_total", route="/v1/score/{category}", status="404") == 1
    assert count("requests_total", route="/healthz", status="200") == 1
    assert count("request_seconds_count", route="/v1/score/{category}") == 7
    assert count("problems_total", kind="bad-image") == 1
    assert count("problems_total", kind="unknown-category") == 1
    assert count("images_total", category="cat") == 5
    assert count("anomalies_total", category="cat") == sum(answer["is_anomaly"] for answer in answers)
    assert 0 < count("anomalies_total", category="cat") < 5
    assert count("score_sum", category="cat") == pytest.approx(sum(answer["score"] for answer in answers))
    assert count("p_value_bucket", category="cat", le="0.5") == sum(answer["p_value"] <= 0.5 for answer in answers)
    assert count("batch_images_sum") == 6
    for stage in ("decode", "wait", "model", "judge"):
        assert count("stage_seconds_count", stage=stage) == 6
    assert count("detectors_loaded") == 2
    assert count("detector_bytes") == served.service._bank.bytes > 0
    assert count("categories_served") == 3
    assert (count("images_in_hand"), count("images_waiting"), count("checkpoints_refused")) == (0, 0, 0)


async def test_a_path_that_does_not_exist_makes_no_series(served: Served) -> None:
    for number in range(3):
        await served.client.get(f"/v1/{number}")
    routes = {dict(labels).get("route") for name, labels in await scraped(served)}
    assert "other" in routes
    assert not [route for route in routes if route and route[-1].isdigit()]


async def test_every_metric_of_dashboard_and_rules_exists_with_its_labels(
    fitted_registry: Path, images: list[bytes]
) -> None:
    async with serving(fitted_registry) as served:
        await served.client.post("/v1/score/cat", content=images[0])
        await served.client.post("/v1/score/zippr", content=images[0])
        samples = await scraped(served)
    there: dict[str, set[str]] = {}
    for name, labels in samples:
        there.setdefault(name, {"replica"}).update(label for label, _ in labels)
    used = {name for expression in expressions() for name in NAME.findall(expression)}
    assert used <= there.keys()
    for expression in expressions():
        for name, selector in SELECTOR.findall(expression):
            assert set(re.findall(r"(\w+)=", selector)) <= there[name], expression
        for by in re.findall(r"(?:by|without) \(([^)]*)\)", expression):
            names = NAME.findall(expression)
            assert set(re.findall(r"\w+", by)) <= set().union(*(there[name] for name in names)), expression
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in there}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for panel in panels() for name in NAME.findall(str(panel))}
    assert shown == families  # nothing is counted that no one can look at


def test_rules_and_panels_are_told_apart_and_explained() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(places)) == len(places)
    assert len({panel["title"] for panel in panels()}) == len(places)
