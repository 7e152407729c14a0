"""Encoded features: every image's own rows, in half precision and in order, whatever batches they came in."""

from __future__ import annotations

from torch import Tensor

from cflow_ray.model.encoder import Encoder
from cflow_ray.model.features import encode
from cflow_ray.model.tiling import Layout

WHOLE = Layout((64, 64), (64, 64), ((0, 0),))


def test_encoded_features_are_the_encoders_in_order_whatever_the_batches(lite0: Encoder, photographs: Tensor) -> None:
    """A pass takes sixteen tiles: with 4, 16 and 21 images it is broken, full, and overrun."""
    images = [*photographs, *photographs[:5]]
    for count in (4, 16, 21):
        features = encode(lite0, [(image, WHOLE) for image in images[:count]])
        assert len(features) == count
        for number, image in enumerate(images[:count]):
            for level, alone in zip(features.levels, lite0(image[None]), strict=True):
                (found,) = level.maps(features.tiles([number]))
                # half precision within 2^-11 of a value, the encoder's batches within 1e-5 of the largest
                allowed = 2**-11 * alone[0].abs() + 2e-5 * alone.abs().max()
                assert ((found - alone[0]).abs() <= allowed).all()
