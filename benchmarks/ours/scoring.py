"""Our scores: the images of a list of files through a registry's bank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from cflow_ray.config import Runtime
from cflow_ray.data.images import PreparedImage
from cflow_ray.data.loading import load_images
from cflow_ray.data.samples import TEST, Sample
from cflow_ray.model.bank import Image
from cflow_ray.model.detector import Finding
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage


class Scorer:
    """The best detector of a category behind `DetectorBank.score_batch`."""

    def __init__(self, registry: str, category: str, device: str, runtime: Runtime) -> None:
        self.registry = Registry(Storage(registry))
        self._key = (category, self.registry.best(category))
        self.manifest = self.registry.manifest(*self._key)
        self._bank = self.registry.bank(device=device, runtime=runtime)

    def images(self, root: str, files: Iterable[str]) -> Iterator[NDArray[np.uint8]]:
        """Decoded images (3, H, W) at the input size, a few read ahead."""
        samples = (Sample(file, "", TEST, None) for file in files)
        for _, image in load_images(Storage(root), samples, self.manifest.detector.input):
            assert isinstance(image, PreparedImage), image
            yield image.pixels_3HW

    def findings(self, images: Iterable[Image], batch: int) -> Iterator[Finding]:
        """A finding an image, in order."""
        remaining = iter(images)
        while group := list(islice(remaining, batch)):
            yield from self._bank.score_batch(group, [self._key] * len(group))
