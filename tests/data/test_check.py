"""The check of a data set: every fault that is put into a sound one is found, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cflow_ray.cli import main
from cflow_ray.config import CheckConfig, DataConfig, Layout
from cflow_ray.data.check import check, similar_categories
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.display import figures_table, findings_table, verdict
from cflow_ray.data.findings import CheckReport, Finding
from cflow_ray.errors import DataError
from cflow_ray.store.storage import Storage

Encode = Callable[..., bytes]


def picture(number: int, height: int = 6, width: int = 8) -> Image.Image:
    """A grey picture of its own for every number."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (height, width), np.uint8))


@pytest.fixture
def sound(storage: Storage, encode: Encode) -> Storage:
    """Two categories in MVTec AD layout without a fault, one image of another mode and size."""
    for number, path in enumerate(
        [f"{c}/{f}/{i}.png" for c in ("nut", "bolt") for f in ("train/good", "test/good", "test/dent") for i in (0, 1)]
    ):
        storage.write(path, encode(picture(number)))
        if "dent" in path:
            mask = path.replace("test", "ground_truth").replace(".png", "_mask.png")
            storage.write(mask, encode(np.full((6, 8), 255, np.uint8)))
    storage.write("nut/test/good/1.png", encode(picture(99, 10, 12).convert("RGB")))
    return storage


def checked(storage: Storage, layout: Layout = "mvtec", only: tuple[str, ...] = ()) -> CheckReport:
    return check(CheckConfig(data=storage.uri, layout=layout, only=only))


def test_nothing_is_found_in_a_sound_data_set(sound: Storage) -> None:
    report = checked(sound)
    assert report.findings == []
    assert not report.hurts_a_fit
    assert report.as_dict()["categories"]["nut"] == {
        "images": {"train": {"good": 2}, "test": {"good": 2, "anomaly": 2}},
        "masks": 2,
        "width": [8, 12],
        "height": [6, 10],
        "sizes": 2,
        "modes": {"L": 5, "RGB": 1},
    }


@pytest.mark.parametrize(
    ("source", "target", "finding"),
    [
        (
            *("nut/train/good/0.png", "nut/train/good/copy.png"),
            Finding("duplicates", "nut", ("nut/train/good/0.png", "nut/train/good/copy.png")),
        ),
        (
            *("nut/test/good/0.png", "nut/test/good/copy.png"),
            Finding("duplicates", "nut", ("nut/test/good/0.png", "nut/test/good/copy.png")),
        ),
        (
            *("nut/train/good/0.png", "nut/test/good/copy.png"),
            Finding("leakage", "nut", ("nut/test/good/copy.png", "nut/train/good/0.png")),
        ),
        (
            *("nut/train/good/0.png", "bolt/test/good/copy.png"),
            Finding("duplicates_across_categories", None, ("bolt/test/good/copy.png", "nut/train/good/0.png")),
        ),
        (
            *("nut/test/good/0.png", "nut/test/scratch/7.png"),
            Finding("anomalies_without_mask", "nut", ("nut/test/scratch/7.png",)),
        ),
        (
            *("nut/ground_truth/dent/0_mask.png", "nut/ground_truth/dent/7_mask.png"),
            Finding("masks_without_image", None, ("nut/ground_truth/dent/7_mask.png",)),
        ),
    ],
)
def test_a_copy_is_found_for_what_it_is(sound: Storage, source: str, target: str, finding: Finding) -> None:
    sound.write(target, sound.read(source))
    findings = [one for one in checked(sound).findings if "scratch" not in target or one.kind != "duplicates"]
    assert findings == [finding]


