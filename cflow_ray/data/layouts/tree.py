"""What readers of layouts share: the root, its images, and masks that are found by name."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from cflow_ray.config import DataConfig
from cflow_ray.data.images import is_image_name
from cflow_ray.data.samples import Sample
from cflow_ray.errors import DataError
from cflow_ray.store.storage import Storage

GOOD = "good"
"""What a good image has for its defect."""


class Masks:
    """Masks by the image that they belong to: each is taken once, and those left over belong to no image."""

    def __init__(self, root: Storage) -> None:
        self._root = root
        self._paths: dict[tuple[str, ...], str] = {}

    def add(self, path: str, *owner: str) -> None:
        """Keep a mask under what names its image; two of one image are a DataError, none is preferred."""
        if (other := self._paths.setdefault(owner, path)) != path:
            raise DataError(
                f"{other} and {path} in {self._root.uri} are masks of one name; rename them and their images."
            )

    def take(self, *owner: str) -> str | None:
        """The mask of an image, which no other image gets."""
        return self._paths.pop(owner, None)

    def sample(self, image: str, category: str, split: str, kind: str) -> Sample:
        """An image from the folder `kind`, `good` or a defect's name; masks are kept by category, defect and stem.

        The mask of a good image is taken, so that it is no stray, and left out.
        """
        mask = self.take(category, kind, stem(image))
        if kind == GOOD:
            return Sample(image, category, split, 0, GOOD)
        return Sample(image, category, split, 1, kind, mask)

    @property
    def left(self) -> tuple[str, ...]:
        """The masks that no image took, sorted."""
        return tuple(sorted(self._paths.values()))


def existing_root(config: DataConfig, storage_options: Mapping[str, Any]) -> Storage:
    """The root of a data set; DataError where there is nothing."""
    root = Storage(config.data, storage_options)
    if not root.exists():
        raise DataError(f"the data root {config.data} does not exist. Check --data.")
    return root


def images_below(root: Storage, folder: str = "") -> list[str]:
    """Paths of the images below a folder, sorted; by their names, in any case."""
    return [path for path in root.files(folder) if is_image_name(path)]


def mask_files(root: Storage, mask: str) -> list[str]:
    """The files of a sample's mask: itself, or the images directly in the folder that it names."""
    if not mask.endswith("/"):
        return [mask]
    return [path for path in root.files(mask.rstrip("/")) if is_image_name(path) and path.count("/") == mask.count("/")]


def stem(path: str) -> str:
    """A file's name without folder and extension."""
    return posixpath.basename(path).rpartition(".")[0]


def only_category(config: DataConfig, root: Storage) -> str:
    """The category of a layout that has one: `only` names it, else the root's folder."""
    return config.only[0] if config.only else posixpath.basename(root.uri)


def inside(path: str, place: str) -> str:
    """The path, where it stays below the root; `place` says in the DataError where it was read."""
    if path.startswith("/") or ".." in path.split("/"):
        raise DataError(f"{place} leaves the data set's root: {path!r}; paths are relative to it.")
    return path
