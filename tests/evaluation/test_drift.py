"""A shift is found, while luck, anomalies and trifles are not called a drift; what the command says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from scipy import stats

from cflow_ray.cli import main
from cflow_ray.config import DriftConfig
from cflow_ray.errors import CheckpointError, ConfigError, DataError
from cflow_ray.evaluation.comparison import Comparison, DayScores, reach_of
from cflow_ray.evaluation.days import DayRows, Group, GroupRows
from cflow_ray.evaluation.drift import CategoryDrift, DriftReport, drift, report_of
from cflow_ray.model.scoring import Calibration
from cflow_ray.store.compaction import compact
from cflow_ray.store.registry import Registry
from cflow_ray.store.results import PartName, write_part
from cflow_ray.store.storage import Storage
from tests.days import most_likely, normal_days, scores_of, squashed
from tests.versions import add_untried_version

MONDAY = date(2026, 11, 23)
CONFIG = DriftConfig(results=("r",))


def report(days: Sequence[DayScores], **settings: Any) -> DriftReport:
    """The report on groups of a day each, one a category."""
    rows = DayRows()
    for number, scores in enumerate(days):
        rows.groups[Group(f"c{number:03}", "v1", MONDAY)] = GroupRows(scores, images=scores.images)
    return report_of(rows, CONFIG.model_copy(update=settings))


def verdicts(days: Sequence[DayScores], **settings: Any) -> list[str]:
    """What each says in a report of its own."""
    return [report([scores], **settings).days[0].verdict for scores in days]


# verdicts


def test_undrifted_categories_are_hardly_ever_due_for_a_refit() -> None:
    """Held to the rate that is stated even without any tolerance, where nothing but the tests stands in the way."""
    days = normal_days(500, 100, 200, seed=4)
    assert verdicts(days).count("refit due") == 0
    alone = verdicts(days, min_distance=0.0, alpha=0.05)
    assert alone.count("refit due") <= most_likely(500, 0.05)
    assert len(alone) - alone.count("ok") <= most_likely(500, 2 * 0.05)


def test_a_report_of_many_undrifted_categories_is_quiet() -> None:
    days = normal_days(500, 60, 150, seed=5)
    noisy = [report(days[at : at + 10], alpha=0.05, min_distance=0.0) for at in range(0, 500, 10)]
    for verdict in ("refit due", "watch"):
        said = sum(any(day.verdict == verdict for day in one.days) for one in noisy)
        assert said <= most_likely(50, 0.05)
    assert {day.verdict for day in report(days).days} == {"ok"}


def test_few_calibration_images_do_not_cry_drift() -> None:
    """Ten calibration images put the true rate of alarms anywhere from 0.2 % to 31 %; a binomial test does not know."""
    days = normal_days(300, 10, 1000, target_fpr=0.1, seed=6)
    naive = [stats.binomtest(day.alarms, 1000, 1 / 11, alternative="greater").pvalue <= 0.01 for day in days]
    assert sum(naive) > 80
    said = verdicts(days)
    assert said.count("refit due") <= most_likely(300, 0.01)
    assert said.count("watch") <= most_likely(300, 0.01)


@pytest.mark.parametrize("shift", [1.0, -1.0])
@pytest.mark.parametrize(("calibration_images", "found"), [(40, 65), (100, 93), (200, 98)])
def test_a_shift_by_a_sigma_is_found_with_200_images(calibration_images: int, found: int, shift: float) -> None:
    said = verdicts(normal_days(100, calibration_images, 200, shift, seed=7))
    assert said.count("refit due") >= found
    assert said.count("ok") <= 5


def test_it_is_found_among_dozens_of_others() -> None:
    days = [*normal_days(39, 200, 200, seed=8), *normal_days(1, 200, 200, 1.2, seed=9)]
    assert [day.category for day in report(days).days if day.verdict == "refit due"] == ["c039"]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.4])
def test_a_day_with_many_anomalies_is_watched_but_no_reason_for_a_refit(share: float) -> None:
    rng = np.random.default_rng(10)
    said = []
    for _ in range(100):
        latent = rng.standard_normal(300) + 5 * (np.arange(300) < share * 300)
        said.append(scores_of(squashed(rng.standard_normal(150)), squashed(latent)))
    found = verdicts(said)
    assert found.count("refit due") <= most_likely(100, 0.05)
    assert found.count("watch") >= 85


def test_a_day_on_which_almost_every_image_is_above_the_bulk_has_drifted() -> None:
    day = report(normal_days(1, 50, 100, 6.0, seed=11)).days[0]
    assert day.verdict == "refit due"
    assert day.reason.startswith("100 % of the images score above")


def test_a_trifle_is_no_reason_for_a_refit_however_many_the_images() -> None:
    day = report(normal_days(1, 20_000, 200_000, 0.1, seed=12)).days[0]
    assert day.comparison is not None
    assert day.comparison.p_value < 1e-9
    assert day.verdict == "watch"
    assert "more than chance" in day.reason


def test_more_alarms_than_promised_are_watched() -> None:
    calibration = np.linspace(0.001, 0.999, 999)
    day = np.append(np.linspace(0.001, 0.949, 450), np.full(50, 0.9995))
    found = report([scores_of(calibration, day)]).days[0]
    assert found.verdict == "watch"
    assert "10.0 % alarms where 5.0 % are promised" in found.reason


def test_fewer_images_than_needed_say_nothing_and_are_no_test() -> None:
    days = [*normal_days(20, 200, 29, 3.0, seed=13), *normal_days(1, 200, 30, 3.0, seed=14)]
    found = report(days).days
    assert [day.verdict for day in found] == ["too few images"] * 20 + ["refit due"]
    assert found[0].reason == "29 images; 30 are needed"
    assert found[-1].limit == pytest.approx(0.1 + reach_of(0.01, 30, 200))


# categories


def category_verdict(by_day: Sequence[tuple[str, float | None]], **settings: Any) -> CategoryDrift:
    """Of days one after the other, each with a version and a shift; None for a day of too few images."""
    rows = DayRows()
    for number, (version, shift) in enumerate(by_day):
        (scores,) = normal_days(1, 200, 200 if shift is not None else 5, shift or 0.0, seed=20 + number)
        group = Group("screw", version, date(2026, 11, 1 + number))
        rows.groups[group] = GroupRows(scores, images=scores.images)
    (category,) = report_of(rows, CONFIG.model_copy(update=settings)).categories
    return category


@pytest.mark.parametrize(
    ("shifts", "verdict"),
    [
        ([3.0], "refit due"),
        ([0.0, 3.0], "watch"),
        ([3.0, 3.0], "refit due"),
        ([0.0, 0.0, 0.0, 3.0, 3.0], "refit due"),
        ([3.0, 3.0, 0.0], "refit due"),
        ([3.0, 3.0, 0.0, 0.0], "watch"),
        ([3.0, 3.0, 0.0, 0.0, 0.0], "ok"),
        ([3.0, 3.0, None], "refit due"),
        ([None, None], "too few images"),
    ],
)
def test_more_than_half_of_the_latest_days_decide_on_a_category(shifts: list[float | None], verdict: str) -> None:
    assert category_verdict([("v1", shift) for shift in shifts]).verdict == verdict


def test_the_number_of_days_can_be_chosen() -> None:
    days = [("v1", 0.0), ("v1", 0.0), ("v1", 3.0)]
    assert category_verdict(days).verdict == "watch"
    assert category_verdict(days, last_days=1).verdict == "refit due"


def test_a_category_is_judged_by_the_version_that_scores_it_now() -> None:
    refitted = category_verdict([("v1", 3.0), ("v1", 3.0), ("v2", 0.0)])
    assert (refitted.version, refitted.verdict) == ("v2", "ok")
    back = category_verdict([("v1", 3.0), ("v1", 3.0), ("v2", 0.0), ("v1", 3.0)])
    assert (back.version, back.verdict) == ("v1", "refit due")


# the command


def add_version(registry: Registry, category: str, scores: Sequence[float], peaks: Sequence[float] = (0.0,)) -> str:
    return add_untried_version(registry, category, target_fpr=0.1, scores=scores, peaks=peaks)


class Line:
    """A registry and the results of nightly jobs on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(40)
        self.registry = Registry.create(Storage(str(folder / "registry")))
        self.calibration = Calibration.of([0.0], squashed(self.rng.standard_normal(150)).tolist())
        self.version = add_version(self.registry, "screw", self.calibration.scores)

    def night(self, day: int, shift: float = 0.0, plan: bool = True, **changes: Any) -> str:
        """The output of a job on 150 screws, in three parts; returns its URI."""
        output = Storage(str(self.folder / f"scores-{day}"))
        for part in range(3):
            rows = [
                {
                    "image_id": str(number),
                    "key": f"screw/2026-11-{day:02}/{number}.png",
                    "category": "screw",
                    "checkpoint": self.version,
                    "score": score,
                    "p_value": self.calibration.p_value(score),
                }
                | changes
                for number, score in enumerate(squashed(self.rng.standard_normal(50) + shift).tolist())
            ]
            write_part(output, PartName("s-1", 50 * part), rows, {})
        if plan:
            content = {
                "format_version": 1,
                "created": f"2026-11-{day:02}T23:30:00-02:00",
                "registry": self.registry.storage.uri,
                "checkpoints": {"screw": {"version": self.version}},
            }
            output.write("_plan.json", json.dumps(content).encode())
        return output.uri

    def config(self, *results: str, **settings: Any) -> DriftConfig:
        return DriftConfig.model_validate({"results": results} | settings)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["drift", *arguments])