@pytest.mark.parametrize(
    ("path", "kind", "hurts"),
    [
        ("nut/train/good/0.png", "unreadable_training_images", True),
        ("nut/test/good/0.png", "unreadable_images", False),
        ("nut/ground_truth/dent/0_mask.png", "unreadable_masks", False),
    ],
)
def test_damaged_files_are_named_with_the_reason(sound: Storage, path: str, kind: str, hurts: bool) -> None:
    sound.write(path, sound.read(path)[:-24])
    report = checked(sound)
    (finding,) = report.findings
    assert (finding.kind, finding.category, finding.subjects) == (kind, "nut", (path,))
    assert "damaged image" in (finding.detail or "")
    assert report.hurts_a_fit == hurts


def test_a_mask_of_another_size_is_named_with_both_sizes(sound: Storage, encode: Encode) -> None:
    sound.write("nut/ground_truth/dent/0_mask.png", encode(picture(0, 3, 4)))
    (finding,) = checked(sound).findings
    assert finding == Finding(
        *("mask_sizes", "nut", ("nut/ground_truth/dent/0_mask.png",)),
        "4 x 3, but nut/test/dent/0.png is 8 x 6",
    )


def test_a_category_without_normal_training_images_is_named(sound: Storage, encode: Encode) -> None:
    sound.write("cap/train/dent/0.png", encode(picture(50)))
    report = checked(sound)
    assert [(one.kind, one.category) for one in report.findings] == [("no_training_images", "cap")]
    assert report.hurts_a_fit


def test_names_that_differ_in_spelling_only_are_named_together() -> None:
    names = ["metal_nut", "metal nut", "Metal-Nut", "metalnut", "nut", "NUT", "nuts"]
    assert [one.subjects for one in similar_categories(names)] == [
        ("Metal-Nut", "metal nut", "metal_nut"),
        ("NUT", "nut"),
    ]


def test_names_that_a_fit_refuses_hurt_it(sound: Storage, encode: Encode) -> None:
    sound.write("n.u.t/train/good/0.png", encode(picture(60)))
    sound.write("n_u_t/train/good/0.png", encode(picture(61)))
    report = checked(sound)
    assert [(one.kind, one.subjects) for one in report.findings] == [("similar_categories", ("n.u.t", "n_u_t"))]
    assert report.hurts_a_fit
    assert checked(sound, only=("n.u.t", "bolt")).findings == []


def test_only_the_chosen_categories_are_looked_at(sound: Storage) -> None:
    sound.write("nut/train/good/0.png", b"")
    report = checked(sound, only=("bolt",))
    assert list(report.categories) == ["bolt"]
    assert report.findings == []
    with pytest.raises(DataError, match="no category 'bolts'"):
        checked(sound, only=("bolts",))


def test_every_mask_of_a_folder_is_looked_at(storage: Storage, encode: Encode) -> None:
    for number, path in enumerate(("j/train/good/0.png", "j/test/logical/0.png")):
        storage.write(path, encode(picture(number)))
    storage.write("j/ground_truth/logical/0/0.png", encode(picture(5)))
    storage.write("j/ground_truth/logical/0/1.png", encode(picture(6, 7, 7)))
    assert [(one.kind, one.subjects) for one in checked(storage, "mvtec_loco").findings] == [
        ("mask_sizes", ("j/ground_truth/logical/0/1.png",))
    ]


def test_files_that_a_table_names_but_are_not_there_are_findings(storage: Storage, encode: Encode) -> None:
    storage.write("a.png", encode(picture(1)))
    storage.write(
        "t.csv", b"image,category,split,label,mask\na.png,c,train,0,\nb.png,c,test,1,m/\nc.png,c,test,1,n.png\n"
    )
    report = check(CheckConfig(data=storage.join("t.csv"), layout="table"))
    assert [(one.kind, *one.subjects, one.detail) for one in report.findings] == [
        ("unreadable_images", "b.png", "the file does not exist"),
        ("unreadable_images", "c.png", "the file does not exist"),
        ("unreadable_masks", "m/", "the file does not exist"),
        ("unreadable_masks", "n.png", "the file does not exist"),
    ]


