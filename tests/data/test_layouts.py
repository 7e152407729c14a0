"""Readers of published layouts, each on a miniature of the real one with its quirks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import pytest

from cflow_ray.config import DataConfig, Layout
from cflow_ray.data.datasets import READERS, read_as_found, read_data_set
from cflow_ray.data.layouts.tree import mask_files
from cflow_ray.data.samples import DataSet, Sample
from cflow_ray.errors import DataError
from cflow_ray.store.storage import Storage
from tests.stores import empty_tree

Encode = Callable[..., bytes]


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    """An empty tree on every kind of storage: a layout reads alike wherever it lies."""
    yield from empty_tree(request.param, request)


def write(storage: Storage, *paths: str) -> None:
    for path in paths:
        storage.write(path, b"not decoded by this reader")


def read(storage: Storage, layout: Layout, **settings: Any) -> DataSet:
    return read_data_set(DataConfig(data=storage.uri, layout=layout, **settings), storage.options)


def rows(data_set: DataSet) -> dict[str, tuple[str, str, int | None, str | None, str | None]]:
    """Category, split, label, defect and mask by image."""
    return {s.image: (s.category, s.split, s.label, s.defect, s.mask) for s in data_set.samples}


def test_every_layout_has_a_reader() -> None:
    assert set(READERS) == set(get_args(Layout))


@pytest.mark.parametrize("layout", [name for name in get_args(Layout) if name != "table"])
def test_a_root_that_is_not_there_and_an_empty_one_are_told_apart(storage: Storage, layout: Layout) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist\. Check --data"):
        read(storage.child("nowhere"), layout)
    write(storage, "readme.txt")
    with pytest.raises(DataError, match=r"it needs|has no split_csv/1cls\.csv"):
        read(storage, layout)


# -- MVTec AD 2


def test_mvtec_ad2_has_public_tests_with_masks_and_private_ones_without_labels(storage: Storage) -> None:
    write(
        storage,
        "can/train/good/000_regular.png",
        "can/validation/good/000_regular.png",
        "can/test_public/good/000_regular.png",
        "can/test_public/bad/000_overexposed.png",
        "can/test_public/bad/000_regular.png",
        "can/test_public/ground_truth/bad/000_overexposed_mask.png",
        "can/test_public/ground_truth/bad/000_regular_mask.png",
        "can/test_private/000_regular.png",
        "can/test_private_mixed/000_mixed.png",
    )
    truth = "can/test_public/ground_truth/bad/000_{}_mask.png"
    assert rows(read(storage, "mvtec_ad2")) == {
        "can/train/good/000_regular.png": ("can", "train", 0, "good", None),
        "can/validation/good/000_regular.png": ("can", "validation", 0, "good", None),
        "can/test_public/good/000_regular.png": ("can", "test", 0, "good", None),
        "can/test_public/bad/000_overexposed.png": ("can", "test", 1, "bad", truth.format("overexposed")),
        "can/test_public/bad/000_regular.png": ("can", "test", 1, "bad", truth.format("regular")),
        "can/test_private/000_regular.png": ("can", "test_private", None, None, None),
        "can/test_private_mixed/000_mixed.png": ("can", "test_private_mixed", None, None, None),
    }


# -- MVTec LOCO


def test_mvtec_loco_has_a_folder_of_masks_an_image(storage: Storage) -> None:
    write(
        storage,
        "juice/train/good/000.png",
        "juice/validation/good/000.png",
        "juice/test/good/000.png",
        "juice/test/logical_anomalies/000.png",
        "juice/test/structural_anomalies/000.png",
        "juice/test/structural_anomalies/001.png",
        "juice/ground_truth/logical_anomalies/000/000.png",
        "juice/ground_truth/logical_anomalies/000/001.png",
        "juice/ground_truth/structural_anomalies/001/000.png",
        "juice/defects_config.json",
    )
    found = read(storage, "mvtec_loco")
    folder = "juice/ground_truth/logical_anomalies/000/"
    assert rows(found) == {
        "juice/train/good/000.png": ("juice", "train", 0, "good", None),
        "juice/validation/good/000.png": ("juice", "validation", 0, "good", None),
        "juice/test/good/000.png": ("juice", "test", 0, "good", None),
        "juice/test/logical_anomalies/000.png": ("juice", "test", 1, "logical_anomalies", folder),
        "juice/test/structural_anomalies/000.png": ("juice", "test", 1, "structural_anomalies", None),
        "juice/test/structural_anomalies/001.png": (
            *("juice", "test", 1, "structural_anomalies"),
            "juice/ground_truth/structural_anomalies/001/",
        ),
    }
    assert mask_files(found.root, folder) == [folder + "000.png", folder + "001.png"]


def test_the_digest_sees_every_mask_of_a_folder(storage: Storage) -> None:
    write(storage, "j/train/good/0.png", "j/test/logical/0.png", "j/ground_truth/logical/0/0.png")
    data_set = read(storage, "mvtec_loco")
    before = data_set.digest("j", storage.sizes())
    assert data_set.digest("j", storage.sizes()) == before
    write(storage, "j/ground_truth/logical/0/1.png")
    assert data_set.digest("j", storage.sizes()) != before


# -- VisA

VISA = """object,split,label,image,mask
candle,train,normal,candle/Data/Images/Normal/0000.JPG,
candle,test,normal,candle/Data/Images/Normal/0001.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png
"""


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_visa_follows_its_split_file(storage: Storage, mark: str, line_end: str) -> None:
    storage.write("split_csv/1cls.csv", (mark + VISA).replace("\n", line_end).encode())
    assert rows(read(storage, "visa")) == {
        "candle/Data/Images/Normal/0000.JPG": ("candle", "train", 0, "good", None),
        "candle/Data/Images/Normal/0001.JPG": ("candle", "test", 0, "good", None),
        "candle/Data/Images/Anomaly/000.JPG": (
            *("candle", "test", 1, "anomaly"),
            "candle/Data/Masks/Anomaly/000.png",
        ),
    }


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("candle,test,bad,candle/0.JPG,", r"row 4 of .*1cls\.csv has label 'bad'; allowed are normal, anomaly"),
        (",test,normal,candle/0.JPG,", "row 4 of .* has no object"),
        ("candle,test", "row 4 of .* has label ''"),
        ("candle,test,normal,../0.JPG,", "row 4 of .* leaves the data set's root"),
        ("candle,test,anomaly,candle/0.JPG,/etc/0.png", "row 4 of .* leaves the data set's root"),
    ],
)
def test_a_wrong_row_of_visa_is_named(storage: Storage, row: str, says: str) -> None:
    storage.write("split_csv/1cls.csv", (VISA + row + "\n").encode())
    with pytest.raises(DataError, match=says):
        read(storage, "visa")


@pytest.mark.parametrize("content", [b"", b"image,label\n1,2\n", b"\xff\xfe\x00"])
def test_what_is_no_split_file_of_visa_is_named(storage: Storage, content: bytes) -> None:
    storage.write("split_csv/1cls.csv", content)
    with pytest.raises(DataError, match=r"1cls\.csv (lacks the columns|is no text)"):
        read(storage, "visa")


# -- BTAD


def test_btad_calls_good_ok_and_mixes_formats(storage: Storage) -> None:
    write(
        storage,
        "01/train/ok/0000.bmp",
        "01/test/ok/0000.bmp",
        "01/test/ko/0000.bmp",
        "01/ground_truth/ko/0000.png",
        "02/train/ok/0000.PNG",
        "02/test/ko/0000.png",
        "02/ground_truth/ko/0000.png",
        "03/test/ko/0001.bmp",
        "03/ground_truth/ko/0001.bmp",
        "03/ground_truth/ok/0000.bmp",
        "03/test/ok/0000.bmp",
    )
    assert rows(read(storage, "btad")) == {
        "01/train/ok/0000.bmp": ("01", "train", 0, "good", None),
        "01/test/ok/0000.bmp": ("01", "test", 0, "good", None),
        "01/test/ko/0000.bmp": ("01", "test", 1, "ko", "01/ground_truth/ko/0000.png"),
        "02/train/ok/0000.PNG": ("02", "train", 0, "good", None),
        "02/test/ko/0000.png": ("02", "test", 1, "ko", "02/ground_truth/ko/0000.png"),
        "03/test/ko/0001.bmp": ("03", "test", 1, "ko", "03/ground_truth/ko/0001.bmp"),
        "03/test/ok/0000.bmp": ("03", "test", 0, "good", None),
    }


@pytest.mark.parametrize(
    ("layout", "images", "stray"),
    [
        ("mvtec_ad2", "c/test_public/bad/0.png", "c/test_public/ground_truth/bad/7_mask.png"),
        ("mvtec_loco", "c/test/logical/0.png", "c/ground_truth/logical/7/"),
        ("btad", "c/test/ko/0.png", "c/ground_truth/ko/7.png"),
    ],
)
def test_a_mask_without_image_is_named_or_kept_for_a_check(
    storage: Storage, layout: Layout, images: str, stray: str
) -> None:
    write(storage, images, stray + "000.png" if stray.endswith("/") else stray)
    with pytest.raises(DataError, match=f"1 masks without image .*{stray}"):
        read(storage, layout)
    assert read_as_found(DataConfig(data=storage.uri, layout=layout), storage.options).stray_masks == (stray,)


def test_two_masks_of_one_image_are_refused(storage: Storage) -> None:
    write(storage, "c/test/ko/0.png", "c/ground_truth/ko/0.png", "c/ground_truth/ko/0.bmp")
    with pytest.raises(DataError, match="masks of one name"):
        read(storage, "btad")


# -- KolektorSDD and KolektorSDD2


def mask(encode: Encode, defect: bool, kind: str = "PNG") -> bytes:
    pixels = np.zeros((6, 5), np.uint8)
    pixels[4, 4] = 255 * defect
    return encode(pixels, kind)


def test_kolektor_sdd2_tells_labels_from_masks_and_drops_defective_training_images(
    storage: Storage, encode: Encode
) -> None:
    defective = {"train/10000": False, "train/10001": True, "test/20000": False, "test/20001": True}
    root = storage.child("KolektorSDD2")
    for name, defect in defective.items():
        write(root, f"{name}.png")
        root.write(f"{name}_GT.png", mask(encode, defect))
    assert rows(read(root, "kolektor_sdd2")) == {
        "train/10000.png": ("KolektorSDD2", "train", 0, "good", None),
        "test/20000.png": ("KolektorSDD2", "test", 0, "good", None),
        "test/20001.png": ("KolektorSDD2", "test", 1, "defect", "test/20001_GT.png"),
    }
    assert read(root, "kolektor_sdd2", only=("ksdd2",)).categories == ["ksdd2"]


def test_kolektor_sdd_is_split_by_item(storage: Storage, encode: Encode) -> None:
    for item in range(1, 8):
        for part in range(3):
            write(storage, f"kos{item:02}/Part{part}.jpg")
            storage.write(f"kos{item:02}/Part{part}_label.bmp", mask(encode, part == item % 3, "BMP"))
    samples = read(storage, "kolektor_sdd").samples
    items = {split: {s.image.split("/")[0] for s in samples if s.split == split} for split in ("train", "test")}
    assert items["test"] == {"kos01", "kos04", "kos07"}
    assert items["train"] == {"kos02", "kos03", "kos05", "kos06"}
    assert [s.label for s in samples if s.split == "train"] == [0] * 8
    assert {s.image: s.mask for s in samples if s.label == 1} == {
        f"kos{item:02}/Part1.jpg": f"kos{item:02}/Part1_label.bmp" for item in (1, 4, 7)
    }


def test_an_image_of_kolektor_without_mask_is_named_as_its_label_is_not_known(storage: Storage) -> None:
    write(storage, "train/10000.png")
    with pytest.raises(DataError, match=r"train/10000\.png has no mask"):
        read(storage, "kolektor_sdd2")


def test_a_damaged_mask_of_kolektor_is_named(storage: Storage) -> None:
    write(storage, "train/10000.png", "train/10000_GT.png")
    with pytest.raises(DataError, match=r"10000_GT\.png cannot be used: no image of a known format"):
        read(storage, "kolektor_sdd2")


# -- Real-IAD


def real_iad_list(prefix: str = "audiojack/") -> dict[str, Any]:
    def entry(kind: str, folder: str, view: int, masked: bool) -> dict[str, Any]:
        path = f"{folder}/S0001/audiojack_0001_{kind}_C{view}_20230922"
        truth = f"{path}.png" if masked else None
        return {
            "category": "audiojack",
            "anomaly_class": kind,
            "image_path": f"{path}.jpg",
            "mask_path": truth,
        }

    return {
        "meta": {"prefix": prefix, "normal_class": "OK", "pre_transform": {}},
        "train": [entry("OK", "OK", view, False) for view in range(1, 6)],
        "test": [entry("HS", "NG/HS", 1, True), entry("HS", "NG/HS", 2, True), entry("OK", "NG/HS", 3, False)],
    }


@pytest.mark.parametrize("place", ["realiad_jsons/audiojack.json", "realiad_jsons/realiad_jsons/audiojack.json"])
@pytest.mark.parametrize("folders", [(), ("realiad_256", "realiad_1024")])
def test_real_iad_labels_every_view_by_itself(storage: Storage, place: str, folders: tuple[str, ...]) -> None:
    storage.write(place, json.dumps(real_iad_list()).encode())
    write(storage, "realiad_jsons/realiad_jsons_sv/audiojack.json" if place.count("/") == 2 else "readme.txt")
    write(storage, *(f"{folder}/audiojack/OK/S0001/0.jpg" for folder in folders))
    start = "realiad_1024/audiojack" if folders else "audiojack"
    found = read(storage, "real_iad").samples
    assert len([s for s in found if (s.split, s.label) == ("train", 0)]) == 5
    defect = f"{start}/NG/HS/S0001/audiojack_0001_HS_C1_20230922"
    assert Sample(f"{defect}.jpg", "audiojack", "test", 1, "HS", f"{defect}.png") in found
    view = f"{start}/NG/HS/S0001/audiojack_0001_OK_C3_20230922.jpg"
    assert Sample(view, "audiojack", "test", 0, "good") in found
    assert len(found) == 8


def test_a_prefix_of_real_iad_that_leaves_the_root_is_refused(storage: Storage) -> None:
    storage.write("realiad_jsons/audiojack.json", json.dumps(real_iad_list("../elsewhere/")).encode())
    with pytest.raises(DataError, match="leaves the data set's root"):
        read(storage, "real_iad")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"meta": {"prefix": "a/"}}', b"\xff"])
def test_what_is_no_list_of_real_iad_is_named(storage: Storage, content: bytes) -> None:
    storage.write("realiad_jsons/audiojack.json", content)
    with pytest.raises(DataError, match=r"audiojack\.json is no list of Real-IAD"):
        read(storage, "real_iad")