def test_tables_are_compared_with_the_calibration_in_the_registry_of_their_plan(line: Line) -> None:
    seen: list[tuple[int, int]] = []
    found = drift(line.config(line.night(9), line.night(10, 2.0)), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]  # shards
    assert [day.day for day in found.days] == [date(2026, 11, 10), date(2026, 11, 11)]  # in UTC
    assert [day.verdict for day in found.days] == ["ok", "refit due"]
    assert [day.images for day in found.days] == [150, 150]
    assert drift(line.config(line.night(9), line.night(9))).days[0].images == 150
    comparison = found.days[0].comparison
    assert isinstance(comparison, Comparison)
    assert comparison.promised == pytest.approx(15 / 151)
    assert found.refit_due == []
    assert found.categories[0].verdict == "watch"


def test_a_category_that_no_table_knows_is_refused_instead_of_being_quiet(line: Line) -> None:
    drifted = line.night(9, 2.0)
    assert run(drifted, "--category", "screw", "--fail-on-drift").exit_code == 1
    misspelled = run(drifted, "--category", "screw,scrw", "--fail-on-drift")
    assert misspelled.exit_code == 1
    assert "no category 'scrw' in the tables; they have screw" in misspelled.stderr
    planned = line.night(10, category=None, checkpoint=None, score=None, p_value=None, error="empty file")
    assert run(planned, "--category", "screw").exit_code == 0  # its plan has it


