"""The sample table: what a category trains from, and a digest that notices what changed."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cflow_ray.data.layouts.table import SAMPLE_SCHEMA, to_table
from cflow_ray.data.samples import TEST, TRAIN, DataSet, Sample
from cflow_ray.errors import DataError
from cflow_ray.store.storage import Storage

SAMPLES = [
    Sample("screw/train/good/0.png", "screw", TRAIN, 0, "good"),
    Sample("screw/train/good/1.png", "screw", TRAIN, None),
    Sample("screw/train/bent/0.png", "screw", TRAIN, 1, "bent"),
    Sample("screw/test/good/0.png", "screw", TEST, 0, "good"),
    Sample("screw/test/bent/0.png", "screw", TEST, 1, "bent", "screw/ground_truth/bent/0_mask.png"),
    Sample("cable/train/good/0.png", "cable", TRAIN, 0, "good"),
]
SIZES = {path: 100 + number for number, path in enumerate([s.image for s in SAMPLES] + [SAMPLES[4].mask or ""])}


def data_set(samples: list[Sample]) -> DataSet:
    return DataSet(Storage("memory://data"), samples)


def test_categories_are_sorted_and_named_once() -> None:
    assert data_set(SAMPLES).categories == ["cable", "screw"]


def test_normals_are_the_training_images_not_known_to_be_anomalous() -> None:
    normals = data_set(SAMPLES).normals("screw")
    assert [sample.image for sample in normals] == ["screw/train/good/0.png", "screw/train/good/1.png"]


def test_samples_of_a_category_and_split_in_order_of_paths() -> None:
    shuffled = data_set(random.Random(1).sample(SAMPLES, len(SAMPLES)))
    assert [s.image for s in shuffled.of("screw")] == sorted(s.image for s in SAMPLES if s.category == "screw")
    assert [s.image for s in shuffled.of("screw", TEST)] == ["screw/test/bent/0.png", "screw/test/good/0.png"]
    assert shuffled.of("zipper") == []


def test_chosen_keeps_the_given_order_without_repetition_and_none_means_all() -> None:
    assert data_set(SAMPLES).chosen([]) == ["cable", "screw"]
    assert data_set(SAMPLES).chosen(["screw", "cable", "screw"]) == ["screw", "cable"]


def test_unknown_names_are_listed_beside_the_known() -> None:
    with pytest.raises(DataError, match=r"'scrw', 'zip' in memory://data; it has cable, screw"):
        data_set(SAMPLES).chosen(["scrw", "cable", "zip"])


@given(st.randoms(use_true_random=False))
def test_the_digest_does_not_depend_on_the_order(shuffler: random.Random) -> None:
    samples = shuffler.sample(SAMPLES, len(SAMPLES))
    sizes = dict(shuffler.sample(list(SIZES.items()), len(SIZES)))
    assert data_set(samples).digest("screw", sizes) == data_set(SAMPLES).digest("screw", SIZES)


def test_the_digest_changes_with_everything_of_its_category() -> None:
    def digest(samples: list[Sample], sizes: dict[str, int]) -> str:
        return data_set(samples).digest("screw", sizes)

    image, mask = SAMPLES[0].image, SAMPLES[4].mask or ""
    added = Sample("screw/train/good/2.png", "screw", TRAIN, 0, "good")
    relabelled = [replace(SAMPLES[0], label=1), *SAMPLES[1:]]
    moved = [replace(SAMPLES[0], split=TEST), *SAMPLES[1:]]
    digests = [
        digest(SAMPLES, SIZES),
        digest(SAMPLES, SIZES | {image: 1}),
        digest(SAMPLES, SIZES | {mask: 1}),
        digest(SAMPLES[1:], SIZES),
        digest([*SAMPLES, added], SIZES | {added.image: 100}),
        digest(relabelled, SIZES),
        digest(moved, SIZES),
    ]
    assert len(set(digests)) == len(digests)


def test_the_digest_ignores_other_categories_and_other_files() -> None:
    before = data_set(SAMPLES).digest("screw", SIZES)
    more = [*SAMPLES, Sample("cable/train/good/1.png", "cable", TRAIN, 0)]
    assert data_set(more).digest("screw", SIZES | {"cable/train/good/1.png": 5, "readme.txt": 7}) == before


def test_the_table_holds_the_samples_in_the_schema() -> None:
    table = to_table(SAMPLES)
    assert table.schema.equals(SAMPLE_SCHEMA)
    assert [Sample(**row) for row in table.to_pylist()] == SAMPLES
