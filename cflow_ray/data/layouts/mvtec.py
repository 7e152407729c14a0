"""MVTec AD, MVTec AD 2, MVTec LOCO and BTAD: a folder for each category, split and kind of defect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cflow_ray.config import DataConfig
from cflow_ray.data.layouts.tree import GOOD, Masks, existing_root, images_below, stem
from cflow_ray.data.samples import TEST, DataSet, Sample

Placed = tuple[str, str, str, str]
"""An image's path, category, split and kind."""


def read_mvtec(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """`<category>/train/good/*`, `<category>/test/<good|defect>/*`, `<category>/ground_truth/<defect>/<stem>_mask.png`."""
    return _read_two_splits(config, storage_options, str, lambda name: stem(name).removesuffix("_mask"))


def read_mvtec_ad2(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """As MVTec AD, with `validation/good`, `test_public/<good|bad>`, `test_public/ground_truth/bad/<stem>_mask.png`.

    `test_public` is the split `test`. The flat folders `test_private` and `test_private_mixed` are splits of their own
    without labels.
    """
    root = existing_root(config, storage_options)
    masks, images = Masks(root), list[Placed]()
    private: list[Sample] = []
    for path in images_below(root):
        match path.split("/"):
            case [category, "test_public", "ground_truth", defect, name]:
                masks.add(path, category, defect, stem(name).removesuffix("_mask"))
            case [category, "test_public", kind, _]:
                images.append((path, category, TEST, kind))
            case [category, "train" | "validation" as split, kind, _]:
                images.append((path, category, split, kind))
            case [category, "test_private" | "test_private_mixed" as split, _]:
                private.append(Sample(path, category, split, None))
    return DataSet(root, [masks.sample(*image) for image in images] + private, masks.left)


def read_mvtec_loco(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """As MVTec AD, with `validation/good` and a folder of masks an image: `ground_truth/<defect>/<stem>/*.png`."""
    root = existing_root(config, storage_options)
    masks, images = Masks(root), list[Placed]()
    for path in images_below(root):
        match path.split("/"):
            case [category, "ground_truth", defect, owner, _]:
                masks.add(f"{category}/ground_truth/{defect}/{owner}/", category, defect, owner)
            case [category, "train" | "validation" | "test" as split, kind, _]:
                images.append((path, category, split, kind))
    return DataSet(root, [masks.sample(*image) for image in images], masks.left)


def read_btad(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """`<category>/train/ok/*`, `<category>/test/<ok|ko>/*`, `<category>/ground_truth/ko/<stem>.*`; `ok` is good."""
    return _read_two_splits(config, storage_options, lambda kind: GOOD if kind == "ok" else kind, stem)


def _read_two_splits(
    config: DataConfig,
    storage_options: Mapping[str, Any],
    kind_of: Callable[[str], str],
    image_of: Callable[[str], str],
) -> DataSet:
    """`<category>/<train|test>/<folder>/*`, `<category>/ground_truth/<folder>/*`.

    `kind_of` makes a kind of a folder's name, `image_of` an image's stem of its mask's name.
    """
    root = existing_root(config, storage_options)
    masks, images = Masks(root), list[Placed]()
    for path in images_below(root):
        match path.split("/"):
            case [category, "ground_truth", folder, name]:
                masks.add(path, category, kind_of(folder), image_of(name))
            case [category, "train" | "test" as split, folder, _]:
                images.append((path, category, split, kind_of(folder)))
    return DataSet(root, [masks.sample(*image) for image in images], masks.left)
