"""Tables have the rows of the field's papers."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from cflow_ray.config import DetectorConfig
from cflow_ray.evaluation.figures import FIGURES, Metrics
from cflow_ray.evaluation.published import PAPER_WRN50
from cflow_ray.evaluation.report import (
    comparison_tables,
    figures_table,
    mean,
    metrics_table,
    versions_table,
)
from cflow_ray.store.manifest import Manifest
from cflow_ray.store.registry import Version

METRICS = {
    "metal_nut": Metrics(image_auroc=0.9, image_f1=0.8, pixel_auroc=0.95, pixel_f1=0.5, aupro=0.9, images=10),
    "screw": Metrics(image_auroc=0.8, image_f1=0.7, images=12, intervals={"image_auroc": (0.7, 0.875)}),
}


def text(table: Table) -> str:
    """A table as a wide terminal shows it."""
    console = Console(file=io.StringIO(), width=300)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def cells(line: str, separator: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip(separator).split(separator)]


def test_the_table_has_the_papers_rows_and_columns_and_intervals_below_figures() -> None:
    header, *rows = (cells(line, "│") for line in text(metrics_table(METRICS)).splitlines() if line[0] in "┃│")
    assert cells(header[0], "┃") == ["Metric", "Avg", "Metal Nut", "Screw"]
    assert rows == [
        ["Image-Level AUC", "85.00", "90.00", "80.00"],
        ["", "", "", "70.0-87.5"],
        ["Pixel-Level AUC", "-", "95.00", "-"],
        ["Pixel F1 Score", "-", "50.00", "-"],
    ]


def test_mean_is_missing_where_any_value_is() -> None:
    assert mean([0.25, 0.75]) == 0.5
    assert mean([0.25, None]) is None
    assert mean([0.0, 0.0]) == 0.0
    assert mean([]) is None


def test_every_figure_has_a_row_and_its_interval_beside_it() -> None:
    known = dict.fromkeys(FIGURES, 0.5)
    full = Metrics(**known, images=4, intervals={"image_auroc": (0.25, 0.75)})
    shown = text(figures_table({"screw": full, "pill": Metrics(image_auroc=0.9)}))
    assert len(shown.splitlines()) == len(FIGURES) + 5
    assert cells(shown.splitlines()[-2], "│") == ["Images", "4", "0"]
    assert "50.00 (25.0 to 75.0)" in shown
    assert "90.00" in shown
    assert "Pixel AUROC" not in text(figures_table({"pill": Metrics(image_auroc=0.9)}))


def test_a_version_has_its_intervals_below_its_figures() -> None:
    metrics = Metrics(image_auroc=0.95, pixel_auroc=0.5, intervals={"image_auroc": (0.9, 0.975)})
    manifest = Manifest(
        category="screw",
        version="v1",
        detector=DetectorConfig(),
        encoder_digest="",
        channels=(2, 2, 2),
        peaks=(0.0, 0.0, 0.0),
        calibration_scores=(0.5,),
        metrics=metrics.as_dict(),
    )
    row, below = (
        cells(line, "│") for line in text(versions_table([Version("screw", "v1", True, manifest)])).splitlines()[3:5]
    )
    assert row[4:6] == ["95.00", "50.00"]
    assert below[4:6] == ["90.0-97.5", ""]


def test_a_comparison_stands_below_what_it_is_compared_with() -> None:
    ours = Metrics(image_auroc=0.95, intervals={"image_auroc": (0.9, 0.975)})
    tables = comparison_tables({"screw": ours}, PAPER_WRN50, "paper")
    assert "95.00" in text(tables[0])
    assert [cells(line, "│") for line in text(tables[0]).splitlines() if "95 %" in line] == [
        ["95 % from", "", "90.00"],
        ["95 % to", "", "97.50"],
    ]
    assert "95 %" not in text(tables[1])
    assert "91.89" in text(tables[0])
    assert "98.86" in text(tables[1])
    assert "98." not in text(tables[2])


@pytest.mark.parametrize(("metric", "average"), [("image_auroc", 0.9826), ("pixel_auroc", 0.9862)])
def test_the_published_figures_have_the_published_average(metric: str, average: float) -> None:
    values = PAPER_WRN50[metric].values()
    assert len(values) == 15
    assert sum(values) / 15 == pytest.approx(average, abs=1.1e-4)
