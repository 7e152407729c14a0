"""The documents under test: their commands parse, their links resolve, the targets they name exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import get_args

import click
import pytest
import yaml

from cflow_ray.cli import main
from cflow_ray.config import DetectorConfig, FitConfig, Layout, ServeConfig

CHECKOUT = Path(__file__).parents[1]
PAGES = [
    CHECKOUT / name
    for name in (
        "README.md",
        "cluster/README.md",
        "benchmarks/README.md",
        "CHANGELOG.md",
        "docs/client.md",
        "docs/page.md",
        "docs/detector.md",
        "docs/score.md",
        "docs/evaluate.md",
        "docs/results.md",
        "docs/drift.md",
        "docs/fit.md",
        "docs/data.md",
        "docs/serve.md",
    )
]
README = PAGES[0].read_text(encoding="utf-8")
SCORE_PAGE, EVALUATE_PAGE, RESULTS_PAGE, DRIFT_PAGE, FIT_PAGE, DATA_PAGE, SERVE_PAGE = (
    page.read_text(encoding="utf-8") for page in PAGES[-7:]
)


def command_lines(program: str, page: str = README) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith(f"{program} ")]


@pytest.mark.parametrize(
    "line",
    [
        line
        for page in (README, SCORE_PAGE, EVALUATE_PAGE, RESULTS_PAGE, DRIFT_PAGE, FIT_PAGE, DATA_PAGE, SERVE_PAGE)
        for line in command_lines("cflow-ray", page)
    ],
)
def test_commands_of_the_documents_parse(line: str):
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = main
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    context = command.make_context("cflow-ray", words)
    assert context.args == []


def test_the_readme_shows_every_verb():
    assert {line.split()[1] for line in command_lines("cflow-ray")} == {
        *("data", "fit", "pack", "score", "results", "evaluate", "drift", "serve", "models"),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(CHECKOUT).as_posix())
def test_links_resolve(page: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_paths_of_the_plan_exist():
    for path in re.findall(r"`(cflow_ray/[\w/.]+)`", README):
        assert (CHECKOUT / path).exists(), path


def test_targets_of_the_readme_exist():
    shown = subprocess.run(["make", "help"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    targets = {line.split()[0] for line in shown.splitlines() if line[:1].isalpha()}
    named = set(re.findall(r"`?make ([a-z]+)", README)) | {line.split()[1] for line in command_lines("make")}
    assert named <= targets
    assert targets >= {"demo", "test", "check", "serve", "install", "help"}


def test_every_layout_has_a_line_and_an_example_on_its_page():
    assert re.findall(r"^\| `(\w+)`", DATA_PAGE, re.MULTILINE) == list(get_args(Layout))
    examples = [line.split()[3] for line in command_lines("cflow-ray fit", DATA_PAGE)]
    assert examples == list(get_args(Layout))


def test_the_page_of_the_server_names_every_problem_limit_and_metric():
    pytest.importorskip("ray")
    from cflow_ray.serve.access import read_tokens
    from cflow_ray.serve.metrics import Metrics
    from cflow_ray.serve.problems import KINDS

    rows = dict(re.findall(r"^\| `([\w-]+)` \| (\d+) \|", SERVE_PAGE, re.MULTILINE))
    limits = {name: field.default for name, field in ServeConfig.model_fields.items() if name in rows}
    assert limits.keys() >= {name for name in ServeConfig.model_fields if name.startswith("max_")}
    assert {name: int(value) for name, value in rows.items()} == limits | {name: KINDS[name].status for name in KINDS}
    counted = {family.name + ("_total" if family.type == "counter" else "") for family in Metrics("").collect()}
    assert set(re.findall(r"`(cflow_ray_\w+)`", SERVE_PAGE)) == counted
    (tokens,) = re.findall(r"```yaml\n(.*?)```", SERVE_PAGE, re.DOTALL)
    assert [token.name for token in read_tokens(tokens, "docs/serve.md")] == ["line-3", "quality"]


SETTINGS = re.findall(r"^\| `([^`]+)`", (CHECKOUT / "docs" / "detector.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_of_the_page_is_one_line_of_yaml(setting: str):
    values = yaml.safe_load(setting)
    (name,) = values
    assert getattr(DetectorConfig.model_validate(values), name) is not None


def test_the_page_names_every_setting():
    named = {next(iter(yaml.safe_load(setting))) for setting in SETTINGS}
    own_page = {"folds", "selection_fraction", "calibration_fraction"}  # explained in the row of `calibration`
    assert set(DetectorConfig.model_fields) <= named | own_page


@pytest.mark.parametrize("name", ["detector", "fit"])
def test_the_example_of_the_page_is_a_fit(name: str):
    page = (CHECKOUT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    config = FitConfig.model_validate({"data": "d", "registry": "r", **yaml.safe_load(example)})
    assert all(
        config.detector(category) != config.defaults or config.category(category).workers > 1
        for category in config.categories
    )