def test_a_table_that_is_compacted_meanwhile_is_read_whole(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    night = line.night(9)
    expected = drift(line.config(night))
    listed = Storage.walk

    def then_compacted(self: Storage, start: str = "") -> Iterator[tuple[str, int]]:
        yield from list(listed(self, start))
        monkeypatch.setattr(Storage, "walk", listed)
        compact(Storage(night), 10**9)

    monkeypatch.setattr(Storage, "walk", then_compacted)
    assert drift(line.config(night)) == expected


def test_a_table_of_a_server_needs_the_registry_that_it_serves(line: Line) -> None:
    night = line.night(9)
    plan = json.loads(Storage(night).read("_plan.json")) | {"registry": "http://127.0.0.1:9"}
    Storage(night).write("_plan.json", json.dumps(plan).encode())
    with pytest.raises(ConfigError, match=r"scored by the server http://127\.0\.0\.1:9; give the --registry"):
        drift(line.config(night))
    assert drift(line.config(night, registry=line.registry.storage.uri)).days[0].verdict == "ok"


def test_another_registry_and_target_can_be_given(line: Line) -> None:
    other = Registry.create(Storage(str(line.folder / "other")))
    found = drift(line.config(line.night(9), registry=other.storage.uri))
    assert found.days[0].verdict == "unknown"
    assert f"no version '{line.version}' of 'screw'" in found.days[0].reason
    comparison = drift(line.config(line.night(9), target_fpr=0.02)).days[0].comparison
    assert comparison is not None
    assert comparison.promised == 3 / 151


def test_a_version_that_is_not_calibrated_is_unknown(line: Line) -> None:
    line.version = add_version(line.registry, "screw", (), ())
    (day,) = drift(line.config(line.night(9))).days
    assert day.verdict == "unknown"
    assert "is not calibrated. Run: cflow-ray models calibrate screw" in day.reason


def test_a_table_without_a_plan_needs_a_registry_and_a_day_pattern(line: Line) -> None:
    uri = line.night(9, plan=False)
    for given in ({}, {"registry": line.registry.storage.uri}, {"day_pattern": "/{day}/"}):
        with pytest.raises(ConfigError, match="give both --registry and --day-pattern"):
            drift(line.config(uri, **given))
    found = drift(line.config(uri, registry=line.registry.storage.uri, day_pattern="/{day}/"))
    assert [(day.day, day.verdict) for day in found.days] == [(date(2026, 11, 9), "ok")]


def test_what_is_missing_is_told(line: Line, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no score table"):
        drift(line.config(line.night(9), str(tmp_path / "nothing")))
    with pytest.raises(CheckpointError, match="is no registry"):
        drift(line.config(line.night(9), registry=str(tmp_path / "nothing")))
    Storage(line.night(9)).write("_plan.json", b"{}")
    with pytest.raises(DataError, match=r"_plan\.json is damaged"):
        drift(line.config(str(tmp_path / "scores-9")))


def test_the_command_prints_figures_reasons_and_what_to_do(line: Line) -> None:
    result = run(line.night(9), line.night(10, 2.0), line.night(11, 2.0))
    assert result.exit_code == 0, result.output
    assert "2026-11-11" in result.stdout
    assert "refit due on 2 of the last 3 judged days" in " ".join(result.stdout.split())
    assert "the median lies above" in result.stdout
    assert all(len(row) <= 160 for row in result.stdout.splitlines())


def test_the_command_gives_json_and_fails_where_asked(line: Line) -> None:
    good, bad = line.night(9), line.night(10, 2.0)
    assert run(good, "--fail-on-drift").exit_code == 0
    assert run(bad).exit_code == 0
    result = run(bad, "--fail-on-drift", "--json", "--day-pattern", "/{day}/")
    assert result.exit_code == 1
    values = json.loads(result.stdout)
    assert values["refit_due"] == ["screw"]
    (day,) = values["days"]
    assert (day["day"], day["verdict"], day["errors"]) == ("2026-11-10", "refit due", 0)
    assert day["comparison"]["distance"] > day["limit"]
    assert values["categories"]["screw"]["verdict"] == "refit due"


def test_rows_that_no_day_counts_are_told(line: Line) -> None:
    result = run(line.night(9, key="screw/x.png"), "--day-pattern", "/{day}/")
    assert result.exit_code == 0
    assert "150 rows are undated: their keys name no day, e.g. 'screw/x.png'" in result.stdout
    failed = run(line.night(10, category=None, checkpoint=None, score=None, p_value=None, error="empty file"))
    assert "150 rows with error belong to no known version" in failed.stdout
