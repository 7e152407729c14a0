"""A category's images as its detector takes them, read and encoded: the same for a fit and for a later calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from cflow_ray.config import DetectorConfig
from cflow_ray.data.images import PreparedImage
from cflow_ray.data.loading import load_images
from cflow_ray.data.samples import Sample
from cflow_ray.errors import ImageError
from cflow_ray.model.encoder_model import CompiledEncoder
from cflow_ray.model.features import Features, Keep, encode
from cflow_ray.model.tiling import Layout
from cflow_ray.store.storage import Storage

Copies = Callable[[Tensor], Sequence[Tensor]]
"""Altered copies of an image (3, H, W) that are encoded with it."""


class CategoryImages:
    """Images below a root, prepared for one detector; those that cannot be read are left out and noted."""

    def __init__(self, root: Storage, config: DetectorConfig) -> None:
        self._root = root
        self._config = config
        self.unreadable: dict[str, str] = {}
        """A note for each image that was left out, by its path."""

    def readable(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, PreparedImage]]:
        """The samples with their images, in order."""
        for sample, image in load_images(self._root, samples, self._config.input):
            if isinstance(image, ImageError):
                self.unreadable[sample.image] = f"left out {sample.image}: {image}"
            else:
                yield sample, image

    def encoded(
        self,
        samples: Iterable[Sample],
        encoder: CompiledEncoder,
        copies: Copies,
        keep: Keep,
        region_HW: Tensor | None = None,
    ) -> Features:
        """Features of the readable ones; FitError where the encoder's output is not finite."""
        images = (torch.from_numpy(image.pixels_3HW) for _, image in self.readable(samples))
        laid_out = ((image, Layout.of((image.shape[1], image.shape[2]), self._config.input)) for image in images)
        return encode(encoder, laid_out, copies, keep, region_HW)