def test_one_path_in_two_splits_of_a_table_is_leakage(storage: Storage, encode: Encode) -> None:
    storage.write("a.png", encode(picture(1)))
    storage.write("t.csv", b"image,category,split\na.png,c,train\na.png,c,test\n")
    report = check(CheckConfig(data=storage.join("t.csv"), layout="table"))
    assert [(one.kind, one.subjects) for one in report.findings] == [("leakage", ("a.png", "a.png"))]


@pytest.mark.parametrize("place", ["", "elsewhere/"])
def test_the_table_that_is_written_reads_back_as_the_same_data_set(
    sound: Storage, storage: Storage, place: str
) -> None:
    file = storage.join(f"{place}samples.parquet")
    check(CheckConfig(data=sound.uri, write_table=file))
    before = read_data_set(DataConfig(data=sound.uri), {})
    after = read_data_set(DataConfig(data=file, layout="table", root=sound.uri), {})
    assert after.root.uri == before.root.uri
    assert list(after.samples) == list(before.samples)
    assert after.root.read(after.samples[0].image) == sound.read(before.samples[0].image)


def test_a_table_in_the_root_moves_with_it(sound: Storage, tmp_path: Path) -> None:
    check(CheckConfig(data=sound.uri, write_table=sound.join("samples.parquet")))
    moved = Storage(str(tmp_path / "moved"))
    for path in sound.files():
        moved.write(path, sound.read(path))
    found = read_data_set(DataConfig(data=moved.join("samples.parquet"), layout="table"), {})
    assert found.root.uri == moved.uri


# -- as a person and a script see it


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["data", "check", *arguments])
    return result.exit_code, result.stdout


def test_the_command_prints_every_category_and_finding(sound: Storage) -> None:
    code, text = run("--data", sound.uri)
    assert code == 0
    assert "nothing found" in text
    sound.write("nut/test/good/copy.png", sound.read("nut/train/good/0.png"))
    code, text = run("--data", sound.uri)
    assert code == 1
    assert all(
        word in text for word in ("nut", "bolt", "train good", "test anomaly", "8 to 12", "L 6, RGB 1", "leakage")
    )


def test_json_holds_every_finding(sound: Storage) -> None:
    for number in range(5):
        sound.write(f"nut/train/good/bad{number}.png", b"")
    code, text = run("--data", sound.uri, "--json", "--write-table", sound.join("t.parquet"))
    values = json.loads(text)
    assert code == 1
    assert values["hurts_a_fit"] is True
    assert values["table"] == sound.join("t.parquet")
    unreadable = values["findings"]["unreadable_training_images"]
    assert [one["subjects"] for one in unreadable] == [[f"nut/train/good/bad{number}.png"] for number in range(5)]
    assert {one["detail"] for one in unreadable} == {"empty file"}
    assert list(values["findings"]) == ["unreadable_training_images"]  # empty files are no duplicates


def test_a_table_of_another_kind_is_misuse(sound: Storage) -> None:
    assert run("--data", sound.uri, "--write-table", "samples.csv")[0] == 2


def test_findings_are_shown_by_kind_with_the_first_few() -> None:
    findings = [Finding("leakage", "a", (f"[b]{number}", "x")) for number in range(5)]
    report = CheckReport("root", {}, findings)
    assert findings_table(report).row_count == 1
    assert list(findings_table(report).columns[3].cells) == ["[b]0 = x\n[b]1 = x\n[b]2 = x\nand 2 more"]
    assert figures_table(report).row_count == 0
    assert "leakage" in verdict(report)


def test_names_in_brackets_are_printed_by_the_command_as_they_are(sound: Storage, encode: Encode) -> None:
    sound.write("nut[b]/train/good/img[left].png", encode(picture(70)))
    sound.write("nut[b]/train/good/copy.png", encode(picture(70)))
    text = run("--data", sound.uri)[1]
    assert "│ nut[b] " in text
    assert "nut[b]/train/good/img[left].png" in text
    assert "\\" not in text
