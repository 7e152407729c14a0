"""The sample table: one row an image, with category, split, label, defect and mask; every layout is read into it."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cflow_ray.errors import DataError
from cflow_ray.store.storage import Storage

TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class Sample:
    """One image of a data set; paths are relative to the data set's root."""

    image: str
    category: str
    split: str
    label: int | None
    """0 good, 1 anomaly, None unknown."""
    defect: str | None = None
    mask: str | None = None
    """A file or, where it ends in `/`, a folder whose masks together show the defect (see `layouts.tree.mask_files`)."""


@dataclass(frozen=True)
class DataSet:
    """Samples and the root that their paths are relative to."""

    root: Storage
    samples: Sequence[Sample]
    stray_masks: tuple[str, ...] = ()
    """Masks that belong to no image."""

    @property
    def categories(self) -> list[str]:
        """Names of the categories, sorted."""
        return sorted({sample.category for sample in self.samples})

    def of(self, category: str, split: str | None = None) -> list[Sample]:
        """Samples of a category, and of one split if given, in order of their paths."""
        found = [s for s in self.samples if s.category == category and split in (None, s.split)]
        return sorted(found, key=lambda sample: sample.image)

    def normals(self, category: str) -> list[Sample]:
        """The images a detector is fitted from: the training images not known to be anomalous."""
        return [sample for sample in self.of(category, TRAIN) if sample.label != 1]

    def chosen(self, only: Iterable[str]) -> list[str]:
        """Categories by name, all if none is named; raises DataError with the known ones for an unknown name."""
        wanted = list(dict.fromkeys(only))
        unknown = [name for name in wanted if name not in self.categories]
        if unknown:
            raise DataError(
                f"no category {', '.join(map(repr, unknown))} in {self.root.uri}; it has {', '.join(self.categories)}."
            )
        return wanted or self.categories

    def digest(self, category: str, sizes: Mapping[str, int]) -> str:
        """SHA-256 over paths, labels and sizes (bytes by path, as `Storage.sizes` gives) of a category's files.

        Changes when files come, go or change their length, without reading them.
        """
        sha = hashlib.sha256()
        samples = self.of(category)
        folders = {sample.mask: 0 for sample in samples if sample.mask and sample.mask.endswith("/")}
        for path, size in sizes.items() if folders else ():
            if (folder := path.rpartition("/")[0] + "/") in folders:
                folders[folder] += size
        for sample in samples:
            of_mask = sizes.get(sample.mask or "", folders.get(sample.mask or ""))
            sha.update(f"{sample} {sizes.get(sample.image)} {of_mask}\n".encode())
        return sha.hexdigest()


def spelled_alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Names of categories that only case and separators tell apart, which a person takes for one, in groups as given."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        alike[re.sub(r"[ ._-]+", "_", name).casefold()].append(name)
    return [tuple(same) for same in alike.values() if len(same) > 1]
