"""Readers of layouts: the same tree gives the same samples on every kind of storage, and what breaks a layout is named."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from cflow_ray.config import DataConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.layouts.table import to_table
from cflow_ray.data.samples import TEST, TRAIN, DataSet, Sample
from cflow_ray.errors import CflowRayError, ConfigError, DataError
from cflow_ray.store.storage import Storage

WriteTable = Callable[[Storage, dict[str, list[Any]]], str]


def write(storage: Storage, *paths: str) -> None:
    for path in paths:
        storage.write(path, b"not decoded by a reader")


def read(storage: Storage, **settings: Any) -> DataSet:
    return read_data_set(DataConfig(data=storage.uri, **settings), {})


# -- mvtec


def test_mvtec_names_split_label_defect_and_mask_of_every_image(storage: Storage) -> None:
    write(
        storage,
        "screw/train/good/000.png",
        "screw/test/good/000.png",
        "screw/test/bent/000.png",
        "screw/test/bent/001.png",
        "screw/ground_truth/bent/000_mask.png",
        "cable/train/good/000.png",
    )
    samples = read(storage).samples
    assert sorted(samples, key=lambda sample: sample.image) == [
        Sample("cable/train/good/000.png", "cable", TRAIN, 0, "good"),
        Sample("screw/test/bent/000.png", "screw", TEST, 1, "bent", "screw/ground_truth/bent/000_mask.png"),
        Sample("screw/test/bent/001.png", "screw", TEST, 1, "bent", None),
        Sample("screw/test/good/000.png", "screw", TEST, 0, "good"),
        Sample("screw/train/good/000.png", "screw", TRAIN, 0, "good"),
    ]


def test_the_root_of_the_samples_reads_them(storage: Storage) -> None:
    storage.write("screw/train/good/ü 1.png", b"content")
    data_set = read(storage)
    assert data_set.root.read(data_set.samples[0].image) == b"content"


def test_extensions_count_in_any_case_and_need_not_be_equal(storage: Storage) -> None:
    write(storage, "c/train/good/0.PNG", "c/train/good/1.Jpg", "c/test/bad/0.JPG", "c/ground_truth/bad/0_mask.PNG")
    by_path = {sample.image: sample for sample in read(storage).samples}
    assert set(by_path) == {"c/train/good/0.PNG", "c/train/good/1.Jpg", "c/test/bad/0.JPG"}
    assert by_path["c/test/bad/0.JPG"].mask == "c/ground_truth/bad/0_mask.PNG"


def test_masks_are_found_by_name_never_by_order(storage: Storage) -> None:
    write(storage, *(f"c/test/bad/{number}.png" for number in (1, 2, 10)))
    write(storage, "c/ground_truth/bad/10_mask.png", "c/ground_truth/bad/2.png", "c/train/good/0.png")
    masks = {sample.image: sample.mask for sample in read(storage).samples if sample.label}
    assert masks == {
        "c/test/bad/1.png": None,
        "c/test/bad/2.png": "c/ground_truth/bad/2.png",
        "c/test/bad/10.png": "c/ground_truth/bad/10_mask.png",
    }


def test_masks_belong_to_their_own_category_and_defect(storage: Storage) -> None:
    kinds = ("a/{}/bent/0", "a/{}/cut/0", "b/{}/bent/0")
    for kind in kinds:
        write(storage, kind.format("test") + ".png", kind.format("ground_truth") + "_mask.png")
    for sample in read(storage).samples:
        assert sample.mask == sample.image.replace("test", "ground_truth").replace(".png", "_mask.png")


def test_a_mask_without_image_is_named(storage: Storage) -> None:
    write(storage, "c/train/good/0.png", "c/test/bad/0.png", "c/ground_truth/bad/7_mask.png")
    with pytest.raises(DataError, match=r"1 masks without image .*c/ground_truth/bad/7_mask\.png"):
        read(storage)


def test_a_mask_of_a_good_image_is_no_mistake(storage: Storage) -> None:
    write(storage, "c/train/good/0.png", "c/test/good/0.png", "c/ground_truth/good/0_mask.png")
    assert [sample.mask for sample in read(storage).samples] == [None, None]


def test_a_defect_among_the_training_images_is_known_as_one(storage: Storage) -> None:
    write(storage, "c/train/good/0.png", "c/train/bent/0.png")
    data_set = read(storage)
    assert [sample.image for sample in data_set.normals("c")] == ["c/train/good/0.png"]


def test_what_does_not_belong_to_the_layout_is_left_out(storage: Storage) -> None:
    write(
        storage,
        "c/train/good/0.png",
        "readme.png",
        "c/license.txt",
        "c/train/loose.png",
        "c/train/good/Thumbs.db",
        "c/train/good/deeper/1.png",
        "c/train/good/.hidden.png",
        ".cache/train/good/0.png",
        "c/validation/good/0.png",
        "c/ground_truth/notes.txt",
        "__MACOSX/c/train/good/0.png",
    )
    assert [sample.image for sample in read(storage).samples] == ["c/train/good/0.png"]


@pytest.mark.parametrize("layout", ["mvtec", "folder"])
def test_a_root_that_is_not_there_is_named(storage: Storage, layout: str) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist\. Check --data"):
        read(storage.child("nowhere"), layout=layout)


@pytest.mark.parametrize(("layout", "hint"), [("mvtec", "train/good"), ("folder", "normal_dir")])
def test_a_root_without_images_is_told_what_the_layout_needs(storage: Storage, layout: str, hint: str) -> None:
    write(storage, "readme.txt", "other/0.png")
    with pytest.raises(DataError, match=rf"no image in .*{hint}"):
        read(storage, layout=layout)


# -- folder


def test_a_folder_layout_with_everything(storage: Storage) -> None:
    write(storage, "ok/0.png", "ok/sub/1.JPG", "ok test/0.png", "nok/0.bmp", "nok/1.bmp", "gt/0_mask.png", "ok/x.txt")
    found = read(
        storage,
        layout="folder",
        only=("lid",),
        normal_dir="ok",
        normal_test_dir="ok test",
        abnormal_dir="nok",
        mask_dir="gt",
    )
    assert sorted(found.samples, key=lambda sample: sample.image) == [
        Sample("nok/0.bmp", "lid", TEST, 1, "nok", "gt/0_mask.png"),
        Sample("nok/1.bmp", "lid", TEST, 1, "nok", None),
        Sample("ok test/0.png", "lid", TEST, 0, "good"),
        Sample("ok/0.png", "lid", TRAIN, 0, "good"),
        Sample("ok/sub/1.JPG", "lid", TRAIN, 0, "good"),
    ]


def test_a_folder_layout_of_normals_alone_is_named_after_its_root(storage: Storage) -> None:
    write(storage, "lids/normal/0.png", "lids/abnormal/0.png", "lids/masks/0.png")
    assert read(storage.child("lids"), layout="folder").samples == [Sample("normal/0.png", "lids", TRAIN, 0, "good")]


def test_a_folder_layout_names_a_mask_without_image(storage: Storage) -> None:
    write(storage, "normal/0.png", "bad/0.png", "masks/3_mask.png")
    with pytest.raises(DataError, match=r"1 masks without image .*masks/3_mask\.png"):
        read(storage, layout="folder", abnormal_dir="bad", mask_dir="masks")


@pytest.mark.parametrize("second", ["masks/dent/0.png", "masks/0.bmp", "masks/0_mask.png"])
def test_masks_of_one_name_are_refused_not_chosen_from(storage: Storage, second: str) -> None:
    write(storage, "normal/0.png", "bad/cut/0.png", "bad/dent/0.png", "masks/cut/0.png", second)
    with pytest.raises(DataError, match="masks of one name") as caught:
        read(storage, layout="folder", abnormal_dir="bad", mask_dir="masks")
    assert "masks/cut/0.png" in str(caught.value)
    assert second in str(caught.value)


# -- table


def csv_bytes(columns: dict[str, list[Any]], line_end: str = "\n") -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=line_end)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def write_csv(storage: Storage, columns: dict[str, list[Any]]) -> str:
    storage.write("table.csv", csv_bytes(columns))
    return storage.join("table.csv")


def write_csv_with_mark(storage: Storage, columns: dict[str, list[Any]]) -> str:
    """As Excel saves it: a byte order mark, and lines that end as on Windows."""
    storage.write("table.csv", b"\xef\xbb\xbf" + csv_bytes(columns, "\r\n"))
    return storage.join("table.csv")


def write_parquet(storage: Storage, columns: dict[str, list[Any]]) -> str:
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.table(columns), buffer)
    storage.write("table.PARQUET", buffer.getvalue())
    return storage.join("table.PARQUET")


@pytest.fixture(params=[write_csv, write_csv_with_mark, write_parquet])
def write_table(request: pytest.FixtureRequest) -> WriteTable:
    writer: WriteTable = request.param
    return writer


def read_table(uri: str) -> DataSet:
    return read_data_set(DataConfig(data=uri, layout="table"), {})


COLUMNS: dict[str, list[Any]] = {
    "image": ["a/0.png", "a/1.png", "b/ü 2.png", "b/3.png"],
    "category": ["screw", "screw", "cable", "cable"],
    "split": ["train", "test", "test", "val"],
    "label": [0, 1, None, 0],
    "defect": ["good", "bent", None, None],
    "mask": [None, "m/1.png", None, None],
}


def test_a_table_gives_its_rows(storage: Storage, write_table: WriteTable) -> None:
    found = read_table(write_table(storage, COLUMNS))
    assert found.samples == [
        Sample("a/0.png", "screw", "train", 0, "good", None),
        Sample("a/1.png", "screw", "test", 1, "bent", "m/1.png"),
        Sample("b/ü 2.png", "cable", "test", None, None, None),
        Sample("b/3.png", "cable", "val", 0, None, None),
    ]
    assert [type(sample.label) for sample in found.samples] == [int, int, type(None), int]
    assert found.root.uri == storage.uri
    to_table(found.samples)  # fits the schema


def test_the_columns_that_may_be_left_out(storage: Storage, write_table: WriteTable) -> None:
    needed = {name: COLUMNS[name] for name in ("image", "category", "split")}
    assert {(s.label, s.defect, s.mask) for s in read_table(write_table(storage, needed)).samples} == {
        (None, None, None)
    }


@pytest.mark.parametrize("column", ["image", "category", "split"])
def test_a_missing_column_is_named_beside_those_that_are_there(
    storage: Storage, write_table: WriteTable, column: str
) -> None:
    columns = {name: values for name, values in COLUMNS.items() if name != column}
    with pytest.raises(DataError, match=rf"lacks the columns \['{column}'\]; it has .*'label'"):
        read_table(write_table(storage, columns))


@pytest.mark.parametrize("column", ["image", "category", "split"])
def test_an_empty_field_is_refused_by_row(storage: Storage, write_table: WriteTable, column: str) -> None:
    columns = COLUMNS | {column: ["x", "y", None, "z"]}
    with pytest.raises(DataError, match=rf"row 3 of .* has no {column}"):
        read_table(write_table(storage, columns))


@pytest.mark.parametrize("label", [2, -1, "good"])
def test_a_wrong_label_is_refused_by_row(storage: Storage, write_table: WriteTable, label: Any) -> None:
    labels = [label] * 4 if isinstance(label, str) else [0, label, 1, 0]
    with pytest.raises(DataError, match=rf"row [12] of .* has label {label!r}; allowed are 0 .*1 .*empty"):
        read_table(write_table(storage, COLUMNS | {"label": labels}))


@pytest.mark.parametrize("column", ["image", "mask"])
@pytest.mark.parametrize("path", ["../x.png", "a/../../x.png", "/etc/passwd", ".."])
def test_a_path_that_leaves_the_folder_is_refused_by_row(
    storage: Storage, write_table: WriteTable, column: str, path: str
) -> None:
    columns = COLUMNS | {column: ["a/0.png", "a/1.png", "a/2.png", path]}
    with pytest.raises(DataError, match=r"row 4 of .* leaves the data set's root"):
        read_table(write_table(storage, columns))


def test_text_stays_as_it_is_written(storage: Storage) -> None:
    lines = ("image,category,split,defect,mask", "000,007,1,0042,1.50", "001,NA,null,nan,")
    storage.write("table.csv", "\n".join(lines).encode())
    assert read_table(storage.join("table.csv")).samples == [
        Sample("000", "007", "1", None, "0042", "1.50"),
        Sample("001", "NA", "null", None, "nan", None),
    ]


def test_numbers_of_a_parquet_become_text(storage: Storage) -> None:
    uri = write_parquet(
        storage, {"image": [10, 11], "category": [0, 1], "split": ["train", "test"], "label": [0.0, 1.0]}
    )
    samples = read_table(uri).samples
    assert samples == [Sample("10", "0", "train", 0), Sample("11", "1", "test", 1)]
    assert all(type(sample.label) is int for sample in samples)


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\xfe\x00", b"PAR1 and not much more PAR1", b"image,category\n1,2,3,4\n"]
)
def test_what_is_no_table_is_a_data_error_that_names_it(storage: Storage, name: str, content: bytes) -> None:
    storage.write(name, content)
    with pytest.raises(DataError, match=name):
        read_table(storage.join(name))


def test_a_damaged_parquet_is_a_data_error(storage: Storage) -> None:
    uri = write_parquet(storage, COLUMNS)
    whole = storage.read("table.PARQUET")
    for end in range(0, len(whole), len(whole) // 40):
        storage.write("table.PARQUET", whole[:end] + whole[end + 8 :])
        with pytest.raises(CflowRayError):
            read_table(uri)


def test_a_table_without_rows_is_refused(storage: Storage, write_table: WriteTable) -> None:
    with pytest.raises(DataError, match="no image"):
        read_table(write_table(storage, {name: [] for name in COLUMNS}))


def test_another_kind_of_file_is_misuse(storage: Storage) -> None:
    storage.write("table.xlsx", b"")
    with pytest.raises(ConfigError, match=r"'table\.xlsx' names no table; give a \.parquet or \.csv"):
        read_table(storage.join("table.xlsx"))


def test_a_table_that_is_not_there_is_named(storage: Storage) -> None:
    with pytest.raises(CflowRayError, match=r"nowhere\.csv does not exist"):
        read_table(storage.join("nowhere.csv"))
